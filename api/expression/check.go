package expression

import (
	"errors"

	"github.com/google/cel-go/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"
)

// Types are what a Checker knows of objects; a nil type is any.
type Types struct {
	// Object is the type of object and oldObject.
	Object *apicel.DeclType
	// Params is the type of params, which are declared if HasParams is set. Types have different names.
	Params    *apicel.DeclType
	HasParams bool
}

// Checker compiles expressions with the types of one kind of objects, to find what would fail when they are run. It is used by one
// goroutine.
type Checker struct {
	env  *cel.Env
	vars *apicel.DeclType
}

// NewChecker prepares the check of a policy's expressions.
func NewChecker(t Types) (*Checker, error) {
	c := &Checker{vars: apicel.NewObjectType("kubernetes.variables", map[string]*apicel.DeclField{})}
	request, namespace := requestType(), namespaceType()
	types := []*apicel.DeclType{namespace, request, c.vars}
	of := func(t *apicel.DeclType) *cel.Type {
		if t == nil {
			return cel.DynType
		}
		types = append(types, t)
		return t.CelType()
	}
	objects := of(t.Object)
	options := []cel.EnvOption{
		cel.Variable(NamespaceObject, namespace.CelType()),
		cel.Variable(Request, request.CelType()),
		cel.Variable(Object, objects),
		cel.Variable(OldObject, objects),
		cel.Variable(Authorizer, library.AuthorizerType),
		cel.Variable(Variables, c.vars.CelType()),
	}
	if t.HasParams {
		options = append(options, cel.Variable(Params, of(t.Params)))
	}
	env, err := extend(Base(true), types, options...)
	if err != nil {
		return nil, err
	}
	c.env = env
	return c, nil
}

// Variable makes a variable known to the expressions behind it, with any type if it does not compile.
func (c *Checker) Variable(name, text string) {
	var t *cel.Type
	if ast, issues := c.env.Compile(text); issues == nil {
		t = ast.OutputType()
	}
	c.vars.Fields[name] = apicel.NewDeclField(name, declared(t), true, nil, nil)
}

// Check gives what is wrong with an expression in the compiler's words, nil if nothing is.
func (c *Checker) Check(text string) error {
	if _, issues := c.env.Compile(text); issues != nil {
		return errors.New(issues.String())
	}
	return nil
}
