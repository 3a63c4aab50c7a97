package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/percent"
	"coracle.dev/coracle/api/validate"
)

func statefulSetKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "StatefulSet", Resource: "statefulsets", Singular: "statefulset",
		ShortNames: []string{"sts"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   declare.V1[appsv1.StatefulSet, appsv1.StatefulSetList](),
		Default:    api.On(defaultStatefulSet),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(s *appsv1.StatefulSet) { s.Status = appsv1.StatefulSetStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(s, old *appsv1.StatefulSet) { s.Status = old.Status }),
			Validate:       api.Checks(statefulSetCreate),
			ValidateUpdate: api.ChecksUpdate(statefulSetUpdate),
			Warnings: func(o, p api.Object) []string {
				old, _ := p.(*appsv1.StatefulSet)
				return statefulSetWarnings(o.(*appsv1.StatefulSet), old)
			},
		},
		Desired: func(o, p api.Object) bool {
			return changed(o.(*appsv1.StatefulSet).Spec, p.(*appsv1.StatefulSet).Spec)
		},
		UnconditionalUpdate: true,
		// The pods are named after the set, and such a name is a host name (KEP-5311 left it a label).
		ValidateName: validate.Label,
		Columns: append([]api.Column{
			declare.Name(),
			declare.Text("Ready", "Number of the pod with ready state", func(s *appsv1.StatefulSet) any {
				return fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, declare.Replicas(s.Spec.Replicas))
			}),
			declare.Age(),
		}, declare.Containers(func(s *appsv1.StatefulSet) []corev1.Container { return s.Spec.Template.Spec.Containers }, nil)...),
		Subresources: []api.Subresource{
			declare.Scale(),
			declare.Status(api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(s, old *appsv1.StatefulSet) { s.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(statefulSetStatusUpdate),
			}),
		},
	}
}

