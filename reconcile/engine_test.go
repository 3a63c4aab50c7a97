package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

func configMap(name string, data ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{}}
	for i := 0; i+1 < len(data); i += 2 {
		cm.Data[data[i]] = data[i+1]
	}
	return cm
}

// passes notes when a loop planned for which key.
type passes struct {
	mu    sync.Mutex
	times map[string][]time.Time
	busy  map[string]bool
}

func (p *passes) begin(t *testing.T, key reconcile.Key, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.times == nil {
		p.times, p.busy = map[string][]time.Time{}, map[string]bool{}
	}
	if p.busy[key.Name] {
		t.Errorf("two passes of %s at once", key)
	}
	p.busy[key.Name] = true
	p.times[key.Name] = append(p.times[key.Name], now)
}

func (p *passes) end(key reconcile.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[key.Name] = false
}

func (p *passes) of(name string) []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]time.Time(nil), p.times[name]...)
}

func TestWakesMergeWhileAPassIsUnderWay(t *testing.T) {
	var p passes
	release := make(chan struct{})
	loop := reconcile.Loop{
		Name:    "slow",
		Inputs:  []reconcile.Input{{Resource: "configmaps"}},
		Workers: 4,
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			p.begin(t, key, now)
			return reconcile.Plan{Effect: true}, nil
		},
		Apply: func(ctx context.Context, key reconcile.Key, _ any) error {
			defer p.end(key)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		},
	}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		release = make(chan struct{}) // of the bubble
		h.Create("configmaps", configMap("a"))
		h.Settle()
		for i := range 10 {
			reconciletest.Change(h, client.ConfigMaps, "default", "a", "", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"n": fmt.Sprint(i)} })
		}
		last := h.Snapshot().Revision()
		h.Settle()
		if got := h.Engine.CaughtUp("slow"); got >= last {
			t.Errorf("caught up with %d of %d while the first pass is under way", got, last)
		}
		close(release)
		if err := h.Engine.WaitFor(context.Background(), last); err != nil {
			t.Fatal(err)
		}
		if n := len(p.of("a")); n != 2 {
			t.Errorf("%d passes, want one for the creation and one for all ten changes", n)
		}
	}, loop)
}

func TestFailuresBackOffAndSuccessResets(t *testing.T) {
	var p passes
	fail := 6
	loop := reconcile.Loop{
		Name:   "failing",
		Inputs: []reconcile.Input{{Resource: "configmaps"}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			p.begin(t, key, now)
			defer p.end(key)
			if len(p.times[key.Name]) <= fail {
				return reconcile.Plan{}, errors.New("not yet")
			}
			return reconcile.Plan{}, nil
		},
	}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("configmaps", configMap("a"))
		if _, err := h.Engine.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		times := p.of("a")
		if len(times) != fail+1 {
			t.Fatalf("%d passes, want %d", len(times), fail+1)
		}
		for i := 1; i < len(times); i++ {
			full := 5 * time.Millisecond << (i - 1)
			if d := times[i].Sub(times[i-1]); d > full || d < full*9/10 {
				t.Errorf("pass %d came after %v, want %v less at most a tenth", i, d, full)
			}
		}
		if h := h.Engine.Health()[0]; h.Failing != 0 || h.Errors != uint64(fail) || h.Passes != uint64(fail+1) {
			t.Errorf("health: %+v", h)
		}
	}, loop)
}

func TestAfterWakesOnceAndAnEventReplacesIt(t *testing.T) {
	var p passes
	loop := reconcile.Loop{
		Name:   "timed",
		Inputs: []reconcile.Input{{Resource: "configmaps"}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			p.begin(t, key, now)
			defer p.end(key)
			cm, ok := client.ConfigMaps.Get(s, key.Namespace, key.Name)
			if !ok || cm.Data["stop"] != "" {
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{After: time.Minute}, nil
		},
	}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("configmaps", configMap("a"))
		h.Advance(150 * time.Second) // passes at 0, 60, 120
		reconciletest.Change(h, client.ConfigMaps, "default", "a", "", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"n": "1"} })
		h.Settle() // 150: the timer moves to 210
		h.Advance(59 * time.Second)
		if n := len(p.of("a")); n != 4 {
			t.Errorf("%d passes at 209 s, want 4", n)
		}
		h.Advance(2 * time.Second)
		if n := len(p.of("a")); n != 5 {
			t.Errorf("%d passes at 211 s, want 5", n)
		}
		reconciletest.Change(h, client.ConfigMaps, "default", "a", "", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"stop": "1"} })
		h.Advance(time.Hour)
		if n := len(p.of("a")); n != 6 {
			t.Errorf("%d passes after the timer was not asked for again, want 6", n)
		}
	}, loop)
}

