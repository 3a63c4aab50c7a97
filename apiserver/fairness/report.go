package fairness

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// buckets of the histograms, in seconds (those of upstream's wait durations).
var buckets = [...]float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}

type histogram struct {
	counts [len(buckets) + 1]atomic.Int64
	nanos  atomic.Int64
}

func (h *histogram) observe(d time.Duration) {
	i, s := 0, d.Seconds()
	for i < len(buckets) && s > buckets[i] {
		i++
	}
	h.counts[i].Add(1)
	h.nanos.Add(int64(d))
}

func (h *histogram) write(w io.Writer, name, labels string) {
	total := int64(0)
	for i := range h.counts {
		total += h.counts[i].Load()
		le := "+Inf"
		if i < len(buckets) {
			le = fmt.Sprint(buckets[i])
		}
		fmt.Fprintf(w, "%s_bucket{%s,le=%q} %d\n", name, labels, le, total)
	}
	fmt.Fprintf(w, "%s_sum{%s} %v\n%s_count{%s} %d\n", name, labels, time.Duration(h.nanos.Load()).Seconds(), name, labels, total)
}

var reasons = [...]string{string(queueFull), string(concurrencyLimit), string(timeOut), string(cancelled), tooManyBytes}

// series is the numbers of one schema in one level.
type series struct {
	schema, level   string
	dispatched      atomic.Int64
	executing       atomic.Int64
	rejected        [len(reasons)]atomic.Int64
	wait, execution histogram
}

// seriesOf is called with the lock held.
func (g *Gate) seriesOf(schema, level string) *series {
	key := [2]string{schema, level}
	if g.series[key] == nil {
		g.series[key] = &series{schema: schema, level: level}
	}
	return g.series[key]
}

func (s *series) admit(waited time.Duration) {
	s.dispatched.Add(1)
	s.executing.Add(1)
	s.wait.observe(waited)
}

func (s *series) reject(reason string) {
	if i := slices.Index(reasons[:], reason); i >= 0 {
		s.rejected[i].Add(1)
	}
}

