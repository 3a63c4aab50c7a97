package eventttl_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/eventttl"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestAnEventLivesOneHourFromWhenItLastHappened(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("events", &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "once"},
			InvolvedObject: corev1.ObjectReference{Namespace: "default", Kind: "Pod", Name: "p"}, Type: "Normal"})
		h.Create("events", &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "again"},
			InvolvedObject: corev1.ObjectReference{Namespace: "default", Kind: "Pod", Name: "p"}, Type: "Normal"})
		h.Advance(40 * time.Minute)
		reconciletest.Change(h, client.Events, "default", "again", "", func(ev *corev1.Event) { ev.LastTimestamp = metav1.Now() })
		h.Advance(19 * time.Minute)
		if n := h.Snapshot().Count("events", ""); n != 2 {
			t.Errorf("%d events after 59 minutes", n)
		}
		h.Advance(2 * time.Minute)
		if _, ok := client.Events.Get(h.Snapshot(), "default", "once"); ok {
			t.Error("the event is there after 61 minutes")
		}
		reconciletest.Get(h, client.Events, "default", "again")
		h.Advance(40 * time.Minute)
		if n := h.Snapshot().Count("events", ""); n != 0 {
			t.Errorf("%d events after 101 minutes", n)
		}
	}, eventttl.Loop(eventttl.DefaultTTL))
}
