package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

// world is a cluster in memory with a scheduler, whose time passes only when the test says so.
type world struct {
	*reconciletest.Cluster
	t         *testing.T
	scheduler *Scheduler

	mu     sync.Mutex // guards what follows
	events []string
	// bind, if not nil, is asked before each binding.
	bind func(pod string) error
	// made, if not nil, is asked before each creation.
	made func(resource string) error
	// binds counts attempts to bind.
	binds int

	// cursor, if not nil, stands for the next cursor.
	cursor func(store.Cursor) store.Cursor
}

func (w *world) Bind(ctx context.Context, namespace, name string, uid types.UID, node string) error {
	w.mu.Lock()
	w.binds++
	ask := w.bind
	w.mu.Unlock()
	if ask != nil {
		if err := ask(name); err != nil {
			return err
		}
	}
	return w.Cluster.Bind(ctx, namespace, name, uid, node)
}

func (w *world) Create(ctx context.Context, resource string, obj api.Object, o client.WriteOptions) (api.Object, error) {
	w.mu.Lock()
	ask := w.made
	w.mu.Unlock()
	if ask != nil {
		if err := ask(resource); err != nil {
			return nil, err
		}
	}
	return w.Cluster.Create(ctx, resource, obj, o)
}

// onCreate has every creation ask first.
func (w *world) onCreate(f func(resource string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made = f
}

func (w *world) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	c, err := w.Cluster.Cursor(from, resources...)
	if err == nil && w.cursor != nil {
		c = w.cursor(c)
	}
	return c, err
}

