// Package policy carries out admission policies written in CEL: ValidatingAdmissionPolicy and MutatingAdmissionPolicy, with their
// bindings and parameters
// (https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/,
// https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/).
//
// It owns which policies concern a request, what they decide, and how their decisions are merged and worded. Policies, bindings and
// parameters are read from the snapshot of the request, so that a policy counts from the revision on that follows it.
// It never writes, calls nobody but the authorizer, and has no goroutine. Without bindings a request costs one look into
// the snapshot; compiled policies are kept until they change or go.
package policy

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/apiserver/admission"
	evaluate "coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// The names of the plug-ins, as upstream's.
const (
	Mutating   = "MutatingAdmissionPolicy"
	Validating = "ValidatingAdmissionPolicy"
)

// Config is what policies need. All of it is required but Types.
type Config struct {
	Registry *api.Registry
	// Authorizer answers the checks of expressions.
	Authorizer authz.Authorizer
	// Types gives what knows how objects of a kind merge, for apply configurations. What it returns is kept as long as the kind is the
	// same. Nil knows no kind.
	Types func(*api.Kind) managedfields.TypeConverter
}

// Policies are the two plug-ins. They are safe for concurrent use.
type Policies struct {
	cfg        Config
	validating source[*admissionregistrationv1.ValidatingAdmissionPolicy, *admissionregistrationv1.ValidatingAdmissionPolicyBinding, *validator]
	mutating   source[*admissionregistrationv1.MutatingAdmissionPolicy, *admissionregistrationv1.MutatingAdmissionPolicyBinding, *mutator]
	checks     counters

	mu    sync.Mutex // guards types
	types map[schema.GroupKind]kindTypes
}

// kindTypes is how objects of a kind merge.
type kindTypes struct {
	kind *api.Kind
	managedfields.TypeConverter
}

// New makes the plug-ins. Nothing is compiled before the first policy that concerns a request.
func New(cfg Config) *Policies {
	p := &Policies{cfg: cfg}
	p.validating.policies.Name = "validatingadmissionpolicies." + admissionregistrationv1.GroupName
	p.validating.bindings.Name = "validatingadmissionpolicybindings." + admissionregistrationv1.GroupName
	p.validating.policy = func(o *admissionregistrationv1.ValidatingAdmissionPolicy) policySpec {
		return policySpec{o.Spec.ParamKind, o.Spec.MatchConstraints, o.Spec.FailurePolicy}
	}
	p.validating.binding = func(o *admissionregistrationv1.ValidatingAdmissionPolicyBinding) bindingSpec {
		return bindingSpec{o.Spec.ParamRef, o.Spec.MatchResources}
	}
	p.validating.compile = compileValidator
	p.mutating.policies.Name = "mutatingadmissionpolicies." + admissionregistrationv1.GroupName
	p.mutating.bindings.Name = "mutatingadmissionpolicybindings." + admissionregistrationv1.GroupName
	p.mutating.policy = func(o *admissionregistrationv1.MutatingAdmissionPolicy) policySpec {
		return policySpec{o.Spec.ParamKind, o.Spec.MatchConstraints, o.Spec.FailurePolicy}
	}
	p.mutating.binding = func(o *admissionregistrationv1.MutatingAdmissionPolicyBinding) bindingSpec {
		return bindingSpec{o.Spec.ParamRef, o.Spec.MatchResources}
	}
	p.mutating.compile = compileMutator
	p.mutating.gone = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.types = nil
	}
	return p
}

// Plugins are the plug-ins in their order. They belong before the webhooks.
func (p *Policies) Plugins() []admission.Plugin {
	return []admission.Plugin{{Name: Mutating, Mutate: p.mutate}, {Name: Validating, Validate: p.validate}}
}

