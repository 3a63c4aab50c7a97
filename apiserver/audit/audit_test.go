package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"coracle.dev/coracle/client"
)

const head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"

func policy(t testing.TB, rules string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(head + rules))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDecide(t *testing.T) {
	p := policy(t, `
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: [quiet]}
- {level: None, userGroups: [ghosts], verbs: [get, list]}
- {level: Metadata, resources: [{group: "", resources: [secrets, configmaps/*, "*/token"]}]}
- {level: Request, resources: [{group: apps, resources: [deployments], resourceNames: [web]}], omitManagedFields: false}
- {level: RequestResponse, namespaces: [prod], omitStages: [Panic]}
- {level: None, nonResourceURLs: ["/healthz*", "/version"]}
- {level: Request, resources: [{group: "batch"}]}
- {level: Metadata, nonResourceURLs: ["*"]}
`)
	on := func(group, resource, sub, namespace, name string) Attributes {
		return Attributes{User: &client.User{Name: "u", Groups: []string{"g"}}, Verb: "get", IsResource: true, Group: group, Resource: resource, Subresource: sub, Namespace: namespace, Name: name}
	}
	path := func(p string) Attributes { return Attributes{Verb: "get", Path: p} }
	as := func(a Attributes, u *client.User) Attributes { a.User = u; return a }
	for i, c := range []struct {
		a    Attributes
		want Level
	}{
		{as(on("", "secrets", "", "a", ""), &client.User{Name: "quiet"}), None},
		{as(on("", "secrets", "", "a", ""), &client.User{Name: "x", Groups: []string{"y", "ghosts"}}), None},
		{as(on("", "secrets", "", "a", ""), nil), Metadata},
		{on("", "secrets", "", "a", ""), Metadata},
		{on("", "secrets", "status", "a", ""), None}, // a plain name is not its subresources
		{on("", "configmaps", "", "a", ""), Metadata},
		{on("", "configmaps", "x", "a", ""), Metadata},
		{on("", "serviceaccounts", "token", "a", ""), Metadata},
		{on("other", "secrets", "", "a", ""), None},
		{on("apps", "deployments", "", "a", "web"), Request},
		{on("apps", "deployments", "", "a", "db"), None},
		{on("apps", "deployments", "", "prod", "db"), RequestResponse},
		{on("batch", "jobs", "status", "a", "x"), Request},
		{path("/healthz/ping"), None}, {path("/version"), None}, {path("/versions"), Metadata},
	} {
		if got := p.Decide(&c.a).Level; got != c.want {
			t.Errorf("%d: %v: %s, want %s", i, c.a, got, c.want)
		}
	}
	a := on("apps", "deployments", "", "a", "web")
	if d := p.Decide(&a); d.Omit != RequestReceived || d.OmitManagedFields {
		t.Errorf("%+v", d)
	}
	a.Namespace, a.Name = "prod", "x"
	if d := p.Decide(&a); d.Omit != RequestReceived|Panic || !d.OmitManagedFields {
		t.Errorf("%+v", d)
	}
}

func TestRefusedPolicies(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: v1\nkind: Policy\nrules: [{level: None}]": "apiVersion: audit.k8s.io/v1",
		head:                            "0 rules",
		head + "rules: [{}]":            "rules[0].level: Required value",
		head + "rules: [{level: Much}]": `supported values: "None", "Metadata", "Request", "RequestResponse"`,
		head + "rules: [{level: None, nonResourceURLs: [a]}]":                   "must begin with a '/' character",
		head + "rules: [{level: None, nonResourceURLs: ['/a*b']}]":              "must be the final character",
		head + "rules: [{level: None, nonResourceURLs: [/a], namespaces: [a]}]": "cannot apply to both",
		head + "rules: [{level: None, resources: [{resourceNames: [a]}]}]":      "requires at least one resource",
		head + "rules: [{level: None, resources: [{group: rbac/v1}]}]":          "RFC 1123",
		head + "omitStages: [Before]\nrules: [{level: None}]":                   "allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
		head + "rules: [{level: None, user: [a]}]":                              `unknown field "user"`,
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// kept is a sink that keeps events.
type kept struct {
	lines  []string
	err    error
	strict bool
}

func (k *kept) Write(r *Record) error       { k.lines = append(k.lines, string(r.JSON)); return k.err }
func (k *kept) Strict() bool                { return k.strict }
func (k *kept) Close(context.Context) error { return nil }

func (k *kept) events(t *testing.T) (out []auditv1.Event) {
	t.Helper()
	for _, line := range k.lines {
		var e auditv1.Event
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil || strings.Count(line, "\n") != 1 {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, e)
	}
	return out
}

func request() *http.Request {
	r := httptest.NewRequest("PUT", "/api/v1/namespaces/default/configmaps/c?a=%22", nil)
	r.RemoteAddr = "10.0.0.3:1234"
	r.Header.Set("X-Forwarded-For", "192.0.2.1, 192.0.2.2")
	r.Header.Set("User-Agent", "agent \"é\"/1"+strings.Repeat("x", 2000))
	return r
}

var at = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)

