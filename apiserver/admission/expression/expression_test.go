package expression

import (
	"context"
	"strings"
	"testing"

	celtypes "github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api/expression"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

var deployments = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}

func deployment() *appsv1.Deployment {
	replicas := int32(7)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Labels: map[string]string{"env": "prod"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "c", Image: "nginx",
				Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("64Mi")}},
			}}}},
		},
	}
}

func input() *Input {
	yes := true
	return &Input{
		Object: Typed(deployment(), deployments),
		Request: &admissionv1.AdmissionRequest{
			Operation: "CREATE", Name: "web", Namespace: "shop", DryRun: &yes,
			Kind:            metav1.GroupVersionKind(deployments),
			RequestResource: &metav1.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"},
			Options:         runtime.RawExtension{Object: &metav1.CreateOptions{FieldManager: "me"}},
		},
		Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"tier": "gold"}}},
		User:      client.User{Name: "alice", Groups: []string{"devs"}},
		Authorizer: authz.Func(func(_ context.Context, a *authz.Attributes) (authz.Decision, string, error) {
			return authz.If(a.Verb == "breakglass" && a.Resource == "deployments" && a.User.Name == "alice" ||
				a.Verb == "get" && a.User.Name == "system:serviceaccount:a:b"), "because", nil
		}),
	}
}

// all compiles with everything there is.
var all = expression.Options{Params: true, Authorizer: true, Stored: true}

func evaluate(t *testing.T, in *Input, text string) Result {
	t.Helper()
	var c expression.Compiler
	results, _, err := (&Scope{}).Evaluate(context.Background(), in, []*expression.Expression{c.Compile(text, expression.Any, all)}, true, Budget)
	if err != nil {
		t.Fatal(err)
	}
	return results[0]
}

func TestEvaluate(t *testing.T) {
	for _, text := range []string{
		"object.kind == 'Deployment' && object.apiVersion == 'apps/v1'",
		"object.spec.replicas == 7",
		"has(object.metadata.labels) && object.metadata.labels.env == 'prod'",
		"!has(object.metadata.annotations)",
		"oldObject == null",
		"params == null",
		"object.spec.template.spec.containers.all(c, quantity(c.resources.limits.memory).isLessThan(quantity('1Gi')))",
		"request.operation == 'CREATE' && request.dryRun && request.options.fieldManager == 'me'",
		"namespaceObject.metadata.labels['tier'] == 'gold'",
		"authorizer.requestResource.check('breakglass').allowed()",
		"!authorizer.requestResource.check('delete').allowed()",
		"authorizer.serviceAccount('a', 'b').group('').resource('pods').namespace('x').check('get').allowed()",
		"authorizer.group('').resource('pods').check('list').reason() == 'because'",
	} {
		if r := evaluate(t, input(), text); r.Err != nil || r.Value != celtypes.True {
			t.Errorf("%s: %v %v", text, r.Value, r.Err)
		}
	}
}

func TestUnstructured(t *testing.T) {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"size": int64(3)}}}
	in := input()
	in.Object = Typed(u, schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Boat"})
	if r := evaluate(t, in, "object.spec.size == 3 && object.kind == 'Boat'"); r.Value != celtypes.True {
		t.Errorf("%v %v", r.Value, r.Err)
	}
	if _, ok := u.Object["kind"]; ok {
		t.Error("the object was changed")
	}
}

func TestTypedSharesAndLeavesAlone(t *testing.T) {
	d := deployment()
	typed := Typed(d, deployments).(*appsv1.Deployment)
	if d.Kind != "" || typed.Kind != "Deployment" || typed.Spec.Replicas != d.Spec.Replicas {
		t.Errorf("kind %q and %q", d.Kind, typed.Kind)
	}
	if Typed(typed, deployments) != runtime.Object(typed) {
		t.Error("an object that says what it is was copied")
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"object.spec.nothing == 1", "expression 'object.spec.nothing == 1' resulted in error: no such key: nothing"},
		{"object.", "compilation error: compilation failed: ERROR: <input>:1:8: Syntax error"},
		{"nobody == 1", "compilation error: compilation failed: ERROR: <input>:1:1: undeclared reference to 'nobody' (in container '')"},
	} {
		r := evaluate(t, input(), tt.text)
		if r.Err == nil || !strings.HasPrefix(r.Err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.text, r.Err)
		}
	}
}

func conditions(texts ...string) []admissionregistrationv1.MatchCondition {
	var out []admissionregistrationv1.MatchCondition
	for i, text := range texts {
		out = append(out, admissionregistrationv1.MatchCondition{Name: string(rune('a' + i)), Expression: text})
	}
	return out
}

