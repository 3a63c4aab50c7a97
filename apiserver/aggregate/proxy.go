package aggregate

import (
	"net/http"
	"net/url"
	"strings"

	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/client-go/transport"
	"k8s.io/streaming/pkg/httpstream"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
)

// unavailable is all that a client hears of a server that cannot be reached.
func unavailable(w http.ResponseWriter) {
	http.Error(w, "service unavailable", http.StatusServiceUnavailable)
}

// ServeHTTP proxies a request to the server of the APIService. The request's context holds the user.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.available {
		unavailable(w)
		return
	}
	user, ok := client.UserFrom(r.Context())
	if !ok {
		http.Error(w, "missing user", http.StatusInternalServerError)
		return
	}
	if _, err := backend.Resolve(s.owner.Pool.Snapshot(), *s.target.Service); err != nil {
		s.owner.Log.Debug("an aggregated server has no address", "group", s.gv.String(), "error", err)
		unavailable(w)
		return
	}
	s.forward(w, r, user)
}

func (s *service) forward(w http.ResponseWriter, r *http.Request, user client.User) {
	target := *s.target
	target.HTTP1 = httpstream.IsUpgradeRequest(r)
	c, u, err := s.owner.Pool.Client(target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	location := &url.URL{Scheme: u.Scheme, Host: u.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	out := r.Clone(r.Context())
	out.Header.Del("Authorization")
	for name := range out.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			out.Header.Del(name) // the user is who was impersonated
		}
	}
	transport.SetAuthProxyHeaders(out, user.Name, user.UID, user.Groups, user.Extra)
	if id := w.Header().Get("Audit-Id"); id != "" {
		out.Header.Set("Audit-Id", id)
	}
	h := utilproxy.NewUpgradeAwareHandler(location, c.Transport, true, target.HTTP1, responder{})
	h.UseLocationHost = true
	h.FlushInterval = -1 // events of watches go out as they come
	h.RejectForwardingRedirects = true
	h.ServeHTTP(w, out)
}

// responder hears of failures before a response began.
type responder struct{}

// Error implements utilproxy.ErrorResponder.
func (responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}
