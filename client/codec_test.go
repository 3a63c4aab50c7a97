package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
	"coracle.dev/coracle/store/pebble"
)

// testScheme has every type of k8s.io/api and CustomResourceDefinition.
var testScheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// storable are the kinds with metadata in the newest version of their group, by name.
func storable() map[string]schema.GroupVersionKind {
	kinds := map[string]schema.GroupVersionKind{}
	for gvk := range testScheme.AllKnownTypes() {
		obj, err := testScheme.New(gvk)
		if _, ok := obj.(api.Object); err != nil || !ok || gvk.Version == runtime.APIVersionInternal {
			continue
		}
		gk := gvk.GroupKind().String()
		if old, ok := kinds[gk]; !ok || len(gvk.Version) < len(old.Version) || gvk.Version > old.Version && len(gvk.Version) == len(old.Version) {
			kinds[gk] = gvk
		}
	}
	return kinds
}

func resourceOf(gvk schema.GroupVersionKind) string {
	return schema.GroupResource{Group: gvk.Group, Resource: strings.ToLower(gvk.Kind) + "s"}.String()
}

func kindOf(gvk schema.GroupVersionKind) *api.Kind {
	return &api.Kind{
		Group: gvk.Group, Kind: gvk.Kind, Resource: strings.ToLower(gvk.Kind) + "s",
		Versions: []api.Version{{Name: gvk.Version, Hub: true, New: func() runtime.Object {
			obj, _ := testScheme.New(gvk)
			return obj
		}}},
	}
}

func testRegistry() *api.Registry {
	var kinds []*api.Kind
	for _, gvk := range storable() {
		kinds = append(kinds, kindOf(gvk))
	}
	return api.NewRegistry(kinds...)
}

func testCodec() store.Codec { return StoreOptions(testRegistry(), 0).Codec }

// TestCodecIsUpstreams fills objects of every kind at random and compares the stored bytes
// with those that upstream's serializer makes, and what comes back with what went in.
func TestCodecIsUpstreams(t *testing.T) {
	codec := testCodec()
	theirs := protobuf.NewSerializer(testScheme, testScheme)
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), serializer.NewCodecFactory(testScheme)).
		Funcs(func(s *apiextensionsv1.JSONSchemaProps, c randfill.Continue) { // contains itself
			c.Fill(&s.Description)
			s.Properties = map[string]apiextensionsv1.JSONSchemaProps{"spec": {Type: "object"}}
		})
	kinds := storable()
	if len(kinds) < 70 {
		t.Fatalf("only %d kinds", len(kinds))
	}
	for _, gvk := range kinds {
		key := store.Key{Resource: resourceOf(gvk), Namespace: "ns", Name: "name"}
		for range 5 {
			made, err := testScheme.New(gvk)
			if err != nil {
				t.Fatal(err)
			}
			fill.Fill(made)
			obj := made.(api.Object)
			obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
			obj.SetSelfLink("")
			obj.SetResourceVersion("42")
			data, err := codec.Encode(key, obj)
			if err != nil {
				t.Fatalf("%s: %v", gvk, err)
			}
			if obj.GetResourceVersion() != "42" {
				t.Fatalf("%s: Encode changed its argument", gvk)
			}
			obj.SetResourceVersion("")
			obj.GetObjectKind().SetGroupVersionKind(gvk)
			var want bytes.Buffer
			if err := theirs.Encode(obj, &want); err != nil {
				t.Fatalf("%s: %v", gvk, err)
			}
			if !bytes.Equal(data, want.Bytes()) {
				t.Fatalf("%s: the bytes are not upstream's:\n%q\n%q", gvk, data, want.Bytes())
			}
			obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
			back, err := codec.Decode(key, data)
			if err != nil {
				t.Fatalf("%s: %v", gvk, err)
			}
			decoded, _, err := theirs.Decode(want.Bytes(), nil, nil)
			if err != nil {
				t.Fatalf("%s: %v", gvk, err)
			}
			decoded.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
			if !equality.Semantic.DeepEqual(back, decoded) {
				t.Fatalf("%s: decoded otherwise than upstream", gvk)
			}
			var again bytes.Buffer
			decoded.(api.Object).GetObjectKind().SetGroupVersionKind(gvk)
			if err := theirs.Encode(decoded, &again); err != nil {
				t.Fatal(err)
			}
			if data, err := codec.Encode(key, back); err != nil || !bytes.Equal(data, again.Bytes()) {
				t.Fatalf("%s: encoded again: %v", gvk, err)
			}
		}
	}
}

