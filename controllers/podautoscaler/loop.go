package podautoscaler

import (
	"context"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Config is what the loop is made of.
type Config struct {
	// Registry knows what can be scaled.
	Registry *api.Registry
	// Metrics answers what autoscalers ask.
	Metrics Metrics
	// Tuning is the cluster's; what is zero is upstream's default.
	Tuning Tuning
}

// Tuning are the numbers that a cluster chooses for all autoscalers: flags of kube-controller-manager.
type Tuning struct {
	// Sync is the time from one turn of an autoscaler to the next, 15 s if zero.
	Sync time.Duration
	// DownscaleStabilization is how long a higher recommendation holds back scaling down where the
	// autoscaler says nothing, 5 min if zero.
	DownscaleStabilization time.Duration
	// Tolerance is how far from 1 the ratio of usage to target may be without a change, 0.1 if zero.
	Tolerance float64
	// CPUInitialization is for how long after its start a pod's CPU use counts only while it is ready, 5 min if zero.
	CPUInitialization time.Duration
	// InitialReadiness is until when after its start a pod that becomes unready is taken for one that has never
	// been ready, 30 s if zero.
	InitialReadiness time.Duration
}

func (t Tuning) complete() Tuning {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&t.Sync, 15*time.Second)
	or(&t.DownscaleStabilization, 5*time.Minute)
	or(&t.CPUInitialization, 5*time.Minute)
	or(&t.InitialReadiness, 30*time.Second)
	if t.Tolerance == 0 {
		t.Tolerance = 0.1
	}
	return t
}

