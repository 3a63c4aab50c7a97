package proxy

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Access is one request, for the access log. It holds no header values, queries or bodies: nothing that may be a secret.
type Access struct {
	// Listener, Route, Backend and Endpoint say which way it went; what it did not reach is empty.
	Listener, Route, Backend, Endpoint string
	// Client is the peer's address.
	Client string
	// Method, Host and Path as matched, without query.
	Method, Host, Path string
	// Major is the client's HTTP version: 1 or 2.
	Major int
	// Code of the answer; 499 is a client that went away before it.
	Code int
	// Reason is why the proxy answered itself.
	Reason string
	// Tries is how many endpoints were asked.
	Tries int
	// Duration is from the request's head to the end of the answer.
	Duration time.Duration
}

// LogAccess returns a function for Config.Access that writes to log, level Info.
func LogAccess(log *slog.Logger) func(*Access) {
	return func(a *Access) {
		log.Info("request", "listener", a.Listener, "route", a.Route, "backend", a.Backend, "endpoint", a.Endpoint, "client", a.Client,
			"method", a.Method, "host", a.Host, "path", a.Path, "major", a.Major, "code", a.Code, "reason", a.Reason, "tries", a.Tries, "duration", a.Duration)
	}
}

// maxStats bounds the routes that are counted by name; later ones are counted as "other".
const maxStats = 16384

// bounds of the duration histogram, in seconds.
var bounds = [...]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

type stats struct {
	routes sync.Map // string -> *routeStats
	size   atomic.Int32
}

type routeStats struct {
	codes              [600]atomic.Pointer[atomic.Uint64]
	buckets            [len(bounds) + 1]atomic.Uint64
	sum                atomic.Int64
	streams, unstarted atomic.Uint64
}

func (s *stats) of(route string) *routeStats {
	if r, ok := s.routes.Load(route); ok {
		return r.(*routeStats)
	}
	if s.size.Load() >= maxStats {
		route = "other"
	}
	r, had := s.routes.LoadOrStore(route, &routeStats{})
	if !had {
		s.size.Add(1)
	}
	return r.(*routeStats)
}

func (s *stats) stream(route string, started bool) {
	if started {
		s.of(route).streams.Add(1)
	} else {
		s.of(route).unstarted.Add(1)
	}
}

func (r *routeStats) add(code int, took time.Duration) {
	if code < 0 || code >= len(r.codes) {
		code = 0
	}
	n := r.codes[code].Load()
	if n == nil {
		r.codes[code].CompareAndSwap(nil, new(atomic.Uint64))
		n = r.codes[code].Load()
	}
	n.Add(1)
	r.sum.Add(int64(took))
	i, _ := slices.BinarySearch(bounds[:], took.Seconds())
	r.buckets[i].Add(1)
}

func (p *Proxy) account(c *call) {
	took := time.Since(c.began)
	name := ""
	if c.rule != nil {
		name = c.rule.Name
	}
	p.stats.of(name).add(c.code, took)
	if p.access == nil {
		return
	}
	a := &Access{Listener: c.listener.ID, Route: name, Backend: c.backend, Client: c.req.client.String(), Method: c.req.method, Host: c.req.authority,
		Path: c.req.path, Major: c.req.major, Code: c.code, Reason: c.reason, Tries: c.tries, Duration: took}
	if c.endpoint != nil {
		a.Endpoint = c.endpoint.name
	}
	p.access(a)
}

// WriteMetrics writes the counters in Prometheus' text format. It costs nothing until it is asked for.
func (p *Proxy) WriteMetrics(w io.Writer) error {
	var b strings.Builder
	line := func(name, kind, help string, value any) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, value)
	}
	line("coracle_proxy_connections", "gauge", "Client connections that are open.", p.connections.Load())
	line("coracle_proxy_connections_refused_total", "counter", "Connections closed at once for the listener's bound.", p.overflow.Load())
	line("coracle_proxy_requests_refused_total", "counter", "Requests that could not be read or were ambiguous.", p.refused.Load())
	line("coracle_proxy_bytes_total", "counter", "Bytes of bodies and streams that were moved.", p.bytes.Load())
	line("coracle_proxy_datagrams_dropped_total", "counter", "Datagrams without a session.", p.datagramsDropped.Load())
	var names []string
	p.stats.routes.Range(func(k, _ any) bool { names = append(names, k.(string)); return true })
	slices.Sort(names)
	fmt.Fprintf(&b, "# HELP coracle_proxy_requests_total Requests by route and code.\n# TYPE coracle_proxy_requests_total counter\n")
	for _, name := range names {
		r := p.stats.of(name)
		for code := range r.codes {
			if n := r.codes[code].Load(); n != nil {
				fmt.Fprintf(&b, "coracle_proxy_requests_total{route=%q,code=\"%d\"} %d\n", name, code, n.Load())
			}
		}
	}
	fmt.Fprintf(&b, "# HELP coracle_proxy_streams_total TCP connections and UDP sessions by route.\n# TYPE coracle_proxy_streams_total counter\n")
	for _, name := range names {
		if r := p.stats.of(name); r.streams.Load()+r.unstarted.Load() > 0 {
			fmt.Fprintf(&b, "coracle_proxy_streams_total{route=%q,result=\"ok\"} %d\ncoracle_proxy_streams_total{route=%q,result=\"unreachable\"} %d\n",
				name, r.streams.Load(), name, r.unstarted.Load())
		}
	}
	fmt.Fprintf(&b, "# HELP coracle_proxy_request_duration_seconds Time from a request's head to the end of its answer.\n# TYPE coracle_proxy_request_duration_seconds histogram\n")
	for _, name := range names {
		r := p.stats.of(name)
		var total uint64
		for i := range r.buckets {
			total += r.buckets[i].Load()
			le := "+Inf"
			if i < len(bounds) {
				le = fmt.Sprint(bounds[i])
			}
			fmt.Fprintf(&b, "coracle_proxy_request_duration_seconds_bucket{route=%q,le=%q} %d\n", name, le, total)
		}
		fmt.Fprintf(&b, "coracle_proxy_request_duration_seconds_sum{route=%q} %v\ncoracle_proxy_request_duration_seconds_count{route=%q} %d\n",
			name, time.Duration(r.sum.Load()).Seconds(), name, total)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
