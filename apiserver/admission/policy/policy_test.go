package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/managed"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// env is a chain of writes with policies and nothing else.
type env struct {
	*write.Chain
	t           testing.TB
	policies    *Policies
	warnings    []string
	annotations map[string]string
}

func start(t testing.TB, manifests ...string) *env {
	t.Helper()
	reg := api.NewRegistry(builtin.Kinds()...)
	st := memory.New(client.StoreOptions(reg, 0))
	e := &env{t: t, annotations: map[string]string{}}
	e.policies = New(Config{
		Registry: reg,
		Authorizer: authz.Func(func(_ context.Context, a *authz.Attributes) (authz.Decision, string, error) {
			return authz.If(a.User.Name == "admin"), "", nil
		}),
		Types: managed.New().Types,
	})
	record := admission.Plugin{Name: "record", Mutate: func(_ context.Context, r *admission.Request) error {
		r.Annotate = func(k, v string) { e.annotations[k] = v }
		return nil
	}}
	e.Chain = &write.Chain{
		Store: st, Registry: reg, Now: func() time.Time { return time.Unix(1700000000, 0) }, Log: slog.New(slog.DiscardHandler),
		Admission: append(admission.Chain{record}, e.policies.Plugins()...),
	}
	e.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {tier: gold}}}")
	for _, m := range manifests {
		if err := e.apply(m); err != nil {
			t.Fatalf("%v\n%s", err, m)
		}
	}
	return e
}

func (e *env) target(k *api.Kind, version, namespace, name string) write.Target {
	return write.Target{
		Kind: k, Version: version, Namespace: namespace, Name: name, User: client.User{Name: "admin"},
		Warn: func(s string) { e.warnings = append(e.warnings, s) },
	}
}

// apply creates the objects of a manifest, or updates those that are there, and gives the first error.
func (e *env) apply(manifests string) error {
	e.t.Helper()
	for text := range strings.SplitSeq(manifests, "\n---\n") {
		if _, err := e.one(text); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) one(text string) (api.Object, error) {
	e.t.Helper()
	var meta metav1.PartialObjectMetadata
	if err := yaml.Unmarshal([]byte(text), &meta); err != nil {
		e.t.Fatal(err)
	}
	gvk := meta.GroupVersionKind()
	k := e.Registry.ByKind(gvk.GroupKind())
	if k == nil {
		e.t.Fatalf("no kind %v", gvk)
	}
	obj := k.Hub().New().(api.Object)
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		e.t.Fatal(err)
	}
	ctx := context.Background()
	t := e.target(k, gvk.Version, meta.Namespace, meta.Name)
	entry := e.Store.Snapshot().Get(write.Key(k, meta.Namespace, meta.Name))
	var err error
	if entry == nil {
		entry, err = e.Create(ctx, t, obj)
	} else {
		entry, _, err = e.Update(ctx, t, write.Update{Make: func(current *store.Entry) (api.Object, error) {
			out := obj.DeepCopyObject().(api.Object)
			old := current.Object.(api.Object)
			out.SetUID(old.GetUID())
			out.SetResourceVersion(old.GetResourceVersion())
			return out, nil
		}})
	}
	if err != nil {
		return nil, err
	}
	return entry.Object.(api.Object), nil
}

// policy is a ValidatingAdmissionPolicy on deployments, named p; spec is further fields, indented by two.
func policy(spec string) string {
	return `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: p}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}]}
` + strings.TrimPrefix(spec, "\n")
}

// binding binds the policy p; spec is further fields, indented by two.
func binding(spec string) string {
	return "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {name: b}\nspec:\n  policyName: p\n" + spec
}

const deny = "  validationActions: [Deny]\n"