func TestCodecUnstructured(t *testing.T) {
	reg := testRegistry()
	codec := StoreOptions(reg, 0).Codec
	key := store.Key{Resource: "boats.example.com", Namespace: "ns", Name: "b"}
	obj := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Boat",
		"metadata": map[string]any{"name": "b", "resourceVersion": "7"},
		"spec":     map[string]any{"oars": int64(2), "length": 1.5, "big": int64(1) << 60},
	}}
	check := func(when string) {
		t.Helper()
		data, err := codec.Encode(key, obj)
		if err != nil {
			t.Fatal(err)
		}
		if data[0] != '{' || bytes.Contains(data, []byte("resourceVersion")) {
			t.Errorf("%s: stored as %s", when, data)
		}
		if obj.GetResourceVersion() != "7" {
			t.Errorf("%s: Encode changed its argument", when)
		}
		back, err := codec.Decode(key, data)
		if err != nil {
			t.Fatal(err)
		}
		want := obj.DeepCopy()
		want.SetResourceVersion("")
		unstructured.RemoveNestedField(want.Object, "metadata", "resourceVersion")
		if !reflect.DeepEqual(back, want) {
			t.Errorf("%s: got %v, want %v", when, back, want)
		}
	}
	check("before the kind is known")
	newBoat := func() runtime.Object { return &unstructured.Unstructured{} }
	boat := &api.Kind{Group: "example.com", Kind: "Boat", Resource: "boats", Versions: []api.Version{{Name: "v2", Hub: true, New: newBoat}}}
	if err := reg.Add(boat); err != nil {
		t.Fatal(err)
	}
	check("stored in a version that is gone")
	reg.Remove(boat.Name())
	boat.Versions = append(boat.Versions, api.Version{Name: "v1", New: newBoat, ToHub: func(o runtime.Object) (api.Object, error) {
		u := o.DeepCopyObject().(*unstructured.Unstructured)
		u.SetAPIVersion("example.com/v2")
		return u, nil
	}})
	if err := reg.Add(boat); err != nil {
		t.Fatal(err)
	}
	data, _ := codec.Encode(key, obj)
	back, err := codec.Decode(key, data)
	if err != nil || back.(*unstructured.Unstructured).GetAPIVersion() != "example.com/v2" {
		t.Errorf("stored in an older version: %v, %v", back, err)
	}
}

// plain is a type without generated protobuf code.
type plain struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Text              string `json:"text"`
}

func (p *plain) DeepCopyObject() runtime.Object { c := *p; return &c }

