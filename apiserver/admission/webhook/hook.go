package webhook

import (
	"strconv"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// hook is one webhook of one configuration, compiled. It is immutable.
type hook struct {
	configuration string
	name          string
	owner         corev1.ObjectReference // the configuration, for events
	// id tells webhooks apart that bear the same name.
	id string

	match *match.Matcher
	// broken says why match could not be compiled.
	broken     error
	conditions *expression.Conditions

	target backend.Target
	// noTarget: neither a URL nor a service is configured.
	noTarget bool
	// version of AdmissionReview that is spoken, "" if none of those that the webhook takes is known.
	version  string
	timeout  time.Duration
	failOpen bool
	// sideEffects is nil where the configuration does not say.
	sideEffects *admissionv1.SideEffectClass
	// again: the webhook is called a second time if the object changes after it.
	again bool
}

// settings are the fields that webhooks of both kinds have.
type settings struct {
	name        string
	client      *admissionv1.WebhookClientConfig
	rules       []admissionv1.RuleWithOperations
	failure     *admissionv1.FailurePolicyType
	match       *admissionv1.MatchPolicyType
	namespaces  *metav1.LabelSelector
	objects     *metav1.LabelSelector
	sideEffects *admissionv1.SideEffectClass
	timeout     *int32
	versions    []string
	conditions  []admissionv1.MatchCondition
	reinvoke    *admissionv1.ReinvocationPolicyType
}

// defaultTimeout is that of a webhook which does not say.
const defaultTimeout = 10 * time.Second

func compile(configuration, id string, s settings) *hook {
	h := &hook{
		configuration: configuration, name: s.name, id: id, timeout: defaultTimeout, sideEffects: s.sideEffects,
		failOpen: s.failure != nil && *s.failure == admissionv1.Ignore,
		again:    s.reinvoke != nil && *s.reinvoke == admissionv1.IfNeededReinvocationPolicy,
	}
	if s.timeout != nil {
		h.timeout = time.Duration(*s.timeout) * time.Second
	}
	for _, v := range s.versions {
		if v == "v1" || v == "v1beta1" {
			h.version = v
			break
		}
	}
	if len(s.rules) == 0 {
		// A webhook without rules is asked about nothing, unlike a policy.
		s.rules = make([]admissionv1.RuleWithOperations, 1)
	}
	c := match.Criteria{Rules: match.Rules(s.rules), NamespaceSelector: s.namespaces, ObjectSelector: s.objects}
	if s.match != nil {
		c.Policy = *s.match
	}
	h.match, h.broken = match.Compile(c)
	h.conditions = expression.CompileConditions(s.conditions, expression.WebhookOptions)
	h.aim(s.client)
	return h
}

// aim reads where the webhook is. Connections keep to HTTP/1.1, as upstream's do, so that calls at the same time spread over
// the pods of a service.
func (h *hook) aim(c *admissionv1.WebhookClientConfig) {
	h.target = backend.Target{CABundle: c.CABundle, HTTP1: true}
	switch {
	case c.Service != nil:
		h.target.Service = &backend.Service{Namespace: c.Service.Namespace, Name: c.Service.Name}
		if c.Service.Port != nil {
			h.target.Service.Port = *c.Service.Port
		}
		if c.Service.Path != nil {
			h.target.Service.Path = *c.Service.Path
		}
	case c.URL != nil:
		h.target.URL = *c.URL
	default:
		h.noTarget = true
	}
}

func compileMutating(e *store.Entry) []*hook {
	c := e.Object.(*admissionv1.MutatingWebhookConfiguration)
	hooks := make([]*hook, 0, len(c.Webhooks))
	ids := map[string]int{}
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		hooks = append(hooks, compile(c.Name, unique("mutating/"+c.Name, w.Name, ids), settings{
			w.Name, &w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
			w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions, w.ReinvocationPolicy,
		}))
	}
	own(hooks, "MutatingWebhookConfiguration", c)
	return hooks
}

func compileValidating(e *store.Entry) []*hook {
	c := e.Object.(*admissionv1.ValidatingWebhookConfiguration)
	hooks := make([]*hook, 0, len(c.Webhooks))
	ids := map[string]int{}
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		hooks = append(hooks, compile(c.Name, unique("validating/"+c.Name, w.Name, ids), settings{
			w.Name, &w.ClientConfig, w.Rules, w.FailurePolicy, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector,
			w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions, w.MatchConditions, nil,
		}))
	}
	own(hooks, "ValidatingWebhookConfiguration", c)
	return hooks
}

// own notes the configuration of webhooks.
func own(hooks []*hook, kind string, c metav1.Object) {
	for _, h := range hooks {
		h.owner = corev1.ObjectReference{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: kind, Name: c.GetName(), UID: c.GetUID(), ResourceVersion: c.GetResourceVersion()}
	}
}

// unique numbers webhooks of the same name.
func unique(configuration, name string, seen map[string]int) string {
	n := seen[name]
	seen[name]++
	return configuration + "/" + name + "/" + strconv.Itoa(n)
}

// source keeps the webhooks of one kind of configuration compiled. It is safe for concurrent use.
type source struct {
	resource string
	compile  func(*store.Entry) []*hook
	current  atomic.Pointer[compiled]
}

// compiled are the webhooks of the configurations as they stood at some revision.
type compiled struct {
	entries []*store.Entry
	each    [][]*hook // by entry
	hooks   []*hook   // all, in order of configuration and of their place in it
}

func newSource[T api.Object](r client.Resource[T], compile func(*store.Entry) []*hook) source {
	return source{resource: r.Name, compile: compile}
}

// load gives the webhooks of a snapshot. Without configurations it is one look-up.
func (s *source) load(snap store.Snapshot) []*hook {
	n := snap.Count(s.resource, "")
	if n == 0 {
		return nil
	}
	have := s.current.Load()
	if have != nil && len(have.entries) == n && have.fits(snap, s.resource) {
		return have.hooks
	}
	next := &compiled{}
	for e := range snap.List(s.resource, "", nil) {
		hooks, ok := have.of(e)
		if !ok {
			hooks = s.compile(e)
		}
		next.entries = append(next.entries, e)
		next.each = append(next.each, hooks)
		next.hooks = append(next.hooks, hooks...)
	}
	s.current.Store(next)
	return next.hooks
}

// fits tells that the configurations of a snapshot are those that were compiled.
func (c *compiled) fits(snap store.Snapshot, resource string) bool {
	i := 0
	for e := range snap.List(resource, "", nil) {
		if i == len(c.entries) || !same(c.entries[i], e) {
			return false
		}
		i++
	}
	return i == len(c.entries)
}

// of finds what a version of a configuration was compiled to.
func (c *compiled) of(e *store.Entry) ([]*hook, bool) {
	if c == nil {
		return nil, false
	}
	for i := range c.entries {
		if same(c.entries[i], e) {
			return c.each[i], true
		}
	}
	return nil, false
}

func same(a, b *store.Entry) bool { return a == b || a.Revision == b.Revision && a.Name == b.Name }