func deployment(replicas int) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
`, replicas)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestValidating(t *testing.T) {
	const denied = `deployments.apps "web" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: `
	configMap := "{apiVersion: v1, kind: ConfigMap, metadata: {name: limits, namespace: shop, labels: {use: limits}}, data: {max: \"3\"}}"
	const param = "  paramKind: {apiVersion: v1, kind: ConfigMap}\n"
	limited := policy(param + "  validations: [{expression: \"object.spec.replicas <= int(params.data.max)\", message: too many}]\n")
	for _, tt := range []struct {
		name      string
		manifests []string
		want      string
	}{
		{"allowed", []string{policy("  validations: [{expression: object.spec.replicas <= 5}]"), binding(deny)}, ""},
		{"expression", []string{policy("  validations: [{expression: ' object.spec.replicas <= 4 '}]"), binding(deny)},
			denied + "failed expression: object.spec.replicas <= 4"},
		{"message", []string{policy("  validations: [{expression: object.spec.replicas <= 4, message: too many}]"), binding(deny)}, denied + "too many"},
		{"message expression", []string{policy("  validations: [{expression: object.spec.replicas <= 4, message: too many, messageExpression: \"'only ' + string(object.spec.replicas - 1)\"}]"), binding(deny)},
			denied + "only 4"},
		{"message expression fails", []string{policy("  validations: [{expression: object.spec.replicas <= 4, message: too many, messageExpression: string(object.spec.nothing)}]"), binding(deny)},
			denied + "too many"},
		{"two lines", []string{policy("  validations: [{expression: object.spec.replicas <= 4, messageExpression: \"'a\\\\nb'\"}]"), binding(deny)},
			denied + "failed expression: object.spec.replicas <= 4"},
		{"no binding", []string{policy("  validations: [{expression: 'false'}]")}, ""},
		{"warn", []string{policy("  validations: [{expression: 'false'}]"), binding("  validationActions: [Warn]\n")}, ""},
		{"error", []string{policy("  validations: [{expression: object.spec.nothing == 1}]"), binding(deny)},
			denied + "expression 'object.spec.nothing == 1' resulted in error: no such key: nothing"},
		{"error ignored", []string{policy("  failurePolicy: Ignore\n  validations: [{expression: object.spec.nothing == 1}]"), binding(deny)}, ""},
		{"condition", []string{policy("  matchConditions: [{name: c, expression: object.metadata.name == 'other'}]\n  validations: [{expression: 'false'}]"), binding(deny)}, ""},
		{"condition fails", []string{policy("  matchConditions: [{name: c, expression: object.x == 1}]\n  validations: [{expression: 'false'}]"), binding(deny)},
			denied + "expression 'object.x == 1' resulted in error: no such key: x"},
		{"variables", []string{policy("  variables: [{name: count, expression: object.spec.replicas}, {name: big, expression: variables.count > 4}]\n  validations: [{expression: '!variables.big', messageExpression: \"string(variables.count)\"}]"), binding(deny)},
			denied + "5"},
		{"authorizer", []string{policy("  validations: [{expression: \"authorizer.requestResource.check('custom').allowed()\"}]"), binding(deny)}, ""},
		{"namespace", []string{policy("  validations: [{expression: \"namespaceObject.metadata.labels.tier == 'gold'\"}]"), binding(deny)}, ""},
		{"binding elsewhere", []string{policy("  validations: [{expression: 'false'}]"), binding(deny + "  matchResources: {namespaceSelector: {matchLabels: {tier: lead}}}\n")}, ""},
		{"param", []string{configMap, limited, binding(deny + "  paramRef: {name: limits}\n")}, denied + "too many"},
		{"param by selector", []string{configMap, limited, binding(deny + "  paramRef: {selector: {matchLabels: {use: limits}}}\n")}, denied + "too many"},
		{"param in a namespace", []string{configMap, limited, binding(deny + "  paramRef: {name: limits, namespace: shop}\n")}, denied + "too many"},
		{"param not found", []string{limited, binding(deny + "  paramRef: {name: limits}\n")},
			denied + "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"},
		{"param not found, allowed", []string{limited, binding(deny + "  paramRef: {name: limits, parameterNotFoundAction: Allow}\n")}, ""},
		{"no paramRef", []string{policy(param + "  validations: [{expression: params != null}]"), binding(deny)}, denied + "failed expression: params != null"},
		{"param has a type", []string{configMap, policy(param + "  validations: [{expression: \"params.kind == 'ConfigMap' && params.apiVersion == 'v1'\"}]"), binding(deny + "  paramRef: {name: limits}\n")}, ""},
		{"unknown paramKind", []string{policy("  paramKind: {apiVersion: example.com/v1, kind: Limit}\n  validations: [{expression: 'true'}]"), binding(deny)},
			`deployments.apps "web" is forbidden: ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'`},
		{"cluster-scoped param with namespace", []string{policy("  paramKind: {apiVersion: v1, kind: Node}\n  validations: [{expression: 'true'}]"), binding(deny + "  paramRef: {name: node, namespace: shop}\n")},
			denied + "failed to configure binding: paramRef.namespace must not be provided for a cluster-scoped `paramKind`"},
		{"old object", []string{policy("  validations: [{expression: oldObject == null}]"), binding(deny)}, ""},
		{"request", []string{policy("  validations: [{expression: \"request.operation == 'CREATE' && request.kind.kind == 'Deployment' && request.resource.resource == 'deployments' && request.name == 'web' && request.namespace == 'shop' && request.userInfo.username == 'admin' && request.options.kind == 'CreateOptions'\"}]"), binding(deny)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, tt.manifests...)
			_, err := e.one(deployment(5))
			if text(err) != tt.want {
				t.Errorf("got  %s\nwant %s", text(err), tt.want)
			}
		})
	}
}

