package simulated

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func stages(t *testing.T, text string) *Stages {
	t.Helper()
	s, err := ParseStages("stages.yaml", []byte("apiVersion: simulate.coracle.dev/v1alpha1\nkind: Stages\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// staged runs f beside simulated nodes with stages, in a synctest bubble.
func staged(t *testing.T, text string, f func(t *testing.T, c *reconciletest.Cluster)) {
	t.Helper()
	s := stages(t, text)
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		for _, name := range []string{"default", "other", LeaseNamespace} {
			if _, err := c.Create(t.Context(), "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- New(Config{Client: c, Count: 3, Stages: s}).Run(ctx) }()
		synctest.Wait()
		f(t, c)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func get(t *testing.T, c *reconciletest.Cluster, name string) *corev1.Pod {
	t.Helper()
	synctest.Wait()
	p, ok := client.Pods.Get(c.Snapshot(), "default", name)
	if !ok {
		t.Fatalf("pod %s is gone", name)
	}
	return p
}

// at lets virtual time pass until a moment after the start.
func at(start time.Time, after time.Duration) {
	time.Sleep(time.Until(start.Add(after)))
	synctest.Wait()
}

// brief is a pod's status in short: phase, readiness, then each container's state.
func brief(p *corev1.Pod) string {
	ready := "?"
	if c := condition(p, corev1.PodReady); c != nil {
		ready = string(c.Status)
	}
	out := []string{string(p.Status.Phase), ready}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			s := c.Name + ":"
			switch {
			case c.State.Running != nil:
				s += "running"
			case c.State.Terminated != nil:
				s += fmt.Sprintf("%s(%d)", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
			case c.State.Waiting != nil:
				s += c.State.Waiting.Reason
			}
			if c.RestartCount > 0 {
				s += fmt.Sprintf("*%d", c.RestartCount)
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, " ")
}

func expect(t *testing.T, c *reconciletest.Cluster, name, want string) {
	t.Helper()
	if got := brief(get(t, c, name)); got != want {
		t.Errorf("%s: %s\nwant %s", name, got, want)
	}
}

func TestStartTakesItsTime(t *testing.T) {
	staged(t, `
pods:
- {name: start, from: Pending, after: 1s..3s, do: start}
`, func(t *testing.T, c *reconciletest.Cluster) {
		start := time.Now()
		for i := range 200 {
			create(t, c, pod(fmt.Sprint("p", i), "simulated-0"))
		}
		expect(t, c, "p0", "Pending False a:ContainerCreating")
		at(start, 999*time.Millisecond)
		running := func() (n int) {
			for p := range client.Pods.List(c.Snapshot(), "default") {
				if p.Status.Phase == corev1.PodRunning {
					n++
				}
			}
			return n
		}
		if n := running(); n != 0 {
			t.Errorf("%d run before the first may", n)
		}
		at(start, 2*time.Second)
		if n := running(); n < 60 || n > 140 {
			t.Errorf("%d of 200 run half-way", n)
		}
		at(start, 3*time.Second)
		if n := running(); n != 200 {
			t.Errorf("%d of 200 run at the end", n)
		}
		expect(t, c, "p0", "Running True a:running")
	})
}

func TestCrashLoopBacksOff(t *testing.T) {
	staged(t, `
pods:
- {name: crash, from: Ready, after: 30s, do: exit, code: 1, select: {labels: crash=yes}}
`, func(t *testing.T, c *reconciletest.Cluster) {
		p := pod("x", "simulated-0")
		p.Labels = map[string]string{"crash": "yes"}
		create(t, c, p)
		create(t, c, pod("calm", "simulated-0"))
		start := time.Now()
		for _, step := range []struct {
			after time.Duration
			want  string
		}{
			{29 * time.Second, "Running True a:running"},
			{30 * time.Second, "Running True a:running*1"}, // the first restart is at once
			{60 * time.Second, "Running False a:CrashLoopBackOff*1"},
			{69 * time.Second, "Running False a:CrashLoopBackOff*1"},
			{70 * time.Second, "Running True a:running*2"},
			{100 * time.Second, "Running False a:CrashLoopBackOff*2"},
			{119 * time.Second, "Running False a:CrashLoopBackOff*2"},
			{120 * time.Second, "Running True a:running*3"},
		} {
			at(start, step.after)
			expect(t, c, "x", step.want)
		}
		at(start, time.Hour)
		n := get(t, c, "x").Status.ContainerStatuses[0].RestartCount
		if n < 10 || n > 20 { // each takes 30 s and a back-off of up to five minutes
			t.Errorf("%d restarts in an hour", n)
		}
		expect(t, c, "calm", "Running True a:running")
		last := get(t, c, "x").Status.ContainerStatuses[0].LastTerminationState.Terminated
		if last == nil || last.ExitCode != 1 || last.Reason != "Error" {
			t.Errorf("last termination %+v", last)
		}
	})
}

func TestWhatComesFirstHappens(t *testing.T) {
	staged(t, `
seed: 3
pods:
- {name: done, from: Ready, after: 10s, do: exit, select: {owners: [Job]}}
- {name: fail, from: Ready, after: 30s, chance: 20%, do: exit, code: 3, message: it broke}
`, func(t *testing.T, c *reconciletest.Cluster) {
		yes := true
		for i := range 200 {
			p := pod(fmt.Sprint("job", i), "simulated-0")
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "j", UID: "1", Controller: &yes}}
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			create(t, c, p)
			p = pod(fmt.Sprint("once", i), "simulated-1")
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			create(t, c, p)
		}
		time.Sleep(10 * time.Second)
		expect(t, c, "job7", "Succeeded False a:Completed(0)")
		time.Sleep(time.Minute)
		failed := 0
		for p := range client.Pods.List(c.Snapshot(), "default") {
			if p.Status.Phase == corev1.PodFailed {
				failed++
				if brief(p) != "Failed False a:Error(3)" || p.Status.ContainerStatuses[0].State.Terminated.Message != "it broke" {
					t.Errorf("%s: %+v", brief(p), p.Status.ContainerStatuses[0].State)
				}
			}
		}
		if failed < 20 || failed > 60 {
			t.Errorf("%d of 200 failed, 40 expected", failed)
		}
	})
}

func TestWeightsAndTimes(t *testing.T) {
	staged(t, `
pods:
- {name: pull, from: Pending, weight: 1, do: wait, reason: ImagePullBackOff, message: no such image}
- {name: evict, from: Pending, weight: 1, do: fail, reason: Evicted, message: The node was low on resource}
- {name: go, from: Pending, weight: 2, do: start}
- {name: pulled, from: Waiting, after: 1m, do: start}
- {name: flap, from: Ready, after: 2m, times: 1, do: unready}
- {name: back, from: NotReady, after: 5s, do: ready}
`, func(t *testing.T, c *reconciletest.Cluster) {
		for i := range 400 {
			create(t, c, pod(fmt.Sprint("p", i), "simulated-2"))
		}
		synctest.Wait()
		count := func() map[string]int {
			n := map[string]int{}
			for p := range client.Pods.List(c.Snapshot(), "default") {
				n[brief(p)]++
			}
			return n
		}
		near := func(n map[string]int, what string, want int) {
			t.Helper()
			if got := n[what]; got < want*3/4 || got > want*5/4 {
				t.Errorf("%d are %q, about %d expected: %v", got, what, want, n)
			}
		}
		n := count()
		near(n, "Pending False a:ImagePullBackOff", 100)
		near(n, "Failed False a:ContainerCreating", 100)
		near(n, "Running True a:running", 200)
		time.Sleep(time.Minute)
		synctest.Wait()
		near(count(), "Running True a:running", 300)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		near(count(), "Running False a:running", 200)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		near(count(), "Running True a:running", 300)
	})
}

func TestTerminationIsBoundedByTheGracePeriod(t *testing.T) {
	staged(t, `
pods:
- {name: slow, from: Terminating, after: 10s, do: remove}
`, func(t *testing.T, c *reconciletest.Cluster) {
		start := time.Now()
		for name, grace := range map[string]int64{"polite": 30, "killed": 4} {
			p := pod(name, "simulated-0")
			create(t, c, p)
			synctest.Wait()
			if err := c.Delete(t.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: name}, client.DeleteOptions{GraceSeconds: &grace}); err != nil {
				t.Fatal(err)
			}
		}
		for _, step := range []struct {
			after time.Duration
			left  int
		}{{3 * time.Second, 2}, {4 * time.Second, 1}, {9 * time.Second, 1}, {10 * time.Second, 0}} {
			at(start, step.after)
			if n := c.Snapshot().Count("pods", "default"); n != step.left {
				t.Errorf("%d pods after %s, want %d", n, step.after, step.left)
			}
		}
	})
}

func TestInitContainersSidecarsAndProbes(t *testing.T) {
	staged(t, `
pods:
- {name: start, from: Pending, do: start, init: 10s}
`, func(t *testing.T, c *reconciletest.Cluster) {
		always := corev1.ContainerRestartPolicyAlways
		p := pod("p", "simulated-0")
		p.Spec.InitContainers = []corev1.Container{{Name: "i1", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}, {Name: "i2", Image: "img"}}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{InitialDelaySeconds: 5, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
		create(t, c, p)
		start := time.Now()
		for _, step := range []struct {
			after time.Duration
			want  string
		}{
			{0, "Pending False i1:running side:PodInitializing i2:PodInitializing a:PodInitializing"},
			{10 * time.Second, "Pending False i1:Completed(0) side:running i2:running a:PodInitializing"},
			{20 * time.Second, "Running False i1:Completed(0) side:running i2:Completed(0) a:running"},
			{24 * time.Second, "Running False i1:Completed(0) side:running i2:Completed(0) a:running"},
			{25 * time.Second, "Running True i1:Completed(0) side:running i2:Completed(0) a:running"},
		} {
			at(start, step.after)
			expect(t, c, "p", step.want)
		}
	})
}

func TestSpecChangesAreReported(t *testing.T) {
	staged(t, ``, func(t *testing.T, c *reconciletest.Cluster) {
		p := pod("p", "simulated-0")
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/open"}}
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		create(t, c, p)
		expect(t, c, "p", "Running False a:running")
		change := func(subresource string, f func(*corev1.Pod)) {
			t.Helper()
			if _, err := client.Mutate(t.Context(), c, client.Pods, "default", "p", subresource, func(p *corev1.Pod) bool { f(p); return true }); err != nil {
				t.Fatal(err)
			}
		}
		change("status", func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "example.com/open", Status: corev1.ConditionTrue})
		})
		expect(t, c, "p", "Running True a:running")
		change("resize", func(p *corev1.Pod) {
			p.Generation++
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("2")
		})
		change("ephemeralcontainers", func(p *corev1.Pod) {
			p.Generation++
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "tools", TerminationMessagePath: "/dev/x", TerminationMessagePolicy: "File", ImagePullPolicy: "IfNotPresent"}}}
		})
		expect(t, c, "p", "Running True a:running debug:running")
		got := get(t, c, "p").Status.ContainerStatuses[0]
		if got.Resources == nil || got.Resources.Requests.Cpu().String() != "2" || got.AllocatedResources.Cpu().String() != "2" {
			t.Errorf("resources %+v %+v", got.Resources, got.AllocatedResources)
		}
		change("", func(p *corev1.Pod) { p.Generation++; p.Spec.Containers[0].Image = "next" })
		expect(t, c, "p", "Running True a:running*1 debug:running")
	})
}

