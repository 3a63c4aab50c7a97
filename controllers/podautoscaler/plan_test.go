package podautoscaler

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestUtilization: CPU of pods that request 1 core each.
func TestUtilization(t *testing.T) {
	for _, c := range []struct {
		name     string
		replicas int32
		pods     string
		target   int32
		want     int32
		shown    int32 // per cent
	}{
		{"at the target", 3, "500 500 500", 50, 3, 50},
		{"a little above, within tolerance", 3, "540 540 540", 50, 3, 54},
		{"as far above as is tolerated", 3, "550 550 550", 50, 3, 55},
		{"whole per cents count", 3, "559 559 559", 50, 3, 55},
		{"above", 3, "560 560 560", 50, 4, 56},
		{"twice", 3, "1000 1000 1000", 50, 6, 100},
		{"below, within tolerance", 3, "455 455 455", 50, 3, 45},
		{"below", 3, "300 300 300", 50, 2, 30},
		{"not less than the minimum", 6, "10 10 10 10 10 10", 50, 2, 1},
		{"not used at all", 3, "0 0 0", 50, 2, 0},
		{"uneven", 3, "1000 200 300", 50, 3, 50},
		{"upwards, an unready pod counts as idle", 3, "1000 1000 1000/unready", 50, 4, 100},
		{"upwards, a pending pod counts as idle", 3, "1000 1000 -/pending", 50, 4, 100},
		{"upwards, an unready pod takes the reason away", 2, "600 0/unready", 50, 2, 60},
		{"downwards, an unready pod is left out", 3, "200 200 1000/unready", 50, 2, 20},
		{"upwards, a pod without metrics counts as idle", 3, "1000 1000 -", 50, 4, 100},
		{"upwards, pods without metrics take the reason away", 3, "600 - -", 50, 3, 60},
		{"downwards, a pod without metrics counts as busy", 3, "200 200 -", 50, 3, 20},
		{"downwards, a pod without metrics counts as busy, and there is still too much", 4, "50 50 50 -", 50, 3, 5},
		{"downwards, a pod without metrics counts as at a target beyond 100", 4, "100 100 100 -", 150, 2, 10},
		{"a pod that ends is left out", 3, "1000 1000 1000/deleting", 50, 4, 100},
		{"a failed pod is left out", 3, "1000 1000 -/failed", 50, 4, 100},
		{"fewer pods than replicas: those that are there decide", 4, "1000 1000", 50, 4, 100},
		{"not more than the maximum", 9, "1000 1000 1000 1000 1000 1000 1000 1000 1000", 50, 10, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(c.replicas, c.pods).metric(cpu(c.target)).held()
			d := decide(s.view)
			wants(t, d, c.replicas, c.want)
			if got := *d.status.CurrentMetrics[0].Resource.Current.AverageUtilization; got != c.shown {
				t.Errorf("shows %d%%, want %d%%", got, c.shown)
			}
			if condition(d, autoscalingv2.ScalingActive) != "True ValidMetricFound" || *d.status.ObservedGeneration != 3 {
				t.Errorf("status: %+v", d.status)
			}
		})
	}
}

