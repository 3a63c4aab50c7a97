package node

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded"
	"coracle.dev/coracle/container/embedded/shim"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/volume"
)

// real is an agent with real containers, volumes and links, on a cluster in memory.
type real struct {
	t       testing.TB
	dir     string
	c       *reconciletest.Cluster
	rt      *embedded.Runtime
	volumes *volume.Manager
	net     *network.Pods
	a       *Agent
	stop    func()

	mu     sync.Mutex
	events []string
}

// linkInstance names the links of these tests; the range is one that documentation reserves.
const linkInstance = "7e57"

var podRange = netip.MustParsePrefix("198.18.77.0/24")

func newReal(t testing.TB) *real {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("real containers need root")
	}
	if _, err := shim.Program(); err != nil {
		t.Skipf("the shim is not built: %v", err)
	}
	dir, err := os.MkdirTemp("", "coracle-node-")
	if err != nil {
		t.Fatal(err)
	}
	r := &real{t: t, dir: dir, c: reconciletest.NewCluster(0)}
	for _, name := range []string{"default", "kube-node-lease"} {
		if _, err := r.c.Create(context.Background(), "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if r.net, err = network.NewPods(linkInstance, 0); err != nil {
		t.Fatal(err)
	}
	r.open()
	archive, err := build.Busybox("/bin/busybox", "busybox").Archive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.rt.Images().Import(context.Background(), bytes.NewReader(archive), container.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(r.destroy)
	return r
}

func (r *real) open() {
	rt, err := embedded.Open(context.Background(), embedded.Options{Dir: filepath.Join(r.dir, "runtime"), Log: r.log()})
	if err != nil {
		r.t.Fatal(err)
	}
	r.rt = rt
}

func (r *real) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(realLog{r.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type realLog struct{ t testing.TB }

func (l realLog) Write(b []byte) (int, error) { l.t.Logf("%s", bytes.TrimSpace(b)); return len(b), nil }

func (r *real) start() {
	r.volumes = volume.New(volume.Config{Root: filepath.Join(r.dir, "pods"), Client: r.c, NodeName: "n1", Log: r.log(),
		Wake: func(uid types.UID) { r.a.WakeVolumes(uid) }})
	r.a = New(Config{
		NodeName: "n1", Client: r.c, Runtime: r.rt, Volumes: r.volumes, Network: r.net, DataDir: r.dir,
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, PodCIDRs: []netip.Prefix{podRange},
		OnPodCIDRs: r.net.SetRanges, ClusterDNS: []netip.Addr{netip.MustParseAddr("198.18.78.10")}, Log: r.log(),
		Events: func(ev reconcile.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, ev.Reason+": "+ev.Message)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- r.volumes.Run(ctx) }()
	go func() { ended <- r.a.Run(ctx) }()
	r.stop = func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil && ctx.Err() == nil {
				r.t.Errorf("stop: %v", err)
			}
		}
	}
	r.await("node", func() bool {
		n, ok := client.Nodes.Get(r.c.Snapshot(), "", "n1")
		return ok && len(n.Status.Conditions) > 0
	})
}

// destroy removes everything and fails the test if something stays behind.
func (r *real) destroy() {
	for p := range client.Pods.List(r.c.Snapshot(), "default") {
		_ = r.c.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: p.Name}, client.DeleteOptions{GraceSeconds: ptr(int64(1))})
	}
	r.await("pods to go", func() bool {
		return r.c.Snapshot().Count("pods", "default") == 0 && len(r.rt.Sandboxes()) == 0 && len(r.a.Pods()) == 0
	})
	r.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.rt.Shutdown(ctx); err != nil {
		r.t.Errorf("shut the runtime down: %v", err)
	}
	if err := r.rt.Close(); err != nil {
		r.t.Error(err)
	}
	if left := r.net.Sandboxes(); len(left) > 0 {
		r.t.Errorf("links left: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(r.dir, "pods")); len(left) > 0 {
		r.t.Errorf("pod directories left: %v", left)
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); bytes.Contains(mounts, []byte(r.dir)) {
		r.t.Errorf("mounts left below %s", r.dir)
	}
	_ = network.RemoveAll(linkInstance)
	_ = link.RemoveRoutes(podRange)
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Error(err)
	}
}

