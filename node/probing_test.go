package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func newProber() *prober {
	return &prober{userAgent: "kube-probe/1.37", dial: new(net.Dialer).DialContext}
}

func targetOf(t *testing.T, server string) (target, intstr.IntOrString) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(u.Port())
	pod := podOf("web", "a: run")
	return target{pod: pod, spec: &pod.Spec.Containers[0], ip: u.Hostname()}, intstr.FromInt(port)
}

func TestHTTPProbe(t *testing.T) {
	var seen *http.Request
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		seen = r.Clone(context.Background())
		io.WriteString(w, "fine")
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/local", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	for _, tc := range []struct {
		path   string
		scheme corev1.URIScheme
		want   outcome
		text   string
	}{
		{"/ok?x=1", corev1.URISchemeHTTP, probeSuccess, "fine"},
		{"ok", corev1.URISchemeHTTPS, probeSuccess, "fine"},
		{"/bad", corev1.URISchemeHTTP, probeFailure, "HTTP probe failed with statuscode: 503"},
		{"/local", corev1.URISchemeHTTP, probeFailure, "HTTP probe failed with statuscode: 503"},
		{"/away", corev1.URISchemeHTTP, probeWarning, "Probe terminated redirects, Response body: "},
		{"/loop", corev1.URISchemeHTTP, probeFailure, "stopped after 10 redirects"},
		{"/slow", corev1.URISchemeHTTP, probeFailure, "context deadline exceeded"},
	} {
		server := plain.URL
		if tc.scheme == corev1.URISchemeHTTPS {
			server = secure.URL
		}
		tg, port := targetOf(t, server)
		got, text := newProber().run(context.Background(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: tc.path, Port: port, Scheme: tc.scheme}}}, tg, 300*time.Millisecond)
		if got != tc.want || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %d %s", tc.path, got, text)
		}
	}
	tg, port := targetOf(t, plain.URL)
	get := &corev1.HTTPGetAction{Path: "/ok", Port: port, HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "virtual.example"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}}}
	newProber().run(context.Background(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}, tg, time.Second)
	if seen.Host != "virtual.example" || fmt.Sprint(seen.Header["X-A"]) != "[1 2]" || seen.UserAgent() != "kube-probe/1.37" || seen.Header.Get("Accept") != "*/*" {
		t.Errorf("%s %v", seen.Host, seen.Header)
	}
	get.HTTPHeaders = []corev1.HTTPHeader{{Name: "User-Agent", Value: "mine"}}
	newProber().run(context.Background(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}, tg, time.Second)
	if seen.UserAgent() != "mine" {
		t.Error(seen.UserAgent())
	}
	plain.Close()
	if got, text := newProber().http(context.Background(), get, tg); got != probeFailure || !strings.Contains(text, "connection refused") {
		t.Error(got, text)
	}
}

func TestTCPProbe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tg, port := targetOf(t, "http://"+l.Addr().String())
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}}
	if got, text := newProber().run(context.Background(), probe, tg, time.Second); got != probeSuccess {
		t.Error(got, text)
	}
	l.Close()
	if got, text := newProber().run(context.Background(), probe, tg, time.Second); got != probeFailure || !strings.Contains(text, "connection refused") {
		t.Error(got, text)
	}
}

func TestGRPCProbe(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		service := ""
		if len(body) > 7 {
			service = string(body[7:])
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		status, code := byte(1), "0"
		switch service {
		case "down":
			status = 2
		case "none":
			code = "5"
		case "old":
			code = "12"
		}
		if code == "0" {
			msg := []byte{0, 0, 0, 0, 2, 0x08, status}
			binary.BigEndian.PutUint32(msg[1:], 2)
			w.Write(msg)
		}
		w.Header().Set("Grpc-Status", code)
		w.Header().Set("Grpc-Message", "because")
	})
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	tg, port := targetOf(t, server.URL)
	for service, want := range map[string]string{
		"":     "1 service healthy",
		"down": `3 service unhealthy (responded with "NOT_SERVING")`,
		"none": "3 error: health rpc probe failed: rpc error: code = 5 desc = because",
		"old":  "3 error: this server does not implement the grpc health protocol (grpc.health.v1.Health): because",
	} {
		probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port.IntVal, Service: &service}}}
		o, text := newProber().run(context.Background(), probe, tg, time.Second)
		if got := fmt.Sprint(int(o), " ", text); got != want {
			t.Errorf("%q: got %s, want %s", service, got, want)
		}
	}
	server.Close()
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port.IntVal}}}
	if o, text := newProber().run(context.Background(), probe, tg, time.Second); o != probeFailure || !strings.Contains(text, "failed to connect service") {
		t.Error(o, text)
	}
}

