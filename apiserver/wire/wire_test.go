package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

var podVersion = api.Version{Name: "v1", Hub: true,
	New: func() runtime.Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} }}

var podKind = &api.Kind{Kind: "Pod", Resource: "pods", Namespaced: true, Versions: []api.Version{podVersion}}

func somePods(n int) []*store.Entry {
	var out []*store.Entry
	for i := range n {
		name := fmt.Sprint("p", i)
		out = append(out, &store.Entry{Key: store.Key{Resource: "pods", Namespace: "x", Name: name}, Revision: store.Revision(i + 1), Object: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, ResourceVersion: fmt.Sprint(i + 1)},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i<>"}}},
		}})
	}
	return out
}

// TestSameAsUpstream holds the bytes to those of upstream's serializers.
func TestSameAsUpstream(t *testing.T) {
	v := NewView(podKind, &podKind.Versions[0], nil)
	pods := somePods(3)
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
	for _, e := range pods {
		list.Items = append(list.Items, *e.Object.(*corev1.Pod))
	}
	one := pods[0].Object.(*corev1.Pod).DeepCopy()
	one.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	for _, test := range []struct {
		name string
		got  func() (Body, error)
		want runtime.Object
	}{
		{"one", func() (Body, error) { return v.One(JSON, pods[0]) }, one},
		{"list", func() (Body, error) { return v.Many(JSON, list.ListMeta, pods) }, list},
	} {
		body, err := test.got()
		if err != nil {
			t.Fatal(err)
		}
		want := new(bytes.Buffer)
		if err := json.NewEncoder(want).Encode(test.want); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body.Bytes(), want.Bytes()) || body.Size() != want.Len() {
			t.Errorf("%s:\n got %s\nwant %s", test.name, body.Bytes(), want)
		}
	}
	upstream := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	for _, test := range []struct {
		name string
		got  func() (Body, error)
		want runtime.Object
	}{
		{"one", func() (Body, error) { return v.One(Protobuf, pods[0]) }, one},
		{"list", func() (Body, error) { return v.Many(Protobuf, list.ListMeta, pods) }, list},
	} {
		body, err := test.got()
		if err != nil {
			t.Fatal(err)
		}
		want := new(bytes.Buffer)
		if err := upstream.Encode(test.want, want); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body.Bytes(), want.Bytes()) {
			t.Errorf("protobuf %s:\n got %q\nwant %q", test.name, body.Bytes(), want)
		}
	}
}

func TestEmptyList(t *testing.T) {
	v := NewView(podKind, &podKind.Versions[0], nil)
	b, err := v.Many(JSON, metav1.ListMeta{ResourceVersion: "1"}, nil)
	if err != nil || string(b.Bytes()) != `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`+"\n" {
		t.Fatalf("%s, %v", b.Bytes(), err)
	}
}

