package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
)

// planNow is the time of every decision in the tables below.
var planNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// parseView makes a view of a line such as
//
//	policy=Never ready i:one=exit0 s:side=run m:a=none e:dbg=none deleted=30
//
// Containers are role:name=state: i init, s sidecar, m main, e ephemeral. States: none, run, up (its start is
// complete and its startup probe passed; run is up too unless "startup"), startup, created, exitN (long
// ago), crashN (just now, its third time), starting, killing, pull (waits for an image), sick (liveness failed).
func parseView(t *testing.T, line string) *view {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}}
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	v := &view{pod: pod, containers: map[string]*containerView{}, startTime: planNow.Add(-time.Hour)}
	v.volumes.state, v.sandbox.state = done, done
	for _, f := range strings.Fields(line) {
		key, value, _ := strings.Cut(f, "=")
		role, name, isContainer := strings.Cut(key, ":")
		switch {
		case isContainer:
			parseContainer(t, v, role, name, value)
		case key == "policy":
			pod.Spec.RestartPolicy = corev1.RestartPolicy(value)
		case key == "volumes":
			v.volumes = parseStep(value)
		case key == "sandbox":
			v.sandbox = parseStep(value)
		case key == "torn":
			v.torn = parseStep(value)
		case key == "lost":
			v.lost = true
		case key == "gone":
			v.gone = true
		case key == "deleted":
			var grace int64
			fmt.Sscan(value, &grace)
			at := metav1.NewTime(planNow)
			pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace
		case key == "stopped": // that long ago, with 30 s
			d, err := time.ParseDuration(value)
			if err != nil {
				t.Fatal(err)
			}
			v.stop = &stop{at: planNow.Add(-d), grace: 30 * time.Second}
		case key == "phase":
			pod.Status.Phase = corev1.PodPhase(value)
		case key == "deadline":
			var s int64
			fmt.Sscan(value, &s)
			pod.Spec.ActiveDeadlineSeconds = &s
			at := metav1.NewTime(planNow.Add(-time.Minute))
			pod.Status.StartTime = &at
		default:
			t.Fatalf("unknown word %q", f)
		}
	}
	return v
}

func parseStep(s string) step {
	switch s {
	case "busy":
		return step{state: busy}
	case "done":
		return step{state: done}
	case "later":
		return step{until: planNow.Add(7 * time.Second)}
	}
	return step{}
}

func parseContainer(t *testing.T, v *view, role, name, state string) {
	t.Helper()
	spec := corev1.Container{Name: name, Image: "img"}
	c := &containerView{name: name, startup: good, live: good, ready: good}
	switch role {
	case "i":
		c.role = record.RoleInit
		v.pod.Spec.InitContainers = append(v.pod.Spec.InitContainers, spec)
	case "s":
		c.role = record.RoleSidecar
		spec.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		v.pod.Spec.InitContainers = append(v.pod.Spec.InitContainers, spec)
	case "m":
		c.role = record.RoleMain
		v.pod.Spec.Containers = append(v.pod.Spec.Containers, spec)
	case "e":
		c.role = record.RoleEphemeral
		v.pod.Spec.EphemeralContainers = append(v.pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(spec)})
	default:
		t.Fatalf("unknown role %q", role)
	}
	v.containers[name] = c
	inst := &instance{id: name, state: container.StateRunning, complete: true, specImage: "img", started: planNow.Add(-30 * time.Minute)}
	var code int32
	switch {
	case state == "none":
	case state == "run", state == "up":
		c.current = inst
	case state == "startup":
		c.current, c.startup = inst, unknown
	case state == "noStartup":
		c.current, c.startup = inst, bad
	case state == "sick":
		c.current, c.live = inst, bad
	case state == "oldImage":
		inst.specImage = "older"
		c.current = inst
	case state == "created":
		inst.state = container.StateCreated
		c.current = inst
	case state == "starting":
		c.op = starting
	case state == "killing":
		c.current, c.op, c.killBy = inst, killing, planNow.Add(20*time.Second)
	case state == "pull":
		c.fail = &failure{reason: reasonErrImagePull, at: planNow.Add(-5 * time.Second), until: planNow.Add(5 * time.Second), then: reasonImagePullBackOff}
	case scan(state, "exit%d", &code):
		inst.state, inst.exitCode, inst.finished = container.StateExited, code, planNow.Add(-time.Minute)
		c.current = inst
	case scan(state, "crash%d", &code):
		inst.state, inst.exitCode, inst.finished = container.StateExited, code, planNow.Add(-time.Second)
		c.current, c.crash = inst, backoff{delay: 20 * time.Second, last: planNow.Add(-10 * time.Second)}
	default:
		t.Fatalf("unknown state %q", state)
	}
}

