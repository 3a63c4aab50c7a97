// Package metrics counts what the API server does, under the names and labels that upstream's kube-apiserver uses, and writes it in
// the text format of Prometheus.
//
// It owns the counters of requests and what the process and the Go runtime tell of themselves. Recording a request takes no lock and
// no allocation once its labels were seen; everything else is read when somebody asks.
package metrics

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Labels tell requests apart.
type Labels struct {
	// Verb as upstream's metrics have it: GET, LIST, WATCH, POST, PUT, PATCH, APPLY, DELETE, DELETECOLLECTION, CONNECT.
	Verb                                  string
	Group, Version, Resource, Subresource string
	// Scope is "resource", "namespace", "cluster" or "".
	Scope  string
	DryRun string
}

// maxSeries bounds how many combinations are told apart; what comes later is counted without a resource.
const maxSeries = 4096

// Requests counts requests. The zero value is ready for use; it is safe for concurrent use.
type Requests struct {
	series atomic.Pointer[map[Labels]*Series]
	mu     sync.Mutex // guards changes of series
	// ReadOnly and Mutating are the requests in flight that are not long-running.
	ReadOnly, Mutating atomic.Int64
}

// durations and sizes are the buckets of the histograms, in seconds and bytes.
var (
	durations = [...]float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}
	sizes     = [...]float64{1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}
)

// maxCodes is how many response codes of one series are told apart.
const maxCodes = 12

// Series is the numbers of one combination of labels.
type Series struct {
	codes    [maxCodes]struct{ code, n atomic.Int64 }
	duration [len(durations) + 1]atomic.Int64
	nanos    atomic.Int64
	size     [len(sizes) + 1]atomic.Int64
	bytes    atomic.Int64
	// Open is how many long-running requests there are.
	Open atomic.Int64
}

// Of returns the series of some labels.
func (r *Requests) Of(l Labels) *Series {
	if m := r.series.Load(); m != nil {
		if s := (*m)[l]; s != nil {
			return s
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := map[Labels]*Series{}
	if m := r.series.Load(); m != nil {
		old = *m
	}
	if len(old) >= maxSeries {
		l = Labels{Verb: l.Verb}
	}
	if s := old[l]; s != nil {
		return s
	}
	grown := maps.Clone(old)
	s := &Series{}
	grown[l] = s
	r.series.Store(&grown)
	return s
}

// Count counts a request that was answered.
func (s *Series) Count(code int) {
	for i := range s.codes {
		c := &s.codes[i]
		if have := c.code.Load(); have == int64(code) || have == 0 && (c.code.CompareAndSwap(0, int64(code)) || c.code.Load() == int64(code)) {
			c.n.Add(1)
			return
		}
	}
	s.codes[maxCodes-1].n.Add(1)
}

// Observe records how long a request took that is not long-running, and how long its body was.
func (s *Series) Observe(took time.Duration, size int64) {
	i, seconds := 0, took.Seconds()
	for i < len(durations) && seconds > durations[i] {
		i++
	}
	s.duration[i].Add(1)
	s.nanos.Add(int64(took))
	i = 0
	for i < len(sizes) && float64(size) > sizes[i] {
		i++
	}
	s.size[i].Add(1)
	s.bytes.Add(size)
}

// Head writes the HELP and TYPE lines of a metric.
func Head(w io.Writer, name, kind, help string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// One writes a metric without labels.
func One(w io.Writer, name, kind, help string, value any) {
	Head(w, name, kind, help)
	fmt.Fprintf(w, "%s %v\n", name, value)
}

func (l Labels) text(dryRun bool) string {
	dry := ""
	if dryRun {
		dry = fmt.Sprintf("dry_run=%q,", l.DryRun)
	}
	return fmt.Sprintf(`component="apiserver",%sgroup=%q,resource=%q,scope=%q,subresource=%q,verb=%q,version=%q`,
		dry, l.Group, l.Resource, l.Scope, l.Subresource, l.Verb, l.Version)
}

// Write writes apiserver_request_* and its relatives.
func (r *Requests) Write(w io.Writer) {
	series := map[Labels]*Series{}
	if m := r.series.Load(); m != nil {
		series = *m
	}
	keys := slices.SortedFunc(maps.Keys(series), func(a, b Labels) int { return strings.Compare(a.text(true), b.text(true)) })
	Head(w, "apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.")
	for _, l := range keys {
		for i := range series[l].codes {
			if c := &series[l].codes[i]; c.n.Load() > 0 {
				fmt.Fprintf(w, "apiserver_request_total{code=\"%d\",%s} %d\n", c.code.Load(), l.text(true), c.n.Load())
			}
		}
	}
	Head(w, "apiserver_request_duration_seconds", "histogram", "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.")
	r.histograms(w, "apiserver_request_duration_seconds", keys, series, true)
	Head(w, "apiserver_request_sli_duration_seconds", "histogram", "[BETA] Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.")
	r.histograms(w, "apiserver_request_sli_duration_seconds", keys, series, false)
	Head(w, "apiserver_response_sizes", "histogram", "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.")
	for _, l := range keys {
		if s := series[l]; l.Verb != "WATCH" && l.Verb != "CONNECT" {
			histogram(w, "apiserver_response_sizes", l.text(false), sizes[:], s.size[:], float64(s.bytes.Load()))
		}
	}
	Head(w, "apiserver_longrunning_requests", "gauge", "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.")
	for _, l := range keys {
		if n := series[l].Open.Load(); n > 0 || l.Verb == "WATCH" {
			fmt.Fprintf(w, "apiserver_longrunning_requests{%s} %d\n", l.text(false), n)
		}
	}
	Head(w, "apiserver_current_inflight_requests", "gauge", "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.")
	fmt.Fprintf(w, "apiserver_current_inflight_requests{request_kind=\"mutating\"} %d\n", r.Mutating.Load())
	fmt.Fprintf(w, "apiserver_current_inflight_requests{request_kind=\"readOnly\"} %d\n", r.ReadOnly.Load())
}

func (r *Requests) histograms(w io.Writer, name string, keys []Labels, series map[Labels]*Series, dryRun bool) {
	for _, l := range keys {
		if s := series[l]; l.Verb != "WATCH" && l.Verb != "CONNECT" && (dryRun || l.DryRun == "") {
			histogram(w, name, l.text(dryRun), durations[:], s.duration[:], time.Duration(s.nanos.Load()).Seconds())
		}
	}
}

func histogram(w io.Writer, name, labels string, bounds []float64, counts []atomic.Int64, sum float64) {
	total := int64(0)
	for i := range counts {
		total += counts[i].Load()
		le := "+Inf"
		if i < len(bounds) {
			le = fmt.Sprint(bounds[i])
		}
		fmt.Fprintf(w, "%s_bucket{%s,le=%q} %d\n", name, labels, le, total)
	}
	fmt.Fprintf(w, "%s_sum{%s} %v\n%s_count{%s} %d\n", name, labels, sum, name, labels, total)
}
