package node

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/container"
)

func TestRestartOfTheAgent(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run", "b: exit 5 3s")
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: execProbe("ready"), PeriodSeconds: 10, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
		p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		r.create(p)
		r.create(podOf("orphan", "a: run"))
		r.advance(time.Second)
		before := r.rt.byName("a").Config.ID
		r.want("web", "Running a=running+ b=running+")
		addr := r.get("web").Status.PodIP
		version := r.get("web").ResourceVersion
		r.stop()
		// While nobody looks: one container exits, one pod is removed by force.
		r.rt.took()
		_ = before
		r.delete("orphan", ptr(int64(0)))
		r.start()
		r.advance(100 * time.Millisecond)
		if got := r.get("web").ResourceVersion; got != version {
			t.Errorf("adoption wrote a status: %s", brief(r.get("web")))
		}
		r.wantTook("stop a 30s", "remove sandbox") // the orphan's
		r.advance(3 * time.Second)
		r.want("web", "Running a=running+ b=running(last Error/5)x1+")
		r.stop()
		r.advance(5 * time.Second) // b exits again meanwhile
		r.start()
		r.advance(100 * time.Millisecond)
		r.wantTook("start b", "start b")
		if got := r.get("web").Status.PodIP; got != addr {
			t.Errorf("address changed from %s to %s", addr, got)
		}
		r.delete("web", nil)
		r.wantGone("web")
	})
}

func TestRestartAfterTheSandboxIsLost(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.InitContainers = []corev1.Container{containerOf("one: exit 0")}
		r.create(p)
		r.create(podOf("never", "a: run"))
		never := podOf("never2", "a: run")
		never.Spec.RestartPolicy = corev1.RestartPolicyNever
		r.create(never)
		r.advance(time.Second)
		r.stop()
		if err := r.a.Halt(context.Background(), time.Second); err != nil { // as a reboot
			t.Fatal(err)
		}
		r.rt.took()
		r.start()
		r.advance(time.Second)
		r.want("web", "Running one=Completed/0(last Completed/0)x1+ a=running(last ContainerStatusUnknown/137)x1+")
		r.want("never2", "Failed a=ContainerStatusUnknown/137")
	})
}

func TestLiveSandboxLoss(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		r.create(p)
		r.advance(time.Second)
		r.rt.took()
		r.takeEvents()
		s := r.rt.Sandboxes()[0].Config.ID
		r.rt.mu.Lock()
		r.rt.sandboxes[s].State = container.SandboxNotReady
		for _, c := range r.rt.containers {
			r.rt.end(c, 137, 9)
		}
		r.rt.mu.Unlock()
		r.rt.emit(container.Event{Type: container.EventSandboxLost, SandboxID: s})
		r.advance(time.Second)
		r.want("web", "Running a=running(last Error/137)x1+")
		r.wantTook("remove sandbox", "sandbox", "start a")
		if e := strings.Join(r.takeEvents(), "\n"); !strings.HasPrefix(e, "SandboxChanged: Pod sandbox changed, it will be killed and re-created.") {
			t.Error(e)
		}
	})
}
