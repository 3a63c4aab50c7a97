package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/node/record"
)

// eventUnhealthy is the reason of events about failed probes.
const eventUnhealthy = "Unhealthy"

// startProbes begins the probes of a container's current instance. The verdicts are what is known from
// before a restart of the program.
func (w *worker) startProbes(c *containerView, s *corev1.Container, startup, ready verdict) {
	w.dropProbes(c.name)
	c.startup, c.live, c.ready = good, good, good
	if !c.current.running() {
		c.startup, c.ready = unknown, unknown
		return
	}
	if c.role == record.RoleInit || c.role == record.RoleEphemeral {
		return
	}
	if s.ReadinessProbe != nil {
		c.ready = ready
	}
	if s.StartupProbe != nil && startup != good {
		c.startup = unknown
		w.addProbe(c, startupProbe, s.StartupProbe, unknown)
		return // the others begin when it has succeeded
	}
	w.startLater(c, s)
}

// startLater begins the probes that wait for the container to be up.
func (w *worker) startLater(c *containerView, s *corev1.Container) {
	if s.LivenessProbe != nil && w.v.stop == nil {
		w.addProbe(c, livenessProbe, s.LivenessProbe, unknown)
	}
	if s.ReadinessProbe != nil {
		w.addProbe(c, readinessProbe, s.ReadinessProbe, c.ready)
	}
}

func (w *worker) addProbe(c *containerView, kind probeKind, spec *corev1.Probe, known verdict) {
	w.probes = append(w.probes, newProbe(kind, spec, c.name, c.current.id, c.current.started, w.a.cfg.Now(), known))
}

// dropProbes ends the probes of a container.
func (w *worker) dropProbes(name string) {
	w.probes = slices.DeleteFunc(w.probes, func(p *probe) bool { return p.container == name })
}

// dropStopped ends the probes that a pod which has to end does not need: all but readiness.
func (w *worker) dropStopped() {
	w.probes = slices.DeleteFunc(w.probes, func(p *probe) bool { return p.kind != readinessProbe })
}

// probe executes the probes that are due and gives the time of the next.
func (w *worker) probe(ctx context.Context, now time.Time) time.Time {
	var next time.Time
	for _, p := range w.probes {
		if p.running || p.next.IsZero() {
			continue
		}
		if p.next.After(now) {
			if next.IsZero() || p.next.Before(next) {
				next = p.next
			}
			continue
		}
		w.execute(ctx, p)
	}
	return next
}

func (w *worker) execute(ctx context.Context, p *probe) {
	p.running = true
	s := w.spec(p.container)
	t := w.target(w.v.pod, s, p.instance)
	w.deed(ctx, p.timeout()+time.Second, func(ctx context.Context) func() {
		o, text := w.a.prober.run(ctx, p.spec, t, p.timeout())
		return func() { w.probed(p, o, text) }
	})
}

// probed takes the result of one execution.
func (w *worker) probed(p *probe, o outcome, text string) {
	if !slices.Contains(w.probes, p) {
		return // the instance it was about has ended
	}
	c, s := w.v.containers[p.container], w.spec(p.container)
	report := p.observe(o, w.a.cfg.Now())
	path := fieldPath(c.name, c.role)
	switch {
	case report:
		w.eventAbout(path, corev1.EventTypeWarning, eventUnhealthy, fmt.Sprintf("%s probe failed: %s", p.kind, text))
	case o == probeWarning:
		w.eventAbout(path, corev1.EventTypeWarning, "ProbeWarning", fmt.Sprintf("%s probe warning: %s", p.kind, text))
	case o == probeError:
		w.eventAbout(path, corev1.EventTypeWarning, eventUnhealthy, fmt.Sprintf("%s probe errored and resulted in unknown state: %s", p.kind, text))
	}
	switch p.kind {
	case startupProbe:
		c.startup = p.verdict
		if p.verdict == good {
			w.probes = slices.DeleteFunc(w.probes, func(q *probe) bool { return q == p })
			w.startLater(c, s)
		}
	case livenessProbe:
		c.live = p.verdict
	case readinessProbe:
		c.ready = p.verdict
	}
}
