package apiextensions

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

const (
	// maxRuleCost is what one expression may cost by estimate, maxTotalCost what all of a schema may.
	maxRuleCost  = 10_000_000
	maxTotalCost = 100_000_000
)

// storedExpressions are those that a definition had before: they are compiled with all that any version of the
// server knew.
type storedExpressions struct{ rules, messages map[string]bool }

func expressionsOf(s *spec) storedExpressions {
	out := storedExpressions{map[string]bool{}, map[string]bool{}}
	anySchema(s, func(p *props) bool {
		for i := range p.XValidations {
			out.rules[p.XValidations[i].Rule] = true
			if m := p.XValidations[i].MessageExpression; m != "" {
				out.messages[m] = true
			}
		}
		return false
	})
	return out
}

// RuleEnv implements cel.EnvLoader.
func (e storedExpressions) RuleEnv(set *environment.EnvSet, expression string) *celgo.Env {
	return env(set, e.rules[expression])
}

// MessageExpressionEnv implements cel.EnvLoader.
func (e storedExpressions) MessageExpressionEnv(set *environment.EnvSet, expression string) *celgo.Env {
	return env(set, e.messages[expression])
}

func env(set *environment.EnvSet, stored bool) *celgo.Env {
	if stored {
		return set.StoredExpressionsEnv()
	}
	return set.NewExpressionsEnv()
}

// scope is what expressions at a part of a schema know: its type, and how often the part can occur. It is made of
// the part above, and its type only when an expression asks.
type scope struct {
	above *scope
	props *props
	// descend finds the part's type in that of the part above, nil at the root.
	descend func(*typeInfo) *typeInfo
	// inside tells that there is a rule at this part or above, whose type holds this one's.
	inside bool
	// most is how often the part can occur, nil for without bound.
	most *uint64

	known bool
	info  *typeInfo
	err   error
}

// typeInfo is the type of a part of a schema.
type typeInfo struct {
	schema *structural.Structural
	decl   *apiservercel.DeclType
}

func rootScope(p *props) *scope {
	one := uint64(1)
	return &scope{props: p, inside: len(p.XValidations) > 0, most: &one}
}

func (s *scope) child(p *props, descend func(*typeInfo) *typeInfo) *scope {
	if s == nil || p == nil {
		return nil
	}
	c := &scope{above: s, props: p, descend: descend, inside: s.inside || len(p.XValidations) > 0}
	if n := elements(s.props); s.most != nil && n != nil {
		product := multiply(*s.most, *n)
		c.most = &product
	}
	return c
}

func (s *scope) property(p *props, name string) *scope {
	return s.child(p, func(t *typeInfo) *typeInfo {
		below, ok := t.schema.Properties[name]
		escaped, fits := apiservercel.Escape(name)
		if !ok || !fits {
			return nil
		}
		if f, ok := t.decl.Fields[escaped]; ok {
			return &typeInfo{&below, f.Type}
		}
		return nil
	})
}

func (s *scope) items(p *props) *scope {
	return s.child(p, func(t *typeInfo) *typeInfo {
		if t.schema.Items == nil {
			return nil
		}
		return &typeInfo{t.schema.Items, t.decl.ElemType}
	})
}

func (s *scope) values(p *props) *scope {
	return s.child(p, func(t *typeInfo) *typeInfo {
		if t.schema.AdditionalProperties == nil {
			return nil
		}
		return &typeInfo{t.schema.AdditionalProperties.Structural, t.decl.ElemType}
	})
}

// types gives the part's type: out of that of the part above, where a rule there needs it, else made from the schema.
func (s *scope) types() (*typeInfo, error) {
	if s == nil || !s.inside || s.known {
		if s == nil || !s.inside {
			return nil, nil
		}
		return s.info, s.err
	}
	s.known = true
	if s.above != nil {
		above, err := s.above.types()
		if err != nil {
			s.err = err
			return nil, err
		}
		if above != nil {
			if s.info = s.descend(above); s.info != nil {
				return s.info, nil
			}
		}
	}
	shape, err := structural.NewStructural(s.props)
	if err != nil {
		s.err = err
		return nil, err
	}
	decl := model.SchemaDeclType(shape, s.above == nil || s.props.XEmbeddedResource)
	if decl == nil {
		s.err = errors.New("unable to convert structural schema to CEL declarations")
		return nil, s.err
	}
	s.info = &typeInfo{shape, decl}
	return s.info, nil
}

