package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
)

// view is all that the next actions for a pod and its status depend on. One worker
// owns it; decide and makeStatus only read it.
type view struct {
	pod *corev1.Pod
	// gone: the pod is no longer in the API.
	gone bool
	// stop says why the pod has to end, nil while it may run.
	stop *stop

	// evict says why the node wants to be rid of the pod, "" if it does not.
	evict string
	// shutdown is what the node's shutdown leaves the pod, nil while there is none.
	shutdown *time.Duration
	// rejected: the node did not admit the pod; stop says why, and nothing was made for it.
	rejected bool

	// volumes, sandbox, torn and forgotten are the steps that concern the pod as a whole. A
	// sandbox step that is done has the other fields of the sandbox set.
	volumes, sandbox, torn, forgotten step
	// resize is the change of limits that is under way or has to wait; what it waits for stands
	// in resizeCondition.
	resize          step
	resizeCondition *corev1.PodCondition
	// resources are those of the pod as a whole (KEP-5419) that its sandbox was last given, nil where the specification had none.
	resources *corev1.ResourceRequirements
	// startTime is when the node first saw the pod.
	startTime time.Time
	// lost: the sandbox exists but has lost its namespaces.
	lost bool
	// sandboxAttempt counts the sandboxes that this pod has had.
	sandboxAttempt int
	// podIPs are the sandbox's addresses (the node's own for host network).
	podIPs []string

	// health is how the devices of containers are, by name.
	health map[string][]corev1.ResourceStatus
	// containers are those of the specification, by name.
	containers map[string]*containerView
}

// ordered gives the containers in the order of the specification: init, main, ephemeral.
func (v *view) ordered() []*containerView {
	spec := &v.pod.Spec
	out := make([]*containerView, 0, len(v.containers))
	for i := range spec.InitContainers {
		out = append(out, v.containers[spec.InitContainers[i].Name])
	}
	for i := range spec.Containers {
		out = append(out, v.containers[spec.Containers[i].Name])
	}
	for i := range spec.EphemeralContainers {
		out = append(out, v.containers[spec.EphemeralContainers[i].Name])
	}
	return out
}

// over tells whether everything of the pod has ended and been undone.
func (v *view) over() bool { return v.stop != nil && v.torn.state == done }

// step is a deed that can fail and is tried again.
type step struct {
	state stepState
	// until is when a failed step may be tried again.
	until time.Time
	// tries in a row that failed.
	tries int
}

// stepState is where a step is: todo -> busy -> done, or back to todo with until set.
type stepState int

const (
	todo stepState = iota
	busy
	done
)

// due tells whether the step is to be taken now, and if not, when.
func (s step) due(now time.Time) (bool, time.Time) {
	if s.state != todo {
		return false, time.Time{}
	}
	if s.until.After(now) {
		return false, s.until
	}
	return true, time.Time{}
}

// stop says why and how a pod ends.
type stop struct {
	// at is when it was decided; the containers have until at+grace.
	at    time.Time
	grace time.Duration
	// reason and message become those of the pod's status; with them the pod has Failed.
	reason, message string
}

func (s *stop) deadline() time.Time { return s.at.Add(s.grace) }

// operation is what goes on with a container.
type operation int

const (
	idle operation = iota
	starting
	killing
)

// containerView is what is known of one container of the specification.
type containerView struct {
	name string
	role record.Role
	// current is the newest instance, nil if there is none in this sandbox; previous the one
	// before.
	current, previous *instance
	// attempt is the number that the next instance gets.
	attempt int
	op      operation
	// killBy is when the containers's kill in progress sends SIGKILL.
	killBy time.Time
	// fail is why the last try to start led to no process, nil after a success.
	fail *failure
	// crash spaces out restarts.
	crash backoff
	// startup, live and ready are what the probes say of the current instance.
	startup, live, ready verdict
	// resources are the limits that the runtime was last given.
	resources *corev1.ResourceRequirements
}

// verdict is what a probe says.
type verdict int

const (
	unknown verdict = iota
	good
	bad
)

// failure is why a container could not be started.
type failure struct {
	reason, message string
	at              time.Time
	// until is when to try again.
	until time.Time
	// then, if not empty, is the reason that is shown from a moment after the failure on while waiting
	// (ImagePullBackOff after ErrImagePull), with its message.
	then, thenMessage string
	// noted: the event of the back-off is recorded.
	noted bool
}

// instance is one life of a container.
type instance struct {
	id      string
	attempt int
	state   container.State
	// created, started and finished are zero where they did not happen.
	created, started, finished time.Time
	exitCode, signal           int32
	reason, message            string
	// image and imageID are as a status shows them; specImage as the pod named it.
	image, imageID, specImage string
	user                      *container.ResolvedUser
	// ready: the start is complete, post-start hook and all. False while a start goes on.
	complete bool
}

func (i *instance) running() bool { return i != nil && i.state == container.StateRunning }
func (i *instance) exited() bool  { return i != nil && i.state == container.StateExited }

// started tells whether the container is up: it runs, its post-start hook is
// done and so is its startup probe.
func (c *containerView) started() bool {
	return c.current.running() && c.current.complete && c.startup == good
}

// backoff spaces out attempts: the first is free, the next waits 10 s, then twice as long each
// time up to five minutes. Ten minutes without an attempt forget it all
// (the rules of upstream's CrashLoopBackOff and ImagePullBackOff).
type backoff struct {
	delay time.Duration
	last  time.Time
}

const (
	backoffFirst  = 10 * time.Second
	backoffMost   = 5 * time.Minute
	backoffForget = 2 * backoffMost
)

// until gives when the next attempt is allowed after something ended at ended. Zero: at once.
func (b backoff) until(ended time.Time) time.Time {
	if b.delay == 0 || ended.Sub(b.last) > backoffForget {
		return time.Time{}
	}
	return ended.Add(b.delay)
}

// next notes an attempt at now, of something that ended before at ended.
func (b *backoff) next(ended, now time.Time) {
	if b.delay == 0 || ended.Sub(b.last) > backoffForget {
		b.delay = backoffFirst
	} else {
		b.delay = min(2*b.delay, backoffMost)
	}
	b.last = now
}
