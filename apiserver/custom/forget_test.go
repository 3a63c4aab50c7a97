package custom_test

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/client"
)

// Nothing is kept of definitions that came, were used, and went.
func TestDefinitionsThatWentAreForgotten(t *testing.T) {
	w := newWorld(t)
	const many = 160
	var kinds []weak.Pointer[api.Kind]
	for i := range many {
		name := fmt.Sprintf("things%d.example.com", i)
		w.define(fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %s}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things%d, kind: Thing%d}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}}
  - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}}
`, name, i, i))
		k := w.registry.ByName(name)
		kinds = append(kinds, weak.Make(k), weak.Make(k.In("v1")), weak.Make(k.In("v2")))
		for _, v := range []string{"v1", "v2"} {
			path := fmt.Sprintf("/apis/example.com/%s/namespaces/default/things%d", v, i)
			body := fmt.Sprintf(`{"apiVersion":"example.com/%s","kind":"Thing%d","metadata":{"name":"a"},"spec":{"size":1}}`, v, i)
			if rec := w.send("PATCH", path+"/a?fieldManager=m"+v, body, "application/apply-patch+yaml", "application/json"); rec.Code >= http.StatusMultipleChoices {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			w.want(200, "GET", path, "", `"size":1`)
			w.want(200, "PATCH", path+"/a", `{"metadata":{"labels":{"a":"b"}}}`)
			if v == "v2" {
				w.want(200, "DELETE", path+"/a", "")
			}
		}
	}
	for i := range many {
		name := fmt.Sprintf("things%d.example.com", i)
		w.want(200, "DELETE", definitions+"/"+name, "")
		_, err := client.Mutate(t.Context(), both{w.store, w.server.Writer()}, custom.Definitions, "", name, "status",
			func(d *apiextensionsv1.CustomResourceDefinition) bool { d.Finalizers = nil; return true })
		if err != nil {
			t.Fatal(err)
		}
	}
	w.until("the last definition is no longer served", func() bool {
		return w.registry.ByName(fmt.Sprintf("things%d.example.com", many-1)) == nil
	})
	kept := func(k weak.Pointer[api.Kind]) bool { return k.Value() != nil }
	// Requests may be on their way out of the server still: each round is a whole collection, not a wait.
	for end := time.Now().Add(time.Minute); slices.ContainsFunc(kinds, kept); {
		if time.Now().After(end) {
			t.Fatalf("%d of %d kinds are kept", len(slices.DeleteFunc(kinds, func(k weak.Pointer[api.Kind]) bool { return !kept(k) })), len(kinds))
		}
		runtime.GC()
	}
	runtime.KeepAlive(w)
}