// elements is by what factor a part multiplies the parts below, nil for without bound.
func elements(p *props) *uint64 {
	n := uint64(1)
	var limit *int64
	switch {
	case p.Type == "object" && p.AdditionalProperties != nil:
		limit = p.MaxProperties
	case p.Type == "array":
		limit = p.MaxItems
	default:
		return &n
	}
	if limit == nil {
		return nil
	}
	n = uint64(max(*limit, 0))
	return &n
}

func multiply(a, b uint64) uint64 {
	if a != 0 && math.MaxUint64/a < b {
		return math.MaxUint64
	}
	return a * b
}

// totalCost adds up what the expressions of a schema cost.
type totalCost struct {
	sum  uint64
	most []ruleCost // the most expensive four, of those that count
}

type ruleCost struct {
	path *field.Path
	cost uint64
}

func (t *totalCost) add(path *field.Path, cost uint64) {
	if t.sum += cost; t.sum < cost {
		t.sum = math.MaxUint64
	}
	if cost < maxTotalCost/100 {
		return
	}
	t.most = append(t.most, ruleCost{path, cost})
	slices.SortStableFunc(t.most, func(a, b ruleCost) int {
		switch {
		case a.cost > b.cost:
			return -1
		case a.cost < b.cost:
			return 1
		}
		return 0
	})
	t.most = t.most[:min(len(t.most), 4)]
}

