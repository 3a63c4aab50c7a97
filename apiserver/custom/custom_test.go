package custom_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/client"
)

// gadgets is a definition that has something of everything.
const gadgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget, shortNames: [gd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    selectableFields: [{jsonPath: .spec.color}, {jsonPath: .spec.size}]
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: First, type: string, jsonPath: ".spec.ports[0].name", priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            x-kubernetes-validations:
            - {rule: "!has(self.low) || self.low <= self.size", messageExpression: "'low is above ' + 'size'", reason: FieldValueForbidden, fieldPath: .low}
            - {rule: "self.size >= oldSelf.size", message: size cannot shrink}
            properties:
              size: {type: integer, minimum: 1, maximum: 100}
              low: {type: integer}
              replicas: {type: integer}
              color: {type: string, default: red, enum: [red, blue]}
              when: {type: string, format: date-time}
              port: {x-kubernetes-int-or-string: true}
              note: {type: string, nullable: true}
              plain: {type: string}
              name: {type: string, maxLength: 5}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              tags: {type: array, x-kubernetes-list-type: set, items: {type: string}}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, port: {type: integer, default: 80}}}
              template: {type: object, x-kubernetes-embedded-resource: true, properties: {spec: {type: object, properties: {a: {type: string}}}}}
          status:
            type: object
            properties: {replicas: {type: integer}, selector: {type: string}, phase: {type: string, maxLength: 3}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    additionalPrinterColumns: [{name: Colour, type: string, jsonPath: .spec.color}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
  - name: v1alpha1
    served: false
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const (
	inV1   = "/apis/example.com/v1/namespaces/default/gadgets"
	inBeta = "/apis/example.com/v1beta1/namespaces/default/gadgets"
)

// gadget is an object of v1 with a specification.
func gadget(name, spec string) string {
	return fmt.Sprintf("{apiVersion: example.com/v1, kind: Gadget, metadata: {name: %s}, spec: %s}", name, spec)
}

// yamlOf is gadget as do takes YAML: what begins with a brace is taken for JSON.
func yamlOf(name, spec string) string { return "\n" + gadget(name, spec) }

func TestInvalidObjects(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"required":      {"{}", []string{"spec.size: Required value"}},
		"minimum":       {"{size: 0}", []string{"spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"}},
		"enum":          {"{size: 1, color: green}", []string{`spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"`}},
		"type":          {"{size: x}", []string{`spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"`}},
		"length":        {"{size: 1, name: toolong}", []string{"spec.name: Too long: may not be more than 5 bytes"}},
		"format":        {"{size: 1, when: yesterday}", []string{"spec.when in body must be of type date-time"}},
		"int or string": {"{size: 1, port: [1]}", []string{"spec.port"}},
		"set":           {"{size: 1, tags: [a, a]}", []string{`spec.tags[1]: Duplicate value: \"a\"`}},
		"list map":      {"{size: 1, ports: [{name: a}, {name: a}]}", []string{`spec.ports[1]: Duplicate value`}},
		"embedded":      {"{size: 1, template: {spec: {a: b}}}", []string{"spec.template.apiVersion: Required value", "spec.template.kind: Required value"}},
		"rule":          {"{size: 1, low: 2}", []string{"spec.low: Forbidden: low is above size"}},
		"rules not run": {"{size: 1, low: 2, color: green}", []string{"some validation rules were not checked because the object was invalid; correct the existing errors to complete validation", "!is above size"}},
		"replicas":      {"{size: 1, replicas: -1}", []string{".spec.replicas: Invalid value: -1: should be a non-negative integer"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			w.want(422, "POST", inV1, yamlOf("a", c.spec), c.want...)
		})
	}
	w.want(400, "POST", inV1, "\n{apiVersion: example.com/v1, kind: Gadget, metadata: {name: a, labels: {a: 1}}, spec: {size: 1}}", "cannot be handled as a Gadget")
	w.want(422, "POST", inV1, yamlOf("A_b", "{size: 1}"), "metadata.name")
	w.want(400, "POST", inV1, "\n{apiVersion: example.com/v1beta1, kind: Gadget, metadata: {name: a}}", "does not match the expected API version")
}

func TestFields(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	spec := "{size: 1, extra: 1, note: null, plain: null, free: {x: 1}, ports: [{name: a, odd: 1}], template: {apiVersion: v1, kind: Pod, metadata: {name: p, odd: 1}}}"
	w.want(400, "POST", inV1+"?fieldValidation=Strict", yamlOf("a", spec),
		`strict decoding error: `, `unknown field \"spec.extra\"`, `unknown field \"spec.ports[0].odd\"`, `unknown field \"spec.template.metadata.odd\"`)
	w.want(400, "POST", inV1+"?fieldValidation=Strict", `{"apiVersion":"example.com/v1","kind":"Gadget","metadata":{"name":"a","nope":1},"spec":{"size":1,"size":2}}`,
		`duplicate field \"spec.size\"`, `unknown field \"metadata.nope\"`)
	w.want(201, "POST", inV1+"?fieldValidation=Ignore", yamlOf("ignored", spec), "!299")
	w.want(201, "POST", inV1, yamlOf("a", spec), `unknown field`, `!"extra"`, `"note":null`, `!"plain"`, `"free":{"x":1}`,
		`"port":80`, `!"odd"`, `"color":"red"`, `"generation":1`)
	w.want(201, "POST", inV1, "\n{apiVersion: example.com/v1, kind: Gadget, metadata: {name: f, finalizers: [mine]}, spec: {size: 1}}",
		"prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers")
	w.want(200, "PATCH", inV1+"/a", `{"spec":{"extra":2,"size":2}}`, `unknown field`, `!"extra"`, `"generation":2`)
	w.want(422, "PATCH", inV1+"/a?fieldValidation=Strict", `{"spec":{"extra":2}}`, `unknown field`)
	w.want(422, "PATCH", inV1+"/a", `{"spec":{"size":1}}`, "size cannot shrink")
	w.want(200, "PATCH", inV1+"/a", `{"metadata":{"labels":{"a":"b"}}}`, `"generation":2`)
}

func TestSubresources(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, "\n{apiVersion: example.com/v1, kind: Gadget, metadata: {name: a}, spec: {size: 1}, status: {phase: x}}", `!"status"`)
	w.want(500, "GET", inV1+"/a/scale", "", `the spec replicas field \".spec.replicas\" does not exist`)
	w.want(200, "PATCH", inV1+"/a/scale", `{"spec":{"replicas":3}}`, `"replicas":3`)
	w.want(200, "PATCH", inV1+"/a/status", `{"spec":{"size":9},"status":{"phase":"up","replicas":2,"selector":"a=b","odd":1}}`,
		`"phase":"up"`, `"size":1`, `"generation":2`, `!"odd":`)
	w.want(422, "PATCH", inV1+"/a/status", `{"status":{"phase":"long"}}`, "status.phase: Too long")
	w.want(200, "GET", inV1+"/a/scale", "", `"kind":"Scale"`, `"spec":{"replicas":3}`, `"status":{"replicas":2,"selector":"a=b"}`)
	w.want(200, "PATCH", inV1+"/a", `{"status":{"phase":"no"}}`, `"phase":"up"`)
	w.want(404, "GET", inBeta+"/a/status", "", "")
	w.want(404, "GET", inBeta+"/a/scale", "", "")
}

