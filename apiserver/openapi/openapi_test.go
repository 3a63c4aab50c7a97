package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-openapi/pkg/util/proto/validation"
	"sigs.k8s.io/yaml"

	utilproto "k8s.io/kube-openapi/pkg/util/proto"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// TestEveryKindIsDescribed holds the documents to the registry: run tools/openapi/generate.sh when it fails.
func TestEveryKindIsDescribed(t *testing.T) {
	p := &Publisher{}
	for _, k := range builtin.Kinds() {
		for _, v := range k.Versions {
			if v.NotServed {
				continue
			}
			where := documentPath(k.Group, v.Name)
			parsed := p.v3(t, where)
			path := "/" + where + "/" + k.Resource
			if k.Namespaced {
				path = "/" + where + "/namespaces/{namespace}/" + k.Resource
			}
			if parsed.Paths[path] == nil {
				t.Errorf("%s does not describe %s", where, path)
			}
			found := false
			for _, s := range parsed.Components.Schemas {
				for _, gvk := range s.GVKs {
					found = found || gvk.Kind == k.Kind
				}
			}
			if !found {
				t.Errorf("%s has no schema of kind %s", where, k.Kind)
			}
		}
	}
}

type parsedSchema struct {
	Description, Type string
	Properties        map[string]parsedSchema
	Items             *parsedSchema
	AllOf             []parsedSchema
	AnyOf             []parsedSchema
	Ref               string `json:"$ref"`
	Default           any
	Nullable          bool
	Required          []string
	GVKs              []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
	Preserve          bool                                    `json:"x-kubernetes-preserve-unknown-fields"`
	IntOrString       bool                                    `json:"x-kubernetes-int-or-string"`
	Selectable        []struct{ FieldPath string }            `json:"x-kubernetes-selectable-fields"`
}

type parsedV3 struct {
	Paths      map[string]map[string]any
	Components struct{ Schemas map[string]parsedSchema }
}

type parsedV2 struct {
	Paths       map[string]map[string]any
	Definitions map[string]parsedSchema
}

func (p *Publisher) get(t *testing.T, h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func (p *Publisher) v3(t *testing.T, where string) parsedV3 {
	t.Helper()
	w := p.get(t, p.V3(), "/openapi/v3/"+where)
	if w.Code != 200 {
		t.Fatalf("%s: %d", where, w.Code)
	}
	var out parsedV3
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	unresolved(t, w.Body.Bytes(), "#/components/schemas/", slices.Collect(maps.Keys(out.Components.Schemas)))
	return out
}

func (p *Publisher) v2(t *testing.T) parsedV2 {
	t.Helper()
	w := p.get(t, p.V2(), "/openapi/v2")
	var out parsedV2
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	unresolved(t, w.Body.Bytes(), "#/definitions/", slices.Collect(maps.Keys(out.Definitions)))
	return out
}

// unresolved reports references that lead nowhere.
func unresolved(t *testing.T, doc []byte, prefix string, names []string) {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	for name := range references(v, prefix) {
		if !slices.Contains(names, name) {
			t.Errorf("reference to %s, which is not there", name)
		}
	}
}

func (p *Publisher) index(t *testing.T) map[string]string {
	t.Helper()
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(p.get(t, p.V3(), "/openapi/v3").Body.Bytes(), &index); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for k, v := range index.Paths {
		out[k] = v.ServerRelativeURL
	}
	return out
}

func TestForms(t *testing.T) {
	p := &Publisher{}
	url := p.index(t)["apis/apps/v1"]
	w := p.get(t, p.V3(), url, "Accept-Encoding", "gzip")
	if w.Header().Get("Content-Encoding") != "gzip" || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %v", url, w.Header())
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.NewDecoder(z).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if w := p.get(t, p.V3(), "/openapi/v3/apis/apps/v1?hash=0"); w.Code != 301 || w.Header().Get("Location") != url {
		t.Errorf("an old address: %d %v", w.Code, w.Header())
	}
	w = p.get(t, p.V3(), url, "Accept", protobufV3+",application/json")
	if got := w.Header().Get("Content-Type"); got != protobufV3 {
		t.Errorf("asked for protobuf, got %s", got)
	}
	w = p.get(t, p.V2(), "/openapi/v2", "Accept", protobufV2+",application/json")
	if got := w.Header().Get("Content-Type"); got != protobufV2 {
		t.Errorf("asked for protobuf, got %s", got)
	}
	w = p.get(t, p.V2(), "/openapi/v2", "Accept", protobufV2, "If-None-Match", w.Header().Get("ETag"))
	if w.Code != 304 {
		t.Errorf("asked again with the same tag: %d", w.Code)
	}
}

const widgets = `
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
  - name: v1
    served: true
    storage: true
    selectableFields: [{jsonPath: .spec.color}]
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    schema:
      openAPIV3Schema:
        type: object
        description: A thing.
        required: [spec]
        properties:
          spec:
            type: object
            required: [color]
            properties:
              color: {type: string, description: What it looks like., default: red}
              port: {x-kubernetes-int-or-string: true}
              anything: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
              maybe: {type: object, nullable: true, properties: {b: {type: string}}}
              sizes: {type: array, items: {type: integer, anyOf: [{minimum: 3}, {maximum: 1}]}}
              template: {type: object, x-kubernetes-embedded-resource: true, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - name: v1alpha1
    served: false
    storage: false
    schema: {openAPIV3Schema: {type: object}}
`

func crd(t testing.TB, text string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(text), d); err != nil {
		t.Fatal(err)
	}
	d.Name = d.Spec.Names.Plural + "." + d.Spec.Group
	d.UID, d.Generation = types.UID(d.Name), 1
	d.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	return d
}

