package backend

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// Do sends a request and reads the whole answer, of at most limit bytes. The body of the response that it returns is closed. The
// caller's context bounds both. Err tells that there is no answer; one of any status is none.
func Do(c *http.Client, r *http.Request, limit int) (*http.Response, []byte, error) {
	response, err := c.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
	}
	return response, data, err
}

// steady asks once more when no connection came about, such as one that is reset in the middle of its TLS handshake. The backend
// has heard nothing then, so that this is right for every method.
type steady struct{ base *http.Transport }

// RoundTrip implements http.RoundTripper.
func (s steady) RoundTrip(r *http.Request) (*http.Response, error) {
	response, connected, err := s.try(r)
	if err == nil || connected || r.Context().Err() != nil || r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
		return response, err
	}
	r = r.Clone(r.Context())
	if r.GetBody != nil {
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	response, _, err = s.try(r)
	return response, err
}

// try sends a request, and tells whether there was a connection to send it over.
func (s steady) try(r *http.Request) (response *http.Response, connected bool, err error) {
	var got atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { got.Store(true) }}
	response, err = s.base.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	return response, got.Load(), err
}

// WrappedRoundTripper implements net.RoundTripperWrapper of apimachinery, which finds the dialer for upgrades by it.
func (s steady) WrappedRoundTripper() http.RoundTripper { return s.base }
