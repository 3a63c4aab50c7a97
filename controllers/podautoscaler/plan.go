package podautoscaler

import (
	"errors"
	"fmt"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/reconcile"
)

// view is everything that a decision stands on. Nothing in it is changed.
type view struct {
	hpa    *autoscalingv2.HorizontalPodAutoscaler
	now    time.Time
	tuning Tuning
	target target
	// answers are those to the questions of hpa.Spec.Metrics, in that order; nil if they have to be asked.
	answers []answer
	asked   time.Time
	// pods are those that the target's selector matches, and rivals the autoscalers that select one of them, if there are
	// several. Both are there when answers are.
	pods   []*corev1.Pod
	rivals []reconcile.Key

	recommendations []recommendation
	ups, downs      []change
}

func (v *view) selector() labels.Selector { return v.target.parsed }

func (v *view) about() about {
	a := about{generation: v.hpa.Generation}
	if v.target.scale != nil {
		a.selector = v.target.scale.Status.Selector
	}
	return a
}

// happening is an event to be.
type happening struct{ kind, reason, message string }

// decision is what comes of a view.
type decision struct {
	// ask says that it cannot be made without answers; everything else is empty then.
	ask    bool
	status autoscalingv2.HorizontalPodAutoscalerStatus
	events []happening
	// recommendations are those to remember.
	recommendations []recommendation
	// rescale asks for replicas in place of current, because of reason; status is that after success.
	rescale           bool
	current, replicas int32
	reason            string
	metrics           []autoscalingv2.MetricStatus
	unscaled          []autoscalingv2.HorizontalPodAutoscalerCondition // before success
}

// scaled tells of a success.
func (d *decision) scaled() happening {
	return happening{corev1.EventTypeNormal, "SuccessfulRescale", fmt.Sprintf("New size: %d; reason: %s", d.replicas, d.reason)}
}

// notScaled tells of a failure.
func (d *decision) notScaled(err error) happening {
	return happening{corev1.EventTypeWarning, "FailedRescale", fmt.Sprintf("New size: %d; reason: %s; error: %v", d.replicas, d.reason, err)}
}

