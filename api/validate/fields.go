package validate

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Words that upstream uses for refusals of several kinds.
const (
	NegativeMessage    = validation.IsNegativeErrorMsg     // numbers and quantities below 0
	NotPositiveMessage = "must be greater than zero"       // numbers and quantities of 0 and below
	NotIntegerMessage  = "must be an integer"              // fractions of what cannot be divided
	ImmutableMessage   = validation.FieldImmutableErrorMsg // a change of what cannot change
)

// NonNegative refuses values below 0.
func NonNegative[N ~int | ~int32 | ~int64](value N, path *field.Path) field.ErrorList {
	if value >= 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, int64(value), NegativeMessage).WithOrigin("minimum")}
}

// Positive refuses values of 0 and below.
func Positive[N ~int | ~int32 | ~int64](value N, path *field.Path) field.ErrorList {
	if value > 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, int64(value), NotPositiveMessage)}
}

// InRange refuses values outside low to high, both included.
func InRange[N ~int | ~int32 | ~int64](value, low, high N, path *field.Path) field.ErrorList {
	if value >= low && value <= high {
		return nil
	}
	return field.ErrorList{field.Invalid(path, int64(value), content.InclusiveRangeError(int(low), int(high)))}
}

// Port refuses numbers that are no port (1-65535).
func Port[N ~int | ~int32](port N, path *field.Path) field.ErrorList {
	if port >= 1 && port <= 65535 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, int64(port), content.InclusiveRangeError(1, 65535))}
}

// PortNumberOrName refuses what is neither a port number nor a port name.
func PortNumberOrName(port intstr.IntOrString, path *field.Path) field.ErrorList {
	switch port.Type {
	case intstr.Int:
		return Port(port.IntVal, path)
	case intstr.String:
		return Invalids(path, port.StrVal, PortName(port.StrVal))
	}
	return field.ErrorList{field.InternalError(path, unknownType(port.Type))}
}

type unknownType intstr.Type

func (t unknownType) Error() string { return "unknown type: " + string(rune('0'+int(t)%10)) }

// OneOf refuses values that are not among allowed, which is given in the order in
// which upstream lists it (mostly sorted).
func OneOf[T ~string](value T, path *field.Path, allowed ...T) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

// RequiredOneOf is OneOf of a field that also must not be empty.
func RequiredOneOf[T ~string](value T, path *field.Path, allowed ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return OneOf(value, path, allowed...)
}

// Immutable refuses a value that differs from the old one. Empty and absent are
// different only where Kubernetes' semantic equality says so.
func Immutable[T any](value, old T, path *field.Path) field.ErrorList {
	if equality.Semantic.DeepEqual(value, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(path, value, ImmutableMessage)}
}

// IP refuses what is no IP address, for fields that are older than strict parsing:
// leading zeros and IPv4-mapped IPv6 are refused (StrictIPCIDRValidation), other
// non-canonical forms are not. Values of old are accepted in any form.
func IP(value string, path *field.Path, old ...string) field.ErrorList {
	return content.IsValidIPForLegacyField(path, value, true, old)
}

// StrictIP refuses what is no IP address in canonical form.
func StrictIP(value string, path *field.Path) field.ErrorList {
	return content.IsValidIP(path, value)
}

// CIDR is IP for address blocks ("10.0.0.0/8").
func CIDR(value string, path *field.Path, old ...string) field.ErrorList {
	return content.IsValidCIDRForLegacyField(path, value, true, old)
}

// StrictCIDR refuses what is no address block in canonical form.
func StrictCIDR(value string, path *field.Path) field.ErrorList {
	return content.IsValidCIDR(path, value)
}
