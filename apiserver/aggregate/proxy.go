package aggregate

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	via := &speaker{base: c.Transport, user: user, audit: w.Header().Get("Audit-Id")}
	h := utilproxy.NewUpgradeAwareHandler(location, via, true, target.HTTP1, responder{s})
	h.UpgradeTransport = via
	h.UseLocationHost = true
	h.FlushInterval = -1 // events of watches go out as they come
	h.RejectForwardingRedirects = true
	h.ServeHTTP(w, out)
}

// speaker tells a server for whom a request is. It stands behind the reverse proxy, which takes away every header that the client
// names in its header Connection.
type speaker struct {
	base  http.RoundTripper
	user  client.User
	audit string // "" for a request without id
}

// RoundTrip implements http.RoundTripper.
func (s *speaker) RoundTrip(r *http.Request) (*http.Response, error) {
	r = s.mark(r)
	if err := rewindable(r); err != nil {
		return nil, err
	}
	return s.base.RoundTrip(r)
}

// rewindable keeps a body that is not large, so that the transport can send the request over another connection when the one
// that it took from its pool turns out to be closed before anything was written.
func rewindable(r *http.Request) error {
	const most = 1 << 20
	if r.Body == nil || r.ContentLength <= 0 || r.ContentLength > most {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, r.ContentLength))
	if err != nil {
		return err
	}
	_ = r.Body.Close() // it has been read
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	r.Body, err = r.GetBody()
	return err
}

// WrappedRoundTripper implements net.RoundTripperWrapper of apimachinery, which finds the dialer for upgrades by it.
func (s *speaker) WrappedRoundTripper() http.RoundTripper { return s.base }

// WrapRequest implements utilproxy.UpgradeRequestRoundTripper.
func (s *speaker) WrapRequest(r *http.Request) (*http.Request, error) {
	r = s.mark(r)
	// The client's own list would have proxies on the way take away what was just set.
	r.Header.Set("Connection", "Upgrade")
	return r, nil
}

func (s *speaker) mark(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	transport.SetAuthProxyHeaders(r, s.user.Name, s.user.UID, s.user.Groups, s.user.Extra)
	if s.audit != "" {
		r.Header.Set("Audit-Id", s.audit)
	}
	return r
}

// responder hears of failures before a response began.
type responder struct{ *service }

// Error implements utilproxy.ErrorResponder. What went wrong between here and the server is for the log, not for users.
func (s responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	level := slog.LevelWarn
	if r.Context().Err() != nil {
		level = slog.LevelDebug // the client went away
	}
	s.owner.Log.Log(r.Context(), level, "a request could not be handed to an aggregated server", "group", s.gv.String(), "error", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(&metav1.Status{ // a client that went away
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonServiceUnavailable, Code: http.StatusServiceUnavailable,
		Message: "the server of " + s.gv.String() + " cannot be reached",
	})
}
