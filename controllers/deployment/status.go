package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of the condition Progressing.
const (
	completed    = "NewReplicaSetAvailable"
	updated      = "ReplicaSetUpdated"
	timedOut     = "ProgressDeadlineExceeded"
	failedCreate = "ReplicaSetCreateError"
	paused       = "DeploymentPaused"
	resumed      = "DeploymentResumed"
)

func (p *pass) hasDeadline() bool {
	return p.d.Spec.ProgressDeadlineSeconds != nil && *p.d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

func (p *pass) condition(t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range p.d.Status.Conditions {
		if p.d.Status.Conditions[i].Type == t {
			return &p.d.Status.Conditions[i]
		}
	}
	return nil
}

// set changes a condition unless it has that status and reason already. The time of transition changes with the
// status only.
func (p *pass) set(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	p.put(t, status, reason, message, false)
}

func (p *pass) put(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, always bool) {
	now := metav1.NewTime(p.now).Rfc3339Copy()
	cond := appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now}
	if had := p.condition(t); had != nil {
		if had.Status == status && had.Reason == reason && !always {
			return
		}
		if had.Status == status {
			cond.LastTransitionTime = had.LastTransitionTime
		}
	}
	p.remove(t)
	p.d.Status.Conditions = append(p.d.Status.Conditions, cond)
}

func (p *pass) remove(t appsv1.DeploymentConditionType) {
	p.d.Status.Conditions = slices.DeleteFunc(p.d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// notePause tells in the condition Progressing that a deployment was paused or resumed.
func (p *pass) notePause() {
	if !p.hasDeadline() {
		return
	}
	cond := p.condition(appsv1.DeploymentProgressing)
	if cond != nil && cond.Reason == timedOut {
		return
	}
	isPaused := cond != nil && cond.Reason == paused
	switch {
	case p.d.Spec.Paused && !isPaused:
		p.set(appsv1.DeploymentProgressing, corev1.ConditionUnknown, paused, "Deployment is paused")
	case !p.d.Spec.Paused && isPaused:
		p.set(appsv1.DeploymentProgressing, corev1.ConditionUnknown, resumed, "Deployment is resumed")
	}
}

// observe counts replicas into the status and sets the condition Available.
func (p *pass) observe() {
	s := &p.d.Status
	asked := sizes(p.all)
	s.ObservedGeneration = p.d.Generation
	s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	s.TerminatingReplicas = terminating(p.all)
	for _, rs := range p.all {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
	}
	if p.new != nil {
		s.UpdatedReplicas = p.new.Status.Replicas
	}
	s.UnavailableReplicas = max(asked-s.AvailableReplicas, 0)
	if s.AvailableReplicas >= *p.d.Spec.Replicas-p.maxUnavailable() {
		p.set(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		p.set(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
}

// terminating sums up the pods that are being deleted (KEP-3973), nil if a replica set has not counted them.
func terminating(sets []*set) *int32 {
	sum := int32(0)
	for _, rs := range sets {
		switch t := rs.Status.TerminatingReplicas; {
		case t != nil:
			sum += *t
		case rs.Status.ObservedGeneration > 0:
			return nil
		}
	}
	return &sum
}

// complete tells whether the status shows nothing but available new pods.
func (p *pass) complete(s *appsv1.DeploymentStatus) bool {
	n := *p.d.Spec.Replicas
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= p.d.Generation
}

// progressed tells whether the rollout came further since the last status.
func progressed(was, is *appsv1.DeploymentStatus) bool {
	return is.UpdatedReplicas > was.UpdatedReplicas ||
		is.Replicas-is.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		is.ReadyReplicas > was.ReadyReplicas || is.AvailableReplicas > was.AvailableReplicas
}

// progress is observe together with the conditions of a rollout: Progressing and ReplicaFailure.
func (p *pass) progress() {
	before := p.d.Status.DeepCopy()
	p.observe()
	s := &p.d.Status
	if !p.hasDeadline() {
		p.remove(appsv1.DeploymentProgressing)
	}
	cond := p.condition(appsv1.DeploymentProgressing)
	wasComplete := s.Replicas == s.UpdatedReplicas && cond != nil && cond.Reason == completed
	if p.hasDeadline() && !wasComplete {
		p.judge(before)
	}
	p.reportFailure()
	p.watchDeadline()
}

// judge sets the condition Progressing of a rollout that is under way.
func (p *pass) judge(before *appsv1.DeploymentStatus) {
	subject := fmt.Sprintf("Deployment %q", p.d.Name)
	if p.new != nil {
		subject = fmt.Sprintf("ReplicaSet %q", p.new.Name)
	}
	switch {
	case p.complete(&p.d.Status):
		p.set(appsv1.DeploymentProgressing, corev1.ConditionTrue, completed, subject+" has successfully progressed.")
	case progressed(before, &p.d.Status):
		p.put(appsv1.DeploymentProgressing, corev1.ConditionTrue, updated, subject+" is progressing.", true)
	case p.late():
		p.set(appsv1.DeploymentProgressing, corev1.ConditionFalse, timedOut, subject+" has timed out progressing.")
	}
}

// late tells whether the deadline passed without progress.
func (p *pass) late() bool {
	cond := p.condition(appsv1.DeploymentProgressing)
	switch {
	case cond == nil || cond.Reason == completed:
		return false
	case cond.Reason == timedOut:
		return true
	}
	return p.deadline(cond).Before(p.now)
}

func (p *pass) deadline(cond *appsv1.DeploymentCondition) time.Time {
	return cond.LastUpdateTime.Add(time.Duration(*p.d.Spec.ProgressDeadlineSeconds) * time.Second)
}

// watchDeadline asks for a pass when the deadline has passed.
func (p *pass) watchDeadline() {
	cond := p.condition(appsv1.DeploymentProgressing)
	if !p.hasDeadline() || cond == nil || p.complete(&p.d.Status) || cond.Reason == timedOut || cond.Reason == completed {
		return
	}
	p.after = max(p.deadline(cond).Sub(p.now), 0) + time.Second
}

// reportFailure shows a failure of a replica set as the deployment's own: the new one's, or else an old one's.
func (p *pass) reportFailure() {
	sets := p.old
	if p.new != nil {
		sets = append([]*set{p.new}, p.old...)
	}
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				p.set(appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message)
				return
			}
		}
	}
	p.remove(appsv1.DeploymentReplicaFailure)
}
