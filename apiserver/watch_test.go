package apiserver

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// next reads one event.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case ev, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return ev
	case <-ctx(t).Done():
		t.Fatal("no event came")
		panic("unreachable")
	}
}

func TestWatchSelectors(t *testing.T) {
	e := start(t, smallKinds())
	eachMedia(t, e, func(t *testing.T, c *kubernetes.Clientset) {
		cms := c.CoreV1().ConfigMaps("default")
		w, err := cms.Watch(ctx(t), metav1.ListOptions{LabelSelector: "in=yes", FieldSelector: "data.color!=blue"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		cm := configMap("a", map[string]string{"color": "red"})
		step := func(label, color string) *corev1.ConfigMap {
			t.Helper()
			cm.Labels, cm.Data["color"] = map[string]string{"in": label}, color
			cm.ResourceVersion = ""
			out, err := cms.Update(ctx(t), cm, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		expect := func(want watch.EventType, color, rv string) {
			t.Helper()
			ev := next(t, w)
			got := ev.Object.(*corev1.ConfigMap)
			if ev.Type != want || got.Data["color"] != color || got.ResourceVersion != rv {
				t.Fatalf("got %s %s at %s, want %s %s at %s", ev.Type, got.Data["color"], got.ResourceVersion, want, color, rv)
			}
		}
		if _, err := cms.Create(ctx(t), cm.DeepCopy(), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(watch.Added, "red", step("yes", "red").ResourceVersion)
		expect(watch.Modified, "green", step("yes", "green").ResourceVersion)
		// What leaves the selection is shown as it was, at the revision of the change.
		expect(watch.Deleted, "green", step("yes", "blue").ResourceVersion)
		step("no", "blue")
		expect(watch.Added, "red", step("yes", "red").ResourceVersion)
		if err := cms.Delete(ctx(t), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		ev := next(t, w)
		if ev.Type != watch.Deleted || ev.Object.(*corev1.ConfigMap).Data["color"] != "red" {
			t.Fatalf("delete: %+v", ev)
		}
	})
}

func TestWatchList(t *testing.T) {
	e := start(t, smallKinds())
	eachMedia(t, e, func(t *testing.T, c *kubernetes.Clientset) {
		cms := c.CoreV1().ConfigMaps("default")
		for _, name := range []string{"a", "b"} {
			if _, err := cms.Create(ctx(t), configMap(name, nil), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cms.Delete(ctx(t), name, metav1.DeleteOptions{}) }()
		}
		yes := true
		w, err := cms.Watch(ctx(t), metav1.ListOptions{
			SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		for _, name := range []string{"a", "b"} {
			if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*corev1.ConfigMap).Name != name {
				t.Fatalf("initial event: %+v", ev)
			}
		}
		ev := next(t, w)
		mark := ev.Object.(*corev1.ConfigMap)
		if ev.Type != watch.Bookmark || mark.Annotations[metav1.InitialEventsAnnotationKey] != "true" || mark.ResourceVersion == "" {
			t.Fatalf("bookmark: %+v", ev)
		}
		if _, err := cms.Create(ctx(t), configMap("c", nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cms.Delete(ctx(t), "c", metav1.DeleteOptions{}) }()
		if ev := next(t, w); ev.Type != watch.Added || ev.Object.(*corev1.ConfigMap).Name != "c" {
			t.Fatalf("after the bookmark: %+v", ev)
		}
	})
}

func TestWatchTooOld(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	first, err := cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		first.Data = map[string]string{"i": fmt.Sprint(i)}
		first.ResourceVersion = ""
		if _, err := cms.Update(ctx(t), first, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.store.Compact(e.store.Snapshot().Revision()); err != nil {
		t.Fatal(err)
	}
	w, err := cms.Watch(ctx(t), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ev := next(t, w)
	err = apierrors.FromObject(ev.Object)
	if ev.Type != watch.Error || !apierrors.IsResourceExpired(err) || !strings.HasPrefix(err.Error(), "too old resource version: 1 (") {
		t.Fatalf("%s %v", ev.Type, err)
	}
	if _, err := cms.Watch(ctx(t), metav1.ListOptions{ResourceVersion: "x"}); !apierrors.IsInvalid(err) {
		t.Fatalf("a revision that is none: %v", err)
	}
}

func TestWatchTimeout(t *testing.T) {
	e := start(t, smallKinds())
	one := int64(1)
	w, err := e.typed.CoreV1().ConfigMaps("").Watch(ctx(t), metav1.ListOptions{TimeoutSeconds: &one, ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	for range w.ResultChan() {
	}
}

func TestChunks(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	e.namespace("other")
	for i := range 10 {
		cm := configMap(fmt.Sprintf("c%02d", i), nil)
		ns := []string{"default", "other"}[i%2]
		if _, err := e.typed.CoreV1().ConfigMaps(ns).Create(ctx(t), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	all := e.typed.CoreV1().ConfigMaps("")
	list, err := all.List(ctx(t), metav1.ListOptions{Limit: 3})
	if err != nil || len(list.Items) != 3 || list.Continue == "" || *list.RemainingItemCount != 7 {
		t.Fatalf("first chunk: %+v, %v", list.ListMeta, err)
	}
	// What happens between chunks is not seen.
	if err := cms.Delete(ctx(t), "c06", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Create(ctx(t), configMap("c07b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rv := list.ResourceVersion
	var names []string
	for {
		for _, cm := range list.Items {
			names = append(names, cm.Namespace+"/"+cm.Name)
		}
		if list.Continue == "" {
			break
		}
		if list, err = all.List(ctx(t), metav1.ListOptions{Limit: 3, Continue: list.Continue}); err != nil {
			t.Fatal(err)
		}
		if list.ResourceVersion != rv {
			t.Fatalf("chunk at %s, the first at %s", list.ResourceVersion, rv)
		}
	}
	want := "default/c00 default/c02 default/c04 default/c06 default/c08 other/c01 other/c03 other/c05 other/c07 other/c09"
	if got := strings.Join(names, " "); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	if _, err := all.List(ctx(t), metav1.ListOptions{Continue: "x"}); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "continue key is not valid") {
		t.Fatalf("bad token: %v", err)
	}
}

func TestChunksExpire(t *testing.T) {
	e := start(t, smallKinds())
	for i := range 4 {
		if _, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), configMap(fmt.Sprint("c", i), nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// A token of a revision that nobody holds and the store has forgotten.
	old := `{"v":"meta.k8s.io/v1","rv":1,"start":"c1\u0000"}`
	if err := e.store.Compact(e.store.Snapshot().Revision()); err != nil {
		t.Fatal(err)
	}
	_, err := e.typed.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{Limit: 2, Continue: rawURL(old)})
	status, ok := err.(apierrors.APIStatus)
	if !ok || !apierrors.IsResourceExpired(err) || status.Status().ListMeta.Continue == "" {
		t.Fatalf("expired token: %v", err)
	}
	list, err := e.typed.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{Limit: 2, Continue: status.Status().ListMeta.Continue})
	if err != nil || len(list.Items) != 2 || list.Items[0].Name != "c2" {
		t.Fatalf("going on in the present: %+v, %v", list, err)
	}
}

func TestRevisions(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	a, err := cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Create(ctx(t), configMap("b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := cms.List(ctx(t), metav1.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if err != nil || len(list.Items) != 1 || list.ResourceVersion != a.ResourceVersion {
		t.Fatalf("exact: %+v, %v", list, err)
	}
	list, err = cms.List(ctx(t), metav1.ListOptions{ResourceVersion: a.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("not older than: %+v, %v", list, err)
	}
	_, err = cms.List(ctx(t), metav1.ListOptions{ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "resourceVersionMatch is forbidden unless resourceVersion is provided") {
		t.Fatalf("match without revision: %v", err)
	}
	err = e.typed.CoreV1().RESTClient().Get().Resource("configmaps").Param("resourceVersion", "999999").MaxRetries(0).Do(ctx(t)).Error()
	if !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Fatalf("too large: %v", err)
	}
}

func TestMetadataAndTable(t *testing.T) {
	e := start(t, smallKinds())
	cm := configMap("a", map[string]string{"k": "v"})
	cm.Labels = map[string]string{"l": "m"}
	if _, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := metadata.NewForConfig(metadata.ConfigFor(e.config))
	if err != nil {
		t.Fatal(err)
	}
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	list, err := m.Resource(gvr).List(ctx(t), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Labels["l"] != "m" {
		t.Fatalf("metadata: %+v, %v", list, err)
	}
	one, err := m.Resource(gvr).Namespace("default").Get(ctx(t), "a", metav1.GetOptions{})
	if err != nil || one.UID == "" {
		t.Fatalf("metadata of one: %+v, %v", one, err)
	}
	table := &metav1.Table{}
	err = e.typed.CoreV1().RESTClient().Get().Resource("configmaps").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(ctx(t)).Into(table)
	if err != nil || len(table.Rows) != 1 || table.Rows[0].Cells[0] != "a" || len(table.ColumnDefinitions) != 2 ||
		!bytes.Contains(table.Rows[0].Object.Raw, []byte(`"kind":"PartialObjectMetadata"`)) {
		t.Fatalf("table: %+v, %v", table, err)
	}
}

// raw makes a request without client-go.
func (e *env) raw(method, path string, header map[string]string) *http.Response {
	e.t.Helper()
	c, err := rest.HTTPClientFor(e.config)
	if err != nil {
		e.t.Fatal(err)
	}
	req, err := http.NewRequest(method, e.http.URL+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.Transport.RoundTrip(req)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestGzip(t *testing.T) {
	e := start(t, smallKinds())
	big := configMap("big", map[string]string{"k": strings.Repeat("x", 200<<10)})
	if _, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), big, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r := e.raw("GET", "/api/v1/configmaps", map[string]string{"Accept-Encoding": "gzip"})
	if r.Header.Get("Content-Encoding") != "gzip" || len(body(t, r)) > 20<<10 {
		t.Fatalf("a long list is not compressed: %v", r.Header)
	}
	r = e.raw("GET", "/api/v1/namespaces", map[string]string{"Accept-Encoding": "gzip"})
	if r.Header.Get("Content-Encoding") != "" {
		t.Fatal("a short list is compressed")
	}
}

func TestNotAcceptable(t *testing.T) {
	e := start(t, smallKinds())
	r := e.raw("GET", "/api/v1/configmaps", map[string]string{"Accept": "text/html"})
	text := body(t, r)
	if r.StatusCode != http.StatusNotAcceptable || !strings.Contains(text, "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf") {
		t.Fatalf("%d %s", r.StatusCode, text)
	}
}

func TestSnapshotSharedWithWriter(t *testing.T) {
	e := start(t, smallKinds())
	out, err := e.Writer().Create(ctx(t), "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}, client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := e.store.Snapshot().Get(store.Key{Resource: "configmaps", Namespace: "default", Name: "a"})
	if have == nil || have.Object != any(out) {
		t.Fatal("the writer returned another object than readers see")
	}
}