// refused is what is left of a decision whose write failed.
func (d decision) refused(hpa *autoscalingv2.HorizontalPodAutoscaler, now time.Time, err error) decision {
	c := conditions{list: d.unscaled, at: now}
	c.set(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedUpdateScale", "the HPA controller was unable to update the target scale: %v", err)
	d.status = statusOf(hpa, d.current, hpa.Status.DesiredReplicas, d.metrics, c.list)
	return d
}

// conditions is a list under change.
type conditions struct {
	list []autoscalingv2.HorizontalPodAutoscalerCondition
	at   time.Time
}

func (c *conditions) set(t autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, format string, args ...any) {
	i := slices.IndexFunc(c.list, func(o autoscalingv2.HorizontalPodAutoscalerCondition) bool { return o.Type == t })
	if i < 0 {
		i = len(c.list)
		c.list = append(c.list, autoscalingv2.HorizontalPodAutoscalerCondition{Type: t})
	}
	o := &c.list[i]
	if o.Status != status {
		o.LastTransitionTime = metav1.NewTime(c.at).Rfc3339Copy()
	}
	o.Status, o.Reason, o.Message = status, reason, fmt.Sprintf(format, args...)
}

func (c *conditions) isTrue(t autoscalingv2.HorizontalPodAutoscalerConditionType) bool {
	return slices.ContainsFunc(c.list, func(o autoscalingv2.HorizontalPodAutoscalerCondition) bool {
		return o.Type == t && o.Status == corev1.ConditionTrue
	})
}

func statusOf(hpa *autoscalingv2.HorizontalPodAutoscaler, current, desired int32, metrics []autoscalingv2.MetricStatus,
	conditions []autoscalingv2.HorizontalPodAutoscalerCondition) autoscalingv2.HorizontalPodAutoscalerStatus {
	generation := hpa.Generation
	return autoscalingv2.HorizontalPodAutoscalerStatus{
		ObservedGeneration: &generation,
		LastScaleTime:      hpa.Status.LastScaleTime,
		CurrentReplicas:    current,
		DesiredReplicas:    desired,
		CurrentMetrics:     metrics,
		Conditions:         conditions,
	}
}

// pass is one decision in the making.
type pass struct {
	*view
	conditions
	decision
	least int32 // spec.minReplicas
	// wasZero says that this controller is who scaled the target to zero (KEP-2021).
	wasZero bool
}

// decide is the whole algorithm.
func decide(v *view) decision {
	p := &pass{view: v, conditions: conditions{list: slices.Clone(v.hpa.Status.Conditions), at: v.now}, least: 1}
	p.decision.recommendations = v.recommendations
	if m := v.hpa.Spec.MinReplicas; m != nil {
		p.least = *m
	}
	p.run()
	return p.decision
}

func (p *pass) run() {
	if err := p.target.err; err != nil {
		p.warn("FailedGetScale", err.Error())
		p.set(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", "the HPA controller was unable to get the target's current scale: %v", err)
		p.status = p.hpa.Status
		p.status.Conditions = p.list
		return
	}
	p.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	p.current = p.target.scale.Spec.Replicas
	if p.decision.recommendations == nil {
		p.decision.recommendations = []recommendation{{p.current, p.now}}
	}
	p.wasZero = p.isTrue(autoscalingv2.ScaledToZero)
	switch {
	case p.current == 0 && !p.mayLeaveZero():
		p.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
	case p.current != 0 && p.current > p.hpa.Spec.MaxReplicas:
		p.to(p.hpa.Spec.MaxReplicas, "Current number of replicas above Spec.MaxReplicas")
	case p.current != 0 && p.current < p.least:
		p.to(p.least, "Current number of replicas below Spec.MinReplicas")
	default:
		if !p.byMetrics() {
			return
		}
	}
	p.conclude()
}

// mayLeaveZero tells whether metrics are asked about a target without replicas: only if it was this controller that took them all.
func (p *pass) mayLeaveZero() bool {
	return p.wasZero && (p.least != 0 || p.fromOutside())
}

// fromOutside tells whether a metric exists without pods.
func (p *pass) fromOutside() bool {
	return slices.ContainsFunc(p.hpa.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	})
}

func (p *pass) to(replicas int32, reason string) {
	p.rescale, p.replicas, p.reason = true, replicas, reason
}

func (p *pass) warn(reason, message string) {
	p.events = append(p.events, happening{corev1.EventTypeWarning, reason, message})
}

// byMetrics decides by metrics. It returns false if there is nothing to conclude: the answers are missing, or bad.
func (p *pass) byMetrics() bool {
	if err := p.checkSelector(); err != nil {
		p.failed(err)
		return false
	}
	if p.answers == nil {
		p.decision = decision{ask: true}
		return false
	}
	if err := p.checkRivals(); err != nil {
		p.failed(err)
		return false
	}
	wanted, metric, err := p.proposals()
	if err != nil {
		p.failed(err)
		return false
	}
	above := ""
	if wanted > 0 {
		above = metric
	}
	switch {
	case wanted > p.current:
		p.reason = above + " above target"
	case wanted < p.current:
		p.reason = "All metrics below target"
	}
	replicas := p.normalize(wanted)
	if p.current == 0 && p.least != 0 && p.wasZero {
		replicas = max(replicas, p.least)
		if p.reason == "" {
			p.reason = "Current number of replicas below Spec.MinReplicas"
		}
	}
	p.rescale, p.replicas = replicas != p.current, replicas
	return true
}

// failed ends a pass that found no number of replicas.
func (p *pass) failed(err error) {
	p.status = statusOf(p.hpa, p.current, p.hpa.Status.DesiredReplicas, p.metrics, p.list)
	p.warn("FailedComputeMetricsReplicas", err.Error())
}

// conclude writes the status of a pass that found one.
func (p *pass) conclude() {
	if !p.rescale {
		p.status = statusOf(p.hpa, p.current, p.current, p.metrics, p.list)
		return
	}
	p.unscaled = slices.Clone(p.list)
	p.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededRescale", "the HPA controller was able to update the target scale to %d", p.replicas)
	if p.current > 0 && p.replicas == 0 && p.least == 0 && p.fromOutside() {
		p.set(autoscalingv2.ScaledToZero, corev1.ConditionTrue, "ScaledToZero", "the HPA controller scaled the workload to zero")
	} else {
		p.set(autoscalingv2.ScaledToZero, corev1.ConditionFalse, "NotScaledToZero", "the HPA controller did not scale the workload to zero")
	}
	p.status = statusOf(p.hpa, p.current, p.replicas, p.metrics, p.list)
	at := metav1.NewTime(p.now).Rfc3339Copy()
	p.status.LastScaleTime = &at
}

// checkSelector sees to it that there are pods to ask about.
func (p *pass) checkSelector() error {
	switch {
	case p.target.scale.Status.Selector == "":
		p.warn("SelectorRequired", "selector is required")
		p.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, "InvalidSelector", "the HPA target's scale is missing a selector")
		return errors.New("selector is required")
	case p.target.badSelector != nil:
		return p.unselective("InvalidSelector", fmt.Errorf("couldn't convert selector into a corresponding internal selector object: %v", p.target.badSelector))
	}
	return nil
}

// checkRivals sees to it that no pod is another autoscaler's, too.
func (p *pass) checkRivals() error {
	if len(p.rivals) == 0 {
		return nil
	}
	return p.unselective("AmbiguousSelector", fmt.Errorf("pods by selector %v are controlled by more than one HPA (e.g. %v)", p.target.scale.Status.Selector, p.rivals))
}

func (p *pass) unselective(reason string, err error) error {
	p.warn(reason, err.Error())
	p.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, reason, "%s", err)
	return err
}

// proposals asks every metric and returns the most that one of them wants. Metrics that fail are passed over unless all do, or
// the others would scale down.
func (p *pass) proposals() (replicas int32, metric string, err error) {
	specs := p.hpa.Spec.Metrics
	p.metrics = make([]autoscalingv2.MetricStatus, len(specs))
	var first error
	var condition happening
	failed := 0
	for i := range specs {
		m := p.propose(&specs[i], &p.answers[i])
		if m.err != nil {
			p.warn(m.reason, m.cause.Error())
			if failed++; failed == 1 {
				first = m.err
				condition = happening{reason: m.reason, message: fmt.Sprintf("the HPA was unable to compute the replica count: %v", m.cause)}
			}
			continue
		}
		p.metrics[i] = m.status
		if replicas == 0 || m.replicas > replicas {
			replicas, metric = m.replicas, m.name
		}
	}
	if failed >= len(specs) || failed > 0 && replicas < p.current {
		p.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, condition.reason, "%s", condition.message)
		return 0, "", fmt.Errorf("invalid metrics (%v invalid out of %v), first error is: %w", failed, len(specs), first)
	}
	p.set(autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from %s", metric)
	return replicas, metric, nil
}
