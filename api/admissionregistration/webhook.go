package admissionregistration

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/api/webhook"
)

// reviewVersions are the versions of AdmissionReview that the server speaks, or spoke.
var reviewVersions = []string{"v1", "v1beta1"}

func mutatingWebhookKind() *api.Kind {
	type config = *admissionv1.MutatingWebhookConfiguration
	return &api.Kind{
		Group: group, Kind: "MutatingWebhookConfiguration", Resource: "mutatingwebhookconfigurations", Singular: "mutatingwebhookconfiguration",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList](),
		Default: api.On(func(c config) {
			for i := range c.Webhooks {
				defaultHook(mutatingHook(&c.Webhooks[i]))
				or(&c.Webhooks[i].ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
			}
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(c config) field.ErrorList { return checkHooks(mutatingHooks(c), nil) }),
			ValidateUpdate: api.ChecksUpdate(func(c, old config) field.ErrorList { return checkHooks(mutatingHooks(c), mutatingHooks(old)) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(config).Webhooks, p.(config).Webhooks) },
		Columns: hookColumns(func(c config) int { return len(c.Webhooks) }),
	}
}

func validatingWebhookKind() *api.Kind {
	type config = *admissionv1.ValidatingWebhookConfiguration
	return &api.Kind{
		Group: group, Kind: "ValidatingWebhookConfiguration", Resource: "validatingwebhookconfigurations", Singular: "validatingwebhookconfiguration",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList](),
		Default: api.On(func(c config) {
			for i := range c.Webhooks {
				defaultHook(validatingHook(&c.Webhooks[i]))
			}
		}),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(c config) field.ErrorList { return checkHooks(validatingHooks(c), nil) }),
			ValidateUpdate: api.ChecksUpdate(func(c, old config) field.ErrorList { return checkHooks(validatingHooks(c), validatingHooks(old)) }),
			Warnings:       nameWarnings,
		},
		Desired: func(o, p api.Object) bool { return changed(o.(config).Webhooks, p.(config).Webhooks) },
		Columns: hookColumns(func(c config) int { return len(c.Webhooks) }),
	}
}

func hookColumns[T api.Object](count func(T) int) []api.Column {
	return []api.Column{
		declare.Name(),
		declare.Integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration", func(c T) int64 { return int64(count(c)) }),
		declare.Age(),
	}
}

// hook points to the fields that webhooks of both kinds have.
type hook struct {
	name           string
	client         *admissionv1.WebhookClientConfig
	rules          []admissionv1.RuleWithOperations
	failure        **admissionv1.FailurePolicyType
	match          **admissionv1.MatchPolicyType
	namespaces     **metav1.LabelSelector
	objects        **metav1.LabelSelector
	sideEffects    *admissionv1.SideEffectClass
	timeout        **int32
	reviewVersions []string
	conditions     []admissionv1.MatchCondition
	reinvocation   *admissionv1.ReinvocationPolicyType // nil in a validating webhook
}

func mutatingHook(w *admissionv1.MutatingWebhook) hook {
	return hook{
		w.Name, &w.ClientConfig, w.Rules, &w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector,
		w.SideEffects, &w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions, w.ReinvocationPolicy,
	}
}

func validatingHook(w *admissionv1.ValidatingWebhook) hook {
	return hook{
		w.Name, &w.ClientConfig, w.Rules, &w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector,
		w.SideEffects, &w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions, nil,
	}
}

func mutatingHooks(c *admissionv1.MutatingWebhookConfiguration) []hook {
	hooks := make([]hook, len(c.Webhooks))
	for i := range c.Webhooks {
		hooks[i] = mutatingHook(&c.Webhooks[i])
	}
	return hooks
}

func validatingHooks(c *admissionv1.ValidatingWebhookConfiguration) []hook {
	hooks := make([]hook, len(c.Webhooks))
	for i := range c.Webhooks {
		hooks[i] = validatingHook(&c.Webhooks[i])
	}
	return hooks
}

func defaultHook(h hook) {
	or(h.failure, admissionv1.Fail)
	or(h.match, admissionv1.Equivalent)
	or(h.namespaces, metav1.LabelSelector{})
	or(h.objects, metav1.LabelSelector{})
	or(h.timeout, 10)
	if s := h.client.Service; s != nil {
		or(&s.Port, webhook.DefaultPort)
	}
	defaultRules(h.rules)
}

