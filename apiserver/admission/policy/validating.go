package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	celtypes "github.com/google/cel-go/common/types"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/apiserver/admission"
	evaluate "coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/client"
)

const (
	// failureKey is the audit annotation that lists validation failures; maxFailures are written there.
	failureKey  = "validation.policy.admission.k8s.io/validation_failure"
	maxFailures = 50
	// maxAnnotation is the length in bytes to which the value of an audit annotation is cut.
	maxAnnotation = 10 * 1024
)

// validator is a compiled ValidatingAdmissionPolicy. It is immutable.
type validator struct {
	spec        *admissionregistrationv1.ValidatingAdmissionPolicySpec
	scope       *evaluate.Scope
	conditions  *evaluate.Conditions
	validations []*expression.Expression
	messages    []*expression.Expression // nil entries for validations without messageExpression
	annotations []*expression.Expression
}

func compileValidator(p *admissionregistrationv1.ValidatingAdmissionPolicy) *validator {
	o := expression.Options{Params: p.Spec.ParamKind != nil, Authorizer: true, Stored: true}
	message := expression.Options{Params: o.Params, Stored: true}
	c := &expression.Compiler{}
	v := &validator{spec: &p.Spec, scope: &evaluate.Scope{}}
	if len(p.Spec.Variables) > 0 {
		v.scope = scopeOf(c, p.Spec.Variables, o)
	}
	v.conditions = evaluate.ConditionsOf(c, v.scope, p.Spec.MatchConditions, o)
	for i := range p.Spec.Validations {
		one := &p.Spec.Validations[i]
		v.validations = append(v.validations, c.Compile(one.Expression, expression.Bool, o))
		var text *expression.Expression
		if one.MessageExpression != "" {
			text = c.Compile(one.MessageExpression, expression.String, message)
		}
		v.messages = append(v.messages, text)
	}
	for i := range p.Spec.AuditAnnotations {
		v.annotations = append(v.annotations, c.Compile(p.Spec.AuditAnnotations[i].ValueExpression, expression.StringOrNull, o))
	}
	return v
}

// decision is what one validation said: denied or not, or failed.
type decision struct {
	deny    bool
	failed  bool // an error and no verdict
	message string
	reason  metav1.StatusReason
	elapsed time.Duration
}

// errorType is the decision as the metrics sort it.
func (d *decision) errorType() string {
	if !d.deny && !d.failed {
		return "no_error"
	}
	return errorType(d.message)
}

// annotation is what one audit annotation said.
type annotation struct {
	key, value string
	err        string // denies the request
	elapsed    time.Duration
}

// verdict is what a policy says of a request with one parameter.
type verdict struct {
	decisions   []decision
	annotations []annotation
}

func (v *validator) ignores() bool { return policySpec{failure: v.spec.FailurePolicy}.ignores() }

// failure is an error of the policy as a whole.
func (v *validator) failure(err error) verdict {
	return verdict{decisions: []decision{{deny: !v.ignores(), failed: true, message: err.Error()}}}
}

// judge evaluates the policy on a request.
func (v *validator) judge(ctx context.Context, in *evaluate.Input) verdict {
	matched, _, err := v.conditions.Match(ctx, in)
	switch {
	case err != nil && v.ignores():
		return verdict{}
	case err != nil:
		return v.failure(err)
	case !matched:
		return verdict{}
	}
	results, left, err := v.scope.Evaluate(ctx, in, v.validations, true, evaluate.Budget)
	if err != nil {
		return v.failure(err)
	}
	var out verdict
	if out.decisions, err = v.decide(ctx, in, results, left); err != nil {
		return v.failure(err)
	}
	results, _, err = v.scope.Evaluate(ctx, in, v.annotations, false, evaluate.Budget)
	if err != nil {
		return v.failure(err)
	}
	for i := range results {
		if a, ok := v.annotate(&v.spec.AuditAnnotations[i], &results[i]); ok {
			out.annotations = append(out.annotations, a)
		}
	}
	return out
}

