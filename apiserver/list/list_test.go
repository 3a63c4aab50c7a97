package list

import (
	"net/url"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func kind() *api.Kind {
	return &api.Kind{Kind: "Pod", Resource: "pods", Namespaced: true,
		Versions: []api.Version{{Name: "v1", Hub: true, New: func() runtime.Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} }}},
		Fields:   map[string]func(api.Object) string{"spec.nodeName": func(o api.Object) string { return o.(*corev1.Pod).Spec.NodeName }},
		Indexes:  map[string]func(api.Object) []string{"node": func(o api.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }},
	}
}

func TestSelection(t *testing.T) {
	k := kind()
	st := memory.New(client.StoreOptions(api.NewRegistry(k), 0))
	defer st.Close()
	for _, p := range []struct{ ns, name, node, app string }{
		{"a", "one", "n1", "x"}, {"a", "two", "n2", "y"}, {"b", "one", "n1", "y"}, {"b", "three", "", "x"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: p.name, Labels: map[string]string{"app": p.app}}, Spec: corev1.PodSpec{NodeName: p.node}}
		_, _, err := st.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "pods", Namespace: p.ns, Name: p.name}, Object: pod}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ namespace, query, want string }{
		{"", "", "a/one a/two b/one b/three "},
		{"a", "", "a/one a/two "},
		{"", "fieldSelector=metadata.name=one", "a/one b/one "},
		{"b", "fieldSelector=metadata.name=one", "b/one "},
		{"", "fieldSelector=metadata.namespace=b", "b/one b/three "},
		{"", "fieldSelector=spec.nodeName=n1", "a/one b/one "},
		{"a", "fieldSelector=spec.nodeName=n1", "a/one "},
		{"", "fieldSelector=spec.nodeName=", "b/three "},
		{"", "fieldSelector=spec.nodeName!=n1", "a/two b/three "},
		{"", "fieldSelector=spec.nodeName=n1&labelSelector=app=y", "b/one "},
		{"", "labelSelector=app in (x,z)", "a/one b/three "},
		{"", "fieldSelector=metadata.name=none", ""},
	} {
		q, err := url.ParseQuery(test.query)
		if err != nil {
			t.Fatal(err)
		}
		o, err := ParseOptions(q, false)
		if err != nil {
			t.Fatal(err)
		}
		sel, err := Select(k, test.namespace, "", o)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for e := range sel.Walk(t.Context(), st.Snapshot(), nil) {
			got += e.Namespace + "/" + e.Name + " "
		}
		if got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.namespace, test.query, got, test.want)
		}
	}
}

func TestPinsAreBounded(t *testing.T) {
	st := memory.New(client.StoreOptions(api.NewRegistry(kind()), 0))
	defer st.Close()
	var p pins
	now := time.Unix(1000, 0)
	for i := range 2 * maxPins {
		_, _, err := st.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "pods", Namespace: "a", Name: "p"}, Expect: store.ExpectAny, Object: &corev1.Pod{}}}})
		if err != nil {
			t.Fatal(err)
		}
		p.hold(st.Snapshot(), false, now.Add(time.Duration(i)*time.Second))
	}
	if len(p.held) != maxPins {
		t.Fatalf("%d snapshots are held", len(p.held))
	}
	last := st.Snapshot().Revision()
	for range 3 { // that a list goes on does not make it last
		snap, over := p.get(last, now.Add(6*time.Minute))
		if snap == nil || over {
			t.Fatal("the newest was dropped")
		}
		p.hold(snap, true, now.Add(6*time.Minute))
	}
	if snap, over := p.get(last, now.Add(8*time.Minute)); snap != nil || !over || len(p.held) != 0 {
		t.Fatalf("after its time %v, %v, %d are held", snap, over, len(p.held))
	}
	p.hold(st.Snapshot(), false, now.Add(8*time.Minute))
	if snap, over := p.get(last, now.Add(9*time.Minute)); snap == nil || over {
		t.Fatal("a list from the beginning has no time of its own")
	}
}

func FuzzToken(f *testing.F) {
	f.Add(token{"meta.k8s.io/v1", 5, "a/b\x00"}.encode())
	f.Add("e30")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := decodeToken(s)
		if err != nil {
			return
		}
		if again, err := decodeToken(tok.encode()); err != nil || again != tok {
			t.Fatalf("%+v became %+v, %v", tok, again, err)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add("limit=5&labelSelector=a in (b)&fieldSelector=x!=y&resourceVersionMatch=Exact")
	f.Fuzz(func(_ *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		o, err := ParseOptions(q, q.Has("watch"))
		if err == nil {
			_, _ = Select(kind(), "a", "", o)
		}
	})
}
