package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/logfile"
	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/volume"
)

// Reasons of containers that could not be started, and of the events about it.
const (
	reasonConfigError   = "CreateContainerConfigError"
	reasonCreateError   = "CreateContainerError"
	reasonRunError      = "RunContainerError"
	reasonPostStart     = "PostStartHookError"
	eventCreated        = "Created"
	eventStarted        = "Started"
	eventPostStart      = "FailedPostStartHook"
	eventPreStop        = "FailedPreStopHook"
	minKillGrace        = 2 * time.Second
	killSlack           = time.Minute // beyond the grace, for the runtime
	killRetry           = time.Second
	maxTerminationBytes = 4096
	maxLogMessageBytes  = 2048
	maxLogMessageLines  = 80
)

// started is what a start action found out.
type started struct {
	inst *instance
	fail *failure
	// left is an instance that was removed for good.
	left *instance
}

// start pulls the image of a container, makes and runs it, and runs its post-start hook.
func (w *worker) start(c *containerView, now time.Time) {
	c.op = starting
	if c.current.exited() {
		c.crash.next(c.current.finished, now)
	}
	s := w.spec(c.name)
	pod := w.podWithAddresses()
	job := &startJob{
		w: w, pod: pod, spec: s, role: c.role, attempt: c.attempt, sandboxID: w.sandboxID,
		mounts: w.mounts, previous: c.previous, current: c.current, target: w.targetOf(s.Name),
		path: fieldPath(c.name, c.role),
		resized: c.resources == nil && !equality.Semantic.DeepEqual(w.madeWith, podResources(pod)) ||
			c.resources != nil && !equality.Semantic.DeepEqual(*c.resources, s.Resources),
	}
	w.deed(w.startCtx, startTimeout, func(ctx context.Context) func() {
		out := job.run(ctx)
		return func() { w.didStart(c, s, out) }
	})
}

// didStart takes the result of a start action.
func (w *worker) didStart(c *containerView, s *corev1.Container, out started) {
	c.op, c.fail = idle, out.fail
	if c.fail != nil && w.startCtx.Err() != nil {
		c.fail = nil // it was called off
	}
	if out.left != nil && c.previous == out.left {
		c.previous = nil
	}
	if out.inst == nil {
		if c.current != nil && c.current.state == container.StateCreated {
			c.current = nil
		}
		return
	}
	if c.current != nil && c.current.state != container.StateCreated {
		c.previous = c.current
	}
	c.current, c.attempt = out.inst, out.inst.attempt+1
	c.resources = s.Resources.DeepCopy()
	if c.role == record.RoleEphemeral {
		c.resources = nil
	}
	w.startProbes(c, s, unknown, unknown)
	if out.inst.running() {
		w.look(c) // it may have ended since
	}
}

// targetOf gives the instance whose processes an ephemeral container is to see, "" for none.
func (w *worker) targetOf(name string) string {
	for i := range w.v.pod.Spec.EphemeralContainers {
		e := &w.v.pod.Spec.EphemeralContainers[i]
		if e.Name == name && e.TargetContainerName != "" {
			if t := w.v.containers[e.TargetContainerName]; t != nil && t.current.running() {
				return t.current.id
			}
		}
	}
	return ""
}

