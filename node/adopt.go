package node

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
)

// found is what the runtime has of one pod.
type found struct {
	id         record.ID
	sandboxes  []container.SandboxStatus // newest first
	containers map[string][]container.ContainerStatus
}

// inventory lists what the runtime has of this node's pods.
func inventory(rt container.Runtime, owner string) map[types.UID]*found {
	out := map[types.UID]*found{}
	of := map[string]*found{} // by sandbox
	for _, s := range rt.Sandboxes() {
		id, ok := record.Of(s.Config.Labels)
		if !ok || s.Config.Labels[record.Owner] != owner {
			continue
		}
		f := out[id.UID]
		if f == nil {
			f = &found{id: id, containers: map[string][]container.ContainerStatus{}}
			out[id.UID] = f
		}
		f.sandboxes = append(f.sandboxes, s)
		of[s.Config.ID] = f
	}
	for _, c := range rt.Containers("") {
		if f := of[c.Config.SandboxID]; f != nil {
			id, _ := record.Of(c.Config.Labels)
			f.containers[id.Container] = append(f.containers[id.Container], c)
		}
	}
	for _, f := range out {
		slices.SortFunc(f.sandboxes, func(a, b container.SandboxStatus) int {
			x, _ := record.Of(a.Config.Labels)
			y, _ := record.Of(b.Config.Labels)
			return cmp.Compare(y.Attempt, x.Attempt)
		})
		for _, list := range f.containers {
			slices.SortFunc(list, func(a, b container.ContainerStatus) int {
				x, _ := record.Of(a.Config.Labels)
				y, _ := record.Of(b.Config.Labels)
				return cmp.Compare(y.Attempt, x.Attempt)
			})
		}
	}
	return out
}

// adopt takes over what is there of the worker's pod: f from the runtime (nil for nothing), the rest from the
// pod's status. Nothing is restarted that runs.
func (w *worker) adopt(ctx context.Context, f *found) {
	now := w.a.cfg.Now()
	if f != nil && len(f.sandboxes) > 0 {
		s := f.sandboxes[0]
		ips := w.a.hostIPs
		if !w.v.pod.Spec.HostNetwork && s.State == container.SandboxReady && !ended(w.v.pod) {
			addrs, err := w.a.cfg.Network.Attach(ctx, s.Config.ID, s.NetNS, s.Config.Hostname)
			if err == nil {
				err = w.a.mapPorts(ctx, w.v.pod, s.Config.ID, addrs)
			}
			if err != nil {
				w.log.Warn("connect adopted sandbox", "err", err)
				s.State = container.SandboxNotReady
			}
			ips = addressStrings(addrs)
		}
		w.adoptSandbox(s, ips)
		if w.v.resources = w.v.pod.Spec.Resources.DeepCopy(); w.v.resources != nil && w.v.pod.Status.Resources != nil {
			w.v.resources = w.v.pod.Status.Resources.DeepCopy()
		}
		id, _ := record.Of(s.Config.Labels)
		w.v.sandboxAttempt = id.Attempt + 1
	}
	for _, c := range w.v.ordered() {
		var list []container.ContainerStatus
		if f != nil {
			list = f.containers[c.name]
		}
		w.adoptContainer(c, list, now)
	}
	if ended(w.v.pod) {
		w.v.stop = &stop{at: now, grace: podGrace(w.v.pod), reason: w.v.pod.Status.Reason, message: w.v.pod.Status.Message}
		return
	}
	if f == nil && !finished(&w.v) {
		startOver(&w.v)
	}
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// adoptContainer takes over the instances of one container, newest first.
func (w *worker) adoptContainer(c *containerView, list []container.ContainerStatus, now time.Time) {
	s := w.spec(c.name)
	st := statusOf(w.v.pod, c.name)
	if len(list) > 0 {
		c.current = adoptInstance(&list[0], s, st)
		c.attempt = c.current.attempt + 1
		if len(list) > 1 {
			c.previous = adoptInstance(&list[1], s, nil)
		}
		if c.current.state == container.StateCreated {
			c.attempt = c.current.attempt
		}
	}
	if st == nil {
		if c.current != nil {
			w.startProbes(c, s, unknown, unknown)
		}
		return
	}
	if c.previous == nil {
		c.previous = instanceOf(st.LastTerminationState.Terminated, st, int(st.RestartCount)-1)
	}
	if c.current == nil {
		w.recall(c, st, now)
		return
	}
	same := st.ContainerID == IDScheme+c.current.id
	startup, ready := unknown, unknown
	if same && st.Started != nil && *st.Started {
		startup = good
	}
	if same && st.Ready {
		ready = good
	}
	if same && st.Resources != nil {
		c.resources = st.Resources.DeepCopy()
	} else {
		c.resources = s.Resources.DeepCopy()
	}
	w.startProbes(c, s, startup, ready)
}

// recall makes up for an instance that the runtime has lost from what the status said of it.
func (w *worker) recall(c *containerView, st *corev1.ContainerStatus, now time.Time) {
	switch {
	case st.State.Terminated != nil:
		c.current = instanceOf(st.State.Terminated, st, int(st.RestartCount))
	case st.State.Running != nil:
		c.current = &instance{
			id: strings.TrimPrefix(st.ContainerID, IDScheme), attempt: int(st.RestartCount), state: container.StateExited,
			started: st.State.Running.StartedAt.Time, finished: now, exitCode: exitCodeUnknown,
			reason: reasonStatusUnknown, message: messageNotLocated, image: st.Image, imageID: st.ImageID,
		}
	}
	switch {
	case c.current != nil:
		c.attempt = c.current.attempt + 1
	case c.previous != nil:
		c.attempt = int(st.RestartCount) + 1
	}
}

func adoptInstance(st *container.ContainerStatus, s *corev1.Container, known *corev1.ContainerStatus) *instance {
	id, _ := record.Of(st.Config.Labels)
	inst := &instance{id: st.Config.ID, attempt: id.Attempt, complete: true, specImage: st.Config.Labels[record.Image]}
	fill(inst, st, s)
	inst.image, inst.imageID = inst.specImage, st.ImageID
	if st.ImageRef != "" {
		inst.imageID = st.ImageRef
	}
	if known != nil && known.ContainerID == IDScheme+inst.id {
		inst.image, inst.imageID = known.Image, known.ImageID
	}
	return inst
}

// instanceOf makes an instance of what a status says of one that has ended, nil for nil.
func instanceOf(t *corev1.ContainerStateTerminated, st *corev1.ContainerStatus, attempt int) *instance {
	if t == nil {
		return nil
	}
	return &instance{
		id: strings.TrimPrefix(t.ContainerID, IDScheme), attempt: max(0, attempt), state: container.StateExited,
		started: t.StartedAt.Time, finished: t.FinishedAt.Time, exitCode: t.ExitCode, signal: t.Signal,
		reason: t.Reason, message: t.Message, image: st.Image, imageID: st.ImageID,
	}
}

func statusOf(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// clean ends and removes what is left of pods that are not in the API any more.
func (a *Agent) clean(ctx context.Context, orphans []*found, keep func(types.UID) bool) {
	var wait sync.WaitGroup
	for _, f := range orphans {
		wait.Go(func() {
			if err := a.removeFound(ctx, f); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("remove orphaned pod", "pod", f.id.Namespace+"/"+f.id.Pod, "uid", f.id.UID, "err", err)
			}
		})
	}
	wait.Wait()
	if a.cfg.Claims != nil {
		if err := a.cfg.Claims.Orphans(ctx, keep); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("unprepare claims of orphaned pods", "err", err)
		}
	}
	if a.cfg.Devices != nil {
		if err := a.cfg.Devices.Orphans(keep); err != nil {
			a.cfg.Log.Warn("release devices of orphaned pods", "err", err)
		}
	}
	if gone, err := a.cfg.Volumes.Orphans(ctx, keep); err != nil {
		a.cfg.Log.Warn("remove volumes of orphaned pods", "err", err)
	} else if len(gone) > 0 {
		a.cfg.Log.Info("removed volumes of orphaned pods", "count", len(gone))
	}
}

