package flowcontrol

import (
	"fmt"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

func priorityLevelKind() *api.Kind {
	type level = *flowcontrolv1.PriorityLevelConfiguration
	return &api.Kind{
		Group: group, Kind: "PriorityLevelConfiguration", Resource: "prioritylevelconfigurations", Singular: "prioritylevelconfiguration",
		Versions: declare.V1[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](),
		Default:  api.On(defaultLevel),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(l level) { l.Status = flowcontrolv1.PriorityLevelConfigurationStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(l, old level) { l.Status = old.Status }),
			Validate:       api.Checks(priorityLevel),
			ValidateUpdate: api.ChecksUpdate(func(l, _ level) field.ErrorList { return priorityLevel(l) }),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(level).Spec, p.(level).Spec) },
		UnconditionalUpdate: true,
		Columns:             levelColumns(),
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(l, old level) {
				l.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&l.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(l, _ level) field.ErrorList { return levelConditions(l) }),
		})},
	}
}

func levelConditions(l *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	types := make([]string, len(l.Status.Conditions))
	for i := range types {
		types[i] = string(l.Status.Conditions[i].Type)
	}
	return conditionTypes(types)
}

func defaultLevel(l *flowcontrolv1.PriorityLevelConfiguration) {
	if l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt {
		or(&l.Spec.Exempt, flowcontrolv1.ExemptPriorityLevelConfiguration{})
	}
	if e := l.Spec.Exempt; e != nil {
		or(&e.NominalConcurrencyShares, 0)
		or(&e.LendablePercent, 0)
	}
	limited := l.Spec.Limited
	if limited == nil {
		return
	}
	or(&limited.NominalConcurrencyShares, 30)
	or(&limited.LendablePercent, 0)
	if q := limited.LimitResponse.Queuing; q != nil {
		if q.Queues == 0 {
			q.Queues = 64
		}
		if q.HandSize == 0 {
			q.HandSize = 8
		}
		if q.QueueLengthLimit == 0 {
			q.QueueLengthLimit = 50
		}
	}
}

func priorityLevel(l *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	path := field.NewPath("spec")
	s := &l.Spec
	var errs field.ErrorList
	if (l.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt) != (s.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
		errs = append(errs, field.Invalid(path.Child("type"), s.Type, "must be 'Exempt' if and only if `name` is 'exempt'"))
	}
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			errs = append(errs, field.Forbidden(path.Child("limited"), "must be nil if the type is not Limited"))
		}
		if s.Exempt == nil {
			errs = append(errs, field.Required(path.Child("exempt"), "must not be empty when type is Exempt"))
		} else {
			errs = append(errs, shares(s.Exempt.NominalConcurrencyShares, s.Exempt.LendablePercent, path.Child("exempt"))...)
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			errs = append(errs, field.Forbidden(path.Child("exempt"), "must be nil if the type is Limited"))
		}
		if s.Limited == nil {
			errs = append(errs, field.Required(path.Child("limited"), "must not be empty when type is Limited"))
		} else {
			errs = append(errs, limited(s.Limited, path.Child("limited"))...)
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), s.Type, []flowcontrolv1.PriorityLevelEnablement{
			flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited,
		}))
	}
	for _, m := range MandatoryLevels() {
		want := m.Spec
		if m.Name == l.Name && s.Exempt != nil {
			// How much an exempt level lends is the user's to say.
			want.Exempt = s.Exempt
		}
		if m.Name == l.Name && changed(want, *s) {
			errs = append(errs, field.Invalid(path, s, fmt.Sprintf("spec of '%s' must equal the fixed value", l.Name)))
		}
	}
	return append(errs, levelConditions(l)...)
}

func shares(nominal, lendable *int32, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if nominal != nil && *nominal < 0 {
		errs = append(errs, field.Invalid(path.Child("nominalConcurrencyShares"), *nominal, "must be a non-negative integer"))
	}
	if lendable != nil && (*lendable < 0 || *lendable > 100) {
		errs = append(errs, field.Invalid(path.Child("lendablePercent"), *lendable, "must be between 0 and 100, inclusive"))
	}
	return errs
}

func limited(l *flowcontrolv1.LimitedPriorityLevelConfiguration, path *field.Path) field.ErrorList {
	errs := shares(l.NominalConcurrencyShares, l.LendablePercent, path)
	if b := l.BorrowingLimitPercent; b != nil && *b < 0 {
		errs = append(errs, field.Invalid(path.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer"))
	}
	response := path.Child("limitResponse")
	switch q := l.LimitResponse.Queuing; l.LimitResponse.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if q != nil {
			errs = append(errs, field.Forbidden(response.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited"))
		}
	case flowcontrolv1.LimitResponseTypeQueue:
		if q == nil {
			errs = append(errs, field.Required(response.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited"))
		} else {
			errs = append(errs, queuing(q, response.Child("queuing"))...)
		}
	default:
		errs = append(errs, field.NotSupported(response.Child("type"), l.LimitResponse.Type, []flowcontrolv1.LimitResponseType{
			flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject,
		}))
	}
	return errs
}

func queuing(q *flowcontrolv1.QueuingConfiguration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(path.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	switch p := path.Child("queues"); {
	case q.Queues <= 0:
		errs = append(errs, field.Invalid(p, q.Queues, "must be positive"))
	case q.Queues > maxQueues:
		errs = append(errs, field.Invalid(p, q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues)))
	}
	switch p := path.Child("handSize"); {
	case q.HandSize <= 0:
		errs = append(errs, field.Invalid(p, q.HandSize, "must be positive"))
	case q.HandSize > q.Queues:
		errs = append(errs, field.Invalid(p, q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	case entropy(q.Queues, q.HandSize) > maxEntropy:
		errs = append(errs, field.Invalid(p, q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, maxEntropy)))
	}
	return errs
}

func levelColumns() []api.Column {
	type level = *flowcontrolv1.PriorityLevelConfiguration
	nominal := flowcontrolv1.LimitedPriorityLevelConfiguration{}.SwaggerDoc()
	doc := flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()
	queue := func(name, key string, value func(*flowcontrolv1.QueuingConfiguration) int32) api.Column {
		return declare.Text(name, doc[key], func(l level) any {
			if l.Spec.Limited == nil || l.Spec.Limited.LimitResponse.Queuing == nil {
				return declare.None
			}
			return int64(value(l.Spec.Limited.LimitResponse.Queuing))
		})
	}
	return []api.Column{
		declare.Name(),
		declare.Text("Type", flowcontrolv1.PriorityLevelConfigurationSpec{}.SwaggerDoc()["type"], func(l level) any { return string(l.Spec.Type) }),
		declare.Text("NominalConcurrencyShares", nominal["nominalConcurrencyShares"], func(l level) any {
			switch {
			case l.Spec.Limited != nil && l.Spec.Limited.NominalConcurrencyShares != nil:
				return int64(*l.Spec.Limited.NominalConcurrencyShares)
			case l.Spec.Exempt != nil && l.Spec.Exempt.NominalConcurrencyShares != nil:
				return int64(*l.Spec.Exempt.NominalConcurrencyShares)
			}
			return declare.None
		}),
		queue("Queues", "queues", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.Queues }),
		queue("HandSize", "handSize", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.HandSize }),
		queue("QueueLengthLimit", "queueLengthLimit", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.QueueLengthLimit }),
		declare.Age(),
	}
}
