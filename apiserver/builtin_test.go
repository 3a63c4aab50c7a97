package apiserver

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api/builtin"
)

// TestEveryKind lists every kind in every form, and finds it in discovery.
func TestEveryKind(t *testing.T) {
	e := start(t, builtin.Kinds())
	groups, resources, err := e.typed.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) < 20 {
		t.Errorf("only %d groups", len(groups))
	}
	found := 0
	for _, list := range resources {
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains([]string(r.Verbs), "list") {
				continue
			}
			found++
			path := "/apis/" + list.GroupVersion + "/" + r.Name
			if list.GroupVersion == "v1" {
				path = "/api/v1/" + r.Name
			}
			for _, accept := range []string{
				"application/json", "application/yaml", "application/vnd.kubernetes.protobuf,application/json",
				"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
			} {
				if r.Name == "componentstatuses" && strings.Contains(accept, "as=") {
					continue
				}
				resp := e.raw("GET", path, map[string]string{"Accept": accept})
				if text := body(t, resp); resp.StatusCode != 200 {
					t.Errorf("%s as %s: %d %s", path, accept, resp.StatusCode, text)
				}
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d kinds", found)
	}
}

const manifests = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1", ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {containers: [{name: c, image: busybox}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: busybox}]}}}
---
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
`

func TestKubectlBuiltin(t *testing.T) {
	e := start(t, builtin.Kinds())
	run := func(want, stdin string, args ...string) string {
		t.Helper()
		out, err := e.kubectl(stdin, args...)
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	run("networkpolicy.networking.k8s.io/closed created", manifests, "apply", "--validate=false", "-f", "-")
	out := run("deployment.apps/web unchanged", manifests, "apply", "--validate=false", "-f", "-")
	if strings.Contains(out, "configured") || strings.Contains(out, "created") {
		t.Errorf("a second apply changed something:\n%s", out)
	}
	run("NodePort", "", "get", "all")
	run("deployment.apps/web scaled", "", "scale", "deploy/web", "--replicas=5")
	run("5", "", "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}")
	run("kube-api-access-", "", "get", "pod", "one", "-o", "yaml")
	run("apiVersion: autoscaling/v1", "", "get", "horizontalpodautoscalers.v1.autoscaling", "web", "-o", "yaml")
	run("apiVersion: autoscaling/v2", "", "get", "hpa", "web", "-o", "yaml")
	run("yes", "", "auth", "can-i", "delete", "nodes")
	run("*.*", "", "auth", "can-i", "--list")
	run("Username", "", "auth", "whoami")
	run("deployment.apps/web restarted", "", "rollout", "restart", "deploy/web")
	run("deployment.apps/web image updated", "", "set", "image", "deploy/web", "web=web:2")
	run("pod/one annotated", "", "annotate", "pod", "one", "a=b")
	run("pod \"one\"", "", "delete", "pod", "one")
	run("deployment.apps \"web\" deleted", "", "delete", "deploy", "web")
}

func TestEventsInTwoGroups(t *testing.T) {
	e := start(t, builtin.Kinds())
	ev := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: "default", Name: "e1"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"},
		Reason:         "Started", Message: "it runs", Type: "Normal", Count: 1, Source: corev1.EventSource{Component: "kubelet"},
	}
	if _, err := e.typed.CoreV1().Events("default").Create(ctx(t), ev, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := e.typed.EventsV1().Events("default").Get(ctx(t), "e1", metav1.GetOptions{})
	if err != nil || got.Note != "it runs" || got.Regarding.Name != "p" {
		t.Fatalf("%+v, %v", got, err)
	}
	list, err := e.typed.EventsV1().Events("").List(ctx(t), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	newer := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e2"}, EventTime: metav1.NowMicro(),
		ReportingController: "example.com/c", ReportingInstance: "c-1", Action: "Did", Reason: "Done", Type: "Normal",
		Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"},
	}
	if _, err := e.typed.EventsV1().Events("default").Create(ctx(t), newer, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if core, err := e.typed.CoreV1().Events("default").Get(ctx(t), "e2", metav1.GetOptions{}); err != nil || core.ReportingController != "example.com/c" {
		t.Fatalf("%+v, %v", core, err)
	}
}

func TestScaleConflict(t *testing.T) {
	e := start(t, builtin.Kinds())
	n := int32(1)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
		Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: simplePod("x").Spec},
	}}
	ds := e.typed.AppsV1().Deployments("default")
	if _, err := ds.Create(ctx(t), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ds.GetScale(ctx(t), "d", metav1.GetOptions{})
	if err != nil || s.Spec.Replicas != 1 || s.Status.Selector != "a=b" {
		t.Fatalf("%+v, %v", s, err)
	}
	s.Spec.Replicas = 3
	out, err := ds.UpdateScale(ctx(t), "d", s, metav1.UpdateOptions{})
	if err != nil || out.Spec.Replicas != 3 || out.ResourceVersion == s.ResourceVersion {
		t.Fatalf("%+v, %v", out, err)
	}
	s.Spec.Replicas = 9
	if _, err := ds.UpdateScale(ctx(t), "d", s, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Fatalf("stale scale: %v", err)
	}
	out.Spec.Replicas = -1
	if _, err := ds.UpdateScale(ctx(t), "d", out, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || err.Error() != `Scale.autoscaling "d" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0` {
		t.Fatalf("negative scale: %v", err)
	}
	got, err := ds.Get(ctx(t), "d", metav1.GetOptions{})
	if err != nil || got.Generation != 2 {
		t.Fatalf("generation %d, %v", got.Generation, err)
	}
}

func TestEviction(t *testing.T) {
	e := start(t, builtin.Kinds())
	pods := e.typed.CoreV1().Pods("default")
	run := func(name string) {
		t.Helper()
		p := simplePod(name)
		p.Labels = map[string]string{"app": "web"}
		if _, err := pods.Create(ctx(t), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := pods.Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Name: "n"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Patch(ctx(t), name, types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	run("a")
	run("b")
	one := intstr.FromInt32(1)
	pdb, err := e.typed.PolicyV1().PodDisruptionBudgets("default").Create(ctx(t), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "pdb"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pdb.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: pdb.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
	if _, err := e.typed.PolicyV1().PodDisruptionBudgets("default").UpdateStatus(ctx(t), pdb, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	evict := func(name string) error {
		return pods.EvictV1(ctx(t), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}})
	}
	if err := evict("a"); err != nil {
		t.Fatal(err)
	}
	a, err := pods.Get(ctx(t), "a", metav1.GetOptions{})
	if err != nil || a.DeletionTimestamp == nil || !slices.ContainsFunc(a.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }) {
		t.Fatalf("%+v, %v", a, err)
	}
	err = evict("b")
	if !apierrors.IsTooManyRequests(err) || err.Error() != "Cannot evict pod as it would violate the pod's disruption budget." || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Fatalf("second eviction: %v", err)
	}
	if pdb, err = e.typed.PolicyV1().PodDisruptionBudgets("default").Get(ctx(t), "pdb", metav1.GetOptions{}); err != nil || pdb.Status.DisruptionsAllowed != 0 || len(pdb.Status.DisruptedPods) != 1 {
		t.Fatalf("%+v, %v", pdb.Status, err)
	}
}
