package node

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
)

// verb names an action.
type verb string

// The actions. Each has its undo: prepare, sandbox and start are undone by teardown
// and kill; cancel undoes one that is under way.
const (
	doPrepare verb = "prepare" // make the volumes ready
	doSandbox verb = "sandbox" // make the sandbox and connect it
	doReset   verb = "reset"   // remove a sandbox that has lost its namespaces
	doStart   verb = "start"   // pull, create and start a container, run its post-start hook
	// doStartOver makes all containers begin anew, init containers included, after one of them asked for it.
	doStartOver verb = "startover"
	doKill      verb = "kill"     // pre-stop hook, signal, grace, SIGKILL
	doCancel    verb = "cancel"   // end prepare, sandbox and start where they are
	doResize    verb = "resize"   // give a running container and its pod other limits (KEP-1287)
	doTeardown  verb = "teardown" // disconnect and unmount
	doForget    verb = "forget"   // remove sandbox and logs, confirm the deletion in the API
)

// action is one thing to do now.
type action struct {
	do        verb
	container string
	// reason is the event's reason ("Killing"), message its text; kill only.
	message string
	// grace is how long a killed container has.
	grace time.Duration
}

// plan is what decide wants.
type plan struct {
	actions []action
	// stop is set when the pod was found to have to end, or to end sooner than planned.
	stop *stop
	// wake is when to decide again if nothing happens before, zero for never.
	wake time.Time
}

func (p *plan) at(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

func (p *plan) add(a action) { p.actions = append(p.actions, a) }

// decide gives the next actions for a pod. It is pure.
func decide(v *view, now time.Time) plan {
	var p plan
	p.stop = ending(v, now)
	if s := p.stop; s != nil {
		decideStop(&p, v, s, now)
		return p
	}
	if v.stop != nil {
		decideStop(&p, v, v.stop, now)
		return p
	}
	if d := deadline(v.pod); !d.IsZero() {
		p.at(d)
	}
	if !ready(&p, &v.volumes, doPrepare, now) {
		return p
	}
	if v.lost && v.sandbox.state == done {
		for _, c := range v.containers {
			if c.op != idle {
				return p
			}
		}
		p.add(action{do: doReset})
		return p
	}
	if !ready(&p, &v.sandbox, doSandbox, now) {
		return p
	}
	if c := restartsAll(v); c != nil {
		decideStartOver(&p, v, c, now)
		return p
	}
	w := walk{p: &p, v: v, now: now}
	w.run()
	return p
}

// ready takes a step that is due and tells whether it is done already.
func ready(p *plan, s *step, do verb, now time.Time) bool {
	if s.state == done {
		return true
	}
	due, at := s.due(now)
	if due {
		p.add(action{do: do})
	}
	p.at(at)
	return false
}

// walk goes through the containers of a pod that is to run. At most one container
// is started at a time, in order: the next waits for the post-start hook of the one before.
type walk struct {
	p     *plan
	v     *view
	now   time.Time
	taken bool // a start goes on, or was planned
}

func (w *walk) run() {
	for _, c := range w.v.containers {
		w.taken = w.taken || c.op == starting
	}
	spec := &w.v.pod.Spec
	for i := range spec.EphemeralContainers {
		if c := w.v.containers[spec.EphemeralContainers[i].Name]; c.current == nil {
			w.start(c)
		}
	}
	if !w.initialize() {
		return
	}
	for i := range spec.Containers {
		w.keep(&spec.Containers[i])
	}
	w.resizePod()
}

// resizePod gives the pod as a whole other limits, after its containers have theirs.
func (w *walk) resizePod() {
	if equality.Semantic.DeepEqual(w.v.resources, w.v.pod.Spec.Resources) {
		return
	}
	for _, a := range w.p.actions {
		if a.do == doResize {
			return
		}
	}
	due, at := w.v.resize.due(w.now)
	if due {
		w.p.add(action{do: doResize})
	}
	w.p.at(at)
}

// initialize carries init containers on and tells whether all have done their part.
func (w *walk) initialize() bool {
	spec := &w.v.pod.Spec
	started := initialized(w.v)
	for i := range spec.InitContainers {
		s := &spec.InitContainers[i]
		c := w.v.containers[s.Name]
		if isSidecar(s) {
			w.keep(s)
			if !c.started() && !started && !progressed(w.v, i+1) {
				return false
			}
			continue
		}
		if started {
			continue
		}
		switch {
		case c.current == nil:
			w.start(c)
			return false
		case c.current.exited() && c.current.exitCode == 0 && c.op == idle:
		case c.current.exited() && c.op == idle:
			w.restart(c)
			return false
		default:
			w.keep(s)
			w.resizePod()
			return false
		}
	}
	return true
}

// progressed tells whether an init container from index i on has been begun.
func progressed(v *view, i int) bool {
	for ; i < len(v.pod.Spec.InitContainers); i++ {
		if c := v.containers[v.pod.Spec.InitContainers[i].Name]; c.current != nil {
			return true
		}
	}
	return false
}

// initialized tells whether the pod came past its init containers.
func initialized(v *view) bool {
	for i := range v.pod.Spec.Containers {
		if v.containers[v.pod.Spec.Containers[i].Name].current != nil {
			return true
		}
	}
	return false
}

// keep does what a container needs that ought to be up: start, restart, or a kill that leads
// to a restart.
func (w *walk) keep(s *corev1.Container) {
	c := w.v.containers[s.Name]
	switch {
	case c.op != idle:
	case c.current == nil || c.current.state == container.StateCreated:
		w.start(c)
	case c.current.exited():
		if restarts(w.v.pod, s, c.current.exitCode) {
			w.restart(c)
		}
	case c.current.specImage != s.Image:
		w.kill(c, fmt.Sprintf("Container %s definition changed, will be restarted", s.Name), nil)
	case c.startup == bad:
		w.kill(c, fmt.Sprintf("Container %s failed startup probe, will be restarted", s.Name), s.StartupProbe)
	case c.live == bad:
		w.kill(c, fmt.Sprintf("Container %s failed liveness probe, will be restarted", s.Name), s.LivenessProbe)
	case c.resources != nil && !equality.Semantic.DeepEqual(*c.resources, s.Resources):
		w.resize(c, s)
	}
}

func (w *walk) start(c *containerView) {
	if c.fail != nil && c.fail.until.After(w.now) {
		w.p.at(c.fail.until)
		if c.fail.then != "" {
			if t := c.fail.at.Add(failThen); t.After(w.now) {
				w.p.at(t)
			}
		}
		return
	}
	if w.taken || c.op != idle {
		return
	}
	w.taken = true
	w.p.add(action{do: doStart, container: c.name})
}

func (w *walk) restart(c *containerView) {
	if at := c.crash.until(c.current.finished); at.After(w.now) {
		w.p.at(at)
		return
	}
	w.start(c)
}

func (w *walk) kill(c *containerView, message string, probe *corev1.Probe) {
	grace := podGrace(w.v.pod)
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
	}
	w.p.add(action{do: doKill, container: c.name, message: message, grace: grace})
}

