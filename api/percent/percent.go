// Package percent checks fields that hold either a count or a percentage ("5" or
// "25%"), as rolling updates and disruption budgets have them. Errors are in upstream's words.
package percent

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// Default fills an absent field.
func Default(v **intstr.IntOrString, value intstr.IntOrString) {
	if *v == nil {
		*v = &value
	}
}

// Check refuses what is neither a count from 0 nor a percentage. Absent is good.
func Check(v *intstr.IntOrString, path *field.Path) field.ErrorList {
	switch {
	case v == nil:
		return nil
	case v.Type == intstr.Int:
		return validate.NonNegative(v.IntVal, path)
	case v.Type == intstr.String:
		return validate.Invalids(path, v, content.IsValidPercent(v.StrVal))
	}
	return field.ErrorList{field.Invalid(path, v, "must be an integer or percentage (e.g '5%%')")}
}

// AtMost100 refuses percentages above 100.
func AtMost100(v *intstr.IntOrString, path *field.Path) field.ErrorList {
	if n, ok := percentage(v); !ok || n <= 100 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, v, "must not be greater than 100%")}
}

// IsZero tells whether a field is absent, 0, or 0%.
func IsZero(v *intstr.IntOrString) bool {
	if n, ok := percentage(v); ok {
		return n == 0
	}
	return v == nil || v.IntValue() == 0
}

func percentage(v *intstr.IntOrString) (int, bool) {
	if v == nil || v.Type != intstr.String || len(content.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n, err == nil
}