// publisher serves definitions, which put replaces.
func publisher(t testing.TB, defs ...*apiextensionsv1.CustomResourceDefinition) (p *Publisher, put func(*apiextensionsv1.CustomResourceDefinition)) {
	t.Helper()
	s := memory.New(store.Options{Stamp: func(obj any, rev store.Revision) {
		obj.(metav1.Object).SetResourceVersion(fmt.Sprint(rev))
	}})
	put = func(d *apiextensionsv1.CustomResourceDefinition) {
		t.Helper()
		_, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: definitions.Name, Name: d.Name}, Object: d, Expect: store.ExpectAny}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range defs {
		put(d)
	}
	return &Publisher{Snapshot: s.Snapshot}, put
}

func TestCustomResourceV3(t *testing.T) {
	p, put := publisher(t, crd(t, widgets))
	before := p.index(t)
	if _, ok := before["apis/example.com/v1alpha1"]; ok || before["apis/example.com/v1"] == "" || before["apis/apps/v1"] == "" {
		t.Fatalf("index: %v", before)
	}
	doc := p.v3(t, "apis/example.com/v1")
	w := doc.Components.Schemas["com.example.v1.Widget"]
	spec := w.Properties["spec"]
	switch {
	case w.Description != "A thing." || len(w.GVKs) != 1 || w.GVKs[0].Kind != "Widget" || w.GVKs[0].Group != "example.com":
		t.Errorf("%+v", w)
	case w.Properties["metadata"].AllOf[0].Ref != "#/components/schemas/"+objectMeta, w.Properties["kind"].Type != "string":
		t.Errorf("metadata: %+v", w.Properties["metadata"])
	case spec.Properties["color"].Default != "red", !spec.Properties["port"].IntOrString, len(spec.Properties["port"].AnyOf) != 2:
		t.Errorf("spec: %+v", spec)
	case !spec.Properties["anything"].Preserve, spec.Properties["anything"].Properties["a"].Type != "string", !spec.Properties["maybe"].Nullable:
		t.Errorf("spec: %+v", spec)
	case !slices.Equal(spec.Properties["template"].Required, []string{"kind", "apiVersion"}):
		t.Errorf("template: %+v", spec.Properties["template"])
	case len(w.Selectable) != 1 || w.Selectable[0].FieldPath != "spec.color":
		t.Errorf("selectable: %+v", w.Selectable)
	}
	for path, methods := range map[string]string{
		"widgets": "get", "namespaces/{namespace}/widgets": "delete get post",
		"namespaces/{namespace}/widgets/{name}":        "delete get patch put",
		"namespaces/{namespace}/widgets/{name}/status": "get patch put",
		"namespaces/{namespace}/widgets/{name}/scale":  "get patch put",
	} {
		item := doc.Paths["/apis/example.com/v1/"+path]
		got := slices.DeleteFunc(slices.Sorted(maps.Keys(item)), func(s string) bool { return s == "parameters" })
		if strings.Join(got, " ") != methods {
			t.Errorf("%s has %v, want %s", path, got, methods)
		}
	}
	get := doc.Paths["/apis/example.com/v1/widgets"]["get"].(map[string]any)
	if get["operationId"] != "listExampleComV1WidgetForAllNamespaces" {
		t.Errorf("operation: %v", get["operationId"])
	}
	changed := crd(t, strings.ReplaceAll(widgets, "A thing.", "Another."))
	changed.Generation = 2
	put(changed)
	if after := p.index(t); after["apis/example.com/v1"] == before["apis/example.com/v1"] || after["apis/apps/v1"] != before["apis/apps/v1"] {
		t.Error("the hash does not follow the definition, or that of others does")
	}
	if w := p.v3(t, "apis/example.com/v1").Components.Schemas["com.example.v1.Widget"]; w.Description != "Another." {
		t.Errorf("the document does not follow the definition: %+v", w)
	}
	p.Served = func(schema.GroupVersionResource) bool { return false }
	if p.index(t)["apis/example.com/v1"] != "" {
		t.Error("what is not served is published")
	}
}

