package node

import (
	"context"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/volume"
)

// worker carries one pod through its life. Its goroutine (run) alone touches the fields
// below "owned"; others reach it through the inbox.
type worker struct {
	a    *Agent
	uid  types.UID
	log  *slog.Logger
	wake chan struct{} // room for one hint

	mu    sync.Mutex // guards inbox
	inbox inbox

	// seen is what others may know of the pod.
	seen atomic.Pointer[snapshot]
	// deleted tells that the API has no such pod any more: what it requested is free for the
	// next one from that moment, as the scheduler sees it, though its containers are still ending.
	deleted atomic.Bool
	// settled is closed when the pod has ended for a shutdown of its node and its status says so.
	settled chan struct{}

	// owned:

	v         view
	sandboxID string
	netns     string
	mounts    map[string]volume.Mount
	probes    []*probe
	// deeds counts the actions under way; run ends when there are none.
	deeds sync.WaitGroup
	// stopStarts ends prepare, sandbox and start actions.
	startCtx   context.Context
	stopStarts context.CancelFunc
	// kills ends the kill action of a container, killSeq numbers them: a quicker one may take over.
	kills   map[string]context.CancelFunc
	killSeq map[string]int
	// status is the state of the write of the status.
	status statusWrite
	// measureAt is when local storage is measured next, measuring that it is.
	measureAt time.Time
	measuring bool
	// wokenVolumes: a volume may work now that failed, or will have failed, in the try that goes on.
	wokenVolumes bool
	// madeWith are the limits with which the sandbox was made, none for one that was taken over.
	madeWith  cgroup.Resources
	backedOff map[string]int // the attempt, plus one, for which a BackOff event was recorded
	// lacks: the agent was told that a container lacks an object.
	lacks bool
	// warned are the events that are recorded once for each pod.
	warned map[string]bool
}

// statusWrite is where the writing of a status is.
type statusWrite struct {
	busy bool
	// hold is until when a change that does not press is held back, retry until when a failed write is.
	hold, retry time.Time
	failures    int
}

// inbox is what has come for a worker.
type inbox struct {
	pod  *corev1.Pod // a newer version
	gone bool
	// shutdown is what the node's shutdown leaves the pod.
	shutdown *time.Duration
	poked    bool // the runtime has something new
	volumes  bool // a volume that failed may work now
	config   bool // an object that a container lacked may be there now
	results  []func()
}

// snapshot is what a worker shows of its pod.
type snapshot struct {
	// pod with the status as the agent knows it.
	pod       *corev1.Pod
	sandboxID string
	current   map[string]string // container IDs by name
	previous  map[string]string
	// counts tells whether the pod takes part in the node's sums.
	counts bool
}

func newWorker(a *Agent, pod *corev1.Pod) *worker {
	w := &worker{
		a: a, uid: pod.UID, wake: make(chan struct{}, 1), settled: make(chan struct{}),
		log:       a.cfg.Log.With("pod", pod.Namespace+"/"+pod.Name),
		kills:     map[string]context.CancelFunc{},
		killSeq:   map[string]int{},
		backedOff: map[string]int{},
		warned:    map[string]bool{},
	}
	w.v = view{pod: pod, containers: map[string]*containerView{}, startTime: a.cfg.Now()}
	if pod.Status.StartTime != nil {
		w.v.startTime = pod.Status.StartTime.Time
	}
	w.addContainers()
	w.seen.Store(&snapshot{pod: pod, counts: true})
	return w
}

// addContainers makes a view of each container of the specification that has none yet.
func (w *worker) addContainers() {
	add := func(name string, role record.Role) {
		if w.v.containers[name] == nil {
			w.v.containers[name] = &containerView{name: name, role: role}
		}
	}
	spec := &w.v.pod.Spec
	for i := range spec.InitContainers {
		role := record.RoleInit
		if isSidecar(&spec.InitContainers[i]) {
			role = record.RoleSidecar
		}
		add(spec.InitContainers[i].Name, role)
	}
	for i := range spec.Containers {
		add(spec.Containers[i].Name, record.RoleMain)
	}
	for i := range spec.EphemeralContainers {
		add(spec.EphemeralContainers[i].Name, record.RoleEphemeral)
	}
}

