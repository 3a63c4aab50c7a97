package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/client"
)

// whyOf asks why, and gives the findings of each node as "node: rule | why | change".
func whyOf(w *world, p *corev1.Pod) (*Report, string) {
	r := Why(w.Snapshot(), p)
	var lines []string
	for _, f := range r.Pod {
		lines = append(lines, fmt.Sprintf("pod: %s | %s | %s", f.Rule, f.Why, f.Change))
	}
	for _, n := range r.Nodes {
		if n.Fits {
			lines = append(lines, n.Node+": fits")
		}
		for _, f := range n.Findings {
			lines = append(lines, fmt.Sprintf("%s: %s | %s | %s", n.Node, f.Rule, f.Why, f.Change))
		}
		if n.Preemption != "" {
			lines = append(lines, fmt.Sprintf("%s: preemption | %s", n.Node, strings.TrimSpace(n.Preemption+" "+strings.Join(n.Victims, " "))))
		}
	}
	return r, strings.Join(lines, "\n")
}

func spec(text string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if err := yaml.Unmarshal([]byte(text), p); err != nil {
			panic(err)
		}
	}
}

// TestWhy: every rule that refuses a node is told, with the numbers and the remedy.
func TestWhy(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("a", "2", func(n *corev1.Node) { n.Labels["zone"] = "x" })
		w.node("b", "4", func(n *corev1.Node) {
			n.Labels["zone"] = "y"
			n.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule}}
		})
		w.node("c", "1", func(n *corev1.Node) { n.Spec.Unschedulable = true })
		w.pod("small", "1500m", spec(`{metadata: {labels: {app: web}}, spec: {nodeSelector: {zone: x}}}`))
		w.on("small", "a")

		check := func(name, want string) *Report {
			t.Helper()
			r, got := whyOf(w, w.get(name))
			if want = strings.TrimSpace(want); got != want {
				t.Errorf("%s:\n got\n%s\nwant\n%s", name, got, want)
			}
			return r
		}
		w.pod("big", "1")
		r := check("big", `
a: NodeResourcesFit | asks for 1 cpu, and 500m of 2 are free | needs 500m more cpu; the most is asked for by default/small (1500m)
a: preemption | no pod there has a priority below 0
b: TaintToleration | the node has the taint dedicated=db:NoSchedule, which the pod does not tolerate | add the toleration {key: dedicated, operator: Equal, value: "db", effect: NoSchedule} to the pod, or: kubectl taint node b dedicated:NoSchedule-
b: preemption | removing pods would not help
c: NodeUnschedulable | the node is cordoned | kubectl uncordon c
c: preemption | removing pods would not help`)
		if r.State != "Pending" || r.Said == "" || r.Said != r.Now {
			t.Errorf("state %s, said %q, now %q", r.State, r.Said, r.Now)
		}
		w.pod("picky", "5", spec(`{spec: {nodeSelector: {zone: z}, tolerations: [{operator: Exists}]}}`))
		check("picky", `
a: NodeAffinity | nodeSelector zone=z: the node has zone=x | kubectl label node a zone=z --overwrite
a: NodeResourcesFit | asks for 5 cpu, and 500m of 2 are free | the node is too small even when it is empty, by 3: ask for less, or add a larger node
a: preemption | removing pods would not help
b: NodeAffinity | nodeSelector zone=z: the node has zone=y | kubectl label node b zone=z --overwrite
b: NodeResourcesFit | asks for 5 cpu, and 4 of 4 are free | the node is too small even when it is empty, by 1: ask for less, or add a larger node
b: preemption | removing pods would not help
c: NodeAffinity | nodeSelector zone=z: the node has no label zone | kubectl label node c zone=z
c: NodeResourcesFit | asks for 5 cpu, and 1 of 1 are free | the node is too small even when it is empty, by 4: ask for less, or add a larger node
c: preemption | removing pods would not help`)
		w.pod("lonely", "1m", spec(`
spec:
  tolerations: [{operator: Exists}]
  affinity:
    podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: web}}}]}
    podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: db}}}]}`))
		check("lonely", `
b: InterPodAffinity | affinity: no pod that matches app=db in namespace default is on a node with zone=y | start such a pod there first, or make room where there is one
b: preemption | removing pods would not help
c: InterPodAffinity | the node lacks the label zone, which the pod's affinity names | kubectl label node c zone=...
c: preemption | removing pods would not help
a: InterPodAffinity | affinity: no pod that matches app=db in namespace default is on a node with zone=x | start such a pod there first, or make room where there is one
a: InterPodAffinity | anti-affinity: 1 pod on nodes with zone=x (default/small) match app=web in namespace default | a node with another zone is needed
a: preemption | removing pods would not help`)
		w.pod("gated", "1m", spec(`{spec: {schedulingGates: [{name: hold}], nodeSelector: {zone: x}}}`))
		if r, _ := whyOf(w, w.get("gated")); r.State != "Gated" || len(r.Pod) != 1 || !r.Nodes[0].Fits || r.Nodes[0].Node != "a" {
			t.Errorf("gated: %+v", r)
		}
		w.pod("claimant", "1m", spec(`{spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}}`))
		if r, _ := whyOf(w, w.get("claimant")); len(r.Pod) != 1 || r.Pod[0].Why != `persistentvolumeclaim "data" not found` ||
			r.Pod[0].Change != "create the PersistentVolumeClaim data in namespace default" || r.Nodes[0].Fits {
			t.Errorf("claimant: %+v", r.Pod)
		}
		// A pod that runs is looked at as if it had no node yet.
		r = check("small", `
a: fits
b: TaintToleration | the node has the taint dedicated=db:NoSchedule, which the pod does not tolerate | add the toleration {key: dedicated, operator: Equal, value: "db", effect: NoSchedule} to the pod, or: kubectl taint node b dedicated:NoSchedule-
b: NodeAffinity | nodeSelector zone=x: the node has zone=y | kubectl label node b zone=x --overwrite
c: NodeUnschedulable | the node is cordoned | kubectl uncordon c
c: NodeAffinity | nodeSelector zone=x: the node has no label zone | kubectl label node c zone=x
c: NodeResourcesFit | asks for 1500m cpu, and 1 of 1 are free | the node is too small even when it is empty, by 500m: ask for less, or add a larger node`)
		sum := int64(0)
		for _, s := range r.Nodes[0].Scores {
			sum += s.Score
		}
		if r.State != "Scheduled" || r.Node != "a" || r.Nodes[0].Total == 0 || sum != r.Nodes[0].Total {
			t.Errorf("small: %+v", r)
		}
	})
}

