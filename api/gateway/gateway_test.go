package gateway

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
)

func find(t *testing.T, resource string) *api.Kind {
	t.Helper()
	for _, k := range Kinds() {
		if k.Resource == resource {
			return k
		}
	}
	t.Fatalf("there are no %s", resource)
	return nil
}

func decode(t *testing.T, k *api.Kind, text string) api.Object {
	t.Helper()
	obj := k.Hub().New()
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatal(err)
	}
	return obj.(api.Object)
}

// samples have most of the fields that have defaults.
var samples = map[string]string{
	"gateways": `{spec: {gatewayClassName: a, addresses: [{value: 192.0.2.1}], allowedListeners: {}, listeners: [{name: x, port: 80, protocol: HTTP},
  {name: z, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: s}]}, allowedRoutes: {kinds: [{kind: HTTPRoute}]}}],
  tls: {backend: {clientCertificateRef: {name: c}}, frontend: {default: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: c}]}}, perPort: [{port: 443, tls: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: c}]}}}]}}}}`,
	"listenersets": `{spec: {parentRef: {name: g}, listeners: [{name: x, port: 80, protocol: HTTP}, {name: z, port: 443, protocol: TLS, tls: {certificateRefs: [{name: s}]}}]}}`,
	"httproutes": `{spec: {parentRefs: [{name: g}], rules: [{matches: [{headers: [{name: a, value: b}]}, {path: {value: /x}, queryParams: [{name: a, value: b}]}],
  filters: [{type: RequestRedirect, requestRedirect: {}}]}, {filters: [{type: CORS, cors: {allowOrigins: ["*"]}}, {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, fraction: {numerator: 1}}}],
  sessionPersistence: {cookieConfig: {}}, backendRefs: [{name: s, port: 80}]}]}}`,
	"grpcroutes": `{spec: {parentRefs: [{name: g}], rules: [{matches: [{method: {service: a}, headers: [{name: a, value: b}]}], backendRefs: [{name: s, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}}]}]}}`,
	"tlsroutes":  `{spec: {parentRefs: [{name: g}], hostnames: [a.example], rules: [{backendRefs: [{name: s, port: 80}]}]}}`,
	"tcproutes":  `{spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: s, port: 80}]}]}}`,
	"udproutes":  `{spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: s, port: 80}]}]}}`,
}

// TestDefaultsAreThoseOfTheDefinitions compares the defaults that are written down here with those that upstream's schemas state.
func TestDefaultsAreThoseOfTheDefinitions(t *testing.T) {
	for resource, text := range samples {
		k := find(t, resource)
		r := rulesOf(resource, k.Kind)
		if err := r.ready(); err != nil {
			t.Fatal(err)
		}
		ours := decode(t, k, text)
		k.Default(ours)
		var loose map[string]any
		if err := yaml.Unmarshal([]byte(text), &loose); err != nil {
			t.Fatal(err)
		}
		loose = runtime.DeepCopyJSON(normal(t, loose))
		defaulting.Default(loose, r.form)
		theirs := k.Hub().New()
		data, err := json.Marshal(loose)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, theirs); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(ours, theirs) {
			mine, _ := json.Marshal(ours)
			yours, _ := json.Marshal(theirs)
			t.Errorf("%s\nhave %s\nwant %s", resource, mine, yours)
		}
		ours.SetName("a")
		ours.SetNamespace("b")
		if errs := k.Validate(ours); len(errs) > 0 {
			t.Errorf("%s: %v", resource, errs.ToAggregate())
		}
		before := ours.DeepCopyObject()
		if k.Default(ours); !equality.Semantic.DeepEqual(before, ours) {
			t.Errorf("%s: defaults are not the same the second time", resource)
		}
	}
}

// normal gives numbers the types that they have in decoded objects.
func normal(t *testing.T, in map[string]any) map[string]any {
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	obj := map[string]any{}
	if err := utiljson.Unmarshal(data, &obj); err != nil {
		t.Fatal(err)
	}
	return obj
}

func TestWhatDefinitionsRefuseIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ resource, object, want string }{
		"limit":      {"gateways", `{spec: {gatewayClassName: a, listeners: [{name: x, port: 70000, protocol: HTTP}]}}`, "spec.listeners[0].port: Invalid value: 70000"},
		"pattern":    {"gateways", `{spec: {gatewayClassName: a, listeners: [{name: x, port: 80, protocol: HTTP, hostname: "A_B"}]}}`, "spec.listeners[0].hostname: Invalid value"},
		"enum":       {"httproutes", `{spec: {rules: [{matches: [{path: {type: Suffix, value: /}}]}]}}`, `Unsupported value: "Suffix"`},
		"expression": {"gateways", `{spec: {gatewayClassName: a, listeners: [{name: x, port: 80, protocol: HTTP, tls: {mode: Terminate, certificateRefs: [{name: s}]}}]}}`, "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']"},
		"twice":      {"gateways", `{spec: {gatewayClassName: a, listeners: [{name: x, port: 80, protocol: HTTP}, {name: x, port: 81, protocol: HTTP}]}}`, "Duplicate value"},
		"path":       {"httproutes", `{spec: {rules: [{matches: [{path: {value: no}}]}]}}`, "value must be an absolute path and start with '/'"},
		"class":      {"gatewayclasses", `{spec: {controllerName: nodomain}}`, "spec.controllerName"},
	} {
		t.Run(name, func(t *testing.T) {
			k := find(t, c.resource)
			obj := decode(t, k, c.object)
			k.Default(obj)
			obj.SetName("a")
			if err := k.Validate(obj).ToAggregate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("have %v, want %q", err, c.want)
			}
		})
	}
}

func TestTheControllerOfAClassStays(t *testing.T) {
	k := find(t, "gatewayclasses")
	old, obj := decode(t, k, `{spec: {controllerName: a.example/x}}`), decode(t, k, `{spec: {controllerName: a.example/y}}`)
	if err := k.ValidateUpdate(obj, old).ToAggregate(); err == nil || !strings.Contains(err.Error(), "Value is immutable") {
		t.Error(err)
	}
}

func TestVersionsShareTheirFields(t *testing.T) {
	k := find(t, "httproutes")
	obj := decode(t, k, samples["httproutes"])
	out, err := k.Version("v1beta1").FromHub(obj)
	if err != nil {
		t.Fatal(err)
	}
	back, err := k.Version("v1beta1").ToHub(out)
	if err != nil {
		t.Fatal(err)
	}
	back.GetObjectKind().SetGroupVersionKind(obj.GetObjectKind().GroupVersionKind())
	if !equality.Semantic.DeepEqual(obj, back) {
		t.Error("something was lost on the way")
	}
}
