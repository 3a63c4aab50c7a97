package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/volume"
)

func TestPodRunsAndIsDeleted(t *testing.T) {
	run(t, func(r *rig) {
		r.takeEvents()
		r.create(podOf("web", "a: run", "b: run"))
		r.advance(60 * time.Millisecond)
		r.want("web", "Running a=running+ b=running+")
		r.wantTook("sandbox", "start a", "start b")
		p := r.get("web")
		for ct, want := range map[corev1.PodConditionType]string{
			corev1.PodReady: "True", corev1.ContainersReady: "True", corev1.PodInitialized: "True",
			corev1.PodReadyToStartContainers: "True", corev1.PodScheduled: "True",
		} {
			if got := cond(p, ct); got != want {
				t.Errorf("condition %s: got %q, want %q", ct, got, want)
			}
		}
		if p.Status.PodIP != "10.1.0.2" || p.Status.HostIP != "192.168.1.1" || p.Status.QOSClass != corev1.PodQOSBestEffort {
			t.Errorf("addresses %s %s, class %s", p.Status.PodIP, p.Status.HostIP, p.Status.QOSClass)
		}
		r.wantEvents(
			`Pulling: Pulling image "img"`,
			`Pulled: Successfully pulled image "img" in 0s (0s including waiting). Image size: 1234 bytes.`,
			"Created: Container created", "Started: Container started",
			`Pulled: Container image "img" already present on machine and can be accessed by the pod`,
			"Created: Container created", "Started: Container started",
		)
		r.delete("web", nil)
		r.wantGone("web")
		if len(r.a.Pods()) != 0 {
			t.Error("the agent still has the pod")
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, tc := range []struct {
		policy  corev1.RestartPolicy
		command string
		after   time.Duration
		want    string
	}{
		{corev1.RestartPolicyNever, "exit 0 1s", 3 * time.Second, "Succeeded a=Completed/0"},
		{corev1.RestartPolicyNever, "exit 3 1s", 3 * time.Second, "Failed a=Error/3"},
		{corev1.RestartPolicyNever, "noexec", 3 * time.Second, "Failed a=StartError/128"},
		{corev1.RestartPolicyOnFailure, "exit 0 1s", 3 * time.Second, "Succeeded a=Completed/0"},
		{corev1.RestartPolicyOnFailure, "exit 3 1s", 1500 * time.Millisecond, "Running a=running(last Error/3)x1+"},
		{corev1.RestartPolicyAlways, "exit 0 1s", 1500 * time.Millisecond, "Running a=running(last Completed/0)x1+"},
		{corev1.RestartPolicyAlways, "exit 0 1s", 3 * time.Second, "Running a=CrashLoopBackOff(last Completed/0)x1"},
		{corev1.RestartPolicyAlways, "noexec", 3 * time.Second, "Running a=RunContainerError(last StartError/128)x1"},
	} {
		t.Run(fmt.Sprintf("%s %s", tc.policy, tc.command), func(t *testing.T) {
			run(t, func(r *rig) {
				p := podOf("web", "a: "+tc.command)
				p.Spec.RestartPolicy = tc.policy
				r.create(p)
				r.advance(tc.after)
				r.want("web", tc.want)
			})
		})
	}
}

// TestCrashLoop follows the times of restarts: at once, then 10 s, doubling to five minutes, and
// from the beginning after a long life.
func TestCrashLoop(t *testing.T) {
	run(t, func(r *rig) {
		begin := time.Now()
		r.create(podOf("web", "a: exit 1 1s"))
		var at []string
		last := int32(0)
		for time.Since(begin) < 30*time.Minute {
			r.advance(time.Second)
			if n := r.get("web").Status.ContainerStatuses[0].RestartCount; n != last {
				last = n
				at = append(at, fmt.Sprint(time.Since(begin).Round(time.Second)))
			}
		}
		want := "1s 12s 33s 1m14s 2m35s 5m16s 10m17s 15m18s 20m19s 25m20s"
		if got := strings.Join(at, " "); got != want {
			t.Errorf("restarts at\n got %s\nwant %s", got, want)
		}
		events := strings.Join(r.takeEvents(), "\n")
		if !strings.Contains(events, "BackOff: Back-off restarting failed container a in pod web_default(") {
			t.Error(events)
		}
		st := r.get("web").Status.ContainerStatuses[0]
		if m := st.State.Waiting.Message; !strings.HasPrefix(m, "back-off 5m0s restarting failed container=a pod=web_default(") {
			t.Error(m)
		}
		// Only the present instance and the one before are kept.
		if n := len(r.rt.Containers("")); n != 2 {
			t.Errorf("%d containers are kept", n)
		}
	})
}

func TestInitContainersAndSidecars(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "main: run")
		side := containerOf("side: run")
		side.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		side.StartupProbe = &corev1.Probe{ProbeHandler: execProbe("up"), PeriodSeconds: 5, FailureThreshold: 10}
		side2 := containerOf("side2: run")
		side2.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		p.Spec.InitContainers = []corev1.Container{containerOf("one: exit 0 2s"), side, containerOf("two: exit 0 2s"), side2}
		var up atomic.Bool
		r.rt.exec = func(string, []string) (int, string) {
			if up.Load() {
				return 0, ""
			}
			return 1, "not yet"
		}
		r.create(p)
		r.advance(time.Second)
		r.want("web", "Pending one=running side=PodInitializing two=PodInitializing side2=PodInitializing main=PodInitializing")
		if got := cond(r.get("web"), corev1.PodInitialized); got != "False ContainersNotInitialized containers with incomplete status: [one side two side2]" {
			t.Error(got)
		}
		r.advance(2 * time.Second)
		r.want("web", "Pending one=Completed/0+ side=running two=PodInitializing side2=PodInitializing main=PodInitializing")
		r.advance(4 * time.Second)
		up.Store(true)
		r.advance(5500 * time.Millisecond)
		r.want("web", "Pending one=Completed/0+ side=running+ two=running side2=PodInitializing main=PodInitializing")
		r.advance(3 * time.Second)
		r.want("web", "Running one=Completed/0+ side=running+ two=Completed/0+ side2=running+ main=running+")
		r.wantTook("sandbox", "start one", "start side", "start two", "start side2", "start main")
		// Sidecars end after the main container, in reverse order.
		r.delete("web", nil)
		r.wantGone("web")
		var stops []string
		for _, l := range r.rt.took() {
			if f := strings.Fields(l); f[0] == "stop" {
				stops = append(stops, f[1])
			}
		}
		if got := strings.Join(stops, " "); got != "main side2 side" {
			t.Errorf("stopped in order %s", got)
		}
	})
}