// TestWhySpread: the counts of domains are told, and where there would have to be room.
func TestWhySpread(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("a", "2", func(n *corev1.Node) { n.Labels["zone"] = "x" })
		w.node("b", "1", func(n *corev1.Node) { n.Labels["zone"] = "y" })
		w.pod("one", "1m", spec(`{metadata: {labels: {app: web}}, spec: {nodeSelector: {zone: x}}}`))
		w.pod("two", "1500m", spec(`
metadata: {labels: {app: web}}
spec:
  topologySpreadConstraints: [{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]`))
		r, got := whyOf(w, w.get("two"))
		want := `a: PodTopologySpread | zone=x has 1 pod that match app=web and the least is 0: with this one the skew is 2, maxSkew is 1 | make room on a node with zone=y, raise maxSkew, or use ScheduleAnyway
a: preemption | no pod there has a priority below 0
b: NodeResourcesFit | asks for 1500m cpu, and 1 of 1 are free | the node is too small even when it is empty, by 500m: ask for less, or add a larger node
b: preemption | removing pods would not help`
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if len(r.Domains) != 1 || fmt.Sprint(r.Domains[0].Counts) != "map[x:1 y:0]" || r.Domains[0].Least != 0 {
			t.Errorf("domains: %+v", r.Domains)
		}
	})
}

// TestWhyPreemption: candidates are told with their victims, and why others are not enough.
func TestWhyPreemption(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("a", "2")
		w.node("b", "2")
		low, high := int32(1), int32(100)
		w.pod("low", "1500m", func(p *corev1.Pod) { p.Spec.Priority = &low; p.Spec.NodeName = "a" })
		w.pod("rock", "1500m", func(p *corev1.Pod) { p.Spec.Priority = &high; p.Spec.NodeName = "b" })
		w.pod("pebble", "100m", func(p *corev1.Pod) { p.Spec.Priority = &low; p.Spec.NodeName = "b" })
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "vip", UID: "vip"}}
		spec(`{spec: {schedulerName: default-scheduler, priority: 50, containers: [{name: x, resources: {requests: {cpu: 1}}}]}}`)(p)
		_, got := whyOf(w, p)
		want := `a: NodeResourcesFit | asks for 1 cpu, and 500m of 2 are free | needs 500m more cpu; the most is asked for by default/low (1500m)
a: preemption | removing 1 pod would make room default/low
b: NodeResourcesFit | asks for 1 cpu, and 400m of 2 are free | needs 600m more cpu; the most is asked for by default/rock (1500m), default/pebble (100m)
b: preemption | not enough: without all 1 pod of priority below 50 it still says Insufficient cpu`
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// TestWhyKubelet: of a pod that has a node, what the node reports is told.
func TestWhyKubelet(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("a", "2")
		w.pod("web", "1m")
		mutate(w, client.Pods, "default", "web", "status", func(p *corev1.Pod) {
			setCondition(p, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ContainersNotReady", Message: "containers with unready status: [x]"}, metav1.NewTime(time.Now()))
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "x", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "back-off"}}}}
		})
		r, _ := whyOf(w, w.get("web"))
		want := "condition Ready is False: ContainersNotReady containers with unready status: [x]\ncontainer x waits: ImagePullBackOff back-off"
		if got := strings.Join(r.Kubelet, "\n"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}