func TestCustomResourceV2(t *testing.T) {
	p, put := publisher(t)
	plain := p.get(t, p.V2(), "/openapi/v2").Header().Get("ETag")
	put(crd(t, widgets))
	doc := p.v2(t)
	w := doc.Definitions["com.example.v1.Widget"]
	spec := w.Properties["spec"]
	switch {
	case doc.Definitions["io.k8s.api.core.v1.Pod"].Type != "object", doc.Paths["/api/v1/pods"] == nil:
		t.Error("the built-in kinds are gone")
	case w.Properties["metadata"].Ref != "#/definitions/"+objectMeta, len(w.GVKs) != 1:
		t.Errorf("%+v", w)
	case spec.Properties["color"].Default != nil, !spec.Properties["port"].IntOrString, len(spec.Properties["port"].AnyOf) != 0:
		t.Errorf("what the second version cannot say: %+v", spec.Properties)
	case spec.Properties["anything"].Type != "", spec.Properties["anything"].Properties != nil, !spec.Properties["anything"].Preserve:
		t.Errorf("unknown fields: %+v", spec.Properties["anything"])
	case spec.Properties["maybe"].Nullable, spec.Properties["maybe"].Type != "":
		t.Errorf("nullable: %+v", spec.Properties["maybe"])
	case doc.Paths["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/scale"] == nil:
		t.Error("no path of scale")
	case p.get(t, p.V2(), "/openapi/v2").Header().Get("ETag") == plain:
		t.Error("the tag does not follow the content")
	}
}

// TestProtobuf reads the document as kubectl does, and validates with it.
func TestProtobuf(t *testing.T) {
	p, _ := publisher(t, crd(t, widgets))
	w := p.get(t, p.V2(), "/openapi/v2", "Accept", protobufV2)
	doc := &openapi_v2.Document{}
	if err := proto.Unmarshal(w.Body.Bytes(), doc); err != nil {
		t.Fatal(err)
	}
	if doc.GetInfo().GetTitle() != "Kubernetes" || doc.GetSwagger() != "2.0" {
		t.Errorf("head: %v %v", doc.GetInfo(), doc.GetSwagger())
	}
	models, err := utilproto.NewOpenAPIData(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"com.example.v1.Widget", "com.example.v1.WidgetList", "io.k8s.api.apps.v1.Deployment"} {
		if models.LookupModel(name) == nil {
			t.Errorf("no model %s", name)
		}
	}
	widget := models.LookupModel("com.example.v1.Widget")
	for text, want := range map[string]string{
		`{"spec": {"color": "red", "port": "http", "maybe": null, "anything": {"q": 1}}}`: "",
		`{"spec": {"color": "red", "size": 1}}`:                                           `unknown field "size"`,
		`{"spec": {}}`:                                                                    `missing required field "color"`,
	} {
		var obj any
		if err := json.Unmarshal([]byte(text), &obj); err != nil {
			t.Fatal(err)
		}
		errs := validation.ValidateModel(obj, widget, "Widget")
		if (want == "") != (len(errs) == 0) || want != "" && !strings.Contains(fmt.Sprint(errs), want) {
			t.Errorf("%s: %v, want %q", text, errs, want)
		}
	}
	if w := p.get(t, p.V3(), "/openapi/v3/apis/example.com/v1", "Accept", protobufV3); w.Code != 200 || w.Body.Len() == 0 {
		t.Errorf("third version: %d", w.Code)
	}
}

