package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Agent runs the pods of one node.
type Agent struct {
	cfg     Config
	hostIPs []string
	hostDNS container.DNS
	pulls   *puller
	prober  *prober
	slots   chan struct{} // one for each sandbox or container being made

	classes classes
	// collected is when unused images were last removed (of the heartbeat alone).
	collected time.Time

	node    atomic.Pointer[corev1.Node] // the Node object as last seen
	machine machine
	// shutting: the node shuts down gracefully and takes no pods.
	shutting atomic.Bool

	mu      sync.Mutex // guards what follows
	workers map[types.UID]*worker
	bySand  map[string]*worker // by sandbox ID
	wanting map[types.UID]bool // pods with a container that lacks an object

	ended sync.WaitGroup // workers and helpers
	renew chan struct{}  // room for one hint that the node's status changed
}

// New prepares an agent. Nothing happens before Run.
func New(cfg Config) *Agent {
	cfg.defaults()
	a := &Agent{
		cfg: cfg, slots: make(chan struct{}, cfg.Parallel),
		pulls:   newPuller(cfg.Runtime.Images(), cfg.Pulls, cfg.Now),
		workers: map[types.UID]*worker{}, bySand: map[string]*worker{}, wanting: map[types.UID]bool{},
		renew: make(chan struct{}, 1),
	}
	a.hostIPs = addressStrings(cfg.Addresses)
	version := strings.TrimPrefix(cfg.Version, "v")
	if parts := strings.SplitN(version, ".", 3); len(parts) > 2 {
		version = parts[0] + "." + parts[1]
	}
	a.prober = &prober{runtime: cfg.Runtime, userAgent: "kube-probe/" + version, dial: new(net.Dialer).DialContext}
	return a
}

// Run registers the node and runs its pods until ctx is done. It then returns when nothing of it is
// under way; containers run on, and the next Run takes them over. An error says
// that the agent cannot go on.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(client.WithUser(ctx, a.user()))
	defer a.ended.Wait()
	defer cancel()
	dns, err := hostResolver(a.cfg.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the machine's resolver configuration: %w", err)
	}
	a.hostDNS = dns
	if a.machine, err = inspect(a.cfg.DataDir); err != nil {
		return fmt.Errorf("inspect the machine: %w", err)
	}
	stop := a.cfg.Runtime.Subscribe(a.runtimeEvent)
	defer stop()
	if err := a.register(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("register node %s: %w", a.cfg.NodeName, err)
	}
	cursor, err := a.begin(ctx)
	if err != nil {
		return err
	}
	a.ended.Go(func() { a.heartbeat(ctx) })
	return a.follow(ctx, cursor)
}

// user is who the agent acts as.
func (a *Agent) user() client.User {
	return client.User{Name: "system:node:" + a.cfg.NodeName, Groups: []string{client.GroupNodes, client.GroupAuthenticated}}
}

// followed are the resources whose changes the agent hears of.
var followed = []string{client.Pods.Name, client.Nodes.Name, client.ConfigMaps.Name, client.Secrets.Name}

// begin takes over the pods that are there and returns the history behind that.
func (a *Agent) begin(ctx context.Context) (store.Cursor, error) {
	snap := a.cfg.Client.Snapshot()
	cursor, err := a.cfg.Client.Cursor(snap.Revision(), followed...)
	if err != nil {
		return nil, fmt.Errorf("follow pods: %w", err)
	}
	have := inventory(a.cfg.Runtime, a.cfg.NodeName)
	for pod := range client.Pods.Index(snap, "node", a.cfg.NodeName) {
		a.add(ctx, pod, have[pod.UID])
		delete(have, pod.UID)
	}
	orphans := make([]*found, 0, len(have))
	for _, f := range have {
		orphans = append(orphans, f)
	}
	a.ended.Go(func() { a.clean(ctx, orphans, a.has) })
	return cursor, nil
}

// has tells whether the agent has a pod; volumes of others are removed.
func (a *Agent) has(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid] != nil
}

// follow passes changes on until ctx is done.
func (a *Agent) follow(ctx context.Context, cursor store.Cursor) error {
	for {
		events, err := cursor.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrCompacted):
			if cursor, err = a.catchUp(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("follow pods: %w", err)
		}
		for _, ev := range events {
			a.event(ctx, ev)
		}
	}
}

