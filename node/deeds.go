package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/volume"
)

// How long actions may take, and when failed ones are tried again.
const (
	prepareTimeout  = 10 * time.Minute // a volume may be pulled or attached first
	sandboxTimeout  = 2 * time.Minute
	startTimeout    = time.Hour // a pull may be long; the post-start hook has no limit of its own upstream
	teardownTimeout = 2 * time.Minute
	forgetTimeout   = 2 * time.Minute
	resizeTimeout   = 30 * time.Second

	retryVolumesFirst = 500 * time.Millisecond
	retryVolumesMost  = 2*time.Minute + 2*time.Second
	retrySandboxFirst = time.Second
	retrySandboxMost  = time.Minute
	retryTearFirst    = 500 * time.Millisecond
	retryTearMost     = time.Minute
	retryResize       = 10 * time.Second
	// retryConfig is how long a container waits that cannot be made as it is described.
	retryConfig = 10 * time.Second
)

// Events about pods, in upstream's words.
const (
	eventFailedSandbox  = "FailedCreatePodSandBox"
	eventSandboxChanged = "SandboxChanged"
	eventKilling        = "Killing"
	eventMissingDNS     = "MissingClusterDNS"
	eventNoPullSecret   = "FailedToRetrieveImagePullSecret"
	eventFailedKill     = "FailedKillPod"
)

// deed runs an action beside the worker. What it returns is called by the worker.
func (w *worker) deed(ctx context.Context, timeout time.Duration, act func(context.Context) func()) {
	w.deeds.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		apply := act(ctx)
		w.tell(func(in *inbox) { in.results = append(in.results, apply) })
	})
}

// do begins an action.
func (w *worker) do(ctx context.Context, act action, now time.Time) {
	switch act.do {
	case doPrepare:
		w.prepare()
	case doSandbox:
		w.makeSandbox()
	case doReset:
		w.resetSandbox(ctx)
	case doStart:
		w.start(w.v.containers[act.container], now)
	case doStartOver:
		w.startOver(w.v.containers[act.container], now)
	case doKill:
		w.kill(ctx, w.v.containers[act.container], act.message, act.grace, now)
	case doResize:
		if act.container == "" {
			w.resizeSandbox(ctx)
			return
		}
		w.resizeContainer(ctx, w.v.containers[act.container])
	case doCancel:
		w.stopStarts()
	case doTeardown:
		w.tearDown(ctx)
	case doForget:
		w.forget(ctx)
	}
}

// failed notes that a step failed.
func (s *step) failed(now time.Time, first, most time.Duration) {
	s.tries++
	s.state, s.until = todo, now.Add(retryAfter(s.tries, first, most))
}

// succeeded notes that a step is done.
func (s *step) succeeded() { *s = step{state: done} }

func (w *worker) prepare() {
	w.v.volumes.state, w.wokenVolumes = busy, false
	pod := w.v.pod
	w.deed(w.startCtx, prepareTimeout, func(ctx context.Context) func() {
		if err := w.a.allocateDevices(ctx, pod); err != nil {
			return func() { w.noDevices(err) }
		}
		mounts, err := w.a.cfg.Volumes.Prepare(ctx, pod)
		var denied error
		if err == nil && claims.Uses(pod) {
			denied = w.a.prepareClaims(ctx, pod)
		}
		return func() {
			if denied != nil {
				w.v.volumes.failed(w.a.cfg.Now(), retryVolumesFirst, retryVolumesMost)
				if w.startCtx.Err() == nil {
					w.event(corev1.EventTypeWarning, eventFailedClaims, "Failed to prepare dynamic resources: "+denied.Error())
				}
				return
			}
			if err == nil {
				w.mounts = mounts
				w.v.volumes.succeeded()
				return
			}
			w.v.volumes.failed(w.a.cfg.Now(), retryVolumesFirst, retryVolumesMost)
			if w.startCtx.Err() != nil {
				return
			}
			if w.wokenVolumes {
				w.v.volumes.until = time.Time{} // what this try lacked may have come while it went on
			}
			for _, f := range volume.Failures(err) {
				w.event(corev1.EventTypeWarning, volume.Reason, f.Message)
			}
		}
	})
}

