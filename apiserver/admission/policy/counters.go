package policy

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	apicel "k8s.io/apiserver/pkg/cel"

	"coracle.dev/coracle/apiserver/metrics"
)

// Check counts what one binding of one policy did, for the metrics apiserver_validating_admission_policy_check_total and
// ..._check_duration_seconds, or apiserver_mutating_admission_policy_check_total and ..._check_duration_seconds.
type Check struct {
	// Mutating tells the two sorts of policies apart.
	Mutating        bool
	Policy, Binding string
	// ErrorType is "no_error", "compile_error", "invalid_error" or "out_of_budget".
	ErrorType string
	// Action is "allow", "deny", "warn" or "audit"; mutating policies have no such label.
	Action string

	// Count is how often, Seconds how long altogether, and Buckets how often it took at most the seconds in CheckBuckets.
	Count   uint64
	Seconds float64
	Buckets [5]uint64
}

// CheckBuckets are the upper bounds of Check.Buckets in seconds.
var CheckBuckets = [5]float64{0.0000005, 0.001, 0.01, 0.1, 1.0}

type checkKey struct {
	mutating                           bool
	policy, binding, errorType, action string
}

// counters are what Checks reports. Safe for concurrent use.
type counters struct {
	mu    sync.Mutex // guards known
	known map[checkKey]*Check
}

// Checks is what was counted since the start, ordered by policy, binding and the rest. A policy of which nothing was denied, warned of,
// recorded or ignored does not appear, as upstream has it.
func (p *Policies) Checks() []Check {
	p.checks.mu.Lock()
	out := make([]Check, 0, len(p.checks.known))
	for _, c := range p.checks.known {
		out = append(out, *c)
	}
	p.checks.mu.Unlock()
	slices.SortFunc(out, func(a, b Check) int {
		if a.Mutating != b.Mutating {
			if a.Mutating {
				return 1
			}
			return -1
		}
		for _, pair := range [][2]string{{a.Policy, b.Policy}, {a.Binding, b.Binding}, {a.ErrorType, b.ErrorType}, {a.Action, b.Action}} {
			if c := strings.Compare(pair[0], pair[1]); c != 0 {
				return c
			}
		}
		return 0
	})
	return out
}

func (c *counters) observe(k checkKey, elapsed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.known[k]
	if one == nil {
		if c.known == nil {
			c.known = map[checkKey]*Check{}
		}
		one = &Check{Mutating: k.mutating, Policy: k.policy, Binding: k.binding, ErrorType: k.errorType, Action: k.action}
		c.known[k] = one
	}
	one.Count++
	s := elapsed.Seconds()
	one.Seconds += s
	for i, bound := range CheckBuckets {
		if s <= bound {
			one.Buckets[i]++
		}
	}
}

// errorType sorts the message of an error for the metrics.
func errorType(message string) string {
	switch {
	case strings.HasPrefix(message, "compilation"):
		return "compile_error"
	case strings.HasPrefix(message, "validation failed due to running out of cost budget"):
		return "out_of_budget"
	}
	return "invalid_error"
}

// spent tells whether an evaluation ended for want of budget, or by a fault of the server.
func spent(err error) bool {
	return errors.Is(err, apicel.ErrInternal) || errors.Is(err, apicel.ErrOutOfBudget)
}

// WriteMetrics writes what was counted in the text format of Prometheus, under upstream's names.
func (p *Policies) WriteMetrics(w io.Writer) {
	checks := p.Checks()
	for _, sort := range []struct {
		mutating         bool
		prefix, of, also string
	}{
		{false, "apiserver_validating_admission_policy", "Validation", " and enforcement action taken"},
		{true, "apiserver_mutating_admission_policy", "Mutation", ""},
	} {
		var own []*Check
		for i := range checks {
			if checks[i].Mutating == sort.mutating {
				own = append(own, &checks[i])
			}
		}
		if len(own) == 0 {
			continue
		}
		name := sort.prefix + "_check_total"
		metrics.Head(w, name, "counter", sort.of+" admission policy check total, labeled by policy and further identified by binding"+sort.also+".")
		for _, c := range own {
			fmt.Fprintf(w, "%s{%s} %d\n", name, c.labels(), c.Count)
		}
		name = sort.prefix + "_check_duration_seconds"
		metrics.Head(w, name, "histogram", sort.of+" admission latency for individual expressions in seconds, labeled by policy and binding"+sort.also+".")
		for _, c := range own {
			labels := c.labels()
			for i, bound := range CheckBuckets {
				fmt.Fprintf(w, "%s_bucket{%s,le=\"%g\"} %d\n", name, labels, bound, c.Buckets[i])
			}
			fmt.Fprintf(w, "%s_bucket{%s,le=\"+Inf\"} %d\n%s_sum{%s} %g\n%s_count{%s} %d\n", name, labels, c.Count, name, labels, c.Seconds, name, labels, c.Count)
		}
	}
}

func (c *Check) labels() string {
	action := ""
	if !c.Mutating {
		action = fmt.Sprintf("enforcement_action=%q,", c.Action)
	}
	return fmt.Sprintf("%serror_type=%q,policy=%q,policy_binding=%q", action, c.ErrorType, c.Policy, c.Binding)
}