// resize changes the limits of a running container, by a restart if its resize policy says so.
func (w *walk) resize(c *containerView, s *corev1.Container) {
	if due, at := w.v.resize.due(w.now); !due {
		w.p.at(at)
		return
	}
	for _, p := range s.ResizePolicy {
		if p.RestartPolicy == corev1.RestartContainer && resourceChanged(c.resources, &s.Resources, p.ResourceName) {
			w.kill(c, fmt.Sprintf("Container %s resize requires restart", s.Name), nil)
			return
		}
	}
	w.p.add(action{do: doResize, container: c.name})
}

func resourceChanged(a, b *corev1.ResourceRequirements, name corev1.ResourceName) bool {
	req, lim := a.Requests[name], a.Limits[name]
	return req.Cmp(b.Requests[name]) != 0 || lim.Cmp(b.Limits[name]) != 0
}

// failThen is how long the first reason of a failed start is shown before that of its back-off.
const failThen = time.Second

// restarts tells whether a container that exited with code is to run again (the container's
// rules first, then its policy, then the pod's; KEP-753, KEP-5307).
func restarts(pod *corev1.Pod, c *corev1.Container, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if matches(r.ExitCodes, code) { // with either action it runs again
			return true
		}
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	// Init containers of a pod that restarts always are run until they succeed once.
	return true
}

// restartsAll gives a container whose end has all of them restart, nil if there is none (KEP-5532).
func restartsAll(v *view) *containerView {
	for _, list := range [][]corev1.Container{v.pod.Spec.InitContainers, v.pod.Spec.Containers} {
		for i := range list {
			c := v.containers[list[i].Name]
			if c.op != idle || !c.current.exited() {
				continue
			}
			for _, r := range list[i].RestartPolicyRules {
				if r.Action == corev1.ContainerRestartRuleActionRestartAllContainers && matches(r.ExitCodes, c.current.exitCode) {
					return c
				}
			}
		}
	}
	return nil
}

// decideStartOver ends all containers, so that the pod begins anew with its init containers.
func decideStartOver(p *plan, v *view, cause *containerView, now time.Time) {
	waits := false
	for _, c := range v.ordered() {
		switch {
		case c.role == record.RoleEphemeral:
		case c.op != idle:
			waits = true
		case c.current.running():
			waits = true
			p.add(action{do: doKill, container: c.name, message: "Stopping container " + c.name, grace: podGrace(v.pod)})
		}
	}
	if waits {
		return
	}
	if at := cause.crash.until(cause.current.finished); at.After(now) {
		p.at(at)
		return
	}
	p.add(action{do: doStartOver, container: cause.name})
}

