package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/metrics"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/apiserver/wire"
)

// audited is a server that records by a policy, and a function that reads what it recorded so far of one URI.
func audited(t testing.TB, rules string) (*env, func(uri string) []auditv1.Event) {
	p, err := audit.ParsePolicy([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n" + rules))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	log, err := audit.OpenLog(audit.LogOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, builtin.Kinds(), func(c *Config) {
		c.Audit = audit.New(p, slog.New(slog.DiscardHandler), log)
		c.Authorizer = allowAll{}
	})
	return e, func(uri string) (found []auditv1.Event) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var ev auditv1.Event
			if err := json.Unmarshal([]byte(line), &ev); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(ev.RequestURI, uri) {
				found = append(found, ev)
			}
		}
		return found
	}
}

// eventually waits for what happens after an answer was sent.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		runtime.Gosched()
	}
}

func TestAudit(t *testing.T) {
	e, events := audited(t, `
omitStages: [RequestReceived]
rules:
- {level: Metadata, resources: [{group: "", resources: [secrets]}]}
- {level: RequestResponse}`)
	last := func(uri string) auditv1.Event {
		t.Helper()
		eventually(t, "no event of "+uri, func() bool { return len(events(uri)) > 0 })
		all := events(uri)
		return all[len(all)-1]
	}
	user := e.as("user", "group")
	user.Impersonate = rest.ImpersonationConfig{UserName: "other"}
	for _, media := range []string{wire.TypeJSON, wire.TypeProtobuf} {
		user.ContentType = media
		c := clientset(t, user)
		name := "of-" + media[len(media)-4:]
		if _, err := c.CoreV1().ConfigMaps("default").Create(ctx(t), configMap(name, map[string]string{"k": "body"}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		ev := last("/api/v1/namespaces/default/configmaps")
		var sent, got corev1.ConfigMap
		if json.Unmarshal(ev.RequestObject.Raw, &sent) != nil || json.Unmarshal(ev.ResponseObject.Raw, &got) != nil {
			t.Fatalf("%s: %s %s", media, ev.RequestObject.Raw, ev.ResponseObject.Raw)
		}
		if sent.Kind != "ConfigMap" || sent.Data["k"] != "body" || got.UID == "" || got.Kind != "ConfigMap" || got.Name != name {
			t.Errorf("%s: sent %v, got %v", media, sent, got)
		}
		if ev.User.Username != "user" || ev.ImpersonatedUser.Username != "other" || ev.ObjectRef.Name != name || ev.Verb != "create" || ev.ResponseStatus.Code != 201 {
			t.Errorf("%s: %+v", media, ev)
		}
	}
	c := e.typed.CoreV1()
	if _, err := c.Secrets("default").Create(ctx(t), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"k": "hidden"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev := last("/api/v1/namespaces/default/secrets"); ev.RequestObject != nil || ev.ResponseObject != nil || ev.Level != auditv1.LevelMetadata {
		t.Errorf("a secret is recorded: %+v", ev)
	}
	if _, err := c.ConfigMaps("default").Patch(ctx(t), "of-json", types.MergePatchType, []byte(`{"data":{"k":"patched"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev := last("/api/v1/namespaces/default/configmaps/of-json"); string(ev.RequestObject.Raw) != `{"data":{"k":"patched"}}` || ev.Verb != "patch" {
		t.Errorf("patch: %+v", ev)
	}
	if _, err := c.ConfigMaps("default").Get(ctx(t), "none", metav1.GetOptions{}); err == nil {
		t.Fatal("none is there")
	}
	if ev := last("/api/v1/namespaces/default/configmaps/none"); ev.ResponseStatus.Code != 404 || ev.ResponseStatus.Reason != "NotFound" || ev.ResponseObject == nil || ev.Annotations["authorization.k8s.io/decision"] != "allow" {
		t.Errorf("not found: %+v", ev)
	}
	// A client's own id is kept, and told it.
	r := e.raw("GET", "/api/v1/namespaces/default?own", map[string]string{"Audit-ID": "mine"})
	if ev := last("/api/v1/namespaces/default?own"); ev.AuditID != "mine" || r.Header.Get("Audit-Id") != "mine" {
		t.Errorf("id %q, header %q", ev.AuditID, r.Header.Get("Audit-Id"))
	}
	// Strangers are recorded too.
	req, _ := http.NewRequest("GET", e.http.URL+"/api/v1/pods?stranger", nil)
	req.Header.Set("Authorization", "Bearer nonsense")
	resp, err := e.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if ev := last("/api/v1/pods?stranger"); resp.StatusCode != 401 || ev.Stage != "ResponseStarted" || ev.ResponseStatus.Message != "Authentication failed, attempted: bearer" {
		t.Errorf("%d %+v", resp.StatusCode, ev)
	}
	// A watch has a beginning and an end.
	if r := e.raw("GET", "/api/v1/pods?watch=1&timeoutSeconds=1", nil); body(t, r) != "" {
		t.Error("something changed")
	}
	eventually(t, "the end of a watch", func() bool { return len(events("/api/v1/pods?watch=1")) == 2 })
	if all := events("/api/v1/pods?watch=1"); all[0].Stage != "ResponseStarted" || all[1].Stage != "ResponseComplete" {
		t.Errorf("%v", all)
	}
}

func TestFairnessHeadersAndMetrics(t *testing.T) {
	e := start(t, builtin.Kinds())
	schemas, levels := defaultFairness()
	for _, s := range schemas {
		s.UID = types.UID("schema-" + s.Name)
	}
	for _, l := range levels {
		l.UID = types.UID("level-" + l.Name)
	}
	e.Fairness().Update(schemas, levels)
	r := e.raw("GET", "/api/v1/namespaces?limit=5", nil)
	if s, l := r.Header.Get("X-Kubernetes-PF-FlowSchema-UID"), r.Header.Get("X-Kubernetes-PF-PriorityLevel-UID"); s != "schema-exempt" || l != "level-exempt" {
		t.Errorf("%q %q", s, l)
	}
	_ = body(t, r)
	text := body(t, e.raw("GET", "/metrics", nil))
	for _, want := range []string{
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="namespaces",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="namespaces",scope="cluster",subresource="",verb="LIST",version="v1",le="+Inf"} 1`,
		`apiserver_flowcontrol_dispatched_requests_total{flow_schema="exempt",priority_level="exempt"}`,
		`apiserver_storage_objects{resource="deployments.apps"} 0`, "process_resident_memory_bytes ", "go_goroutines ", "kubernetes_build_info{",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	// Each family is told once, and each line belongs to the family before it.
	seen, family := map[string]bool{}, ""
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			family, _, _ = strings.Cut(name, " ")
			if seen[family] {
				t.Errorf("%s is told twice", family)
			}
			seen[family] = true
		} else if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, family) {
			t.Errorf("%q under %s", line, family)
		}
	}
	for _, path := range []string{"/metrics/slis", "/debug/api_priority_and_fairness/dump_queues"} {
		if r := e.raw("GET", path, nil); r.StatusCode != 200 || len(body(t, r)) == 0 {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
}

// TestMemoryIsBounded: two thousand clients send great objects at once. What cannot be taken is refused with 429, and the memory of the
// server does not follow the number of clients.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const bound = 64 << 20
	e := start(t, builtin.Kinds(), func(c *Config) {
		c.Authorizer = allowAll{}
		c.InflightBytes = bound
	})
	big := encodedObject(t, configMap("big", map[string]string{"k": strings.Repeat("x", 900<<10)}))
	state := certificateOf(t, e.as("user"))
	var peak atomic.Int64
	stop, watched := make(chan struct{}), make(chan struct{})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(watched)
		var m runtime.MemStats
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), int64(m.HeapInuse)))
			}
		}
	}()
	var wg sync.WaitGroup
	var codes [600]atomic.Int64
	for range 2000 {
		wg.Go(func() {
			r, _ := http.NewRequestWithContext(context.Background(), "POST", "/api/v1/namespaces/default/configmaps?dryRun=All", bytes.NewReader(big))
			r.TLS = state
			r.Header.Set("Content-Type", wire.TypeJSON)
			w := &sink{h: http.Header{}}
			e.serve(w, r)
			codes[w.code].Add(1)
			if w.code == http.StatusTooManyRequests && w.h.Get("Retry-After") != "1" {
				t.Error("429 without Retry-After")
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watched
	grown := peak.Load() - int64(before.HeapInuse)
	t.Logf("%d created, %d refused; the heap grew by %d MiB", codes[201].Load(), codes[429].Load(), grown>>20)
	if codes[201].Load() == 0 || codes[201].Load()+codes[429].Load() != 2000 {
		t.Errorf("created %d, refused %d", codes[201].Load(), codes[429].Load())
	}
	// Bodies of 2,000 requests are 1.8 GB, and several times that while they are worked on. The collector lets the heap grow to
	// twice what lives.
	if grown > 6*bound {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// BenchmarkAuditedGet compares a server without a policy, and one that records metadata of everything, in one run.
func BenchmarkAuditedGet(b *testing.B) {
	for _, policy := range []string{"", "rules: [{level: Metadata}]", "rules: [{level: RequestResponse}]"} {
		name := "none"
		if policy != "" {
			name = strings.Trim(policy[len("rules: [{level: "):], "}]")
		}
		b.Run(name, func(b *testing.B) {
			var e *env
			if policy == "" {
				e = start(b, builtin.Kinds())
			} else {
				e, _ = audited(b, policy)
			}
			if _, err := e.typed.CoreV1().ConfigMaps("default").Create(context.Background(), configMap("c", map[string]string{"k": "v"}), metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			state := certificateOf(b, e.config)
			b.ReportAllocs()
			for b.Loop() {
				if w := e.do(b, state, "GET", "/api/v1/namespaces/default/configmaps/c", "", nil); w.code != 200 {
					b.Fatal(w.code)
				}
			}
		})
	}
}

// BenchmarkCount is what metrics cost a request.
func BenchmarkCount(b *testing.B) {
	s := &Server{}
	r, _ := http.NewRequest("GET", "/api/v1/namespaces/default/pods/x", nil)
	info := route.Parse(r.Method, r.URL)
	b.ReportAllocs()
	for b.Loop() {
		x := exchange{server: s}
		x.counted(&info, r)
		x.gauge.Add(-1)
		x.series.Count(200)
		x.series.Observe(time.Millisecond, 3000)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	var r metrics.Requests
	for i := range 10000 {
		r.Of(metrics.Labels{Verb: "GET", Resource: fmt.Sprint(i)}).Count(200)
	}
	var b bytes.Buffer
	r.Write(&b)
	if n := strings.Count(b.String(), "apiserver_request_total{"); n > 5000 || !slices.Contains(strings.Split(b.String(), "\n"),
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="",scope="",subresource="",verb="GET",version=""} 5904`) {
		t.Errorf("%d series", n)
	}
}

func defaultFairness() ([]*flowcontrolv1.FlowSchema, []*flowcontrolv1.PriorityLevelConfiguration) {
	return append(flowcontrol.MandatorySchemas(), flowcontrol.SuggestedSchemas()...), append(flowcontrol.MandatoryLevels(), flowcontrol.SuggestedLevels()...)
}

// encodedObject is a ConfigMap as JSON.
func encodedObject(t testing.TB, obj *corev1.ConfigMap) []byte {
	data, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// certificateOf is the state of a connection with a client certificate.
func certificateOf(t testing.TB, c *rest.Config) *tls.ConnectionState {
	block, _ := pem.Decode(c.CertData)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
}