const flunders = `{"swagger": "2.0", "info": {"title": "x", "version": "1"},
"paths": {"/apis/wardle.example.com/v1/flunders": {"get": {"parameters": [{"$ref": "#/parameters/p"}], "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/com.example.Flunder"}}}}},
          "/apis/other.example.com/v1/x": {"get": {"responses": {}}}, "/version": {"get": {"responses": {}}}},
"parameters": {"p": {"name": "pretty", "in": "query", "type": "string"}},
"definitions": {"com.example.Flunder": {"type": "object", "properties": {"metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}, "fish": {"$ref": "#/definitions/com.example.v1.Widget"}}},
                "com.example.v1.Widget": {"type": "string"}, "unused": {"type": "string"}}}`

func TestRemoteV2(t *testing.T) {
	p, _ := publisher(t, crd(t, widgets))
	p.Remote = func() []Remote {
		return []Remote{{Group: "wardle.example.com", Version: "v1", Hash: "H", V2: func() ([]byte, error) { return []byte(flunders), nil },
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "from afar") })}}
	}
	doc := p.v2(t)
	flunder := doc.Definitions["com.example.Flunder"]
	switch {
	case doc.Definitions["com.example.v1.Widget"].Type != "object":
		t.Error("another's definition took the place of ours")
	case flunder.Properties["fish"].Ref != "#/definitions/com.example.v1.Widget_v2", doc.Definitions["com.example.v1.Widget_v2"].Type != "string":
		t.Errorf("flunder: %+v", flunder)
	case doc.Paths["/apis/wardle.example.com/v1/flunders"] == nil, doc.Paths["/apis/other.example.com/v1/x"] != nil:
		t.Error("paths of other groups come along, or none does")
	}
	params := doc.Paths["/apis/wardle.example.com/v1/flunders"]["get"].(map[string]any)["parameters"].([]any)
	if params[0].(map[string]any)["name"] != "pretty" {
		t.Errorf("parameters: %v", params)
	}
	if got := p.index(t)["apis/wardle.example.com/v1"]; got != "/openapi/v3/apis/wardle.example.com/v1?hash=H" {
		t.Errorf("index: %s", got)
	}
	if got := p.get(t, p.V3(), "/openapi/v3/apis/wardle.example.com/v1").Body.String(); got != "from afar" {
		t.Errorf("document: %s", got)
	}
}

