package core

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func replicationControllerKind() *api.Kind {
	return &api.Kind{
		Kind: "ReplicationController", Resource: "replicationcontrollers", Singular: "replicationcontroller",
		ShortNames: []string{"rc"}, Categories: []string{"all"}, Namespaced: true,
		Versions: v1[corev1.ReplicationController, corev1.ReplicationControllerList](),
		Default:  api.On(defaultReplicationController),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(c *corev1.ReplicationController) { c.Status = corev1.ReplicationControllerStatus{} }),
			PrepareUpdate: api.OnUpdate(func(c, old *corev1.ReplicationController) { c.Status = old.Status }),
			Validate:      api.Checks(validateReplicationController),
			ValidateUpdate: api.ChecksUpdate(func(c, _ *corev1.ReplicationController) field.ErrorList {
				return validateReplicationController(c)
			}),
			Warnings: replicationControllerWarnings,
		},
		Desired: func(obj, old api.Object) bool {
			return !equality.Semantic.DeepEqual(&obj.(*corev1.ReplicationController).Spec, &old.(*corev1.ReplicationController).Spec)
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns:             replicationControllerColumns(),
		Fields: map[string]func(api.Object) string{
			"status.replicas": api.Field(func(c *corev1.ReplicationController) string { return strconv.Itoa(int(c.Status.Replicas)) }),
		},
		Subresources: []api.Subresource{
			{Name: "scale", Type: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, Verbs: []string{"get", "patch", "update"}},
			view("status", api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(c, old *corev1.ReplicationController) { c.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(replicationControllerStatusUpdate),
			}),
		},
	}
}

func defaultReplicationController(c *corev1.ReplicationController) {
	if t := c.Spec.Template; t != nil {
		DefaultPodTemplate(t)
		if len(t.Labels) > 0 {
			if len(c.Spec.Selector) == 0 {
				c.Spec.Selector = copyOf(t.Labels)
			}
			if len(c.Labels) == 0 {
				c.Labels = copyOf(t.Labels)
			}
		}
	}
	if c.Spec.Replicas == nil {
		c.Spec.Replicas = new(int32(1))
	}
}

func copyOf(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func validateReplicationController(c *corev1.ReplicationController) field.ErrorList {
	r, s := &report{}, &c.Spec
	nonNegative(r, s.MinReadySeconds, specPath, "minReadySeconds")
	if len(s.Selector) == 0 {
		r.required(specPath.Child("selector"), "")
	}
	if s.Replicas == nil {
		r.required(specPath.Child("replicas"), "")
	} else {
		nonNegative(r, *s.Replicas, specPath, "replicas")
	}
	p := specPath.Child("template")
	t := s.Template
	if t == nil {
		r.required(p, "")
		return r.errs
	}
	if len(s.Selector) > 0 && !labels.SelectorFromSet(s.Selector).Matches(labels.Set(t.Labels)) {
		r.invalid(p.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
	r.add(ValidatePodTemplateSpec(t, p))
	oneOf(r, t.Spec.RestartPolicy, p.Child("spec"), "restartPolicy", corev1.RestartPolicyAlways)
	if t.Spec.ActiveDeadlineSeconds != nil {
		r.forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicationController is not Supported")
	}
	return r.errs
}

func replicationControllerStatusUpdate(c, _ *corev1.ReplicationController) field.ErrorList {
	r, s := &report{}, &c.Status
	nonNegative(r, s.Replicas, statusPath, "replicas")
	nonNegative(r, s.FullyLabeledReplicas, statusPath, "fullyLabeledReplicas")
	nonNegative(r, s.ReadyReplicas, statusPath, "readyReplicas")
	nonNegative(r, s.AvailableReplicas, statusPath, "availableReplicas")
	nonNegative(r, s.ObservedGeneration, statusPath, "observedGeneration")
	const detail = "cannot be greater than status.replicas"
	if s.FullyLabeledReplicas > s.Replicas {
		r.invalid(statusPath.Child("fullyLabeledReplicas"), s.FullyLabeledReplicas, detail)
	}
	if s.ReadyReplicas > s.Replicas {
		r.invalid(statusPath.Child("readyReplicas"), s.ReadyReplicas, detail)
	}
	if s.AvailableReplicas > s.Replicas {
		r.invalid(statusPath.Child("availableReplicas"), s.AvailableReplicas, detail)
	}
	if s.AvailableReplicas > s.ReadyReplicas {
		r.invalid(statusPath.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas")
	}
	return r.errs
}

func replicationControllerWarnings(obj, old api.Object) []string {
	c := obj.(*corev1.ReplicationController)
	w := &warner{}
	if old == nil {
		if m := validate.DNSLabel(c.Name); m != nil {
			w.say("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", m)
		}
	} else if old.GetGeneration() == c.Generation {
		return nil
	}
	if c.Spec.Template != nil {
		w.said = append(w.said, PodTemplateWarnings(c.Spec.Template, specPath.Child("template"))...)
	}
	return w.said
}

func replicationControllerColumns() []api.Column {
	spec, status := corev1.ReplicationControllerSpec{}.SwaggerDoc(), corev1.ReplicationControllerStatus{}.SwaggerDoc()
	type T = *corev1.ReplicationController
	columns := []api.Column{
		nameColumn(),
		column("Desired", "integer", spec["replicas"], 0, func(c T) any { return int64(deref(c.Spec.Replicas, 0)) }),
		column("Current", "integer", status["replicas"], 0, func(c T) any { return int64(c.Status.Replicas) }),
		column("Ready", "integer", status["readyReplicas"], 0, func(c T) any { return int64(c.Status.ReadyReplicas) }),
		ageColumn(),
	}
	columns = append(columns, templateColumns(1, func(c T) *corev1.PodSpec {
		if c.Spec.Template == nil {
			return nil
		}
		return &c.Spec.Template.Spec
	})...)
	return append(columns, column("Selector", "string", spec["selector"], 1, func(c T) any { return formatSet(c.Spec.Selector) }))
}