func attributes() *Attributes {
	return &Attributes{User: &client.User{Name: "u", UID: "1", Groups: []string{"g", "h"}, Extra: map[string][]string{"k": {"v"}, "a": nil}},
		Verb: "update", IsResource: true, Version: "v1", Resource: "configmaps", Namespace: "default", Name: "c"}
}

// TestEvent reads back with upstream's own type what was written by hand.
func TestEvent(t *testing.T) {
	sink := &kept{}
	rec := New(policy(t, "rules: [{level: RequestResponse}]\nomitManagedFields: true"), slog.New(slog.DiscardHandler), sink)
	e, err := rec.Begin(request(), "id-1", attributes(), at)
	if err != nil {
		t.Fatal(err)
	}
	e.Impersonate(client.User{Name: "other"})
	e.Object(&metav1.ObjectMeta{Name: "ignored", UID: "uid", ResourceVersion: "7"})
	e.Request([]byte("{\"metadata\":{\"name\":\"c\",\"managedFields\":[{}]},\n\"data\":{\"k\":\"<&>\"}}"))
	e.Response([]byte(`{"items":[{"metadata":{"managedFields":[{}],"name":"x"}}]}`))
	e.Annotate("one", "1")
	e.Annotate("one", "2")
	e.Decide(true, "")
	e.Decide(false, "because")
	e.Complete(200, at.Add(time.Millisecond))
	e.Complete(500, at)
	got := sink.events(t)
	if len(got) != 2 {
		t.Fatalf("%d events", len(got))
	}
	first, last := got[0], got[1]
	if first.Stage != "RequestReceived" || first.RequestObject != nil || first.ResponseStatus != nil || first.Annotations != nil {
		t.Errorf("%+v", first)
	}
	for name, ok := range map[string]bool{
		"head":        last.Kind == "Event" && last.APIVersion == "audit.k8s.io/v1" && last.AuditID == "id-1" && last.Level == "RequestResponse" && last.Stage == "ResponseComplete",
		"uri":         last.RequestURI == "/api/v1/namespaces/default/configmaps/c?a=%22" && last.Verb == "update",
		"user":        last.User.Username == "u" && last.User.UID == "1" && len(last.User.Groups) == 2 && last.User.Extra["k"][0] == "v",
		"other":       last.ImpersonatedUser != nil && last.ImpersonatedUser.Username == "other",
		"sources":     fmt.Sprint(last.SourceIPs) == "[192.0.2.1 192.0.2.2 10.0.0.3]",
		"agent":       strings.HasPrefix(last.UserAgent, `agent "é"/1xx`) && strings.HasSuffix(last.UserAgent, "...TRUNCATED") && len(last.UserAgent) == 1024,
		"object":      *last.ObjectRef == auditv1.ObjectReference{Resource: "configmaps", Namespace: "default", Name: "c", UID: "uid", APIVersion: "v1", ResourceVersion: "7"},
		"status":      last.ResponseStatus.Code == 200,
		"request":     string(last.RequestObject.Raw) == `{"data":{"k":"\u003c\u0026\u003e"},"metadata":{"name":"c"}}`,
		"response":    string(last.ResponseObject.Raw) == `{"items":[{"metadata":{"name":"x"}}]}`,
		"times":       last.RequestReceivedTimestamp.Equal(&metav1.MicroTime{Time: at.Truncate(time.Microsecond)}) && last.StageTimestamp.Sub(last.RequestReceivedTimestamp.Time) == time.Millisecond,
		"annotations": fmt.Sprint(last.Annotations) == "map[authorization.k8s.io/decision:forbid authorization.k8s.io/reason:because one:1]",
	} {
		if !ok {
			t.Errorf("%s: %s", name, sink.lines[1])
		}
	}
}

