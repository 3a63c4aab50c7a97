package admissionregistration

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
)

const match = "  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}\n"

func read[T any](t *testing.T, spec string) *T {
	t.Helper()
	obj := new(T)
	if err := yaml.UnmarshalStrict([]byte("metadata: {name: p}\nspec:\n"+match+spec), obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

// check compares errors with lines that say path, kind of error and the beginning of its detail.
func check(t *testing.T, errs field.ErrorList, want ...string) {
	t.Helper()
	if len(errs) != len(want) {
		t.Fatalf("%v", errs)
	}
	for i, e := range errs {
		if got := e.Field + ": " + e.ErrorBody(); !strings.HasPrefix(got, want[i]) {
			t.Errorf("got  %s\nwant %s", got, want[i])
		}
	}
}

func TestValidatingExpressions(t *testing.T) {
	k := validatingPolicyKind()
	for _, tt := range []struct {
		spec string
		want []string
	}{
		{"  validations: [{expression: object.spec.replicas <= 5}]", nil},
		{"  validations: [{expression: \"object.x in ['a'\"}]", []string{"spec.validations[0].expression: Invalid value: \"object.x in ['a'\": compilation failed: ERROR: <input>:1:17: Syntax error: mismatched input '<EOF>' expecting"}},
		{"  validations: [{expression: params.a == 1}]", []string{"spec.validations[0].expression: Invalid value: \"params.a == 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')"}},
		{"  paramKind: {apiVersion: v1, kind: ConfigMap}\n  validations: [{expression: params.a == 1}]", nil},
		{"  validations: [{expression: '1 + 1'}]", []string{`spec.validations[0].expression: Invalid value: "1 + 1": must evaluate to bool`}},
		{"  validations: [{expression: \"authorizer.group('').resource('pods').check('get').allowed()\", messageExpression: \"authorizer.path('/').check('get').reason()\"}]",
			[]string{`spec.validations[0].messageExpression: Invalid value: "authorizer.path('/').check('get').reason()": compilation failed: ERROR: <input>:1:1: undeclared reference to 'authorizer'`}},
		{"  validations: [{expression: 'true', messageExpression: '1'}]", []string{`spec.validations[0].messageExpression: Invalid value: "1": must evaluate to string`}},
		{"  variables: [{name: a, expression: '1'}, {name: b, expression: variables.a + 1}]\n  validations: [{expression: variables.b == 2}]", nil},
		{"  variables: [{name: b, expression: variables.a + 1}, {name: a, expression: '1'}]\n  validations: [{expression: 'true'}]",
			[]string{"spec.variables[0].expression: Invalid value: \"variables.a + 1\": compilation failed: ERROR: <input>:1:10: undefined field 'a'"}},
		{"  validations: [{expression: variables.a == 1}]", []string{"spec.validations[0].expression: Invalid value: \"variables.a == 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'variables'"}},
		{"  auditAnnotations: [{key: k, valueExpression: ' 1 '}]", []string{`spec.auditAnnotations[0].valueExpression: Invalid value: " 1 ": must evaluate to one of [string null_type] but got int`}},
		{"  auditAnnotations: [{key: k, valueExpression: 'null'}]", nil},
		{"  matchConditions: [{name: c, expression: ' request.nothing == 1'}]\n  validations: [{expression: 'true'}]",
			[]string{"spec.matchConditions[0].expression: Invalid value: \"request.nothing == 1\": compilation failed: ERROR: <input>:1:8: undefined field 'nothing'"}},
	} {
		p := read[admissionv1.ValidatingAdmissionPolicy](t, tt.spec)
		k.Default(p)
		check(t, k.Validate(p), tt.want...)
	}
}

func TestMutatingExpressions(t *testing.T) {
	k := mutatingPolicyKind()
	for _, tt := range []struct {
		mutation string
		want     []string
	}{
		{`{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{spec: Object.spec{replicas: 1}}"}}`, nil},
		{`{patchType: ApplyConfiguration, applyConfiguration: {expression: " 1"}}`, []string{`spec.mutations[0].applyConfiguration.expression: Invalid value: "1": must evaluate to Object but got int`}},
		{`{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/x', value: 1}]"}}`, nil},
		{`{patchType: JSONPatch, jsonPatch: {expression: "JSONPatch{op: 'add', path: '/x'}"}}`, []string{`spec.mutations[0].jsonPatch.expression: Invalid value: "JSONPatch{op: 'add', path: '/x'}": must evaluate to list(JSONPatch) but got JSONPatch`}},
		{`{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 1}]"}}`, []string{`spec.mutations[0].jsonPatch.expression: Invalid value: "[JSONPatch{op: 1}]": compilation failed: ERROR: <input>:1:14: expected type of field 'op' is 'string' but provided type is 'int'`}},
		{`{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{path: variables.x}]"}}`, []string{"spec.mutations[0].jsonPatch.expression: Invalid value: \"[JSONPatch{path: variables.x}]\": compilation failed: ERROR: <input>:1:27: undefined field 'x'"}},
		{`{patchType: JSONPatch, applyConfiguration: {expression: "Object{}"}}`, []string{
			"spec.mutations[0].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
			"spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch"}},
	} {
		p := read[admissionv1.MutatingAdmissionPolicy](t, "  reinvocationPolicy: Never\n  mutations: ["+tt.mutation+"]")
		k.Default(p)
		check(t, k.Validate(p), tt.want...)
	}
}

// TestRatcheting: what was stored by another version may stay.
func TestRatcheting(t *testing.T) {
	k := validatingPolicyKind()
	old := read[admissionv1.ValidatingAdmissionPolicy](t, "  matchConditions: [{name: c, expression: nobody}]\n  validations: [{expression: 'true'}]")
	k.Default(old)
	p := old.DeepCopy()
	p.Spec.Validations[0].Expression = "false"
	check(t, k.ValidateUpdate(p, old))
	p.Spec.MatchConditions[0].Name = "d"
	check(t, k.ValidateUpdate(p, old), "spec.matchConditions[0].expression: Invalid value: \"nobody\": compilation failed")
}

func TestWebhookConditions(t *testing.T) {
	k := validatingWebhookKind()
	url := "https://example.com"
	none := admissionv1.SideEffectClassNone
	c := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "a.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		MatchConditions: []admissionv1.MatchCondition{{Name: "c", Expression: "params == null"}},
	}}}
	k.Default(c)
	check(t, k.Validate(c), "webhooks[0].matchConditions[0].expression: Invalid value: \"params == null\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params'")
	check(t, k.ValidateUpdate(c, c.DeepCopy()))
}

// FuzzExpression: no text makes the compiler panic, and what it accepts as a condition is one.
func FuzzExpression(f *testing.F) {
	for _, text := range []string{"true", "object.spec.replicas <= 5", "object.x.all(a, a > 0)", "'a'.matches('(')", "1 in [1]", "{'a': 1}.a", "\x00", "?", "Object{}", "authorizer.check('x')", strings.Repeat("(", 300)} {
		f.Add(text)
	}
	k := validatingPolicyKind()
	f.Fuzz(func(t *testing.T, text string) {
		p := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
		p.Spec.Validations = []admissionv1.Validation{{Expression: text, MessageExpression: text}}
		p.Spec.Variables = []admissionv1.Variable{{Name: "v", Expression: text}}
		p.Spec.MatchConditions = []admissionv1.MatchCondition{{Name: "c", Expression: text}}
		var obj api.Object = p
		k.Default(obj)
		k.Validate(obj)
		check := expressions{}
		if errs := check.check("variables.v == dyn(1)", 0, nil); len(errs) == 0 {
			t.Error("variables are known that are not declared")
		}
	})
}