func defaultStatefulSet(set *appsv1.StatefulSet) {
	s := &set.Spec
	core.DefaultPodTemplate(&s.Template)
	for i := range s.VolumeClaimTemplates {
		c := &s.VolumeClaimTemplates[i]
		c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
		or(&c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		if c.Status.Phase == "" {
			c.Status.Phase = corev1.ClaimPending
		}
	}
	if s.PodManagementPolicy == "" {
		s.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	u := &s.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		or(&u.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		or(&u.RollingUpdate.Partition, 0)
		percent.Default(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	or(&s.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	for _, p := range []*appsv1.PersistentVolumeClaimRetentionPolicyType{
		&s.PersistentVolumeClaimRetentionPolicy.WhenDeleted, &s.PersistentVolumeClaimRetentionPolicy.WhenScaled,
	} {
		if *p == "" {
			*p = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
		}
	}
	or(&s.Replicas, 1)
	or(&s.RevisionHistoryLimit, 10)
}

// statefulSetCreate also checks what cannot change later, and was not always checked.
func statefulSetCreate(s *appsv1.StatefulSet) field.ErrorList {
	errs := statefulSetSpec(&s.Spec)
	if name := s.Spec.ServiceName; name != "" {
		errs = append(errs, validate.Invalids(field.NewPath("spec", "serviceName"), name, validate.Label(name, false))...)
	}
	for i := range s.Spec.VolumeClaimTemplates {
		c := &s.Spec.VolumeClaimTemplates[i]
		path := field.NewPath("spec", "volumeClaimTemplates").Index(i)
		errs = append(errs, validate.TemplateMeta(&c.ObjectMeta, path.Child("metadata"))...)
		errs = append(errs, core.ValidatePersistentVolumeClaimSpec(&c.Spec, path.Child("spec"))...)
	}
	return errs
}

func statefulSetSpec(s *appsv1.StatefulSetSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := podManagement(s.PodManagementPolicy, path.Child("podManagementPolicy"))
	errs = append(errs, statefulSetStrategy(&s.UpdateStrategy, path.Child("updateStrategy"))...)
	errs = append(errs, claimRetention(s.PersistentVolumeClaimRetentionPolicy, path.Child("persistentVolumeClaimRetentionPolicy"))...)
	errs = append(errs, validate.NonNegative(declare.Replicas(s.Replicas), path.Child("replicas"))...)
	errs = append(errs, validate.NonNegative(s.MinReadySeconds, path.Child("minReadySeconds"))...)
	if s.Ordinals != nil {
		errs = append(errs, validate.NonNegative(s.Ordinals.Start, path.Child("ordinals", "start"))...)
	}
	errs = append(errs, selectorOf(s.Selector, path.Child("selector"), "empty selector is invalid for statefulset")...)
	template := path.Child("template")
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		errs = append(errs, field.Invalid(path.Child("selector"), s.Selector, ""))
	} else {
		errs = append(errs, matches(s.Selector, &s.Template, template)...)
		errs = append(errs, core.ValidatePodTemplateSpec(withClaims(s), template)...)
	}
	return append(errs, runsForever(&s.Template, "StatefulSet", template)...)
}

// withClaims is the template as its pods will see it: each claim template is a
// volume of that name, in place of one that the template may have.
func withClaims(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if len(s.VolumeClaimTemplates) == 0 {
		return &s.Template
	}
	t := s.Template
	volumes := make([]corev1.Volume, 0, len(t.Spec.Volumes)+len(s.VolumeClaimTemplates))
	claimed := make(map[string]bool, len(s.VolumeClaimTemplates))
	for i := range s.VolumeClaimTemplates {
		claimed[s.VolumeClaimTemplates[i].Name] = true
	}
	for _, v := range t.Spec.Volumes {
		if !claimed[v.Name] {
			volumes = append(volumes, v)
		}
	}
	for i := range s.VolumeClaimTemplates {
		name := s.VolumeClaimTemplates[i].Name
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	t.Spec.Volumes = volumes
	return &t
}

func podManagement(p appsv1.PodManagementPolicyType, path *field.Path) field.ErrorList {
	switch p {
	case "":
		return field.ErrorList{field.Required(path, "")}
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
		return nil
	}
	return field.ErrorList{field.Invalid(path, p, "must be 'OrderedReady' or 'Parallel'")}
}

func statefulSetStrategy(u *appsv1.StatefulSetUpdateStrategy, path *field.Path) field.ErrorList {
	rolling := path.Child("rollingUpdate")
	switch u.Type {
	case "":
		return field.ErrorList{field.Required(path, "")}
	case appsv1.OnDeleteStatefulSetStrategyType:
		if u.RollingUpdate != nil {
			return field.ErrorList{field.Invalid(rolling, u.RollingUpdate, "only allowed for updateStrategy 'RollingUpdate'")}
		}
		return nil
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if u.RollingUpdate != nil {
			return rollingStatefulSet(u.RollingUpdate, rolling)
		}
		return nil
	}
	return field.ErrorList{field.Invalid(path, u, "must be 'RollingUpdate' or 'OnDelete'")}
}

func rollingStatefulSet(r *appsv1.RollingUpdateStatefulSetStrategy, path *field.Path) field.ErrorList {
	errs := validate.NonNegative(declare.Replicas(r.Partition), path.Child("partition"))
	if r.MaxUnavailable == nil {
		return errs
	}
	unavailable := path.Child("maxUnavailable")
	errs = append(errs, percent.Check(r.MaxUnavailable, unavailable)...)
	if percent.IsZero(r.MaxUnavailable) {
		errs = append(errs, field.Invalid(unavailable, r.MaxUnavailable, "cannot be 0"))
	}
	return append(errs, percent.AtMost100(r.MaxUnavailable, unavailable)...)
}

func claimRetention(p *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	both := []appsv1.PersistentVolumeClaimRetentionPolicyType{
		appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
	}
	errs := validate.OneOf(p.WhenDeleted, path.Child("whenDeleted"), both...)
	return append(errs, validate.OneOf(p.WhenScaled, path.Child("whenScaled"), both...)...)
}

func statefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	errs := statefulSetSpec(&s.Spec)
	rest := s.Spec
	rest.Replicas = old.Spec.Replicas
	rest.Ordinals = old.Spec.Ordinals
	rest.Template = old.Spec.Template
	rest.UpdateStrategy = old.Spec.UpdateStrategy
	rest.RevisionHistoryLimit = old.Spec.RevisionHistoryLimit
	rest.PersistentVolumeClaimRetentionPolicy = old.Spec.PersistentVolumeClaimRetentionPolicy
	rest.MinReadySeconds = old.Spec.MinReadySeconds
	if changed(rest, old.Spec) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
	}
	return errs
}

func statefulSetStatusUpdate(set, old *appsv1.StatefulSet) field.ErrorList {
	path := field.NewPath("status")
	s := &set.Status
	errs := nonNegative(path,
		count{"replicas", int64(s.Replicas)},
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"currentReplicas", int64(s.CurrentReplicas)},
		count{"updatedReplicas", int64(s.UpdatedReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)},
		count{"observedGeneration", s.ObservedGeneration})
	errs = append(errs, collisions(s.CollisionCount, path)...)
	errs = append(errs, notAbove(path, s.Replicas, "cannot be greater than status.replicas",
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"currentReplicas", int64(s.CurrentReplicas)},
		count{"updatedReplicas", int64(s.UpdatedReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
	errs = append(errs, notAbove(path, s.ReadyReplicas, "cannot be greater than status.readyReplicas",
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
	return append(errs, notDecremented(s.CollisionCount, old.Status.CollisionCount)...)
}

func statefulSetWarnings(s, old *appsv1.StatefulSet) []string {
	var warnings []string
	switch {
	case old == nil:
		warnings = templateWarnings(&s.Spec.Template)
	case changed(s.Spec, old.Spec):
		warnings = templateWarnings(&s.Spec.Template)
	}
	if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
		warnings = append(warnings, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
	}
	return warnings
}
