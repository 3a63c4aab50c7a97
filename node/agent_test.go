package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// rig is an agent on a cluster in memory, with fakes below it, in a synctest bubble.
type rig struct {
	t       *testing.T
	c       *reconciletest.Cluster
	rt      *fakeRuntime
	vol     *fakeVolumes
	net     *fakeNetwork
	a       *Agent
	cfg     Config
	stop    func()
	mu      sync.Mutex
	events  []string
	updates int
}

func run(t *testing.T, f func(r *rig)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, c: reconciletest.NewCluster(0), rt: newFakeRuntime(), vol: &fakeVolumes{root: dir + "/pods"}, net: &fakeNetwork{}}
		for _, name := range []string{"default", "kube-node-lease"} {
			if _, err := r.c.Create(t.Context(), "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		r.cfg = Config{
			NodeName: "n1", Client: r.c, Runtime: r.rt, Volumes: r.vol, Network: r.net, DataDir: dir,
			ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Addresses:  []netip.Addr{netip.MustParseAddr("192.168.1.1")}, Capacity: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
			Events: func(ev reconcile.Event) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.events = append(r.events, ev.Reason+": "+ev.Message)
			},
			Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
		}
		r.start()
		defer func() { r.stop() }()
		f(r)
	})
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (r *rig) start() {
	r.a = New(r.cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.a.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("agent: %v", err)
		}
	}
	r.settle()
}

// settle waits until nothing happens without the clock.
func (r *rig) settle() { synctest.Wait() }

// advance lets time pass.
func (r *rig) advance(d time.Duration) { time.Sleep(d); synctest.Wait() }

// pod makes a pod bound to the node; each container is "name: command line".
func podOf(name string, containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	p.Spec.NodeName = "n1"
	p.Spec.EnableServiceLinks = ptr(false)
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(30))
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, containerOf(c))
	}
	return p
}

func containerOf(s string) corev1.Container {
	name, cmd, _ := strings.Cut(s, ": ")
	return corev1.Container{Name: name, Image: "img", Command: strings.Fields(cmd), TerminationMessagePath: "/dev/termination-log",
		TerminationMessagePolicy: corev1.TerminationMessageReadFile, ImagePullPolicy: corev1.PullIfNotPresent}
}

func (r *rig) create(p *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	out, err := r.c.Create(context.Background(), "pods", p, client.WriteOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
	return out.(*corev1.Pod)
}

func (r *rig) get(name string) *corev1.Pod {
	r.t.Helper()
	p, ok := client.Pods.Get(r.c.Snapshot(), "default", name)
	if !ok {
		r.t.Fatalf("pod %s is gone", name)
	}
	return p
}

func (r *rig) delete(name string, grace *int64) {
	r.t.Helper()
	err := r.c.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: name}, client.DeleteOptions{GraceSeconds: grace})
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
}

func (r *rig) wantGone(name string) {
	r.t.Helper()
	if p, ok := client.Pods.Get(r.c.Snapshot(), "default", name); ok {
		r.t.Fatalf("pod %s is still there: %s", name, brief(p))
	}
	if n := len(r.rt.Sandboxes()); n != 0 {
		r.t.Fatalf("%d sandboxes left", n)
	}
	if n := r.net.attached(); n != 0 {
		r.t.Fatalf("%d addresses left", n)
	}
}

// brief is a pod's status in one line.
func brief(p *corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", p.Status.Phase)
	if p.Status.Reason != "" {
		fmt.Fprintf(&b, "/%s", p.Status.Reason)
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, " %s=%s", c.Name, stateText(c.State))
			if c.LastTerminationState.Terminated != nil {
				fmt.Fprintf(&b, "(last %s)", stateText(c.LastTerminationState))
			}
			if c.RestartCount > 0 {
				fmt.Fprintf(&b, "x%d", c.RestartCount)
			}
			if c.Ready {
				b.WriteString("+")
			}
		}
	}
	return b.String()
}

func stateText(s corev1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("%s/%d", s.Terminated.Reason, s.Terminated.ExitCode)
	case s.Waiting != nil:
		return s.Waiting.Reason
	}
	return "?"
}

func (r *rig) want(name, text string) {
	r.t.Helper()
	if got := brief(r.get(name)); got != text {
		r.t.Errorf("pod %s:\n got %s\nwant %s\nevents:\n%s", name, got, text, strings.Join(r.takeEvents(), "\n"))
	}
}

func (r *rig) takeEvents() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.events
	r.events = nil
	return out
}

func (r *rig) wantEvents(want ...string) {
	r.t.Helper()
	got := r.takeEvents()
	if !slices.Equal(got, want) {
		r.t.Errorf("events:\n got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (r *rig) wantTook(want ...string) {
	r.t.Helper()
	if got := r.rt.took(); !slices.Equal(got, want) {
		r.t.Errorf("runtime:\n got %q\nwant %q", got, want)
	}
}

func cond(p *corev1.Pod, t corev1.PodConditionType) string {
	c := findCondition(&p.Status, t)
	if c == nil {
		return "none"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
}

var errFake = errors.New("fake failure")
var _ = container.ErrBusy