// lenience is what an update may keep because every old webhook, or one of them, had it.
type lenience struct {
	effects, versions, names bool
	expressions              texts
}

func lenienceOf(old []hook) lenience {
	l := lenience{expressions: hookTexts(old)}
	names := map[string]bool{}
	for _, h := range old {
		l.effects = l.effects || h.sideEffects == nil || !slices.Contains(noEffects, *h.sideEffects)
		l.versions = l.versions || len(h.reviewVersions) > 0 && !speaks(h.reviewVersions)
		l.names = l.names || names[h.name]
		names[h.name] = true
	}
	return l
}

var (
	noEffects  = []admissionv1.SideEffectClass{admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun}
	allEffects = []admissionv1.SideEffectClass{
		admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun,
		admissionv1.SideEffectClassSome, admissionv1.SideEffectClassUnknown,
	}
)

func speaks(versions []string) bool {
	return slices.ContainsFunc(versions, func(v string) bool { return slices.Contains(reviewVersions, v) })
}

func checkHooks(hooks, old []hook) field.ErrorList {
	l := lenienceOf(old)
	var errs field.ErrorList
	names := map[string]bool{}
	keep := keepsConditions(hooks, old)
	for i, h := range hooks {
		path := field.NewPath("webhooks").Index(i)
		errs = append(errs, h.check(l, path)...)
		if !keep {
			x := expressions{stored: l.expressions}
			errs = append(errs, x.conditions(h.conditions, path.Child("matchConditions"))...)
		}
		errs = append(errs, checkReviewVersions(h.reviewVersions, l.versions, path.Child("admissionReviewVersions"))...)
		if names[h.name] && h.name != "" && !l.names {
			errs = append(errs, field.Duplicate(path.Child("name"), h.name))
		}
		names[h.name] = true
	}
	return errs
}

func (h hook) check(l lenience, path *field.Path) field.ErrorList {
	errs := content.IsFullyQualifiedName(path.Child("name"), h.name)
	for i := range h.rules {
		errs = append(errs, ruleWithOperations(&h.rules[i], path.Child("rules").Index(i))...)
	}
	if p := *h.failure; p != nil {
		errs = append(errs, validate.OneOf(*p, path.Child("failurePolicy"), admissionv1.Fail, admissionv1.Ignore)...)
	}
	if p := *h.match; p != nil {
		errs = append(errs, validate.OneOf(*p, path.Child("matchPolicy"), admissionv1.Equivalent, admissionv1.Exact)...)
	}
	effects := noEffects
	if l.effects {
		effects = allEffects
	}
	if h.sideEffects == nil {
		words := make([]string, len(effects))
		for i := range effects {
			words[i] = string(effects[i])
		}
		errs = append(errs, field.Required(path.Child("sideEffects"), "must specify one of "+strings.Join(words, ", ")))
	} else {
		errs = append(errs, validate.OneOf(*h.sideEffects, path.Child("sideEffects"), effects...)...)
	}
	if t := *h.timeout; t != nil && (*t < 1 || *t > 30) {
		errs = append(errs, field.Invalid(path.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, validate.LabelSelector(*h.namespaces, path.Child("namespaceSelector"))...)
	errs = append(errs, validate.LabelSelector(*h.objects, path.Child("objectSelector"))...)
	if p := h.reinvocation; p != nil {
		errs = append(errs, validate.OneOf(*p, path.Child("reinvocationPolicy"), admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
	}
	client := webhook.Client{URL: h.client.URL}
	if s := h.client.Service; s != nil {
		client.Service = &webhook.Service{Namespace: s.Namespace, Name: s.Name, Path: s.Path, Port: s.Port}
	}
	return append(errs, client.Check(path.Child("clientConfig"))...)
}

func checkReviewVersions(versions []string, lenient bool, path *field.Path) field.ErrorList {
	if len(versions) == 0 {
		return field.ErrorList{field.Required(path, fmt.Sprintf("must specify one of %s", strings.Join(reviewVersions, ", ")))}
	}
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, v := range versions {
		if seen[v] {
			errs = append(errs, field.Invalid(path.Index(i), v, "duplicate version"))
			continue
		}
		seen[v] = true
		errs = append(errs, validate.Invalids(path.Index(i), v, content.IsDNS1035Label(v))...)
	}
	if !lenient && !speaks(versions) {
		errs = append(errs, field.Invalid(path, versions, "must include at least one of "+strings.Join(reviewVersions, ", ")))
	}
	return errs
}