func TestSelectors(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 1, color: red}"))
	w.want(201, "POST", inV1, yamlOf("b", "{size: 2, color: blue}"))
	w.want(200, "GET", inV1+"?fieldSelector=spec.color%3Dblue", "", `"name":"b"`, `!"name":"a"`, `"kind":"GadgetList"`)
	w.want(200, "GET", inV1+"?fieldSelector=spec.size%3D1", "", `"name":"a"`, `!"name":"b"`)
	w.want(400, "GET", inV1+"?fieldSelector=spec.low%3D1", "", "field label not supported: spec.low")
	w.want(200, "GET", "/apis/example.com/v1/gadgets", "", `"name":"a"`, `"name":"b"`)
}

func TestTable(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 7, ports: [{name: http}]}"))
	as := func(path string) string {
		return w.send("GET", path, "", "application/json", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").Body.String()
	}
	if got := as(inV1); !strings.Contains(got, `"cells":["a",7,"http","0s"]`) || !strings.Contains(got, `"name":"First","type":"string","format":"","description":"Custom resource definition column (in JSONPath format): .spec.ports[0].name","priority":1`) {
		t.Error(got)
	}
	if got := as(inBeta + "/a"); !strings.Contains(got, `"cells":["a","red"]`) {
		t.Error(got)
	}
}