// decide turns the results of the validations into decisions. Messages are evaluated only if something was denied; their cost is of
// the same budget.
func (v *validator) decide(ctx context.Context, in *evaluate.Input, results []evaluate.Result, left int64) ([]decision, error) {
	if !slices.ContainsFunc(results, func(r evaluate.Result) bool { return r.Err != nil || r.Value != celtypes.True }) {
		return make([]decision, len(results)), nil
	}
	messages, _, messageErr := v.scope.Evaluate(ctx, in, v.messages, false, left)
	decisions := make([]decision, len(results))
	for i := range results {
		d, r := &decisions[i], &results[i]
		d.elapsed = r.Elapsed
		switch {
		case r.Err != nil:
			d.deny, d.failed, d.message = !v.ignores(), true, r.Err.Error()
		case spent(messageErr):
			d.deny, d.failed, d.message = !v.ignores(), true, fmt.Sprintf("failed messageExpression: %s", messageErr)
		case r.Value != celtypes.True:
			d.deny, d.reason = true, metav1.StatusReasonInvalid
			if reason := v.spec.Validations[i].Reason; reason != nil {
				d.reason = *reason
			}
			d.message = messageOf(&v.spec.Validations[i], messages, i)
		}
	}
	return decisions, nil
}

// messageOf is why a validation refuses: what its messageExpression gives if that is fit to print, else its message, else the expression.
func messageOf(v *admissionregistrationv1.Validation, messages []evaluate.Result, i int) string {
	if i < len(messages) && messages[i].Err == nil && messages[i].Value != nil {
		text, _ := messages[i].Value.Value().(string)
		text = strings.TrimSpace(text)
		if text != "" && len(text) <= celconfig.MaxEvaluatedMessageExpressionSizeBytes && !strings.Contains(text, "\n") {
			return text
		}
	}
	if text := strings.TrimSpace(v.Message); text != "" {
		return text
	}
	return "failed expression: " + strings.TrimSpace(v.Expression)
}

// annotate gives an audit annotation, if there is one to write or its error counts.
func (v *validator) annotate(spec *admissionregistrationv1.AuditAnnotation, r *evaluate.Result) (annotation, bool) {
	a := annotation{key: spec.Key, elapsed: r.Elapsed}
	switch {
	case r.Err != nil:
		a.err = r.Err.Error()
		return a, !v.ignores()
	case r.Value.Type() == celtypes.StringType:
		a.value = strings.TrimSpace(r.Value.Value().(string))
		return a, a.value != ""
	case r.Value.Type() == celtypes.NullType:
		return a, false
	}
	a.err = fmt.Sprintf("valueExpression '%v' resulted in unsupported return type: %v. Return type must be either string or null.", spec.ValueExpression, r.Value.Type())
	return a, true
}

// failure is one entry of the audit annotation that lists validation failures.
type failure struct {
	Message           string                                     `json:"message"`
	Policy            string                                     `json:"policy"`
	Binding           string                                     `json:"binding"`
	ExpressionIndex   int                                        `json:"expressionIndex"`
	ValidationActions []admissionregistrationv1.ValidationAction `json:"validationActions"`
}

// outcome gathers the verdicts on one request.
type outcome struct {
	p        *Policies
	r        *admission.Request
	denied   *denial // the first
	failures []failure
	notes    map[string][]string // audit annotations of the policy at hand
}

// denial is a decision with who made it; binding is "" for the policy as a whole.
type denial struct {
	policy, binding, message string
	reason                   metav1.StatusReason
}

type validatingCase = concerned[*admissionregistrationv1.ValidatingAdmissionPolicy, *admissionregistrationv1.ValidatingAdmissionPolicyBinding, *validator]

// validate is the plug-in ValidatingAdmissionPolicy. Of policies and bindings themselves it asks who may write them.
func (p *Policies) validate(ctx context.Context, r *admission.Request) error {
	if exempt(r) {
		return p.access(ctx, r)
	}
	found := p.validating.find(ctx, p, r)
	if len(found) == 0 {
		return nil
	}
	o := outcome{p: p, r: r}
	in := inputs{p: p, r: r}
	for i := range found {
		c := &found[i]
		if i > 0 && found[i-1].policy != c.policy {
			o.publish(found[i-1].policy.Name)
		}
		if c.err != nil {
			o.configError(c)
			continue
		}
		shown, err := in.of(ctx, c.match)
		if err != nil {
			c.err = fmt.Errorf("failed to convert object version: %w", err)
			o.configError(c)
			continue
		}
		if err := missingNamespace(r, shown); err != nil {
			return err
		}
		for _, param := range c.params {
			o.take(c, c.code.judge(ctx, shown.WithParams(param)))
		}
	}
	o.publish(found[len(found)-1].policy.Name)
	o.publishFailures()
	return o.refusal()
}