// exempt tells the requests that no policy is asked about: those for policies and bindings, so that a bad policy can always be taken away,
// and reviews of who a user is and what they may do.
func exempt(r *admission.Request) bool {
	if r.Kind.Group == admissionregistrationv1.GroupName {
		switch r.Kind.Resource {
		case "validatingadmissionpolicies", "validatingadmissionpolicybindings", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings":
			return true
		}
	}
	return match.Virtual(r)
}

// policySpec and bindingSpec are what policies and bindings of both sorts have.
type policySpec struct {
	params  *admissionregistrationv1.ParamKind
	match   *admissionregistrationv1.MatchResources
	failure *admissionregistrationv1.FailurePolicyType
}

type bindingSpec struct {
	params *admissionregistrationv1.ParamRef
	match  *admissionregistrationv1.MatchResources
}

// ignores tells whether errors of a policy are passed over.
func (s policySpec) ignores() bool {
	return s.failure != nil && *s.failure == admissionregistrationv1.Ignore
}

// source finds the policies of one sort (P, bound by B, compiled to C) that concern a request.
type source[P, B api.Object, C any] struct {
	policies client.Resource[P]
	bindings client.Resource[B]
	policy   func(P) policySpec
	binding  func(B) bindingSpec
	compile  func(P) C
	gone     func() // called when there are no bindings any more; may be nil

	filled atomic.Bool  // whether something may be kept
	mu     sync.RWMutex // guards kept
	kept   map[types.UID]*compiled[C]
}

// compiled is what is kept of one policy or binding. It is immutable but for value, which is made at the first use.
type compiled[C any] struct {
	generation int64
	matcher    *match.Matcher
	err        error // of the matcher
	once       sync.Once
	value      C
}

// concerned is a policy with a binding that concern a request, or why that could not be told.
type concerned[P, B api.Object, C any] struct {
	policy P
	// binding is the zero B in an error of the policy as a whole (bound is false).
	binding B
	bound   bool
	spec    policySpec
	code    C
	match   match.Match
	// params has one entry for each evaluation, nil where there is no parameter; it is empty if the policy is not evaluated because
	// none was found.
	params []runtime.Object
	err    error
}

// find gives what concerns a request, in the order of the policies' and the bindings' names.
func (s *source[P, B, C]) find(ctx context.Context, p *Policies, r *admission.Request) []concerned[P, B, C] {
	if r.Snapshot.Count(s.bindings.Name, "") == 0 {
		if s.filled.Load() {
			s.clear()
		}
		return nil
	}
	var found []concerned[P, B, C]
	for policy := range s.policies.List(r.Snapshot, "") {
		found = s.findOne(ctx, p, r, policy, found)
	}
	return found
}

func (s *source[P, B, C]) findOne(ctx context.Context, p *Policies, r *admission.Request, policy P, found []concerned[P, B, C]) []concerned[P, B, C] {
	spec := s.policy(policy)
	c := s.keep(r.Snapshot, policy, spec.match)
	m, ok, err := c.match(p.cfg.Registry, r)
	if err == nil && !ok {
		return found
	}
	var paramKind *params
	started := false
	for binding := range s.bindings.Index(r.Snapshot, "policy", policy.GetName()) {
		if !started {
			started = true
			if err == nil {
				paramKind, err = p.paramKind(spec.params)
			}
			if err != nil {
				return append(found, concerned[P, B, C]{policy: policy, spec: spec, err: err})
			}
		}
		one := concerned[P, B, C]{policy: policy, binding: binding, bound: true, spec: spec, match: m}
		b := s.binding(binding)
		if b.match != nil {
			_, ok, one.err = s.keep(r.Snapshot, binding, b.match).match(p.cfg.Registry, r)
			if one.err == nil && !ok {
				continue
			}
		}
		if one.err == nil {
			one.params, one.err = paramKind.collect(ctx, r, b.params)
		}
		if one.err == nil && len(one.params) == 0 {
			continue
		}
		if one.err == nil {
			c.once.Do(func() { c.value = s.compile(policy) })
			one.code = c.value
		}
		found = append(found, one)
	}
	return found
}