// tell changes the inbox and wakes the worker.
func (w *worker) tell(change func(*inbox)) {
	w.mu.Lock()
	change(&w.inbox)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run is the worker's goroutine. It ends when the pod is gone and nothing is left of it, or when ctx is
// done; containers then run on.
func (w *worker) run(ctx context.Context) {
	defer w.deeds.Wait()
	w.startCtx, w.stopStarts = context.WithCancel(ctx)
	defer func() { w.stopStarts() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		w.take()
		now := w.a.cfg.Now()
		at := w.probe(ctx, now)
		measured := w.measure(ctx, now)
		p := decide(&w.v, now)
		if p.stop != nil {
			w.end(p.stop)
		}
		for _, act := range p.actions {
			w.do(ctx, act, now)
		}
		w.noteBackoffs(now)
		w.noteWants()
		p.at(at)
		p.at(measured)
		p.at(w.publish(ctx, now))
		if w.v.gone && w.v.over() && w.v.forgotten.state == done {
			w.settle()
			return
		}
		if p.wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, p.wake.Sub(w.a.cfg.Now())))
		}
	}
}

// take works through what has come.
func (w *worker) take() {
	w.mu.Lock()
	in := w.inbox
	w.inbox = inbox{}
	w.mu.Unlock()
	if in.pod != nil && newer(in.pod, w.v.pod) {
		w.update(in.pod)
	}
	w.v.gone = w.v.gone || in.gone
	if in.shutdown != nil {
		w.v.shutdown = in.shutdown
	}
	for _, apply := range in.results {
		apply()
	}
	if in.poked {
		w.observe()
	}
	if in.volumes {
		w.v.volumes.until, w.wokenVolumes = time.Time{}, w.v.volumes.state == busy
	}
	if in.config {
		w.retryConfigs()
	}
}

// update takes a later version of the pod.
func (w *worker) update(pod *corev1.Pod) {
	if w.v.resize.state == todo && limitsDiffer(pod, w.v.pod) {
		w.v.resize, w.v.resizeCondition = step{}, nil // other limits may fit
	}
	if !maps.Equal(pod.Annotations, w.v.pod.Annotations) || !maps.Equal(pod.Labels, w.v.pod.Labels) {
		w.retryConfigs() // the downward API may have what was missing
	}
	w.v.pod = pod
	w.addContainers()
}

// retryConfigs lets containers that could not be described be tried again at once.
func (w *worker) retryConfigs() {
	for _, c := range w.v.containers {
		if c.fail != nil && c.fail.reason == reasonConfigError {
			c.fail.until = time.Time{}
		}
	}
}

// limitsDiffer tells whether two versions of a pod ask for other resources.
func limitsDiffer(a, b *corev1.Pod) bool {
	if !equality.Semantic.DeepEqual(a.Spec.Resources, b.Spec.Resources) {
		return true
	}
	for _, lists := range [][2][]corev1.Container{{a.Spec.Containers, b.Spec.Containers}, {a.Spec.InitContainers, b.Spec.InitContainers}} {
		for i := range lists[0] {
			if !equality.Semantic.DeepEqual(lists[0][i].Resources, lists[1][i].Resources) {
				return true
			}
		}
	}
	return false
}

// newer tells whether a is a later version than b. Versions of a pod are decimal numbers.
func newer(a, b *corev1.Pod) bool {
	x, errX := strconv.ParseInt(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseInt(b.ResourceVersion, 10, 64)
	return errX != nil || errY != nil || x > y
}

// observe asks the runtime what became of the sandbox and of the containers that ran.
func (w *worker) observe() {
	if w.sandboxID != "" && w.v.sandbox.state == done {
		if st, err := w.a.cfg.Runtime.Sandbox(w.sandboxID); err != nil || st.State == container.SandboxNotReady {
			w.v.lost = true
		}
	}
	for _, c := range w.v.containers {
		if c.op == starting || !c.current.running() {
			continue
		}
		w.look(c)
	}
}

// look brings the view of one container's current instance up to date.
func (w *worker) look(c *containerView) {
	st, err := w.a.cfg.Runtime.Container(c.current.id)
	if err != nil {
		w.log.Warn("container vanished", "container", c.name, "id", c.current.id, "err", err)
		st = container.ContainerStatus{State: container.StateExited, Reason: container.ReasonLost,
			Exit: container.ExitStatus{Code: int(exitCodeUnknown), Time: w.a.cfg.Now()}, Message: messageNotLocated}
	}
	fill(c.current, &st, w.spec(c.name))
	if c.current.exited() {
		w.dropProbes(c.name)
		c.live, c.startup, c.ready = unknown, unknown, unknown
	}
}

// spec finds a container in the specification. Ephemeral containers are shown as containers.
func (w *worker) spec(name string) *corev1.Container { return findSpec(w.v.pod, name) }

func findSpec(pod *corev1.Pod, name string) *corev1.Container {
	s := &pod.Spec
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			return &s.Containers[i]
		}
	}
	for i := range s.InitContainers {
		if s.InitContainers[i].Name == name {
			return &s.InitContainers[i]
		}
	}
	for i := range s.EphemeralContainers {
		if s.EphemeralContainers[i].Name == name {
			c := corev1.Container(s.EphemeralContainers[i].EphemeralContainerCommon)
			return &c
		}
	}
	return &corev1.Container{Name: name}
}