// podWithAddresses is the pod with the addresses of its sandbox and node in its status, for the
// downward API.
func (w *worker) podWithAddresses() *corev1.Pod {
	pod := *w.v.pod
	pod.Status.PodIP, pod.Status.PodIPs = "", nil
	for i, ip := range w.v.podIPs {
		if i == 0 {
			pod.Status.PodIP = ip
		}
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	pod.Status.HostIP, pod.Status.HostIPs = "", nil
	for i, ip := range w.a.hostIPs {
		if i == 0 {
			pod.Status.HostIP = ip
		}
		pod.Status.HostIPs = append(pod.Status.HostIPs, corev1.HostIP{IP: ip})
	}
	return &pod
}

// startJob is one start action: what it works on is fixed when it begins.
type startJob struct {
	w                 *worker
	pod               *corev1.Pod
	spec              *corev1.Container
	role              record.Role
	attempt           int
	sandboxID         string
	mounts            map[string]volume.Mount
	previous, current *instance
	target            string
	path              string
	resized           bool // since the container last ran or, if it did not, since the sandbox was made
}

// note records an event about the container.
func (j *startJob) note(kind, reason, message string) { j.record(j.path, kind, reason, message) }

func (j *startJob) record(path, kind, reason, message string) {
	j.w.a.cfg.Events(reconcile.Event{Regarding: refOf(j.pod, path), Type: kind, Reason: reason, Message: message})
}

func (j *startJob) fail(reason string, err error) *failure {
	now := j.w.a.cfg.Now()
	return &failure{reason: reason, message: err.Error(), at: now, until: now.Add(retryConfig)}
}

func (j *startJob) run(ctx context.Context) (out started) {
	rt := j.w.a.cfg.Runtime
	if j.current != nil && j.current.state == container.StateCreated {
		if err := rt.Remove(ctx, j.current.id); err != nil { // an earlier run of the program got no further
			out.fail = j.fail(reasonCreateError, err)
			return out
		}
	}
	snap := j.w.a.cfg.Client.Snapshot()
	auths, missing := pullAuths(snap, j.pod, j.spec.Image)
	if len(missing) > 0 {
		j.record("", corev1.EventTypeWarning, eventNoPullSecret, fmt.Sprintf(
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	image, fail := j.w.a.pulls.ensure(ctx, j.pod.UID, j.spec.Image, j.spec.ImagePullPolicy, auths, j.note)
	if fail != nil {
		if ctx.Err() == nil {
			j.note(corev1.EventTypeWarning, eventFailed, "Error: "+fail.reason)
		}
		out.fail = fail
		return out
	}
	if err := j.w.a.slot(ctx); err != nil {
		out.fail = j.fail(reasonCreateError, err)
		return out
	}
	inst, fail := j.create(ctx, image)
	j.w.a.release()
	out.inst, out.fail = inst, fail
	if inst == nil {
		return out
	}
	if j.current.exited() && j.previous != nil && j.previous.id != "" {
		j.discard(ctx, j.previous)
	}
	if inst.running() {
		j.postStart(ctx, &out)
	}
	return out
}

// create makes the container and runs it. An instance is returned as soon as there is one, even
// if its process could not be executed.
func (j *startJob) create(ctx context.Context, image container.Image) (*instance, *failure) {
	a := j.w.a
	l, err := j.launch(image)
	var cfg container.ContainerConfig
	if err == nil {
		cfg, err = l.config(ctx)
	}
	if err == nil && claims.Uses(j.pod) && a.cfg.Claims != nil {
		err = a.cfg.Claims.Inject(j.pod, j.spec, &cfg)
	}
	if err == nil && a.cfg.Devices != nil {
		err = a.cfg.Devices.Inject(ctx, j.pod, j.spec, &cfg)
	}
	if err != nil {
		j.note(corev1.EventTypeWarning, eventFailed, "Error: "+err.Error())
		return nil, j.fail(reasonConfigError, err)
	}
	if j.resized {
		// A pod that cannot shrink yet, for the sake of its other containers, does so with the last of them.
		if err := a.cfg.Runtime.UpdateSandbox(ctx, j.sandboxID, unlimited(podResources(j.pod))); err != nil {
			j.w.log.Debug("resize pod", "err", err)
		}
	}
	st, err := a.cfg.Runtime.CreateContainer(ctx, cfg)
	if err != nil {
		if ctx.Err() == nil {
			j.note(corev1.EventTypeWarning, eventFailed, "Error: "+err.Error())
		}
		return nil, j.fail(reasonCreateError, err)
	}
	j.note(corev1.EventTypeNormal, eventCreated, "Container created")
	inst := &instance{id: cfg.ID, attempt: j.attempt, specImage: j.spec.Image, complete: true, created: st.Created}
	startErr := a.cfg.Runtime.Start(ctx, cfg.ID)
	if now, err := a.cfg.Runtime.Container(cfg.ID); err == nil {
		st = now
	}
	fill(inst, &st, j.spec)
	inst.image, inst.imageID = shownImage(image, j.spec.Image)
	if startErr == nil {
		j.note(corev1.EventTypeNormal, eventStarted, "Container started")
		return inst, nil
	}
	j.note(corev1.EventTypeWarning, eventFailed, "Error: "+startErr.Error())
	f := j.fail(reasonRunError, startErr)
	f.until = time.Time{} // its restart is spaced out as that of any other exit
	if inst.state == container.StateCreated {
		_ = a.cfg.Runtime.Remove(context.WithoutCancel(ctx), inst.id) // called off before it ran
		return nil, f
	}
	return inst, f
}

// launch gathers what the container's description is made from.
func (j *startJob) launch(image container.Image) (*launch, error) {
	a := j.w.a
	e := environment{snap: a.cfg.Client.Snapshot(), pod: j.pod, allocatable: a.allocatable(), mounts: j.mounts}
	env, err := e.of(j.spec)
	if err != nil {
		return nil, err
	}
	l := &launch{
		pod: j.pod, spec: j.spec, role: j.role, id: newID(), attempt: j.attempt, sandboxID: j.sandboxID,
		image: image, env: env, mounts: j.mounts, etcHosts: j.w.etcHosts(), target: j.target,
		memory: a.machineMemory(), seccompRoot: filepath.Join(a.cfg.DataDir, "seccomp"),
	}
	l.subPath = func(ctx context.Context, m volume.Mount, name string, index int, sub string) (string, error) {
		return a.cfg.Volumes.SubPath(ctx, j.pod.UID, m, name, j.spec.Name, index, sub)
	}
	if j.spec.TerminationMessagePath != "" {
		l.messageFile, err = j.messageFile()
	}
	return l, err
}

// messageFile makes the empty file that the container finds at its terminationMessagePath.
func (j *startJob) messageFile() (string, error) {
	file := filepath.Join(j.w.a.cfg.Volumes.PodDir(j.pod.UID), fmt.Sprintf("message-%s-%d", j.spec.Name, j.attempt))
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return "", err
	}
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		return "", err
	}
	return file, os.Chmod(file, 0o666)
}

// discard removes an instance that nobody asks for any more, with its log.
func (j *startJob) discard(ctx context.Context, old *instance) {
	if err := j.w.a.cfg.Runtime.Remove(ctx, old.id); err != nil {
		j.w.log.Warn("remove old container", "id", old.id, "err", err)
		return
	}
	dir := j.w.a.logDir(j.pod.Namespace, j.pod.Name, j.pod.UID)
	logs, _ := filepath.Glob(filepath.Join(dir, record.LogPath(j.spec.Name, old.attempt)) + "*")
	for _, f := range logs {
		_ = os.Remove(f)
	}
}

// postStart runs the hook; a container whose hook fails is killed.
func (j *startJob) postStart(ctx context.Context, out *started) {
	if j.spec.Lifecycle == nil || j.spec.Lifecycle.PostStart == nil {
		return
	}
	t := target{pod: j.pod, spec: j.spec, id: out.inst.id, ip: j.pod.Status.PodIP, path: j.path, env: staticEnv(j.spec)}
	err := j.w.a.prober.hook(ctx, j.spec.Lifecycle.PostStart, t)
	if err == nil {
		return
	}
	if ctx.Err() == nil { // otherwise the pod is being stopped, and its containers are killed for that
		j.note(corev1.EventTypeWarning, eventPostStart, "PostStartHook failed")
		j.note(corev1.EventTypeNormal, eventKilling, "FailedPostStartHook")
		grace := podGrace(j.pod)
		kill, cancel := context.WithTimeout(ctx, grace+killSlack)
		defer cancel()
		_ = j.w.stopContainer(kill, t, out.inst.id, grace)
		out.fail = j.fail(reasonPostStart, err)
		out.fail.until = time.Time{}
	}
	if st, err := j.w.a.cfg.Runtime.Container(out.inst.id); err == nil {
		fill(out.inst, &st, j.spec)
	}
}

// target is where probes and hooks of an instance go. It is for the worker's goroutine.
func (w *worker) target(pod *corev1.Pod, s *corev1.Container, id string) target {
	t := target{pod: pod, spec: s, id: id, env: staticEnv(s), path: fieldPath(s.Name, w.v.containers[s.Name].role)}
	if len(w.v.podIPs) > 0 {
		t.ip = w.v.podIPs[0]
	} else {
		t.ip = pod.Status.PodIP
	}
	return t
}

// staticEnv are the variables of a container whose values stand in its specification.
func staticEnv(s *corev1.Container) *variables {
	env := newVariables()
	for i := range s.Env {
		env.set(s.Env[i].Name, expand(s.Env[i].Value, env.get))
	}
	return env
}

// stopContainer runs the pre-stop hook and stops an instance within a grace period.
func (w *worker) stopContainer(ctx context.Context, t target, id string, grace time.Duration) error {
	began := w.a.cfg.Now()
	left := w.leave(ctx, t.pod, grace)
	if lc := t.spec.Lifecycle; lc != nil && lc.PreStop != nil && grace > 0 {
		hook, cancel := context.WithTimeout(ctx, grace)
		err := w.a.prober.hook(hook, lc.PreStop, t)
		timedOut := hook.Err() != nil
		cancel()
		if err != nil && !timedOut {
			w.a.cfg.Events(reconcile.Event{Regarding: refOf(t.pod, t.path), Type: corev1.EventTypeWarning, Reason: eventPreStop, Message: "PreStopHook failed"})
		}
	}
	left()
	if grace > 0 {
		grace -= w.a.cfg.Now().Sub(began)
	}
	err := w.a.cfg.Runtime.Stop(ctx, id, "", max(grace, minKillGrace))
	if errors.Is(err, container.ErrNotFound) {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		timer := time.NewTimer(killRetry) // it is tried again at once when this returns
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return err
}

// leaveTimeout is how long a deleted pod's containers are not told to end because somebody may still be sent to it.
const leaveTimeout = 2 * time.Second

// leave begins to wait until nobody is sent to a deleted pod, and returns what waits for the end of that.
func (w *worker) leave(ctx context.Context, pod *corev1.Pod, grace time.Duration) (wait func()) {
	if w.a.cfg.Leave == nil || pod.DeletionTimestamp == nil || grace <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, min(leaveTimeout, grace/2))
	var done sync.WaitGroup
	done.Go(func() {
		defer cancel()
		w.a.cfg.Leave(ctx, pod)
	})
	return done.Wait
}

// fill copies what the runtime says of an instance.
func fill(inst *instance, st *container.ContainerStatus, s *corev1.Container) {
	was := inst.state
	inst.state, inst.created = st.State, st.Created
	if !st.Started.IsZero() {
		inst.started = st.Started
	}
	user := st.User
	inst.user = &user
	if st.State != container.StateExited || was == container.StateExited {
		return
	}
	inst.finished = st.Exit.Time
	inst.exitCode, inst.reason, inst.message = int32(st.Exit.Code), st.Reason, st.Message
	if m := terminationMessage(st, s); m != "" {
		if inst.message != "" {
			inst.message += ": "
		}
		inst.message += m
	}
}

// terminationMessage is what the container left in its message file or, if it asked for
// that and failed, the end of its log.
func terminationMessage(st *container.ContainerStatus, s *corev1.Container) string {
	if file := st.Config.Labels[record.MessagePath]; file != "" {
		data, err := readAtMost(file, maxTerminationBytes)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Sprintf("Error on reading termination log %s: %v", file, err)
		}
		if len(data) > 0 {
			return strings.ToValidUTF8(string(data), "\uFFFD")
		}
	}
	if s.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || st.Exit.Code == 0 ||
		st.Reason == container.ReasonStartError || st.LogPath == "" {
		return ""
	}
	data, err := logTail(st.LogPath)
	if err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	return strings.ToValidUTF8(data, "\uFFFD")
}

// readAtMost reads the end of a file.
func readAtMost(file string, most int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-most)
	data := make([]byte, min(info.Size(), most))
	n, err := f.ReadAt(data, from)
	if n == len(data) {
		err = nil
	}
	return data[:n], err
}

