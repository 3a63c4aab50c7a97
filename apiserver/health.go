package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"coracle.dev/coracle/apiserver/route"
)

// health answers /healthz, /livez and /readyz, whole or one check of it.
func (s *Server) health(w http.ResponseWriter, r *http.Request, kind string) {
	checks := append([]Check{{Name: "ping", Live: true, Err: func() error { return nil }}}, s.cfg.Checks...)
	if kind == "livez" {
		checks = slices.DeleteFunc(checks, func(c Check) bool { return !c.Live })
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if name := strings.Trim(strings.TrimPrefix(r.URL.Path, "/"+kind), "/"); name != "" {
		oneCheck(w, checks, name)
		return
	}
	excluded := map[string]bool{}
	for _, name := range r.URL.Query()["exclude"] {
		excluded[name] = true
	}
	var text strings.Builder
	failed := false
	for _, c := range checks {
		switch {
		case excluded[c.Name]:
			fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.Name)
		case c.Err() != nil:
			failed = true
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.Name)
		default:
			fmt.Fprintf(&text, "[+]%s ok\n", c.Name)
		}
	}
	switch {
	case failed:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s%s check failed\n", text.String(), kind)
	case r.URL.Query().Has("verbose"):
		fmt.Fprintf(w, "%s%s check passed\n", text.String(), kind)
	default:
		fmt.Fprint(w, "ok")
	}
}

func oneCheck(w http.ResponseWriter, checks []Check, name string) {
	for _, c := range checks {
		if c.Name != name {
			continue
		}
		if c.Err() != nil {
			http.Error(w, "internal server error: "+name+" check failed", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
		return
	}
	http.Error(w, "404 page not found", http.StatusNotFound)
}

// version answers /version.
func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.cfg.Version)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
}

// index answers / with the paths there are.
func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	paths := []string{
		"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics",
		"/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
	}
	seen := map[string]bool{}
	add := func(p string) {
		if !seen[p] {
			seen[p] = true
			paths = append(paths, p)
		}
	}
	for _, k := range s.cfg.Registry.All() {
		if k.Group == "" {
			continue
		}
		add("/apis/" + k.Group)
		for i := range k.Versions {
			if !k.Versions[i].NotServed {
				add("/apis/" + k.Group + "/" + k.Versions[i].Name)
			}
		}
	}
	slices.Sort(paths)
	writeJSON(w, map[string][]string{"paths": paths})
}

// openID answers OpenID discovery, with which others verify service account tokens.
func (s *Server) openID(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "public, max-age=3600")
	writeJSON(w, struct {
		Issuer        string   `json:"issuer"`
		KeySet        string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{s.cfg.Issuer, s.cfg.Issuer + "/openid/v1/jwks", []string{"id_token"}, []string{"public"}, []string{"ES256"}})
}

// verbNames are the verbs that metrics tell apart.
var verbNames = [...]string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "other"}

// metrics counts what the server does.
type metrics struct {
	requests [len(verbNames)]atomic.Int64
	rejected atomic.Int64
	watches  atomic.Int64
}

func (m *metrics) count(info *route.Info) {
	i := slices.Index(verbNames[:], info.Verb)
	if i < 0 || !info.IsResource {
		i = len(verbNames) - 1
	}
	m.requests[i].Add(1)
}

// serveMetrics answers /metrics in the text format of Prometheus.
func (s *Server) serveMetrics(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprintf(w, "# HELP apiserver_request_total Requests by verb.\n# TYPE apiserver_request_total counter\n")
	for i, verb := range verbNames {
		fmt.Fprintf(w, "apiserver_request_total{verb=%q} %d\n", strings.ToUpper(verb), s.metrics.requests[i].Load())
	}
	fmt.Fprintf(w, "# HELP apiserver_request_terminations_total Requests refused because too many were in flight.\n# TYPE apiserver_request_terminations_total counter\n")
	fmt.Fprintf(w, "apiserver_request_terminations_total %d\n", s.metrics.rejected.Load())
	fmt.Fprintf(w, "# HELP apiserver_longrunning_requests Watches that are open.\n# TYPE apiserver_longrunning_requests gauge\n")
	fmt.Fprintf(w, "apiserver_longrunning_requests{verb=\"WATCH\"} %d\n", s.metrics.watches.Load())
	fmt.Fprintf(w, "# HELP apiserver_current_inflight_requests Requests in flight.\n# TYPE apiserver_current_inflight_requests gauge\n")
	fmt.Fprintf(w, "apiserver_current_inflight_requests{request_kind=\"readOnly\"} %d\n", len(s.reads))
	fmt.Fprintf(w, "apiserver_current_inflight_requests{request_kind=\"mutating\"} %d\n", len(s.writes))
	bytes, encodings := s.cache.Size()
	fmt.Fprintf(w, "# HELP coracle_encodings_bytes Bytes kept of encoded objects.\n# TYPE coracle_encodings_bytes gauge\ncoracle_encodings_bytes %d\n", bytes)
	fmt.Fprintf(w, "# HELP coracle_encodings Encoded objects kept.\n# TYPE coracle_encodings gauge\ncoracle_encodings %d\n", encodings)
	fmt.Fprintf(w, "# HELP go_goroutines Number of goroutines that currently exist.\n# TYPE go_goroutines gauge\ngo_goroutines %d\n", runtime.NumGoroutine())
	fmt.Fprintf(w, "# HELP coracle_store_revision Newest revision of the store.\n# TYPE coracle_store_revision gauge\ncoracle_store_revision %d\n", s.cfg.Store.Snapshot().Revision())
}