func TestSidecarDoesNotHoldUpCompletion(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("job", "main: exit 0 2s")
		side := containerOf("side: run")
		side.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		p.Spec.InitContainers = []corev1.Container{side}
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		r.create(p)
		r.advance(5 * time.Second)
		r.want("job", "Succeeded side=Error/143 main=Completed/0")
		if got := cond(r.get("job"), corev1.PodReady); got != "False PodCompleted" {
			t.Error(got)
		}
		if n := r.net.attached(); n != 0 {
			t.Error("a pod that ended still has its address")
		}
		if r.a.Container(r.get("job").UID, "main", false) == "" || len(r.rt.Sandboxes()) != 1 {
			t.Error("logs of a pod that ended must stay")
		}
		r.delete("job", nil)
		r.wantGone("job")
	})
}

func TestInitFailure(t *testing.T) {
	for _, tc := range []struct {
		policy corev1.RestartPolicy
		want   string
	}{
		{corev1.RestartPolicyNever, "Failed one=Error/1 main=PodInitializing"},
		{corev1.RestartPolicyOnFailure, "Pending one=CrashLoopBackOff(last Error/1)x1 main=PodInitializing"},
		{corev1.RestartPolicyAlways, "Pending one=CrashLoopBackOff(last Error/1)x1 main=PodInitializing"},
	} {
		t.Run(string(tc.policy), func(t *testing.T) {
			run(t, func(r *rig) {
				p := podOf("web", "main: run")
				p.Spec.InitContainers = []corev1.Container{containerOf("one: exit 1 1s")}
				p.Spec.RestartPolicy = tc.policy
				r.create(p)
				r.advance(4 * time.Second)
				r.want("web", tc.want)
			})
		})
	}
}