func TestTypeMetaInFront(t *testing.T) {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "Status"}
	for _, s := range []*metav1.Status{{}, {TypeMeta: metav1.TypeMeta{Kind: "Other", APIVersion: "x/y"}, Code: 3}} {
		b, err := Object(JSON, s, gvk)
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		if err := json.Unmarshal(b.Bytes(), &out); err != nil || out["kind"] != "Status" || out["apiVersion"] != "v1" {
			t.Fatalf("%s: %v", b.Bytes(), err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	all := Offer{Transform: true}
	for _, test := range []struct {
		accept string
		offer  Offer
		want   string
	}{
		{"", all, "application/json"},
		{"*/*", all, "application/json"},
		{"application/yaml", all, "application/yaml"},
		{"text/html, application/*;q=0.5", all, "application/json"},
		{"application/vnd.kubernetes.protobuf, */*", all, "application/vnd.kubernetes.protobuf"},
		{"application/vnd.kubernetes.protobuf, application/json", Offer{NoProtobuf: true}, "application/json"},
		{"application/json;q=0.1, application/yaml;q=0.9", all, "application/yaml"},
		{"application/json;as=Table;v=v1;g=meta.k8s.io, application/json", all, "application/json Table"},
		{"application/json;as=Table;v=v1;g=meta.k8s.io, application/json", Offer{}, "application/json"},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, application/json", all, "application/json"},
		{"application/json;as=Nothing;v=v1;g=meta.k8s.io", all, "406"},
		{"text/plain", all, "406"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", test.accept)
		a, err := Negotiate(r, test.offer)
		got := a.Media.String()
		if a.As != nil {
			got += " " + a.As.Kind
		}
		if err != nil {
			got = fmt.Sprint(StatusOf(err).Code)
		}
		if got != test.want {
			t.Errorf("%q: got %s, want %s", test.accept, got, test.want)
		}
	}
}

func TestCacheBound(t *testing.T) {
	cache := &Cache{Budget: 2000}
	v := NewView(podKind, &podKind.Versions[0], cache)
	pods := somePods(100)
	for range 3 {
		for _, e := range pods {
			if _, err := v.Entry(JSON, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	size, n := cache.Size()
	if size > 2000 || n == 0 {
		t.Fatalf("%d bytes in %d encodings", size, n)
	}
	remade := false
	if _, err := pods[0].Encoding("json v1", func() ([]byte, error) { remade = true; return nil, nil }); err != nil || !remade {
		t.Fatal("the oldest encoding was kept")
	}
	cache.Drop()
	if size, n = cache.Size(); size != 0 || n != 0 {
		t.Fatalf("after Drop: %d bytes in %d encodings", size, n)
	}
}

func TestProtobufEvent(t *testing.T) {
	v := NewView(podKind, &podKind.Versions[0], nil)
	e := somePods(1)[0]
	data, err := v.Entry(Protobuf, e)
	if err != nil {
		t.Fatal(err)
	}
	frame := v.AppendEvent(nil, Protobuf, Added, data)
	if n := int(frame[0])<<24 | int(frame[1])<<16 | int(frame[2])<<8 | int(frame[3]); n != len(frame)-4 {
		t.Fatalf("frame says %d of %d", n, len(frame)-4)
	}
	var ev metav1.WatchEvent
	if err := ev.Unmarshal(frame[4:]); err != nil || ev.Type != Added {
		t.Fatalf("%+v, %v", ev, err)
	}
	out := &corev1.Pod{}
	if _, err := Decode(Protobuf, ev.Object.Raw, v.GVK, out, false, nil); err != nil || out.Name != "p0" {
		t.Fatalf("%+v, %v", out, err)
	}
}

func FuzzDecode(f *testing.F) {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	one, _ := Object(Protobuf, somePods(1)[0].Object.(*corev1.Pod), gvk)
	f.Add(one.Bytes(), uint8(Protobuf))
	two, _ := Object(JSON, somePods(1)[0].Object.(*corev1.Pod), gvk)
	f.Add(two.Bytes(), uint8(JSON))
	f.Add([]byte("a: &a [1]\nb: *a\nkind: Pod\n"), uint8(YAML))
	f.Add([]byte(strings.Repeat(`{"a":`, 2000)), uint8(JSON))
	f.Fuzz(func(t *testing.T, data []byte, media uint8) {
		into := &corev1.Pod{}
		if _, err := Decode(Media(media%3), data, gvk, into, true, nil); err != nil {
			return
		}
		// What was understood can be sent, and is understood again.
		b, err := Object(JSON, into, gvk)
		if err != nil {
			t.Skip() // quantities and times that only text can hold
		}
		if _, err := Decode(JSON, b.Bytes(), gvk, &corev1.Pod{}, false, nil); err != nil {
			t.Fatalf("%v in %s", err, b.Bytes())
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add("application/json;as=Table;v=v1;g=meta.k8s.io;q=0.3, */*;q=x")
	f.Fuzz(func(_ *testing.T, accept string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Accept"] = []string{accept}
		_, _ = Negotiate(r, Offer{Transform: true})
	})
}

func TestDeepProtobuf(t *testing.T) {
	if isRecursive(&corev1.Pod{}) || !isRecursive(&apiextensionsv1.CustomResourceDefinition{}) {
		t.Fatal("recursion of types")
	}
	crd := func(schema []byte) []byte {
		version := appendField(nil, 4, appendField(nil, 1, schema)) // schema.openAPIV3Schema
		raw := appendField(nil, 2, appendField(nil, 7, version))    // spec.versions
		gvk := apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition")
		return newBody(envelopeHead(gvk, len(raw)), raw, envelopeTail).Bytes()
	}
	decode := func(n int) error {
		const not = 26 // JSONSchemaProps.not
		var schema []byte
		for range n {
			schema = appendField(nil, not, schema)
		}
		gvk := apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition")
		_, err := Decode(Protobuf, crd(schema), gvk, &apiextensionsv1.CustomResourceDefinition{}, false, nil)
		return err
	}
	if err := decode(100); err != nil {
		t.Fatal(err)
	}
	if err := decode(5000); err == nil || !strings.Contains(err.Error(), "exceeded max depth") {
		t.Fatalf("5000 levels: %v", err)
	}
}