// makeSandbox makes the sandbox and connects it.
func (w *worker) makeSandbox() {
	w.v.sandbox.state = busy
	pod, attempt := w.v.pod, w.v.sandboxAttempt
	dns, warn := w.a.resolver(pod)
	if warn != "" && !w.warned[eventMissingDNS] {
		w.warned[eventMissingDNS] = true
		w.event(corev1.EventTypeWarning, eventMissingDNS, warn)
	}
	w.deed(w.startCtx, sandboxTimeout, func(ctx context.Context) func() {
		st, ips, err := w.createSandbox(ctx, pod, attempt, dns)
		return func() {
			if err != nil {
				w.v.sandbox.failed(w.a.cfg.Now(), retrySandboxFirst, retrySandboxMost)
				if w.startCtx.Err() == nil {
					w.event(corev1.EventTypeWarning, eventFailedSandbox, "Failed to create pod sandbox: "+err.Error())
				}
				return
			}
			w.adoptSandbox(st, ips)
			w.v.resources, w.madeWith = pod.Spec.Resources.DeepCopy(), podResources(pod)
			w.v.sandboxAttempt++
		}
	})
}

// createSandbox does the work of makeSandbox; it leaves nothing when it fails.
func (w *worker) createSandbox(ctx context.Context, pod *corev1.Pod, attempt int, dns container.DNS) (container.SandboxStatus, []string, error) {
	if err := w.a.slot(ctx); err != nil {
		return container.SandboxStatus{}, nil, err
	}
	defer w.a.release()
	if err := w.a.runtimeHandler(pod); err != nil {
		return container.SandboxStatus{}, nil, err
	}
	cfg, err := sandboxConfig(pod, newID(), attempt, dns, w.a.cfg.ClusterDomain, w.a.cfg.LogDir, w.a.cfg.NodeName)
	if err != nil {
		return container.SandboxStatus{}, nil, err
	}
	st, err := w.a.cfg.Runtime.CreateSandbox(ctx, cfg)
	if err != nil {
		return st, nil, err
	}
	ips, err := w.connect(ctx, pod, st)
	if err == nil {
		if err := w.a.classes.weigh(st.Cgroup, pod, w.a.counted()); err != nil {
			w.log.Warn("weigh quality-of-service class", "err", err)
		}
		return st, ips, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), sandboxTimeout)
	defer cancel()
	return st, nil, errors.Join(err, w.a.cfg.Runtime.RemoveSandbox(undo, st.Config.ID))
}

// connect gives the sandbox its addresses and the pod its /etc/hosts.
func (w *worker) connect(ctx context.Context, pod *corev1.Pod, st container.SandboxStatus) ([]string, error) {
	ips := w.a.hostIPs
	host, domain, _, err := hostnames(pod, w.a.cfg.ClusterDomain)
	if err != nil {
		return nil, err
	}
	if !pod.Spec.HostNetwork {
		addrs, err := w.a.cfg.Network.Attach(ctx, st.Config.ID, st.NetNS, st.Config.Hostname)
		if err != nil {
			return nil, fmt.Errorf("failed to setup network for sandbox %q: %w", st.Config.ID, err)
		}
		ips = addressStrings(addrs)
		if err := w.a.mapPorts(ctx, pod, st.Config.ID, addrs); err != nil {
			return nil, fmt.Errorf("failed to map host ports of sandbox %q: %w", st.Config.ID, errors.Join(err, w.a.cfg.Network.Detach(ctx, st.Config.ID, st.NetNS)))
		}
	}
	return ips, w.writeHosts(pod, ips, host, domain)
}

