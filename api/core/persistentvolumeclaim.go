package core

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// persistentVolumeClaimKind describes claims. Index "volume": the name of the PersistentVolume.
func persistentVolumeClaimKind() *api.Kind {
	return &api.Kind{
		Kind: "PersistentVolumeClaim", Resource: "persistentvolumeclaims", Singular: "persistentvolumeclaim",
		ShortNames: []string{"pvc"}, Namespaced: true,
		Versions: v1[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](),
		Default:  api.On(DefaultPersistentVolumeClaim),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(c *corev1.PersistentVolumeClaim) {
				c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
				claimSources(&c.Spec, nil)
			}),
			PrepareUpdate: api.OnUpdate(func(c, old *corev1.PersistentVolumeClaim) {
				c.Status = old.Status
				claimSources(&c.Spec, &old.Spec)
			}),
			Validate: api.Checks(func(c *corev1.PersistentVolumeClaim) field.ErrorList {
				return ValidatePersistentVolumeClaimSpec(&c.Spec, specPath)
			}),
			ValidateUpdate: api.ChecksUpdate(claimUpdate),
			Warnings: func(obj, _ api.Object) []string {
				return claimWarnings(obj.(*corev1.PersistentVolumeClaim))
			},
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns:             claimColumns(),
		Fields:              map[string]func(api.Object) string{"name": objectName},
		Indexes: map[string]func(api.Object) []string{
			"volume": api.Values(func(c *corev1.PersistentVolumeClaim) []string {
				if c.Spec.VolumeName == "" {
					return nil
				}
				return []string{c.Spec.VolumeName}
			}),
		},
		Subresources: []api.Subresource{view("status", api.Strategy{
			PrepareUpdate: api.OnUpdate(func(c, old *corev1.PersistentVolumeClaim) {
				c.Spec = old.Spec
				c.Status.HealthStatus = nil // CSIVolumeHealth is off
			}),
			ValidateUpdate: api.ChecksUpdate(claimStatusUpdate),
		})},
	}
}

// objectName is the field "name", which some kinds had before metadata.name.
func objectName(o api.Object) string { return o.GetName() }

// DefaultPersistentVolumeClaim fills a claim, or a claim template of a StatefulSet.
func DefaultPersistentVolumeClaim(c *corev1.PersistentVolumeClaim) {
	defaultClaimSpec(&c.Spec)
	dropGatedClaim(&c.Spec)
	if c.Status.Phase == "" {
		c.Status.Phase = corev1.ClaimPending
	}
	defaultResourceList(c.Status.Capacity)
	defaultResourceList(c.Status.AllocatedResources)
}

// claimSources keeps dataSource and dataSourceRef, its successor, the same (KEP-1495). dataSource
// alone cannot name other kinds than claims and snapshots.
func claimSources(s, old *corev1.PersistentVolumeClaimSpec) {
	if old == nil || old.DataSource == nil && old.DataSourceRef == nil {
		if d := s.DataSource; d != nil && !claimOrSnapshot(d) {
			s.DataSource = nil
		}
	}
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.DataSource.APIGroup, Kind: s.DataSource.Kind, Name: s.DataSource.Name}
	case s.DataSource == nil && s.DataSourceRef != nil && (s.DataSourceRef.Namespace == nil || *s.DataSourceRef.Namespace == ""):
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: s.DataSourceRef.APIGroup, Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name}
	}
}

func claimOrSnapshot(d *corev1.TypedLocalObjectReference) bool {
	group := ""
	if d.APIGroup != nil {
		group = *d.APIGroup
	}
	return group == "" && d.Kind == "PersistentVolumeClaim" || group == "snapshot.storage.k8s.io" && d.Kind == "VolumeSnapshot"
}

// Access modes and volume modes, as messages list them.
var (
	supportedAccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	supportedVolumeModes = []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}
)

// accessModeList checks modes: each known, and ReadWriteOncePod alone.
func accessModeList(r *report, modes []corev1.PersistentVolumeAccessMode, p *field.Path) {
	single, other := false, false
	for _, m := range modes {
		before := len(r.errs)
		oneOf(r, m, p, "accessModes", supportedAccessModes...)
		single = single || m == corev1.ReadWriteOncePod
		other = other || m != corev1.ReadWriteOncePod && len(r.errs) == before
	}
	if single && other {
		r.forbidden(p.Child("accessModes"), "may not use ReadWriteOncePod with other access modes")
	}
}