func TestNodesComeAndGo(t *testing.T) {
	staged(t, `
nodes:
- {name: down, after: 1m, for: 30s, times: 1, do: notReady, reason: Broken, select: {names: [simulated-0]}}
- {name: boot, after: 1m, for: 2m, times: 1, do: reboot, select: {names: [simulated-1]}}
- {name: full, after: 1m, for: 30s, do: condition, condition: DiskPressure, status: "True", times: 1, select: {names: [simulated-2]}}
- {name: mark, after: 1m, for: 1m, do: taint, times: 1, taints: ["dead=yes:NoExecute"], select: {names: [simulated-2]}}
`, func(t *testing.T, c *reconciletest.Cluster) {
		start := time.Now()
		create(t, c, pod("p", "simulated-1"))
		const crowd = 40 // more than one writer takes up
		for i := range crowd {
			create(t, c, pod(fmt.Sprint("crowd-", i), "simulated-1"))
		}
		node := func(i int) *corev1.Node {
			synctest.Wait()
			n, _ := client.Nodes.Get(c.Snapshot(), "", fmt.Sprint("simulated-", i))
			return n
		}
		status := func(i int, of corev1.NodeConditionType) string {
			for _, cond := range node(i).Status.Conditions {
				if cond.Type == of {
					return string(cond.Status) + " " + cond.Reason
				}
			}
			return "none"
		}
		check := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s after %s is %q, want %q", what, time.Since(start), got, want)
			}
		}
		first := node(1).Status.NodeInfo.BootID
		check("ready", status(0, corev1.NodeReady), "True KubeletReady")
		at(start, time.Minute)
		check("ready", status(0, corev1.NodeReady), "False Broken")
		check("pressure", status(2, corev1.NodeDiskPressure), "True ")
		create(t, c, pod("while-down", "simulated-1"))
		at(start, 90*time.Second)
		check("ready", status(0, corev1.NodeReady), "True KubeletReady")
		check("pressure", status(2, corev1.NodeDiskPressure), "False KubeletHasNoDiskPressure")
		check("pod on a node that reboots", brief(get(t, c, "while-down")), "Pending ?")
		lease, _ := client.Leases.Get(c.Snapshot(), LeaseNamespace, "simulated-1")
		if age := time.Since(lease.Spec.RenewTime.Time); age < 30*time.Second {
			t.Errorf("the lease of a node that reboots was renewed %s ago", age)
		}
		at(start, 3*time.Minute)
		if node(1).Status.NodeInfo.BootID == first {
			t.Error("a reboot leaves the boot ID")
		}
		expect(t, c, "p", "Running True a:running*1")
		for i := range crowd {
			expect(t, c, fmt.Sprint("crowd-", i), "Running True a:running*1")
		}
		expect(t, c, "while-down", "Running True a:running")
		if n := len(node(2).Spec.Taints); n != 1 {
			t.Errorf("%d taints at 3m", n) // from 2m30 to 3m30
		}
		at(start, 4*time.Minute)
		if n := len(node(2).Spec.Taints); n != 0 {
			t.Errorf("%d taints are left", n)
		}
	})
}

