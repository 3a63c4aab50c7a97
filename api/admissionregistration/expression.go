package admissionregistration

import (
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apicel "k8s.io/apiserver/pkg/cel"

	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/api/validate"
)

// expressions checks the expressions of one object. Its zero value is for a new object without parameters.
type expressions struct {
	params bool
	// stored are the expressions that the object has had: they may use what only later versions understand.
	stored   map[string]bool
	compiler expression.Compiler
}

func (x *expressions) options(text string) expression.Options {
	return expression.Options{Params: x.params, Authorizer: true, Stored: x.stored[text]}
}

// check compiles an expression and gives what is wrong with it.
func (x *expressions) check(text string, want expression.Result, path *field.Path) field.ErrorList {
	return problem(x.compiler.Compile(text, want, x.options(text)), text, path)
}

// problem turns the error of an expression into that of a field.
func problem(e *expression.Expression, text string, path *field.Path) field.ErrorList {
	switch {
	case e.Err == nil:
		return nil
	case e.Err.Type == apicel.ErrorTypeRequired:
		return field.ErrorList{field.Required(path, e.Err.Detail)}
	case e.Err.Type == apicel.ErrorTypeInvalid:
		return field.ErrorList{field.Invalid(path, text, e.Err.Detail)}
	}
	return field.ErrorList{field.InternalError(path, e.Err)}
}

// maxConditions is how many match conditions there may be.
const maxConditions = 64

// conditions checks match conditions, which know no variables.
func (x *expressions) conditions(list []admissionv1.MatchCondition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := len(list); n > maxConditions {
		errs = append(errs, field.TooMany(path, n, maxConditions))
	}
	var plain expression.Compiler
	seen := map[string]bool{}
	for i, c := range list {
		p := path.Index(i)
		if text := strings.TrimSpace(c.Expression); text == "" {
			errs = append(errs, field.Required(p.Child("expression"), ""))
		} else {
			errs = append(errs, problem(plain.Compile(text, expression.Bool, x.options(text)), text, p.Child("expression"))...)
		}
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
			continue
		}
		errs = append(errs, validate.QualifiedNameField(c.Name, p.Child("name"))...)
		if seen[c.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		seen[c.Name] = true
	}
	return errs
}

// texts gathers expressions, as they are written and without the space around them.
type texts map[string]bool

func (t texts) add(s string) {
	t[s] = true
	t[strings.TrimSpace(s)] = true
}

func (t texts) conditions(list []admissionv1.MatchCondition) {
	for i := range list {
		t.add(list[i].Expression)
	}
}

func (t texts) variables(list []admissionv1.Variable) {
	for i := range list {
		t.add(list[i].Expression)
	}
}

func validatingTexts(s *admissionv1.ValidatingAdmissionPolicySpec) texts {
	t := texts{}
	t.conditions(s.MatchConditions)
	t.variables(s.Variables)
	for i := range s.Validations {
		t.add(s.Validations[i].Expression)
		t.add(s.Validations[i].MessageExpression)
	}
	for i := range s.AuditAnnotations {
		t.add(s.AuditAnnotations[i].ValueExpression)
	}
	return t
}

func mutatingTexts(s *admissionv1.MutatingAdmissionPolicySpec) texts {
	t := texts{}
	t.conditions(s.MatchConditions)
	t.variables(s.Variables)
	for i := range s.Mutations {
		if a := s.Mutations[i].ApplyConfiguration; a != nil {
			t.add(a.Expression)
		}
		if p := s.Mutations[i].JSONPatch; p != nil {
			t.add(p.Expression)
		}
	}
	return t
}

func hookTexts(hooks []hook) texts {
	t := texts{}
	for _, h := range hooks {
		t.conditions(h.conditions)
	}
	return t
}

// keepsConditions tells whether webhooks have the match conditions that they had, in the same order.
func keepsConditions(hooks, old []hook) bool {
	if len(hooks) != len(old) {
		return false
	}
	for i := range hooks {
		if changed(hooks[i].conditions, old[i].conditions) {
			return false
		}
	}
	return true
}
