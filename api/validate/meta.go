package validate

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Meta checks the metadata of a new object. name is the kind's api.Kind.ValidateName,
// nil for Subdomain. The server calls it before a kind's own Validate.
func Meta(meta metav1.Object, namespaced bool, name func(string, bool) []string, path *field.Path) field.ErrorList {
	if name == nil {
		name = Subdomain
	}
	return append(validation.ValidateObjectMetaAccessor(meta, namespaced, name, path),
		finalizers(meta.GetFinalizers(), path)...)
}

// finalizers holds that a finalizer without a domain is one of Kubernetes' own.
func finalizers(names []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, name := range names {
		errs = append(errs, Finalizer(name, path.Child("finalizers").Index(i))...)
	}
	return errs
}

// Finalizer refuses the name of a finalizer that has no domain and is not one of Kubernetes' own.
func Finalizer(name string, path *field.Path) field.ErrorList {
	switch name {
	case string(corev1.FinalizerKubernetes), metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents:
		return nil
	}
	if strings.Contains(name, "/") {
		return nil
	}
	return field.ErrorList{field.Invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified")}
}

// MetaUpdate checks a change of metadata: name, namespace, uid and timestamps stay,
// and resourceVersion is there.
func MetaUpdate(meta, old metav1.Object, path *field.Path) field.ErrorList {
	return append(validation.ValidateObjectMetaAccessorUpdate(meta, old, path),
		finalizers(meta.GetFinalizers(), path)...)
}

// TemplateMeta checks the metadata of a template, of which only labels,
// annotations and finalizers mean something.
func TemplateMeta(meta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, Labels(meta.Labels, path.Child("labels"))...)
	errs = append(errs, Annotations(meta.Annotations, path.Child("annotations"))...)
	return errs
}

// Labels checks a set of labels.
func Labels(labels map[string]string, path *field.Path) field.ErrorList {
	for k, v := range labels {
		if !isQualifiedName(k) || len(LabelValue(v)) > 0 {
			return v1validation.ValidateLabels(labels, path)
		}
	}
	return nil
}

// LabelKey checks the key of a label.
func LabelKey(key string, path *field.Path) field.ErrorList {
	if isQualifiedName(key) {
		return nil
	}
	return v1validation.ValidateLabelName(key, path)
}

// Annotations checks the keys and the total size of annotations.
func Annotations(annotations map[string]string, path *field.Path) field.ErrorList {
	size := 0
	for k, v := range annotations {
		size += len(k) + len(v)
		if !isQualifiedName(k) {
			return validation.ValidateAnnotations(annotations, path)
		}
	}
	if size > validation.TotalAnnotationSizeLimitB {
		return validation.ValidateAnnotations(annotations, path)
	}
	return nil
}

// LabelSelector checks a selector; nil is a good one.
func LabelSelector(s *metav1.LabelSelector, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	return v1validation.ValidateLabelSelector(s, v1validation.LabelSelectorValidationOptions{}, path)
}

// LabelSelectorUpdate is LabelSelector for a change: a label value that the old selector
// already had wrong stays accepted.
func LabelSelectorUpdate(s, old *metav1.LabelSelector, path *field.Path) field.ErrorList {
	return v1validation.ValidateLabelSelector(s, v1validation.LabelSelectorValidationOptions{
		AllowInvalidLabelValueInSelector: v1validation.LabelSelectorHasInvalidLabelValue(old),
	}, path)
}

// Conditions checks status conditions of the shape metav1.Condition.
func Conditions(conditions []metav1.Condition, path *field.Path) field.ErrorList {
	return v1validation.ValidateConditions(conditions, path)
}
