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

func deploymentKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "Deployment", Resource: "deployments", Singular: "deployment",
		ShortNames: []string{"deploy"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   declare.V1[appsv1.Deployment, appsv1.DeploymentList](),
		Default:    api.On(defaultDeployment),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(d *appsv1.Deployment) { d.Status = appsv1.DeploymentStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(d, old *appsv1.Deployment) { d.Status = old.Status }),
			Validate:       api.Checks(func(d *appsv1.Deployment) field.ErrorList { return deploymentSpec(&d.Spec) }),
			ValidateUpdate: api.ChecksUpdate(deploymentUpdate),
			Warnings: func(o, p api.Object) []string {
				d := o.(*appsv1.Deployment)
				if p == nil {
					return append(podNameWarning(d.Name), templateWarnings(&d.Spec.Template)...)
				}
				if old := p.(*appsv1.Deployment); deploymentDesired(d, old) {
					return templateWarnings(&d.Spec.Template)
				}
				return nil
			},
		},
		Desired: func(o, p api.Object) bool {
			return deploymentDesired(o.(*appsv1.Deployment), p.(*appsv1.Deployment))
		},
		UnconditionalUpdate: true,
		Columns:             deploymentColumns(),
		Subresources: []api.Subresource{
			declare.Scale(),
			declare.Status(api.Strategy{
				PrepareUpdate: api.OnUpdate(func(d, old *appsv1.Deployment) {
					d.Spec = old.Spec
					d.Labels = old.Labels
				}),
				ValidateUpdate: api.ChecksUpdate(deploymentStatusUpdate),
			}),
		},
	}
}

func defaultDeployment(d *appsv1.Deployment) {
	s := &d.Spec
	core.DefaultPodTemplate(&s.Template)
	or(&s.Replicas, 1)
	if s.Strategy.Type == "" {
		s.Strategy.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		or(&s.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		percent.Default(&s.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		percent.Default(&s.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	or(&s.RevisionHistoryLimit, 10)
	or(&s.ProgressDeadlineSeconds, 600)
}

// deploymentDesired counts annotations too: they are copied to the replica sets.
func deploymentDesired(d, old *appsv1.Deployment) bool {
	return changed(d.Spec, old.Spec) || changed(d.Annotations, old.Annotations)
}

func deploymentSpec(s *appsv1.DeploymentSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := validate.NonNegative(declare.Replicas(s.Replicas), path.Child("replicas"))
	errs = append(errs, selectorOf(s.Selector, path.Child("selector"), "empty selector is invalid for deployment")...)
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		errs = append(errs, field.Invalid(path.Child("selector"), s.Selector, "invalid label selector"))
	} else {
		errs = append(errs, replicatedTemplate(s.Selector, &s.Template, declare.Replicas(s.Replicas), path.Child("template"))...)
	}
	errs = append(errs, deploymentStrategy(&s.Strategy, path.Child("strategy"))...)
	errs = append(errs, validate.NonNegative(s.MinReadySeconds, path.Child("minReadySeconds"))...)
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, validate.NonNegative(*s.RevisionHistoryLimit, path.Child("revisionHistoryLimit"))...)
	}
	if p := s.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, validate.NonNegative(*p, path.Child("progressDeadlineSeconds"))...)
		if *p <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(path.Child("progressDeadlineSeconds"), *p, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func deploymentStrategy(s *appsv1.DeploymentStrategy, path *field.Path) field.ErrorList {
	rolling := path.Child("rollingUpdate")
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rolling, "may not be specified when strategy `type` is 'Recreate'")}
		}
		return nil
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(rolling, "this should be defaulted and never be nil")}
		}
		return rollingDeployment(s.RollingUpdate, rolling)
	}
	return field.ErrorList{field.NotSupported(path, s, []appsv1.DeploymentStrategyType{
		appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType,
	})}
}

func rollingDeployment(r *appsv1.RollingUpdateDeployment, path *field.Path) field.ErrorList {
	unavailable := path.Child("maxUnavailable")
	errs := percent.Check(r.MaxUnavailable, unavailable)
	errs = append(errs, percent.Check(r.MaxSurge, path.Child("maxSurge"))...)
	if percent.IsZero(r.MaxUnavailable) && percent.IsZero(r.MaxSurge) {
		errs = append(errs, field.Invalid(unavailable, r.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
	}
	return append(errs, percent.AtMost100(r.MaxUnavailable, unavailable)...)
}

func deploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	return append(deploymentSpec(&d.Spec), validate.Immutable(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
}

func deploymentStatusUpdate(d, old *appsv1.Deployment) field.ErrorList {
	path := field.NewPath("status")
	s := &d.Status
	errs := nonNegative(path,
		count{"observedGeneration", s.ObservedGeneration},
		count{"replicas", int64(s.Replicas)},
		count{"updatedReplicas", int64(s.UpdatedReplicas)},
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)},
		count{"unavailableReplicas", int64(s.UnavailableReplicas)},
		count{"terminatingReplicas", int64(declare.Replicas(s.TerminatingReplicas))})
	errs = append(errs, collisions(s.CollisionCount, path)...)
	errs = append(errs, notAbove(path, s.Replicas, "cannot be greater than status.replicas",
		count{"updatedReplicas", int64(s.UpdatedReplicas)},
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
	errs = append(errs, notAbove(path, s.ReadyReplicas, "cannot be greater than readyReplicas",
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
	return append(errs, notDecremented(s.CollisionCount, old.Status.CollisionCount)...)
}

func deploymentColumns() []api.Column {
	doc := appsv1.DeploymentStatus{}.SwaggerDoc()
	return append([]api.Column{
		declare.Name(),
		declare.Text("Ready", "Number of the pod with ready state", func(d *appsv1.Deployment) any {
			return fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, declare.Replicas(d.Spec.Replicas))
		}),
		declare.Text("Up-to-date", doc["updatedReplicas"], func(d *appsv1.Deployment) any { return int64(d.Status.UpdatedReplicas) }),
		declare.Text("Available", doc["availableReplicas"], func(d *appsv1.Deployment) any { return int64(d.Status.AvailableReplicas) }),
		declare.Age(),
	}, declare.Containers(
		func(d *appsv1.Deployment) []corev1.Container { return d.Spec.Template.Spec.Containers },
		func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector })...)
}
