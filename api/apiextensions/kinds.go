// Package apiextensions holds the Kind of the API group apiextensions.k8s.io: custom resource definitions.
//
// It checks all of a definition: names, versions, columns, conversion, and schemas with their defaults and CEL rules. How a
// definition becomes a Kind of its own is not its matter (apiserver/custom).
package apiextensions

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	kubespec "k8s.io/kube-openapi/pkg/validation/spec"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/webhook"
)

// Finalizer is put on a definition that is deleted, and taken off when its objects are gone.
const Finalizer = apiextensionsv1.CustomResourceCleanupFinalizer

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{definitionKind()}
}

func definitionKind() *api.Kind {
	type definition = *apiextensionsv1.CustomResourceDefinition
	return &api.Kind{
		Group: apiextensionsv1.SchemeGroupVersion.Group, Kind: "CustomResourceDefinition", Resource: "customresourcedefinitions", Singular: "customresourcedefinition",
		ShortNames:   []string{"crd", "crds"},
		Categories:   []string{"api-extensions"},
		Versions:     declare.V1[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](),
		AnyFinalizer: true,
		Default:      api.On(defaultDefinition),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(d definition) {
				d.Status = apiextensionsv1.CustomResourceDefinitionStatus{}
				addStoredVersion(d)
			}),
			PrepareUpdate: api.OnUpdate(func(d, old definition) {
				d.Status = *old.Status.DeepCopy()
				addStoredVersion(d)
			}),
			Validate: api.Checks(func(d definition) field.ErrorList { return check(d, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(d, old definition) field.ErrorList {
				return append(check(d, old), sameNames(d, old)...)
			}),
			Warnings: func(o, p api.Object) []string {
				old, _ := p.(definition)
				return warnings(o.(definition), old)
			},
		},
		Desired: func(o, p api.Object) bool {
			return !equality.Semantic.DeepEqual(o.(definition).Spec, p.(definition).Spec)
		},
		BeginDelete: func(o api.Object, now time.Time) { beginDelete(o.(definition), now) },
		Columns:     columns(),
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(d, old definition) { d.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(func(d, _ definition) field.ErrorList {
				return names(&d.Status.AcceptedNames, field.NewPath("status", "acceptedNames"))
			}),
		})},
	}
}

func defaultDefinition(d *apiextensionsv1.CustomResourceDefinition) {
	n := &d.Spec.Names
	if n.Singular == "" {
		n.Singular = strings.ToLower(n.Kind)
	}
	if n.ListKind == "" && n.Kind != "" {
		n.ListKind = n.Kind + "List"
	}
	if d.Spec.Conversion == nil {
		d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
	}
	if w := d.Spec.Conversion.Webhook; w != nil && w.ClientConfig != nil && w.ClientConfig.Service != nil && w.ClientConfig.Service.Port == nil {
		port := int32(webhook.DefaultPort)
		w.ClientConfig.Service.Port = &port
	}
	if len(d.Status.StoredVersions) == 0 {
		addStoredVersion(d)
	}
}

// beginDelete holds a definition until its objects are gone.
func beginDelete(d *apiextensionsv1.CustomResourceDefinition, now time.Time) {
	if !slices.Contains(d.Finalizers, Finalizer) {
		d.Finalizers = append(d.Finalizers, Finalizer)
	}
	c := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionPending",
		Message:            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
		LastTransitionTime: metav1.NewTime(now.UTC().Truncate(time.Second)),
	}
	d.Status.Conditions = slices.DeleteFunc(slices.Clone(d.Status.Conditions), func(have apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return have.Type == c.Type
	})
	d.Status.Conditions = append(d.Status.Conditions, c)
}

// addStoredVersion notes that objects will be stored in the storage version.
func addStoredVersion(d *apiextensionsv1.CustomResourceDefinition) {
	for _, v := range d.Spec.Versions {
		if !v.Storage {
			continue
		}
		if !slices.Contains(d.Status.StoredVersions, v.Name) {
			d.Status.StoredVersions = append(d.Status.StoredVersions, v.Name)
		}
		return
	}
}

// Established tells whether the API server serves the definition's objects.
func Established(d *apiextensionsv1.CustomResourceDefinition) bool {
	for _, c := range d.Status.Conditions {
		if c.Type == apiextensionsv1.Established {
			return c.Status == apiextensionsv1.ConditionTrue
		}
	}
	return false
}

