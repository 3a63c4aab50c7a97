package reconcile

import (
	"fmt"
	"io"
)

// WriteMetrics writes how the loops are doing in the text format of Prometheus, under
// upstream's names for work queues where there is one.
func (e *Engine) WriteMetrics(w io.Writer) {
	all := e.Health()
	family := func(name, kind, help string, value func(*Health) any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for i := range all {
			fmt.Fprintf(w, "%s{name=%q} %v\n", name, all[i].Loop, value(&all[i]))
		}
	}
	family("workqueue_depth", "gauge", "Keys that wait for a worker.", func(h *Health) any { return h.Queued })
	family("workqueue_longest_running_processor_seconds", "gauge", "For how long the oldest pass has been under way.", func(h *Health) any { return h.Longest.Seconds() })
	family("workqueue_retries_total", "counter", "Passes that ended with an error and are tried again.", func(h *Health) any { return h.Errors })
	family("coracle_loop_passes_total", "counter", "Passes.", func(h *Health) any { return h.Passes })
	family("coracle_loop_conflicts_total", "counter", "Passes that met a newer version and began again.", func(h *Health) any { return h.Conflicts })
	family("coracle_loop_refused_total", "counter", "Writes that a loop did not declare.", func(h *Health) any { return h.Refused })
	family("coracle_loop_failing", "gauge", "Keys whose last pass ended with an error.", func(h *Health) any { return h.Failing })
	family("coracle_loop_caught_up", "gauge", "Revision through which everything is reconciled.", func(h *Health) any { return int64(h.CaughtUp) })
	fmt.Fprintf(w, "# HELP coracle_events_dropped_total Events that were not recorded because there were too many.\n# TYPE coracle_events_dropped_total counter\ncoracle_events_dropped_total %d\n", e.recorder.Dropped())
}