// FuzzRemoteV2 merges whatever a server may send: what comes out is a document whose own part is unchanged and whose
// references lead somewhere.
func FuzzRemoteV2(f *testing.F) {
	f.Add([]byte(flunders))
	f.Add([]byte(`{"swagger":"2.0","paths":{"/apis/wardle.example.com/v1":{"$ref":"#/parameters/p"}},"parameters":{"p":{"$ref":"#/parameters/p"}}}`))
	f.Add([]byte(`{"swagger":"2.0","definitions":{"A":{"$ref":"#/definitions/B","x-kubernetes-group-version-kind":[{"group":"wardle.example.com","version":"v1"}]},"B":{"$ref":"#/definitions/A"}}}`))
	base := []byte(`{"swagger":"2.0","definitions":{"own":{"type":"string"}},"paths":{"/own":{}}}`)
	known := baseDefinitions()
	f.Fuzz(func(t *testing.T, data []byte) {
		a := &additionsV2{definitions: map[string]any{}, paths: map[string]any{}, known: known}
		err := a.addRemote(&remoteDocument{"wardle.example.com", "v1", data})
		if err != nil && len(a.definitions)+len(a.paths) > 0 {
			t.Fatal("a refused document left something behind")
		}
		var out bytes.Buffer
		if err := a.mergeInto(&out, base); err != nil {
			t.Fatal(err)
		}
		merged := out.Bytes()
		var doc struct{ Definitions, Paths map[string]any }
		if err := json.Unmarshal(merged, &doc); err != nil {
			t.Fatalf("%v: %s", err, merged)
		}
		if doc.Paths["/own"] == nil || !equal(doc.Definitions["own"], map[string]any{"type": "string"}) {
			t.Fatalf("the document's own part is gone: %s", merged)
		}
		for name := range references(map[string]any{"d": a.definitions, "p": a.paths}, "#/definitions/") {
			if _, ok := a.definitions[name]; !ok && !known[name] {
				t.Fatalf("reference to %q, which is not there: %s", name, merged)
			}
		}
		if err := a.appendTo(io.Discard, nil); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzSections looks for the sections of anything, as JSON does.
func FuzzSections(f *testing.F) {
	f.Add([]byte(`{"a":{"definitions":{}},"paths":{"x":"}\"{"},"definitions" : {"b":[1,{}]}}`))
	f.Add([]byte(`{"paths":{`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		at, ok := sections(doc)
		var m map[string]json.RawMessage
		if json.Unmarshal(doc, &m) != nil || !ok {
			return
		}
		for _, name := range []string{"definitions", "paths"} {
			if rest := doc[at[name]-1:]; !bytes.HasPrefix(rest, m[name]) && m[name] != nil {
				t.Fatalf("%s begins with %.20s, found %.20s", name, m[name], rest)
			}
		}
	})
}

// manyDefinitions are n definitions of the usual size, each in a group of its own.
func manyDefinitions(t testing.TB, n int) []*apiextensionsv1.CustomResourceDefinition {
	base := crd(t, widgets)
	props := base.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties
	for i := range 100 {
		props[fmt.Sprint("field", i)] = apiextensionsv1.JSONSchemaProps{Type: "object", Description: strings.Repeat("words ", 20),
			Properties: map[string]apiextensionsv1.JSONSchemaProps{"a": {Type: "string"}, "b": {Type: "integer"}}}
	}
	var out []*apiextensionsv1.CustomResourceDefinition
	for i := range n {
		d := base.DeepCopy()
		d.Spec.Group = fmt.Sprintf("g%d.example.com", i)
		d.Name = d.Spec.Names.Plural + "." + d.Spec.Group
		d.UID = types.UID(d.Name)
		out = append(out, d)
	}
	return out
}

func BenchmarkIndex500(b *testing.B) {
	p, _ := publisher(b, manyDefinitions(b, 500)...)
	r := httptest.NewRequest("GET", "/openapi/v3", nil)
	h := p.V3()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}

func BenchmarkDocumentV3(b *testing.B) {
	p, _ := publisher(b, manyDefinitions(b, 1)...)
	g := p.custom()["apis/g0.example.com/v1"]
	b.ReportAllocs()
	for b.Loop() {
		if err := g.writeV3(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkV2With20(b *testing.B) {
	p, _ := publisher(b, manyDefinitions(b, 20)...)
	groups := p.custom()
	base, err := decompress(embedded(fileV2))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := compress(func(w io.Writer) error { return additions(groups, nil).mergeInto(w, base) }); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAccepts holds the media types of clients of all ages to the form that they are sent.
func TestAccepts(t *testing.T) {
	for accept, want := range map[string]bool{
		"application/com.github.proto-openapi.spec.v2@v1.0+protobuf":                   true,
		"application/com.github.proto-openapi.spec.v2.v1.0+protobuf;q=0.9":             true,
		"application/yaml, application/com.github.proto-openapi.spec.v2@v1.0+protobuf": true,
		"application/json, application/com.github.proto-openapi.spec.v2.v1.0+protobuf": false,
		"*/*": false,
		"":    false,
	} {
		r := httptest.NewRequest("GET", "/openapi/v2", nil)
		r.Header.Set("Accept", accept)
		if have := accepts(r, protobufV2, protobufV2b); have != want {
			t.Errorf("Accept %q: protobuf is %v, want %v", accept, have, want)
		}
	}
}
