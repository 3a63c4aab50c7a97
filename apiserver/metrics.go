package apiserver

import (
	"bufio"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/util/uuid"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/metrics"
	"coracle.dev/coracle/apiserver/write"
)

func newUUID() string { return string(uuid.NewUUID()) }

// stored is the resource in whose place objects of a kind are stored.
func stored(k *api.Kind) string { return write.Stored(k) }

// serveMetrics answers /metrics in the text format of Prometheus.
func (s *Server) serveMetrics(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	out := bufio.NewWriterSize(w, 64<<10)
	s.requests.Write(out)
	s.gate.WriteMetrics(out)
	s.writeAudit(out)
	s.policies.WriteMetrics(out)
	s.webhooks.WriteMetrics(out)
	s.writeObjects(out)
	bytes, encodings := s.cache.Size()
	metrics.One(out, "coracle_encodings_bytes", "gauge", "Bytes kept of encoded objects.", bytes)
	metrics.One(out, "coracle_encodings", "gauge", "Encoded objects kept.", encodings)
	metrics.One(out, "coracle_store_revision", "gauge", "Newest revision of the store.", int64(s.cfg.Store.Snapshot().Revision()))
	for _, collect := range s.cfg.Collect {
		collect(out)
	}
	metrics.WriteProcess(out, s.cfg.Version)
	_ = out.Flush() // whoever asked is gone
}

// serveSLIs answers /metrics/slis: the health checks as numbers.
func (s *Server) serveSLIs(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	metrics.Head(w, "kubernetes_healthcheck", "gauge", "[STABLE] This metric records the result of a single healthcheck.")
	for _, kind := range []string{"healthz", "livez", "readyz"} {
		for _, c := range s.checks(kind) {
			ok := 1
			if c.Err() != nil {
				ok = 0
			}
			fmt.Fprintf(w, "kubernetes_healthcheck{name=%q,type=%q} %d\n", c.Name, kind, ok)
		}
	}
}

func (s *Server) writeAudit(w *bufio.Writer) {
	if s.cfg.Audit == nil {
		return
	}
	counts := s.cfg.Audit.Counts()
	metrics.One(w, "apiserver_audit_event_total", "counter", "[ALPHA] Counter of audit events generated and sent to the audit backend.", counts.Events.Load())
	metrics.Head(w, "apiserver_audit_level_total", "counter", "[ALPHA] Counter of policy levels for audit events (1 per request).")
	for l := audit.Metadata; l <= audit.RequestResponse; l++ {
		fmt.Fprintf(w, "apiserver_audit_level_total{level=%q} %d\n", l.String(), counts.Levels[l].Load())
	}
	metrics.Head(w, "apiserver_audit_error_total", "counter", "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.")
	fmt.Fprintf(w, "apiserver_audit_error_total{plugin=\"audit\"} %d\n", counts.Errors.Load())
}

// writeObjects writes how many objects of each resource there are, under the old name and the new.
func (s *Server) writeObjects(w *bufio.Writer) {
	snap := s.cfg.Store.Snapshot()
	each := func(name, help string, line func(*api.Kind, int)) {
		metrics.Head(w, name, "gauge", help)
		for _, k := range s.cfg.Registry.All() {
			if !k.Virtual && k.StoredAs == "" {
				line(k, snap.Count(k.Name(), ""))
			}
		}
	}
	each("apiserver_storage_objects", "[STABLE] Number of stored objects at the time of last check split by kind.", func(k *api.Kind, n int) {
		fmt.Fprintf(w, "apiserver_storage_objects{resource=%q} %d\n", k.Name(), n)
	})
	each("apiserver_resource_objects", "[ALPHA] Number of stored objects at the time of last check split by kind.", func(k *api.Kind, n int) {
		fmt.Fprintf(w, "apiserver_resource_objects{group=%q,resource=%q} %d\n", k.Group, k.Resource, n)
	})
}
