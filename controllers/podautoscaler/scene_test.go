package podautoscaler

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/autoscaling"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// scene is a view in short: 2 ≤ replicas ≤ 10 unless said otherwise.
type scene struct {
	*view
	replicas int32
}

// newScene has an autoscaler, its target with so many replicas, and one pod for each word: the pod's use in thousandths
// ("-" for none that is known), and behind a "/" what is odd about it: unready, pending, deleting, failed.
func newScene(replicas int32, pods string) *scene {
	least := int32(2)
	sel := labels.SelectorFromSet(labels.Set{"app": "web"})
	s := &scene{replicas: replicas, view: &view{
		now: t0, tuning: Tuning{}.complete(), answers: []answer{}, asked: t0,
		hpa: &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 3},
			Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &least, MaxReplicas: 10},
		},
		target: target{parsed: sel, scale: &autoscalingv1.Scale{
			Spec: autoscalingv1.ScaleSpec{Replicas: replicas}, Status: autoscalingv1.ScaleStatus{Replicas: replicas, Selector: sel.String()}}},
	}}
	for i, word := range strings.Fields(pods) {
		_, odd, _ := strings.Cut(word, "/")
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("p", i), Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}},
		}
		start := metav1.NewTime(t0.Add(-time.Hour))
		ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: start}
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &start}
		switch odd {
		case "unready":
			ready.Status = corev1.ConditionFalse
		case "pending":
			pod.Status.Phase = corev1.PodPending
		case "deleting":
			pod.DeletionTimestamp = &start
		case "failed":
			pod.Status.Phase = corev1.PodFailed
		}
		pod.Status.Conditions = []corev1.PodCondition{ready}
		s.pods = append(s.pods, pod)
	}
	return s.measure(pods)
}

// measure adds an answer with what the pods use.
func (s *scene) measure(pods string) *scene {
	a := answer{pods: map[string]sample{}}
	for i, word := range strings.Fields(pods) {
		use, _, _ := strings.Cut(word, "/")
		if n, err := strconv.ParseInt(use, 10, 64); err == nil {
			a.pods[fmt.Sprint("p", i)] = sample{value: n, at: t0, window: 15 * time.Second}
		}
	}
	s.answers = append(s.answers, a)
	return s
}

func (s *scene) metric(m ...autoscalingv2.MetricSpec) *scene {
	s.hpa.Spec.Metrics = append(s.hpa.Spec.Metrics, m...)
	return s
}

func (s *scene) limits(least, most int32) *scene {
	s.hpa.Spec.MinReplicas, s.hpa.Spec.MaxReplicas = &least, most
	return s
}

// behaves sets spec.behavior as the API would after defaulting.
func (s *scene) behaves(b autoscalingv2.HorizontalPodAutoscalerBehavior) *scene {
	s.hpa.Spec.Behavior = &b
	for _, k := range autoscaling.Kinds() {
		k.Default(api.Object(s.hpa))
	}
	return s
}

// change edits one pod.
func (s *scene) change(i int, f func(*corev1.Pod)) *scene {
	f(s.pods[i])
	return s
}

// at sets the time of the sample of one pod and what it is the mean of.
func (s *scene) at(i int, at time.Time, window time.Duration) *scene {
	name := fmt.Sprint("p", i)
	sm := s.answers[0].pods[name]
	sm.at, sm.window = at, window
	s.answers[0].pods[name] = sm
	return s
}

func cpu(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: "cpu", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent}}}
}

func amountOf(text string) *resource.Quantity { q := resource.MustParse(text); return &q }

func usageOf(name corev1.ResourceName, value string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: name, Target: averageValue(value)}}
}

func averageValue(v string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: amountOf(v)}
}

func wholeValue(v string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: amountOf(v)}
}

func podsMetric(t autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{Metric: autoscalingv2.MetricIdentifier{Name: "qps"}, Target: t}}
}

func objectMetric(t autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "front", APIVersion: "v1"}, Metric: autoscalingv2.MetricIdentifier{Name: "rps"}, Target: t}}
}

func externalMetric(t autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"q": "a"}}}, Target: t}}
}

// values replaces the only answer by values of something that is no pod.
func (s *scene) values(v ...int64) *scene {
	s.answers = []answer{{values: v}}
	return s
}

// held fills the recommendations that the windows hold, so that what is wanted is not held back by the first of all.
func (s *scene) held(r ...recommendation) *scene {
	s.recommendations = append([]recommendation{{s.replicas, t0.Add(-2 * time.Hour)}}, r...)
	return s
}

// condition is the status and reason of one.
func condition(d decision, t autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, c := range d.status.Conditions {
		if c.Type == t {
			return string(c.Status) + " " + c.Reason
		}
	}
	return ""
}

func message(d decision, t autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, c := range d.status.Conditions {
		if c.Type == t {
			return c.Message
		}
	}
	return ""
}

// wants checks the number of replicas that a decision ends with.
func wants(t *testing.T, d decision, current, replicas int32) {
	t.Helper()
	got := current
	if d.rescale {
		got = d.replicas
	}
	if got != replicas || d.status.DesiredReplicas != replicas || d.status.CurrentReplicas != current {
		t.Errorf("goes from %d to %d (rescale %v, status %d of %d, events %v), want %d", current, got, d.rescale, d.status.DesiredReplicas, d.status.CurrentReplicas, d.events, replicas)
	}
}