func TestLevelsHideBodies(t *testing.T) {
	for level, want := range map[string]int{"Metadata": 0, "Request": 1, "RequestResponse": 2} {
		sink := &kept{}
		e, _ := New(policy(t, "rules: [{level: "+level+"}]\nomitStages: [RequestReceived]"), slog.New(slog.DiscardHandler), sink).Begin(request(), "x", attributes(), at)
		e.Request([]byte(`{"secret":"body"}`))
		e.Response([]byte(`{"secret":"body"}`))
		e.Complete(200, at)
		if got := strings.Count(strings.Join(sink.lines, ""), "secret"); got != want || len(sink.lines) != 1 {
			t.Errorf("%s: %d bodies in %v", level, got, sink.lines)
		}
	}
	var none *Event // a request that is not recorded
	none.Annotate("a", "b")
	none.Complete(200, at)
	none.Panicked("x", at)
	if none.WantsRequest() || none.Level() != None {
		t.Error("a nil event wants something")
	}
}

func TestPanicAndStrict(t *testing.T) {
	sink := &kept{}
	rec := New(policy(t, "rules: [{level: Metadata}]"), slog.New(slog.DiscardHandler), sink)
	e, _ := rec.Begin(request(), "x", attributes(), at)
	e.Panicked("oops", at)
	e.Complete(500, at)
	last := sink.events(t)
	if len(last) != 2 || last[1].Stage != "Panic" || last[1].ResponseStatus.Message != "APIServer panic'd: oops" || last[1].ResponseStatus.Code != 500 {
		t.Errorf("%v", sink.lines)
	}
	sink.err = errors.New("disk full")
	if _, err := rec.Begin(request(), "x", attributes(), at); err != nil {
		t.Errorf("blocking refuses a request: %v", err)
	}
	sink.strict = true
	if _, err := rec.Begin(request(), "x", attributes(), at); err == nil {
		t.Error("blocking-strict lets a request pass that is not recorded")
	}
	if rec.Counts().Errors.Load() != 2 {
		t.Errorf("%d errors", rec.Counts().Errors.Load())
	}
}

// TestLog: many writers at once, files put aside, none lost or torn.
func TestLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	now := at
	var mu sync.Mutex
	log, err := OpenLog(LogOptions{Path: path, MaxSize: 20_000, Compress: false, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	}})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := log.Write(&Record{JSON: fmt.Appendf(nil, "%d-%d %s\n", w, i, strings.Repeat("x", 100))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "audit*"))
	seen := map[string]bool{}
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if len(data) > 22_000 {
			t.Errorf("%s has %d bytes", f, len(data))
		}
		for line := range strings.Lines(string(data)) {
			key, rest, _ := strings.Cut(line, " ")
			if len(rest) != 101 {
				t.Errorf("a torn line: %q", line)
			}
			seen[key] = true
		}
	}
	if len(seen) != writers*each || len(files) < 8 {
		t.Errorf("%d of %d lines in %d files", len(seen), writers*each, len(files))
	}
}