// await waits until ok says so; it looks again with each change of the store.
func (r *real) await(what string, ok func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		cursor, err := r.c.Cursor(r.c.Snapshot().Revision())
		if err != nil {
			r.t.Fatal(err)
		}
		if ok() {
			return
		}
		step, done := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err = cursor.Next(step)
		done()
		if ctx.Err() != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			var pods []string
			for p := range client.Pods.List(r.c.Snapshot(), "default") {
				pods = append(pods, p.Name+": "+brief(p))
			}
			r.t.Fatalf("waited in vain for %s\n%s\nevents:\n%s", what, strings.Join(pods, "\n"), strings.Join(r.events, "\n"))
		}
	}
}

func (r *real) create(p *corev1.Pod) {
	r.t.Helper()
	p.Spec.TerminationGracePeriodSeconds = ptr(int64(2))
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			list[i].Image = "busybox"
		}
	}
	if _, err := r.c.Create(context.Background(), "pods", p, client.WriteOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *real) awaitStatus(name, want string) *corev1.Pod {
	r.t.Helper()
	var out *corev1.Pod
	r.await(name+" to be "+want, func() bool {
		p, ok := client.Pods.Get(r.c.Snapshot(), "default", name)
		out = p
		return ok && brief(p) == want
	})
	return out
}

func sh(name, script string) corev1.Container {
	c := containerOf(name + ": x")
	c.Command = []string{"/bin/sh", "-c", script}
	return c
}

const forever = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait; done"

// logOf reads the text of a container's log.
func (r *real) logOf(p *corev1.Pod, name string) string {
	r.t.Helper()
	st, err := r.rt.Container(r.a.Container(p.UID, name, false))
	if err != nil {
		r.t.Fatal(err)
	}
	text, err := logTail(st.LogPath)
	if err != nil {
		r.t.Fatal(err)
	}
	return text
}

func TestRealPod(t *testing.T) {
	r := newReal(t)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"greeting": "hello"}}
	if _, err := r.c.Create(context.Background(), "configmaps", cm, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	p := podOf("web")
	p.Spec.Containers = []corev1.Container{sh("main", "echo env $GREETING $POD_IP $HOSTNAME; id -u; id -G; cat /etc/hosts /etc/resolv.conf /work/from-init /cfg/greeting; cat /proc/self/status | grep -i nonewprivs; "+forever)}
	m := &p.Spec.Containers[0]
	m.Env = []corev1.EnvVar{
		{Name: "GREETING", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}, Key: "greeting"}}},
		{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
	}
	m.VolumeMounts = []corev1.VolumeMount{{Name: "work", MountPath: "/work"}, {Name: "cfg", MountPath: "/cfg"}}
	m.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(1000)), AllowPrivilegeEscalation: ptr(false)}
	m.ReadinessProbe = &corev1.Probe{ProbeHandler: execProbe("test", "-e", "/work/from-init"), PeriodSeconds: 5}
	init := sh("init", "echo from init > /work/from-init")
	init.VolumeMounts = []corev1.VolumeMount{{Name: "work", MountPath: "/work"}}
	p.Spec.InitContainers = []corev1.Container{init}
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000))}
	p.Spec.Volumes = []corev1.Volume{
		{Name: "work", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}}}},
	}
	r.create(p)
	got := r.awaitStatus("web", "Running init=Completed/0+ main=running+")
	var log string
	r.await("the log", func() bool { log = r.logOf(got, "main"); return strings.Contains(log, "NoNewPrivs") })
	for _, want := range []string{
		"env hello " + got.Status.PodIP + " web\n", "1000\n", "2000", "# Kubernetes-managed hosts file.\n", got.Status.PodIP + "\tweb\n",
		"nameserver 198.18.78.10\n", "search default.svc.cluster.local svc.cluster.local cluster.local", "ndots:5", "from init\n", "hello", "NoNewPrivs:\t1",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

func TestRealTerminationMessageAndRestart(t *testing.T) {
	r := newReal(t)
	p := podOf("web")
	p.Spec.Containers = []corev1.Container{sh("a", "echo last words > /dev/termination-log; exit 3")}
	p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	r.create(p)
	got := r.awaitStatus("web", "Running a=CrashLoopBackOff(last Error/3)x1")
	if m := got.Status.ContainerStatuses[0].LastTerminationState.Terminated.Message; m != "last words\n" {
		t.Errorf("message %q", m)
	}
}

func TestRealAdoption(t *testing.T) {
	r := newReal(t)
	p := podOf("web")
	p.Spec.Containers = []corev1.Container{sh("a", forever)}
	r.create(p)
	got := r.awaitStatus("web", "Running a=running+")
	before, err := r.rt.Container(r.a.Container(got.UID, "a", false))
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := r.rt.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.start()
	r.await("adoption", func() bool { return r.a.Container(got.UID, "a", false) != "" })
	after, err := r.rt.Container(r.a.Container(got.UID, "a", false))
	if err != nil || after.PID != before.PID || after.State != container.StateRunning {
		t.Fatalf("%v: PID %d became %d, %s", err, before.PID, after.PID, after.State)
	}
	r.awaitStatus("web", "Running a=running+")
}

// TestRealLogMessage: output without a newline is the message as it is.
func TestRealLogMessage(t *testing.T) {
	r := newReal(t)
	p := podOf("web")
	p.Spec.Containers = []corev1.Container{sh("a", "echo -n DONE; exit 1")}
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	r.create(p)
	got := r.awaitStatus("web", "Failed a=Error/1")
	if m := got.Status.ContainerStatuses[0].State.Terminated.Message; m != "DONE" {
		t.Errorf("message %q", m)
	}
}

// TestRealCrowd makes and removes many pods; newReal's cleanup finds what is left behind.
func TestRealCrowd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	r := newReal(t)
	const count, rounds = 50, 2
	for round := range rounds {
		for i := range count {
			p := podOf(fmt.Sprintf("p%d-%d", round, i))
			p.Spec.Containers = []corev1.Container{sh("a", forever), sh("b", "exit 0")}
			p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
			r.create(p)
		}
		r.await("all to run", func() bool {
			ok := 0
			for p := range client.Pods.List(r.c.Snapshot(), "default") {
				if p.Status.Phase == corev1.PodRunning {
					ok++
				}
			}
			return ok == count
		})
		for p := range client.Pods.List(r.c.Snapshot(), "default") {
			_ = r.c.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: p.Name}, client.DeleteOptions{})
		}
		r.await("all to go", func() bool { return r.c.Snapshot().Count("pods", "default") == 0 && len(r.a.Pods()) == 0 })
	}
	if n := len(r.rt.Containers("")); n > 0 {
		t.Errorf("%d containers left", n)
	}
}

