package batch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

var (
	failureActions = []batchv1.PodFailurePolicyAction{
		batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
		batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore,
	}
	exitCodeOperators = []batchv1.PodFailurePolicyOnExitCodesOperator{
		batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn,
	}
	conditionStatuses = []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
)

// choice is validate.OneOf with upstream's words for a policy field that was left out.
func choice[T ~string](value T, path *field.Path, allowed []T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, fmt.Sprintf("valid values: %q", allowed))}
	}
	return validate.OneOf(value, path, allowed...)
}

func failurePolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := path.Child("rules")
	if n := len(s.PodFailurePolicy.Rules); n > maxPolicyRules {
		errs = append(errs, field.TooMany(rules, n, maxPolicyRules))
	}
	names := map[string]bool{}
	for _, c := range s.Template.Spec.Containers {
		names[c.Name] = true
	}
	for _, c := range s.Template.Spec.InitContainers {
		names[c.Name] = true
	}
	for i := range s.PodFailurePolicy.Rules {
		errs = append(errs, failureRule(s, &s.PodFailurePolicy.Rules[i], rules.Index(i), names)...)
	}
	return errs
}

func failureRule(s *batchv1.JobSpec, r *batchv1.PodFailurePolicyRule, path *field.Path, names map[string]bool) field.ErrorList {
	var errs field.ErrorList
	if r.Action == batchv1.PodFailurePolicyActionFailIndex {
		if s.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(path.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		}
	} else {
		errs = append(errs, choice(r.Action, path.Child("action"), failureActions)...)
	}
	if r.OnExitCodes != nil {
		errs = append(errs, onExitCodes(r.OnExitCodes, path.Child("onExitCodes"), names)...)
	}
	if len(r.OnPodConditions) > 0 {
		errs = append(errs, onPodConditions(r.OnPodConditions, path.Child("onPodConditions"))...)
	}
	switch {
	case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
	case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
	}
	return errs
}

func onPodConditions(patterns []batchv1.PodFailurePolicyOnPodConditionsPattern, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := len(patterns); n > maxConditionPatterns {
		errs = append(errs, field.TooMany(path, n, maxConditionPatterns))
	}
	for i, p := range patterns {
		errs = append(errs, validate.QualifiedNameField(string(p.Type), path.Index(i).Child("type"))...)
		errs = append(errs, choice(p.Status, path.Index(i).Child("status"), conditionStatuses)...)
	}
	return errs
}

func onExitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, path *field.Path, names map[string]bool) field.ErrorList {
	errs := choice(r.Operator, path.Child("operator"), exitCodeOperators)
	if n := r.ContainerName; n != nil && !names[*n] {
		errs = append(errs, field.Invalid(path.Child("containerName"), *n, "must be one of the container or initContainer names in the pod template"))
	}
	values := path.Child("values")
	if len(r.Values) == 0 {
		errs = append(errs, field.Invalid(values, r.Values, "at least one value is required"))
	} else if len(r.Values) > maxExitCodes {
		errs = append(errs, field.TooMany(values, len(r.Values), maxExitCodes))
	}
	seen := map[int32]bool{}
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			errs = append(errs, field.Invalid(values.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen[v] {
			errs = append(errs, field.Duplicate(values.Index(i), v))
		}
		seen[v] = true
	}
	if !slices.IsSorted(r.Values) {
		errs = append(errs, field.Invalid(values, r.Values, "must be ordered"))
	}
	return errs
}

func successPolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := path.Child("rules")
	switch n := len(s.SuccessPolicy.Rules); {
	case n == 0:
		errs = append(errs, field.Required(rules, "at least one rules must be specified when the successPolicy is specified"))
	case n > maxPolicyRules:
		errs = append(errs, field.TooMany(rules, n, maxPolicyRules))
	}
	for i := range s.SuccessPolicy.Rules {
		errs = append(errs, successRule(s, &s.SuccessPolicy.Rules[i], rules.Index(i))...)
	}
	return errs
}

func successRule(s *batchv1.JobSpec, r *batchv1.SuccessPolicyRule, path *field.Path) field.ErrorList {
	if r.SucceededCount == nil && r.SucceededIndexes == nil {
		return field.ErrorList{field.Required(path, "at least one of succeededCount or succeededIndexes must be specified")}
	}
	var (
		errs        field.ErrorList
		total       int32
		completions int32
	)
	if s.Completions != nil {
		completions = *s.Completions
	}
	if text := r.SucceededIndexes; text != nil {
		p := path.Child("succeededIndexes")
		if len(*text) > maxIndexesText {
			errs = append(errs, field.TooLong(p, *text, maxIndexesText))
		}
		var err error
		if total, err = countIndexes(*text, completions); err != nil {
			errs = append(errs, field.Invalid(p, *text, fmt.Sprintf("error parsing succeededIndexes: %s", err)))
		}
	}
	if n := r.SucceededCount; n != nil {
		p := path.Child("succeededCount")
		errs = append(errs, validate.NonNegative(*n, p)...)
		if *n > completions {
			errs = append(errs, field.Invalid(p, *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions)))
		}
		if r.SucceededIndexes != nil && *n > total {
			errs = append(errs, field.Invalid(p, *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total)))
		}
	}
	return errs
}

// countIndexes reads indexes in the form "1,3-5,7", each below completions, and tells how many there are.
func countIndexes(text string, completions int32) (int32, error) {
	if text == "" {
		return 0, nil
	}
	var total int32
	last := int32(-1)
	for _, part := range strings.Split(text, ",") {
		from, to, err := indexRange(part, completions)
		if err != nil {
			return 0, err
		}
		if last >= from {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, from)
		}
		total += to - from + 1
		last = to
	}
	return total, nil
}

func indexRange(text string, completions int32) (from, to int32, err error) {
	parts := strings.Split(text, "-")
	if len(parts) > 2 {
		return 0, 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", text)
	}
	var ends [2]int32
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot convert string to integer for index: %q", p)
		}
		if n >= int(completions) {
			return 0, 0, fmt.Errorf("too large index: %q", p)
		}
		ends[i] = int32(n)
	}
	if len(parts) == 1 {
		return ends[0], ends[0], nil
	}
	if ends[0] >= ends[1] {
		return 0, 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", ends[0], ends[1])
	}
	return ends[0], ends[1], nil
}