func TestHTTPHook(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.WriteHeader(http.StatusInternalServerError) // a hook is content with any answer
	}))
	defer server.Close()
	tg, port := targetOf(t, server.URL)
	for _, scheme := range []corev1.URIScheme{corev1.URISchemeHTTP, corev1.URISchemeHTTPS} {
		err := newProber().hook(context.Background(), &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: port, Scheme: scheme}}, tg)
		if err != nil {
			t.Errorf("%s: %v", scheme, err)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
	server.Close()
	if err := newProber().hook(context.Background(), &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}, tg); err == nil {
		t.Error("a hook that nobody answers succeeded")
	}
}

// TestProbeTimes follows the times at which a probe is executed, in seconds from the start, with
// "*" for those that count.
func TestProbeTimes(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		name    string
		kind    probeKind
		spec    corev1.Probe
		results string // one letter for each execution: s, f, w or e
		want    string
		verdict verdict
	}{
		{"liveness", livenessProbe, corev1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 10, FailureThreshold: 3}, "ssfffs", "5* 15* 25* 35* 45*", bad},
		{"liveness without delay", livenessProbe, corev1.Probe{PeriodSeconds: 10, FailureThreshold: 2}, "fsf", "10* 20* 30* 40*", good},
		{"liveness errors do not count", livenessProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, "fef", "1* 2* 3*", bad},
		{"warning is success", livenessProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2}, "fwf", "1* 2* 3* 4*", good},
		{"readiness at once", readinessProbe, corev1.Probe{PeriodSeconds: 10}, "s", "0.01 10*", good},
		{"readiness is eager", readinessProbe, corev1.Probe{PeriodSeconds: 1}, "ffffffff", "0.01 0.03 0.07 0.15 0.31 0.63 1* 2* 3*", bad},
		{"readiness after delay", readinessProbe, corev1.Probe{InitialDelaySeconds: 3, PeriodSeconds: 1}, "fs", "3* 3.02 4*", good},
		{"readiness wants two", readinessProbe, corev1.Probe{PeriodSeconds: 5, SuccessThreshold: 2}, "ss", "0.01 5* 10*", good},
		{"readiness lost", readinessProbe, corev1.Probe{PeriodSeconds: 5, FailureThreshold: 2}, "sffs", "0.01 5* 10* 15* 20*", good},
		{"startup", startupProbe, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2, ProbeHandler: execProbe("x")}, "ffffff", "0.1 0.3 0.7 1* 2*", bad},
		{"startup in time", startupProbe, corev1.Probe{PeriodSeconds: 10, FailureThreshold: 2}, "ffs", "0.01 0.03 0.07", good},
	} {
		p := newProbe(tc.kind, &tc.spec, "c", "id", start, start, unknown)
		var times []string
		note := func() bool {
			if p.next.IsZero() {
				return false
			}
			s := strconv.FormatFloat(p.next.Sub(start).Seconds(), 'f', -1, 64)
			if p.counted {
				s += "*"
			}
			times = append(times, s)
			return true
		}
		alive := note()
		for _, r := range tc.results {
			if !alive {
				break
			}
			p.observe(map[rune]outcome{'s': probeSuccess, 'f': probeFailure, 'w': probeWarning, 'e': probeError}[r], p.next)
			alive = note()
		}
		if got := strings.Join(times, " "); got != tc.want || p.verdict != tc.verdict {
			t.Errorf("%s:\n got %s, verdict %d\nwant %s, verdict %d", tc.name, got, p.verdict, tc.want, tc.verdict)
		}
	}
}

func TestAdoptedProbeKeepsItsGrid(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := newProbe(readinessProbe, &corev1.Probe{PeriodSeconds: 10}, "c", "id", start, start.Add(57*time.Second), good)
	if got := p.next.Sub(start); p.verdict != good || got > 60*time.Second {
		t.Errorf("next at %v", got)
	}
}
