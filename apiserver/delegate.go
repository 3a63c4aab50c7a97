package apiserver

import (
	"context"
	"net/http"
	"strings"

	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// delegated returns who answers a request in place of this server: for objects of a group version, and for that group version's
// own document in discovery; nil if the server itself does.
func (s *Server) delegated(info *route.Info) http.Handler {
	if info.IsResource {
		return s.foreign(info.Group, info.Version)
	}
	if s.cfg.Delegate == nil || !strings.HasPrefix(info.Path, "/apis/") {
		return nil
	}
	group, version, ok := strings.Cut(strings.Trim(strings.TrimPrefix(info.Path, "/apis/"), "/"), "/")
	if !ok || strings.Contains(version, "/") {
		return nil
	}
	return s.cfg.Delegate(group, version)
}

// handOver lets another answer. A request that does not stream has the time that one of ours has.
func handOver(w http.ResponseWriter, r *http.Request, h http.Handler, user client.User, long bool) {
	ctx := client.WithUser(r.Context(), user)
	if !long {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	h.ServeHTTP(w, r.WithContext(ctx))
}
