package model

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/daemonset"
	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/garbage"
	"coracle.dev/coracle/controllers/podgc"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/controllers/statefulset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

const namespace = "default"

// world is a cluster with machines, and a controller manager that can crash.
type world struct {
	*reconciletest.Cluster
	t        *testing.T
	rnd      *rand.Rand // of the history: what happens
	ordered  bool
	machines *machines
	stop     func()
	api      *flaky // of the controller manager that runs
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		Cluster: reconciletest.NewCluster(1 << 20), t: t, rnd: rand.New(rand.NewPCG(seed, 1)), ordered: seed%2 == 0,
		machines: &machines{running: map[types.UID]process{}},
	}
	for _, name := range []string{namespace, "kube-system"} {
		w.create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	w.start(seed)
	return w
}

// start starts a controller manager, and the kubelets with it.
func (w *world) start(seed uint64) {
	w.api = &flaky{Cluster: w.Cluster, rnd: rand.New(rand.NewPCG(seed, 2))}
	e := reconcile.NewEngine(w.api, slog.New(slog.NewTextHandler(io.Discard, nil)), nil).Strict()
	if w.ordered {
		e.Ordered()
	}
	e.Add(deployment.Loop(), replicaset.Loop(), replicaset.ReplicationControllerLoop(), statefulset.Loop(), daemonset.Loop(),
		garbage.Loop(w.Registry), podgc.Loop(0), kubelet(w.api, w.machines))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("engine: %v", err)
		}
	}
	synctest.Wait()
}

// crash has the controller manager die at the given number of writes from now, within d, and starts it anew.
func (w *world) crash(writes int, d time.Duration) {
	w.api.dieAfter(writes)
	w.advance(d)
	w.stop()
	w.start(w.rnd.Uint64())
}

func (w *world) advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) create(resource string, obj api.Object) {
	w.t.Helper()
	if _, err := w.Create(context.Background(), resource, obj, client.WriteOptions{}); err != nil {
		w.t.Fatalf("create %s: %v", resource, err)
	}
}

func (w *world) delete(resource, ns, name string, opts client.DeleteOptions) {
	w.t.Helper()
	err := w.Delete(context.Background(), client.Ref{Resource: resource, Namespace: ns, Name: name}, opts)
	if err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatalf("delete %s %s: %v", resource, name, err)
	}
}

// edit changes an object that may be gone.
func edit[T api.Object](w *world, r client.Resource[T], ns, name, subresource string, change func(T)) {
	w.t.Helper()
	_, err := client.Mutate(context.Background(), w.Cluster, r, ns, name, subresource, func(obj T) bool {
		change(obj)
		return true
	})
	if err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatalf("change %s %s: %v", r.Name, name, err)
	}
}

func all[T api.Object](s store.Snapshot, r client.Resource[T]) []T {
	var found []T
	for obj := range r.List(s, "") {
		found = append(found, obj)
	}
	return found
}

// flaky is the API as a controller manager has it: writes are refused, their answers get lost, and after a crash
// none gets through.
type flaky struct {
	*reconciletest.Cluster
	mu    sync.Mutex // guards what follows
	rnd   *rand.Rand
	oneIn int // a write fails with one chance in so many; 0 for none
	left  int // writes until the crash, if dying
	dying bool
}

func (f *flaky) fail(oneIn int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.oneIn = oneIn
}

func (f *flaky) dieAfter(writes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.dying = writes, true
}

// verdict is what becomes of a write: before it is an error that keeps it from happening, after one in place of the answer.
func (f *flaky) verdict(resource, name string) (before, after error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dying {
		if f.left--; f.left < 0 {
			return apierrors.NewInternalError(context.Canceled), nil
		}
	}
	if f.oneIn == 0 || resource == client.Events.Name || f.rnd.IntN(f.oneIn) != 0 {
		return nil, nil
	}
	switch f.rnd.IntN(3) {
	case 0:
		return apierrors.NewConflict(f.Registry.ByName(resource).GroupResource(), name, fmt.Errorf("injected")), nil
	case 1:
		return apierrors.NewInternalError(fmt.Errorf("injected")), nil
	}
	return nil, apierrors.NewTimeoutError("injected", 1)
}

func (f *flaky) Create(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	before, after := f.verdict(resource, obj.GetName())
	if apierrors.IsConflict(before) {
		before = apierrors.NewInternalError(fmt.Errorf("injected"))
	}
	if before != nil {
		return nil, before
	}
	out, err := f.Cluster.Create(ctx, resource, obj, opts)
	if err == nil && after != nil {
		return nil, after
	}
	return out, err
}

func (f *flaky) Update(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	before, after := f.verdict(resource, obj.GetName())
	if before != nil {
		return nil, before
	}
	out, err := f.Cluster.Update(ctx, resource, obj, opts)
	if err == nil && after != nil {
		return nil, after
	}
	return out, err
}

func (f *flaky) Delete(ctx context.Context, ref client.Ref, opts client.DeleteOptions) error {
	before, after := f.verdict(ref.Resource, ref.Name)
	if before != nil {
		return before
	}
	if err := f.Cluster.Delete(ctx, ref, opts); err != nil {
		return err
	}
	return after
}

// machines are what runs on the nodes, whatever the API says. It is safe for concurrent use.
type machines struct {
	mu      sync.Mutex // guards what follows
	running map[types.UID]process
	started int
	twice   error // the first identity that ran twice
}

