package scheduler

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

const helpless = " preemption: 0/%d nodes are available: %d Preemption is not helpful for scheduling."

func (w *world) class(name, provisioner string, change ...func(*storagev1.StorageClass)) {
	mode := storagev1.VolumeBindingWaitForFirstConsumer
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, f := range change {
		f(c)
	}
	w.create(client.StorageClasses.Name, c)
}

func (w *world) claim(name, class, size string) {
	w.create(client.PersistentVolumeClaims.Name, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}})
	synctest.Wait()
}

// volume makes one that is on a node, "" for all.
func (w *world) volume(name, class, size, node string, change ...func(*corev1.PersistentVolume)) {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{StorageClassName: class,
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable}}
	if node != "" {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}
	}
	for _, f := range change {
		f(v)
	}
	w.create(client.PersistentVolumes.Name, v)
	mutate(w, client.PersistentVolumes, "", name, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeAvailable })
}

// bound does what a controller of volumes does when it binds a claim.
func (w *world) bound(claim, volume string) {
	mutate(w, client.PersistentVolumeClaims, "default", claim, "", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName = volume
		setAnnotation(&c.Annotations, annotationBindCompleted, "yes")
	})
}

func (w *world) selected(claim string) string {
	c, _ := client.PersistentVolumeClaims.Get(w.Snapshot(), "default", claim)
	return c.Annotations[annotationSelectedNode]
}

func (w *world) claimOf(volume string) string {
	v, _ := client.PersistentVolumes.Get(w.Snapshot(), "", volume)
	if v.Spec.ClaimRef == nil {
		return ""
	}
	return v.Spec.ClaimRef.Name
}

func using(claims ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
	}
}

// TestLocalVolumes: a claim that waits for its first pod gets the smallest volume that can be reached, the pod goes there, and is bound when
// the claim is.
func TestLocalVolumes(t *testing.T) {
	simulate(t, func(w *world) {
		for _, n := range []string{"n1", "n2", "n3"} {
			w.node(n, "4")
		}
		w.class("local", noProvisioner)
		w.claim("data", "local", "5Gi")
		w.volume("small", "local", "1Gi", "n1")
		w.volume("other", "fast", "10Gi", "n1")
		w.pod("a", "1", using("data"))
		w.says("a", corev1.PodReasonUnschedulable, "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind."+fmt.Sprintf(helpless, 3, 3))
		w.recorded()

		w.volume("large", "local", "20Gi", "n2")
		w.volume("fitting", "local", "6Gi", "n3")
		time.Sleep(2 * time.Second) // the back-off
		synctest.Wait()
		w.on("a", "")
		if got := w.claimOf("fitting") + w.claimOf("large"); got != "data" {
			t.Fatalf("reserved for %q", got)
		}
		volume, node, free := "large", "n2", "fitting"
		if w.claimOf("fitting") != "" {
			volume, node, free = "fitting", "n3", "large"
		}
		// One that starts now comes to the same.
		fresh := New(Config{Client: w.Cluster, Log: w.scheduler.Log})
		fresh.load(w.Snapshot())
		about := fresh.circumstances(w.Snapshot(), newPod(w.get("a")))
		if d := fresh.cluster.schedule(newPod(w.get("a")), &about); d.Node != node || len(d.plan.bind) != 1 || d.plan.bind[0].volume.Name != volume {
			t.Errorf("after a restart: %q, %+v: %s", d.Node, d.plan, d.Message)
		}
		// What is reserved is not given to another pod meanwhile.
		w.claim("more", "local", "5Gi")
		w.claim("much", "local", "5Gi")
		w.pod("b", "1", using("more", "much"))
		w.says("b", corev1.PodReasonUnschedulable, "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind."+fmt.Sprintf(helpless, 3, 3))
		w.bound("data", volume)
		w.on("a", node)
		w.delete(client.Pods.Name, "b")
		w.pod("c", "1", using("more"))
		if w.claimOf(free) != "more" {
			t.Errorf("%s is for %q", free, w.claimOf(free))
		}
		w.bound("more", free)
		if w.get("c").Spec.NodeName == "" {
			t.Error("c has no node")
		}
	})
}

