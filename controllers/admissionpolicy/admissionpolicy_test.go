package admissionpolicy

import (
	"errors"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// openAPI is a document with a kind that refers to itself.
const openAPI = `{"components":{"schemas":{
"meta":{"type":"object","properties":{"name":{"type":"string"},"generateName":{"type":"string"},"labels":{"type":"object","additionalProperties":{"type":"string"}}}},
"spec":{"type":"object","properties":{"replicas":{"type":"integer","format":"int32"},"inner":{"$ref":"#/components/schemas/spec"}}},
"list":{"type":"object","x-kubernetes-group-version-kind":[{"group":"apps","version":"v1","kind":"DeploymentList"}]},
"options":{"type":"object","x-kubernetes-group-version-kind":[{"group":"apps","version":"v1","kind":"Deployment"},{"group":"x","version":"v1","kind":"Deployment"}]},
"deployment":{"type":"object","properties":{"kind":{"type":"string"},"apiVersion":{"type":"string"},"metadata":{"$ref":"#/components/schemas/meta"},"spec":{"allOf":[{"$ref":"#/components/schemas/spec"}]}},
 "x-kubernetes-group-version-kind":[{"group":"apps","version":"v1","kind":"Deployment"}]},
"set":{"type":"object","properties":{"spec":{"type":"object"}},"x-kubernetes-group-version-kind":[{"group":"apps","version":"v1","kind":"DaemonSet"}]},
"broken":{"type":"object","properties":{"spec":{"$ref":"#/components/schemas/none"}},"x-kubernetes-group-version-kind":[{"group":"apps","version":"v1","kind":"StatefulSet"}]}
}}}`

func config() Config {
	return Config{Registry: api.NewRegistry(builtin.Kinds()...), Document: func(group, version string) ([]byte, error) {
		if group+"/"+version != "apps/v1" {
			return nil, errors.New("no such document")
		}
		return []byte(openAPI), nil
	}}
}

func policySpec(t *testing.T, resources, text string) *admissionregistrationv1.ValidatingAdmissionPolicySpec {
	t.Helper()
	out := &admissionregistrationv1.ValidatingAdmissionPolicySpec{}
	text = "matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [" + resources + "]}]}\n" + text
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCheck(t *testing.T) {
	c := config()
	for _, tt := range []struct {
		name, resources, text string
		want                  []string // field and the warning's beginning
	}{
		{"right", "deployments", "validations: [{expression: object.spec.replicas > 1, messageExpression: object.metadata.labels.a}]", nil},
		{"undefined field", "deployments", "validations: [{expression: object.spec.size > 1}]",
			[]string{"spec.validations[0].expression: apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'size'"}},
		{"message", "deployments", "validations: [{expression: 'true', messageExpression: object.spec.size}]",
			[]string{"spec.validations[0].messageExpression: apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'size'"}},
		{"old object", "deployments", "validations: [{expression: oldObject.spec.replicas == 'a'}]",
			[]string{"spec.validations[0].expression: apps/v1, Kind=Deployment: ERROR: <input>:1:25: found no matching overload for '_==_' applied to '(int, string)'"}},
		{"variables", "deployments", "variables: [{name: r, expression: object.spec.replicas}]\nvalidations: [{expression: variables.r == 'a'}]",
			[]string{"spec.validations[0].expression: apps/v1, Kind=Deployment: ERROR: <input>:1:13: found no matching overload"}},
		{"two types", "deployments, daemonsets", "validations: [{expression: object.spec.size > 1}]",
			[]string{"spec.validations[0].expression: apps/v1, Kind=DaemonSet: ERROR: <input>:1:12: undefined field 'size'\n | object.spec.size > 1\n | ...........^\n\napps/v1, Kind=Deployment: ERROR"}},
		{"schema that cannot be read", "statefulsets", "validations: [{expression: object.spec.size > 1}]", nil},
		{"wildcard", "'*'", "validations: [{expression: object.spec.size > 1}]", nil},
		{"subresource", "deployments/status", "validations: [{expression: object.spec.size > 1}]", nil},
		{"unknown", "boats", "validations: [{expression: object.spec.size > 1}]", nil},
		{"params of unknown type", "deployments", "paramKind: {apiVersion: example.com/v1, kind: Boat}\nvalidations: [{expression: params.a == object.spec.replicas}]", nil},
		{"params", "deployments", "paramKind: {apiVersion: apps/v1, kind: Deployment}\nvalidations: [{expression: params.spec.size == 1}]",
			[]string{"spec.validations[0].expression: apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'size'"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := (&checker{registry: c.Registry, document: c.Document}).check(policySpec(t, tt.resources, tt.text))
			if len(got) != len(tt.want) {
				t.Fatalf("%+v", got)
			}
			for i, w := range got {
				if text := w.FieldRef + ": " + w.Warning; !strings.HasPrefix(text, tt.want[i]) {
					t.Errorf("got  %s\nwant %s", text, tt.want[i])
				}
			}
		})
	}
}

func TestLoop(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 1}}
		policy.Spec = *policySpec(t, "deployments", "validations: [{expression: object.spec.size > 1}]")
		h.Create(Policies.Name, policy)
		h.Settle()
		p := reconciletest.Get(h, Policies, "", "p")
		if p.Status.ObservedGeneration != p.Generation || p.Status.TypeChecking == nil || len(p.Status.TypeChecking.ExpressionWarnings) != 1 {
			t.Fatalf("%+v", p.Status)
		}
		reconciletest.Change(h, Policies, "", "p", "", func(p *admissionregistrationv1.ValidatingAdmissionPolicy) {
			p.Spec.Validations[0].Expression = "object.spec.replicas > 1"
			p.Generation++
		})
		h.Settle()
		p = reconciletest.Get(h, Policies, "", "p")
		if p.Status.ObservedGeneration != p.Generation || p.Status.TypeChecking == nil || len(p.Status.TypeChecking.ExpressionWarnings) != 0 {
			t.Fatalf("%+v", p.Status)
		}
	}, Loop(config()))
}