func matches(r *corev1.ContainerRestartRuleOnExitCodes, code int32) bool {
	if r == nil {
		return false
	}
	in := false
	for _, v := range r.Values {
		in = in || v == code
	}
	return in == (r.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
}

// isSidecar tells whether an init container runs beside the main ones (KEP-753).
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// podGrace is how long the pod's containers have between signal and SIGKILL.
func podGrace(pod *corev1.Pod) time.Duration {
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// deadline is when spec.activeDeadlineSeconds is over, zero for never.
func deadline(pod *corev1.Pod) time.Time {
	if pod.Spec.ActiveDeadlineSeconds == nil || pod.Status.StartTime == nil {
		return time.Time{}
	}
	return pod.Status.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second)
}

// ending finds whether the pod has to end, or sooner than v.stop says; nil if nothing new.
func ending(v *view, now time.Time) *stop {
	if v.gone || v.pod.DeletionTimestamp != nil {
		grace := podGrace(v.pod)
		if g := v.pod.DeletionGracePeriodSeconds; g != nil {
			grace = time.Duration(*g) * time.Second
		}
		grace = max(grace, time.Second) // upstream gives each container a moment
		if v.stop == nil {
			return &stop{at: now, grace: grace}
		}
		if s := *v.stop; now.Add(grace).Before(s.deadline()) && grace < s.grace {
			s.at, s.grace = now, grace
			return &s
		}
		return shutdownStop(v, now)
	}
	if s := shutdownStop(v, now); s != nil || v.stop != nil {
		return s
	}
	if d := deadline(v.pod); !d.IsZero() && !now.Before(d) {
		return &stop{at: now, grace: podGrace(v.pod), reason: "DeadlineExceeded",
			message: "Pod was active on the node longer than the specified deadline"}
	}
	if v.evict != "" {
		return &stop{at: now, grace: evictGrace, reason: reasonEvicted, message: v.evict}
	}
	if finished(v) {
		return &stop{at: now, grace: podGrace(v.pod)}
	}
	return nil
}

// finished tells whether no container will run any more, sidecars aside.
func finished(v *view) bool {
	spec := &v.pod.Spec
	over := func(s *corev1.Container) (ended, failed bool) {
		c := v.containers[s.Name]
		if c.op != idle || !c.current.exited() || restarts(v.pod, s, c.current.exitCode) {
			return false, false
		}
		return true, c.current.exitCode != 0
	}
	if !initialized(v) {
		for i := range spec.InitContainers {
			if s := &spec.InitContainers[i]; !isSidecar(s) {
				if ended, failed := over(s); ended && failed {
					return true
				}
			}
		}
		return false
	}
	for i := range spec.Containers {
		if ended, _ := over(&spec.Containers[i]); !ended {
			return false
		}
	}
	return true
}

// decideStop ends a pod: main containers first and together, then sidecars in
// reverse order, all within the grace period, then the pod's own things.
func decideStop(p *plan, v *view, s *stop, now time.Time) {
	cancel, waits := v.volumes.state == busy || v.sandbox.state == busy, false
	var main []*containerView
	for _, c := range v.ordered() {
		if c.op == starting {
			cancel = true
		} else if c.role != record.RoleSidecar && (c.op == killing || c.current.running()) {
			main = append(main, c)
		}
	}
	if cancel {
		p.add(action{do: doCancel})
		waits = true
	}
	for _, c := range main {
		endContainer(p, c, s, now)
	}
	blocked := waits || len(main) > 0
	for i := len(v.pod.Spec.InitContainers) - 1; i >= 0; i-- {
		c := v.containers[v.pod.Spec.InitContainers[i].Name]
		if c.role != record.RoleSidecar || c.op == starting || (c.op == idle && !c.current.running()) {
			continue
		}
		if blocked && now.Before(s.deadline()) && c.op == idle {
			p.at(s.deadline())
		} else {
			endContainer(p, c, s, now)
		}
		blocked = true
	}
	if blocked {
		return
	}
	if ready(p, &v.torn, doTeardown, now) && (v.gone || v.pod.DeletionTimestamp != nil) {
		ready(p, &v.forgotten, doForget, now)
	}
}

// endContainer kills a container, or kills it sooner than a kill under way would.
func endContainer(p *plan, c *containerView, s *stop, now time.Time) {
	if c.op == killing && !s.deadline().Before(c.killBy) {
		return
	}
	p.add(action{do: doKill, container: c.name, message: "Stopping container " + c.name,
		grace: max(0, s.deadline().Sub(now))})
}