func TestStatusOfARefusal(t *testing.T) {
	for reason, code := range map[string]int32{"": 422, "Invalid": 422, "Forbidden": 403, "RequestEntityTooLarge": 413} {
		line := ""
		if reason != "" {
			line = ", reason: " + reason
		}
		e := start(t, policy("  validations: [{expression: 'false'"+line+"}]"), binding(deny))
		_, err := e.one(deployment(1))
		var status *apierrors.StatusError
		if !errors.As(err, &status) || status.ErrStatus.Code != code {
			t.Fatalf("%q: %v", reason, err)
		}
		want := "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: false"
		if c := status.ErrStatus.Details.Causes; len(c) != 1 || c[0].Message != want {
			t.Errorf("%q: causes %v", reason, c)
		}
	}
}

func TestWarnAndAudit(t *testing.T) {
	e := start(t,
		policy("  validations: [{expression: 'true'}, {expression: object.spec.replicas <= 4, message: too many}]\n  auditAnnotations: [{key: replicas, valueExpression: \"'n=' + string(object.spec.replicas)\"}, {key: none, valueExpression: 'null'}, {key: blank, valueExpression: \"' '\"}]"),
		binding("  validationActions: [Warn, Audit]\n"))
	if _, err := e.one(deployment(5)); err != nil {
		t.Fatal(err)
	}
	if want := "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': too many"; len(e.warnings) != 1 || e.warnings[0] != want {
		t.Errorf("warnings %q", e.warnings)
	}
	want := map[string]string{
		"p/replicas": "n=5",
		failureKey:   `[{"message":"too many","policy":"p","binding":"b","expressionIndex":1,"validationActions":["Warn","Audit"]}]`,
	}
	if len(e.annotations) != len(want) {
		t.Errorf("annotations %v", e.annotations)
	}
	for k, v := range want {
		if e.annotations[k] != v {
			t.Errorf("%s: %s", k, e.annotations[k])
		}
	}
	var lines []string
	for _, c := range e.policies.Checks() {
		lines = append(lines, fmt.Sprintf("%s/%s %s %s %d", c.Policy, c.Binding, c.ErrorType, c.Action, c.Count))
	}
	if got := strings.Join(lines, "; "); got != "p/b invalid_error audit 1; p/b invalid_error warn 1" {
		t.Errorf("counted %s", got)
	}
	var out strings.Builder
	e.policies.WriteMetrics(&out)
	for _, line := range []string{
		`apiserver_validating_admission_policy_check_total{enforcement_action="audit",error_type="invalid_error",policy="p",policy_binding="b"} 1`,
		`apiserver_validating_admission_policy_check_duration_seconds_bucket{enforcement_action="warn",error_type="invalid_error",policy="p",policy_binding="b",le="+Inf"} 1`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("no %s in\n%s", line, out.String())
		}
	}
}