// TestPodsThatStart: whose CPU use counts.
func TestPodsThatStart(t *testing.T) {
	since := func(start, ready time.Duration, status corev1.ConditionStatus) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.StartTime = &metav1.Time{Time: t0.Add(-start)}
			p.Status.Conditions[0].Status = status
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(t0.Add(-ready))
		}
	}
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	for _, c := range []struct {
		name   string
		change func(*corev1.Pod)
		window time.Duration
		counts bool
	}{
		{"ready for long", since(time.Hour, time.Hour, yes), 15 * time.Second, true},
		{"young, ready, measured since", since(time.Minute, 20*time.Second, yes), 15 * time.Second, true},
		{"young, ready, measured in part before", since(time.Minute, 10*time.Second, yes), 15 * time.Second, false},
		{"young, ready as long as the window", since(time.Minute, 15*time.Second, yes), 15 * time.Second, true},
		{"young, not ready", since(time.Minute, 50*time.Second, no), 15 * time.Second, false},
		{"old, never ready", since(10*time.Minute, 10*time.Minute-10*time.Second, no), 15 * time.Second, false},
		{"old, was ready once", since(10*time.Minute, time.Minute, no), 15 * time.Second, true},
		{"old, ready a moment ago", since(10*time.Minute, time.Second, yes), 15 * time.Second, true},
		{"no condition", func(p *corev1.Pod) { p.Status.Conditions = nil }, 15 * time.Second, false},
		{"no start", func(p *corev1.Pod) { p.Status.StartTime = nil }, 15 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// One pod at 200 %, one at 0: if the first counts the mean is twice the target, else it is zero.
			s := newScene(2, "2000 0").metric(cpu(50)).held().change(0, c.change).at(0, t0, c.window)
			d := decide(s.view)
			want := int32(2)
			if c.counts {
				want = 4
			}
			wants(t, d, 2, want)
		})
	}
	t.Run("memory counts at once", func(t *testing.T) {
		s := newScene(2, "200000 200000").metric(usageOf("memory", "100")).held().change(0, since(time.Second, 0, no))
		wants(t, decide(s.view), 2, 4)
	})
}

// TestMetrics: the other kinds.
func TestMetrics(t *testing.T) {
	for _, c := range []struct {
		name     string
		scene    *scene
		replicas int32
		want     int32
		called   string
	}{
		{"CPU by value", newScene(3, "500 500 500").metric(usageOf("cpu", "250m")), 3, 6, "cpu resource"},
		{"memory by value", newScene(3, "50000 50000 80000").metric(usageOf("memory", "100")), 3, 2, "memory resource"},
		{"memory by value, one unknown counts as at the target", newScene(3, "50000 50000 -").metric(usageOf("memory", "100")), 3, 2, "memory resource"},
		{"each pod's own", newScene(2, "20000 40000").metric(podsMetric(averageValue("10"))), 2, 4, "pods metric qps"}, // 6, but twice is the most
		{"each pod's own, not ready does not matter", newScene(2, "20000 10000/unready").metric(podsMetric(averageValue("10"))), 2, 3, "pods metric qps"},
		{"an object's, for all", newScene(3, "- - -/pending").values(20000).metric(objectMetric(wholeValue("10"))), 3, 4, "Service metric rps"},
		{"an object's, within tolerance", newScene(3, "- - -").values(10900).metric(objectMetric(wholeValue("10"))), 3, 3, "Service metric rps"},
		{"an object's, shared", newScene(3, "- - -").values(50000).metric(objectMetric(averageValue("10"))), 3, 5, "external metric rps(nil)"},
		{"an object's, shared, within tolerance", newScene(3, "- - -").values(32000).metric(objectMetric(averageValue("10"))), 3, 3, "external metric rps(nil)"},
		{"from outside, for all", newScene(3, "- - -").values(15000, 5000).metric(externalMetric(wholeValue("10"))), 3, 6,
			"external metric queue(&LabelSelector{MatchLabels:map[string]string{q: a,},MatchExpressions:[]LabelSelectorRequirement{},})"},
		{"from outside, shared", newScene(3, "- - -").values(35000, 5000).metric(externalMetric(averageValue("10"))), 3, 4,
			"external metric queue(&LabelSelector{MatchLabels:map[string]string{q: a,},MatchExpressions:[]LabelSelectorRequirement{},})"},
		{"from outside, beyond all bounds", newScene(3, "- - -").values(1<<62, 1<<62, 1<<62).metric(externalMetric(averageValue("1m"))).limits(1, 100), 3, 6,
			"external metric queue(&LabelSelector{MatchLabels:map[string]string{q: a,},MatchExpressions:[]LabelSelectorRequirement{},})"},
		{"the most of several", newScene(3, "500 500 500").metric(cpu(50)).measure("80000 80000 80000").metric(usageOf("memory", "50")), 3, 5, "memory resource"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.scene.held().view)
			wants(t, d, c.replicas, c.want)
			if got := message(d, autoscalingv2.ScalingActive); got != "the HPA was able to successfully calculate a replica count from "+c.called {
				t.Error(got)
			}
			if d.rescale && c.want > c.replicas && d.reason != c.called+" above target" || c.want < c.replicas && d.reason != "All metrics below target" {
				t.Error(d.reason)
			}
		})
	}
}

