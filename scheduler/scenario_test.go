package scheduler

import (
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// TestScenarios runs testdata/*.txtar. In each, "cluster" lists nodes, namespaces, budgets and pods
// in a short form (see parse), and every file "pod ..." is a pod that is then scheduled, in
// order, followed by "want ..." with the node or the message. A pod that was placed stays. "scores" and "explain" show,
// behind a line "---", what each node is worth to a pod, or says to it.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := NewCluster()
			var got string
			for _, f := range archive.Files {
				kind, name, _ := strings.Cut(f.Name, " ")
				switch kind {
				case "cluster":
					populate(t, c, f.Data)
				case "pod":
					got = decide(t, c, name, f.Data)
				case "scores":
					if got, want := scoresOf(t, c, f.Data), strings.TrimSpace(string(f.Data[strings.Index(string(f.Data), "---")+4:])); got != want {
						t.Errorf("%s:\n got %s\nwant %s", f.Name, got, want)
					}
				case "explain":
					if got, want := explain(t, c, f.Data), strings.TrimSpace(string(f.Data[strings.Index(string(f.Data), "---")+4:])); got != want {
						t.Errorf("%s:\n got %s\nwant %s", f.Name, got, want)
					}
				case "want":
					if want := strings.TrimSpace(string(f.Data)); got != want {
						t.Errorf("%s:\n got %s\nwant %s", name, got, want)
					}
				default:
					t.Fatalf("unknown section %q", f.Name)
				}
			}
		})
	}
}

// setup is the short form of a cluster.
type setup struct {
	Nodes []struct {
		Name          string
		CPU, Memory   string
		Pods          string
		Labels        map[string]string
		Taints        []corev1.Taint
		Unschedulable bool
		Images        map[string]int64
		Extended      map[string]string
	}
	Namespaces map[string]map[string]string
	Pods       []struct {
		Name, Node string
		Spec       corev1.Pod
	}
	Budgets []*policyv1.PodDisruptionBudget
	// Nominate says which unscheduled pods are nominated to which node.
	Nominate []struct {
		Name, Node string
		Spec       corev1.Pod
	}
	// Gone are nodes to take out.
	Gone []string
}

func populate(t *testing.T, c *Cluster, data []byte) {
	t.Helper()
	var s setup
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		node := &corev1.Node{}
		node.Name, node.Labels = n.Name, n.Labels
		if node.Labels == nil {
			node.Labels = map[string]string{}
		}
		node.Labels[corev1.LabelHostname] = n.Name
		node.Spec.Taints, node.Spec.Unschedulable = n.Taints, n.Unschedulable
		node.Status.Allocatable = quantities(map[corev1.ResourceName]string{
			"cpu": or(n.CPU, "4"), "memory": or(n.Memory, "8Gi"), "pods": or(n.Pods, "110"), "ephemeral-storage": "100Gi"})
		for name, q := range n.Extended {
			node.Status.Allocatable[corev1.ResourceName(name)] = resource.MustParse(q)
		}
		for name, size := range n.Images {
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{Names: []string{name}, SizeBytes: size})
		}
		c.SetNode(node)
	}
	for name, labels := range s.Namespaces {
		ns := &corev1.Namespace{}
		ns.Name, ns.Labels = name, labels
		c.SetNamespace(name, ns)
	}
	for i := range s.Pods {
		p := s.Pods[i].Spec.DeepCopy()
		complete(p, s.Pods[i].Name)
		c.Assign(p, s.Pods[i].Node, true)
	}
	for i := range s.Nominate {
		p := s.Nominate[i].Spec.DeepCopy()
		complete(p, s.Nominate[i].Name)
		c.Nominate(p, s.Nominate[i].Node)
	}
	for _, name := range s.Gone {
		c.RemoveNode(name)
	}
	if s.Budgets != nil {
		c.budgets = func() Budgets { return s.Budgets }
	}
}

// about makes what a pod names out of its annotations: "spread" is the selector of its siblings, "problem" a problem,
// "volume-zone" the zone of a volume that it uses, "exclusive" a claim that only one pod may use.
func about(t *testing.T, c *Cluster, p *corev1.Pod) Circumstances {
	t.Helper()
	var a Circumstances
	if text := p.Annotations["spread"]; text != "" {
		selector, err := labels.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		a.Siblings = NewSiblings(p.Namespace, selector)
	}
	a.Problem = p.Annotations["problem"]
	if zone := p.Annotations["volume-zone"]; zone != "" {
		a.Volumes = append(a.Volumes, &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{zone}}}}}}})
	}
	if claim := p.Annotations["exclusive"]; claim != "" {
		a.Exclusive = append(a.Exclusive, p.Namespace+"/"+claim)
	}
	_, a.MissingVolume = p.Annotations["missing-volume"]
	return a
}

func complete(p *corev1.Pod, name string) {
	p.Name, p.UID = name, types.UID(name)
	if p.Namespace == "" {
		p.Namespace = "default"
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func decide(t *testing.T, c *Cluster, name string, data []byte) string {
	t.Helper()
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(data, p); err != nil {
		t.Fatal(err)
	}
	complete(p, name)
	before := totals(c)
	d := c.Schedule(p, about(t, c, p))
	if after := totals(c); before != after {
		t.Errorf("a pass changed the totals:\nbefore %s\nafter  %s", before, after)
	}
	if d.Node != "" {
		c.Assign(p, d.Node, false)
		return d.Node
	}
	if len(d.Victims) == 0 {
		return d.Message
	}
	if d.Nominated == "" || !strings.Contains(d.Message, "node "+d.Nominated+",") {
		t.Errorf("victims on %q, and the message is %q", d.Nominated, d.Message)
	}
	var names []string
	for _, v := range d.Victims {
		names = append(names, v.Name)
	}
	sort.Strings(names)
	return fmt.Sprintf("%s: %s", d.Message, strings.Join(names, " "))
}

func parsePod(t *testing.T, data []byte) *corev1.Pod {
	t.Helper()
	text, _, _ := strings.Cut(string(data), "---\n")
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		t.Fatal(err)
	}
	complete(p, "asked")
	return p
}

// scoresOf is "node score, node score" of all nodes that a pod fits on.
func scoresOf(t *testing.T, c *Cluster, data []byte) string {
	p := parsePod(t, data)
	circumstances := about(t, c, p)
	cand := c.candidate(newPod(p), &circumstances)
	nodes, _ := c.feasible(cand)
	var all []string
	for i, score := range c.scores(cand, nodes) {
		all = append(all, fmt.Sprintf("%s %d", nodes[i].name, score))
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

// explain is a line for each node.
func explain(t *testing.T, c *Cluster, data []byte) string {
	p := parsePod(t, data)
	var all []string
	for _, e := range c.Explain(p, about(t, c, p)) {
		all = append(all, strings.TrimSpace(e.Node+": "+e.Refused))
	}
	return strings.Join(all, "\n")
}

// totals is a form of all running totals that can be compared.
func totals(c *Cluster) string {
	var all []string
	for name, n := range c.nodes {
		all = append(all, fmt.Sprintf("%s %+v %d %d %d %d", name, n.used, n.scoredCPU, n.scoredMemory, len(n.pods), len(n.ports)))
	}
	sort.Strings(all)
	return strings.Join(all, "; ")
}