func TestTheSameSeedGivesTheSameCourse(t *testing.T) {
	course := func(seed int) (out string) {
		staged(t, fmt.Sprintf(`
seed: %d
pods:
- {name: start, from: Pending, after: 0s..10s, do: start}
- {name: crash, from: Ready, after: 1s..1m, chance: 50%%, do: exit, code: 1}
`, seed), func(t *testing.T, c *reconciletest.Cluster) {
			for i := range 50 {
				create(t, c, pod(fmt.Sprint("p", i), "simulated-0"))
			}
			for range 10 {
				time.Sleep(7 * time.Second)
				synctest.Wait()
				for p := range client.Pods.List(c.Snapshot(), "default") {
					out += brief(p) + "\n"
				}
			}
		})
		return out
	}
	first := course(1)
	if course(1) != first {
		t.Error("two runs with one seed differ")
	}
	if course(2) == first {
		t.Error("two seeds give the same")
	}
}

func TestParseTellsTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"kind: Stages": "s.yaml:1: apiVersion and kind must be simulate.coracle.dev/v1alpha1 and Stages",
		"":             "s.yaml: the file is empty",
		"apiVersion: simulate.coracle.dev/v1alpha1\nkind: Stages\npods:\n- name: a\n  from: Ready\n  do: exit\n  cod: 3\n": `s.yaml:7: unknown field "cod"; known are after, chance, code`,
		head("pods:\n- {name: a, from: Ready, do: start}"):                                                                 "s.yaml:4: a stage that does start has one of these in from: [Pending Waiting]",
		head("pods:\n- {from: Ready, do: exit}"):                                                                           "s.yaml:4: a stage needs a name",
		head("pods:\n- {name: a, from: Ready, do: exit}\n- {name: a, from: Ready, do: exit}"):                              `s.yaml:5: there is another stage "a"`,
		head("pods:\n- name: a\n  from: Ready\n  do: exit\n  after: soon"):                                                 `s.yaml:7: "soon" is not a time`,
		head("pods:\n- name: a\n  from: Ready\n  do: exit\n  after: 3s..1s"):                                               `s.yaml:7: "3s..1s" is not a time`,
		head("pods:\n- name: a\n  from: Ready\n  do: exit\n  chance: 200%"):                                                `s.yaml:7: "200%" is not a chance`,
		head("pods:\n- name: a\n  from: Ready\n  do: exit\n  select: {labels: '=='}"):                                      "s.yaml:7: selector:",
		head("pods:\n- name: a\n  from: Ready\n  do: unready\n  code: 3"):                                                  "s.yaml:7: code means nothing for a stage that does unready",
		head("pods: {}"): "s.yaml:3: a list is expected",
		head("nodes:\n- {name: a, do: taint, taints: [x]}"):      `s.yaml:4: "x" is not a taint`,
		head("nodes:\n- {name: a, do: reboot}"):                  "s.yaml:4: a stage that does reboot needs for",
		head("nodes:\n- {name: a, do: silent, from: Ready}"):     `s.yaml:4: unknown field "from"`,
		head("nodes:\n- {name: a, do: condition, condition: X}"): "s.yaml:4: a stage that does condition needs a condition, and a status",
		head("seed: -1"):         `s.yaml:3: "-1" is not a whole number`,
		head("seed: 1\nseed: 2"): "s.yaml:4: seed is given twice",
	} {
		_, err := ParseStages("s.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q\ngives %v\nwant  %s", text, err, want)
		}
	}
}