func TestBackups(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	now := at
	log, err := OpenLog(LogOptions{Path: path, MaxSize: 10, MaxBackups: 3, MaxAge: 100 * time.Hour, Compress: true, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		now = now.Add(time.Hour)
		if err := log.Write(&Record{JSON: fmt.Appendf(nil, "line %d of many\n", i)}); err != nil {
			t.Fatal(err)
		}
	}
	_ = log.Close(t.Context())
	files, _ := filepath.Glob(filepath.Join(dir, "audit-*.log.gz"))
	plain, _ := filepath.Glob(filepath.Join(dir, "audit-*.log"))
	if len(files) != 3 || len(plain) != 0 {
		t.Errorf("%v %v", files, plain)
	}
	if _, err := OpenLog(LogOptions{Path: filepath.Join(path, "under-a-file")}); err == nil {
		t.Error("a log that cannot be written was opened")
	}
}

// TestLogComesBack: a file that cannot be written is an error each time, and is tried anew.
func TestLogComesBack(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "audit.log")
	log, err := OpenLog(LogOptions{Path: path, MaxSize: 10})
	if err != nil {
		t.Fatal(err)
	}
	line := &Record{JSON: []byte("a line of some length\n")}
	if err := log.Write(line); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := log.Write(line); err == nil {
		t.Error("no error without a directory")
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := log.Write(line); err != nil {
		t.Errorf("the directory is back: %v", err)
	}
}

// taker is a server that refuses the first requests.
type taker struct {
	mu     sync.Mutex
	refuse int
	lists  []auditv1.EventList
}

func (s *taker) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	code := 200
	if s.refuse > 0 {
		s.refuse--
		code = 503
	} else {
		var l auditv1.EventList
		if err := json.Unmarshal(body, &l); err != nil {
			return nil, err
		}
		s.lists = append(s.lists, l)
	}
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Body: io.NopCloser(bytes.NewReader(nil)), Request: r}, nil
}

func TestWebhook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &taker{refuse: 2}
		hook := NewWebhook("http://audit.test/", &http.Client{Transport: server}, BatchOptions{BufferSize: 20, MaxSize: 5}, slog.New(slog.DiscardHandler))
		rec := New(policy(t, "rules: [{level: Metadata}]\nomitStages: [RequestReceived]"), slog.New(slog.DiscardHandler), hook)
		send := func(n int) {
			for range n {
				e, _ := rec.Begin(request(), "x", attributes(), time.Now())
				e.Complete(200, time.Now())
			}
		}
		send(3)
		time.Sleep(29 * time.Second)
		server.mu.Lock()
		refused := 2 - server.refuse
		server.mu.Unlock()
		if refused != 0 {
			t.Error("a list that is not full was sent before its time")
		}
		time.Sleep(2 * time.Second) // sent and refused, then again after 10 and 15 s
		send(40)                    // more than wait at most
		synctest.Wait()
		if lost := rec.Counts().Errors.Load(); lost != 20 {
			t.Errorf("%d events were dropped, want 20", lost)
		}
		time.Sleep(time.Minute)
		send(2)
		if err := rec.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var sizes []int
		for _, l := range server.lists {
			sizes = append(sizes, len(l.Items))
			if l.Kind != "EventList" || l.APIVersion != "audit.k8s.io/v1" || l.Items[0].AuditID != "x" || l.Items[0].Kind != "" {
				t.Errorf("%+v", l.Items[0])
			}
		}
		if fmt.Sprint(sizes) != "[3 5 5 5 5 2]" {
			t.Errorf("lists of %v", sizes)
		}
	})
}

func TestLegacy(t *testing.T) {
	var line []byte
	e := &Event{recorder: New(policy(t, "rules: [{level: Metadata}]"), slog.New(slog.DiscardHandler)), decision: Decision{Level: Metadata},
		id: "i", uri: "/x", attrs: *attributes(), user: client.User{Name: "u", Groups: []string{"g"}}, code: 201}
	line = e.legacy(ResponseComplete, at)
	want := `2026-01-02T03:04:05.678901234Z AUDIT: id="i" stage="ResponseComplete" ip="<unknown>" method="update" user="u" groups="g" as=<self> asgroups=<lookup> user-agent=<none> namespace="default" uri="/x" response="201"` + "\n"
	if string(line) != want {
		t.Errorf("%s", line)
	}
}

func BenchmarkMetadata(b *testing.B) {
	log, err := OpenLog(LogOptions{Path: filepath.Join(b.TempDir(), "audit.log"), MaxSize: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	rec := New(policy(b, "rules: [{level: None, users: [x]}, {level: Metadata}]"), slog.New(slog.DiscardHandler), log)
	r := request()
	r.Header.Set("User-Agent", "kubectl/v1.37.2")
	a := attributes()
	b.ReportAllocs()
	for b.Loop() {
		e, _ := rec.Begin(r, "1c6cfca8-bbea-4677-95d3-de05813bc278", a, at)
		e.Decide(true, "")
		e.Complete(200, at)
	}
}