// catchUp compares all pods after history was lost.
func (a *Agent) catchUp(ctx context.Context) (store.Cursor, error) {
	snap := a.cfg.Client.Snapshot()
	cursor, err := a.cfg.Client.Cursor(snap.Revision(), followed...)
	if err != nil {
		return nil, fmt.Errorf("follow pods: %w", err)
	}
	there := map[types.UID]bool{}
	for pod := range client.Pods.Index(snap, "node", a.cfg.NodeName) {
		there[pod.UID] = true
		a.changed(ctx, pod)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, w := range a.workers {
		if !there[uid] {
			w.deleted.Store(true)
			w.tell(func(in *inbox) { in.gone = true })
		}
	}
	return cursor, nil
}

func (a *Agent) event(ctx context.Context, ev store.Event) {
	switch obj := ev.Entry.Object.(type) {
	case *corev1.Pod:
		if obj.Spec.NodeName != a.cfg.NodeName {
			return
		}
		if ev.Deleted {
			a.removed(obj)
			return
		}
		if ev.Prev != nil {
			if old := ev.Prev.Object.(*corev1.Pod); old.UID != obj.UID {
				a.removed(old)
			}
		}
		a.changed(ctx, obj)
	case *corev1.Node:
		if obj.Name == a.cfg.NodeName && !ev.Deleted {
			a.nodeChanged(obj)
		}
	default:
		a.objectChanged()
	}
}

// changed passes a pod's new version to its worker, and makes one for a new pod.
func (a *Agent) changed(ctx context.Context, pod *corev1.Pod) {
	a.mu.Lock()
	w := a.workers[pod.UID]
	a.mu.Unlock()
	if w == nil {
		a.add(ctx, pod, nil)
		return
	}
	w.tell(func(in *inbox) { in.pod = pod })
}

func (a *Agent) removed(pod *corev1.Pod) {
	a.mu.Lock()
	w := a.workers[pod.UID]
	a.mu.Unlock()
	if w != nil {
		w.deleted.Store(true)
		w.tell(func(in *inbox) { in.pod, in.gone = pod, true })
	}
}

// objectChanged wakes the pods that miss a config map or a secret.
func (a *Agent) objectChanged() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := range a.wanting {
		if w := a.workers[uid]; w != nil {
			w.tell(func(in *inbox) { in.config = true })
		}
	}
}

// want notes whether a pod misses an object.
func (a *Agent) want(uid types.UID, yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if yes {
		a.wanting[uid] = true
	} else {
		delete(a.wanting, uid)
	}
}

// add admits a pod and makes its worker. f is what the runtime has of it already.
func (a *Agent) add(ctx context.Context, pod *corev1.Pod, f *found) {
	w := newWorker(a, pod)
	fresh := f == nil && pod.Status.StartTime == nil && !ended(pod) && pod.DeletionTimestamp == nil
	if fresh {
		r := a.refuseAtShutdown()
		if r == nil {
			r = admit(pod, a.node.Load(), a.counted(), a.cfg.AllowedUnsafeSysctls)
		}
		if r != nil {
			w.reject(r)
		}
	}
	if !w.v.rejected {
		w.adopt(ctx, f)
	}
	a.mu.Lock()
	a.workers[pod.UID] = w
	a.mu.Unlock()
	a.ended.Go(func() {
		w.run(ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		if ctx.Err() == nil {
			delete(a.workers, w.uid)
			delete(a.wanting, w.uid)
		}
	})
}

// reject gives a pod up that the node does not take.
func (w *worker) reject(r *rejection) {
	w.v.rejected = true
	w.v.stop = &stop{at: w.v.startTime, reason: r.reason, message: "Pod was rejected: " + r.message}
	w.v.torn.succeeded()
	w.event(corev1.EventTypeWarning, r.reason, r.message)
}

// counted gives the pods that take from the node's resources.
func (a *Agent) counted() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		if s := w.seen.Load(); s.counts && !w.deleted.Load() {
			out = append(out, s.pod)
		}
	}
	return out
}

// runtimeEvent passes an event of the runtime to the worker that it concerns. It does not block.
func (a *Agent) runtimeEvent(ev container.Event) {
	switch ev.Type {
	case container.EventContainerExited, container.EventSandboxLost:
	case container.EventRuntime:
		a.refreshNode()
		return
	default:
		return
	}
	a.mu.Lock()
	w := a.bySand[ev.SandboxID]
	a.mu.Unlock()
	if w != nil {
		w.tell(func(in *inbox) { in.poked = true })
	}
}

func (a *Agent) route(sandboxID string, w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bySand[sandboxID] = w
}

func (a *Agent) unroute(sandboxID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.bySand, sandboxID)
}

// slot waits for leave to make a sandbox or a container; release gives it back.
func (a *Agent) slot(ctx context.Context) error {
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Agent) release() { <-a.slots }

// resolver gives a pod's resolv.conf.
func (a *Agent) resolver(pod *corev1.Pod) (container.DNS, string) {
	return podResolver(pod, a.hostDNS, addressStrings(a.cfg.ClusterDNS), a.cfg.ClusterDomain)
}

// mapPorts forwards the host ports of a pod.
func (a *Agent) mapPorts(ctx context.Context, pod *corev1.Pod, sandboxID string, addrs []netip.Addr) error {
	if a.cfg.MapPorts == nil {
		return nil
	}
	ports := portMappings(pod)
	if len(ports) == 0 {
		return nil
	}
	return a.cfg.MapPorts(ctx, sandboxID, addrs, ports)
}