func TestVersions(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 1}"))
	w.want(200, "GET", inBeta+"/a", "", `"apiVersion":"example.com/v1beta1"`, `example.com/v1beta1 Gadget is deprecated; use example.com/v1 Gadget`)
	w.want(200, "GET", inBeta, "", `"apiVersion":"example.com/v1beta1"`, `!"apiVersion":"example.com/v1","kind"`, `"kind":"GadgetList"`)
	// The storage version prunes, and defaults when it is read; its rules are not asked.
	w.want(201, "POST", inBeta, "\n{apiVersion: example.com/v1beta1, kind: Gadget, metadata: {name: b}, spec: {size: 0, odd: 1}}", `!"odd":1`, `"color":"red"`)
	w.want(200, "GET", inV1+"/b", "", `"size":0`, `!"odd"`, `"color":"red"`)
	w.want(404, "GET", "/apis/example.com/v1alpha1/namespaces/default/gadgets", "", "")
	if k := w.registry.ByName("gadgets.example.com"); k.Versions[0].Name != "v1" || k.Versions[2].Name != "v1alpha1" {
		t.Error("versions are not in order of preference")
	}
}

func TestStorageVersionMoves(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 1}"))
	w.redefine("gadgets.example.com", func(d *apiextensionsv1.CustomResourceDefinition) {
		d.Spec.Versions[0].Storage, d.Spec.Versions[1].Storage = false, true
	})
	stored := func() string {
		return w.store.Snapshot().Get(keyOf("a")).Object.(interface{ GetAPIVersion() string }).GetAPIVersion()
	}
	w.want(200, "GET", inV1+"/a", "", `"apiVersion":"example.com/v1"`)
	if got := stored(); got != "example.com/v1" {
		t.Errorf("stored in %s before it is written", got)
	}
	// A write without a change migrates.
	w.want(200, "PATCH", inV1+"/a", `{}`, `"generation":1`)
	if got := stored(); got != "example.com/v1beta1" {
		t.Errorf("stored in %s after it was written", got)
	}
	w.want(200, "GET", definitions+"/gadgets.example.com", "", `"storedVersions":["v1","v1beta1"]`)
	// A version that objects are stored in cannot go.
	if rec := w.do("PATCH", definitions+"/gadgets.example.com", `{"spec":{"versions":[{"name":"v1beta1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`); rec.Code != 422 ||
		!strings.Contains(rec.Body.String(), "v1 was previously a storage version, and must remain in spec.versions") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestSchemaChanges(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 50, low: 3, name: abc}"))
	w.want(200, "GET", inV1+"/a", "", `"low":3`)
	w.redefine("gadgets.example.com", func(d *apiextensionsv1.CustomResourceDefinition) {
		spec := d.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		spec.XValidations = nil
		delete(spec.Properties, "low")
		spec.Properties["fresh"] = apiextensionsv1.JSONSchemaProps{Type: "string", Default: &apiextensionsv1.JSON{Raw: []byte(`"new"`)}}
		size := spec.Properties["size"]
		most := float64(10)
		size.Maximum = &most
		spec.Properties["size"] = size
		d.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"] = spec
	})
	// What is stored shows itself in the schema of today.
	w.want(200, "GET", inV1+"/a", "", `!"low"`, `"fresh":"new"`, `"size":50`)
	w.want(200, "GET", inV1, "", `!"low"`, `"fresh":"new"`)
	// Ratcheting: a bad value that does not change is let through, a changed one is not.
	w.want(200, "PATCH", inV1+"/a", `{"spec":{"name":"abd"}}`, `"name":"abd"`)
	w.want(422, "PATCH", inV1+"/a", `{"spec":{"size":51}}`, "spec.size: Invalid value: 51")
}

func TestTerminating(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 1}"))
	w.want(200, "DELETE", definitions+"/gadgets.example.com", "", "customresourcecleanup.apiextensions.k8s.io", "InstanceDeletionPending")
	w.want(403, "POST", inV1, yamlOf("b", "{size: 1}"), "create not allowed while custom resource definition is terminating")
	w.want(200, "GET", inV1+"/a", "")
	w.want(200, "DELETE", inV1+"/a", "")
	d, _ := definition(w)
	d = d.DeepCopy()
	d.Finalizers = nil
	if _, err := w.server.Writer().Update(context.Background(), "customresourcedefinitions.apiextensions.k8s.io", d, client.WriteOptions{Subresource: "status"}); err != nil {
		t.Fatal(err)
	}
	w.until("the kind is gone", func() bool { return w.do("GET", inV1, "").Code == 404 })
}