func TestContainerRestartRules(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: exit 42 1s", "b: exit 7 1s")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		for i := range p.Spec.Containers {
			p.Spec.Containers[i].RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
			p.Spec.Containers[i].RestartPolicyRules = []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestart,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
			}}
		}
		r.create(p)
		r.advance(1500 * time.Millisecond)
		r.want("web", "Running a=running(last Error/42)x1+ b=Error/7")
	})
}

func TestRestartAllContainers(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: exit 42 5s", "b: run")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{containerOf("one: exit 0")}
		p.Spec.Containers[0].RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
		p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
		}}
		r.create(p)
		r.advance(time.Second)
		r.rt.took()
		r.advance(5 * time.Second)
		r.want("web", "Running one=Completed/0(last Completed/0)x1+ a=running(last Error/42)x1+ b=running(last Error/143)x1+")
		r.wantTook("stop b 30s", "start one", "start a", "start b")
		r.advance(6 * time.Second) // the second time it waits
		if st := r.get("web").Status.ContainerStatuses[1]; st.RestartCount != 1 {
			t.Error(brief(r.get("web")))
		}
		r.advance(10 * time.Second)
		if st := r.get("web").Status.ContainerStatuses[1]; st.RestartCount != 2 {
			t.Error(brief(r.get("web")))
		}
	})
}

func TestTermination(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: stubborn", "b: run")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "4s"}}}}
		p.Spec.TerminationGracePeriodSeconds = ptr(int64(10))
		r.create(p)
		r.advance(time.Second)
		r.rt.took()
		r.takeEvents()
		begin := time.Now()
		r.delete("web", nil)
		r.wantTook("stop b 10s")
		r.advance(5 * time.Second)
		r.want("web", "Running a=running+ b=Error/143")
		r.wantTook("stop a 6s")
		r.advance(5100 * time.Millisecond)
		r.wantGone("web")
		r.wantTook("kill a", "remove sandbox")
		r.wantEvents("Killing: Stopping container a", "Killing: Stopping container b")
		if d := time.Since(begin); d > 11*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestShorterGraceTakesOver(t *testing.T) {
	run(t, func(r *rig) {
		r.create(podOf("web", "a: stubborn"))
		r.advance(time.Second)
		r.delete("web", nil)
		r.advance(5 * time.Second)
		r.delete("web", ptr(int64(3)))
		r.advance(2 * time.Second)
		r.want("web", "Running a=running+")
		r.advance(1500 * time.Millisecond)
		r.wantGone("web")
	})
}

func TestForcedDeletion(t *testing.T) {
	run(t, func(r *rig) {
		r.create(podOf("web", "a: stubborn"))
		r.advance(time.Second)
		r.delete("web", ptr(int64(0)))
		r.advance(3 * time.Second)
		r.wantGone("web")
	})
}

func TestPreStopTakesAllTheGrace(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: stubborn")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
		p.Spec.TerminationGracePeriodSeconds = ptr(int64(5))
		r.create(p)
		r.advance(time.Second)
		r.rt.took()
		r.delete("web", nil)
		r.advance(5500 * time.Millisecond)
		r.wantTook("stop a 2s")
		r.advance(2 * time.Second)
		r.wantGone("web")
	})
}