func TestContainers(t *testing.T) {
	container := func(name string) autoscalingv2.MetricSpec {
		percent := int32(50)
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
			Name: "cpu", Container: name, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
	}
	always := corev1.ContainerRestartPolicyAlways
	half := corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("500m")}}
	two := func() *scene {
		s := newScene(2, "500 500").held()
		for i := range s.pods {
			s.change(i, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{{Name: "setup"}, {Name: "side", RestartPolicy: &always, Resources: half}}
			})
		}
		return s
	}
	wants(t, decide(two().metric(cpu(50)).view), 2, 2)           // 500 of 1500 is 33 %
	wants(t, decide(two().metric(container("side")).view), 2, 4) // 500 of 500
	wants(t, decide(two().metric(container("app")).view), 2, 2)  // 500 of 1000
	d := decide(two().metric(container("app")).view)
	if got := message(d, autoscalingv2.ScalingActive); got != "the HPA was able to successfully calculate a replica count from cpu container resource utilization (percentage of request)" {
		t.Error(got)
	}
	s := d.status.CurrentMetrics[0].ContainerResource
	if s.Container != "app" || *s.Current.AverageUtilization != 50 || s.Current.AverageValue.String() != "500m" {
		t.Errorf("%+v", s)
	}
	whole := two().metric(cpu(50))
	for i := range whole.pods {
		whole.change(i, func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("250m")}}
		})
	}
	wants(t, decide(whole.view), 2, 4) // 500 of 250
}

