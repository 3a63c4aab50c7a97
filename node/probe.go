package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// probeKind is what a probe is for; it begins the events about it.
type probeKind string

const (
	startupProbe   probeKind = "Startup"
	livenessProbe  probeKind = "Liveness"
	readinessProbe probeKind = "Readiness"
)

// outcome of one execution of a probe.
type outcome int

const (
	probeError outcome = iota // it could not be carried out: counts for nothing
	probeSuccess
	probeWarning // success, with something to say
	probeFailure
)

// probe is one probe of one instance of a container: pure state, driven by its worker.
//
// Executions fall on a grid: initialDelaySeconds after the start of the container and every
// periodSeconds from then on. A probe that waits for a container to come up (startup, and readiness
// before its first success) is also executed between the points of the grid, at first
// after a few milliseconds and then ever more rarely: a success counts, a failure
// does not. Upstream allows itself the same while a container is not ready.
type probe struct {
	kind      probeKind
	spec      *corev1.Probe
	container string
	instance  string

	// base is where the grid begins.
	base time.Time
	// next is when to execute it again; zero: not any more.
	next time.Time
	// counted tells whether the execution at next is one of the grid.
	counted bool
	// eager is the distance of the next execution off the grid, 0 if there is none.
	eager time.Duration
	// running: an execution is under way.
	running bool
	// row is how many executions in a row ended with last.
	row  int
	last outcome
	// verdict is what the probe says so far.
	verdict verdict
}

const (
	eagerHTTP = 10 * time.Millisecond
	eagerExec = 100 * time.Millisecond // a process each time
)

// newProbe begins a probe of an instance that started at started. good is what is known of
// it from before a restart of the program.
func newProbe(kind probeKind, spec *corev1.Probe, container, instance string, started, now time.Time, known verdict) *probe {
	p := &probe{kind: kind, spec: spec, container: container, instance: instance, verdict: known}
	p.base = started.Add(time.Duration(spec.InitialDelaySeconds) * time.Second)
	if kind == livenessProbe && p.verdict == unknown {
		p.verdict = good
	}
	if p.base.Before(now) && now.Sub(p.base) >= p.period() {
		// Adopted: keep the grid, start within it.
		p.base = p.base.Add(now.Sub(p.base) / p.period() * p.period())
	}
	if p.waits() {
		p.eager = eagerHTTP
		if spec.Exec != nil {
			p.eager = eagerExec
		}
	}
	switch {
	case p.eager > 0 && spec.InitialDelaySeconds == 0:
		p.next, p.counted = later(p.base, now).Add(p.eager), false
	case kind == livenessProbe && spec.InitialDelaySeconds == 0:
		p.next, p.counted = p.gridAfter(later(p.base, now)), true
	default:
		p.next, p.counted = later(p.base, now), true
	}
	return p
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// waits tells whether the probe waits for its container to come up.
func (p *probe) waits() bool {
	return p.kind != livenessProbe && p.verdict != good && p.last != probeSuccess
}

func (p *probe) period() time.Duration {
	return max(time.Duration(p.spec.PeriodSeconds)*time.Second, time.Second)
}

// timeout of one execution.
func (p *probe) timeout() time.Duration {
	return max(time.Duration(p.spec.TimeoutSeconds)*time.Second, time.Second)
}

// gridAfter is the first point of the grid after t.
func (p *probe) gridAfter(t time.Time) time.Time {
	n := t.Sub(p.base)/p.period() + 1
	return p.base.Add(n * p.period())
}

// observe takes the result of an execution and sets when the next one is. It tells
// whether the result is one to be reported as an event (a failure that counts).
func (p *probe) observe(o outcome, now time.Time) (report bool) {
	counted := p.counted
	p.running = false
	p.schedule(now)
	if o == probeError {
		return false
	}
	if o == probeWarning {
		o = probeSuccess
	}
	if o == probeFailure && !counted {
		return false
	}
	if o == p.last {
		p.row++
	} else {
		p.last, p.row = o, 1
	}
	switch {
	case o == probeSuccess:
		if p.row >= int(max(p.spec.SuccessThreshold, 1)) {
			p.verdict = good
		}
		p.eager = 0
		if p.verdict != good { // more successes are wanted, on the grid
			p.next, p.counted = p.gridAfter(now), true
		} else if p.kind != startupProbe {
			p.next, p.counted = p.gridAfter(now), true
		}
	case p.row >= int(max(p.spec.FailureThreshold, 1)):
		p.verdict = bad
	}
	if p.kind == startupProbe && p.verdict != unknown || p.kind == livenessProbe && p.verdict == bad {
		p.next = time.Time{} // its work is done until the next instance
	}
	return o == probeFailure
}

// schedule sets the next execution after one that ended now.
func (p *probe) schedule(now time.Time) {
	grid := p.gridAfter(now)
	p.next, p.counted = grid, true
	if p.eager == 0 {
		return
	}
	p.eager = min(2*p.eager, p.period())
	if at := now.Add(p.eager); at.Before(grid) {
		p.next, p.counted = at, false
	}
}
