package storage

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	maxParameters     = 512
	maxParametersSize = 256 * 1024 // bytes

	// DefaultAnnotation marks the class of claims that name none.
	DefaultAnnotation = "storageclass.kubernetes.io/is-default-class"
	betaAnnotation    = "storageclass.beta.kubernetes.io/is-default-class"
)

// IsDefault tells whether a class is that of claims that name none.
func IsDefault(c *storagev1.StorageClass) bool {
	return c.Annotations[DefaultAnnotation] == "true" || c.Annotations[betaAnnotation] == "true"
}

func storageClassKind() *api.Kind {
	type class = *storagev1.StorageClass
	return &api.Kind{
		Group: group, Kind: "StorageClass", Resource: "storageclasses", Singular: "storageclass",
		ShortNames: []string{"sc"},
		Versions:   declare.V1[storagev1.StorageClass, storagev1.StorageClassList](),
		Default: api.On(func(c class) {
			or(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			or(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(storageClass),
			ValidateUpdate: api.ChecksUpdate(storageClassUpdate),
		},
		UnconditionalUpdate: true,
		Columns:             storageClassColumns(),
	}
}

func storageClass(c *storagev1.StorageClass) field.ErrorList {
	var errs field.ErrorList
	if p := field.NewPath("provisioner"); c.Provisioner == "" {
		errs = append(errs, field.Required(p, ""))
	} else {
		errs = append(errs, validate.Invalids(p, c.Provisioner, validate.QualifiedName(strings.ToLower(c.Provisioner)))...)
	}
	errs = append(errs, parameters(c.Parameters, true)...)
	if p := c.ReclaimPolicy; p != nil && *p != "" {
		errs = append(errs, validate.OneOf(*p, field.NewPath("reclaimPolicy"), corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if m := c.VolumeBindingMode; m == nil {
		errs = append(errs, field.Required(field.NewPath("volumeBindingMode"), ""))
	} else {
		errs = append(errs, validate.OneOf(*m, field.NewPath("volumeBindingMode"), storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
	}
	path := field.NewPath("allowedTopologies")
	for i := range c.AllowedTopologies {
		errs = append(errs, core.ValidateTopologySelectorTerm(&c.AllowedTopologies[i], path.Index(i))...)
		for k := range i {
			if !changed(c.AllowedTopologies[i], c.AllowedTopologies[k]) {
				errs = append(errs, field.Duplicate(path.Index(i).Child("matchLabelExpressions"), ""))
				break
			}
		}
	}
	return errs
}

func storageClassUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	errs := validate.Immutable(c.Parameters, old.Parameters, field.NewPath("parameters"))
	errs = append(errs, validate.Immutable(c.Provisioner, old.Provisioner, field.NewPath("provisioner"))...)
	errs = append(errs, validate.Immutable(c.ReclaimPolicy, old.ReclaimPolicy, field.NewPath("reclaimPolicy"))...)
	return append(errs, validate.Immutable(c.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
}

// parameters checks number and size of what goes to a driver as it is.
func parameters(params map[string]string, mayBeEmpty bool) field.ErrorList {
	path := field.NewPath("parameters")
	if len(params) > maxParameters {
		return field.ErrorList{field.TooLong(path, "Provisioner Parameters exceeded max allowed", maxParameters)}
	}
	var errs field.ErrorList
	size := 0
	for k, v := range params {
		if k == "" {
			errs = append(errs, field.Invalid(path, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		errs = append(errs, field.TooLong(path, "", maxParametersSize))
	}
	if len(params) == 0 && !mayBeEmpty {
		errs = append(errs, field.Required(path, "must contain at least one key/value pair"))
	}
	return errs
}

func storageClassColumns() []api.Column {
	type class = *storagev1.StorageClass
	doc := storagev1.StorageClass{}.SwaggerDoc()
	name := declare.Name()
	name.Cell = api.Cell(func(c class) any {
		if IsDefault(c) {
			return c.Name + " (default)"
		}
		return c.Name
	})
	return []api.Column{
		name,
		declare.Text("Provisioner", doc["provisioner"], func(c class) any { return c.Provisioner }),
		declare.Text("ReclaimPolicy", doc["reclaimPolicy"], func(c class) any {
			if c.ReclaimPolicy == nil {
				return string(corev1.PersistentVolumeReclaimDelete)
			}
			return string(*c.ReclaimPolicy)
		}),
		declare.Text("VolumeBindingMode", doc["volumeBindingMode"], func(c class) any {
			if c.VolumeBindingMode == nil {
				return declare.Unset
			}
			return string(*c.VolumeBindingMode)
		}),
		declare.Text("AllowVolumeExpansion", doc["allowVolumeExpansion"], func(c class) any {
			return c.AllowVolumeExpansion != nil && *c.AllowVolumeExpansion
		}),
		declare.Age(),
	}
}

func volumeAttributesClassKind() *api.Kind {
	type class = *storagev1.VolumeAttributesClass
	return &api.Kind{
		Group: group, Kind: "VolumeAttributesClass", Resource: "volumeattributesclasses", Singular: "volumeattributesclass",
		ShortNames: []string{"vac"},
		Versions:   declare.V1[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](),
		Strategy: api.Strategy{
			Validate: api.Checks(func(c class) field.ErrorList {
				return append(core.ValidateCSIDriverName(c.DriverName, field.NewPath("driverName")), parameters(c.Parameters, false)...)
			}),
			ValidateUpdate: api.ChecksUpdate(func(c, old class) field.ErrorList {
				var errs field.ErrorList
				if c.DriverName != old.DriverName {
					errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
				}
				if changed(c.Parameters, old.Parameters) {
					errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
				}
				return errs
			}),
		},
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("DriverName", storagev1.VolumeAttributesClass{}.SwaggerDoc()["driverName"], func(c class) any { return c.DriverName }),
			declare.Age(),
		},
	}
}