func TestAnnotationErrorDenies(t *testing.T) {
	const annotations = "  auditAnnotations: [{key: k, valueExpression: string(object.spec.nothing)}]"
	e := start(t, policy(annotations), binding("  validationActions: [Audit]\n"))
	if _, err := e.one(deployment(1)); !strings.Contains(text(err), "resulted in error: no such key: nothing") {
		t.Error(err)
	}
	e = start(t, policy("  failurePolicy: Ignore\n"+annotations), binding("  validationActions: [Audit]\n"))
	if _, err := e.one(deployment(1)); err != nil {
		t.Error(err)
	}
}

func TestUpdatesOfPolicies(t *testing.T) {
	e := start(t, policy("  validations: [{expression: object.spec.replicas <= 4}]"), binding(deny))
	if _, err := e.one(deployment(5)); err == nil {
		t.Fatal("not denied")
	}
	if err := e.apply(policy("  validations: [{expression: object.spec.replicas <= 6}]")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.one(deployment(5)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.one(deployment(7)); err == nil {
		t.Error("an update passed the policy")
	}
	if err := e.apply(binding("  validationActions: [Audit]\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.one(deployment(7)); err != nil {
		t.Error(err)
	}
}

func TestKeptIsDropped(t *testing.T) {
	e := start(t, policy("  validations: [{expression: 'true'}]"), binding(deny+"  matchResources: {objectSelector: {}}\n"))
	if _, err := e.one(deployment(5)); err != nil {
		t.Fatal(err)
	}
	if n := len(e.policies.validating.kept); n != 2 {
		t.Fatalf("%d kept", n)
	}
	for _, k := range []string{"ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"} {
		kind := e.Registry.ByKind(schema.GroupKind{Group: admissionregistrationv1.GroupName, Kind: k})
		name := map[bool]string{true: "b", false: "p"}[strings.HasSuffix(k, "Binding")]
		if _, _, err := e.Store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: write.Key(kind, "", name), Delete: true, Expect: store.ExpectAny}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.one(deployment(6)); err != nil {
		t.Fatal(err)
	}
	if n := len(e.policies.validating.kept); n != 0 {
		t.Errorf("%d still kept", n)
	}
}

func TestPoliciesAreExempt(t *testing.T) {
	e := start(t, strings.Replace(policy("  validations: [{expression: 'false'}]"), "apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]", "apiGroups: ['*'], apiVersions: ['*'], operations: ['*'], resources: ['*']", 1), binding(deny))
	if err := e.apply(binding(deny + "  paramRef: {name: x}\n")); err != nil {
		t.Error(err)
	}
	if _, err := e.one("{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: shop}}"); err == nil {
		t.Error("a ConfigMap passed")
	}
}

// mutating is a MutatingAdmissionPolicy on deployments with its binding, both of a name.
func mutating(name, reinvocation, spec string) string {
	return fmt.Sprintf(`apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  reinvocationPolicy: %[2]s
  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}
%[3]s
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec: {policyName: %[1]s}
`, name, reinvocation, spec)
}

func TestMutating(t *testing.T) {
	jsonPatch := func(expression string) string {
		return "  mutations: [{patchType: JSONPatch, jsonPatch: {expression: \"" + expression + "\"}}]"
	}
	apply := func(expression string) string {
		return "  mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: \"" + expression + "\"}}]"
	}
	for _, tt := range []struct {
		name, spec, want string
		check            func(d *appsv1.Deployment) bool
	}{
		{"json patch", jsonPatch("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"), "",
			func(d *appsv1.Deployment) bool {
				return d.Labels["a/b"] == "c" && d.Labels["app"] == "web" && d.Kind == ""
			}},
		{"json patch of an object", jsonPatch("[JSONPatch{op: 'add', path: '/spec/template/spec/initContainers', value: [Object.spec.template.spec.initContainers{name: 'i', image: 'busybox'}]}]"), "",
			func(d *appsv1.Deployment) bool {
				c := d.Spec.Template.Spec.InitContainers
				return len(c) == 1 && c[0].Image == "busybox" && c[0].ImagePullPolicy == corev1.PullAlways
			}},
		{"test fails", jsonPatch("[JSONPatch{op: 'test', path: '/spec/replicas', value: 9}, JSONPatch{op: 'replace', path: '/spec/replicas', value: 1}]"), "",
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 5 }},
		{"unknown field", jsonPatch("[JSONPatch{op: 'add', path: '/spec/nothing', value: 1}]"), `Internal error occurred: strict decoding error: unknown field "spec.nothing"`, nil},
		{"bad path", jsonPatch("[JSONPatch{op: 'replace', path: '/spec/none/x', value: 1}]"),
			"policy 'm' with binding 'm' denied request: JSON Patch: replace operation does not apply: doc is missing path: /spec/none/x: missing value", nil},
		{"apply", apply("Object{metadata: Object.metadata{labels: {'x': 'y'}}, spec: Object.spec{replicas: object.spec.replicas + 1}}"), "",
			func(d *appsv1.Deployment) bool {
				return d.Labels["x"] == "y" && d.Labels["app"] == "web" && *d.Spec.Replicas == 6
			}},
		{"apply merges lists by key", apply("Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'side', image: 'car'}]}}}}"), "",
			func(d *appsv1.Deployment) bool {
				c := d.Spec.Template.Spec.Containers
				return len(c) == 2 && c[0].Image == "nginx" && c[1].Image == "car"
			}},
		{"apply to an atomic list", apply("Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', args: ['a']}]}}}}"),
			"policy 'm' with binding 'm' denied request: error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args", nil},
		{"apply an unknown field", apply("Object{spec: Object.spec{nothing: 1}}"),
			"policy 'm' with binding 'm' denied request: error applying patch: failed to convert patch object to typed object: .spec.nothing: field not declared in schema", nil},
		{"apply of the wrong type", apply("Object{spec: Object.spec{selector: Object.spec.wrong{}}}"),
			`policy 'm' with binding 'm' denied request: type mismatch: unexpected type name "Object.spec.wrong", expected "Object.spec.selector", which matches field name path from root Object type`, nil},
		{"ignored", "  failurePolicy: Ignore\n" + apply("Object{spec: Object.spec{nothing: 1}}"), "",
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 5 }},
		{"condition", "  matchConditions: [{name: c, expression: object.spec.replicas == 4}]\n" + apply("Object{spec: Object.spec{replicas: 1}}"), "",
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 5 }},
		{"variables", "  variables: [{name: count, expression: object.spec.replicas * 2}]\n" + apply("Object{spec: Object.spec{replicas: variables.count}}"), "",
			func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 10 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, mutating("m", "Never", tt.spec))
			obj, err := e.one(deployment(5))
			if text(err) != tt.want {
				t.Fatalf("got  %s\nwant %s", text(err), tt.want)
			}
			if tt.check != nil && !tt.check(obj.(*appsv1.Deployment)) {
				t.Errorf("%+v", obj)
			}
		})
	}
}

