package node

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
)

// What a graceful shutdown says, in upstream's words.
const (
	reasonShutdown     = "NodeShutdown"
	messageShutdown    = "Pod was rejected as the node is shutting down."
	reasonTerminated   = "Terminated"
	messageTerminated  = "Pod was terminated in response to imminent node shutdown."
	eventShutdown      = "Shutdown"
	messageDetected    = "Shutdown manager detected shutdown event"
	notReadyShutdown   = "node is shutting down"
	criticalPriority   = int32(2_000_000_000)
	reasonNodeNotReady = "KubeletNotReady"
)

// ShutdownPeriod is how much of a graceful shutdown pods have whose priority is Priority or more, up to that of the next
// one (KEP-2712).
type ShutdownPeriod struct {
	Priority int32
	Grace    time.Duration
}

// ShutdownPeriods gives the periods of the two settings of KEP-2000: total is how long a shutdown may take, and the last
// part of it, critical, is for critical pods alone. None if total is zero: there is no graceful shutdown then.
func ShutdownPeriods(total, critical time.Duration) []ShutdownPeriod {
	if total <= 0 || critical > total {
		return nil
	}
	return []ShutdownPeriod{{Priority: 0, Grace: total - critical}, {Priority: criticalPriority, Grace: critical}}
}

// shutdownGroup are the pods that end together.
type shutdownGroup struct {
	grace time.Duration
	pods  []*worker
}

// shutdownGroups sorts pods by the period that they have, those of the lowest priority first. Pods below the lowest period have
// that one. It is pure.
func shutdownGroups(periods []ShutdownPeriod, workers []*worker, priority func(*worker) int32) []shutdownGroup {
	sorted := slices.Clone(periods)
	slices.SortFunc(sorted, func(a, b ShutdownPeriod) int { return cmp.Compare(a.Priority, b.Priority) })
	groups := make([]shutdownGroup, len(sorted))
	for i := range sorted {
		groups[i].grace = sorted[i].Grace.Truncate(time.Second)
	}
	for _, w := range workers {
		at := 0
		for i := range sorted {
			if sorted[i].Priority <= priority(w) {
				at = i
			}
		}
		groups[at].pods = append(groups[at].pods, w)
	}
	return groups
}

// Shutdown ends the node's pods for good, as kubelet does when the machine is about to go (KEP-2000): the node is not Ready any more
// and takes no pods, then pods end group by group, preStop hooks and all, each within its own grace period and that of its
// group, and have Failed. It is called while Run goes on, and returns when all have ended and their statuses
// are written, or when their time or ctx is over. It does nothing without Config.Shutdown.
func (a *Agent) Shutdown(ctx context.Context) {
	if len(a.cfg.Shutdown) == 0 {
		return
	}
	ctx = client.WithUser(ctx, a.user())
	a.shutting.Store(true)
	a.eventNode(eventShutdown, messageDetected)
	if err := a.writeStatus(ctx, false); err != nil {
		a.cfg.Log.Warn("write node status", "err", err)
	}
	a.mu.Lock()
	var active []*worker
	for _, w := range a.workers {
		if w.seen.Load().counts {
			active = append(active, w)
		}
	}
	a.mu.Unlock()
	groups := shutdownGroups(a.cfg.Shutdown, active, func(w *worker) int32 {
		if p := w.seen.Load().pod.Spec.Priority; p != nil {
			return *p
		}
		return 0
	})
	for _, g := range groups {
		if len(g.pods) > 0 && ctx.Err() == nil {
			a.endGroup(ctx, g)
		}
	}
}

// endGroup ends pods together and waits until they have, at most for their period.
func (a *Agent) endGroup(ctx context.Context, g shutdownGroup) {
	// What the kernel and the API take beyond the grace of the last container is not the pods'.
	ctx, cancel := context.WithTimeout(ctx, g.grace+shutdownSlack)
	defer cancel()
	var wait sync.WaitGroup
	for _, w := range g.pods {
		w.tell(func(in *inbox) { in.shutdown = &g.grace })
		wait.Go(func() {
			select {
			case <-w.settled:
			case <-ctx.Done():
				a.cfg.Log.Warn("pod did not end in time", "pod", w.seen.Load().pod.Name, "grace", g.grace)
			}
		})
	}
	wait.Wait()
}

// shutdownSlack is how long the end of a pod may take to be undone and written beyond its grace period.
const shutdownSlack = 5 * time.Second

// shutdownStop is the end of a pod in a shutdown of its node, nil if it ends as soon anyway.
func shutdownStop(v *view, now time.Time) *stop {
	if v.shutdown == nil {
		return nil
	}
	grace := max(min(*v.shutdown, podGrace(v.pod)), time.Second)
	if v.stop == nil {
		return &stop{at: now, grace: grace, reason: reasonTerminated, message: messageTerminated}
	}
	if s := *v.stop; grace < s.grace && now.Add(grace).Before(s.deadline()) {
		s.at, s.grace = now, grace
		return &s
	}
	return nil
}

// refuseAtShutdown rejects new pods of a node that shuts down.
func (a *Agent) refuseAtShutdown() *rejection {
	if !a.shutting.Load() {
		return nil
	}
	return &rejection{reasonShutdown, messageShutdown}
}

// shutdownCondition is the node's Ready condition while it shuts down.
func shutdownCondition(ready corev1.NodeCondition) corev1.NodeCondition {
	if ready.Status == corev1.ConditionTrue {
		ready.Message = ""
	} else {
		ready.Message += ", "
	}
	ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, reasonNodeNotReady, ready.Message+notReadyShutdown
	if ready.Message != notReadyShutdown {
		ready.Message = "[" + ready.Message + "]" // as errors are joined upstream
	}
	return ready
}