func scan(s, format string, v *int32) bool {
	n, err := fmt.Sscanf(s, format, v)
	return n == 1 && err == nil
}

// planText writes a plan as "start a, kill b 30s; wake 5s; stop 30s reason".
func planText(p plan) string {
	var acts []string
	for _, a := range p.actions {
		s := string(a.do)
		if a.container != "" {
			s += " " + a.container
		}
		if a.do == doKill {
			s += " " + a.grace.String()
		}
		acts = append(acts, s)
	}
	out := strings.Join(acts, ", ")
	if !p.wake.IsZero() {
		out += "; wake " + p.wake.Sub(planNow).String()
	}
	if p.stop != nil {
		out += strings.TrimRight(fmt.Sprintf("; stop %s %s", p.stop.grace, p.stop.reason), " ")
	}
	return strings.TrimPrefix(out, "; ")
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct{ name, view, want string }{
		// What comes first.
		{"volumes first", "volumes=todo sandbox=todo m:a=none", "prepare"},
		{"volumes under way", "volumes=busy sandbox=todo m:a=none", ""},
		{"volumes failed", "volumes=later sandbox=todo m:a=none", "wake 7s"},
		{"then the sandbox", "sandbox=todo m:a=none", "sandbox"},
		{"sandbox failed", "sandbox=later m:a=none", "wake 7s"},
		{"then containers, one at a time", "m:a=none m:b=none", "start a"},
		{"the next waits for the start", "m:a=starting m:b=none", ""},
		{"the next in order", "m:a=run m:b=none", "start b"},
		{"one that waits lets others pass", "m:a=pull m:b=none", "start b; wake 5s"},
		{"all up", "m:a=run m:b=run", ""},
		{"left over from an earlier run", "m:a=created", "start a"},
		{"lost sandbox", "lost m:a=exit255", "reset"},
		{"lost sandbox waits for what goes on", "lost m:a=starting", ""},

		// Init containers and sidecars.
		{"init first", "i:one=none i:two=none m:a=none", "start one"},
		{"init runs", "i:one=run i:two=none m:a=none", ""},
		{"next init", "i:one=exit0 i:two=none m:a=none", "start two"},
		{"init done", "i:one=exit0 i:two=exit0 m:a=none", "start a"},
		{"init failed, again", "i:one=exit1 m:a=none", "start one"},
		{"init failed, later", "i:one=crash1 m:a=none", "wake 19s"},
		{"init failed for good", "policy=Never i:one=exit1 m:a=none", "teardown; stop 30s"},
		{"init is not asked again", "i:one=exit1 m:a=run", ""},
		{"sidecar before the next init", "s:side=none i:two=none m:a=none", "start side"},
		{"sidecar not up yet", "s:side=startup i:two=none m:a=none", ""},
		{"sidecar up", "s:side=up i:two=none m:a=none", "start two"},
		{"sidecar up, main", "s:side=up m:a=none", "start a"},
		{"sidecar fell behind an init that runs", "s:side=exit1 i:two=run m:a=none", "start side"},
		{"sidecar fell beside main", "s:side=exit0 m:a=run", "start side"},
		{"sidecar crashes beside main", "s:side=crash1 m:a=run", "wake 19s"},
		{"sidecar restarts though the pod never does", "policy=Never s:side=exit0 m:a=run", "start side"},
		{"sidecar whose startup failed", "s:side=noStartup i:two=none m:a=none", "kill side 30s"},

		// Restarts.
		{"always", "m:a=exit0 m:b=run", "start a"},
		{"crash loop", "m:a=crash1 m:b=run", "wake 19s"},
		{"on failure", "policy=OnFailure m:a=exit0 m:b=exit3", "start b"},
		{"on failure, all well", "policy=OnFailure m:a=exit0 m:b=exit0", "teardown; stop 30s"},
		{"never", "policy=Never m:a=exit1 m:b=run", ""},
		{"never, all ended", "policy=Never m:a=exit1 m:b=exit0", "teardown; stop 30s"},
		{"one not started yet", "policy=Never m:a=exit0 m:b=pull", "wake 5s"},
		{"ended but for its sidecar", "policy=Never s:side=up m:a=exit0", "kill side 30s; stop 30s"},
		{"ephemeral ones do not hold it up", "policy=Never m:a=exit0 e:dbg=run", "kill dbg 30s; stop 30s"},

		// Kills that lead to a restart.
		{"liveness", "m:a=sick m:b=run", "kill a 30s"},
		{"startup", "m:a=noStartup", "kill a 30s"},
		{"other image", "m:a=oldImage", "kill a 30s"},
		{"kill under way", "m:a=killing", ""},

		// Ephemeral containers.
		{"ephemeral", "m:a=run e:dbg=none", "start dbg"},
		{"ephemeral before init", "i:one=none m:a=none e:dbg=none", "start dbg"},
		{"ephemeral ended for good", "m:a=run e:dbg=exit1", ""},

		// The end.
		{"deleted", "deleted=30 m:a=run m:b=run", "kill a 30s, kill b 30s; stop 30s"},
		{"deleted at once", "deleted=0 m:a=run", "kill a 1s; stop 1s"},
		{"deleted while it starts", "deleted=30 m:a=starting m:b=run", "cancel, kill b 30s; stop 30s"},
		{"deleted while volumes are made", "deleted=30 volumes=busy m:a=none", "cancel; stop 30s"},
		{"deleted before anything", "deleted=30 volumes=todo sandbox=todo m:a=none", "teardown; stop 30s"},
		{"sidecars wait", "deleted=30 s:one=up s:two=up m:a=run", "kill a 30s; wake 30s; stop 30s"},
		{"last sidecar first", "deleted=30 stopped=10s s:one=up s:two=up m:a=exit0", "kill two 20s; wake 20s"},
		{"then the one before", "deleted=30 stopped=10s s:one=up s:two=exit0 m:a=exit0", "kill one 20s"},
		{"no time left for sidecars", "deleted=30 stopped=30s s:one=up s:two=up m:a=killing", "kill a 0s, kill two 0s, kill one 0s"},
		{"less time than before", "deleted=3 stopped=5s m:a=killing", "kill a 3s; stop 3s"},
		{"more time changes nothing", "deleted=60 stopped=20s m:a=killing", "kill a 10s"},
		{"not less", "deleted=30 stopped=5s m:a=killing", ""},
		{"torn down", "deleted=30 stopped=5s m:a=exit0", "teardown"},
		{"tear down failed", "deleted=30 stopped=5s torn=later m:a=exit0", "wake 7s"},
		{"confirmed", "deleted=30 stopped=5s torn=done m:a=exit0", "forget"},
		{"ended, not deleted", "policy=Never stopped=5s torn=done m:a=exit0", ""},
		{"removed by force", "gone m:a=run", "kill a 30s; stop 30s"},
		{"removed by force, at the end", "gone stopped=5s torn=done m:a=exit0", "forget"},
		{"nothing is restarted any more", "deleted=30 stopped=5s m:a=exit1 m:b=killing", ""},
		{"deadline to come", "deadline=90 m:a=run", "wake 30s"},
		{"deadline", "deadline=60 m:a=run", "kill a 30s; stop 30s DeadlineExceeded"},
	} {
		if got := planText(decide(parseView(t, tc.view), planNow)); got != tc.want {
			t.Errorf("%s (%s):\n got %q\nwant %q", tc.name, tc.view, got, tc.want)
		}
	}
}

