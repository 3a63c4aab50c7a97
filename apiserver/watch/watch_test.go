package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/list"
	"coracle.dev/coracle/apiserver/table"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func kinds() (pods, maps *api.Kind) {
	pods = &api.Kind{Kind: "Pod", Resource: "pods", Namespaced: true, Versions: []api.Version{{Name: "v1", Hub: true,
		New: func() runtime.Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} }}}}
	maps = &api.Kind{Kind: "ConfigMap", Resource: "configmaps", Namespaced: true, Versions: []api.Version{{Name: "v1", Hub: true,
		New: func() runtime.Object { return &corev1.ConfigMap{} }, NewList: func() runtime.Object { return &corev1.ConfigMapList{} }}}}
	return pods, maps
}

// screen is a client that keeps what it was sent, line by line. While held it takes nothing.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	held chan struct{} // not nil while the client takes nothing; closed when it does again
}

func (s *screen) Header() http.Header { return http.Header{} }
func (s *screen) WriteHeader(int)     {}
func (s *screen) Flush()              {}
func (s *screen) Write(p []byte) (int, error) {
	if s.held != nil {
		<-s.held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// events are those received so far: type, name and revision.
func (s *screen) events(t *testing.T) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for line := range strings.SplitSeq(strings.TrimSpace(s.text.String()), "\n") {
		if line == "" {
			continue
		}
		var ev struct {
			Type   string
			Object struct {
				Metadata metav1.ObjectMeta
				Message  string
			}
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		out = append(out, strings.Join(strings.Fields(fmt.Sprint(ev.Type, " ", ev.Object.Metadata.Name, ev.Object.Message, " ", ev.Object.Metadata.ResourceVersion)), " "))
	}
	return out
}

type bed struct {
	*screen
	t     *testing.T
	store store.Store
	req   *Request
}

func newBed(t *testing.T, window int) *bed {
	pods, maps := kinds()
	st := memory.New(client.StoreOptions(api.NewRegistry(pods, maps), window))
	sel, err := list.Select(pods, "", "", list.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &bed{&screen{}, t, st, &Request{
		Store: st, Lister: &list.Lister{Store: st, Now: time.Now}, Now: time.Now, Kind: pods, Selection: sel,
		View: wire.NewView(pods, &pods.Versions[0], nil), Stop: make(chan struct{}),
	}}
}

func (b *bed) put(resource, name string) {
	var obj api.Object = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}}
	if resource == "configmaps" {
		obj = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}}
	}
	_, _, err := b.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{
		Key: store.Key{Resource: resource, Namespace: "x", Name: name}, Object: obj, Expect: store.ExpectAny}}})
	if err != nil {
		b.t.Fatal(err)
	}
}

// serve runs the watch until the test's bubble ends it.
func (b *bed) serve(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		if err := b.req.Serve(b.screen, httptest.NewRequest("GET", "/", nil).WithContext(ctx)); err != nil {
			b.t.Error(err)
		}
	}()
	return done
}

func (b *bed) expect(want ...string) {
	b.t.Helper()
	synctest.Wait()
	if got := b.events(b.t); strings.Join(got, ";") != strings.Join(want, ";") {
		b.t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func TestBookmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, 0)
		defer b.store.Close()
		b.put("pods", "a")
		b.req.Options = list.Options{ResourceVersion: "1", AllowWatchBookmarks: true, TimeoutSeconds: 600}
		done := b.serve(t.Context())
		b.put("pods", "b")
		b.expect("ADDED b 2")
		time.Sleep(2 * time.Minute)
		b.expect("ADDED b 2") // nothing new, nothing said
		for i := range 5 {
			b.put("configmaps", fmt.Sprint(i))
		}
		time.Sleep(2 * time.Minute)
		b.expect("ADDED b 2", "BOOKMARK 7")
		b.put("configmaps", "last")
		<-done // at its timeout
		b.expect("ADDED b 2", "BOOKMARK 7", "BOOKMARK 8")
	})
}

func TestSlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, 10)
		defer b.store.Close()
		b.put("pods", "a")
		b.req.Options = list.Options{ResourceVersion: "1"}
		b.held = make(chan struct{})
		done := b.serve(t.Context())
		synctest.Wait()
		for i := range 50 {
			b.put("pods", fmt.Sprint("p", i))
			if i == 0 {
				synctest.Wait() // the client is given the first, and sticks
			}
		}
		close(b.held)
		<-done
		b.expect("ADDED p0 2", "ERROR too old resource version: 2 (51)")
	})
}

func TestStopAndFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, 0)
		defer b.store.Close()
		stop := make(chan struct{})
		b.req.Stop = stop
		b.req.Options = list.Options{ResourceVersion: "3"}
		done := b.serve(t.Context())
		synctest.Wait()
		for i := range 5 {
			b.put("pods", fmt.Sprint("p", i))
		}
		b.expect("ADDED p3 4", "ADDED p4 5")
		close(stop)
		<-done
	})
}

func TestTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, 0)
		defer b.store.Close()
		b.put("pods", "a")
		ctx, cancel := context.WithCancel(t.Context())
		b.req.Options = list.Options{SendInitialEvents: true, AllowWatchBookmarks: true}
		b.req.Table = table.NewWriter(b.req.View, table.Options{Version: "v1"})
		done := b.serve(ctx)
		synctest.Wait()
		b.put("pods", "b")
		synctest.Wait()
		cancel()
		<-done
		lines := strings.Split(strings.TrimSpace(b.text.String()), "\n")
		if len(lines) != 3 || !strings.Contains(lines[0], `"columnDefinitions":[{"name":"Name"`) || strings.Contains(lines[2], `"name":"Created At"`) ||
			!strings.Contains(lines[1], `"k8s.io/initial-events-end":"true"`) || !strings.Contains(lines[2], `"cells":["b",`) {
			t.Fatalf("%s", b.text.String())
		}
		for _, l := range lines {
			var v any
			if err := json.Unmarshal([]byte(l), &v); err != nil {
				t.Fatalf("%v in %s", err, l)
			}
		}
	})
}
