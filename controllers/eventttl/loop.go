// Package eventttl forgets events some time after they last happened.
//
// It owns the end of core/v1 Events, and writes nothing else. An event that
// happens again lives on from then.
package eventttl

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// DefaultTTL is how long upstream's API server keeps events.
const DefaultTTL = time.Hour

// Loop is the loop that deletes events which last happened ttl ago. Its keys are events; each waits for its
// time without a pass in between.
func Loop(ttl time.Duration) reconcile.Loop {
	return reconcile.Loop{
		Name:    "event-ttl-controller",
		Inputs:  []reconcile.Input{{Resource: client.Events.Name}},
		Outputs: []reconcile.Output{{Resource: client.Events.Name, Verbs: []reconcile.Verb{reconcile.Delete}}},
		Workers: 4,
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			ev, ok := client.Events.Get(s, key.Namespace, key.Name)
			if !ok || ev.DeletionTimestamp != nil {
				return reconcile.Plan{}, nil
			}
			if left := last(ev).Add(ttl).Sub(now); left > 0 {
				return reconcile.Plan{After: left}, nil
			}
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Events.Name,
				Namespace: ev.Namespace, Name: ev.Name, UID: ev.UID}}}, nil
		},
	}
}

// last is when an event last happened, as far as it says.
func last(ev *corev1.Event) time.Time {
	at := ev.CreationTimestamp.Time
	times := []time.Time{ev.FirstTimestamp.Time, ev.LastTimestamp.Time, ev.EventTime.Time}
	if ev.Series != nil {
		times = append(times, ev.Series.LastObservedTime.Time)
	}
	for _, t := range times {
		if t.After(at) {
			at = t
		}
	}
	return at
}
