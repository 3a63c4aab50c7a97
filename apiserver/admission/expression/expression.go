// Package expression evaluates the CEL expressions of admission: match conditions of webhooks and policies, and what
// policies validate, change, say and record.
//
// It owns what an expression sees of a request, and the cost that a request may spend. Package api/expression compiles. Objects
// are read in place, through reflection and only where an expression looks: nothing is converted, copied or changed. It
// reads no store; what it needs is given to it as an Input.
package expression

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/lazy"

	"coracle.dev/coracle/api/expression"
)

// The budgets in units of CEL's cost, as upstream has them: of the match conditions of one webhook or policy, and of
// the rest of one policy with one parameter.
const (
	ConditionsBudget int64 = celconfig.RuntimeCELCostBudgetMatchConditions
	Budget           int64 = celconfig.RuntimeCELCostBudget
)

const outOfBudget = "validation failed due to running out of cost budget, no further validation rules will be run"

// Variable is a named expression that others refer to as variables.NAME.
type Variable struct {
	Name string
	*expression.Expression
}

// Scope is what the expressions of one policy share. Its zero value has no variables. It is immutable and safe for
// concurrent use.
type Scope struct {
	Variables []Variable
}

// Result is what one expression gave: a value or an error, or neither for an expression that is not there.
type Result struct {
	Value ref.Val
	// Err is an *apicel.Error in upstream's words.
	Err error
	// Elapsed is how long it took.
	Elapsed time.Duration
}

// Evaluate runs expressions in order on one request; nil entries are passed over. Variables are evaluated when first asked
// for, and once. authorizer says whether they see the authorizer. What is left of the budget is returned; an error ends
// everything, and is about the budget or the server and not about an expression.
func (s *Scope) Evaluate(ctx context.Context, in *Input, list []*expression.Expression, authorizer bool, budget int64) ([]Result, int64, error) {
	if len(list) == 0 {
		return nil, budget, nil
	}
	a := activation{Input: in, ctx: ctx, scope: s, authorizer: authorizer}
	results := make([]Result, len(list))
	for i, e := range list {
		if e == nil {
			continue
		}
		began := time.Now()
		var err error
		if results[i], budget, err = a.evaluate(e, budget); err != nil {
			return nil, -1, err
		}
		results[i].Elapsed = time.Since(began)
	}
	return results, budget, nil
}

func (a *activation) evaluate(e *expression.Expression, budget int64) (Result, int64, error) {
	if e.Err != nil {
		return Result{Err: &apicel.Error{Type: apicel.ErrorTypeInvalid, Detail: fmt.Sprintf("compilation error: %v", e.Err), Cause: e.Err}}, budget, nil
	}
	value, details, err := e.Program.ContextEval(a.ctx, a)
	spent := a.spent
	a.spent = 0
	if spent > budget {
		return Result{}, -1, exhausted()
	}
	budget -= spent
	cost, ok := costOf(details)
	switch {
	case details == nil:
		return Result{}, -1, &apicel.Error{Type: apicel.ErrorTypeInternal, Detail: uncounted(e.Text)}
	case !ok:
		return Result{}, -1, &apicel.Error{Type: apicel.ErrorTypeInvalid, Detail: uncounted(e.Text), Cause: apicel.ErrOutOfBudget}
	case cost > budget:
		return Result{}, -1, exhausted()
	}
	budget -= cost
	if err != nil {
		return Result{Err: &apicel.Error{Type: apicel.ErrorTypeInvalid, Detail: fmt.Sprintf("expression '%v' resulted in error: %v", e.Text, err)}}, budget, nil
	}
	return Result{Value: value}, budget, nil
}

func exhausted() error {
	return &apicel.Error{Type: apicel.ErrorTypeInvalid, Detail: outOfBudget, Cause: apicel.ErrOutOfBudget}
}

func uncounted(text string) string {
	return fmt.Sprintf("runtime cost could not be calculated for expression: %v, no further expression will be run", text)
}

// costOf is what an evaluation cost, and whether that is known.
func costOf(d *cel.EvalDetails) (int64, bool) {
	if d == nil {
		return 0, false
	}
	cost := d.ActualCost()
	if cost == nil {
		return 0, false
	}
	return int64(min(*cost, math.MaxInt64)), true
}

// activation is one evaluation of a scope's expressions on a request: CEL asks it for names.
type activation struct {
	*Input
	ctx        context.Context
	scope      *Scope
	authorizer bool
	variables  ref.Val
	spent      int64 // by variables, since the last expression ended
}

