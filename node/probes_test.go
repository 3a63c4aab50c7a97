package node

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
)

func execProbe(args ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: args}}
}

func TestProbes(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: execProbe("ready"), PeriodSeconds: 10, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: execProbe("live"), PeriodSeconds: 10, FailureThreshold: 2, SuccessThreshold: 1, TimeoutSeconds: 1,
			TerminationGracePeriodSeconds: ptr(int64(7))}
		var ready, dead atomic.Bool
		r.rt.exec = func(_ string, args []string) (int, string) {
			if args[0] == "ready" && !ready.Load() || args[0] == "live" && dead.Load() {
				return 1, "sorry"
			}
			return 0, ""
		}
		r.create(p)
		r.advance(time.Second)
		r.want("web", "Running a=running")
		if got := cond(r.get("web"), corev1.PodReady); got != "False ContainersNotReady containers with unready status: [a]" {
			t.Error(got)
		}
		ready.Store(true)
		r.advance(time.Second) // it is asked more often until it is ready
		r.want("web", "Running a=running+")
		ready.Store(false)
		r.takeEvents()
		r.advance(25 * time.Second) // two failures: not yet
		r.want("web", "Running a=running+")
		r.advance(10 * time.Second)
		r.want("web", "Running a=running")
		r.wantEvents("Unhealthy: Readiness probe failed: sorry", "Unhealthy: Readiness probe failed: sorry", "Unhealthy: Readiness probe failed: sorry")
		ready.Store(true)
		dead.Store(true)
		r.rt.took()
		r.advance(25 * time.Second)
		r.want("web", "Running a=running(last Error/143)x1+")
		r.wantTook("stop a 7s", "start a")
		if e := strings.Join(r.takeEvents(), "\n"); !strings.Contains(e, "Killing: Container a failed liveness probe, will be restarted") {
			t.Error(e)
		}
	})
}

func TestStartupProbeFailure(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.Containers[0].StartupProbe = &corev1.Probe{ProbeHandler: execProbe("hang"), PeriodSeconds: 2, FailureThreshold: 3, TimeoutSeconds: 1}
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: execProbe("live"), PeriodSeconds: 1, FailureThreshold: 1}
		r.rt.exec = func(string, []string) (int, string) { t.Error("liveness before startup"); return 1, "" }
		r.create(p)
		r.advance(6 * time.Second)
		r.want("web", "Running a=running")
		r.advance(4 * time.Second)
		st := r.get("web").Status.ContainerStatuses[0]
		if st.RestartCount != 1 {
			t.Error(brief(r.get("web")))
		}
		if e := strings.Join(r.takeEvents(), "\n"); !strings.Contains(e, "Killing: Container a failed startup probe, will be restarted") ||
			!strings.Contains(e, `Unhealthy: Startup probe failed: command timed out: "hang" timed out after 1s`) {
			t.Error(e)
		}
	})
}

func TestReadinessGates(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}}
		r.create(p)
		r.advance(time.Second)
		if got := cond(r.get("web"), corev1.PodReady); got != `False ReadinessGatesNotReady corresponding condition of pod readiness gate "example.com/lb" does not exist.` {
			t.Error(got)
		}
		_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "status", func(p *corev1.Pod) bool {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "example.com/lb", Status: corev1.ConditionTrue})
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(time.Second)
		if got := cond(r.get("web"), corev1.PodReady); got != "True" {
			t.Error(got)
		}
		if got := cond(r.get("web"), "example.com/lb"); got != "True" {
			t.Errorf("the condition of another was lost: %s", got)
		}
	})
}

func TestPortsOfProbes(t *testing.T) {
	c := &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}
	for _, tc := range []struct {
		port intstr.IntOrString
		want string
	}{
		{intstr.FromInt32(80), "80 <nil>"},
		{intstr.FromString("web"), "8080 <nil>"},
		{intstr.FromString("9090"), "9090 <nil>"},
		{intstr.FromString("none"), "0 couldn't find port: none in c"},
		{intstr.FromInt32(0), "0 invalid port number: 0"},
	} {
		n, err := portOf(tc.port, c)
		if got := fmt.Sprint(n, " ", err); got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.port, got, tc.want)
		}
	}
}