// TestPlanIsStable decides again after carrying each plan out in thought: no view may want the
// same thing twice while it goes on.
func TestPlanIsStable(t *testing.T) {
	states := []string{"none", "run", "startup", "sick", "exit0", "exit1", "crash1", "starting", "killing", "pull"}
	for _, policy := range []string{"Always", "OnFailure", "Never"} {
		for _, a := range states {
			for _, s := range states {
				for _, end := range []string{"", "deleted=30", "deleted=30 stopped=5s", "gone"} {
					line := fmt.Sprintf("policy=%s %s s:side=%s m:a=%s", policy, end, s, a)
					v := parseView(t, line)
					p := decide(v, planNow)
					if p.stop != nil {
						v.stop = p.stop
					}
					for _, act := range p.actions {
						pretend(v, act)
					}
					for _, act := range decide(v, planNow).actions {
						if act.do != doCancel {
							t.Errorf("%s: first %q, then again %s %s", line, planText(p), act.do, act.container)
						}
					}
				}
			}
		}
	}
}

// pretend notes that an action has begun.
func pretend(v *view, act action) {
	switch act.do {
	case doPrepare:
		v.volumes.state = busy
	case doSandbox, doReset:
		v.sandbox.state = busy
	case doStart:
		v.containers[act.container].op = starting
	case doKill:
		c := v.containers[act.container]
		c.op, c.killBy = killing, planNow.Add(act.grace)
	case doTeardown:
		v.torn.state = busy
	case doForget:
		v.forgotten.state = busy
	}
}

