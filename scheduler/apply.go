package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
)

// bound takes note of how a binding ended. After a failure the pod's room is free again, and the store
// says what became of it.
func (s *Scheduler) bound(it *item, pod *corev1.Pod, node string, err error) {
	if err == nil {
		s.record(pod.Spec.SchedulerName, pod, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node))
		return // the store's event confirms it
	}
	s.unbound(it, pod, node, "Bind", "DefaultBinder", err)
}

// refuse records why a pod has no node, makes room if that was decided, and lets it wait.
func (s *Scheduler) refuse(ctx context.Context, it *item, d Decision) error {
	pod := it.pod.object
	if d.silent {
		s.queue.fail(it, d.wakes, s.Now())
		return nil
	}
	if claim := d.needs.free(); claim != nil {
		if err := s.do(ctx, func(work context.Context) { s.deallocate(work, claim) }); err != nil {
			return err
		}
	}
	if d.needs != nil && d.needs.special != nil && d.needs.special.stale != nil {
		if err := s.do(ctx, func(work context.Context) {
			if err := s.removeSpecial(work, d.needs.special.stale); err != nil && work.Err() == nil {
				s.Log.Warn("claim for extended resources could not be removed", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			}
		}); err != nil {
			return err
		}
	}
	var nominated *string
	switch {
	case d.Nominated != "":
		nominated = &d.Nominated
		s.cluster.Nominate(pod, d.Nominated)
	case d.Unnominate:
		nominated = new(string)
		s.cluster.Nominate(pod, "")
	}
	var victims []*corev1.Pod
	for _, victim := range d.Victims {
		if victim.DeletionTimestamp == nil { // others are on their way already
			victims = append(victims, victim)
		}
	}
	it.held = len(victims)
	s.queue.fail(it, d.wakes, s.Now())
	s.record(pod.Spec.SchedulerName, pod, corev1.EventTypeWarning, "FailedScheduling", d.Message)
	if d.Nominated != "" {
		if err := s.displace(ctx, it.pod, d.Nominated); err != nil {
			return err
		}
	}
	for _, victim := range victims {
		if err := s.do(ctx, func(work context.Context) {
			err := s.preempt(work, pod, victim, d.Nominated)
			s.report(ctx, func() { s.preempted(it, err) })
		}); err != nil {
			return err
		}
	}
	return s.do(ctx, func(ctx context.Context) {
		s.setStatus(ctx, pod, unscheduled(corev1.PodReasonUnschedulable, d.Message), nominated)
	})
}

// displace takes the nominations of less important pods to a node back: they may no longer fit there and
// are better off looking elsewhere.
func (s *Scheduler) displace(ctx context.Context, by *pod, name string) error {
	var less []*corev1.Pod
	for _, p := range s.cluster.nodes[name].nominated {
		if p.priority < by.priority {
			less = append(less, p.object)
		}
	}
	for _, pod := range less {
		s.cluster.Nominate(pod, "")
		if it := s.queue.items[pod.UID]; it != nil {
			s.queue.wakeOne(it, anyChange, s.Now())
		}
		if err := s.do(ctx, func(ctx context.Context) { s.clearNomination(ctx, pod, name) }); err != nil {
			return err
		}
	}
	return nil
}

// preempted takes note of how the removal of a victim ended. If it failed, who it was for tries again after
// its back-off.
func (s *Scheduler) preempted(it *item, err error) {
	if s.queue.release(it, s.Now()); err != nil {
		s.queue.wakeLater(it)
	}
}

func unscheduled(reason, message string) *corev1.PodCondition {
	return &corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message}
}