// simulate runs f beside a scheduler, in time of its own.
func simulate(t *testing.T, f func(w *world), before ...func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: reconciletest.NewCluster(0), t: t}
		for _, prepare := range before {
			prepare(w)
		}
		w.create(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
		w.scheduler = New(Config{Client: w, Log: slog.New(slog.DiscardHandler), Record: func(ev reconcile.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, fmt.Sprintf("%s %s %s: %s", ev.Type, ev.Reason, ev.Regarding.Name, ev.Message))
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.scheduler.Run(ctx) }()
		synctest.Wait()
		f(w)
		synctest.Wait()
		w.checkTotals()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// checkTotals compares the running totals with those of a scheduler that starts now.
func (w *world) checkTotals() {
	w.t.Helper()
	fresh := New(Config{Client: w.Cluster, Log: w.scheduler.Log})
	fresh.load(w.Snapshot())
	if got, want := totals(w.scheduler.cluster), totals(fresh.cluster); got != want {
		w.t.Errorf("running totals:\n got %s\nwant %s", got, want)
	}
	if got, want := len(w.scheduler.queue.items), len(fresh.queue.items); got != want {
		w.t.Errorf("%d pods in the queue, want %d", got, want)
	}
}

func (w *world) create(resource string, obj api.Object) {
	w.t.Helper()
	if _, err := w.Create(context.Background(), resource, obj, client.WriteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) node(name, cpu string, change ...func(*corev1.Node)) {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	n.Status.Allocatable = quantities(map[corev1.ResourceName]string{"cpu": cpu, "memory": "8Gi", "pods": "110"})
	n.Status.Capacity = n.Status.Allocatable
	for _, f := range change {
		f(n)
	}
	w.create(client.Nodes.Name, n)
	synctest.Wait()
}

func (w *world) pod(name, cpu string, change ...func(*corev1.Pod)) {
	w.t.Helper()
	var zero int64
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &zero,
		Containers: []corev1.Container{{Name: "x", Image: "x", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}}}
	for _, f := range change {
		f(p)
	}
	w.create(client.Pods.Name, p)
	synctest.Wait()
}

func (w *world) get(name string) *corev1.Pod {
	w.t.Helper()
	p, ok := client.Pods.Get(w.Snapshot(), "default", name)
	if !ok {
		w.t.Fatalf("pod %s is gone", name)
	}
	return p
}

func (w *world) delete(resource, name string) {
	w.t.Helper()
	namespace := "default"
	if resource == client.Nodes.Name {
		namespace = ""
	}
	if err := w.Delete(context.Background(), client.Ref{Resource: resource, Namespace: namespace, Name: name}, client.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func mutate[T api.Object](w *world, r client.Resource[T], namespace, name, subresource string, f func(T)) {
	w.t.Helper()
	if _, err := client.Mutate(context.Background(), w.Cluster, r, namespace, name, subresource, func(obj T) bool { f(obj); return true }); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// on checks where a pod is.
func (w *world) on(name, node string) {
	w.t.Helper()
	if got := w.get(name).Spec.NodeName; got != node {
		w.t.Errorf("%s is on %q, want %q", name, got, node)
	}
}

func (w *world) says(name, reason, message string) {
	w.t.Helper()
	c := condition(w.get(name), corev1.PodScheduled)
	if c == nil || c.Status != corev1.ConditionFalse || c.Reason != reason || c.Message != message {
		w.t.Errorf("%s: PodScheduled is %+v, want %s: %s", name, c, reason, message)
	}
}

// recorded takes the events so far.
func (w *world) recorded() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Join(w.events, "\n")
	w.events = nil
	return all
}

func (w *world) wantEvents(lines ...string) {
	w.t.Helper()
	if got, want := w.recorded(), strings.Join(lines, "\n"); got != want {
		w.t.Errorf("events:\n%s\nwant:\n%s", got, want)
	}
}

// onBind sets what is asked before each binding.
func (w *world) onBind(f func(pod string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bind = f
}

func (w *world) attempts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.binds
}

func important(p *corev1.Pod) {
	ten := int32(10)
	p.Spec.Priority = &ten
}

func labelled(k, v string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{k: v} }
}

const (
	noCPU       = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
	noCPUEver   = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
	noNodes     = "no nodes available to schedule pods"
	untolerable = "0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
)

func TestBindAndWait(t *testing.T) {
	simulate(t, func(w *world) {
		w.pod("a", "1")
		w.says("a", "Unschedulable", noNodes)
		w.node("n1", "2")
		w.on("a", "n1") // at once: nothing else was to be done
		w.pod("b", "1")
		w.on("b", "n1")
		w.pod("c", "1")
		w.says("c", "Unschedulable", noCPU)
		w.wantEvents(
			"Warning FailedScheduling a: "+noNodes,
			"Normal Scheduled a: Successfully assigned default/a to n1",
			"Normal Scheduled b: Successfully assigned default/b to n1",
			"Warning FailedScheduling c: "+noCPU)
		w.delete(client.Pods.Name, "a")
		w.on("c", "n1")
	})
}

func TestConditionIsWrittenOnceAndEventsCountAttempts(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "1")
		w.pod("large", "2")
		w.says("large", "Unschedulable", noCPUEver)
		version := w.get("large").ResourceVersion
		for range 3 {
			time.Sleep(mostWait) // it is tried in any case
			synctest.Wait()
		}
		if got := w.get("large").ResourceVersion; got != version {
			t.Error("the status was written again with nothing new to say")
		}
		if got := strings.Count(w.recorded(), "FailedScheduling large"); got != 4 {
			t.Errorf("%d events, want one for each of 4 attempts", got)
		}
		// What does not concern it does not wake it: a pod elsewhere, a heartbeat.
		w.pod("small", "1m")
		mutate(w, client.Nodes, "", "n1", "status", func(n *corev1.Node) { n.Status.NodeInfo.KernelVersion = "6" })
		mutate(w, client.Nodes, "", "n1", "", func(n *corev1.Node) { n.Labels["x"] = "y" })
		w.wantEvents("Normal Scheduled small: Successfully assigned default/small to n1")
		mutate(w, client.Nodes, "", "n1", "status", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("4") })
		w.on("large", "n1")
	})
}

func TestWakesOnTaintRemovalAndUncordon(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
			n.Spec.Unschedulable = true
		})
		w.pod("a", "1")
		mutate(w, client.Nodes, "", "n1", "", func(n *corev1.Node) { n.Spec.Unschedulable = false })
		w.on("a", "")
		mutate(w, client.Nodes, "", "n1", "", func(n *corev1.Node) { n.Spec.Taints = nil })
		w.on("a", "n1")
	})
}

