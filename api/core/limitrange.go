package core

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func limitRangeKind() *api.Kind {
	return &api.Kind{
		Kind: "LimitRange", Resource: "limitranges", Singular: "limitrange", ShortNames: []string{"limits"}, Namespaced: true,
		Versions: v1[corev1.LimitRange, corev1.LimitRangeList](),
		Default: api.On(func(l *corev1.LimitRange) {
			for i := range l.Spec.Limits {
				defaultLimit(&l.Spec.Limits[i])
			}
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(validateLimitRange),
			ValidateUpdate: api.ChecksUpdate(func(l, _ *corev1.LimitRange) field.ErrorList { return validateLimitRange(l) }),
		},
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Created At", "string", metaDoc["creationTimestamp"], 0, func(l *corev1.LimitRange) any {
				return l.CreationTimestamp.UTC().Format(time.RFC3339)
			}),
		},
	}
}

// defaultLimit completes the limits of containers: the default limit from the maximum, the default
// request from the default limit or else the minimum.
func defaultLimit(l *corev1.LimitRangeItem) {
	if l.Type == corev1.LimitTypeContainer {
		for name, q := range l.Max {
			setIfAbsent(&l.Default, name, q)
		}
		for name, q := range l.Default {
			setIfAbsent(&l.DefaultRequest, name, q)
		}
		for name, q := range l.Min {
			setIfAbsent(&l.DefaultRequest, name, q)
		}
	}
	for _, list := range []corev1.ResourceList{l.Max, l.Min, l.Default, l.DefaultRequest, l.MaxLimitRequestRatio} {
		defaultResourceList(list)
	}
}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	r := &report{}
	var types names
	for i := range l.Spec.Limits {
		item, p := &l.Spec.Limits[i], specPath.Child("limits").Index(i)
		limitType(r, item.Type, p.Child("type"))
		if types.add(string(item.Type)) {
			r.duplicate(p.Child("type"), item.Type)
		}
		limitItem(r, item, p)
	}
	return r.errs
}

func limitType(r *report, t corev1.LimitType, p *field.Path) {
	if m := validate.QualifiedName(string(t)); m != nil {
		r.invalids(p, t, m)
		return
	}
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
	default:
		if !strings.Contains(string(t), "/") {
			r.invalid(p, t, "must be a standard limit type or fully qualified")
		}
	}
}

// limitItem checks the names of all resources, then what their amounts are to each other.
func limitItem(r *report, l *corev1.LimitRangeItem, p *field.Path) {
	seen := map[corev1.ResourceName]bool{}
	list := func(resources corev1.ResourceList, child string) {
		for name := range inOrder(resources) {
			seen[name] = true
			if l.Type == corev1.LimitTypePod || l.Type == corev1.LimitTypeContainer {
				r.add(validate.ContainerResourceName(name, p.Child(child).Key(string(name))))
			} else {
				r.add(validate.ResourceName(name, p.Child(child).Key(string(name))))
			}
		}
	}
	list(l.Max, "max")
	list(l.Min, "min")
	if l.Type == corev1.LimitTypePod {
		const detail = "may not be specified when `type` is 'Pod'"
		if len(l.Default) > 0 {
			r.forbidden(p.Child("default"), detail)
		}
		if len(l.DefaultRequest) > 0 {
			r.forbidden(p.Child("defaultRequest"), detail)
		}
	} else {
		list(l.Default, "default")
		list(l.DefaultRequest, "defaultRequest")
	}
	if l.Type == corev1.LimitTypePersistentVolumeClaim {
		_, low := l.Min[corev1.ResourceStorage]
		_, high := l.Max[corev1.ResourceStorage]
		if !low && !high {
			r.required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
		}
	}
	list(l.MaxLimitRequestRatio, "maxLimitRequestRatio")
	for name := range inOrder(seen) {
		limitAmounts(r, l, name, p)
	}
}

// amount is a quantity that may be absent.
type amount struct {
	resource.Quantity
	set bool
}

func amountOf(l corev1.ResourceList, name corev1.ResourceName) amount {
	q, ok := l[name]
	return amount{q, ok}
}

// above tells whether both are set and a is more than b.
func (a amount) above(b amount) bool { return a.set && b.set && a.Cmp(b.Quantity) > 0 }

func limitAmounts(r *report, l *corev1.LimitRangeItem, name corev1.ResourceName, p *field.Path) {
	low, high := amountOf(l.Min, name), amountOf(l.Max, name)
	limit, request := amountOf(l.Default, name), amountOf(l.DefaultRequest, name)
	if l.Type == corev1.LimitTypePod {
		limit, request = amount{}, amount{}
	}
	say := func(child string, bad amount, format string, args ...any) {
		r.invalid(p.Child(child).Key(string(name)), bad.String(), fmt.Sprintf(format, args...))
	}
	if low.above(high) {
		say("min", low, "min value %s is greater than max value %s", low.String(), high.String())
	}
	if low.above(request) {
		say("defaultRequest", request, "min value %s is greater than default request value %s", low.String(), request.String())
	}
	if request.above(high) {
		say("defaultRequest", request, "default request value %s is greater than max value %s", request.String(), high.String())
	}
	if request.above(limit) {
		say("defaultRequest", request, "default request value %s is greater than default limit value %s", request.String(), limit.String())
	}
	if low.above(limit) {
		say("default", low, "min value %s is greater than default value %s", low.String(), limit.String())
	}
	if limit.above(high) {
		say("default", high, "default value %s is greater than max value %s", limit.String(), high.String())
	}
	if ratio := amountOf(l.MaxLimitRequestRatio, name); ratio.set {
		if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
			say("maxLimitRequestRatio", ratio, "ratio %s is less than 1", ratio.String())
		}
		if low.set && high.set {
			if most := high.AsApproximateFloat64() / low.AsApproximateFloat64(); ratio.AsApproximateFloat64() > most {
				say("maxLimitRequestRatio", ratio, "ratio %s is greater than max/min = %f", ratio.String(), most)
			}
		}
	}
	if !validate.OvercommitAllowed(name) && limit.set && request.set && limit.Cmp(request.Quantity) != 0 {
		say("defaultRequest", request, "default value %s must equal to defaultRequest value %s in %s", limit.String(), request.String(), name)
	}
}
