package apiserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/fairness"
	"coracle.dev/coracle/apiserver/metrics"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/client"
	"sigs.k8s.io/yaml"
)

// exchange is one request and what is kept of it for metrics, audit and fairness. It is the response writer of everything behind
// it, and belongs to the goroutine of the request.
type exchange struct {
	http.ResponseWriter
	server *Server
	began  time.Time
	code   int
	bytes  int64
	long   bool
	// audit is nil for a request that is not recorded; its methods may be called nevertheless.
	audit  *audit.Event
	pass   fairness.Pass
	series *metrics.Series // nil while it is not known what the request is about
	gauge  interface{ Add(int64) int64 }
}

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(code int) {
	if x.code == 0 && (code >= http.StatusOK || code == http.StatusSwitchingProtocols) {
		x.code = code
		if x.long {
			x.audit.Started(code, x.server.cfg.Now())
		}
	}
	x.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	if x.code == 0 {
		x.WriteHeader(http.StatusOK)
	}
	n, err := x.ResponseWriter.Write(p)
	x.bytes += int64(n)
	return n, err
}

// Flush implements http.Flusher.
func (x *exchange) Flush() {
	if f, ok := x.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack implements http.Hijacker.
func (x *exchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(x.ResponseWriter).Hijack()
	if err == nil && x.code == 0 {
		x.code = http.StatusSwitchingProtocols
		x.audit.Started(x.code, x.server.cfg.Now())
	}
	return conn, rw, err
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// end is deferred: it turns a panic into a log line and a 500, or breaks off an answer that has begun, and counts and records how the
// request ended.
func (x *exchange) end(r *http.Request) {
	p := recover()
	x.pass.Release()
	switch {
	case p != nil:
		text := fmt.Sprint(p)
		x.audit.Panicked(text, x.server.cfg.Now())
		if p != http.ErrAbortHandler {
			x.server.cfg.Log.Error("panic in a request", "method", r.Method, "path", r.URL.Path, "panic", text, "stack", string(debug.Stack()))
			if x.code == 0 {
				x.server.fail(x, r, apierrors.NewInternalError(fmt.Errorf("this request caused apiserver to panic. Look in the logs for details")))
			} else {
				p = http.ErrAbortHandler
			}
		}
	case x.code == 0:
		x.code = http.StatusOK // net/http says so
	}
	now := x.server.cfg.Now()
	x.audit.Complete(x.code, now)
	if x.gauge != nil {
		x.gauge.Add(-1)
	}
	if x.series != nil {
		x.series.Count(x.code)
		if x.long {
			x.series.Open.Add(-1)
		} else {
			x.series.Observe(now.Sub(x.began), x.bytes)
		}
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
}

// upper are the verbs as metrics have them.
var upper = map[string]string{"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH",
	"delete": "DELETE", "deletecollection": "DELETECOLLECTION", "proxy": "CONNECT"}

// counted begins to count a request for a resource that exists.
func (x *exchange) counted(info *route.Info, r *http.Request) {
	l := metrics.Labels{Verb: upper[info.Verb], Group: info.Group, Version: info.Version, Resource: info.Resource, Subresource: info.Subresource}
	switch {
	case l.Verb == "":
		l.Verb = "other"
	case l.Verb == "PATCH" && r.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType):
		l.Verb = "APPLY"
	case x.long && info.Verb != "watch":
		l.Verb = "CONNECT"
	}
	switch {
	case info.Name != "" || info.Verb == "create":
		l.Scope = "resource"
	case info.Namespace != "":
		l.Scope = "namespace"
	default:
		l.Scope = "cluster"
	}
	if strings.Contains(r.URL.RawQuery, "dryRun=All") {
		l.DryRun = "All"
	}
	x.count(l, info)
}

func (x *exchange) count(l metrics.Labels, info *route.Info) {
	x.series = x.server.requests.Of(l)
	switch {
	case x.long:
		x.series.Open.Add(1)
		return
	case info.Verb == "get" || info.Verb == "list":
		x.gauge = &x.server.requests.ReadOnly
	default:
		x.gauge = &x.server.requests.Mutating
	}
	x.gauge.Add(1)
}

// countedPaths are the paths besides objects that are counted under their own name.
var countedPaths = []string{"/healthz", "/livez", "/readyz", "/version", "/metrics", "/api", "/apis", "/openapi/v2", "/openapi/v3"}

// countedPath begins to count a request that is not for a resource.
func (x *exchange) countedPath(info *route.Info) {
	if slices.Contains(countedPaths, info.Path) {
		x.count(metrics.Labels{Verb: strings.ToUpper(info.Verb), Subresource: info.Path}, info)
	}
}

// auditID is the id of a request: the client's own, if it has a proper one.
func auditID(r *http.Request) string {
	if ids := r.Header["Audit-Id"]; len(ids) > 0 && ids[0] != "" {
		return ids[0][:min(len(ids[0]), 64)]
	}
	return newUUID()
}

// record begins the audit event of a request. user is nil if there is none.
func (x *exchange) record(r *http.Request, info *route.Info, user *client.User, id string) error {
	var err error
	x.audit, err = x.server.cfg.Audit.Begin(r, id, &audit.Attributes{
		User: user, Verb: info.Verb, IsResource: info.IsResource, Path: info.Path, Group: info.Group, Version: info.Version,
		Resource: info.Resource, Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name,
	}, x.began)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("the request cannot be recorded, as the audit policy asks: %w", err))
	}
	return nil
}

