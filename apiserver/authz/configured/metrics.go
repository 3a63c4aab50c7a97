package configured

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// bounds are the upper bounds of the buckets of durations, in seconds, as upstream's.
var bounds = [...]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// metrics count what webhooks are asked, by upstream's names. Names of webhooks are the administrator's and few. The zero value is ready; it is
// safe for concurrent use.
type metrics struct {
	mu        sync.Mutex // guards all below
	durations map[string]*histogram
	open      map[string]int64 // failures that others decided on
	excluded  map[string]int64 // requests that conditions kept from a webhook
	failed    map[string]int64 // conditions that could not be evaluated
}

type histogram struct {
	buckets [len(bounds)]int64 // not cumulative
	count   int64
	sum     float64
}

func series(name, result string) string { return fmt.Sprintf("name=%q,result=%q", name, result) }

func (m *metrics) asked(name, result string, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.durations == nil {
		m.durations = map[string]*histogram{}
	}
	h := m.durations[series(name, result)]
	if h == nil {
		h = &histogram{}
		m.durations[series(name, result)] = h
	}
	h.count++
	h.sum += took.Seconds()
	for i, bound := range bounds {
		if took.Seconds() <= bound {
			h.buckets[i]++
			break
		}
	}
}

func (m *metrics) passed(name, result string) { m.add(&m.open, series(name, result)) }

func (m *metrics) add(to *map[string]int64, labels string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *to == nil {
		*to = map[string]int64{}
	}
	(*to)[labels]++
}

// RecordAuthorizationMatchConditionEvaluation implements authorizationcel.MatcherMetrics; how long conditions take is not counted.
func (m *metrics) RecordAuthorizationMatchConditionEvaluation(context.Context, string, string, time.Duration) {
}

// RecordAuthorizationMatchConditionEvaluationFailure implements authorizationcel.MatcherMetrics.
func (m *metrics) RecordAuthorizationMatchConditionEvaluationFailure(_ context.Context, kind, name string) {
	m.add(&m.failed, fmt.Sprintf("name=%q,type=%q", name, kind))
}

// RecordAuthorizationMatchConditionExclusion implements authorizationcel.MatcherMetrics.
func (m *metrics) RecordAuthorizationMatchConditionExclusion(_ context.Context, kind, name string) {
	m.add(&m.excluded, fmt.Sprintf("name=%q,type=%q", name, kind))
}

func (m *metrics) write(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := map[string]int64{}
	for labels, h := range m.durations {
		asked[labels] = h.count
	}
	counter(w, "apiserver_authorization_webhook_evaluations_total", "[BETA] Round-trips to authorization webhooks.", asked)
	counter(w, "apiserver_authorization_webhook_evaluations_fail_open_total", "[BETA] NoOpinion results due to webhook timeout or error.", m.open)
	counter(w, "apiserver_authorization_match_condition_exclusions_total", "[ALPHA] Total number of exclusions when an authorizer is skipped because its match conditions exclude it.", m.excluded)
	counter(w, "apiserver_authorization_match_condition_evaluation_errors_total", "[ALPHA] Total number of errors when an authorization webhook encounters a match condition error split by authorizer type and name.", m.failed)
	const name = "apiserver_authorization_webhook_duration_seconds"
	if len(m.durations) > 0 {
		fmt.Fprintf(w, "# HELP %s [BETA] Request latency in seconds.\n# TYPE %s histogram\n", name, name)
	}
	for _, labels := range slices.Sorted(maps.Keys(m.durations)) {
		h := m.durations[labels]
		var sum int64
		for i, bound := range bounds {
			sum += h.buckets[i]
			fmt.Fprintf(w, "%s_bucket{%s,le=%q} %d\n", name, labels, strconv.FormatFloat(bound, 'g', -1, 64), sum)
		}
		fmt.Fprintf(w, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %g\n%s_count{%s} %d\n", name, labels, h.count, name, labels, h.sum, name, labels, h.count)
	}
}

func counter(w io.Writer, name, help string, values map[string]int64) {
	if len(values) == 0 {
		return
	}
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n", name, help, name)
	for _, labels := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(w, "%s{%s} %d\n", name, labels, values[labels])
	}
}
