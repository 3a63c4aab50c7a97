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
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// TestScenarios runs testdata/*.txtar. In each, "cluster" lists nodes, namespaces, budgets and pods
// in a short form (see parse), and every file "pod ..." is a pod that is then scheduled, in
// order, followed by "want ..." with the node or the message. A pod that was placed stays.
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
	}
	Namespaces map[string]map[string]string
	Pods       []struct {
		Name, Node string
		Spec       corev1.Pod
	}
	Budgets []*policyv1.PodDisruptionBudget
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
	c.budgets = func() Budgets { return s.Budgets }
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
	d := c.Schedule(p, nil)
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
	var names []string
	for _, v := range d.Victims {
		names = append(names, v.Name)
	}
	sort.Strings(names)
	return fmt.Sprintf("%s preempts %s on %s", d.Message, strings.Join(names, " "), d.Nominated)
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
