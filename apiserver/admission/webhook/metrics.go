package webhook

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coracle.dev/coracle/apiserver/admission"
)

// Metric is one family of what Collect gives, as upstream names and describes it.
type Metric struct {
	Name, Help, Type string
}

// The metric families.
var (
	durations       = Metric{"apiserver_admission_webhook_admission_duration_seconds", "[STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).", "histogram"}
	requests        = Metric{"apiserver_admission_webhook_request_total", "[ALPHA] Admission webhook request total, identified by name and broken out for each admission type (validating or admit) and operation.", "counter"}
	rejections      = Metric{"apiserver_admission_webhook_rejection_count", "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation.", "counter"}
	failuresPassed  = Metric{"apiserver_admission_webhook_fail_open_count", "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type (validating or admit).", "counter"}
	conditionErrors = Metric{"apiserver_admission_match_condition_evaluation_errors_total", "[ALPHA] Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).", "counter"}
	conditionTimes  = Metric{"apiserver_admission_match_condition_evaluation_seconds", "[ALPHA] Admission match condition evaluation time in seconds, identified by name and broken out for each kind containing matchConditions (webhook or policy), operation and type (validate or admit).", "histogram"}
	exclusions      = Metric{"apiserver_admission_match_condition_exclusions_total", "[ALPHA] Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).", "counter"}
)

// Metrics are all families that Collect may give samples of, in its order.
var Metrics = []Metric{durations, conditionTimes, requests, rejections, failuresPassed, conditionErrors, exclusions}

// bounds are the upper bounds of the buckets of a histogram, in seconds.
var bounds = map[Metric][]float64{
	durations:      {0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10, 25},
	conditionTimes: {0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25},
}

// maxSeries bounds what is kept of each family: names of webhooks come from users.
const maxSeries = 2000

// histogram counts durations.
type histogram struct {
	buckets []int64 // as many as bounds, not cumulative
	count   int64
	sum     float64
}

// metrics count calls. The zero value is ready; it is safe for concurrent use.
type metrics struct {
	mu         sync.Mutex // guards all below
	counters   map[Metric]map[string]int64
	histograms map[Metric]map[string]*histogram
}

func (m *metrics) add(f Metric, labels string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counters == nil {
		m.counters = map[Metric]map[string]int64{}
	}
	if m.counters[f] == nil {
		m.counters[f] = map[string]int64{}
	}
	if _, ok := m.counters[f][labels]; ok || len(m.counters[f]) < maxSeries {
		m.counters[f][labels]++
	}
}

func (m *metrics) observe(f Metric, labels string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.histograms[f][labels]
	if h == nil {
		if len(m.histograms[f]) >= maxSeries {
			return
		}
		if m.histograms == nil {
			m.histograms = map[Metric]map[string]*histogram{}
		}
		if m.histograms[f] == nil {
			m.histograms[f] = map[string]*histogram{}
		}
		h = &histogram{buckets: make([]int64, len(bounds[f]))}
		m.histograms[f][labels] = h
	}
	h.count++
	h.sum += d.Seconds()
	for i, b := range bounds[f] {
		if d.Seconds() <= b {
			h.buckets[i]++
			break
		}
	}
}

func (m *metrics) called(name, step string, op admission.Operation, took time.Duration, code int, rejected bool) {
	m.add(requests, fmt.Sprintf("name=%q,type=%q,operation=%q,code=%q,rejected=%q", name, step, op, bounded(code), strconv.FormatBool(rejected)))
	m.observe(durations, fmt.Sprintf("name=%q,type=%q,operation=%q,rejected=%q", name, step, op, strconv.FormatBool(rejected)), took)
}

func (m *metrics) rejection(name, step string, op admission.Operation, why string, code int) {
	m.add(rejections, fmt.Sprintf("name=%q,type=%q,operation=%q,error_type=%q,rejection_code=%q", name, step, op, why, bounded(code)))
}

func (m *metrics) failOpen(name, step string) {
	m.add(failuresPassed, fmt.Sprintf("name=%q,type=%q", name, step))
}

func (m *metrics) conditionTime(name, step string, op admission.Operation, took time.Duration) {
	m.observe(conditionTimes, fmt.Sprintf("name=%q,kind=%q,type=%q,operation=%q", name, "webhook", step, op), took)
}

func (m *metrics) conditionError(name, step string, op admission.Operation) {
	m.add(conditionErrors, fmt.Sprintf("name=%q,kind=%q,type=%q,operation=%q", name, "webhook", step, op))
}

func (m *metrics) excluded(name, step string, op admission.Operation) {
	m.add(exclusions, fmt.Sprintf("name=%q,kind=%q,type=%q,operation=%q", name, "webhook", step, op))
}

// bounded keeps odd codes from making series without end.
func bounded(code int) string { return strconv.Itoa(min(code, 600)) }

// Collect gives every sample, family by family in the order of Metrics. labels is what stands between the braces; the samples
// of a histogram have the names that the text format of Prometheus gives them.
func (w *Webhooks) Collect(emit func(name, labels string, value float64)) {
	m := &w.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range Metrics {
		for _, labels := range slices.Sorted(maps.Keys(m.histograms[f])) {
			h := m.histograms[f][labels]
			var sum int64
			for i, b := range bounds[f] {
				sum += h.buckets[i]
				emit(f.Name+"_bucket", labels+",le="+strconv.Quote(strconv.FormatFloat(b, 'g', -1, 64)), float64(sum))
			}
			emit(f.Name+"_bucket", labels+`,le="+Inf"`, float64(h.count))
			emit(f.Name+"_sum", labels, h.sum)
			emit(f.Name+"_count", labels, float64(h.count))
		}
		for _, labels := range slices.Sorted(maps.Keys(m.counters[f])) {
			emit(f.Name, labels, float64(m.counters[f][labels]))
		}
	}
}

// WriteMetrics writes all that Collect gives in the text format of Prometheus.
func (w *Webhooks) WriteMetrics(to io.Writer) {
	family := ""
	w.Collect(func(name, labels string, value float64) {
		for _, f := range Metrics {
			if f.Name != family && (name == f.Name || f.Type == "histogram" && strings.HasPrefix(name, f.Name+"_")) {
				family = f.Name
				fmt.Fprintf(to, "# HELP %s %s\n# TYPE %s %s\n", f.Name, f.Help, f.Name, f.Type)
			}
		}
		fmt.Fprintf(to, "%s{%s} %s\n", name, labels, strconv.FormatFloat(value, 'g', -1, 64))
	})
}