func TestTaintsRefuse(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}} })
		w.pod("a", "1")
		w.says("a", "Unschedulable", untolerable)
		// A toleration is the pod's own change.
		mutate(w, client.Pods, "default", "a", "", func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})
		})
		w.on("a", "n1")
	})
}

func TestClaims(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.node("n2", "4", func(n *corev1.Node) { n.Labels["zone"] = "b" })
		w.pod("a", "1", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		})
		const helpless = " preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
		w.says("a", "Unschedulable", `0/2 nodes are available: persistentvolumeclaim "data" not found.`+helpless)
		w.create(client.PersistentVolumeClaims.Name, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}})
		synctest.Wait()
		w.says("a", "Unschedulable", `0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.`+helpless)
		mutate(w, client.PersistentVolumeClaims, "default", "data", "", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "v1" })
		w.says("a", "Unschedulable", `0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.`+helpless) // not completely
		w.bound("data", "v1")
		w.says("a", "Unschedulable", `0/2 nodes are available: persistentvolume "v1" not found.`+helpless)
		w.create(client.PersistentVolumes.Name, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v1"}, Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/x"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"b"}}}}}}},
		}})
		synctest.Wait()
		w.on("a", "n2")
	})
}

func TestGates(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.pod("a", "1", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "x/y"}} })
		w.on("a", "")
		w.says("a", "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates") // the API server's doing
		w.wantEvents()
		mutate(w, client.Pods, "default", "a", "", func(p *corev1.Pod) { p.Spec.SchedulingGates = nil })
		w.on("a", "n1")
	})
}

func TestOthersPodsAndThoseGoing(t *testing.T) {
	simulate(t, func(w *world) {
		w.pod("elsewhere", "1", func(p *corev1.Pod) { p.Spec.SchedulerName = "other" })
		w.pod("going", "1", func(p *corev1.Pod) { p.Finalizers = []string{"x/y"} })
		w.recorded()
		w.delete(client.Pods.Name, "going")
		w.node("n1", "4")
		w.on("elsewhere", "")
		w.on("going", "")
		w.wantEvents()
	})
}

func TestBindingFails(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods/binding"}
	t.Run("for a while", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.onBind(func(string) error { return errors.New("disk full") })
			w.node("n1", "1")
			w.pod("a", "1")
			const message = `running Bind plugin "DefaultBinder": disk full`
			w.says("a", "SchedulerError", message)
			w.wantEvents("Warning FailedScheduling a: " + message)
			// It is tried again after 1, 2, 4, 8 and then every 10 seconds, and not before.
			start, binds := time.Now(), w.attempts()
			for _, after := range []time.Duration{1, 3, 7, 15, 25, 35} {
				time.Sleep(start.Add(after*time.Second - time.Millisecond).Sub(time.Now()))
				synctest.Wait()
				if w.attempts() != binds {
					t.Errorf("attempt %d came before %d s", w.attempts(), after)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if binds++; w.attempts() != binds {
					t.Errorf("%d attempts after %d s, want %d", w.attempts(), after, binds)
				}
			}
			w.onBind(nil)
			time.Sleep(mostBackoff)
			synctest.Wait()
			w.on("a", "n1")
		})
	})
	t.Run("and the room goes to another", func(t *testing.T) {
		simulate(t, func(w *world) {
			hold, first := make(chan struct{}), true
			w.onBind(func(string) error {
				if !first {
					return nil
				}
				first = false
				<-hold
				return errors.New("no")
			})
			w.node("n1", "1")
			w.pod("a", "1")
			w.pod("b", "1") // refused: a has the room
			w.says("b", "Unschedulable", noCPU)
			close(hold)
			synctest.Wait()
			w.on("a", "")
			w.on("b", "n1")
		})
	})
	t.Run("the pod was bound by someone else", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.onBind(func(name string) error {
				if err := w.Cluster.Bind(context.Background(), "default", name, w.get(name).UID, "n2"); err != nil {
					return err
				}
				return apierrors.NewConflict(pods, name, errors.New("pod is already assigned to node"))
			})
			w.node("n1", "1")
			w.pod("a", "1")
			w.on("a", "n2")
			w.wantEvents()
		})
	})
	t.Run("it was bound and nobody said so", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.onBind(func(name string) error {
				if err := w.Cluster.Bind(context.Background(), "default", name, w.get(name).UID, "n1"); err != nil {
					return err
				}
				return errors.New("timeout")
			})
			w.node("n1", "1")
			w.pod("a", "1")
			w.on("a", "n1")
		})
	})
	t.Run("the pod is gone", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.onBind(func(name string) error {
				w.onBind(nil)
				if err := w.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: name}, client.DeleteOptions{}); err != nil {
					return err
				}
				return apierrors.NewNotFound(pods, name)
			})
			w.node("n1", "1")
			w.pod("a", "1")
			w.pod("b", "1")
			w.on("b", "n1")
		})
	})
	t.Run("and the pod changed meanwhile", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.onBind(func(name string) error {
				w.onBind(nil)
				if _, err := client.Mutate(context.Background(), w.Cluster, client.Pods, "default", name, "", func(p *corev1.Pod) bool {
					p.Labels = map[string]string{"late": "yes"}
					return true
				}); err != nil {
					return err
				}
				return errors.New("no")
			})
			w.node("n1", "4")
			w.pod("a", "1")
			label, uid := make(chan string, 1), w.get("a").UID
			w.scheduler.done <- func() { label <- w.scheduler.queue.items[uid].pod.object.Labels["late"] }
			if <-label != "yes" {
				t.Error("the queue has an old version of the pod")
			}
			time.Sleep(firstBackoff)
			synctest.Wait()
			w.on("a", "n1")
		})
	})
}