// end notes that the pod has to end.
func (w *worker) end(s *stop) {
	if w.v.stop == nil {
		w.dropStopped()
		switch s.reason {
		case reasonDeadline:
			w.event(corev1.EventTypeNormal, s.reason, s.message)
		case reasonEvicted:
			w.event(corev1.EventTypeWarning, s.reason, s.message)
		}
	}
	w.v.stop = s
}

const reasonDeadline = "DeadlineExceeded"

// publish shows the pod's status to others and writes it if it changed. It gives the time
// when it wants to be called again.
func (w *worker) publish(ctx context.Context, now time.Time) time.Time {
	w.v.health = w.a.health(w.v.pod)
	st := makeStatus(&w.v, w.a.hostIPs, now)
	same := sameStatus(&st, &w.v.pod.Status)
	w.show(&st, same)
	if same {
		w.status.hold = time.Time{}
		w.settle()
		return time.Time{}
	}
	if w.status.busy || w.v.gone || w.v.forgotten.state != todo {
		return time.Time{}
	}
	if w.status.retry.After(now) {
		return w.status.retry
	}
	deleted := w.v.pod.DeletionTimestamp != nil
	// The last status is written with the end.
	leaving := deleted && (quiet(&w.v) || onlySeen(&w.v.pod.Status, &st))
	if w.a.cfg.Settle > 0 && (leaving || !pressing(&w.v.pod.Status, &st)) {
		if w.status.hold.IsZero() {
			w.status.hold = now.Add(w.a.cfg.Settle)
			if leaving {
				w.status.hold = now.Add(leaveHold)
			}
		}
		if w.status.hold.After(now) {
			return w.status.hold
		}
	}
	w.status.hold, w.status.busy = time.Time{}, true
	pod := w.v.pod
	w.deed(ctx, statusTimeout, func(ctx context.Context) func() {
		out, err := w.write(ctx, pod, &st)
		return func() { w.written(out, err) }
	})
	return time.Time{}
}

const (
	statusTimeout = 30 * time.Second
	// leaveHold is how long the end of a pod that is being deleted may take before it is shown.
	leaveHold = time.Second
)

// settle tells a shutdown that waits for it that the pod is over.
func (w *worker) settle() {
	if w.v.shutdown == nil || !w.v.over() {
		return
	}
	select {
	case <-w.settled:
	default:
		close(w.settled)
	}
}

// quiet tells whether nothing of a pod runs any more.
func quiet(v *view) bool {
	for _, c := range v.containers {
		if c.op != idle || c.current.running() {
			return false
		}
	}
	return v.stop != nil
}

// write writes a status over a version of the pod.
func (w *worker) write(ctx context.Context, pod *corev1.Pod, st *corev1.PodStatus) (*corev1.Pod, error) {
	obj := pod.DeepCopy()
	obj.Status = *st
	out, err := w.a.cfg.Client.Update(ctx, client.Pods.Name, obj, client.WriteOptions{Subresource: "status"})
	if err != nil {
		return nil, err
	}
	return out.(*corev1.Pod), nil
}

// written takes the result of a write of the status.
func (w *worker) written(out *corev1.Pod, err error) {
	w.status.busy = false
	switch {
	case err == nil:
		w.status.failures = 0
		if newer(out, w.v.pod) {
			w.update(out)
		}
	case apierrors.IsConflict(err):
		w.refresh()
	case apierrors.IsNotFound(err):
		w.refresh()
		w.status.retry = w.a.cfg.Now().Add(time.Second) // its event comes
	default:
		w.status.failures++
		w.status.retry = w.a.cfg.Now().Add(retryAfter(w.status.failures, time.Second, time.Minute))
		w.log.Warn("write pod status", "err", err)
	}
}