// setStatus writes a condition and the nominated node (each if not nil), unless the pod has
// both already or has been bound.
func (s *Scheduler) setStatus(ctx context.Context, pod *corev1.Pod, want *corev1.PodCondition, nominated *string) {
	current, ok := client.Pods.Get(s.Client.Snapshot(), pod.Namespace, pod.Name)
	if !ok || current.UID != pod.UID || current.Spec.NodeName != "" || stands(current, want, nominated) {
		return
	}
	_, err := client.Mutate(ctx, s.Client, client.Pods, pod.Namespace, pod.Name, "status", func(p *corev1.Pod) bool {
		if p.UID != pod.UID || p.Spec.NodeName != "" || stands(p, want, nominated) {
			return false
		}
		if nominated != nil {
			p.Status.NominatedNodeName = *nominated
		}
		if want != nil {
			setCondition(p, *want, metav1.NewTime(s.Now()))
		}
		return true
	})
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		s.Log.Warn("writing the PodScheduled condition failed", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	}
}

// clearNomination takes a nomination to a node out of a pod's status, unless it names another by now.
func (s *Scheduler) clearNomination(ctx context.Context, pod *corev1.Pod, node string) {
	current, ok := client.Pods.Get(s.Client.Snapshot(), pod.Namespace, pod.Name)
	if ok && current.Status.NominatedNodeName == node {
		none := ""
		s.setStatus(ctx, pod, nil, &none)
	}
}

// stands tells whether a pod's status says already what is wanted.
func stands(p *corev1.Pod, want *corev1.PodCondition, nominated *string) bool {
	if nominated != nil && p.Status.NominatedNodeName != *nominated {
		return false
	}
	if want == nil {
		return true
	}
	c := condition(p, want.Type)
	return c != nil && c.Status == want.Status && c.Reason == want.Reason && c.Message == want.Message && c.ObservedGeneration == p.Generation
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// setCondition writes a condition; its transition time moves only with its status.
func setCondition(p *corev1.Pod, want corev1.PodCondition, now metav1.Time) {
	want.ObservedGeneration, want.LastTransitionTime = p.Generation, now
	c := condition(p, want.Type)
	if c == nil {
		p.Status.Conditions = append(p.Status.Conditions, want)
		return
	}
	if c.Status == want.Status {
		want.LastTransitionTime = c.LastTransitionTime
	}
	want.LastProbeTime = c.LastProbeTime
	*c = want
}

// preempt removes one pod in favour of another.
func (s *Scheduler) preempt(ctx context.Context, pod, victim *corev1.Pod, node string) error {
	target := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
		Message: pod.Spec.SchedulerName + ": preempting to accommodate a higher priority pod"}
	_, err := client.Mutate(ctx, s.Client, client.Pods, victim.Namespace, victim.Name, "status", func(p *corev1.Pod) bool {
		if p.UID != victim.UID || stands(p, &target, nil) {
			return false
		}
		setCondition(p, target, metav1.NewTime(s.Now()))
		return true
	})
	if err == nil {
		err = s.Client.Delete(ctx, client.Ref{Resource: client.Pods.Name, Namespace: victim.Namespace, Name: victim.Name},
			client.DeleteOptions{UID: victim.UID})
	}
	if apierrors.IsNotFound(err) {
		return nil // it is gone without our doing
	}
	if err != nil {
		s.Log.Warn("preemption failed", "victim", victim.Namespace+"/"+victim.Name, "error", err)
		return err
	}
	s.record(pod.Spec.SchedulerName, victim, corev1.EventTypeNormal, "Preempted", fmt.Sprintf("Preempted by pod %s on node %s", pod.UID, node))
	return nil
}

// maxNote is how long the message of an event may be; longer ones are cut.
const maxNote = 1024

// record records an event about a pod; by is the name of the profile that it comes from.
func (s *Scheduler) record(by string, p *corev1.Pod, kind, reason, message string) {
	if len(message) > maxNote {
		const cut = " ..."
		message = message[:maxNote-len(cut)] + cut
	}
	ev := reconcile.Event{Type: kind, Reason: reason, Message: message, Regarding: reconcile.Regarding("v1", "Pod", p)}
	if s.RecordAs != nil {
		s.RecordAs(by, ev)
		return
	}
	s.Record(ev)
}
