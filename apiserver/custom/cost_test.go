package custom_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/apiserver/custom"
)

// large is a definition whose schema has about 15 KB, as those of operators: nested objects, lists, enumerations,
// patterns, defaults, descriptions, and one rule.
func large(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things%[1]d.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things%[1]d, kind: Thing%[1]d}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
          spec:
            type: object
            x-kubernetes-validations: [{rule: "self.part0.count <= self.part1.count", message: parts are out of order}]
            properties:
`, i)
	for p := range 24 {
		fmt.Fprintf(&b, `
              part%[1]d:
                type: object
                description: Part %[1]d of thing %[2]d says how a part of it is to be made and where it is put.
                properties:
                  count: {type: integer, minimum: 0, maximum: 1000, default: 1, description: How many of part %[1]d are made of thing %[2]d.}
                  name: {type: string, pattern: '^[a-z0-9-]+$', maxLength: 63, description: The name under which part %[1]d is known.}
                  mode: {type: string, enum: [Always, Never, IfNotPresent], default: Always, description: When part %[1]d is made.}
                  labels: {type: object, additionalProperties: {type: string}, description: What part %[1]d is labelled with.}
                  ports: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [port], items: {type: object, required: [port], properties: {port: {type: integer}, protocol: {type: string}}}}
`, p, i)
	}
	return b.String()
}

func parse(t testing.TB, text string) *apiextensionsv1.CustomResourceDefinition {
	d := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal([]byte(text), d); err != nil {
		t.Fatal(err)
	}
	d.Spec.Names.Singular, d.Spec.Names.ListKind = strings.ToLower(d.Spec.Names.Kind), d.Spec.Names.Kind+"List"
	return d
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// 500 definitions fit in 200 MB, also when all of them are in use.
func TestMemory(t *testing.T) {
	const n = 500
	if testing.Short() {
		t.Skip("creates 500 definitions")
	}
	w := newWorld(t)
	w.define(large(n)) // what is shared is there
	use := func(i int) {
		w.want(http.StatusCreated, "POST", fmt.Sprintf("/apis/example.com/v1/namespaces/default/things%d", i),
			fmt.Sprintf("\n{apiVersion: example.com/v1, kind: Thing%d, metadata: {name: a}, spec: {part0: {name: a}, part1: {count: 2}}}", i))
	}
	use(n)
	before := heap()
	for i := range n {
		w.define(large(i))
	}
	served := heap()
	for i := range n {
		use(i)
	}
	used := heap()
	t.Logf("schema of %d bytes: %d KB a definition served, %d KB used", len(large(0)), (served-before)/n>>10, (used-before)/n>>10)
	if used-before > 200<<20 {
		t.Errorf("%d definitions take %d MB", n, (used-before)>>20)
	}
	runtime.KeepAlive(w)
}

// BenchmarkStart is what it takes to serve 500 definitions that are in the store.
func BenchmarkStart(b *testing.B) {
	all := make([]*apiextensionsv1.CustomResourceDefinition, 500)
	for i := range all {
		all[i] = parse(b, large(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, d := range all {
			if _, err := custom.New(d, d.Spec.Names, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkRequests(b *testing.B) {
	w := newWorld(b)
	w.define(large(0))
	const path = "/apis/example.com/v1/namespaces/default/things0"
	spec := `"spec":{"part0":{"name":"a","ports":[{"port":1},{"port":2}]},"part1":{"count":2,"labels":{"a":"b"}},"part2":{"mode":"Never"}}`
	i := 0
	b.Run("create", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			i++
			if rec := w.do("POST", path, fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Thing0","metadata":{"name":"t%d"},%s}`, i, spec)); rec.Code != http.StatusCreated {
				b.Fatal(rec.Body)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.do("GET", path+"/t1", "")
		}
	})
	n := 0
	b.Run("status", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n++
			if rec := w.do("PATCH", path+"/t1/status", fmt.Sprintf(`{"status":{"n":%d}}`, n)); rec.Code != http.StatusOK {
				b.Fatal(rec.Body)
			}
		}
	})
}

func FuzzDefinition(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a":{"type":"integer","default":1}}}`), []byte(`{"a":1}`))
	f.Add([]byte(`{"type":"object","x-kubernetes-preserve-unknown-fields":true}`), []byte(`{"metadata":{"labels":{"a":null}}}`))
	f.Add([]byte(`{"type":"object","properties":{"a":{"type":"array","items":{"type":"object","x-kubernetes-embedded-resource":true}}}}`), []byte(`{"a":[{"kind":1}]}`))
	base := parse(f, large(0))
	f.Fuzz(func(t *testing.T, schema, object []byte) {
		var props apiextensionsv1.JSONSchemaProps
		if json.Unmarshal(schema, &props) != nil {
			return
		}
		d := base.DeepCopy()
		d.Spec.Versions[0].Schema.OpenAPIV3Schema = &props
		k, err := custom.New(d, d.Spec.Names, nil)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if utiljson.Unmarshal(object, &u.Object) != nil || u.Object == nil {
			return
		}
		if _, err := k.Hub().Settle(u, true); err != nil {
			return
		}
		k.Default(u)
		errs := k.Validate(u)
		out, err := k.Loaded(context.Background(), u)
		if err != nil {
			return
		}
		if len(errs) == 0 {
			k.ValidateUpdate(u.DeepCopy(), out)
		}
	})
}