// refresh reads the pod's present version.
func (w *worker) refresh() {
	if pod, ok := client.Pods.Get(w.a.cfg.Client.Snapshot(), w.v.pod.Namespace, w.v.pod.Name); ok && pod.UID == w.uid && newer(pod, w.v.pod) {
		w.update(pod)
	}
}

// retryAfter doubles from first with each failure, up to most.
func retryAfter(failures int, first, most time.Duration) time.Duration {
	return min(first<<min(failures-1, 20), most)
}

// show makes the pod as it is now visible to others.
func (w *worker) show(st *corev1.PodStatus, same bool) {
	s := &snapshot{pod: w.v.pod, sandboxID: w.sandboxID, current: map[string]string{}, previous: map[string]string{}}
	if !same {
		pod := *w.v.pod
		pod.Status = *st
		s.pod = &pod
	}
	for name, c := range w.v.containers {
		if c.current != nil {
			s.current[name] = c.current.id
		}
		if c.previous != nil {
			s.previous[name] = c.previous.id
		}
	}
	s.counts = !w.v.rejected && !w.v.over() && st.Phase != corev1.PodSucceeded && st.Phase != corev1.PodFailed
	w.seen.Store(s)
}

// event records an event about the pod.
func (w *worker) event(kind, reason, message string) { w.eventAbout("", kind, reason, message) }

// eventAbout records an event about a part of the pod, by its field path.
func (w *worker) eventAbout(path, kind, reason, message string) {
	w.a.cfg.Events(reconcile.Event{Regarding: refOf(w.v.pod, path), Type: kind, Reason: reason, Message: message})
}

func refOf(pod *corev1.Pod, path string) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: path,
	}
}

// fieldPath names a container in events.
func fieldPath(name string, role record.Role) string {
	switch role {
	case record.RoleInit, record.RoleSidecar:
		return "spec.initContainers{" + name + "}"
	case record.RoleEphemeral:
		return "spec.ephemeralContainers{" + name + "}"
	}
	return "spec.containers{" + name + "}"
}

// noteBackoffs records an event for each container that has newly come to wait for a restart
// or for the next try of a pull.
func (w *worker) noteBackoffs(now time.Time) {
	if w.v.stop != nil {
		return
	}
	for _, c := range w.v.ordered() {
		path := fieldPath(c.name, c.role)
		if f := c.fail; f != nil && f.then != "" && !f.noted && !now.Before(f.at.Add(failThen)) {
			f.noted = true
			w.eventAbout(path, corev1.EventTypeNormal, eventBackOff, firstPart(f.thenMessage))
			w.eventAbout(path, corev1.EventTypeWarning, eventFailed, "Error: "+f.then)
		}
		if c.op != idle || !c.current.exited() || w.backedOff[c.name] == c.current.attempt+1 {
			continue
		}
		s := w.spec(c.name)
		again := restarts(w.v.pod, s, c.current.exitCode) && (c.role != record.RoleInit || c.current.exitCode != 0) && c.role != record.RoleEphemeral
		if again && c.crash.until(c.current.finished).After(now) {
			w.backedOff[c.name] = c.current.attempt + 1
			w.eventAbout(path, corev1.EventTypeWarning, eventBackOff,
				"Back-off restarting failed container "+c.name+" in pod "+podFullName(w.v.pod))
		}
	}
}

// noteWants tells the agent whether a container lacks an object, so that its coming wakes the worker.
func (w *worker) noteWants() {
	lacks := false
	for _, c := range w.v.containers {
		lacks = lacks || c.fail != nil && c.fail.reason == reasonConfigError
	}
	if lacks != w.lacks {
		w.lacks = lacks
		w.a.want(w.uid, lacks)
	}
}

// firstPart is a back-off message without its cause, as the event has it.
func firstPart(message string) string {
	if i := indexAfterQuote(message); i > 0 {
		return message[:i]
	}
	return message
}

func indexAfterQuote(s string) int {
	quotes := 0
	for i := range len(s) {
		if s[i] == '"' {
			if quotes++; quotes == 2 {
				return i + 1
			}
		}
	}
	return 0
}