func addressStrings(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// etcHosts is the host file of the pod's /etc/hosts.
func (w *worker) etcHosts() string { return filepath.Join(w.a.cfg.Volumes.PodDir(w.uid), "etc-hosts") }

func (w *worker) writeHosts(pod *corev1.Pod, ips []string, host, domain string) error {
	var node []byte
	if pod.Spec.HostNetwork {
		node, _ = os.ReadFile(w.a.cfg.HostsFile) // a machine may be without
	}
	file := w.etcHosts()
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(file, hostsFile(pod, ips, host, domain, node), 0o644); err != nil {
		return err
	}
	return os.Chmod(file, 0o644)
}

// adoptSandbox takes note of a sandbox that is there.
func (w *worker) adoptSandbox(st container.SandboxStatus, ips []string) {
	w.sandboxID, w.netns = st.Config.ID, st.NetNS
	w.v.podIPs, w.v.lost = ips, st.State == container.SandboxNotReady
	w.v.sandbox.succeeded()
	w.a.route(w.sandboxID, w)
}

// resetSandbox removes a sandbox that has lost its namespaces, so that the pod starts over.
func (w *worker) resetSandbox(ctx context.Context) {
	w.v.sandbox.state = busy
	w.event(corev1.EventTypeNormal, eventSandboxChanged, "Pod sandbox changed, it will be killed and re-created.")
	id, netns, host := w.sandboxID, w.netns, w.v.pod.Spec.HostNetwork
	w.deed(ctx, teardownTimeout, func(ctx context.Context) func() {
		err := w.removeSandbox(ctx, id, netns, host)
		return func() {
			if err != nil {
				w.log.Warn("remove lost sandbox", "err", err)
				w.v.sandbox.failed(w.a.cfg.Now(), retryTearFirst, retryTearMost)
				w.v.sandbox.state = done // lost still holds: it is removed again
				return
			}
			w.a.unroute(id)
			w.v.sandbox, w.v.lost, w.sandboxID, w.netns, w.v.podIPs = step{}, false, "", "", nil
			startOver(&w.v)
		}
	})
}

func (w *worker) removeSandbox(ctx context.Context, id, netns string, host bool) error {
	if !host {
		if err := w.a.cfg.Network.Detach(ctx, id, netns); err != nil {
			return err
		}
	}
	return w.a.cfg.Runtime.RemoveSandbox(ctx, id)
}

// startOver makes containers start anew in a new sandbox, except main ones that are not to run again.
func startOver(v *view) {
	for i := range v.pod.Spec.Containers {
		s := &v.pod.Spec.Containers[i]
		c := v.containers[s.Name]
		if c.current.exited() && !restarts(v.pod, s, c.current.exitCode) {
			continue
		}
		c.renew()
	}
	for i := range v.pod.Spec.InitContainers {
		v.containers[v.pod.Spec.InitContainers[i].Name].renew()
	}
}

// startOver makes all containers begin anew; all of them have ended.
func (w *worker) startOver(cause *containerView, now time.Time) {
	cause.crash.next(cause.current.finished, now)
	for _, c := range w.v.containers {
		if c.role != record.RoleEphemeral {
			c.renew()
		}
	}
	w.tell(func(*inbox) {}) // what comes first is decided next
}

// renew makes the current instance the previous one.
func (c *containerView) renew() {
	if c.current != nil {
		c.previous, c.current = c.current, nil
	}
}

// kill ends a container: pre-stop hook, signal, grace, SIGKILL.
func (w *worker) kill(ctx context.Context, c *containerView, message string, grace time.Duration, now time.Time) {
	if cancel := w.kills[c.name]; cancel != nil {
		cancel() // a kill that would take longer
	} else {
		w.eventAbout(fieldPath(c.name, c.role), corev1.EventTypeNormal, eventKilling, message)
	}
	c.op, c.killBy = killing, now.Add(grace)
	ctx, cancel := context.WithCancel(ctx)
	w.killSeq[c.name]++
	seq := w.killSeq[c.name]
	w.kills[c.name] = cancel
	inst, pod, spec := c.current, w.v.pod, w.spec(c.name)
	t := w.target(pod, spec, inst.id)
	w.deed(ctx, grace+killSlack, func(ctx context.Context) func() {
		err := w.stopContainer(ctx, t, inst.id, grace)
		return func() {
			if w.killSeq[c.name] != seq {
				return // a quicker kill has taken over
			}
			cancel()
			delete(w.kills, c.name)
			c.op = idle
			if err != nil && ctx.Err() == nil {
				w.log.Error("kill container", "container", c.name, "err", err)
				w.event(corev1.EventTypeWarning, eventFailedKill, "error killing pod: "+err.Error())
			}
			if c.current == inst {
				w.look(c)
			}
		}
	})
}

// forget removes the sandbox and the logs, writes the final status and confirms the deletion.
func (w *worker) forget(ctx context.Context) {
	w.v.forgotten.state = busy
	pod, gone := w.v.pod, w.v.gone
	w.v.health = w.a.health(pod)
	st := makeStatus(&w.v, w.a.hostIPs, w.a.cfg.Now())
	id := w.sandboxID
	w.deed(ctx, forgetTimeout, func(ctx context.Context) func() {
		err := w.erase(ctx, pod, id)
		if err == nil && !gone {
			err = w.confirm(ctx, pod, &st)
		}
		return func() {
			if err != nil {
				w.v.forgotten.failed(w.a.cfg.Now(), retryTearFirst, retryTearMost)
				if apierrors.IsConflict(err) {
					w.refresh()
					w.v.forgotten.until = time.Time{}
				} else if ctx.Err() == nil {
					w.log.Warn("forget pod", "err", err)
				}
				return
			}
			w.v.forgotten.succeeded()
			w.a.unroute(id)
			w.a.pulls.forget(w.uid)
		}
	})
}

// erase removes what a pod leaves behind when it is not asked for any more.
func (w *worker) erase(ctx context.Context, pod *corev1.Pod, sandboxID string) error {
	if sandboxID != "" {
		if err := w.a.cfg.Runtime.RemoveSandbox(ctx, sandboxID); err != nil {
			return err
		}
	}
	return os.RemoveAll(w.a.logDir(pod.Namespace, pod.Name, pod.UID))
}

// confirm writes the final status and tells the API server that nothing of the pod is left.
func (w *worker) confirm(ctx context.Context, pod *corev1.Pod, st *corev1.PodStatus) error {
	if !sameStatus(st, &pod.Status) {
		if _, err := w.write(ctx, pod, st); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	zero := int64(0)
	err := w.a.cfg.Client.Delete(ctx, client.Ref{Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name},
		client.DeleteOptions{UID: pod.UID, GraceSeconds: &zero})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if apierrors.IsConflict(err) { // a change came between, or it is another pod by now
		if now, ok := client.Pods.Get(w.a.cfg.Client.Snapshot(), pod.Namespace, pod.Name); !ok || now.UID != pod.UID {
			return nil
		}
	}
	return err
}

// tearDown disconnects the sandbox and unmounts the volumes. Sandbox and containers stay for
// their logs and states until the pod is deleted.
func (w *worker) tearDown(ctx context.Context) {
	w.v.torn.state = busy
	id, netns, host, uid, pod := w.sandboxID, w.netns, w.v.pod.Spec.HostNetwork, w.uid, w.v.pod
	deleted := w.v.gone || w.v.pod.DeletionTimestamp != nil
	w.deed(ctx, teardownTimeout, func(ctx context.Context) func() {
		var err error
		if id != "" && !host {
			err = w.a.cfg.Network.Detach(ctx, id, netns)
		}
		if err == nil && deleted && id != "" {
			err = w.a.cfg.Runtime.RemoveSandbox(ctx, id)
		}
		if err == nil {
			err = w.a.unprepareClaims(ctx, pod)
		}
		if err == nil {
			err = w.a.releaseDevices(uid)
		}
		if err == nil {
			err = w.a.cfg.Volumes.Unprepare(ctx, uid)
		}
		return func() {
			if err != nil {
				w.v.torn.failed(w.a.cfg.Now(), retryTearFirst, retryTearMost)
				if ctx.Err() == nil {
					w.log.Warn("tear down pod", "err", err)
					w.event(corev1.EventTypeWarning, eventFailedKill, "error killing pod: "+err.Error())
				}
				return
			}
			w.v.torn.succeeded()
		}
	})
}

// newID makes an ID for a sandbox or container, in the form that other runtimes use.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// resizeContainer gives a running container and its pod the limits that the specification has now.
func (w *worker) resizeContainer(ctx context.Context, c *containerView) {
	pod, s := w.v.pod, w.spec(c.name)
	if r := w.fitsResized(pod); r != nil {
		w.v.resize = step{until: w.a.cfg.Now().Add(retryResize)}
		w.v.resizeCondition = r
		return
	}
	w.v.resize.state = busy
	w.v.resizeCondition = &corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}
	sandbox, id, want, last := w.sandboxID, c.current.id, s.Resources.DeepCopy(), true
	for name, other := range w.v.containers {
		spec := w.spec(name)
		if other != c && other.current.running() && spec != nil && other.resources != nil && !equality.Semantic.DeepEqual(*other.resources, spec.Resources) {
			last = false
		}
	}
	w.deed(ctx, resizeTimeout, func(ctx context.Context) func() {
		err := resizeCgroups(ctx, w.a.cfg.Runtime, sandbox, id, unlimited(podResources(pod)), containerResources(pod, s), last)
		return func() {
			if err != nil {
				w.v.resize.failed(w.a.cfg.Now(), retryResize, retryResize)
				w.v.resizeCondition = &corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue,
					Reason: corev1.PodReasonError, Message: err.Error()}
				return
			}
			w.v.resize, w.v.resizeCondition = step{}, nil
			if c.current != nil && c.current.id == id {
				c.resources = want
			}
		}
	})
}

