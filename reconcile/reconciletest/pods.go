package reconciletest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Kubelet plays the scheduler and the nodes: a loop that binds pods to the node "node-1" (unless
// they have one), reports them as running and ready at once, and ends pods that are being deleted.
// A pod with the annotation "test/stuck" stays as it was made; "test/not-ready" runs and is not
// ready; "test/phase" ends with that phase. With the annotation "test/lingers" a deleted pod does not go away.
func Kubelet(c client.Writer) reconcile.Loop {
	none := func(*corev1.Pod) time.Duration { return 0 }
	return SlowKubelet(c, none, none)
}

// SlowKubelet is Kubelet with nodes that take their time: start from binding a pod until it is ready, stop from
// its deletion until it is gone.
func SlowKubelet(c client.Writer, start, stop func(*corev1.Pod) time.Duration) reconcile.Loop {
	return reconcile.Loop{
		Name:    "test-kubelet",
		Inputs:  []reconcile.Input{{Resource: client.Pods.Name}},
		Outputs: []reconcile.Output{{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Delete}}, {Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
			switch {
			case !ok:
				return reconcile.Plan{}, nil
			case pod.DeletionTimestamp != nil:
				grace := time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
				if left := pod.DeletionTimestamp.Add(stop(pod) - grace).Sub(now); left > 0 {
					return reconcile.Plan{After: left}, nil
				}
			case pod.Spec.NodeName != "":
				if left := pod.CreationTimestamp.Add(start(pod)).Sub(now); left > 0 {
					return reconcile.Plan{After: left}, nil
				}
			}
			return planKubelet(pod, now), nil
		},
		Apply: func(ctx context.Context, _ reconcile.Key, pod any) error {
			p := pod.(*corev1.Pod)
			return c.Bind(ctx, p.Namespace, p.Name, p.UID, nodeFor(p))
		},
	}
}

// nodeFor is the node that the pod's affinity names, or "node-1".
func nodeFor(pod *corev1.Pod) string {
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range term.MatchFields {
				return f.Values[0]
			}
		}
	}
	return "node-1"
}

func planKubelet(pod *corev1.Pod, now time.Time) reconcile.Plan {
	if pod.DeletionTimestamp != nil {
		if _, lingers := pod.Annotations["test/lingers"]; lingers {
			return reconcile.Plan{}
		}
		zero := int64(0)
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Pods.Name,
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, GraceSeconds: &zero}}}
	}
	if _, stuck := pod.Annotations["test/stuck"]; stuck {
		return reconcile.Plan{}
	}
	if pod.Spec.NodeName == "" {
		return reconcile.Plan{Effect: pod}
	}
	if pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return reconcile.Plan{}
	}
	pod = pod.DeepCopy()
	Ready(pod, now)
	if _, not := pod.Annotations["test/not-ready"]; not {
		NotReady(pod, now)
	}
	if phase := pod.Annotations["test/phase"]; phase != "" {
		NotReady(pod, now)
		pod.Status.Phase = corev1.PodPhase(phase)
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: pod}}}
}

// Ready makes the status of a pod that of one that runs and is ready.
func Ready(pod *corev1.Pod, now time.Time) { setReady(pod, corev1.ConditionTrue, now) }

// NotReady makes the status of a pod that of one that runs and is not ready.
func NotReady(pod *corev1.Pod, now time.Time) { setReady(pod, corev1.ConditionFalse, now) }

func setReady(pod *corev1.Pod, status corev1.ConditionStatus, now time.Time) {
	pod.Status.Phase = corev1.PodRunning
	if pod.Status.PodIP == "" {
		pod.Status.PodIP = fmt.Sprintf("10.0.%s", address(string(pod.UID)))
		pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	at := metav1.NewTime(now).Rfc3339Copy()
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	if i >= 0 && pod.Status.Conditions[i].Status == status {
		return
	}
	cond := corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: at}
	if i >= 0 {
		pod.Status.Conditions[i] = cond
		return
	}
	pod.Status.Conditions = append(pod.Status.Conditions, cond)
}

func address(uid string) string {
	var n int
	_, _ = fmt.Sscanf(uid, "%d", &n)
	return fmt.Sprintf("%d.%d", n/256%256, n%256)
}

// SetReady makes the pods of a namespace that a selector matches ready, or not ready.
func (h *Harness) SetReady(namespace, selector string, ready bool) {
	h.T.Helper()
	sel, err := labels.Parse(selector)
	if err != nil {
		h.T.Fatal(err)
	}
	for _, pod := range All(h, client.Pods, namespace) {
		if sel.Matches(labels.Set(pod.Labels)) && pod.DeletionTimestamp == nil {
			_, err := client.Mutate(context.Background(), h.Cluster, client.Pods, pod.Namespace, pod.Name, "status", func(p *corev1.Pod) bool {
				if ready {
					Ready(p, time.Now())
				} else {
					NotReady(p, time.Now())
				}
				return true
			})
			if err != nil {
				h.T.Fatal(err)
			}
		}
	}
}

func eventLines(s store.Snapshot, match func(*corev1.Event) bool) []string {
	var events []*corev1.Event
	for ev := range client.Events.List(s, "") {
		if match(ev) {
			events = append(events, ev)
		}
	}
	slices.SortStableFunc(events, func(a, b *corev1.Event) int {
		_, x, _ := strings.Cut(a.Name, ".")
		_, y, _ := strings.Cut(b.Name, ".")
		return strings.Compare(x[strings.LastIndex(x, ".")+1:], y[strings.LastIndex(y, ".")+1:])
	})
	var lines []string
	for _, ev := range events {
		line := ev.Type + " " + ev.Reason + " " + ev.Message
		if ev.Count > 1 {
			line += fmt.Sprintf(" (x%d)", ev.Count)
		}
		lines = append(lines, line)
	}
	return lines
}
