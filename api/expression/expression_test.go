package expression

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/cel-go/cel"
	apicel "k8s.io/apiserver/pkg/cel"
)

func TestEqualExpressionsAreOne(t *testing.T) {
	var a, b Compiler
	o := Options{Authorizer: true}
	x, y := a.Compile("object.a == 1", Bool, o), b.Compile("object.a == 1", Bool, o)
	if x != y {
		t.Error("compiled twice")
	}
	if z := b.Compile("object.a == 1", Bool, Options{}); z == x {
		t.Error("options make no difference")
	}
	a.Variable("v", "1", o)
	if a.Compile("object.a == 1", Bool, o) == x {
		t.Error("an expression that knows variables is that which knows none")
	}
}

// TestUnusedExpressionsGo: nothing is kept of expressions that nobody uses.
func TestUnusedExpressionsGo(t *testing.T) {
	func() {
		var c Compiler
		for i := range 20 {
			if e := c.Compile("object.spec.unused == "+strings.Repeat("1", i+1), Bool, Options{Params: true}); e.Err != nil && i < 18 {
				t.Fatal(e.Err)
			}
		}
	}()
	for end := time.Now().Add(10 * time.Second); Interned() > 0; runtime.Gosched() {
		runtime.GC()
		if time.Now().After(end) {
			t.Fatalf("%d expressions are kept", Interned())
		}
	}
}

func TestChecker(t *testing.T) {
	object := apicel.NewObjectType("Boat", map[string]*apicel.DeclField{"size": apicel.NewDeclField("size", apicel.IntType, true, nil, nil)})
	c, err := NewChecker(Types{Object: object, HasParams: true})
	if err != nil {
		t.Fatal(err)
	}
	c.Variable("size", "object.size + 1")
	c.Variable("bad", "object.length")
	for text, ok := range map[string]bool{
		"object.size == 1": true, "object.length == 1": false, "oldObject.size == 'a'": false, "params.anything == 1": true,
		"request.operation == 'CREATE'": true, "namespaceObject.metadata.labels.a == 'b'": true, "authorizer.path('/').check('get').allowed()": true,
		"variables.size == 1": true, "variables.size == 'a'": false, "variables.bad == 'a'": true, "variables.none": false,
	} {
		if err := c.Check(text); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestDeclared(t *testing.T) {
	for _, typ := range []*cel.Type{cel.IntType, cel.StringType, cel.ListType(cel.IntType), cel.MapType(cel.StringType, cel.BoolType)} {
		if got := declared(typ).CelType(); !got.IsExactType(typ) {
			t.Errorf("%v became %v", typ, got)
		}
	}
	if declared(nil) != apicel.DynType {
		t.Error("an unknown type is not any type")
	}
}

func BenchmarkCompile(b *testing.B) {
	env, err := environmentOf(Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		compile(env, "object.spec.replicas <= 5", Bool)
	}
}

func BenchmarkVariables(b *testing.B) {
	var k Compiler
	e := k.Compile("true", Bool, Options{})
	b.ReportAllocs()
	for b.Loop() {
		var c Compiler
		c.Variable("x", "1", Options{})
	}
	runtime.KeepAlive(e)
}