// removeFound ends one pod by what the runtime knows of it.
func (a *Agent) removeFound(ctx context.Context, f *found) error {
	for _, s := range f.sandboxes {
		seconds, _ := strconv.Atoi(s.Config.Labels[record.Grace])
		a.stopAll(ctx, s.Config.ID, max(time.Duration(seconds)*time.Second, time.Second))
		if s.NetNS != "" {
			if err := a.cfg.Network.Detach(ctx, s.Config.ID, s.NetNS); err != nil {
				return err
			}
		}
		if err := a.cfg.Runtime.RemoveSandbox(ctx, s.Config.ID); err != nil {
			return err
		}
	}
	if err := a.cfg.Volumes.Unprepare(ctx, f.id.UID); err != nil {
		return err
	}
	return removeAll(a.logDir(f.id.Namespace, f.id.Pod, f.id.UID))
}

// stopAll stops the containers of a sandbox, sidecars after the others.
func (a *Agent) stopAll(ctx context.Context, sandboxID string, grace time.Duration) {
	until := time.Now().Add(grace)
	list := a.cfg.Runtime.Containers(sandboxID)
	for _, sidecars := range []bool{false, true} {
		var wait sync.WaitGroup
		for _, c := range list {
			id, _ := record.Of(c.Config.Labels)
			if c.State != container.StateRunning || (id.Role == record.RoleSidecar) != sidecars {
				continue
			}
			wait.Go(func() {
				if err := a.cfg.Runtime.Stop(ctx, c.Config.ID, "", max(time.Until(until), minKillGrace)); err != nil && ctx.Err() == nil {
					a.cfg.Log.Warn("stop container", "id", c.Config.ID, "err", err)
				}
			})
		}
		wait.Wait()
	}
}