func (t *totalCost) errors(path *field.Path) field.ErrorList {
	if t.sum <= maxTotalCost {
		return nil
	}
	var errs field.ErrorList
	for _, r := range t.most {
		errs = append(errs, field.Forbidden(r.path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"))
	}
	return append(errs, field.Forbidden(path, tooExpensive("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", t.sum, maxTotalCost)))
}

func tooExpensive(what string, cost, limit uint64) string {
	times := float64(cost) / float64(limit)
	factor := fmt.Sprintf("%.1fx", times)
	switch {
	case times > 100:
		factor = "more than 100x"
	case times < 1.5:
		factor = fmt.Sprintf("%fx", times)
	}
	return fmt.Sprintf("%s exceeds budget by factor of %s (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)", what, factor)
}

// ruleReasons are what a rule may give as its reason.
var ruleReasons = []string{string(apiextensions.FieldValueDuplicate), string(apiextensions.FieldValueForbidden), string(apiextensions.FieldValueInvalid), string(apiextensions.FieldValueRequired)}

func hasNewlines(s string) bool { return strings.ContainsAny(s, "\n\r") }

// ruleTexts checks rules as far as that needs no compiler.
func ruleTexts(p *props, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range p.XValidations {
		errs = append(errs, ruleText(p, &p.XValidations[i], path.Child("x-kubernetes-validations").Index(i))...)
	}
	return errs
}

func ruleText(p *props, r *apiextensions.ValidationRule, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	text, message := strings.TrimSpace(r.Rule), strings.TrimSpace(r.Message)
	switch {
	case text == "":
		errs = append(errs, field.Required(at.Child("rule"), "rule is not specified"))
	case r.Message != "" && message == "":
		errs = append(errs, field.Invalid(at.Child("message"), r.Message, "must be non-empty if specified"))
	case hasNewlines(message):
		errs = append(errs, field.Invalid(at.Child("message"), r.Message, "must not contain line breaks"))
	case hasNewlines(text) && message == "":
		errs = append(errs, field.Required(at.Child("message"), "message must be specified if rule contains line breaks"))
	}
	if r.MessageExpression != "" && strings.TrimSpace(r.MessageExpression) == "" {
		errs = append(errs, field.Required(at.Child("messageExpression"), "messageExpression must be non-empty if specified"))
	}
	if r.Reason != nil && !slices.Contains(ruleReasons, string(*r.Reason)) {
		errs = append(errs, field.NotSupported(at.Child("reason"), *r.Reason, ruleReasons))
	}
	if r.FieldPath == "" {
		return errs
	}
	if strings.TrimSpace(r.FieldPath) == "" {
		errs = append(errs, field.Invalid(at.Child("fieldPath"), r.FieldPath, "must be non-empty if specified"))
	}
	if hasNewlines(r.FieldPath) {
		errs = append(errs, field.Invalid(at.Child("fieldPath"), r.FieldPath, "must not contain line breaks"))
	}
	if s, err := structural.NewStructural(p); err == nil {
		if _, _, err := cel.ValidFieldPath(r.FieldPath, s); err != nil {
			errs = append(errs, field.Invalid(at.Child("fieldPath"), r.FieldPath, "must be a valid path"))
		}
	}
	return errs
}

// compile compiles the rules at a part of a schema and adds up what they cost.
func (w *walker) compile(p *props, path *field.Path, at place, sc *scope) field.ErrorList {
	info, err := sc.types()
	if err != nil {
		return field.ErrorList{field.InternalError(path, fmt.Errorf("internal error: failed to construct type information for x-kubernetes-validations rules: %s", err))}
	}
	if info == nil {
		return field.ErrorList{field.InternalError(path, errors.New("internal error: failed to retrieve type information for x-kubernetes-validations"))}
	}
	set := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	results, err := cel.Compile(info.schema, info.decl, celconfig.PerCallLimit, set, w.stored)
	if err != nil {
		return field.ErrorList{field.InternalError(path, err)}
	}
	var errs field.ErrorList
	for i := range results {
		errs = append(errs, w.result(&results[i], &p.XValidations[i], path.Index(i), at, sc)...)
	}
	return errs
}

// result judges one compiled rule.
func (w *walker) result(r *cel.CompilationResult, rule *apiextensions.ValidationRule, path *field.Path, at place, sc *scope) field.ErrorList {
	var errs field.ErrorList
	times := r.MaxCardinality
	if sc.most != nil {
		times = *sc.most
	}
	cost := multiply(r.MaxCost, times)
	if !w.cheap && cost > maxRuleCost {
		errs = append(errs, field.Forbidden(path.Child("rule"), tooExpensive("estimated rule cost", cost, maxRuleCost)))
	}
	w.total.add(path.Child("rule"), cost)
	switch {
	case r.Error == nil:
	case r.Error.Type == apiservercel.ErrorTypeRequired:
		errs = append(errs, field.Required(path.Child("rule"), r.Error.Detail))
	default:
		errs = append(errs, field.Invalid(path.Child("rule"), *rule, r.Error.Detail))
	}
	switch {
	case r.MessageExpressionError != nil:
		errs = append(errs, field.Invalid(path.Child("messageExpression"), *rule, r.MessageExpressionError.Detail))
	case r.MessageExpression != nil:
		if !w.cheap && r.MessageExpressionMaxCost > maxRuleCost {
			errs = append(errs, field.Forbidden(path.Child("messageExpression"), tooExpensive("estimated messageExpression cost", r.MessageExpressionMaxCost, maxRuleCost)))
		}
		w.total.add(path.Child("messageExpression"), r.MessageExpressionMaxCost)
	}
	switch {
	case r.UsesOldSelf && at.uncorrelated != nil:
		errs = append(errs, field.Invalid(path.Child("rule"), rule.Rule, fmt.Sprintf("oldSelf cannot be used on the uncorrelatable portion of the schema within %v", at.uncorrelated)))
	case !r.UsesOldSelf && rule.OptionalOldSelf != nil:
		errs = append(errs, field.Invalid(path.Child("optionalOldSelf"), *rule.OptionalOldSelf, "may not be set if oldSelf is not used in rule"))
	}
	return errs
}