// VolumeImage makes the image of an image volume present and returns its ID; it is volume.Config.Image.
func (a *Agent) VolumeImage(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume) (string, error) {
	ref := vol.Image.Reference
	policy := vol.Image.PullPolicy
	if policy == "" {
		policy = corev1.PullIfNotPresent
	}
	auths, _ := pullAuths(a.cfg.Client.Snapshot(), pod, ref)
	image, fail := a.pulls.ensure(ctx, pod.UID, ref, policy, auths, func(kind, reason, message string) {
		a.cfg.Events(reconcile.Event{Regarding: refOf(pod, ""), Type: kind, Reason: reason, Message: message})
	})
	if fail != nil {
		return "", errors.New(fail.message)
	}
	return image.ID, nil
}

// runtimeHandler refuses a pod that asks for another runtime, or for what this one has not.
func (a *Agent) runtimeHandler(pod *corev1.Pod) error {
	if pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
		return errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
	}
	if pod.Spec.RuntimeClassName == nil {
		return nil
	}
	class, ok := client.RuntimeClasses.Get(a.cfg.Client.Snapshot(), "", *pod.Spec.RuntimeClassName)
	if !ok {
		return fmt.Errorf("failed to get RuntimeHandler for pod: RuntimeClass %q not found", *pod.Spec.RuntimeClassName)
	}
	if class.Handler != "" && !slices.Contains(a.cfg.RuntimeHandlers, class.Handler) {
		return fmt.Errorf("failed to get sandbox runtime: no runtime for %q is configured", class.Handler)
	}
	return nil
}

func (a *Agent) logDir(namespace, name string, uid types.UID) string {
	return record.LogDir(a.cfg.LogDir, namespace, name, uid)
}

func removeAll(path string) error { return os.RemoveAll(path) }

// Pods gives the pods of the node with their status as the agent knows it. The objects are shared.
func (a *Agent) Pods() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w.seen.Load().pod)
	}
	slices.SortFunc(out, func(x, y *corev1.Pod) int {
		if c := strings.Compare(x.Namespace, y.Namespace); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
	return out
}

// Pod finds a pod by name, nil if there is none. Of two that bear a name one after the other, the
// one that is not being deleted is meant.
func (a *Agent) Pod(namespace, name string) *corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out *corev1.Pod
	for _, w := range a.workers {
		pod := w.seen.Load().pod
		if pod.Namespace == namespace && pod.Name == name && (out == nil || out.DeletionTimestamp != nil) {
			out = pod
		}
	}
	return out
}

// Sandbox gives the runtime's sandbox of a pod, "" if there is none.
func (a *Agent) Sandbox(uid types.UID) string {
	if s := a.snapshotOf(uid); s != nil {
		return s.sandboxID
	}
	return ""
}

// Container gives the runtime's ID of the present instance of a container, or of the one before; "" if there
// is none.
func (a *Agent) Container(uid types.UID, name string, previous bool) string {
	s := a.snapshotOf(uid)
	switch {
	case s == nil:
		return ""
	case previous:
		return s.previous[name]
	case s.current[name] == "":
		return s.previous[name] // while the next one is not made yet
	}
	return s.current[name]
}

func (a *Agent) snapshotOf(uid types.UID) *snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[uid]; w != nil {
		return w.seen.Load()
	}
	return nil
}

// WakeVolumes tells that a volume of a pod that could not be made ready may work now; it is
// volume.Config.Wake.
func (a *Agent) WakeVolumes(uid types.UID) {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w != nil {
		w.tell(func(in *inbox) { in.volumes = true })
	}
}

// RefreshNode asks for the status of the node to be looked at now. It does not block.
func (a *Agent) RefreshNode() { a.refreshNode() }

// WakeDevices tells that devices of a pod are well or unwell by now, or that some may be free which it waits for. It does not block.
func (a *Agent) WakeDevices(uid types.UID) { a.WakeVolumes(uid) }

// Halt ends all containers of the node's pods, removes their sandboxes and unmounts their volumes, for a
// shutdown of the machine's cluster; it is called after Run has returned. The pods stay in the API, what
// their volumes have on disk stays, and the next Run starts them anew. grace is what each pod has.
func (a *Agent) Halt(ctx context.Context, grace time.Duration) error {
	var wait sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	graces := a.graces()
	for uid, f := range inventory(a.cfg.Runtime, a.cfg.NodeName) {
		own, known := graces[uid]
		if !known || own > grace {
			own = grace
		}
		for _, s := range f.sandboxes {
			wait.Go(func() {
				a.stopAll(ctx, s.Config.ID, own)
				err := error(nil)
				if s.NetNS != "" {
					err = a.cfg.Network.Detach(ctx, s.Config.ID, s.NetNS)
				}
				err = errors.Join(err, a.cfg.Runtime.RemoveSandbox(ctx, s.Config.ID), mount.UnmountBelow(a.cfg.Volumes.PodDir(f.id.UID)))
				if err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
	}
	wait.Wait()
	return errors.Join(errs...)
}

// graces are how long the node's pods may take to end.
func (a *Agent) graces() map[types.UID]time.Duration {
	all := map[types.UID]time.Duration{}
	for pod := range client.Pods.Index(a.cfg.Client.Snapshot(), "node", a.cfg.NodeName) {
		if seconds := pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
			all[pod.UID] = time.Duration(*seconds) * time.Second
		}
	}
	return all
}
