package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/client"
)

// The benchmarks named Handler call the handler with a response that goes nowhere: what
// the server spends, without net/http and TLS. Those named HTTP go through TLS and HTTP/2 and count
// what the client spends too.

// sink is a response that is thrown away.
type sink struct {
	h    http.Header
	code int
	n    int
}

func (s *sink) Header() http.Header { return s.h }
func (s *sink) WriteHeader(c int)   { s.code = c }
func (s *sink) Write(p []byte) (int, error) {
	s.n += len(p)
	return len(p), nil
}
func (s *sink) Flush() {}

// bench is a server and a connection state of an administrator.
func bench(b *testing.B) (*env, *tls.ConnectionState) {
	e := start(b, builtin.Kinds())
	block, _ := pem.Decode(e.config.CertData)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	return e, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
}

func (e *env) do(b *testing.B, state *tls.ConnectionState, method, path, contentType string, body []byte) *sink {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.TLS = state
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if contentType == wire.TypeProtobuf {
		r.Header.Set("Accept", contentType)
	}
	w := &sink{h: http.Header{}}
	e.serve(w, r)
	return w
}

// benchPod is a pod as a deployment makes them.
func benchPod(name string) *corev1.Pod {
	p := simplePod(name)
	p.Labels = map[string]string{"app": "web", "pod-template-hash": "7d8b49557c", "tier": "front"}
	p.Annotations = map[string]string{"example.com/checksum": "0123456789abcdef0123456789abcdef"}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	return p
}

// encoded is an object in a media type.
func encoded(b *testing.B, media wire.Media, obj api.Object, kind string) []byte {
	body, err := wire.Object(media, obj, schema.GroupVersionKind{Version: "v1", Kind: kind})
	if err != nil {
		b.Fatal(err)
	}
	return body.Bytes()
}

var bothMedia = []wire.Media{wire.JSON, wire.Protobuf}

// cpu reports the processor time of the whole process for each of n things, which other
// programs on the machine do not blur.
func cpu(b *testing.B, unit string, each int) func() {
	used := func() int64 {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N*each), "cpu-ns/"+unit) }
}

func BenchmarkHandlerCreatePod(b *testing.B) {
	for _, media := range bothMedia {
		b.Run(media.String()[12:], func(b *testing.B) {
			e, state := bench(b)
			bodies := make([][]byte, b.N)
			for i := range bodies {
				bodies[i] = encoded(b, media, benchPod(fmt.Sprintf("p%07d", i)), "Pod")
			}
			b.ResetTimer()
			b.ReportAllocs()
			defer cpu(b, "op", 1)()
			for i := range b.N {
				if w := e.do(b, state, "POST", "/api/v1/namespaces/default/pods", media.String(), bodies[i]); w.code != 201 {
					b.Fatal(w.code)
				}
			}
		})
	}
}

func BenchmarkHandlerGetPod(b *testing.B) {
	e, state := bench(b)
	e.fill(b, 1)
	b.ReportAllocs()
	defer cpu(b, "op", 1)()
	for b.Loop() {
		if w := e.do(b, state, "GET", "/api/v1/namespaces/default/pods/p00000", "", nil); w.code != 200 {
			b.Fatal(w.code)
		}
	}
}

func BenchmarkHandlerPatchStatus(b *testing.B) {
	e, state := bench(b)
	e.fill(b, 1)
	i := 0
	b.ReportAllocs()
	defer cpu(b, "op", 1)()
	for b.Loop() {
		i++
		body := fmt.Appendf(nil, `{"status":{"phase":"Running","message":"%d"}}`, i)
		if w := e.do(b, state, "PATCH", "/api/v1/namespaces/default/pods/p00000/status", "application/strategic-merge-patch+json", body); w.code != 200 {
			b.Fatal(w.code)
		}
	}
}