func TestPostStart(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run", "b: run")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "3s"}}}}
		r.create(p)
		r.advance(time.Second)
		r.want("web", "Pending a=ContainerCreating b=ContainerCreating")
		r.wantTook("sandbox", "start a") // b waits for the hook of a
		r.advance(3 * time.Second)
		r.want("web", "Running a=running+ b=running+")
	})
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"fail"}}}}
		r.rt.exec = func(string, []string) (int, string) { return 1, "secret" }
		r.takeEvents()
		r.create(p)
		r.advance(time.Second)
		r.want("web", "Running a=PostStartHookError(last Error/143)x1")
		events := strings.Join(r.takeEvents(), "\n")
		if !strings.Contains(events, "FailedPostStartHook: PostStartHook failed\nKilling: FailedPostStartHook") || strings.Contains(events, "secret") {
			t.Error(events)
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.ActiveDeadlineSeconds = ptr(int64(20))
		r.create(p)
		r.advance(19 * time.Second)
		r.want("web", "Running a=running+")
		r.takeEvents()
		r.advance(2 * time.Second)
		r.want("web", "Failed/DeadlineExceeded a=Error/143")
		r.wantEvents("DeadlineExceeded: Pod was active on the node longer than the specified deadline", "Killing: Stopping container a")
		if m := r.get("web").Status.Message; m != "Pod was active on the node longer than the specified deadline" {
			t.Error(m)
		}
	})
}

func TestConfigErrorWakesOnObject(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}}}}
		r.create(p)
		r.advance(time.Second)
		r.want("web", "Pending a=CreateContainerConfigError")
		if m := r.get("web").Status.ContainerStatuses[0].State.Waiting.Message; m != `configmap "cfg" not found` {
			t.Error(m)
		}
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg", Namespace: "default"}, Data: map[string]string{"k": "v"}}
		if _, err := r.c.Create(context.Background(), "configmaps", cm, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.want("web", "Running a=running+")
		if env := r.rt.byName("a").Config.Env; len(env) != 1 || env[0] != "k=v" {
			t.Error(env)
		}
	})
}

func TestEphemeralContainer(t *testing.T) {
	run(t, func(r *rig) {
		r.create(podOf("web", "a: run"))
		r.advance(time.Second)
		e := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(containerOf("debug: exit 0 5s")), TargetContainerName: "a"}
		_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "ephemeralcontainers", func(p *corev1.Pod) bool {
			p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, e)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(time.Second)
		r.want("web", "Running a=running+ debug=running")
		if got := r.rt.byName("debug").Config.TargetPID; got != r.rt.byName("a").Config.ID {
			t.Errorf("target %q", got)
		}
		r.advance(10 * time.Second)
		r.want("web", "Running a=running+ debug=Completed/0")
	})
}

func TestVolumesThatFail(t *testing.T) {
	run(t, func(r *rig) {
		r.vol.fail = errFake
		r.create(podOf("web", "a: run"))
		r.advance(200 * time.Millisecond)
		r.want("web", "Pending a=ContainerCreating")
		if got := cond(r.get("web"), corev1.PodReadyToStartContainers); got != "False" {
			t.Error(got)
		}
		r.wantPods("FailedMount: fake failure")
		r.vol.mu.Lock()
		r.vol.fail = nil
		r.vol.mu.Unlock()
		r.a.WakeVolumes(r.get("web").UID)
		r.settle()
		r.want("web", "Running a=running+")
	})
}

// What wakes a pod while its volumes are being made ready counts for the next try: the one under way may have looked before.
func TestVolumesThatComeMeanwhile(t *testing.T) {
	run(t, func(r *rig) {
		r.vol.fail, r.vol.slow = errFake, make(chan struct{})
		r.create(podOf("web", "a: run"))
		r.vol.mu.Lock()
		r.vol.fail = nil
		r.vol.mu.Unlock()
		r.a.WakeVolumes(r.get("web").UID)
		r.settle()
		close(r.vol.slow)
		r.settle()
		r.want("web", "Running a=running+")
	})
}