// Loop is the horizontal pod autoscaler.
func Loop(cfg Config) reconcile.Loop {
	l := &loop{Config: cfg, memory: newMemory()}
	l.Tuning = l.Tuning.complete()
	return reconcile.Loop{
		Name: "horizontal-pod-autoscaler-controller",
		// Upstream's account and event source are not named as the controller is.
		ServiceAccount: "horizontal-pod-autoscaler",
		Source:         "horizontal-pod-autoscaler",
		Workers:        5,
		Inputs:         []reconcile.Input{{Resource: client.HorizontalAutoscalers.Name, Keys: specChanged}},
		Outputs: []reconcile.Output{
			{Resource: reconcile.AnyResource, Subresource: "scale", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.HorizontalAutoscalers.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan:   l.plan,
		Apply:  l.apply,
		Failed: l.failed,
	}
}

// specChanged gives the autoscaler's key unless only its status or metadata changed: for those its timer is enough.
func specChanged(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted && ev.Prev != nil {
		was, ok := ev.Prev.Object.(*autoscalingv2.HorizontalPodAutoscaler)
		is := ev.Entry.Object.(*autoscalingv2.HorizontalPodAutoscaler)
		if ok && was.UID == is.UID && was.Generation == is.Generation {
			return nil
		}
	}
	return []reconcile.Key{{Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
}

type loop struct {
	Config
	memory *memory
	pods   podstate.Finder
}

// The effects of a plan.
type (
	// ask puts questions and notes the answers.
	ask struct {
		at       time.Time
		uid      string
		about    about
		selector labels.Selector
		metrics  []autoscalingv2.MetricSpec
	}
	// note keeps the recommendations that a decision leaves behind.
	note struct {
		uid             string
		selector        labels.Selector
		recommendations []recommendation
	}
	// forget is for an autoscaler that is gone.
	forget struct{}
)

// plan is reconcile.Loop.Plan.
func (l *loop) plan(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	hpa, ok := client.HorizontalAutoscalers.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{Effect: forget{}}, nil
	}
	v := l.look(s, key, hpa, now)
	d := decide(v)
	if d.ask {
		return reconcile.Plan{After: 1, Effect: ask{at: now, uid: string(hpa.UID), about: v.about(), selector: v.selector(), metrics: hpa.Spec.Metrics}}, nil
	}
	plan := reconcile.Plan{
		Effect: note{uid: string(hpa.UID), selector: v.selector(), recommendations: d.recommendations},
		After:  l.Tuning.Sync,
	}
	if v.answers != nil {
		plan.After = max(v.asked.Add(l.Tuning.Sync).Sub(now), 1)
	}
	for _, e := range d.events {
		plan.Events = append(plan.Events, *event(hpa, e))
	}
	if d.rescale {
		plan.Writes = append(plan.Writes, l.rescale(key, v, d))
	}
	return withStatus(plan, hpa, d), nil
}

// failed is reconcile.Loop.Failed: a target that still has to be scaled is one whose scale could not be written.
func (l *loop) failed(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
	hpa, ok := client.HorizontalAutoscalers.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{}
	}
	d := decide(l.look(s, key, hpa, now))
	if d.ask || !d.rescale {
		return reconcile.Plan{}
	}
	return withStatus(reconcile.Plan{}, hpa, d.refused(hpa, now, err))
}

// look collects what a decision stands on.
func (l *loop) look(s store.Snapshot, key reconcile.Key, hpa *autoscalingv2.HorizontalPodAutoscaler, now time.Time) *view {
	v := &view{hpa: hpa, now: now, tuning: l.Tuning, target: find(s, l.Registry, hpa)}
	r := l.memory.of(key, string(hpa.UID))
	v.recommendations, v.ups, v.downs = r.recommendations, r.ups, r.downs
	if v.target.parsed == nil {
		return v
	}
	if r.answers != nil && r.about == v.about() && !now.Before(r.asked) && now.Sub(r.asked) < l.Tuning.Sync {
		v.answers, v.asked = r.answers, r.asked
	}
	if v.answers == nil {
		return v // it will be asked first, and looked at again
	}
	v.pods = l.pods.Find(s, hpa.Namespace, v.target.parsed)
	v.rivals = l.memory.rivals(key, v.pods)
	return v
}

// rescale is the write that a decision asks for.
func (l *loop) rescale(key reconcile.Key, v *view, d decision) reconcile.Write {
	hpa, change := v.hpa, change{at: v.now, by: d.replicas - d.current}
	return reconcile.Write{
		Verb: reconcile.Update, Resource: v.target.kind.Name(), Subresource: "scale", Object: v.target.resized(d.replicas),
		OnSuccess: func(api.Object) *reconcile.Event {
			l.memory.scaled(key, string(hpa.UID), change)
			return event(hpa, d.scaled())
		},
		OnFailure: func(err error) *reconcile.Event { return event(hpa, d.notScaled(err)) },
	}
}

// withStatus adds the write of a status that is not as it was.
func withStatus(plan reconcile.Plan, hpa *autoscalingv2.HorizontalPodAutoscaler, d decision) reconcile.Plan {
	if equality.Semantic.DeepEqual(&hpa.Status, &d.status) {
		return plan
	}
	out := hpa.DeepCopy()
	out.Status = d.status
	plan.Writes = append(plan.Writes, reconcile.Write{
		Verb: reconcile.Update, Resource: client.HorizontalAutoscalers.Name, Subresource: "status", Object: out,
		OnFailure: func(err error) *reconcile.Event {
			return event(hpa, happening{corev1.EventTypeWarning, "FailedUpdateStatus", err.Error()})
		},
	})
	return plan
}

func event(hpa *autoscalingv2.HorizontalPodAutoscaler, h happening) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("autoscaling/v2", "HorizontalPodAutoscaler", hpa), Type: h.kind, Reason: h.reason, Message: h.message}
}

// apply is reconcile.Loop.Apply.
func (l *loop) apply(ctx context.Context, key reconcile.Key, effect any) error {
	switch e := effect.(type) {
	case forget:
		l.memory.forget(key)
		l.pods.Forget()
	case note:
		l.memory.note(key, e)
	case ask:
		l.memory.answered(key, e, l.Metrics.answer(ctx, key.Namespace, e.selector, e.metrics))
	}
	return nil
}
