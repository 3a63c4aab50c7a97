package policy

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	apicel "k8s.io/apiserver/pkg/cel"
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