func TestReinvocation(t *testing.T) {
	const count = "  mutations: [{patchType: JSONPatch, jsonPatch: {expression: \"[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]\"}}]"
	const label = "  mutations: [{patchType: JSONPatch, jsonPatch: {expression: \"[JSONPatch{op: 'add', path: '/metadata/labels/late', value: 'yes'}]\"}}]"
	for _, tt := range []struct {
		first, second string
		want          int32
	}{
		{mutating("a", "Never", count), mutating("b", "Never", label), 6},
		// changed by b after it ran: it runs again.
		{mutating("a", "IfNeeded", count), mutating("b", "Never", label), 7},
		// nothing changes after it.
		{mutating("a", "Never", label), mutating("b", "IfNeeded", count), 6},
	} {
		e := start(t, tt.first, tt.second)
		obj, err := e.one(deployment(5))
		if err != nil {
			t.Fatal(err)
		}
		if d := obj.(*appsv1.Deployment); *d.Spec.Replicas != tt.want || d.Labels["late"] != "yes" {
			t.Errorf("%d replicas, want %d; labels %v", *d.Spec.Replicas, tt.want, d.Labels)
		}
	}
}

func TestAccess(t *testing.T) {
	e := start(t, policy("  paramKind: {apiVersion: v1, kind: ConfigMap}\n  validations: [{expression: 'true'}]"))
	ask := func(manifest, resource string, want string) {
		t.Helper()
		obj := e.Registry.ByName(resource + "." + admissionregistrationv1.GroupName)
		r := &admission.Request{Operation: admission.Create, Kind: obj, Object: obj.Hub().New().(api.Object), Snapshot: e.Store.Snapshot(), User: client.User{Name: "bob", Groups: []string{"g"}}}
		if err := yaml.Unmarshal([]byte(manifest), r.Object); err != nil {
			t.Fatal(err)
		}
		if err := e.policies.validate(context.Background(), r); text(err) != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		r.Local = true
		if err := e.policies.validate(context.Background(), r); err != nil {
			t.Errorf("a part of this program: %v", err)
		}
		r.Local, r.User.Name = false, "admin"
		if err := e.policies.validate(context.Background(), r); err != nil {
			t.Errorf("who may: %v", err)
		}
	}
	ask(policy("  paramKind: {apiVersion: v1, kind: ConfigMap}"), "validatingadmissionpolicies",
		`ValidatingAdmissionPolicy.admissionregistration.k8s.io "p" is invalid: spec.paramKind: Forbidden: user &{bob  [g] map[]} must have "get" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)`)
	ask(binding("  paramRef: {name: x}"), "validatingadmissionpolicybindings",
		`ValidatingAdmissionPolicyBinding.admissionregistration.k8s.io "b" is invalid: spec.paramRef: Forbidden: user &{bob  [g] map[]} does not have "get" permission on the object referenced by paramRef`)
	ask(strings.Replace(binding("  paramRef: {selector: {}}"), "policyName: p", "policyName: q", 1), "validatingadmissionpolicybindings",
		`ValidatingAdmissionPolicyBinding.admissionregistration.k8s.io "b" is invalid: spec.paramRef: Forbidden: unable to get policy q to determine minimum required permissions and user &{bob  [g] map[]} does not have "list" permission for all groups, versions and resources`)
}

func BenchmarkCreate(b *testing.B) {
	for _, bench := range []struct {
		name      string
		manifests []string
	}{
		{"none", nil},
		{"unmatched", []string{strings.Replace(policy("  validations: [{expression: object.spec.replicas <= 5}]"), "[deployments]", "[daemonsets]", 1), binding(deny)}},
		{"matched", []string{policy("  validations: [{expression: object.spec.replicas <= 5}]"), binding(deny)}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			e := start(b, bench.manifests...)
			k := e.Registry.ByName("deployments.apps")
			obj := &appsv1.Deployment{}
			if err := yaml.Unmarshal([]byte(deployment(5)), obj); err != nil {
				b.Fatal(err)
			}
			k.Default(obj)
			r := &admission.Request{
				Operation: admission.Create, Kind: k, Version: "v1", Namespace: "shop", Object: obj, Snapshot: e.Store.Snapshot(),
				User: client.User{Name: "admin"}, Warn: func(string) {},
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := e.policies.mutate(context.Background(), r); err != nil {
					b.Fatal(err)
				}
				if err := e.policies.validate(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