// TestProvisioning: the node that was chosen is told to the provisioner; when that fails the pod tries again.
func TestProvisioning(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4", func(n *corev1.Node) { n.Labels["zone"] = "x" })
		w.node("n2", "4", func(n *corev1.Node) { n.Labels["zone"] = "y" })
		w.class("cloud", "disk.example.com", func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"y"}}}}}
		})
		w.claim("data", "cloud", "5Gi")
		w.pod("a", "1", using("data"))
		w.on("a", "")
		if got := w.selected("data"); got != "n2" {
			t.Fatalf("selected node %q", got)
		}
		fresh := New(Config{Client: w.Cluster, Log: w.scheduler.Log})
		fresh.load(w.Snapshot())
		about := fresh.circumstances(w.Snapshot(), newPod(w.get("a")))
		if d := fresh.cluster.schedule(newPod(w.get("a")), &about); d.Node != "n2" || len(d.plan.provision) != 1 {
			t.Errorf("after a restart: %q, %+v: %s", d.Node, d.plan, d.Message)
		}
		w.recorded()
		mutate(w, client.PersistentVolumeClaims, "default", "data", "", func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, annotationSelectedNode) })
		w.wantEvents(`Warning FailedScheduling a: running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "data"`)
		w.says("a", corev1.PodReasonSchedulerError, `running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "data"`)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := w.selected("data"); got != "n2" {
			t.Fatalf("selected node %q after the failure", got)
		}
		w.volume("made", "cloud", "5Gi", "n2")
		w.bound("data", "made")
		w.on("a", "n2")
		w.wantEvents("Normal Scheduled a: Successfully assigned default/a to n2")
	})
}

// TestProvisioningEnds: a volume that does not come is not waited for longer than ten minutes, and not for a pod that is gone.
func TestProvisioningEnds(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.class("cloud", "disk.example.com")
		w.claim("data", "cloud", "5Gi")
		w.pod("a", "1", using("data"))
		w.recorded()
		time.Sleep(bindTimeout + time.Second)
		synctest.Wait()
		w.wantEvents(`Warning FailedScheduling a: running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded`)
		w.delete(client.Pods.Name, "a")
		w.claim("new", "cloud", "5Gi")
		w.pod("b", "1", using("new"))
		w.delete(client.Pods.Name, "b")
		if len(w.scheduler.awaiting) > 1 { // what is left is looked at when something happens
			t.Errorf("%d are waited for", len(w.scheduler.awaiting))
		}
		w.pod("c", "1")
		w.on("c", "n1")
	})
}

// TestCapacity: a driver that tells how much room it has gets no claim that is larger, and pods go where there is most.
func TestCapacity(t *testing.T) {
	simulate(t, func(w *world) {
		yes := true
		w.node("n1", "4")
		w.node("n2", "4")
		w.class("cloud", "disk.example.com")
		w.create(csiDrivers.Name, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk.example.com"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: &yes}})
		room := func(name, node, size string) {
			q := resource.MustParse(size)
			w.create(csiCapacities.Name, &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, StorageClassName: "cloud", Capacity: &q,
				NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}}})
			synctest.Wait()
		}
		room("one", "n1", "4Gi")
		w.claim("data", "cloud", "5Gi")
		w.pod("a", "1", using("data"))
		w.says("a", corev1.PodReasonUnschedulable, "0/2 nodes are available: 2 node(s) did not have enough free storage."+fmt.Sprintf(helpless, 2, 2))
		room("two", "n1", "6Gi")
		room("three", "n2", "100Gi")
		w.claim("spare", "cloud", "5Gi")
		w.pod("b", "1", using("spare"))
		if got := w.selected("spare"); got != "n2" {
			t.Errorf("selected %q, and there is most room on n2", got)
		}
		for _, claim := range []string{"data", "spare"} {
			w.volume("for-"+claim, "cloud", "5Gi", w.selected(claim))
			w.bound(claim, "for-"+claim)
		}
		w.on("a", "n1")
		w.on("b", "n2")
	})
}