// process is the containers of a pod.
type process struct{ name, node, identity string }

func (m *machines) start(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.running[pod.UID]; ok {
		return
	}
	p := process{name: pod.Name, node: pod.Spec.NodeName}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil && ref.Kind == "StatefulSet" {
		p.identity = pod.Name
		for _, other := range m.running {
			if other.identity == p.identity && m.twice == nil {
				m.twice = fmt.Errorf("%s starts on %s and still runs on %s", pod.Name, p.node, other.node)
			}
		}
	}
	m.running[pod.UID] = p
	m.started++
}

// kill ends processes.
func (m *machines) kill(which func(types.UID, process) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, p := range m.running {
		if which(uid, p) {
			delete(m.running, uid)
		}
	}
}

const (
	down       = "test/down"   // annotation of nodes that are silent
	broken     = "test/broken" // annotation of pods that never become ready
	startTakes = 4
	stopTakes  = 3
	recovers   = 5 * time.Second // a pod that was ready, is not, and has nothing wrong with it
)

func takes(salt string, pod *corev1.Pod, most uint32) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(salt + string(pod.UID)))
	return time.Duration(h.Sum32()%(most+1)) * time.Second
}

// deed is what a kubelet or the scheduler does.
type deed struct {
	pod  *corev1.Pod
	bind string
	stop bool
}

// kubelet plays the scheduler and the nodes.
func kubelet(c client.Writer, m *machines) reconcile.Loop {
	return reconcile.Loop{
		Name: "test-kubelet",
		Inputs: []reconcile.Input{
			{Resource: client.Pods.Name},
			{Resource: client.Nodes.Name, Keys: podsOf},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Delete}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Workers: 4,
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return planPod(s, pod, now), nil
		},
		Apply: func(ctx context.Context, _ reconcile.Key, effect any) error {
			d := effect.(deed)
			switch {
			case d.bind != "":
				return c.Bind(ctx, d.pod.Namespace, d.pod.Name, d.pod.UID, d.bind)
			case d.stop:
				m.kill(func(uid types.UID, _ process) bool { return uid == d.pod.UID })
			default:
				m.start(d.pod)
			}
			return nil
		},
	}
}

// podsOf gives the pods for which a node matters: its own, and those that wait for one.
func podsOf(s store.Snapshot, ev store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for _, node := range []string{ev.Entry.Name, ""} {
		for pod := range client.Pods.Index(s, "node", node) {
			keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: pod.Name})
		}
	}
	return keys
}

func planPod(s store.Snapshot, pod *corev1.Pod, now time.Time) reconcile.Plan {
	if pod.Spec.NodeName == "" {
		if node := pick(s, pod); node != "" && pod.DeletionTimestamp == nil {
			return reconcile.Plan{Effect: deed{pod: pod, bind: node}}
		}
		return reconcile.Plan{}
	}
	node, ok := client.Nodes.Get(s, "", pod.Spec.NodeName)
	if !ok || node.Annotations[down] != "" {
		return reconcile.Plan{}
	}
	ready := condition(pod)
	switch {
	case pod.DeletionTimestamp != nil:
		asked := pod.DeletionTimestamp.Add(-time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
		if left := asked.Add(takes("stop", pod, stopTakes)).Sub(now); left > 0 {
			return reconcile.Plan{After: left}
		}
		zero := int64(0)
		return reconcile.Plan{Effect: deed{pod: pod, stop: true}, Writes: []reconcile.Write{{Verb: reconcile.Delete,
			Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, GraceSeconds: &zero}}}
	case pod.Status.Phase == corev1.PodFailed:
		return reconcile.Plan{Effect: deed{pod: pod, stop: true}}
	case ready == nil:
		if left := pod.CreationTimestamp.Add(takes("start", pod, startTakes)).Sub(now); left > 0 {
			return reconcile.Plan{After: left}
		}
	case ready.Status == corev1.ConditionTrue || pod.Annotations[broken] != "":
		return reconcile.Plan{}
	default:
		if left := ready.LastTransitionTime.Add(recovers).Sub(now); left > 0 {
			return reconcile.Plan{After: left}
		}
	}
	pod = pod.DeepCopy()
	if pod.Status.StartTime == nil {
		at := metav1.NewTime(now).Rfc3339Copy()
		pod.Status.StartTime = &at
	}
	if pod.Annotations[broken] != "" {
		reconciletest.NotReady(pod, now)
	} else {
		reconciletest.Ready(pod, now)
	}
	return reconcile.Plan{Effect: deed{pod: pod}, Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: pod}}}
}

func condition(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodReady {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// pick is the node for a pod: the one that its affinity names, or one that answers and takes pods.
func pick(s store.Snapshot, pod *corev1.Pod) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		name := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
		if _, ok := client.Nodes.Get(s, "", name); ok {
			return name
		}
		return ""
	}
	var fit []string
	for node := range client.Nodes.List(s, "") {
		if node.Annotations[down] == "" && len(node.Spec.Taints) == 0 && node.DeletionTimestamp == nil {
			fit = append(fit, node.Name)
		}
	}
	if len(fit) == 0 {
		return ""
	}
	return fit[int(takes("node", pod, 1000)/time.Second)%len(fit)]
}