// WriteMetrics writes apiserver_flowcontrol_* in the text format of Prometheus.
func (g *Gate) WriteMetrics(w io.Writer) {
	g.mu.Lock()
	all := slices.SortedFunc(maps.Values(g.series), func(a, b *series) int {
		return strings.Compare(a.level+"\x00"+a.schema, b.level+"\x00"+b.schema)
	})
	levels := make([]level, len(g.core.levels))
	queued := map[string]int{}
	for i, l := range g.core.levels {
		levels[i] = *l
		for _, q := range l.active {
			for _, wt := range q.waiters {
				queued[wt.who.schema+"\x00"+l.name]++
			}
		}
	}
	g.mu.Unlock()
	slices.SortFunc(levels, func(a, b level) int { return strings.Compare(a.name, b.name) })
	head := func(name, kind, help string) {
		fmt.Fprintf(w, "# HELP apiserver_flowcontrol_%s %s\n# TYPE apiserver_flowcontrol_%s %s\n", name, help, name, kind)
	}
	each := func(name, kind, help string, value func(*series) int64) {
		head(name, kind, help)
		for _, s := range all {
			fmt.Fprintf(w, "apiserver_flowcontrol_%s{flow_schema=%q,priority_level=%q} %d\n", name, s.schema, s.level, value(s))
		}
	}
	every := func(name, help string, value func(*level) int) {
		head(name, "gauge", help)
		for i := range levels {
			fmt.Fprintf(w, "apiserver_flowcontrol_%s{priority_level=%q} %d\n", name, levels[i].name, value(&levels[i]))
		}
	}
	each("dispatched_requests_total", "counter", "[BETA] Number of requests executed by API Priority and Fairness subsystem", func(s *series) int64 { return s.dispatched.Load() })
	each("current_executing_requests", "gauge", "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem", func(s *series) int64 { return s.executing.Load() })
	each("current_inqueue_requests", "gauge", "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem", func(s *series) int64 { return int64(queued[s.schema+"\x00"+s.level]) })
	head("rejected_requests_total", "counter", "[BETA] Number of requests rejected by API Priority and Fairness subsystem")
	for _, s := range all {
		for i, reason := range reasons {
			if n := s.rejected[i].Load(); n > 0 {
				fmt.Fprintf(w, "apiserver_flowcontrol_rejected_requests_total{flow_schema=%q,priority_level=%q,reason=%q} %d\n", s.schema, s.level, reason, n)
			}
		}
	}
	head("request_wait_duration_seconds", "histogram", "[BETA] Length of time a request spent waiting in its queue")
	for _, s := range all {
		if s.dispatched.Load() > 0 {
			s.wait.write(w, "apiserver_flowcontrol_request_wait_duration_seconds", fmt.Sprintf("execute=\"true\",flow_schema=%q,priority_level=%q", s.schema, s.level))
		}
	}
	head("request_execution_seconds", "histogram", "[ALPHA] Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem")
	for _, s := range all {
		if s.dispatched.Load() > 0 {
			s.execution.write(w, "apiserver_flowcontrol_request_execution_seconds", fmt.Sprintf("flow_schema=%q,priority_level=%q", s.schema, s.level))
		}
	}
	every("nominal_limit_seats", "[BETA] Nominal number of execution seats configured for each priority level", func(l *level) int { return l.nominal })
	every("lower_limit_seats", "[ALPHA] Configured lower bound on number of execution seats available to each priority level", func(l *level) int { return l.least })
	every("upper_limit_seats", "[ALPHA] Configured upper bound on number of execution seats available to each priority level", func(l *level) int { return l.most })
	every("current_limit_seats", "[ALPHA] current derived number of execution seats available to each priority level", func(l *level) int { return max(l.nominal, l.used) })
	every("current_executing_seats", "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", func(l *level) int { return l.used })
	fmt.Fprintf(w, "# HELP coracle_inflight_bytes Estimated memory of the requests in flight.\n# TYPE coracle_inflight_bytes gauge\ncoracle_inflight_bytes %d\n", g.bytes.Load())
	fmt.Fprintf(w, "# HELP coracle_inflight_bytes_rejected_total Requests refused because too many bytes were in flight.\n# TYPE coracle_inflight_bytes_rejected_total counter\ncoracle_inflight_bytes_rejected_total %d\n", g.tooMuch.Load())
}

// DebugPath is where Dump answers: /debug/api_priority_and_fairness/dump_priority_levels, dump_queues and dump_requests.
const DebugPath = "/debug/api_priority_and_fairness/"

// Dump writes the state that a debug path names; false if there is no such.
func (g *Gate) Dump(w io.Writer, what string) bool {
	out := tabwriter.NewWriter(w, 8, 0, 1, ' ', 0)
	row := func(cells ...any) {
		for _, c := range cells[:len(cells)-1] {
			fmt.Fprintf(out, "%v,\t", c)
		}
		fmt.Fprintf(out, "%v\n", cells[len(cells)-1])
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	levels := slices.SortedFunc(slices.Values(g.core.levels), func(a, b *level) int { return strings.Compare(a.name, b.name) })
	switch what {
	case "dump_priority_levels":
		row("PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests", "DispatchedRequests", "RejectedRequests", "TimedoutRequests", "CancelledRequests")
		for _, l := range levels {
			row(l.name, len(l.active), l.running == 0 && l.waiting == 0, l.gone, l.waiting, l.running, l.dispatched, l.refused, l.timedOut, l.cancelled)
		}
	case "dump_queues":
		row("PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR")
		for _, l := range levels {
			for i, q := range l.queues {
				if q == nil {
					q = &queue{}
				}
				row(l.name, i, len(q.waiters), q.running, q.seats, fmt.Sprintf("%.8fss", q.start))
			}
		}
	case "dump_requests":
		row("PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime", "InitialSeats", "UserName", "Verb", "APIPath")
		for _, l := range levels {
			for _, q := range l.active {
				for i, wt := range q.waiters {
					r := wt.who
					row(l.name, r.schema, slices.Index(l.queues, q), i, r.flow, wt.arrived.UTC().Format(time.RFC3339Nano), wt.width, r.user, r.verb, r.path)
				}
			}
		}
	default:
		return false
	}
	return out.Flush() == nil
}