func BenchmarkHandlerDeletePod(b *testing.B) {
	e, state := bench(b)
	e.fill(b, b.N)
	b.ResetTimer()
	b.ReportAllocs()
	defer cpu(b, "op", 1)()
	for i := range b.N {
		if w := e.do(b, state, "DELETE", fmt.Sprintf("/api/v1/namespaces/default/pods/p%05d", i), "", nil); w.code != 200 {
			b.Fatal(w.code)
		}
	}
}

// fill creates pods p00000...
func (e *env) fill(b *testing.B, n int) {
	w := e.Writer()
	for i := range n {
		p := benchPod(fmt.Sprintf("p%05d", i))
		p.Namespace = "default"
		if _, err := w.Create(context.Background(), "pods", p, client.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandlerList(b *testing.B) {
	const n = 5000
	for _, media := range bothMedia {
		b.Run(media.String()[12:], func(b *testing.B) {
			e, state := bench(b)
			e.fill(b, n)
			b.ReportAllocs()
			defer cpu(b, "object", n)()
			for b.Loop() {
				if w := e.do(b, state, "GET", "/api/v1/pods", media.String(), nil); w.code != 200 {
					b.Fatal(w.code)
				}
			}
		})
	}
}

func BenchmarkInProcessCreatePod(b *testing.B) {
	e, _ := bench(b)
	w := e.Writer()
	pods := make([]*corev1.Pod, b.N)
	for i := range pods {
		pods[i] = benchPod(fmt.Sprintf("p%07d", i))
		pods[i].Namespace = "default"
	}
	b.ResetTimer()
	b.ReportAllocs()
	defer cpu(b, "op", 1)()
	for i := range b.N {
		if _, err := w.Create(context.Background(), "pods", pods[i], client.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHTTPWatch delivers each event to many watchers on a few connections.
func BenchmarkHTTPWatch(b *testing.B) {
	for _, watchers := range []int{100, 1000} {
		b.Run(fmt.Sprint(watchers), func(b *testing.B) {
			e, _ := bench(b)
			e.fill(b, 1)
			var lines atomic.Int64
			stop, cancel := context.WithCancel(context.Background())
			var readers sync.WaitGroup
			defer readers.Wait()
			defer cancel()
			rv := fmt.Sprint(e.store.Snapshot().Revision())
			for range watchers {
				e.follow(b, stop, &readers, "/api/v1/pods?watch=1&resourceVersion="+rv, &lines)
			}
			b.ResetTimer()
			defer cpu(b, "delivery", watchers)()
			pod, _ := client.Pods.Get(e.store.Snapshot(), "default", "p00000")
			for i := range b.N {
				p := pod.DeepCopy()
				p.Annotations["n"] = fmt.Sprint(i)
				out, err := e.Writer().Update(context.Background(), "pods", p, client.WriteOptions{})
				if err != nil {
					b.Fatal(err)
				}
				pod = out.(*corev1.Pod)
				for lines.Load() < int64((i+1)*watchers)-int64(watchers)*64 {
					runtime.Gosched()
				}
			}
			for lines.Load() < int64(b.N*watchers) {
				runtime.Gosched()
			}
		})
	}
}

// follow reads a watch and counts its lines.
func (e *env) follow(b *testing.B, stop context.Context, readers *sync.WaitGroup, path string, lines *atomic.Int64) {
	cfg := rest.CopyConfig(e.config)
	c, err := rest.HTTPClientFor(cfg)
	if err != nil {
		b.Fatal(err)
	}
	r, err := http.NewRequestWithContext(stop, "GET", e.http.URL+path, nil)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	readers.Go(func() {
		defer resp.Body.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := resp.Body.Read(buf)
			lines.Add(int64(bytes.Count(buf[:n], []byte("\n"))))
			if err != nil {
				return
			}
		}
	})
}

func BenchmarkHTTPGetPod(b *testing.B) {
	e, _ := bench(b)
	e.fill(b, 1)
	c, err := rest.HTTPClientFor(e.config)
	if err != nil {
		b.Fatal(err)
	}
	defer cpu(b, "op", 1)()
	for b.Loop() {
		r, err := c.Get(e.http.URL + "/api/v1/namespaces/default/pods/p00000")
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
}