// logTail gives the text of the last lines of a container's log.
func logTail(file string) (string, error) {
	raw, err := readAtMost(file, 64*1024)
	if err != nil {
		return "", err
	}
	lines := bytes.SplitAfter(raw, []byte("\n"))
	if n := len(lines) - maxLogMessageLines - 1; n > 0 {
		lines = lines[n:]
	}
	var out []byte
	for _, l := range lines {
		line, err := logfile.Parse(bytes.TrimSuffix(l, []byte("\n")))
		if err != nil {
			continue // cut in the middle
		}
		out = append(out, line.Text...)
		if !line.Partial {
			out = append(out, '\n')
		}
	}
	if n := len(out) - maxLogMessageBytes; n > 0 {
		out = out[n:]
	}
	return string(out), nil
}

// shownImage gives image and imageID as a container status shows them.
func shownImage(img container.Image, spec string) (name, id string) {
	name, id = spec, img.ID
	if len(img.Digests) > 0 {
		id = img.Digests[0]
	}
	for _, n := range img.Names {
		if n == spec || strings.HasSuffix(n, "/"+spec) || strings.HasSuffix(n, "/"+spec+":latest") {
			return n, id
		}
	}
	if len(img.Names) > 0 && !strings.Contains(spec, "@") {
		name = img.Names[0]
	}
	return name, id
}