func TestPhases(t *testing.T) {
	for _, tc := range []struct{ view, want string }{
		{"m:a=none", "Pending"},
		{"m:a=run", "Running"},
		{"m:a=run m:b=none", "Pending"},
		{"m:a=run m:b=exit1", "Running"},
		{"m:a=crash1", "Running"},
		{"m:a=exit0", "Running"},
		{"i:one=run m:a=none", "Pending"},
		{"i:one=exit0 m:a=none", "Pending"},
		{"i:one=crash1 m:a=none", "Pending"},
		{"i:one=exit0 m:a=run", "Running"},
		{"s:side=startup m:a=none", "Pending"},
		{"s:side=crash1 m:a=run", "Running"},
		{"policy=Never stopped=1s torn=done m:a=exit0", "Succeeded"},
		{"policy=Never stopped=1s torn=done m:a=exit0 m:b=exit2", "Failed"},
		{"policy=Never stopped=1s s:side=killing m:a=exit0", "Running"}, // until nothing runs
		{"phase=Failed m:a=run", "Running"},                             // what somebody else wrote
		{"phase=Failed policy=Never stopped=1s torn=done m:a=exit0", "Failed"},
		{"policy=Never stopped=1s torn=done s:side=exit143 m:a=exit0", "Succeeded"},
		{"policy=Never stopped=1s torn=done i:one=exit1 m:a=none", "Failed"},
		{"deleted=30 stopped=1s torn=done m:a=none", "Failed"},
		{"deleted=30 stopped=1s torn=done m:a=exit0", "Succeeded"},
		{"deleted=30 stopped=1s torn=done m:a=exit143", "Failed"},
	} {
		v := parseView(t, tc.view)
		st := makeStatus(v, nil, planNow)
		if got := string(st.Phase); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.view, got, tc.want)
		}
	}
	v := parseView(t, "stopped=1s m:a=killing")
	v.stop.reason = reasonDeadline
	if st := makeStatus(v, nil, planNow); st.Phase != "Running" || st.Reason != "" {
		t.Errorf("the reason of an end must come with the phase: got %s %q", st.Phase, st.Reason)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := planNow
	if !b.until(now).IsZero() {
		t.Error("the first restart must not wait")
	}
	for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		b.next(now, now)
		if got := b.until(now).Sub(now); got != want*time.Second {
			t.Errorf("waits %v, want %v", got, want*time.Second)
		}
		now = now.Add(b.delay)
	}
	now = now.Add(backoffForget + time.Second)
	if !b.until(now).IsZero() {
		t.Error("a long life must make up for it")
	}
	b.next(now, now)
	if b.delay != backoffFirst {
		t.Errorf("begins again with %v", b.delay)
	}
}