// behind is a cursor that has lost its place.
type behind struct{ store.Cursor }

func (behind) Poll() ([]store.Event, error) { return nil, store.ErrCompacted }

func TestReadsEverythingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{Cluster: reconciletest.NewCluster(0), t: t}
		w.create(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
		times := 0
		w.cursor = func(c store.Cursor) store.Cursor {
			if times++; times <= 3 {
				return behind{c}
			}
			return c
		}
		w.node("n1", "2")
		w.pod("a", "1")
		w.scheduler = New(Config{Client: w, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.scheduler.Run(ctx) }()
		synctest.Wait()
		if times != 4 {
			t.Errorf("%d cursors, want 4", times)
		}
		w.on("a", "n1")
		w.pod("b", "1")
		w.on("b", "n1")
		w.checkTotals()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestPreemption(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "2")
		w.pod("low-1", "1", labelled("app", "db"))
		w.pod("low-2", "1", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 30 })
		w.recorded()
		w.create(client.PodDisruptionBudgets.Name, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}})
		w.pod("high", "1", important)
		high := w.get("high")
		if high.Status.NominatedNodeName != "n1" {
			t.Errorf("nominated to %q", high.Status.NominatedNodeName)
		}
		const message = "0/1 nodes are available: 1 Insufficient cpu. preemption: found a potential placement for pod on node n1, preempting 1 victims"
		w.wantEvents("Warning FailedScheduling high: "+message,
			"Normal Preempted low-2: Preempted by pod "+string(high.UID)+" on node n1")
		victim := w.get("low-2")
		c := condition(victim, corev1.DisruptionTarget)
		if victim.DeletionTimestamp == nil || c == nil || c.Reason != "PreemptionByScheduler" ||
			c.Message != "default-scheduler: preempting to accommodate a higher priority pod" {
			t.Errorf("victim: deleted %v, %+v", victim.DeletionTimestamp, c)
		}
		// Until it is gone nobody of lower priority gets the room, and no one else has to go.
		w.pod("late", "1")
		time.Sleep(mostWait)
		synctest.Wait()
		w.says("high", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the nominated node.")
		if w.get("low-1").DeletionTimestamp != nil {
			t.Error("a second victim")
		}
		zero := int64(0)
		if err := w.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: "low-2"}, client.DeleteOptions{GraceSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.on("high", "n1")
		w.on("late", "")
	})
}

