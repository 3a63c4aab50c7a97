package podautoscaler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/podautoscaler"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

// world answers for metrics what stands in the ConfigMap "load": "cpu" is shared by all ready pods, every other key is
// a custom or external metric of that name ("none" lists nothing, "fail" fails).
type world struct {
	c     *reconciletest.Cluster
	asked atomic.Int64
}

func (w *world) load(key string) string {
	m, _ := client.ConfigMaps.Get(w.c.Snapshot(), "default", "load")
	if m == nil {
		return ""
	}
	return m.Data[key]
}

func (w *world) pods(_ context.Context, namespace string, sel labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
	w.asked.Add(1)
	if w.load("fail") != "" {
		return nil, errors.New(w.load("fail"))
	}
	total, err := resource.ParseQuantity(w.load("cpu"))
	if err != nil {
		return nil, nil
	}
	var out []metricsv1beta1.PodMetrics
	for pod := range client.Pods.List(w.c.Snapshot(), namespace) {
		if sel.Matches(labels.Set(pod.Labels)) && pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			out = append(out, metricsv1beta1.PodMetrics{ObjectMeta: pod.ObjectMeta, Timestamp: metav1.Now(), Window: metav1.Duration{}})
		}
	}
	for i := range out {
		out[i].Containers = []metricsv1beta1.ContainerMetrics{{Name: "app", Usage: corev1.ResourceList{
			"cpu": *resource.NewMilliQuantity(total.MilliValue()/int64(len(out)), resource.DecimalSI)}}}
	}
	return out, nil
}

// ServeHTTP is an adapter for custom and external metrics.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	metric := parts[len(parts)-1]
	value := w.load(metric)
	if value == "" {
		rw.WriteHeader(http.StatusNotFound)
		json.NewEncoder(rw).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 404, Reason: metav1.StatusReasonNotFound,
			Message: fmt.Sprintf("no metric at %s?%s", r.URL.Path, r.URL.RawQuery)})
		return
	}
	if value == "broken" {
		http.Error(rw, "out of order", http.StatusInternalServerError)
		return
	}
	type item struct {
		DescribedObject corev1.ObjectReference `json:"describedObject"`
		Timestamp       metav1.Time            `json:"timestamp"`
		Value           string                 `json:"value"`
	}
	items := []item{{Value: value, Timestamp: metav1.Now()}}
	if strings.Contains(r.URL.Path, "/pods/*/") {
		items = nil
		for pod := range client.Pods.List(w.c.Snapshot(), "default") {
			items = append(items, item{DescribedObject: corev1.ObjectReference{Kind: "Pod", Name: pod.Name}, Timestamp: metav1.Now(), Value: value})
		}
	}
	if value == "none" {
		items = []item{}
	}
	json.NewEncoder(rw).Encode(map[string]any{"items": items})
}

func (w *world) config() podautoscaler.Config {
	return podautoscaler.Config{Registry: w.c.Registry, Metrics: podautoscaler.Metrics{Registry: w.c.Registry, Pods: w.pods,
		Aggregated: func(group, version string) http.Handler {
			served := map[string]bool{"custom.metrics.k8s.io/v1beta1": true, "external.metrics.k8s.io/v1beta1": true}
			if !served[group+"/"+version] || w.load("adapter") == "" {
				return nil
			}
			return w
		}}}
}

// starter gives running pods a time of start, which the kubelet of these tests does not.
func starter() reconcile.Loop {
	return reconcile.Loop{
		Name: "starter", Inputs: []reconcile.Input{{Resource: client.Pods.Name}},
		Outputs: []reconcile.Output{{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
			if !ok || pod.Status.Phase != corev1.PodRunning || pod.Status.StartTime != nil {
				return reconcile.Plan{}, nil
			}
			pod = pod.DeepCopy()
			at := metav1.NewTime(now).Rfc3339Copy()
			pod.Status.StartTime = &at
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: pod}}}, nil
		},
	}
}

func (w *world) loops() []reconcile.Loop {
	return []reconcile.Loop{podautoscaler.Loop(w.config()), replicaset.Loop(), replicaset.ReplicationControllerLoop(), reconciletest.Kubelet(w.c), starter()}
}

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop { return (&world{c: c}).loops() })
}