// BenchmarkRealPod measures a pod alone, from its creation in the API to Ready, and to gone.
func BenchmarkRealPod(b *testing.B) {
	r := newReal(b)
	var starts, ends []time.Duration
	for i := range b.N {
		name := fmt.Sprint("p", i)
		p := podOf(name)
		p.Spec.Containers = []corev1.Container{sh("a", forever)}
		begin := time.Now()
		r.create(p)
		got := r.awaitStatus(name, "Running a=running+")
		starts = append(starts, time.Since(begin))
		r.await("its trap", func() bool { return strings.Contains(r.logOf(got, "a"), "up") })
		begin = time.Now()
		_ = r.c.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: name}, client.DeleteOptions{})
		r.await("end", func() bool { _, ok := client.Pods.Get(r.c.Snapshot(), "default", name); return !ok })
		ends = append(ends, time.Since(begin))
	}
	slices.Sort(starts)
	slices.Sort(ends)
	b.ReportMetric(float64(starts[len(starts)/2].Microseconds())/1000, "ms/ready")
	b.ReportMetric(float64(ends[len(ends)/2].Microseconds())/1000, "ms/gone")
}

// BenchmarkRealPods measures thirty pods at once.
func BenchmarkRealPods(b *testing.B) {
	r := newReal(b)
	const count = 30
	var starts []time.Duration
	for i := range b.N {
		begin := time.Now()
		for j := range count {
			p := podOf(fmt.Sprintf("p%d-%d", i, j))
			p.Spec.Containers = []corev1.Container{sh("a", forever)}
			r.create(p)
		}
		r.await("all pods", func() bool {
			ready := 0
			for p := range client.Pods.List(r.c.Snapshot(), "default") {
				if c := findCondition(&p.Status, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
			return ready == count
		})
		starts = append(starts, time.Since(begin))
		for p := range client.Pods.List(r.c.Snapshot(), "default") {
			_ = r.c.Delete(context.Background(), client.Ref{Resource: "pods", Namespace: "default", Name: p.Name}, client.DeleteOptions{})
		}
		r.await("end", func() bool { return r.c.Snapshot().Count("pods", "default") == 0 })
	}
	slices.Sort(starts)
	b.ReportMetric(float64(starts[len(starts)/2].Milliseconds()), "ms/30ready")
	b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
}