// warnings name formats that nobody checks, and lists that declare themselves sets of what cannot be compared; of an update
// only what it brings.
func warnings(d, old *apiextensionsv1.CustomResourceDefinition) []string {
	formats, sets := peculiarities(d)
	oldFormats, oldSets := map[string]bool{}, map[string]bool{}
	if old != nil {
		oldFormats, oldSets = peculiarities(old)
	}
	var out []string
	for _, f := range sorted(formats) {
		if !oldFormats[f] {
			out = append(out, fmt.Sprintf("unrecognized format %q", f))
		}
	}
	for _, t := range sorted(sets) {
		if !oldSets[t] {
			out = append(out, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", t))
		}
	}
	return out
}

// peculiarities are the unknown formats in a definition's schemas, and the item types of sets that are no scalars.
func peculiarities(d *apiextensionsv1.CustomResourceDefinition) (formats, sets map[string]bool) {
	formats, sets = map[string]bool{}, map[string]bool{}
	s, err := internal(&d.Spec)
	if err != nil {
		return formats, sets
	}
	version := environment.DefaultCompatibilityVersion()
	anySchema(s, func(p *props) bool {
		if p.Format != "" {
			one := &kubespec.Schema{SchemaProps: kubespec.SchemaProps{Format: p.Format, Type: []string{p.Type}}}
			for _, f := range validation.GetUnrecognizedFormats(one, version) {
				formats[f] = true
			}
		}
		if p.XListType != nil && *p.XListType == "set" && p.Items != nil && p.Items.Schema != nil {
			if t := p.Items.Schema.Type; t == "object" || t == "array" {
				sets[t] = true
			}
		}
		return false
	})
	return formats, sets
}

func columns() []api.Column {
	type definition = *apiextensionsv1.CustomResourceDefinition
	created := declare.CreatedAt()
	created.Type = "date"
	return append([]api.Column{
		declare.Name(),
		declare.Text("Scope", "Cluster/Namespaced", func(d definition) any { return string(d.Spec.Scope) }),
		declare.Text("Versions", "Served versions", func(d definition) any {
			var served []string
			for _, v := range d.Spec.Versions {
				switch {
				case v.Served && v.Storage:
					served = append(served, v.Name+"(storage)")
				case v.Served:
					served = append(served, v.Name)
				}
			}
			slices.Sort(served)
			return strings.Join(served, ",")
		}),
		created,
	}, declare.Wide(
		declare.Text("Group", "API group", func(d definition) any { return d.Spec.Group }),
		declare.Text("Kind", "CustomResource kind", func(d definition) any { return d.Spec.Names.Kind }),
		declare.Text("ShortNames", "Short names", func(d definition) any { return strings.Join(d.Spec.Names.ShortNames, ",") }),
		api.Column{Name: "Established", Type: "boolean", Description: "Established status", Cell: api.Cell(func(d definition) any { return Established(d) })},
	)...)
}

// protected tells whether a group is Kubernetes' own.
func protected(group string) bool {
	return group == "k8s.io" || strings.HasSuffix(group, ".k8s.io") || group == "kubernetes.io" || strings.HasSuffix(group, ".kubernetes.io")
}

// approval reads the annotation by which a definition in Kubernetes' own groups says that
// it was approved: "" if all is well, otherwise what is wrong.
func approval(annotation string) (state, problem string) {
	const see = ", see https://github.com/kubernetes/enhancements/pull/1111"
	u, err := url.ParseRequestURI(annotation)
	switch {
	case annotation == "":
		return "missing", fmt.Sprintf("protected groups must have approval annotation %q", apiextensionsv1.KubeAPIApprovedAnnotation) + see
	case strings.HasPrefix(annotation, "unapproved"):
		return "bypassed", ""
	case err == nil && u.Host != "" && u.Scheme != "":
		return "approved", ""
	}
	return "invalid", fmt.Sprintf("protected groups must have approval annotation %q with either a URL or a reason starting with \"unapproved\"", apiextensionsv1.KubeAPIApprovedAnnotation) + see
}

func checkApproval(d, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	if !protected(d.Spec.Group) {
		return nil
	}
	annotation := d.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation]
	state, problem := approval(annotation)
	if old != nil {
		if was, _ := approval(old.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation]); was == state {
			return nil
		}
	}
	path := field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation)
	switch state {
	case "missing":
		return field.ErrorList{field.Required(path, problem)}
	case "invalid":
		return field.ErrorList{field.Invalid(path, annotation, problem)}
	}
	return nil
}
