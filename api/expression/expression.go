// Package expression compiles the CEL expressions that API objects hold for admission: match conditions, and the
// validations, mutations, variables and audit annotations of admission policies.
//
// It owns which names, types and functions such an expression has, and what is said about one that does not compile. It
// evaluates nothing: package apiserver/admission/expression does. Nothing is built before the first expression is
// compiled, and what was built goes with the last expression that uses it, but for the base environment, which is shared
// with the rules of custom resources.
package expression

import (
	"fmt"

	"github.com/google/cel-go/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
)

// The names of the variables that expressions may have.
const (
	Object          = "object"
	OldObject       = "oldObject"
	Params          = "params"
	Request         = "request"
	NamespaceObject = "namespaceObject"
	Authorizer      = "authorizer"
	RequestResource = "authorizer.requestResource"
	Variables       = "variables"
)

// Options say what an expression may speak of beside object, oldObject, request and namespaceObject.
type Options struct {
	// Params declares params.
	Params bool
	// Authorizer declares authorizer and authorizer.requestResource.
	Authorizer bool
	// Patch declares the types Object... and JSONPatch, and jsonpatch.escapeKey.
	Patch bool
	// Stored takes what any version of Kubernetes may have written; without it only what the version before this one
	// understands too, as upstream asks of new expressions, so that a server can be rolled back.
	Stored bool
}

// Result is what an expression must evaluate to.
type Result int

// The results.
const (
	Bool          Result = iota
	String               // of a messageExpression
	StringOrNull         // of an audit annotation
	Any                  // of a variable
	Configuration        // Object, of an apply configuration
	Patch                // a list of JSONPatch
)

var resultTypes = [...][]*cel.Type{
	Bool:          {cel.BoolType},
	String:        {cel.StringType},
	StringOrNull:  {cel.StringType, cel.NullType},
	Any:           {cel.AnyType, cel.DynType},
	Configuration: {cel.ObjectType("Object")},
	Patch:         {cel.ListType(cel.ObjectType("JSONPatch"))},
}

// Expression is one expression, compiled. It is immutable and safe for concurrent use.
type Expression struct {
	Text string
	// Program runs it. Nil if Err is set.
	Program cel.Program
	// Type is what it evaluates to, as far as that is known without objects. Nil if Err is set.
	Type *cel.Type
	// Err says why it cannot be run, in upstream's words.
	Err *apicel.Error
}

// Compiler compiles the expressions of one policy or webhook: they share its variables. The zero value has none, and
// does not know the name variables. A Compiler is used by one goroutine.
type Compiler struct {
	// vars is the type of variables, nil as long as there is none.
	vars *apicel.DeclType
	// envs are those in which variables is declared.
	envs map[Options]*cel.Env
}

// Compose declares variables even if none follows, as a MutatingAdmissionPolicy has it.
func (c *Compiler) Compose() {
	if c.vars == nil {
		c.vars = apicel.NewObjectType("kubernetes.variables", map[string]*apicel.DeclField{})
	}
}

// Variable compiles a variable and makes it known to the expressions behind it, with any type if it does not compile.
func (c *Compiler) Variable(name, text string, o Options) *Expression {
	c.Compose()
	e := c.Compile(text, Any, o)
	c.vars.Fields[name] = apicel.NewDeclField(name, declared(e.Type), true, nil, nil)
	return e
}

// Compile compiles an expression; the error is in the Expression. Equal expressions that have no variables are the same
// Expression.
func (c *Compiler) Compile(text string, want Result, o Options) *Expression {
	if c.vars == nil {
		return intern(text, want, o)
	}
	env := c.envs[o]
	if env == nil {
		base, err := environmentOf(o)
		if err == nil {
			env, err = extend(base, []*apicel.DeclType{c.vars}, cel.Variable(Variables, c.vars.CelType()))
		}
		if err != nil {
			return internal(text, "unexpected error loading CEL environment: %v", err)
		}
		if c.envs == nil {
			c.envs = map[Options]*cel.Env{}
		}
		c.envs[o] = env
	}
	return compile(env, text, want)
}

func internal(text, format string, args ...any) *Expression {
	return &Expression{Text: text, Err: &apicel.Error{Type: apicel.ErrorTypeInternal, Detail: fmt.Sprintf(format, args...)}}
}

func compile(env *cel.Env, text string, want Result) *Expression {
	ast, issues := env.Compile(text)
	if issues != nil {
		return &Expression{Text: text, Err: &apicel.Error{
			Type: apicel.ErrorTypeInvalid, Detail: "compilation failed: " + issues.String(), Cause: apicel.NewCompilationError(issues),
		}}
	}
	if reason := mismatch(ast.OutputType(), want); reason != "" {
		return &Expression{Text: text, Err: &apicel.Error{Type: apicel.ErrorTypeInvalid, Detail: reason}}
	}
	program, err := env.Program(ast, cel.InterruptCheckFrequency(celconfig.CheckFrequency))
	if err != nil {
		return internal(text, "program instantiation failed: %v", err)
	}
	return &Expression{Text: text, Program: program, Type: ast.OutputType()}
}

// mismatch says why an expression of a type does not give what is wanted, "" if it does.
func mismatch(got *cel.Type, want Result) string {
	types := resultTypes[want]
	for _, t := range types {
		if got.IsExactType(t) || cel.AnyType.IsExactType(t) {
			return ""
		}
	}
	if len(types) == 1 {
		return fmt.Sprintf("must evaluate to %v but got %v", types[0], got)
	}
	return fmt.Sprintf("must evaluate to one of %v but got %v", types, got)
}