func TestPreemptionIsTriedAgainWhenAVictimCannotBeRemoved(t *testing.T) {
	var refuse atomic.Bool
	refuse.Store(true)
	simulate(t, func(w *world) {
		w.node("n1", "1")
		w.pod("low", "1")
		w.pod("high", "1", important)
		w.on("high", "")
		refuse.Store(false)
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("high", "n1")
	}, func(w *world) {
		w.Refuse = func(verb string, ref client.Ref, _ api.Object) error {
			if refuse.Load() && verb == "delete" && ref.Name == "low" {
				return errors.New("not now")
			}
			return nil
		}
	})
}

func TestSeveralVictimsAreRemovedOnce(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.node("n2", "4")
		for i := range 8 {
			w.pod(fmt.Sprint("low-", i), "1")
		}
		w.recorded()
		w.pod("high", "4", important)
		synctest.Wait()
		if w.get("high").Spec.NodeName == "" {
			t.Error("high has no node")
		}
		if all := w.recorded(); strings.Count(all, "Normal Preempted") != 4 {
			t.Errorf("want 4 victims:\n%s", all)
		}
	})
}

func TestNominations(t *testing.T) {
	t.Run("go with the node", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.node("n1", "1")
			w.pod("low", "1", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 30 })
			w.pod("high", "1", important)
			w.delete(client.Nodes.Name, "n1")
			if got := w.get("high").Status.NominatedNodeName; got != "" {
				t.Errorf("still nominated to %q", got)
			}
			w.says("high", "Unschedulable", noNodes)
			w.node("n2", "1")
			w.on("high", "n2")
		})
	})
	t.Run("are taken by a more important pod", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.node("n1", "1")
			w.pod("low", "1", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 30 })
			w.pod("high", "1", important)
			w.pod("highest", "1", func(p *corev1.Pod) { important(p); *p.Spec.Priority = 20 })
			if got := w.get("highest").Status.NominatedNodeName; got != "n1" {
				t.Errorf("the highest is nominated to %q", got)
			}
			if got := w.get("high").Status.NominatedNodeName; got != "" {
				t.Errorf("the other is still nominated to %q", got)
			}
		})
	})
	t.Run("are given back when they are in vain", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.node("n1", "1")
			w.pod("low", "1", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 30 })
			w.pod("high", "1", important)
			mutate(w, client.Nodes, "", "n1", "", func(n *corev1.Node) { n.Spec.Unschedulable = true })
			time.Sleep(mostWait)
			synctest.Wait()
			if got := w.get("high").Status.NominatedNodeName; got != "" {
				t.Errorf("still nominated to %q", got)
			}
		})
	})
	t.Run("end when someone clears them", func(t *testing.T) {
		simulate(t, func(w *world) {
			w.node("n1", "1")
			w.pod("low", "1", func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 30 })
			w.pod("high", "1", important)
			w.recorded()
			mutate(w, client.Pods, "default", "high", "status", func(p *corev1.Pod) { p.Status.NominatedNodeName = "" })
			if w.recorded() == "" {
				t.Error("it was not tried again")
			}
		})
	})
}

// A pod that waits for others of its kind is woken by them, and by nobody else.
func TestPeersWake(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.pod("follower", "1", func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
				TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "leader"}}}}}}
		})
		w.recorded()
		w.pod("stranger", "1", labelled("app", "other"))
		w.wantEvents("Normal Scheduled stranger: Successfully assigned default/stranger to n1")
		w.pod("leader", "1", labelled("app", "leader"))
		w.on("follower", "n1")
	})
}

// Pods of a service are spread although nobody owns them.
func TestServicePodsAreSpread(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "100")
		w.node("n2", "10")
		w.create(client.Services.Name, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}}})
		w.pod("web-1", "1", labelled("app", "web"))
		w.pod("web-2", "1", labelled("app", "web"))
		w.on("web-1", "n1")
		w.on("web-2", "n2")
	})
}