func TestBadDefinitions(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ schema, want string }{
		"no type":          {"{properties: {a: {type: string}}}", "type: Required value: must not be empty at the root"},
		"bad default":      {"{type: object, properties: {a: {type: integer, default: x}}}", "spec.validation.openAPIV3Schema.properties[a].default: Invalid value"},
		"unknown type":     {"{type: object, properties: {a: {type: text}}}", "properties[a].type: Unsupported value"},
		"unique items":     {"{type: object, properties: {a: {type: array, uniqueItems: true, items: {type: string}}}}", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"},
		"map keys":         {"{type: object, properties: {a: {type: array, x-kubernetes-list-type: map, items: {type: object}}}}", "must not be empty if x-kubernetes-list-type is map"},
		"optional key":     {"{type: object, properties: {a: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [k], items: {type: object, properties: {k: {type: string}}}}}}", "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"},
		"both properties":  {"{type: object, properties: {a: {type: object, properties: {b: {type: string}}, additionalProperties: {type: string}}}}", "additionalProperties and properties are mutual exclusive"},
		"compile":          {"{type: object, properties: {a: {type: integer}}, x-kubernetes-validations: [{rule: 'self.b > 1'}]}", "compilation failed: ERROR: <input>:1:5: undefined field 'b'"},
		"no bool":          {"{type: object, properties: {a: {type: integer}}, x-kubernetes-validations: [{rule: 'self.a + 1'}]}", "must evaluate to a bool"},
		"cost":             {"{type: object, properties: {a: {type: array, items: {type: array, items: {type: string}}}}, x-kubernetes-validations: [{rule: 'self.a.all(x, x.all(y, self.a.all(z, z.all(w, w.contains(y)))))'}]}", "estimated rule cost exceeds budget by factor of more than 100x"},
		"cost of a child":  {"{type: object, properties: {a: {type: array, items: {type: string, x-kubernetes-validations: [{rule: 'self.contains(\"x\")'}]}}}}", "estimated rule cost exceeds budget by factor of"},
		"old self":         {"{type: object, properties: {a: {type: array, items: {type: string, maxLength: 2, x-kubernetes-validations: [{rule: 'self == oldSelf'}]}, maxItems: 2}}}", "oldSelf cannot be used on the uncorrelatable portion of the schema within"},
		"field path":       {"{type: object, properties: {a: {type: integer}}, x-kubernetes-validations: [{rule: 'true', fieldPath: .b}]}", "must be a valid path"},
		"line breaks":      {"{type: object, x-kubernetes-validations: [{rule: \"true &&\\ntrue\"}]}", "message must be specified if rule contains line breaks"},
		"message type":     {"{type: object, x-kubernetes-validations: [{rule: 'true', messageExpression: '1'}]}", "messageExpression must evaluate to a string"},
		"ref":              {"{type: object, properties: {a: {$ref: x}}}", "$ref"},
		"metadata default": {"{type: object, properties: {metadata: {type: object, properties: {name: {type: string, default: x}}}}}", "default"},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			text := "\n{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: as.example.com}, spec: {group: example.com, scope: Cluster, names: {plural: as, kind: A}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: " + c.schema + "}}]}}"
			w.want(422, "POST", definitions, text, jsonText(c.want))
		})
	}
	w.want(201, "POST", definitions, "\n{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: as.example.com}, spec: {group: example.com, scope: Cluster, names: {plural: as, kind: A}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {a: {type: string, format: odd}}}}}]}}",
		`unrecognized format \"odd\"`)
}

// jsonText is a text as it stands inside of a JSON string.
func jsonText(s string) string {
	b, _ := json.Marshal(s)
	return strings.Trim(string(b), `"`)
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.define(gadgets)
	w.want(201, "POST", inV1, yamlOf("a", "{size: 1}"))
	again := restarted(t, w)
	again.want(200, "GET", inV1+"/a", "", `"size":1`)
	again.want(201, "POST", inV1, yamlOf("b", "{size: 1}"))
}
