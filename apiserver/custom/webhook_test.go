package custom_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// converter is a conversion webhook: v1 has spec.host and spec.port, v2 has spec.address.
type converter struct {
	*httptest.Server
	calls, objects atomic.Int64
	// spoil, if not nil, changes an answer before it is sent.
	spoil func(response map[string]any)
}

func newConverter(t testing.TB) *converter {
	c := &converter{}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(c.serve))
	t.Cleanup(c.Close)
	return c
}

func (c *converter) serve(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	var review map[string]any
	_ = json.Unmarshal(data, &review)
	request := review["request"].(map[string]any)
	c.calls.Add(1)
	var converted []any
	for _, o := range request["objects"].([]any) {
		c.objects.Add(1)
		converted = append(converted, c.convert(o.(map[string]any), request["desiredAPIVersion"].(string)))
	}
	response := map[string]any{"uid": request["uid"], "convertedObjects": converted, "result": map[string]any{"status": "Success"}}
	if c.spoil != nil {
		c.spoil(response)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response})
}

func (c *converter) convert(o map[string]any, to string) map[string]any {
	o["apiVersion"] = to
	spec, _ := o["spec"].(map[string]any)
	if spec == nil {
		return o
	}
	if strings.HasSuffix(to, "/v2") {
		spec["address"] = fmt.Sprintf("%v:%v", spec["host"], spec["port"])
		delete(spec, "host")
		delete(spec, "port")
		return o
	}
	host, port, _ := strings.Cut(fmt.Sprint(spec["address"]), ":")
	spec["host"], spec["port"] = host, port
	delete(spec, "address")
	return o
}

// converted is a definition whose objects c converts.
func (c *converter) definition() string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	bundle, _ := json.Marshal(ca)
	return fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: peers.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: peers, kind: Peer}
  conversion: {strategy: Webhook, webhook: {conversionReviewVersions: [v1], clientConfig: {url: %q, caBundle: %s}}}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {host: {type: string}, port: {type: string}}}}}}}
  - name: v2
    served: true
    storage: false
    selectableFields: [{jsonPath: .spec.address}]
    additionalPrinterColumns: [{name: Address, type: string, jsonPath: .spec.address}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {address: {type: string, pattern: '^[a-z]+:[0-9]+$'}}}}}}
`, c.URL, bundle)
}

const peers = "/apis/example.com/%s/namespaces/default/peers"

func peerPath(version string) string { return fmt.Sprintf(peers, version) }

func TestConversionWebhook(t *testing.T) {
	w, c := newWorld(t), newConverter(t)
	w.define(c.definition())
	v1, v2 := peerPath("v1"), peerPath("v2")
	w.want(201, "POST", v1, "\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: a}, spec: {host: x, port: '1'}}", `"host":"x"`)
	w.want(200, "GET", v2+"/a", "", `"address":"x:1"`, `"apiVersion":"example.com/v2"`, `!"host":`)
	// Validation is that of the version of the request.
	w.want(422, "POST", v2, "\n{apiVersion: example.com/v2, kind: Peer, metadata: {name: b}, spec: {address: X}}", "spec.address")
	w.want(201, "POST", v2, "\n{apiVersion: example.com/v2, kind: Peer, metadata: {name: b}, spec: {address: 'y:2'}}", `"address":"y:2"`)
	w.want(200, "GET", v1+"/b", "", `"host":"y"`, `"port":"2"`)
	w.want(200, "PATCH", v2+"/a", `{"spec":{"address":"z:3"}}`, `"address":"z:3"`, `"generation":2`)
	w.want(200, "GET", v1+"/a", "", `"host":"z"`)
	w.want(200, "GET", v2+"?fieldSelector=spec.address%3Dy:2", "", `"name":"b"`, `!"name":"a"`)
	table := w.send("GET", v2, "", "application/json", "application/json;as=Table;v=v1;g=meta.k8s.io").Body.String()
	if !strings.Contains(table, `"cells":["a","z:3"]`) {
		t.Error(table)
	}
}

// A list asks once for all objects that were not asked about before, and the answer is kept.
func TestConversionIsBatched(t *testing.T) {
	w, c := newWorld(t), newConverter(t)
	w.define(c.definition())
	for i := range 20 {
		w.want(201, "POST", peerPath("v1"), fmt.Sprintf("\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: p%d}, spec: {host: x, port: '1'}}", i))
	}
	if n := c.calls.Load(); n != 0 {
		t.Errorf("%d calls while nothing is to be converted", n)
	}
	w.want(200, "GET", peerPath("v2"), "", `"address":"x:1"`)
	w.want(200, "GET", peerPath("v2"), "", `"address":"x:1"`)
	if calls, objects := c.calls.Load(), c.objects.Load(); calls != 1 || objects != 20 {
		t.Errorf("%d objects in %d calls, want 20 in 1", objects, calls)
	}
}

func TestConversionFailures(t *testing.T) {
	w, c := newWorld(t), newConverter(t)
	w.define(c.definition())
	w.want(201, "POST", peerPath("v1"), "\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: a, labels: {k: v}}, spec: {host: x, port: '1'}}")
	object := func(r map[string]any) map[string]any { return r["convertedObjects"].([]any)[0].(map[string]any) }
	meta := func(r map[string]any) map[string]any { return object(r)["metadata"].(map[string]any) }
	for name, f := range map[string]struct {
		spoil func(map[string]any)
		want  string
	}{
		"failure":    {func(r map[string]any) { r["result"] = map[string]any{"status": "Failure", "message": "no luck"} }, "conversion webhook for example.com/v1, Kind=Peer failed: no luck"},
		"uid":        {func(r map[string]any) { r["uid"] = "other" }, `failed: expected response.uid=`},
		"too few":    {func(r map[string]any) { r["convertedObjects"] = []any{} }, "conversion webhook for example.com/v1, Kind=Peer returned 0 objects, expected 1"},
		"version":    {func(r map[string]any) { object(r)["apiVersion"] = "example.com/v3" }, "returned invalid object: invalid groupVersion (expected example.com/v2, received example.com/v3)"},
		"name":       {func(r map[string]any) { meta(r)["name"] = "b" }, "must have the same name: a != b"},
		"label":      {func(r map[string]any) { meta(r)["labels"] = map[string]any{"k": "a b"} }, "returned invalid metadata: metadata.labels"},
		"no meta":    {func(r map[string]any) { delete(object(r), "metadata") }, "must have the same name"},
		"label type": {func(r map[string]any) { meta(r)["labels"] = map[string]any{"k": 1} }, "must be a string, but is"},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			c.spoil = f.spoil
			w.want(500, "GET", peerPath("v2")+"/a", "", jsonText(f.want))
		})
	}
	// Of metadata, only labels and annotations are the webhook's.
	c.spoil = func(r map[string]any) {
		meta(r)["labels"] = map[string]any{"new": "l"}
		meta(r)["generation"] = 99
		meta(r)["finalizers"] = []any{"x"}
	}
	w.want(200, "GET", peerPath("v2")+"/a", "", `"labels":{"new":"l"}`, `"generation":1`, `!"finalizers"`)
	c.Close()
	w.redefine("peers.example.com", func(d *apiextensionsv1.CustomResourceDefinition) { d.Spec.Names.ShortNames = []string{"p"} })
	w.want(500, "GET", peerPath("v2")+"/a", "", "conversion webhook for example.com/v1, Kind=Peer failed: Post")
	// What needs no conversion is served all the same.
	w.want(200, "GET", peerPath("v1")+"/a", "")
}
