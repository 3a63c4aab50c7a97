package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/apiserver/admission"
	evaluate "coracle.dev/coracle/apiserver/admission/expression"
)

// mutator is a compiled MutatingAdmissionPolicy. It is immutable.
type mutator struct {
	scope      *evaluate.Scope
	conditions *evaluate.Conditions
	mutations  []mutation
}

// mutation is one patch, as an expression.
type mutation struct {
	kind admissionregistrationv1.PatchType
	*expression.Expression
}

func compileMutator(p *admissionregistrationv1.MutatingAdmissionPolicy) *mutator {
	o := expression.Options{Params: p.Spec.ParamKind != nil, Authorizer: true, Stored: true}
	c := &expression.Compiler{}
	m := &mutator{scope: scopeOf(c, p.Spec.Variables, o)}
	m.conditions = evaluate.ConditionsOf(c, m.scope, p.Spec.MatchConditions, o)
	o.Patch = true
	for i := range p.Spec.Mutations {
		switch one := &p.Spec.Mutations[i]; {
		case one.PatchType == admissionregistrationv1.PatchTypeJSONPatch && one.JSONPatch != nil:
			m.mutations = append(m.mutations, mutation{one.PatchType, c.Compile(one.JSONPatch.Expression, expression.Patch, o)})
		case one.PatchType == admissionregistrationv1.PatchTypeApplyConfiguration && one.ApplyConfiguration != nil:
			m.mutations = append(m.mutations, mutation{one.PatchType, c.Compile(one.ApplyConfiguration.Expression, expression.Configuration, o)})
		}
	}
	return m
}

// reinvocation is what is kept from the first round of mutation to the second.
type reinvocation struct {
	// last is the object as this plug-in left it, nil if no policy asks to be invoked again.
	last api.Object
	// invoked are the policies of this round that want to be invoked again after a change, and again those that will be.
	invoked, again map[invocation]bool
}

// invocation is one policy with one binding and one parameter.
type invocation struct {
	policy, binding string
	param           types.NamespacedName
}

// changed has all that were invoked so far run again.
func (s *reinvocation) changed() {
	for i := range s.invoked {
		if s.again == nil {
			s.again = map[invocation]bool{}
		}
		s.again[i] = true
	}
	s.invoked = nil
}

type mutatingCase = concerned[*admissionregistrationv1.MutatingAdmissionPolicy, *admissionregistrationv1.MutatingAdmissionPolicyBinding, *mutator]

// mutation of one request by all policies.
type mutations struct {
	p      *Policies
	r      *admission.Request
	in     inputs
	state  *reinvocation
	errors []policyError
}

// policyError is why a policy could not do its work.
type policyError struct {
	policy, binding string
	err             error
	reason          metav1.StatusReason
}

func (e policyError) message() string {
	if e.binding != "" {
		return fmt.Sprintf("policy '%s' with binding '%s' denied request: %v", e.policy, e.binding, e.err)
	}
	return fmt.Sprintf("policy %q denied request: %v", e.policy, e.err)
}

// mutate is the plug-in MutatingAdmissionPolicy. There is nothing to change in a deletion or a connection.
func (p *Policies) mutate(ctx context.Context, r *admission.Request) error {
	if r.Object == nil || r.Operation == admission.Delete || r.Operation == admission.Connect || exempt(r) {
		return nil
	}
	found := p.mutating.find(ctx, p, r)
	if len(found) == 0 {
		return nil
	}
	m := mutations{p: p, r: r, in: inputs{p: p, r: r}}
	m.state, _ = r.State(Mutating).(*reinvocation)
	if m.state == nil {
		m.state = &reinvocation{}
		r.SetState(Mutating, m.state)
	}
	if r.Round() > 0 && m.state.last != nil && !equality.Semantic.DeepEqual(m.state.last, r.Object) {
		m.state.changed()
	}
	for i := range found {
		if found[i].err != nil {
			m.configError(&found[i])
		}
	}
	for i := range found {
		if found[i].err != nil {
			continue
		}
		if err := m.invoke(ctx, &found[i]); err != nil {
			return err
		}
	}
	if len(m.state.invoked)+len(m.state.again) > 0 {
		m.state.last = r.Object.DeepCopyObject().(api.Object)
	}
	return m.refusal()
}

func (m *mutations) configError(c *mutatingCase) {
	if c.spec.ignores() {
		return
	}
	e := policyError{policy: c.policy.Name, err: fmt.Errorf("failed to configure policy: %w", c.err)}
	if c.bound {
		e.binding, e.err = c.binding.Name, fmt.Errorf("failed to configure binding: %w", c.err)
	}
	m.errors = append(m.errors, e)
}

// fail notes an error of evaluation, unless the policy has errors ignored.
func (m *mutations) fail(c *mutatingCase, err error) {
	if !c.spec.ignores() {
		m.errors = append(m.errors, policyError{c.policy.Name, c.binding.Name, err, metav1.StatusReasonInvalid})
	}
}

// invoke runs one policy on the request, once for each parameter. An error is a status for the client.
func (m *mutations) invoke(ctx context.Context, c *mutatingCase) error {
	for _, param := range c.params {
		in, err := m.in.of(ctx, c.match)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if err := missingNamespace(m.r, in); err != nil {
			return err
		}
		matched, _, err := c.code.conditions.Match(ctx, in.WithParams(param))
		if err != nil {
			m.fail(c, err)
			continue
		}
		key := keyOf(c, param)
		if !matched || m.r.Round() > 0 && !m.state.again[key] {
			continue
		}
		before := m.r.Object
		for i := range c.code.mutations {
			if err := m.apply(ctx, c, &c.code.mutations[i], param); err != nil {
				return err
			}
		}
		if before != m.r.Object && !equality.Semantic.DeepEqual(before, m.r.Object) {
			m.state.changed()
			m.r.Again()
		}
		if c.policy.Spec.ReinvocationPolicy == admissionregistrationv1.IfNeededReinvocationPolicy {
			if m.state.invoked == nil {
				m.state.invoked = map[invocation]bool{}
			}
			m.state.invoked[key] = true
		}
	}
	return nil
}

// apply carries out one mutation of a policy.
func (m *mutations) apply(ctx context.Context, c *mutatingCase, one *mutation, param runtime.Object) error {
	began := time.Now()
	err := m.patch(ctx, c, one, param)
	outcome := "no_error"
	if err != nil {
		outcome = errorType(err.Error())
	}
	m.p.checks.observe(checkKey{mutating: true, policy: c.policy.Name, binding: c.binding.Name, errorType: outcome}, time.Since(began))
	if err == nil {
		return nil
	}
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		return status
	}
	m.fail(c, err)
	return nil
}

func keyOf(c *mutatingCase, param runtime.Object) invocation {
	key := invocation{policy: c.policy.Name, binding: c.binding.Name}
	if o, ok := param.(metav1.Object); ok {
		key.param = types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	}
	return key
}

// refusal is the error for all errors of policies, in the words of the first, nil if there is none.
func (m *mutations) refusal() error {
	if len(m.errors) == 0 {
		return nil
	}
	err := admission.Forbidden(m.r, errors.New("admission request denied by policy"))
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		return err
	}
	status.ErrStatus.Message = m.errors[0].message()
	if reason := m.errors[0].reason; reason != "" {
		status.ErrStatus.Reason = reason
	}
	for _, e := range m.errors {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Message: e.message()})
	}
	return status
}