// TestRest: without autoscalers nothing is ever asked, with one there is one question each 15 s, and none after it is gone.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{c: reconciletest.NewCluster(0)}
		h := reconciletest.New(t, w.c, w.loops()...)
		defer h.Stop()
		h.Advance(24 * time.Hour)
		if n := w.asked.Load(); n != 0 {
			t.Fatalf("%d questions without an autoscaler", n)
		}
		h.Create("configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "load"}, Data: map[string]string{"cpu": "1"}})
		one, two := int32(1), int32(2)
		h.Create("replicationcontrollers", &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ReplicationControllerSpec{
			Replicas: &two, Selector: map[string]string{"app": "web"}, Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "web", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}}}}})
		h.Settle()
		h.Create("horizontalpodautoscalers.autoscaling", &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &one, MaxReplicas: 5, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "ReplicationController", Name: "web"}}})
		h.Advance(15*time.Minute - time.Second)
		if n := w.asked.Load(); n != 60 {
			t.Errorf("%d questions in a quarter of an hour", n)
		}
		rev := h.Snapshot().Revision()
		h.Advance(time.Hour)
		for pod := range client.Pods.List(h.Snapshot(), "default") {
			t.Log(pod.Name)
		}
		if now := h.Snapshot().Revision(); now != rev {
			t.Errorf("%d writes without a change", now-rev)
		}
		// A change of the spec is followed at once.
		reconciletest.Change(h, client.HorizontalAutoscalers, "default", "web", "", func(a *autoscalingv2.HorizontalPodAutoscaler) {
			a.Spec.MinReplicas = &[]int32{4}[0]
		})
		h.Settle()
		if rc := reconciletest.Get(h, client.ReplicationControllers, "default", "web"); *rc.Spec.Replicas != 4 {
			t.Errorf("%d replicas", *rc.Spec.Replicas)
		}
		h.Delete("horizontalpodautoscalers.autoscaling", "default", "web", "")
		h.Settle()
		before := w.asked.Load()
		h.Advance(time.Hour)
		if n := w.asked.Load(); n != before {
			t.Errorf("%d questions after its end", n-before)
		}
	})
}

// TestRefusedScale: the target may not be written.
func TestRefusedScale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{c: reconciletest.NewCluster(0)}
		var refuse atomic.Bool
		refuse.Store(true)
		w.c.Refuse = func(verb string, ref client.Ref, _ api.Object) error {
			if verb == "update" && ref.Resource == "replicasets.apps" && refuse.Load() {
				return errors.New("the quota is used up")
			}
			return nil
		}
		h := reconciletest.New(t, w.c, podautoscaler.Loop(w.config()))
		defer h.Stop()
		h.Create("replicasets.apps", set("web", 7))
		h.Create("horizontalpodautoscalers.autoscaling", scaler("web", 1, 5))
		h.Settle()
		a := reconciletest.Get(h, client.HorizontalAutoscalers, "default", "web")
		if c := a.Status.Conditions[0]; c.Reason != "FailedUpdateScale" || c.Status != "False" || c.Message != "the HPA controller was unable to update the target scale: the quota is used up" {
			t.Errorf("%+v", a.Status)
		}
		if a.Status.CurrentReplicas != 7 || a.Status.DesiredReplicas != 0 {
			t.Errorf("%+v", a.Status)
		}
		if ev := h.EventsOf("HorizontalPodAutoscaler"); len(ev) == 0 || !strings.HasPrefix(ev[0], "Warning FailedRescale New size: 5; reason: Current number of replicas above Spec.MaxReplicas; error: the quota is used up") {
			t.Errorf("%q", ev)
		}
		refuse.Store(false)
		h.Advance(time.Hour)
		a = reconciletest.Get(h, client.HorizontalAutoscalers, "default", "web")
		if rs := reconciletest.Get(h, client.ReplicaSets, "default", "web"); *rs.Spec.Replicas != 5 || a.Status.LastScaleTime == nil {
			t.Errorf("%d replicas, %+v", *rs.Spec.Replicas, a.Status)
		}
	})
}
