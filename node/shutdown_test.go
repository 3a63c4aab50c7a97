package node

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestShutdownGroups(t *testing.T) {
	priorities := map[*worker]int32{}
	var all []*worker
	for _, p := range []int32{-5, 0, 7, criticalPriority - 1, criticalPriority, criticalPriority + 1000} {
		w := &worker{}
		priorities[w] = p
		all = append(all, w)
	}
	periods := ShutdownPeriods(30*time.Second, 10*time.Second)
	groups := shutdownGroups([]ShutdownPeriod{periods[1], periods[0]}, all, func(w *worker) int32 { return priorities[w] })
	if len(groups) != 2 || groups[0].grace != 20*time.Second || groups[1].grace != 10*time.Second || len(groups[0].pods) != 4 || len(groups[1].pods) != 2 {
		t.Errorf("groups: %+v", groups)
	}
	if ShutdownPeriods(0, 0) != nil || ShutdownPeriods(time.Second, 2*time.Second) != nil {
		t.Error("there is a graceful shutdown without time for it")
	}
}

func TestShutdownStop(t *testing.T) {
	now := time.Unix(1000, 0)
	group, own := 10*time.Second, int64(30)
	v := &view{pod: &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &own}}}
	if s := shutdownStop(v, now); s != nil {
		t.Fatalf("a pod ends without a shutdown: %+v", s)
	}
	v.shutdown = &group
	s := shutdownStop(v, now)
	if s == nil || s.grace != group || s.reason != "Terminated" || s.message != "Pod was terminated in response to imminent node shutdown." {
		t.Fatalf("stop: %+v", s)
	}
	v.stop = s
	if again := shutdownStop(v, now.Add(time.Second)); again != nil {
		t.Errorf("an end that goes on is put off: %+v", again)
	}
	// A pod that is being deleted anyway ends sooner, and does not fail for it.
	v.stop = &stop{at: now, grace: 30 * time.Second}
	if s := shutdownStop(v, now); s == nil || s.grace != group || s.reason != "" {
		t.Errorf("a deleted pod: %+v", s)
	}
}
