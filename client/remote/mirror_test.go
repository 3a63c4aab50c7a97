package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

func service(name, uid, revision, ip string) *corev1.Service {
	return &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid), ResourceVersion: revision},
		Spec:       corev1.ServiceSpec{ClusterIP: ip}}
}

// script answers lists and watches of services one after the other.
type script struct {
	t     *testing.T
	steps chan func(w http.ResponseWriter, r *http.Request)
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case step := <-s.steps:
		step(w, r)
	case <-r.Context().Done():
	}
}

func status(code int32, reason metav1.StatusReason) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: code, Reason: reason}
}

func asJSON(v any) string { data, _ := json.Marshal(v); return string(data) }

// body frames an event as protobuf, whose object may be in JSON: decoding tells by its first bytes.
func body(events ...string) []byte {
	var out []byte
	for _, e := range events {
		kind, object, _ := strings.Cut(e, " ")
		ev := metav1.WatchEvent{Type: kind}
		ev.Object.Raw = []byte(object)
		data, _ := ev.Marshal()
		out = append(out, byte(len(data)>>24), byte(len(data)>>16), byte(len(data)>>8), byte(len(data)))
		out = append(out, data...)
	}
	return out
}

func listing(revision string, items ...*corev1.Service) func(http.ResponseWriter, *http.Request) {
	l := corev1.ServiceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, ListMeta: metav1.ListMeta{ResourceVersion: revision}}
	for _, s := range items {
		l.Items = append(l.Items, *s)
	}
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, asJSON(l)) }
}

// watching answers a watch that has to begin at from, and then breaks off.
func (s *script) watching(from string, events ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("resourceVersion"); r.URL.Query().Get("watch") != "true" || got != from {
			s.t.Errorf("asked for %s, want a watch from %s", r.URL.RawQuery, from)
		}
		_, _ = w.Write(body(events...))
	}
}

func newClient(t *testing.T) (*Client, *script) {
	s := &script{t, make(chan func(http.ResponseWriter, *http.Request), 16)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	c, err := New(Config{Server: server.URL, Registry: api.NewRegistry(builtin.Kinds()...), Sources: []Source{{Resource: client.Services.Name}}})
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func start(t *testing.T, c *Client) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	limit, end := context.WithTimeout(ctx, 30*time.Second)
	defer end()
	if err := c.WaitSynced(limit); err != nil {
		t.Fatal(err)
	}
}

// await waits until the service shows an address, "" for its absence.
func await(t *testing.T, c *Client, name, ip string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		snap := c.Snapshot()
		s, ok := client.Services.Get(snap, "ns", name)
		if !ok && ip == "" || ok && s.Spec.ClusterIP == ip {
			return
		}
		cursor, err := c.Cursor(snap.Revision(), client.Services.Name)
		if err == nil {
			_, err = cursor.Next(ctx)
		}
		if err != nil {
			t.Fatalf("%s never had %q: %v", name, ip, err)
		}
	}
}

// TestFollow: a watch goes on where it broke off, by bookmarks too; what comes twice or late changes nothing; after 410 all is compared.
func TestFollow(t *testing.T) {
	c, s := newClient(t)
	s.steps <- listing("10", service("a", "1", "5", "old"), service("b", "2", "6", "stays"))
	s.steps <- s.watching("10", "MODIFIED "+asJSON(service("a", "1", "11", "new")), "MODIFIED "+asJSON(service("a", "1", "11", "twice")),
		"BOOKMARK "+asJSON(service("", "", "20", "")))
	s.steps <- s.watching("20", "MODIFIED "+asJSON(service("a", "1", "9", "late")), "ADDED "+asJSON(service("c", "3", "21", "fresh")))
	s.steps <- func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	s.steps <- s.watching("21", "ERROR "+asJSON(status(410, metav1.StatusReasonExpired)))
	s.steps <- listing("30", service("a", "1", "11", "new"), service("c", "4", "25", "another"))
	s.steps <- s.watching("30", "DELETED "+asJSON(service("a", "1", "31", "new")))
	start(t, c)
	before := c.Snapshot().Revision()
	await(t, c, "a", "")
	await(t, c, "b", "")
	await(t, c, "c", "another")
	if now := c.Snapshot().Revision(); now <= before {
		t.Errorf("the mirror's revision went from %d to %d", before, now)
	}
}

// TestOwnWritesAndOrder: what was written is seen at once, and neither an old event nor one of a deleted object takes it back.
func TestOwnWritesAndOrder(t *testing.T) {
	c, s := newClient(t)
	s.steps <- listing("10", service("a", "1", "5", "old"))
	hold, watched := make(chan struct{}), make(chan struct{})
	s.steps <- func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); close(watched); <-hold }
	start(t, c)
	defer close(hold)
	<-watched // the next step is for the next request
	s.steps <- func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, asJSON(service("a", "1", "12", "mine"))) }
	if _, err := c.Update(context.Background(), client.Services.Name, service("a", "1", "5", "mine"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, c, "a", "mine")
	c.mirror.seen(client.Services.Name, service("a", "1", "8", "between"))
	await(t, c, "a", "mine")

	s.steps <- func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, asJSON(status(409, metav1.StatusReasonConflict)))
	}
	s.steps <- func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, asJSON(service("a", "1", "15", "theirs"))) }
	if _, err := c.Update(context.Background(), client.Services.Name, service("a", "1", "12", "x"), client.WriteOptions{}); !apierrors.IsConflict(err) {
		t.Fatalf("got %v", err)
	}
	await(t, c, "a", "theirs") // so that the next try does not meet the same

	s.steps <- func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, asJSON(&metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}))
	}
	if err := c.Delete(context.Background(), client.Ref{Resource: client.Services.Name, Namespace: "ns", Name: "a"}, client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.mirror.seen(client.Services.Name, service("a", "1", "14", "ghost"))
	if c.Snapshot().Get(store.Key{Resource: client.Services.Name, Namespace: "ns", Name: "a"}) != nil {
		t.Error("a deleted object came back")
	}
	c.mirror.seen(client.Services.Name, service("a", "2", "18", "successor"))
	await(t, c, "a", "successor")
}