// missingNamespace is the error for a request in a namespace that is not there.
func missingNamespace(r *admission.Request, in *evaluate.Input) error {
	if r.Namespace == "" || in.Namespace != nil || r.Kind.Name() == client.Namespaces.Name {
		return nil
	}
	return apierrors.NewNotFound(schema.GroupResource{Resource: client.Namespaces.Name}, r.Namespace)
}

func (o *outcome) configError(c *validatingCase) {
	if c.spec.ignores() {
		return
	}
	d := denial{policy: c.policy.Name, message: fmt.Sprintf("failed to configure policy: %v", c.err)}
	if c.bound {
		d.binding, d.message = c.binding.Name, fmt.Sprintf("failed to configure binding: %v", c.err)
	}
	o.deny(d)
}

func (o *outcome) deny(d denial) {
	if o.denied == nil {
		o.denied = &d
	}
}

// take does with a verdict what the binding asks for.
func (o *outcome) take(c *validatingCase, v verdict) {
	policy, binding := c.policy.Name, c.binding.Name
	count := func(action string, d *decision) {
		o.p.checks.observe(checkKey{policy: policy, binding: binding, errorType: d.errorType(), action: action}, d.elapsed)
	}
	for i := range v.decisions {
		d := &v.decisions[i]
		if !d.deny {
			if d.failed {
				count("allow", d)
			}
			continue
		}
		for _, action := range c.binding.Spec.ValidationActions {
			switch action {
			case admissionregistrationv1.Deny:
				o.deny(denial{policy, binding, d.message, d.reason})
				count("deny", d)
			case admissionregistrationv1.Audit:
				o.failures = append(o.failures, failure{d.message, c.binding.Spec.PolicyName, binding, i, c.binding.Spec.ValidationActions})
				count("audit", d)
			case admissionregistrationv1.Warn:
				o.r.Warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", policy, binding, d.message))
				count("warn", d)
			}
		}
	}
	for _, a := range v.annotations {
		if a.err != "" {
			o.deny(denial{policy: policy, binding: binding, message: a.err})
			count("deny", &decision{deny: true, failed: true, message: a.err, elapsed: a.elapsed})
			continue
		}
		o.note(a.key, a.value[:min(len(a.value), maxAnnotation)])
	}
}

// note adds to the audit annotations of the policy at hand; equal values of several bindings count once.
func (o *outcome) note(key, value string) {
	if slices.Contains(o.notes[key], value) {
		return
	}
	if o.notes == nil {
		o.notes = map[string][]string{}
	}
	o.notes[key] = append(o.notes[key], value)
}

// publish writes the audit annotations of a policy.
func (o *outcome) publish(policy string) {
	for key, values := range o.notes {
		o.r.AddAnnotation(policy+"/"+key, strings.Join(values, ", "))
	}
	o.notes = nil
}

func (o *outcome) publishFailures() {
	if len(o.failures) == 0 {
		return
	}
	text, err := json.Marshal(o.failures[:min(len(o.failures), maxFailures)])
	if err == nil {
		o.r.AddAnnotation(failureKey, string(text))
	}
}

// refusal is the error of the first denial, nil if nothing was denied.
func (o *outcome) refusal() error {
	d := o.denied
	if d == nil {
		return nil
	}
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s' denied request: %s", d.policy, d.message)
	if d.binding != "" {
		message = fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", d.policy, d.binding, d.message)
	}
	err := admission.Forbidden(o.r, errors.New(message))
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		return err
	}
	status.ErrStatus.Reason = d.reason
	if d.reason == "" {
		status.ErrStatus.Reason = metav1.StatusReasonInvalid
	}
	status.ErrStatus.Code = codeOf(status.ErrStatus.Reason)
	status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return status
}

// codeOf is the HTTP status that goes with a reason that a validation may have.
func codeOf(r metav1.StatusReason) int32 {
	switch r {
	case metav1.StatusReasonForbidden:
		return http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		return http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusUnprocessableEntity
}