func TestConflictPlansAgainAtOnce(t *testing.T) {
	var p passes
	loop := reconcile.Loop{
		Name:    "writer",
		Inputs:  []reconcile.Input{{Resource: "configmaps"}},
		Outputs: []reconcile.Output{{Resource: "configmaps", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			p.begin(t, key, now)
			defer p.end(key)
			cm, ok := client.ConfigMaps.Get(s, key.Namespace, key.Name)
			if !ok || cm.Data["seen"] == cm.Data["n"] {
				return reconcile.Plan{}, nil
			}
			cm = cm.DeepCopy()
			cm.Data["seen"] = cm.Data["n"]
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: "configmaps", Object: cm}}}, nil
		},
	}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		refuse := 3
		h.Refuse = func(verb string, ref client.Ref, obj api.Object) error {
			if verb == "update" && refuse > 0 {
				refuse--
				return apierrors.NewConflict(h.Registry.ByName("configmaps").GroupResource(), ref.Name, errors.New("another was faster"))
			}
			return nil
		}
		start := time.Now()
		h.Create("configmaps", configMap("a", "n", "1"))
		if _, err := h.Engine.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := reconciletest.Get(h, client.ConfigMaps, "default", "a").Data["seen"]; got != "1" {
			t.Errorf("seen %q", got)
		}
		if time.Since(start) != 0 {
			t.Errorf("conflicts took %v", time.Since(start))
		}
		if c := h.Engine.Health()[0].Conflicts; c != 3 {
			t.Errorf("%d conflicts", c)
		}
	}, loop)
}

func TestUndeclaredWriteIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		engine := reconcile.NewEngine(c, quiet(), nil) // not strict
		engine.Add(reconcile.Loop{
			Name:    "thief",
			Always:  []reconcile.Key{{Name: "x"}},
			Outputs: []reconcile.Output{{Resource: "namespaces", Verbs: []reconcile.Verb{reconcile.Create}}},
			Plan: func(store.Snapshot, reconcile.Key, time.Time) (reconcile.Plan, error) {
				return reconcile.Plan{Writes: []reconcile.Write{
					{Verb: reconcile.Create, Resource: "namespaces", Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}},
					{Verb: reconcile.Delete, Resource: "namespaces", Name: "n"},
				}}, nil
			},
		})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- engine.Run(ctx) }()
		synctest.Wait()
		if err := engine.Healthy(); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("healthy: %v", err)
		}
		if n := c.Snapshot().Count("namespaces", ""); n != 0 {
			t.Errorf("%d namespaces: a plan that is refused in part must not be carried out in part", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestCompactedHistoryStartsAgainFromASnapshot(t *testing.T) {
	var p passes
	hold := make(chan struct{})
	loop := reconcile.Loop{
		Name: "behind",
		Inputs: []reconcile.Input{{Resource: "configmaps", Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
			if ev.Entry.Name == "block" {
				<-hold
			}
			return reconcile.Self(s, ev)
		}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			p.begin(t, key, now)
			p.end(key)
			return reconcile.Plan{}, nil
		},
	}
	synctest.Test(t, func(t *testing.T) {
		hold = make(chan struct{})
		h := reconciletest.New(t, reconciletest.NewCluster(20), loop)
		defer h.Stop()
		h.Create("configmaps", configMap("block"))
		h.Settle()
		for i := range 100 {
			h.Create("configmaps", configMap(fmt.Sprint("cm-", i)))
		}
		close(hold)
		if _, err := h.Engine.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if len(p.of(fmt.Sprint("cm-", i))) == 0 {
				t.Fatalf("no pass for cm-%d", i)
			}
		}
	})
}

func TestParallelCreatesStopAfterAFailure(t *testing.T) {
	loop := reconcile.Loop{
		Name:    "many",
		Always:  []reconcile.Key{{Name: "go"}},
		Outputs: []reconcile.Output{{Resource: "configmaps", Verbs: []reconcile.Verb{reconcile.Create}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			plan := reconcile.Plan{Parallel: true}
			for i := range 100 {
				plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Create, Resource: "configmaps", Object: configMap(fmt.Sprint("cm-", i))})
			}
			return plan, nil
		},
	}
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		var mu sync.Mutex
		tried := 0
		c.Refuse = func(verb string, ref client.Ref, obj api.Object) error {
			mu.Lock()
			defer mu.Unlock()
			if ref.Resource == "configmaps" {
				if tried++; tried > 5 {
					return apierrors.NewForbidden(c.Registry.ByName("configmaps").GroupResource(), ref.Name, errors.New("exceeded quota"))
				}
			}
			return nil
		}
		h := reconciletest.New(t, c, loop)
		h.Stop()
		if tried != 7 { // batches of 1, 2 and 4
			t.Errorf("%d creates were tried, want 7", tried)
		}
	})
}

func TestEventsAreCountedCombinedAndHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c)
		defer h.Stop()
		pod := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "default", Name: "web", UID: "1"}
		record := func(ref corev1.ObjectReference, message string) {
			h.Engine.Recorder().Record(client.User{Name: "tester"}, corev1.EventSource{Component: "test"},
				reconcile.Event{Regarding: ref, Type: "Normal", Reason: "Because", Message: message})
			h.Settle()
		}
		first := time.Now()
		record(pod, "same")
		h.Advance(time.Minute)
		again := pod
		again.ResourceVersion = "77" // does not make it another object
		record(again, "same")
		events := reconciletest.All(h, client.Events, "default")
		if len(events) != 1 || events[0].Count != 2 || !events[0].LastTimestamp.Time.Equal(time.Now()) || !events[0].FirstTimestamp.Time.Equal(first) {
			t.Fatalf("repeated event: %+v", events)
		}
		if want := fmt.Sprintf("web.%x", first.UnixNano()); events[0].Name != want {
			t.Errorf("name %s, want %s", events[0].Name, want)
		}
		other := pod
		other.Name = "db"
		for i := range 15 {
			record(other, fmt.Sprint("message ", i))
		}
		lines := h.EventsOf("Pod")
		if got := lines[len(lines)-1]; got != "Normal Because (combined from similar events): message 14 (x5)" {
			t.Errorf("last event %q of %d", got, len(lines))
		}
		for range 40 {
			record(corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "spam"}, "again")
		}
		for _, ev := range reconciletest.All(h, client.Events, "default") {
			if ev.InvolvedObject.Name == "spam" && ev.Count != 25 {
				t.Errorf("a flood left count %d, want 25", ev.Count)
			}
		}
	})
}

func TestGraph(t *testing.T) {
	e := reconcile.NewEngine(nil, quiet(), nil)
	e.Add(reconcile.Loop{
		Name: "a-controller", Inputs: []reconcile.Input{{Resource: "pods"}},
		Outputs: []reconcile.Output{{Resource: "pods", Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan:    func(store.Snapshot, reconcile.Key, time.Time) (reconcile.Plan, error) { return reconcile.Plan{}, nil },
	})
	want := `digraph loops {
  rankdir=LR;
  "a-controller" [shape=box];
  "pods" -> "a-controller";
  "a-controller" -> "pods" [label="/status update"];
  "pods" [shape=ellipse];
}
`
	if got := e.Graph(); got != want {
		t.Errorf("graph:\n%s", got)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestMetrics(t *testing.T) {
	loop := reconcile.Loop{
		Name: "writer", Inputs: []reconcile.Input{{Resource: "configmaps"}},
		Plan: func(store.Snapshot, reconcile.Key, time.Time) (reconcile.Plan, error) {
			return reconcile.Plan{}, errors.New("never")
		},
	}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("configmaps", configMap("a"))
		h.Settle()
		var b strings.Builder
		h.Engine.WriteMetrics(&b)
		for _, line := range []string{`workqueue_depth{name="writer"} 0`, `workqueue_retries_total{name="writer"} 1`, `coracle_loop_failing{name="writer"} 1`, "coracle_events_dropped_total 0"} {
			if !strings.Contains(b.String(), line+"\n") {
				t.Errorf("no line %q in\n%s", line, b.String())
			}
		}
	}, loop)
}