func TestConditions(t *testing.T) {
	for _, tt := range []struct {
		name    string
		list    []admissionregistrationv1.MatchCondition
		matched bool
		failed  string
		err     string
	}{
		{name: "none", matched: true},
		{name: "true", list: conditions("true", "object.spec.replicas == 7"), matched: true},
		{name: "false", list: conditions("true", "object.spec.replicas == 8"), failed: "b"},
		{name: "false beats errors", list: conditions("object.x == 1", "false"), failed: "b"},
		{name: "errors", list: conditions("object.x == 1", "true"), err: "expression 'object.x == 1' resulted in error: no such key: x"},
		{name: "several errors", list: conditions("object.x == 1", "object.y == 1"),
			err: "[expression 'object.x == 1' resulted in error: no such key: x, expression 'object.y == 1' resulted in error: no such key: y]"},
		{name: "no namespace", list: conditions("namespaceObject == null"), matched: true},
		{name: "budget", list: conditions(expensive, expensive, expensive), err: outOfBudget},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input()
			matched, failed, err := CompileConditions(tt.list, WebhookOptions).Match(context.Background(), in)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if matched != tt.matched || failed != tt.failed || text != tt.err {
				t.Errorf("matched %v, failed %q, error %q", matched, failed, text)
			}
			if in.Namespace == nil || evaluate(t, in, "namespaceObject == null").Value != celtypes.False {
				t.Error("the input lost its namespace")
			}
		})
	}
}

// expensive costs more than one expression may.
const expensive = `[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, [1,2,3,4,5,6,7,8,9,10].all(g, a+b+c+d+e+f+g > 0)))))))`

func scope(pairs ...string) (*Scope, *expression.Compiler) {
	c, s := &expression.Compiler{}, &Scope{}
	for i := 0; i < len(pairs); i += 2 {
		s.Variables = append(s.Variables, Variable{pairs[i], c.Variable(pairs[i], pairs[i+1], all)})
	}
	return s, c
}

func TestVariables(t *testing.T) {
	s, c := scope("n", "object.spec.replicas", "big", "variables.n > 5", "bad", "object.spec.nothing")
	list := []*expression.Expression{
		c.Compile("variables.big", expression.Bool, all),
		nil,
		c.Compile("variables.bad == 1", expression.Bool, all),
	}
	results, left, err := s.Evaluate(context.Background(), input(), list, true, Budget)
	if err != nil || results[0].Value != celtypes.True || results[1].Value != nil || results[1].Err != nil {
		t.Fatal(results, err)
	}
	if left >= Budget-2 {
		t.Errorf("variables cost nothing: %d left of %d", left, Budget)
	}
	want := `expression 'variables.bad == 1' resulted in error: composited variable "bad" fails to evaluate: no such key: nothing`
	if results[2].Err == nil || results[2].Err.Error() != want {
		t.Errorf("got  %v\nwant %s", results[2].Err, want)
	}
}

func TestVariablesAreTyped(t *testing.T) {
	_, c := scope("n", "1")
	if e := c.Compile("variables.n == 'x'", expression.Bool, all); e.Err == nil || !strings.Contains(e.Err.Error(), "found no matching overload for '_==_' applied to '(int, string)'") {
		t.Error(e.Err)
	}
	if e := c.Compile("variables.m == 1", expression.Bool, all); e.Err == nil || !strings.Contains(e.Err.Error(), "undefined field 'm'") {
		t.Error(e.Err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var c expression.Compiler
	results, _, err := (&Scope{}).Evaluate(ctx, input(), []*expression.Expression{c.Compile(expensive, expression.Bool, all)}, true, Budget)
	if err == nil && results[0].Err == nil {
		t.Error("evaluation went on after its request had ended")
	}
}

func BenchmarkMatch(b *testing.B) {
	c := CompileConditions(conditions("object.spec.replicas > 5 && request.operation == 'CREATE'"), WebhookOptions)
	b.ReportAllocs()
	for b.Loop() {
		in := input()
		if ok, _, err := c.Match(context.Background(), in); !ok {
			b.Fatal(err)
		}
	}
}

func TestSelectorsReachTheAuthorizer(t *testing.T) {
	in := input()
	in.Authorizer = authz.Func(func(_ context.Context, a *authz.Attributes) (authz.Decision, string, error) {
		return authz.If(len(a.Fields) == 1 && a.Fields[0].Field == "spec.nodeName" && a.Fields[0].Value == "n1" &&
			len(a.Labels) == 1 && a.Labels[0].String() == "app in (a,b)"), "", nil
	})
	const ask = "authorizer.group('').resource('pods').namespace('x')"
	for text, want := range map[string]bool{
		ask + ".fieldSelector('spec.nodeName=n1').labelSelector('app in (a,b)').check('list').allowed()": true,
		ask + ".fieldSelector('spec.nodeName=n2').labelSelector('app in (a,b)').check('list').allowed()": false,
		ask + ".labelSelector('app in (a,b)').check('list').allowed()":                                   false,
		ask + ".fieldSelector('spec.nodeName=n1').labelSelector('app in (').check('list').allowed()":     false,
	} {
		// In one Input, so that an answer to one question is none to another.
		if r := evaluate(t, in, text); r.Err != nil || (r.Value == celtypes.True) != want {
			t.Errorf("%s: %v %v", text, r.Value, r.Err)
		}
	}
}