func TestCodecJSON(t *testing.T) {
	codec := StoreOptions(api.NewRegistry(&api.Kind{Group: "g", Kind: "Plain", Resource: "plains",
		Versions: []api.Version{{Name: "v1", Hub: true, New: func() runtime.Object { return &plain{} }}}}), 0).Codec
	key := store.Key{Resource: "plains.g", Name: "x"}
	obj := &plain{ObjectMeta: metav1.ObjectMeta{Name: "x", ResourceVersion: "3"}, Text: "t"}
	data, err := codec.Encode(key, obj)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"kind":"Plain","apiVersion":"g/v1","metadata":{"name":"x"},"text":"t"}`; string(data) != want {
		t.Errorf("stored as %s", data)
	}
	back, err := codec.Decode(key, data)
	obj.ResourceVersion = ""
	if err != nil || !reflect.DeepEqual(back, obj) {
		t.Errorf("got %+v, %v", back, err)
	}
}

// TestCodecOthers decodes what other writers may have stored, and refuses what it does not know.
func TestCodecOthers(t *testing.T) {
	gvk := corev1.SchemeGroupVersion.WithKind("Pod")
	pod := kindOf(gvk)
	pod.Versions = append(pod.Versions, api.Version{Name: "v0", New: func() runtime.Object { return &corev1.PodTemplate{} },
		ToHub: func(o runtime.Object) (api.Object, error) {
			return &corev1.Pod{ObjectMeta: o.(*corev1.PodTemplate).ObjectMeta}, nil
		}})
	shadow := kindOf(schema.GroupVersionKind{Group: "other", Version: "v1", Kind: "Pod"})
	shadow.StoredAs = pod.Name()
	codec := StoreOptions(api.NewRegistry(pod, shadow), 0).Codec
	raw, err := (&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	envelope := func(u runtime.Unknown) []byte {
		data, err := u.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte("k8s\x00"), data...)
	}
	meta := runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	for _, c := range []struct {
		name, resource string
		data           []byte
		err            string
	}{
		{"as we write", "pods", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw}), ""},
		{"content type", "pods", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw, ContentType: "application/x"}), ""},
		{"older version", "pods", envelope(runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v0", Kind: "Pod"}, Raw: raw}), ""},
		{"another's storage", "pods.other", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw}), ""},
		{"JSON", "pods", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`), ""},
		{"encoded content", "pods", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw, ContentEncoding: "gzip"}), "content encoding"},
		{"another kind", "pods", envelope(runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Node"}, Raw: raw}), "not a version"},
		{"another version", "pods", envelope(runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v9", Kind: "Pod"}, Raw: raw}), "not a version"},
		{"unregistered", "boats", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw}), "not registered"},
		{"cut off", "pods", envelope(runtime.Unknown{TypeMeta: meta, Raw: raw})[:20], "EOF"},
		{"empty", "pods", nil, "neither"},
		{"YAML", "pods", []byte("a: b"), "neither"},
	} {
		obj, err := codec.Decode(store.Key{Resource: c.resource, Name: "x"}, c.data)
		if c.err == "" {
			if p, ok := obj.(*corev1.Pod); err != nil || !ok || p.Name != "x" || p.Kind != "" {
				t.Errorf("%s: %v, %v", c.name, obj, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, %v", c.name, obj, err)
		}
	}
}

// TestStoreOptions uses the options in a store: stamps, indexes and deletes.
func TestStoreOptions(t *testing.T) {
	pods := kindOf(corev1.SchemeGroupVersion.WithKind("Pod"))
	pods.Indexes = map[string]func(api.Object) []string{
		"node": api.Values(func(p *corev1.Pod) []string { return []string{p.Spec.NodeName} }),
	}
	s := memory.New(StoreOptions(api.NewRegistry(pods), 0))
	defer s.Close()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p",
		OwnerReferences: []metav1.OwnerReference{{UID: "u1"}, {UID: "u2"}}}, Spec: corev1.PodSpec{NodeName: "n"}}
	boat := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "b",
		"ownerReferences": []any{map[string]any{"uid": "u1", "name": "o", "kind": "K", "apiVersion": "v1"}}}}}
	podKey, boatKey := store.Key{Resource: "pods", Namespace: "ns", Name: "p"}, store.Key{Resource: "boats.example.com", Name: "b"}
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: podKey, Object: pod}, {Key: boatKey, Object: boat}}}); err != nil {
		t.Fatal(err)
	}
	snapshot := s.Snapshot()
	for _, c := range []struct {
		resource, index, value string
		want                   int
	}{
		{"pods", "node", "n", 1}, {"pods", "node", "", 0}, {"pods", OwnerIndex, "u1", 1}, {"pods", OwnerIndex, "u2", 1},
		{"pods", OwnerIndex, "u3", 0}, {"boats.example.com", OwnerIndex, "u1", 1},
	} {
		got := 0
		for range snapshot.Index(c.resource, c.index, c.value) {
			got++
		}
		if got != c.want {
			t.Errorf("%v: %d objects", c, got)
		}
	}
	cursor, err := s.Cursor(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: podKey, Delete: true, Expect: 1}, {Key: boatKey, Delete: true, Expect: 1}}}); err != nil {
		t.Fatal(err)
	}
	events, err := cursor.Poll()
	if err != nil || len(events) != 2 {
		t.Fatal(events, err)
	}
	for _, ev := range events {
		now, before := ev.Entry.Object.(api.Object).GetResourceVersion(), ev.Prev.Object.(api.Object).GetResourceVersion()
		if now != "2" || before != "1" {
			t.Errorf("%s: deleted at %s, before %s", ev.Entry.Key, now, before)
		}
	}
}