func head(text string) string { return "apiVersion: " + StagesVersion + "\nkind: Stages\n" + text }

// FuzzParseStages: what is read can be played: no draw fails, and every pod has at most one stage at a time.
func FuzzParseStages(f *testing.F) {
	f.Add([]byte(head("seed: 5\npods:\n- {name: a, from: Pending, after: 1s..3s, chance: 5%, do: start, init: 1s}\n- {name: b, from: Ready, weight: 3, do: exit, code: 1, select: {owners: [Job], nodes: ['s-*'], labels: 'a in (b)'}}")))
	f.Add([]byte(head("nodes:\n- {name: n, after: 1m, for: 1m..2m, do: taint, taints: ['a=b:NoSchedule']}")))
	f.Add([]byte("{"))
	f.Add([]byte("--- \n---\n"))
	f.Add([]byte("*a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStages("f", data)
		if err != nil {
			return
		}
		none := func(*PodStage) int { return 0 }
		for _, state := range []State{Pending, Waiting, Running, Ready, NotReady, Terminating} {
			if st, after := s.pod(pod("p", "s-1"), state, 1, none); st != nil && (after < st.After.Min || after > st.After.Max) {
				t.Errorf("%s after %s", st.Name, after)
			}
		}
		s.node(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "s-1"}}, 1, func(*NodeStage) int { return 0 })
	})
}
