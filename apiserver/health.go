package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// checks are the parts of /healthz, /livez or /readyz, in order.
func (s *Server) checks(kind string) []Check {
	well := func() error { return nil }
	stored := well
	if h, ok := s.cfg.Store.(interface{ Health() error }); ok {
		stored = h.Health
	}
	checks := []Check{
		{Name: "ping", Live: true, Err: well},
		{Name: "log", Live: true, Err: well},
		// The store is this process's own. A disk that fails takes it along, as etcd's would.
		{Name: "etcd", Live: true, Err: stored},
	}
	if kind == "readyz" {
		checks = append(checks, Check{Name: "etcd-readiness", Err: stored}, Check{Name: "informer-sync", Err: well})
	}
	for _, c := range s.cfg.Checks {
		if c.Live || kind != "livez" {
			checks = append(checks, c)
		}
	}
	if kind == "readyz" {
		checks = append(checks, Check{Name: "shutdown", Err: func() error {
			select {
			case <-s.stop:
				return errors.New("process is shutting down")
			default:
				return nil
			}
		}})
	}
	return checks
}

// health answers /healthz, /livez and /readyz, whole or one check of it.
func (s *Server) health(w http.ResponseWriter, r *http.Request, kind string) {
	checks := s.checks(kind)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if name := strings.Trim(strings.TrimPrefix(r.URL.Path, "/"+kind), "/"); name != "" {
		oneCheck(w, checks, name)
		return
	}
	query := r.URL.Query()
	excluded := map[string]bool{}
	for _, list := range query["exclude"] {
		for name := range strings.SplitSeq(list, ",") {
			excluded[name] = true
		}
	}
	var text strings.Builder
	var broken []string
	for _, c := range checks {
		if excluded[c.Name] {
			delete(excluded, c.Name)
			fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := c.Err(); err != nil {
			broken = append(broken, c.Name)
			s.cfg.Log.Warn("health check failed", "endpoint", kind, "check", c.Name, "error", err)
			fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.Name)
			continue
		}
		fmt.Fprintf(&text, "[+]%s ok\n", c.Name)
	}
	if len(excluded) > 0 {
		names := slices.Sorted(maps.Keys(excluded))
		for i := range names {
			names[i] = strconv.Quote(names[i])
		}
		fmt.Fprintf(&text, "warn: some health checks cannot be excluded: no matches for %s\n", strings.Join(names, ","))
	}
	switch {
	case len(broken) > 0:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s%s check failed\n", text.String(), kind)
	case query.Has("verbose"):
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