// TestVolumeLimits: volumes of pods and attachments count against what a node's driver takes; one volume counts once.
func TestVolumeLimits(t *testing.T) {
	simulate(t, func(w *world) {
		limit := int32(2)
		w.node("n1", "8")
		w.create(client.CSINodes.Name, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: storagev1.CSINodeSpec{
			Drivers: []storagev1.CSINodeDriver{{Name: "disk.example.com", NodeID: "n1", Allocatable: &storagev1.VolumeNodeResources{Count: &limit}}}}})
		disk := func(name string) {
			w.claim(name, "cloud", "1Gi")
			w.volume("pv-"+name, "cloud", "1Gi", "", func(v *corev1.PersistentVolume) {
				v.Spec.NFS = nil
				v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk.example.com", VolumeHandle: name}
			})
			w.bound(name, "pv-"+name)
		}
		for _, name := range []string{"one", "two", "three"} {
			disk(name)
		}
		attached := "pv-two"
		w.create(client.VolumeAttachments.Name, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "left"}, Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "disk.example.com", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &attached}}})
		w.pod("a", "1", using("one"))
		w.on("a", "n1")
		w.pod("again", "1", using("one"))
		w.on("again", "n1")
		w.pod("c", "1", using("three"))
		w.says("c", corev1.PodReasonUnschedulable, "0/1 nodes are available: 1 node(s) exceed max volume count. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
		if err := w.Delete(context.Background(), client.Ref{Resource: client.VolumeAttachments.Name, Name: "left"}, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.on("c", "n1")
	})
}

// TestVolumeZone: a volume with zone labels keeps pods in its zone, but for nodes without any.
func TestVolumeZone(t *testing.T) {
	z := volumeZone{"pv", corev1.LabelFailureDomainBetaZone, []string{"a", "b"}} //nolint:staticcheck // still on old volumes
	for _, tt := range []struct {
		labels map[string]string
		want   bool
	}{
		{nil, true},
		{map[string]string{corev1.LabelTopologyZone: "b"}, true},
		{map[string]string{corev1.LabelTopologyZone: "c"}, false},
		{map[string]string{corev1.LabelTopologyRegion: "b"}, false},
		{map[string]string{corev1.LabelFailureDomainBetaZone: "a", corev1.LabelTopologyZone: "c"}, true}, //nolint:staticcheck // as above
	} {
		if got := z.allows(&node{labels: tt.labels}); got != tt.want {
			t.Errorf("%v: %v", tt.labels, got)
		}
	}
	if got := zonesOf(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", Labels: map[string]string{corev1.LabelTopologyZone: "x__y"}}}); len(got) != 1 || fmt.Sprint(got[0].values) != "[x y]" {
		t.Errorf("zones %v", got)
	}
}

// TestDisks: old kinds of volumes are shared on a node only where all read.
func TestDisks(t *testing.T) {
	gce := func(ro bool) disk { return disk{kind: "gce", id: "d", readOnly: ro} }
	rbd := func(monitor string) disk {
		return disk{kind: "rbd", id: "p/i", monitors: []string{monitor, "m0" + monitor}}
	}
	for _, tt := range []struct {
		a, b disk
		want bool
	}{
		{gce(true), gce(true), false},
		{gce(true), gce(false), true},
		{disk{kind: "aws", id: "d"}, gce(false), false},
		{rbd("1"), rbd("1"), true},
		{rbd("1"), rbd("2"), false},
	} {
		if got := tt.a.clashes(&tt.b); got != tt.want {
			t.Errorf("%v and %v: %v", tt.a, tt.b, got)
		}
	}
}