func TestSandboxThatFails(t *testing.T) {
	run(t, func(r *rig) {
		r.net.fail = errFake
		r.create(podOf("web", "a: run"))
		r.advance(200 * time.Millisecond)
		r.want("web", "Pending a=ContainerCreating")
		if n := len(r.rt.Sandboxes()); n != 0 {
			t.Errorf("%d sandboxes left by a failure", n)
		}
		if e := strings.Join(r.takeEvents(), "\n"); !strings.Contains(e, "FailedCreatePodSandBox: Failed to create pod sandbox: failed to setup network for sandbox") {
			t.Error(e)
		}
		r.net.mu.Lock()
		r.net.fail = nil
		r.net.mu.Unlock()
		r.advance(2 * time.Second)
		r.want("web", "Running a=running+")
	})
}

func TestDeletedBeforeItStarted(t *testing.T) {
	run(t, func(r *rig) {
		r.vol.fail = errFake
		r.create(podOf("web", "a: run"))
		r.advance(time.Second)
		_, _ = client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "", func(p *corev1.Pod) bool {
			p.Finalizers = []string{"example.com/hold"}
			return true
		})
		r.delete("web", nil)
		r.advance(time.Second)
		r.want("web", "Failed a=ContainerStatusUnknown/137")
		_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "", func(p *corev1.Pod) bool {
			p.Finalizers = nil
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(time.Second)
		if _, ok := client.Pods.Get(r.c.Snapshot(), "default", "web"); ok {
			t.Error("still there: ", brief(r.get("web")))
		}
	})
}

func TestAdmission(t *testing.T) {
	run(t, func(r *rig) {
		big := podOf("big", "a: run")
		big.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3")}
		r.create(big)
		r.advance(time.Second)
		r.takeEvents()
		r.create(p2(big, "big2"))
		r.advance(time.Second)
		r.want("big2", "Failed/OutOfcpu")
		const why = "Node didn't have enough resource: cpu, requested: 3000, used: 3000, capacity: 4000"
		if m := r.get("big2").Status.Message; m != "Pod was rejected: "+why {
			t.Error(m)
		}
		r.wantEvents("OutOfcpu: " + why)
		picky := podOf("picky", "a: run")
		picky.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		r.create(picky)
		r.advance(time.Second)
		r.want("picky", "Failed/NodeAffinity")
		for i, want := range []string{"Running a=running+", "Failed/NodePorts"} {
			name := fmt.Sprint("port", i)
			p := podOf(name, "a: run")
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
			r.create(p)
			r.advance(time.Second)
			r.want(name, want)
		}
		sys := podOf("sys", "a: run")
		sys.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}
		r.create(sys)
		r.advance(time.Second)
		r.want("sys", "Failed/SysctlForbidden")
		// What ended makes room.
		r.delete("big", nil)
		r.create(p2(big, "big3"))
		r.advance(time.Second)
		r.want("big3", "Running a=running+")
		r.delete("big2", nil)
		if _, ok := client.Pods.Get(r.c.Snapshot(), "default", "big2"); ok {
			t.Error("a rejected pod could not be deleted")
		}
		// So does what the API has no more, though it is still ending here.
		deaf := podOf("big4", "a: stubborn")
		deaf.Spec.Containers[0].Resources = big.Spec.Containers[0].Resources
		r.delete("big3", nil)
		r.create(deaf)
		r.advance(time.Second)
		r.want("big4", "Running a=running+")
		r.delete("big4", ptr(int64(0)))
		r.create(p2(big, "big5"))
		r.advance(time.Second)
		r.want("big5", "Running a=running+")
	})
}