// resizeSandbox gives the pod as a whole the limits that the specification has now.
func (w *worker) resizeSandbox(ctx context.Context) {
	pod := w.v.pod
	if r := w.fitsResized(pod); r != nil {
		w.v.resize = step{until: w.a.cfg.Now().Add(retryResize)}
		w.v.resizeCondition = r
		return
	}
	w.v.resize.state = busy
	w.v.resizeCondition = &corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}
	sandbox, want := w.sandboxID, pod.Spec.Resources.DeepCopy()
	w.deed(ctx, resizeTimeout, func(ctx context.Context) func() {
		err := w.a.cfg.Runtime.UpdateSandbox(ctx, sandbox, unlimited(podResources(pod)))
		return func() {
			if err != nil {
				w.v.resize.failed(w.a.cfg.Now(), retryResize, retryResize)
				w.v.resizeCondition = &corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue,
					Reason: corev1.PodReasonError, Message: err.Error()}
				return
			}
			w.v.resize, w.v.resizeCondition, w.v.resources = step{}, nil, want
		}
	})
}

// resizeCgroups sets the limits of a container and its pod. The kernel lets no cgroup have more processor time than the one
// around it: a container that grows past its pod waits for the pod, and a pod shrinks after its containers, of which others
// may have their turn still (last is false).
func resizeCgroups(ctx context.Context, rt container.Runtime, sandbox, id string, pod, c cgroup.Resources, last bool) error {
	if err := rt.UpdateContainer(ctx, id, c); err != nil {
		if err := rt.UpdateSandbox(ctx, sandbox, pod); err != nil {
			return err
		}
		return rt.UpdateContainer(ctx, id, c)
	}
	if err := rt.UpdateSandbox(ctx, sandbox, pod); err != nil && last {
		return err
	}
	return nil
}

// unlimited takes away the limits that res does not speak of.
func unlimited(res cgroup.Resources) cgroup.Resources {
	if res.CPUQuota == 0 {
		res.CPUQuota = -1
	}
	if res.Memory == 0 {
		res.Memory = -1
	}
	return res
}

// fitsResized says why the pod's new requests have to wait, nil if they need not.
func (w *worker) fitsResized(pod *corev1.Pod) *corev1.PodCondition {
	node := w.a.node.Load()
	pending := func(reason, message string) *corev1.PodCondition {
		return &corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: reason, Message: message}
	}
	if r := fits(pod, node, nil); r != nil {
		return pending(corev1.PodReasonInfeasible, r.message)
	}
	others := w.a.counted()
	others = slices.DeleteFunc(others, func(o *corev1.Pod) bool { return o.UID == w.uid })
	if r := fits(pod, node, others); r != nil {
		return pending(corev1.PodReasonDeferred, r.message)
	}
	return nil
}