// ValidatePersistentVolumeClaimSpec checks the spec of a claim or of a claim template.
func ValidatePersistentVolumeClaimSpec(s *corev1.PersistentVolumeClaimSpec, path *field.Path) field.ErrorList {
	r := &report{}
	if len(s.AccessModes) == 0 {
		r.required(path.Child("accessModes"), "at least 1 access mode is required")
	}
	r.add(validate.LabelSelector(s.Selector, path.Child("selector")))
	accessModeList(r, s.AccessModes, path)
	size := path.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		r.required(size, "")
	} else {
		r.add(validate.PositiveQuantity(q, size))
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		r.objectName(*s.StorageClassName, path, "storageClassName", false)
	}
	if s.VolumeMode != nil {
		oneOf(r, *s.VolumeMode, path, "volumeMode", supportedVolumeModes...)
	}
	claimSourceRules(r, s, path)
	if n := s.VolumeAttributesClassName; n != nil && *n != "" {
		r.objectName(*n, path, "volumeAttributesClassName", false)
	}
	return r.errs
}

func claimSourceRules(r *report, s *corev1.PersistentVolumeClaimSpec, p *field.Path) {
	if d := s.DataSource; d != nil {
		dataSource(r, d.APIGroup, d.Kind, d.Name, p.Child("dataSource"))
	}
	ref := s.DataSourceRef
	if ref == nil {
		return
	}
	at := p.Child("dataSourceRef")
	dataSource(r, ref.APIGroup, ref.Kind, ref.Name, at)
	foreign := ref.Namespace != nil && *ref.Namespace != ""
	if foreign {
		r.label(*ref.Namespace, at, "namespace")
	}
	if s.DataSource == nil {
		return
	}
	// Upstream gives the path itself as the bad value.
	if foreign {
		r.invalid(p, p.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified")
	} else if !equality.Semantic.DeepEqual(s.DataSource.APIGroup, ref.APIGroup) || s.DataSource.Kind != ref.Kind || s.DataSource.Name != ref.Name {
		r.invalid(p, p.Child("dataSource"), "must match dataSourceRef")
	}
}

func dataSource(r *report, group *string, kind, name string, p *field.Path) {
	r.need(name, p, "name")
	r.need(kind, p, "kind")
	if group == nil || *group == "" {
		if kind != "PersistentVolumeClaim" {
			r.invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
		}
		return
	}
	r.subdomain(*group, p, "apiGroup")
}

func claimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	r := &report{errs: ValidatePersistentVolumeClaimSpec(&c.Spec, specPath)}
	s := withOldClaim(r, c, old)
	if !equality.Semantic.DeepEqual(s, oldClaim(c, old)) {
		r.forbidden(specPath, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v",
			diff.Diff(*oldClaim(c, old), *s)))
	}
	size, before := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	capacity := old.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(before) < 0 && size.Cmp(capacity) <= 0 {
		r.forbidden(specPath.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	r.add(validate.Immutable(c.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode")))
	attributesClassUpdate(r, c, old)
	return r.errs
}

// oldClaim is the old spec, with the volume that a claim may be bound to once.
func oldClaim(c, old *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaimSpec {
	s := old.Spec
	if s.VolumeName == "" {
		s.VolumeName = c.Spec.VolumeName
	}
	claimSources(&s, &old.Spec)
	return &s
}

// withOldClaim returns the new spec with the old values of what may change.
func withOldClaim(r *report, c, old *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaimSpec {
	s := c.Spec
	annotation, annotated := old.Annotations[corev1.BetaStorageClassAnnotation]
	value, kept := c.Annotations[corev1.BetaStorageClassAnnotation]
	fromAnnotation := annotated && old.Spec.StorageClassName == nil &&
		s.StorageClassName != nil && *s.StorageClassName == annotation && (!kept || value == annotation)
	if fromAnnotation {
		s.StorageClassName = nil
	} else {
		if value != annotation {
			r.invalid(metadataPath.Child("annotations", corev1.BetaStorageClassAnnotation), value, validate.ImmutableMessage)
		}
		if s.StorageClassName != nil && old.Spec.StorageClassName == nil && (!annotated || *s.StorageClassName == annotation) {
			s.StorageClassName = nil // the default class may be set later (KEP-3333)
		}
	}
	if c.Status.Phase == corev1.ClaimBound {
		s.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
		if s.Resources.Requests != nil {
			s.Resources.Requests = maps.Clone(s.Resources.Requests)
			s.Resources.Requests[corev1.ResourceStorage] = old.Spec.Resources.Requests[corev1.ResourceStorage]
		}
	}
	return &s
}

// attributesClassUpdate follows KEP-3751.
func attributesClassUpdate(r *report, c, old *corev1.PersistentVolumeClaim) {
	name := c.Spec.VolumeAttributesClassName
	if old.Status.CurrentVolumeAttributesClassName == nil || equality.Semantic.DeepEqual(name, old.Spec.VolumeAttributesClassName) {
		return
	}
	p := specPath.Child("volumeAttributesClassName")
	if name == nil {
		r.forbidden(p, "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil")
	} else if *name == "" {
		r.forbidden(p, "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil")
	}
}

func claimStatusUpdate(c, _ *corev1.PersistentVolumeClaim) field.ErrorList {
	r := &report{}
	if c.ResourceVersion == "" {
		r.required(field.NewPath("resourceVersion"), "")
	}
	if len(c.Spec.AccessModes) == 0 {
		r.required(field.NewPath("Spec", "accessModes"), "")
	}
	for name, q := range inOrder(c.Status.Capacity) {
		if q.Value() < 0 {
			r.invalid(statusPath.Child("capacity").Key(string(name)), q.Value(), "must be a valid resource quantity")
		}
	}
	for name, status := range inOrder(c.Status.AllocatedResourceStatuses) {
		p := statusPath.Child("allocatedResourceStatuses")
		claimResource(r, name, p)
		r.add(resizeStatus(name, status, p))
	}
	for name, q := range inOrder(c.Status.AllocatedResources) {
		p := statusPath.Child("allocatedResources")
		before := len(r.errs)
		claimResource(r, name, p)
		if len(r.errs) > before {
			continue
		}
		if q.Value() < 0 {
			r.invalid(p.Key(string(name)), q.Value(), "must be a valid resource quantity")
		}
	}
	return r.errs
}

// claimResource holds that of Kubernetes' own resources a claim can have storage alone.
func claimResource(r *report, name corev1.ResourceName, p *field.Path) {
	if m := validate.QualifiedName(string(name)); m != nil {
		r.invalids(p, string(name), m)
		return
	}
	if validate.NativeResource(name) && name != corev1.ResourceStorage {
		r.addOne(field.NotSupported(p, name, []corev1.ResourceName{corev1.ResourceStorage}))
	}
}

func resizeStatus(name corev1.ResourceName, status corev1.ClaimResourceStatus, p *field.Path) field.ErrorList {
	allowed := []corev1.ClaimResourceStatus{
		corev1.PersistentVolumeClaimControllerResizeInfeasible, corev1.PersistentVolumeClaimControllerResizeInProgress,
		corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizePending}
	if len(validate.OneOf(status, p, allowed...)) == 0 {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, name, allowed)}
}

const classAnnotationUnused = `deprecated since v1.8; use "storageClassName" attribute instead`

func claimWarnings(c *corev1.PersistentVolumeClaim) []string {
	w := &warner{}
	w.oldAnnotation(&c.ObjectMeta, corev1.BetaStorageClassAnnotation, annotationsPath, classAnnotationUnused)
	w.claim(&c.Spec, specPath)
	return w.said
}

// storageClass is the class of a volume or claim, which the annotation named before the field.
func storageClass(meta *metav1.ObjectMeta, class string) string {
	if a, ok := meta.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return a
	}
	return class
}

func claimColumns() []api.Column {
	spec, status := corev1.PersistentVolumeClaimSpec{}.SwaggerDoc(), corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()
	type T = *corev1.PersistentVolumeClaim
	bound := func(c T, value string) string {
		if c.Spec.VolumeName == "" {
			return ""
		}
		return value
	}
	return []api.Column{
		nameColumn(),
		column("Status", "string", status["phase"], 0, func(c T) any { return phase(c, string(c.Status.Phase)) }),
		column("Volume", "string", spec["volumeName"], 0, func(c T) any { return c.Spec.VolumeName }),
		column("Capacity", "string", status["capacity"], 0, func(c T) any {
			q := c.Status.Capacity[corev1.ResourceStorage]
			return bound(c, q.String())
		}),
		column("Access Modes", "string", status["accessModes"], 0, func(c T) any { return bound(c, accessModes(c.Status.AccessModes)) }),
		column("StorageClass", "string", "StorageClass of the pvc", 0, func(c T) any {
			return storageClass(&c.ObjectMeta, deref(c.Spec.StorageClassName, ""))
		}),
		column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc", 0, func(c T) any {
			return deref(c.Spec.VolumeAttributesClassName, unset)
		}),
		ageColumn(),
		column("VolumeMode", "string", spec["volumeMode"], 1, func(c T) any { return string(deref(c.Spec.VolumeMode, unset)) }),
	}
}

// phase shows an object that is going as such.
func phase(o api.Object, phase string) string {
	if o.GetDeletionTimestamp() != nil {
		return "Terminating"
	}
	return phase
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