// FuzzDecode gives Decode any bytes: it returns an object that can be stored again to the
// same effect, or an error, and never panics.
func FuzzDecode(f *testing.F) {
	codec := testCodec()
	key := store.Key{Resource: "pods", Namespace: "ns", Name: "p"}
	data, err := codec.Encode(key, samplePod())
	if err != nil {
		f.Fatal(err)
	}
	f.Add("pods", data)
	f.Add("pods", data[:len(data)-1])
	f.Add("pods", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","creationTimestamp":null}}`))
	f.Add("boats.example.com", []byte(`{"apiVersion":"example.com/v1","kind":"Boat","metadata":{"name":"x"},"a":[1,2.5,"x"]}`))
	f.Add("nodes", []byte("k8s\x00\x0a\x02\x0a\x00\x12\x7f"))
	f.Fuzz(func(t *testing.T, resource string, data []byte) {
		key := store.Key{Resource: resource, Name: "x"}
		obj, err := codec.Decode(key, data)
		if err != nil {
			return
		}
		once, err := codec.Encode(key, obj)
		if err != nil {
			t.Skip() // JSON can hold metadata that is none
		}
		back, err := codec.Decode(key, once)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		twice, err := codec.Encode(key, back)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("encoded twice: %v\n%q\n%q", err, once, twice)
		}
	})
}

// samplePod is a pod of ordinary size, as a deployment's looks when it runs.
func samplePod() *corev1.Pod {
	now := metav1.Unix(1_700_000_000, 0)
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-7d4b9c6f5d-x2x7k", GenerateName: "web-7d4b9c6f5d-", Namespace: "default",
			UID: "0f9c2c1e-3c5e-4c57-8f6a-0a4d6f3b2c11", ResourceVersion: "123", CreationTimestamp: now,
			Labels:          map[string]string{"app": "web", "pod-template-hash": "7d4b9c6f5d"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7d4b9c6f5d", UID: "1", Controller: &yes, BlockOwnerDeletion: &yes}},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", Time: &now, FieldsType: "FieldsV1",
				FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{},"f:name":{}}}}}`)}}},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "default", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			Containers: []corev1.Container{{Name: "web", Image: "registry.example/web:1", ImagePullPolicy: corev1.PullIfNotPresent,
				Ports:        []corev1.ContainerPort{{ContainerPort: 80, Protocol: corev1.ProtocolTCP}},
				VolumeMounts: []corev1.VolumeMount{{Name: "token", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.1.2.3", HostIP: "192.168.1.2", StartTime: &now,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now},
			},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "web", Ready: true, Image: "registry.example/web:1",
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}},
		},
	}
}

func BenchmarkEncodePod(b *testing.B) {
	codec, pod, key := testCodec(), samplePod(), store.Key{Resource: "pods", Namespace: "default", Name: "p"}
	b.ReportAllocs()
	for range b.N {
		if _, err := codec.Encode(key, pod); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodePod(b *testing.B) {
	codec, pod, key := testCodec(), samplePod(), store.Key{Resource: "pods", Namespace: "default", Name: "p"}
	data, err := codec.Encode(key, pod)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for range b.N {
		if _, err := codec.Decode(key, data); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen10000Pods opens and closes a durable store of 10,000 pods.
func BenchmarkOpen10000Pods(b *testing.B) { benchmarkOpen(b, 10_000) }

// BenchmarkOpenEmpty opens a store in a new directory, and closes it.
func BenchmarkOpenEmpty(b *testing.B) { benchmarkOpen(b, 0) }

func benchmarkOpen(b *testing.B, pods int) {
	opts := StoreOptions(testRegistry(), 0)
	open := func(dir string) store.Store {
		s, err := pebble.Open(dir, opts, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	dir := b.TempDir()
	if pods > 0 {
		s := open(dir)
		for i := range pods {
			name := fmt.Sprint("pod-", i)
			key := store.Key{Resource: "pods", Namespace: fmt.Sprint("ns-", i%20), Name: name}
			pod := samplePod()
			pod.Name, pod.Namespace = name, key.Namespace
			if _, _, err := s.Commit(b.Context(), store.Txn{Relaxed: i%100 != 0, Ops: []store.Op{{Key: key, Object: pod}}}); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for range b.N {
		if pods == 0 {
			dir = b.TempDir()
		}
		s := open(dir)
		b.StopTimer()
		if n := s.Snapshot().Count("pods", ""); n != pods {
			b.Fatal(n)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
