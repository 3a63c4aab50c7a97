package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// storage is a random world of volumes, and the rules applied to it in the slowest way.
type storage struct {
	*rand.Rand
	nodes   []*corev1.Node
	classes map[string]*storagev1.StorageClass
	claims  []*corev1.PersistentVolumeClaim
	volumes []*corev1.PersistentVolume
}

func (s *storage) one(of ...string) string { return of[s.IntN(len(of))] }

func (s *storage) size() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(fmt.Sprintf("%dGi", 1+s.IntN(5)))}
}

func newStorage(r *rand.Rand) *storage {
	s := &storage{Rand: r, classes: map[string]*storagev1.StorageClass{}}
	late := storagev1.VolumeBindingWaitForFirstConsumer
	for _, name := range []string{"local", "cloud"} {
		s.classes[name] = &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: noProvisioner, VolumeBindingMode: &late}
	}
	cloud := s.classes["cloud"]
	if cloud.Provisioner = "disk.example.com"; s.IntN(2) == 0 {
		cloud.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"a", "b"}}}}}
	}
	for i := range 4 {
		s.nodes = append(s.nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{
			corev1.LabelHostname: fmt.Sprint("n", i), "zone": s.one("a", "b", "c")}}})
	}
	for i := range 1 + s.IntN(3) {
		class := s.one("local", "local", "cloud")
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("c", i), UID: types.UID(fmt.Sprint("c", i))},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: s.size()},
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(s.one("ReadWriteOnce", "ReadWriteMany"))}}}
		if s.IntN(3) == 0 {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"kind": s.one("x", "y")}}
		}
		if class == "cloud" && s.IntN(3) == 0 {
			setAnnotation(&c.Annotations, annotationSelectedNode, s.one("n0", "n1"))
		}
		s.claims = append(s.claims, c)
	}
	for i := range s.IntN(8) {
		s.volumes = append(s.volumes, s.volume(fmt.Sprint("v", i)))
	}
	return s
}

func (s *storage) volume(name string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"kind": s.one("x", "y")}},
		Spec: corev1.PersistentVolumeSpec{StorageClassName: s.one("local", "local", "cloud"), Capacity: s.size(),
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
	if s.IntN(2) == 0 {
		v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.ReadWriteMany)
	}
	if s.IntN(4) != 0 {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{s.one("a", "b", "c")}}}}}}}
	}
	switch s.IntN(6) {
	case 0:
		v.Status.Phase = corev1.VolumeReleased
	case 1:
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: s.one("c0", "c1", "stranger")}
	case 2:
		block := corev1.PersistentVolumeBlock
		v.Spec.VolumeMode = &block
	}
	return v
}

// could tells whether a claim can have a volume on a node, and whether the volume is kept for it.
func (s *storage) could(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume, n *corev1.Node) (ok, kept bool) {
	kept = v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Name == c.Name
	here := v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] == n.Labels["zone"]
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	if have.Cmp(want) < 0 || v.Spec.VolumeMode != nil || v.Spec.ClaimRef != nil && !kept {
		return false, false
	}
	if kept {
		return here, true
	}
	ok = here && v.Status.Phase == corev1.VolumeAvailable && v.Spec.StorageClassName == *c.Spec.StorageClassName &&
		slices.Contains(v.Spec.AccessModes, c.Spec.AccessModes[0])
	if c.Spec.Selector != nil {
		ok = ok && c.Spec.Selector.MatchLabels["kind"] == v.Labels["kind"]
	}
	return ok, false
}

// decide says which volume each claim gets on a node, "new" for a new one, or nil if the node is refused. Smaller claims choose first.
func (s *storage) decide(n *corev1.Node) map[string]string {
	result := map[string]string{}
	taken := map[string]bool{}
	claims := slices.Clone(s.claims)
	slices.SortStableFunc(claims, func(a, b *corev1.PersistentVolumeClaim) int {
		x, y := a.Spec.Resources.Requests[corev1.ResourceStorage], b.Spec.Resources.Requests[corev1.ResourceStorage]
		return x.Cmp(y)
	})
	for _, c := range claims {
		chosen, bound := "", false
		var least resource.Quantity
		for _, v := range s.volumes {
			ok, kept := s.could(c, v, n)
			if _, asked := c.Annotations[annotationSelectedNode]; asked || taken[v.Name] {
				continue
			}
			size := v.Spec.Capacity[corev1.ResourceStorage]
			switch {
			case kept: // nothing else comes into question
				if chosen, bound = "", true; ok {
					chosen = v.Name
				}
			case ok && !bound && (chosen == "" || size.Cmp(least) < 0):
				chosen, least = v.Name, size
			}
		}
		if chosen == "" {
			class := s.classes[*c.Spec.StorageClassName]
			if node, asked := c.Annotations[annotationSelectedNode]; asked && node != n.Name || class.Provisioner == noProvisioner ||
				class.AllowedTopologies != nil && n.Labels["zone"] == "c" {
				return nil
			}
			chosen = "new"
		}
		taken[chosen], result[c.Name] = true, chosen
		delete(taken, "new")
	}
	return result
}

// TestVolumesModel compares the plans for random claims, volumes and nodes with the rules applied one by one.
func TestVolumesModel(t *testing.T) {
	fits := 0
	for seed := range uint64(3000) {
		s := newStorage(rand.New(rand.NewPCG(seed, 1)))
		two := 0
		for _, v := range s.volumes { // which of two volumes kept for one claim it gets is not said
			if v.Spec.ClaimRef != nil {
				two++
			}
		}
		if two > 1 {
			continue
		}
		m := memory.New(store.Options{Stamp: func(any, store.Revision) {}})
		var txn store.Txn
		put := func(resource, namespace, name string, o any) {
			txn.Ops = append(txn.Ops, store.Op{Key: store.Key{Resource: resource, Namespace: namespace, Name: name}, Object: o})
		}
		for name, c := range s.classes {
			put(client.StorageClasses.Name, "", name, c)
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "p"}}
		for _, c := range s.claims {
			put(client.PersistentVolumeClaims.Name, "default", c.Name, c)
			using(c.Name)(pod)
		}
		for _, v := range s.volumes {
			put(client.PersistentVolumes.Name, "", v.Name, v)
		}
		if _, _, err := m.Commit(context.Background(), txn); err != nil {
			t.Fatal(err)
		}
		sched := New(Config{})
		sched.load(m.Snapshot())
		for _, n := range s.nodes {
			sched.cluster.SetNode(n)
		}
		about := sched.circumstances(m.Snapshot(), newPod(pod))
		if about.Problem != "" {
			t.Fatal(about.Problem)
		}
		cand := sched.cluster.candidate(newPod(pod), &about)
		for _, n := range sched.cluster.order {
			want := s.decide(n.object)
			plan, why := cand.plan(n)
			got := map[string]string{}
			for _, b := range plan.bind {
				got[b.claim.Name] = b.volume.Name
			}
			for _, p := range plan.provision {
				got[p.claim.Name] = "new"
			}
			if want == nil && why == nil || want != nil && (why != nil || fmt.Sprint(got) != fmt.Sprint(want)) {
				t.Errorf("seed %d, node %s: got %v (%v), want %v", seed, n.name, got, why, want)
			}
			if want != nil {
				fits++
			}
		}
	}
	if fits < 1000 {
		t.Errorf("only %d nodes fit: the worlds are too hard", fits)
	}
}