func TestEvictionForLocalStorage(t *testing.T) {
	run(t, func(r *rig) {
		r.create(podOf("free", "a: run"))
		p := podOf("web", "a: run")
		p.Spec.Volumes = []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: resource.NewQuantity(1<<20, resource.BinarySI)}}}}
		r.create(p)
		r.advance(40 * time.Second)
		r.want("web", "Running a=running+")
		if r.vol.measured != 2 {
			t.Errorf("measured %d times", r.vol.measured)
		}
		r.takeEvents()
		r.vol.mu.Lock()
		r.vol.usages = []volume.Usage{{Volume: "tmp", UsedBytes: 2 << 20, LimitBytes: 1 << 20, LocalStorage: true}}
		r.vol.mu.Unlock()
		r.advance(15 * time.Second)
		r.want("web", "Failed/Evicted a=Error/143")
		r.wantEvents(`Evicted: Usage of EmptyDir volume "tmp" exceeds the limit "1Mi". `, "Killing: Stopping container a")
		if got := cond(r.get("web"), corev1.DisruptionTarget); got != `True TerminationByKubelet Usage of EmptyDir volume "tmp" exceeds the limit "1Mi".` {
			t.Error(got)
		}
		r.want("free", "Running a=running+")
	})
}

func TestExceeded(t *testing.T) {
	limit := func(s string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(s)}}
	}
	for _, tc := range []struct {
		a, b    string // limits
		storage storage
		want    string
	}{
		{"10", "10", storage{containers: map[string]int64{"a": 10, "b": 5}}, ""},
		{"10", "10", storage{containers: map[string]int64{"a": 11, "b": 5}}, `Container a exceeded its local ephemeral storage limit "10". `},
		{"10", "10", storage{containers: map[string]int64{"a": 10, "b": 5}, volumes: []volume.Usage{{UsedBytes: 6, LocalStorage: true}}},
			"Pod ephemeral local storage usage exceeds the total limit of containers 20. "},
		{"10", "", storage{containers: map[string]int64{"a": 10, "b": 500}}, ""},
		{"10", "10", storage{volumes: []volume.Usage{{UsedBytes: 600}}}, ""},
	} {
		p := podOf("web", "a: run", "b: run")
		for i, l := range []string{tc.a, tc.b} {
			if l != "" {
				p.Spec.Containers[i].Resources = limit(l)
			}
		}
		if got := exceeded(p, tc.storage); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc, got, tc.want)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: exit 1 2s")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		r.create(p)
		r.advance(time.Second)
		file := r.rt.byName("a").Config.Labels["coracle.dev/message-path"]
		if err := os.WriteFile(file, []byte("I am done"), 0o666); err != nil {
			t.Fatal(err)
		}
		r.advance(2 * time.Second)
		if m := r.get("web").Status.ContainerStatuses[0].State.Terminated.Message; m != "I am done" {
			t.Errorf("%q", m)
		}
	})
	run(t, func(r *rig) {
		p := podOf("web", "a: exit 1 2s")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		r.create(p)
		r.advance(time.Second)
		log := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(log, []byte("2026-01-02T03:04:05.000000000Z stdout F hello\n2026-01-02T03:04:05.000000000Z stderr P wor\n2026-01-02T03:04:05.000000000Z stderr F ld\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		id := r.rt.byName("a").Config.ID
		r.rt.mu.Lock()
		r.rt.containers[id].LogPath = log
		r.rt.mu.Unlock()
		r.advance(2 * time.Second)
		if m := r.get("web").Status.ContainerStatuses[0].State.Terminated.Message; m != "hello\nworld\n" {
			t.Errorf("%q", m)
		}
	})
}

func TestManyPodsAtOnce(t *testing.T) {
	run(t, func(r *rig) {
		for i := range 30 {
			r.create(podOf(fmt.Sprint("p", i), "a: run"))
		}
		r.advance(time.Second)
		for i := range 30 {
			r.want(fmt.Sprint("p", i), "Running a=running+")
		}
	})
}