// keep gives what is kept of a policy or binding in its present generation.
func (s *source[P, B, C]) keep(snap store.Snapshot, obj api.Object, m *admissionregistrationv1.MatchResources) *compiled[C] {
	s.mu.RLock()
	c := s.kept[obj.GetUID()]
	s.mu.RUnlock()
	if c != nil && c.generation == obj.GetGeneration() {
		return c
	}
	c = &compiled[C]{generation: obj.GetGeneration()}
	c.matcher, c.err = compileMatch(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.kept[obj.GetUID()]; other != nil && other.generation >= c.generation {
		if other.generation == c.generation {
			return other
		}
		return c // of an older snapshot
	}
	if len(s.kept) >= snap.Count(s.policies.Name, "")+snap.Count(s.bindings.Name, "") {
		s.sweep(snap)
	}
	if s.kept == nil {
		s.kept = map[types.UID]*compiled[C]{}
	}
	s.kept[obj.GetUID()] = c
	s.filled.Store(true)
	return c
}

// sweep drops what is kept of objects that are gone. s.mu is held.
func (s *source[P, B, C]) sweep(snap store.Snapshot) {
	alive := map[types.UID]*compiled[C]{}
	for o := range s.policies.List(snap, "") {
		if c := s.kept[o.GetUID()]; c != nil {
			alive[o.GetUID()] = c
		}
	}
	for o := range s.bindings.List(snap, "") {
		if c := s.kept[o.GetUID()]; c != nil {
			alive[o.GetUID()] = c
		}
	}
	s.kept = alive
}

func (s *source[P, B, C]) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = nil
	s.filled.Store(false)
	if s.gone != nil {
		s.gone()
	}
}

func (c *compiled[C]) match(reg *api.Registry, r *admission.Request) (match.Match, bool, error) {
	if c.err != nil {
		return match.Match{}, false, c.err
	}
	return c.matcher.Match(reg, r)
}

func compileMatch(m *admissionregistrationv1.MatchResources) (*match.Matcher, error) {
	const nilSelector = "a nil %s selector was passed, please ensure selectors are initialized properly"
	switch {
	case m == nil:
		return nil, fmt.Errorf("policy contained no match constraints, a required field")
	case m.NamespaceSelector == nil:
		return nil, fmt.Errorf(nilSelector, "namespace")
	case m.ObjectSelector == nil:
		return nil, fmt.Errorf(nilSelector, "object")
	}
	c := match.Criteria{
		Rules: m.ResourceRules, Exclude: m.ExcludeResourceRules,
		NamespaceSelector: m.NamespaceSelector, ObjectSelector: m.ObjectSelector,
	}
	if m.MatchPolicy != nil {
		c.Policy = *m.MatchPolicy
	}
	return match.Compile(c)
}

// scopeOf compiles the variables of a policy; options are those of its expressions.
func scopeOf(c *expression.Compiler, list []admissionregistrationv1.Variable, o expression.Options) *evaluate.Scope {
	c.Compose()
	s := &evaluate.Scope{}
	for i := range list {
		s.Variables = append(s.Variables, evaluate.Variable{Name: list[i].Name, Expression: c.Variable(list[i].Name, list[i].Expression, o)})
	}
	return s
}

// inputs makes the Inputs of one request, one for each version in which it is shown, as long as its object stays the same.
type inputs struct {
	p      *Policies
	r      *admission.Request
	object api.Object
	made   map[match.Match]*evaluate.Input
}

func (s *inputs) of(ctx context.Context, m match.Match) (*evaluate.Input, error) {
	if s.object != s.r.Object {
		s.object, s.made = s.r.Object, nil
	}
	if in := s.made[m]; in != nil {
		return in, nil
	}
	in, err := evaluate.NewInput(ctx, s.r, &m, s.p.cfg.Authorizer)
	if err != nil {
		return nil, err
	}
	if s.made == nil {
		s.made = map[match.Match]*evaluate.Input{}
	}
	s.made[m] = in
	return in, nil
}