// ResolveName gives the value of a name that CEL looks for.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case expression.Object:
		return a.object(), true
	case expression.OldObject:
		return a.oldObject(), true
	case expression.Params:
		return a.params(), true
	case expression.Request:
		return a.request(), true
	case expression.NamespaceObject:
		return a.namespace(), true
	case expression.Authorizer:
		if a.authorizer && a.Authorizer != nil {
			return a.authorizerValue(), true
		}
	case expression.RequestResource:
		if a.authorizer && a.Authorizer != nil {
			return a.requestResource(), true
		}
	case expression.Variables:
		if a.variables == nil {
			a.variables = a.compose()
		}
		return a.variables, true
	}
	return nil, false
}

// Parent is nil: there are no other names.
func (a *activation) Parent() cel.Activation { return nil }

// compose makes the value of variables, whose fields are evaluated when they are asked for.
func (a *activation) compose() ref.Val {
	m := lazy.NewMapValue(celtypes.NewObjectType("kubernetes.variables"))
	for i := range a.scope.Variables {
		v := &a.scope.Variables[i]
		m.Append(v.Name, func(*lazy.MapValue) ref.Val { return a.variable(v) })
	}
	return m
}

func (a *activation) variable(v *Variable) ref.Val {
	if v.Err != nil {
		return celtypes.NewErr("composited variable %q fails to compile: %v", v.Name, v.Err)
	}
	value, details, err := v.Program.ContextEval(a.ctx, a)
	if details == nil {
		return celtypes.NewErr("unable to get evaluation details of variable %q", v.Name)
	}
	cost, ok := costOf(details)
	if !ok {
		return celtypes.NewErr("unable to calculate cost of variable %q", v.Name)
	}
	a.spent += cost
	if err != nil {
		return celtypes.NewErr("composited variable %q fails to evaluate: %v", v.Name, err)
	}
	return value
}

// Conditions are compiled match conditions. They are immutable and safe for concurrent use.
type Conditions struct {
	scope *Scope
	names []string
	list  []*expression.Expression
}

// WebhookOptions are those of the match conditions of webhooks.
var WebhookOptions = expression.Options{Authorizer: true, Stored: true}

// CompileConditions compiles the match conditions of a webhook (with WebhookOptions). One that does not compile is an error of each
// evaluation; Err tells before. No conditions give nil, which matches everything.
func CompileConditions(list []admissionregistrationv1.MatchCondition, o expression.Options) *Conditions {
	return ConditionsOf(&expression.Compiler{}, &Scope{}, list, o)
}

// ConditionsOf compiles the match conditions of a policy, whose variables they may use.
func ConditionsOf(c *expression.Compiler, s *Scope, list []admissionregistrationv1.MatchCondition, o expression.Options) *Conditions {
	if len(list) == 0 {
		return nil
	}
	out := &Conditions{scope: s}
	for i := range list {
		out.names = append(out.names, list[i].Name)
		out.list = append(out.list, c.Compile(list[i].Expression, expression.Bool, o))
	}
	return out
}

// Err says which conditions do not compile, nil if all do.
func (c *Conditions) Err() error {
	if c == nil {
		return nil
	}
	var errs []error
	for _, e := range c.list {
		if e.Err != nil {
			errs = append(errs, e.Err)
		}
	}
	return errors.Join(errs...)
}

// Match tells whether all conditions are true for a request. If one is false the request does not match, whatever the others are, and
// failed is its name. Otherwise an error is one of evaluation, or that the budget is spent: the failure policy of the webhook or
// policy says what becomes of the request.
func (c *Conditions) Match(ctx context.Context, in *Input) (matched bool, failed string, err error) {
	if c == nil {
		return true, "", nil
	}
	without := *in
	without.Namespace = nil // upstream does not show it to match conditions
	results, _, err := c.scope.Evaluate(ctx, &without, c.list, true, ConditionsBudget)
	if err != nil {
		return false, "", err
	}
	in.share(&without)
	var errs []error
	for i := range results {
		if results[i].Err != nil {
			errs = append(errs, results[i].Err)
		}
		if results[i].Value == celtypes.False {
			return false, c.names[i], nil
		}
	}
	if len(errs) > 0 {
		return false, "", utilerrors.NewAggregate(errs)
	}
	return true, "", nil
}