// strangers records a request whose credentials are not good.
func (x *exchange) strangers(r *http.Request, info *route.Info, id string) {
	tried := "x509"
	if scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " "); scheme != "" {
		tried = strings.ToLower(scheme)
	}
	if x.server.cfg.Audit == nil || x.record(r, info, nil, id) != nil {
		return
	}
	x.audit.Status(&metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonUnauthorized,
		Message: "Authentication failed, attempted: " + tried, Code: http.StatusUnauthorized})
	x.audit.Started(http.StatusUnauthorized, x.server.cfg.Now())
	x.audit = nil // there is nothing more to tell
}

// bytesOfRequest is how much memory a request takes for each byte of its body: the bytes, the object, and what is made of it.
const bytesOfRequest = 4

// bytesOfEntry is what one object of a long list takes while it is sent.
const bytesOfEntry = 2 << 10

// cost estimates the seats and the memory that a request takes.
func (x *exchange) cost(r *http.Request, info *route.Info) (width int, bytes int64) {
	width = 1
	switch {
	case r.ContentLength > 0:
		bytes = min(r.ContentLength, wire.MaxBody) * bytesOfRequest
	case r.ContentLength < 0:
		bytes = wire.MaxBody * bytesOfRequest
	}
	if !info.IsResource || info.Verb != "list" && (info.Verb != "watch" || !strings.Contains(r.URL.RawQuery, "sendInitialEvents")) {
		return width, bytes
	}
	k := x.server.cfg.Registry.ByResource(schema.GroupVersionResource{Group: info.Group, Version: info.Version, Resource: info.Resource})
	if k == nil || k.Virtual {
		return width, bytes
	}
	n := x.server.cfg.Store.Snapshot().Count(stored(k), info.Namespace)
	if strings.Contains(r.URL.RawQuery, "limit=") {
		if limit, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil && limit > 0 {
			n = min(n, limit)
		}
	}
	if n > 100 {
		bytes += int64(n) * bytesOfEntry
	}
	return fairness.ListWidth(n), bytes
}

// enter waits until the request may run.
func (x *exchange) enter(ctx context.Context, r *http.Request, info *route.Info, user *client.User) error {
	width, bytes := x.cost(r, info)
	pass, err := x.server.gate.Enter(ctx, info, user, width, bytes)
	x.pass = pass
	h := x.Header()
	if pass.Schema != "" {
		h["X-Kubernetes-Pf-Flowschema-Uid"] = []string{pass.Schema}
	}
	if pass.Level != "" {
		h["X-Kubernetes-Pf-Prioritylevel-Uid"] = []string{pass.Level}
	}
	return err
}

// recordObject tells the audit event of an object that a request carries.
func (x *exchange) recordObject(obj runtime.Object, gvk schema.GroupVersionKind) {
	if x.audit == nil {
		return
	}
	if o, ok := obj.(metav1.Object); ok {
		x.audit.Object(o)
	}
	if !x.audit.WantsRequest() {
		return
	}
	if body, err := wire.Object(wire.JSON, obj, gvk); err == nil {
		x.audit.Request(body.Bytes())
	}
}

// recordPatch tells it of a patch.
func (x *exchange) recordPatch(kind types.PatchType, data []byte) {
	if !x.audit.WantsRequest() {
		return
	}
	if kind == types.ApplyYAMLPatchType {
		if converted, err := yaml.YAMLToJSON(data); err == nil {
			data = converted
		}
	}
	x.audit.Request(data)
}

// recordAnswer tells it of the body of the answer, which again makes as JSON if it is not.
func (x *exchange) recordAnswer(media wire.Media, body wire.Body, again func() (wire.Body, error)) {
	if !x.audit.WantsResponse() {
		return
	}
	if media == wire.Protobuf {
		var err error
		if body, err = again(); err != nil {
			return
		}
	}
	x.audit.Response(body.Bytes())
}