// TestFailures: what events and conditions say.
func TestFailures(t *testing.T) {
	percent := int32(50)
	for _, c := range []struct {
		name   string
		scene  *scene
		reason string
		event  string
		last   string // event
	}{
		{"no metrics", func() *scene {
			s := newScene(3, "- - -").metric(cpu(50))
			s.answers[0] = answer{err: errors.New("unable to fetch metrics from resource metrics API: no metrics returned from resource metrics API")}
			return s
		}(), "FailedGetResourceMetric",
			"failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: no metrics returned from resource metrics API",
			"invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: no metrics returned from resource metrics API"},
		{"no pods", newScene(3, "").metric(cpu(50)), "FailedGetResourceMetric",
			"failed to get cpu utilization: no pods returned by selector while calculating replica count", ""},
		{"nobody is ready", newScene(2, "500/unready -/pending").metric(cpu(50)).change(0, func(p *corev1.Pod) { p.Status.StartTime = &metav1.Time{Time: t0} }), "FailedGetResourceMetric",
			"failed to get cpu utilization: did not receive metrics for targeted pods (pods might be unready)", ""},
		{"no request", newScene(1, "500").limits(1, 3).metric(cpu(50)).change(0, func(p *corev1.Pod) { p.Spec.Containers[0].Resources = corev1.ResourceRequirements{} }), "FailedGetResourceMetric",
			"failed to get cpu utilization: missing request for cpu in container app of Pod p0", ""},
		{"no request of the pod", newScene(1, "500").limits(1, 3).metric(cpu(50)).change(0, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{}
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}
		}), "FailedGetResourceMetric", "failed to get cpu utilization: missing pod-level request for cpu in Pod p0", ""},
		{"no target", newScene(2, "500 500").metric(autoscalingv2.MetricSpec{Type: "Resource", Resource: &autoscalingv2.ResourceMetricSource{Name: "cpu"}}), "FailedGetResourceMetric",
			"invalid resource metric source: neither an average utilization target nor an average value (usage) target was set", ""},
		{"usage without metrics", func() *scene {
			s := newScene(2, "").metric(usageOf("memory", "1"))
			s.answers[0].err = errors.New("X")
			return s
		}(), "FailedGetResourceMetric", "failed to get memory usage: unable to get metrics for resource memory: X", ""},
		{"no such container", newScene(2, "500 500").metric(autoscalingv2.MetricSpec{Type: "ContainerResource", ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
			Name: "cpu", Container: "other", Target: autoscalingv2.MetricTarget{Type: "Utilization", AverageUtilization: &percent}}}), "FailedGetContainerResourceMetric",
			"failed to get cpu utilization: container other not found in Pod p0",
			"invalid metrics (1 invalid out of 1), first error is: failed to get other container metric value: failed to get cpu utilization: container other not found in Pod p0"},
		{"no custom metric", func() *scene {
			s := newScene(2, "").metric(podsMetric(averageValue("1")))
			s.answers[0].err = errors.New("unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered")
			return s
		}(), "FailedGetPodsMetric", "unable to get metric qps: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered",
			"invalid metrics (1 invalid out of 1), first error is: failed to get pods metric value: unable to get metric qps: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"},
		{"no object metric", func() *scene {
			s := newScene(2, "").metric(objectMetric(wholeValue("1")))
			s.answers[0].err = errors.New("X")
			return s
		}(), "FailedGetObjectMetric", "unable to get metric rps on Service default/front: X",
			"invalid metrics (1 invalid out of 1), first error is: failed to get object metric value: unable to get metric rps on Service default/front: X"},
		{"no object metric to share", func() *scene {
			s := newScene(2, "").metric(objectMetric(averageValue("1")))
			s.answers[0].err = errors.New("X")
			return s
		}(), "FailedGetObjectMetric", "unable to get metric rps on Service default/front: X",
			"invalid metrics (1 invalid out of 1), first error is: failed to get object metric value: failed to get rps object metric: unable to get metric rps on Service default/front: X"},
		{"no external metric", func() *scene {
			s := newScene(2, "").metric(externalMetric(wholeValue("1")))
			s.answers[0].err = errors.New("X")
			return s
		}(), "FailedGetExternalMetric", "unable to get external metric default/queue/&LabelSelector{MatchLabels:map[string]string{q: a,},MatchExpressions:[]LabelSelectorRequirement{},}: X",
			"invalid metrics (1 invalid out of 1), first error is: failed to get queue external metric value: failed to get external metric queue: unable to get external metric default/queue/&LabelSelector{MatchLabels:map[string]string{q: a,},MatchExpressions:[]LabelSelectorRequirement{},}: X"},
		{"unknown kind of metric", newScene(2, "500 500").metric(autoscalingv2.MetricSpec{Type: "Cheese"}), "InvalidMetricSourceType", `unknown metric source type "Cheese"`,
			`invalid metrics (1 invalid out of 1), first error is: unknown metric source type "Cheese"`},
		{"one of two fails, the other wants less", func() *scene {
			s := newScene(3, "100 100 100").metric(cpu(50)).measure("").metric(podsMetric(averageValue("1")))
			s.answers[1].err = errors.New("X")
			return s
		}(), "FailedGetPodsMetric", "unable to get metric qps: X",
			"invalid metrics (1 invalid out of 2), first error is: failed to get pods metric value: unable to get metric qps: X"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.scene.held().view)
			if d.rescale || d.status.DesiredReplicas != 0 || d.status.CurrentReplicas != c.scene.replicas {
				t.Errorf("%+v", d)
			}
			if got := condition(d, autoscalingv2.ScalingActive); got != "False "+c.reason {
				t.Error(got)
			}
			if got := message(d, autoscalingv2.ScalingActive); got != "the HPA was unable to compute the replica count: "+c.event {
				t.Error(got)
			}
			if len(d.events) != 2 || d.events[0] != (happening{"Warning", c.reason, c.event}) {
				t.Errorf("%+v", d.events)
			}
			if c.last != "" && d.events[1] != (happening{"Warning", "FailedComputeMetricsReplicas", c.last}) {
				t.Errorf("%+v", d.events[1])
			}
			if len(d.status.CurrentMetrics) != len(c.scene.hpa.Spec.Metrics) {
				t.Errorf("%+v", d.status.CurrentMetrics)
			}
		})
	}
	t.Run("one of two fails, the other wants more", func(t *testing.T) {
		s := newScene(3, "1000 1000 1000").metric(cpu(50)).measure("").metric(podsMetric(averageValue("1"))).held()
		s.answers[1].err = errors.New("X")
		d := decide(s.view)
		wants(t, d, 3, 6)
		if condition(d, autoscalingv2.ScalingActive) != "True ValidMetricFound" || len(d.events) != 1 || d.events[0].reason != "FailedGetPodsMetric" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("no target", func(t *testing.T) {
		s := newScene(3, "").metric(cpu(50))
		s.target = target{err: errors.New(`deployments.apps "web" not found`)}
		s.hpa.Status.DesiredReplicas, s.hpa.Status.CurrentReplicas = 7, 6
		d := decide(s.view)
		if d.rescale || d.ask || d.status.DesiredReplicas != 7 || d.status.CurrentReplicas != 6 || d.status.ObservedGeneration != nil ||
			message(d, autoscalingv2.AbleToScale) != `the HPA controller was unable to get the target's current scale: deployments.apps "web" not found` ||
			!slices.Equal(d.events, []happening{{"Warning", "FailedGetScale", `deployments.apps "web" not found`}}) {
			t.Errorf("%+v", d)
		}
	})
	t.Run("no selector", func(t *testing.T) {
		s := newScene(3, "500 500 500").metric(cpu(50))
		s.target.scale.Status.Selector, s.target.parsed = "", nil
		d := decide(s.view)
		if condition(d, autoscalingv2.ScalingActive) != "False InvalidSelector" || message(d, autoscalingv2.ScalingActive) != "the HPA target's scale is missing a selector" ||
			d.events[0] != (happening{"Warning", "SelectorRequired", "selector is required"}) || d.events[1] != (happening{"Warning", "FailedComputeMetricsReplicas", "selector is required"}) {
			t.Errorf("%+v", d)
		}
	})
	t.Run("bad selector", func(t *testing.T) {
		s := newScene(3, "500 500 500").metric(cpu(50))
		s.target.scale.Status.Selector, s.target.parsed, s.target.badSelector = "a in (", nil, errors.New("X")
		d := decide(s.view)
		if m := message(d, autoscalingv2.ScalingActive); m != "couldn't convert selector into a corresponding internal selector object: X" || d.events[0].reason != "InvalidSelector" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("write refused", func(t *testing.T) {
		s := newScene(3, "1000 1000 1000").metric(cpu(50)).held()
		d := decide(s.view)
		err := errors.New("no more")
		if got := d.notScaled(err); got != (happening{"Warning", "FailedRescale", "New size: 6; reason: cpu resource utilization (percentage of request) above target; error: no more"}) {
			t.Error(got)
		}
		d = d.refused(s.hpa, t0, err)
		if condition(d, autoscalingv2.AbleToScale) != "False FailedUpdateScale" || message(d, autoscalingv2.AbleToScale) != "the HPA controller was unable to update the target scale: no more" ||
			d.status.DesiredReplicas != 0 || d.status.LastScaleTime != nil || len(d.status.CurrentMetrics) != 1 || condition(d, autoscalingv2.ScaledToZero) != "" {
			t.Errorf("%+v", d.status)
		}
	})
}

// TestLimits: what is decided without metrics, and to which ends.
func TestLimits(t *testing.T) {
	s := newScene(12, "").metric(cpu(50))
	s.answers = nil
	d := decide(s.view)
	wants(t, d, 12, 10)
	if d.scaled() != (happening{"Normal", "SuccessfulRescale", "New size: 10; reason: Current number of replicas above Spec.MaxReplicas"}) || d.status.LastScaleTime == nil {
		t.Errorf("%+v", d)
	}
	s = newScene(1, "").metric(cpu(50))
	s.answers = nil
	d = decide(s.view)
	wants(t, d, 1, 2)
	if d.reason != "Current number of replicas below Spec.MinReplicas" || message(d, autoscalingv2.AbleToScale) != "the HPA controller was able to update the target scale to 2" {
		t.Errorf("%+v", d)
	}
	s = newScene(0, "").metric(cpu(50))
	s.answers = nil
	d = decide(s.view)
	wants(t, d, 0, 0)
	if message(d, autoscalingv2.ScalingActive) != "scaling is disabled since the replica count of the target is zero" || condition(d, autoscalingv2.ScalingActive) != "False ScalingDisabled" || len(d.events) > 0 {
		t.Errorf("%+v", d)
	}
	s = newScene(3, "").metric(cpu(50))
	s.answers = nil
	if d = decide(s.view); !d.ask || len(d.status.Conditions) > 0 {
		t.Errorf("%+v", d)
	}
}

// TestZero: KEP-2021.
func TestZero(t *testing.T) {
	zeroed := func(s *scene, is bool) *scene {
		s.hpa.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: autoscalingv2.ScaledToZero, Status: corev1.ConditionFalse}}
		if is {
			s.hpa.Status.Conditions[0].Status = corev1.ConditionTrue
		}
		return s
	}
	s := newScene(2, "- -").values(0).metric(externalMetric(averageValue("10"))).limits(0, 10).held()
	d := decide(s.view)
	wants(t, d, 2, 0)
	if condition(d, autoscalingv2.ScaledToZero) != "True ScaledToZero" || message(d, autoscalingv2.ScaledToZero) != "the HPA controller scaled the workload to zero" {
		t.Errorf("%+v", d.status)
	}
	s = zeroed(newScene(0, "").values(25000).metric(externalMetric(averageValue("10"))).limits(0, 10), true)
	d = decide(s.view)
	wants(t, d, 0, 3)
	if condition(d, autoscalingv2.ScaledToZero) != "False NotScaledToZero" || d.reason == "" {
		t.Errorf("%+v", d)
	}
	wants(t, decide(zeroed(newScene(0, "").values(25000).metric(externalMetric(wholeValue("10"))).limits(0, 10), true).view), 0, 3)
	wants(t, decide(zeroed(newScene(0, "").values(0).metric(externalMetric(averageValue("10"))).limits(0, 10), true).view), 0, 0)
	// A person took the replicas away: nothing comes back.
	d = decide(zeroed(newScene(0, "").values(25000).metric(externalMetric(averageValue("10"))).limits(0, 10), false).view)
	wants(t, d, 0, 0)
	if condition(d, autoscalingv2.ScalingActive) != "False ScalingDisabled" {
		t.Errorf("%+v", d.status)
	}
	// The minimum was raised meanwhile.
	d = decide(zeroed(newScene(0, "").values(0).metric(externalMetric(averageValue("10"))).limits(3, 10), true).view)
	wants(t, d, 0, 3)
	if d.reason != "Current number of replicas below Spec.MinReplicas" {
		t.Error(d.reason)
	}
}

func TestConditionsKeepTheirTime(t *testing.T) {
	s := newScene(3, "500 500 500").metric(cpu(50)).held()
	first := decide(s.view).status
	s.hpa.Status = first
	s.view.now = t0.Add(time.Second) // the samples are as good as they were
	again := decide(s.view).status
	if len(first.Conditions) != 3 || !slices.Equal(first.Conditions, again.Conditions) || first.Conditions[0].LastTransitionTime != metav1.NewTime(t0).Rfc3339Copy() {
		t.Errorf("%+v\n%+v", first, again)
	}
	if s.answers[0].pods["p0"].value != 500 || len(s.answers[0].pods) != 3 {
		t.Error("answers were changed")
	}
	if got := strings.Join([]string{condition(decide(s.view), autoscalingv2.AbleToScale), condition(decide(s.view), autoscalingv2.ScalingLimited)}, ", "); got != "True ReadyForNewScale, False DesiredWithinRange" {
		t.Error(got)
	}
}
