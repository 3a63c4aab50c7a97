package model

import (
	"fmt"
	"slices"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// The workloads of a world.
const (
	web   = "web"   // a Deployment
	db    = "db"    // a StatefulSet
	agent = "agent" // a DaemonSet
	old   = "old"   // a ReplicationController
)

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func template(name string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: name + ":0"}}}}
}

// retouch makes another template; a broken one now and then, if broken ones are allowed.
func (w *world) retouch(t *corev1.PodTemplateSpec, mayBreak bool) {
	t.Spec.Containers[0].Image = fmt.Sprintf("%s:%d", t.Labels["app"], w.rnd.IntN(6))
	delete(t.Annotations, broken)
	if mayBreak && w.rnd.IntN(4) == 0 {
		t.Annotations = map[string]string{broken: "yes"}
	}
}

// begin makes nodes and workloads.
func (w *world) begin() {
	for i := range 3 {
		w.node(i)
	}
	w.remake()
}

func (w *world) node(i int) {
	w.create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"disk": []string{"ssd", "none"}[i%2]}}})
}

// remake makes the workloads that are not there.
func (w *world) remake() {
	s := w.Snapshot()
	if _, ok := client.Deployments.Get(s, namespace, web); !ok {
		n, limit := int32(w.rnd.IntN(6)), int32(w.rnd.IntN(3))
		d := &appsv1.Deployment{ObjectMeta: meta(web), Spec: appsv1.DeploymentSpec{Replicas: &n, RevisionHistoryLimit: &limit, Selector: selector(web), Template: template(web)}}
		w.deploymentStrategy(d)
		w.create(client.Deployments.Name, d)
	}
	if _, ok := client.StatefulSets.Get(s, namespace, db); !ok {
		n, limit := int32(w.rnd.IntN(5)), int32(w.rnd.IntN(3))
		set := &appsv1.StatefulSet{ObjectMeta: meta(db), Spec: appsv1.StatefulSetSpec{Replicas: &n, RevisionHistoryLimit: &limit, ServiceName: db,
			PodManagementPolicy: []appsv1.PodManagementPolicyType{appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement}[w.rnd.IntN(2)],
			Selector:            selector(db), Template: template(db),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}}}}
		w.setStrategy(set)
		w.retention(set)
		w.create(client.StatefulSets.Name, set)
	}
	if _, ok := client.DaemonSets.Get(s, namespace, agent); !ok {
		limit := int32(w.rnd.IntN(3))
		ds := &appsv1.DaemonSet{ObjectMeta: meta(agent), Spec: appsv1.DaemonSetSpec{RevisionHistoryLimit: &limit, Selector: selector(agent), Template: template(agent)}}
		w.daemonStrategy(ds)
		w.create(client.DaemonSets.Name, ds)
	}
	if _, ok := client.ReplicationControllers.Get(s, namespace, old); !ok {
		n, t := int32(w.rnd.IntN(4)), template(old)
		w.create(client.ReplicationControllers.Name, &corev1.ReplicationController{ObjectMeta: meta(old), Spec: corev1.ReplicationControllerSpec{
			Replicas: &n, Selector: selector(old).MatchLabels, Template: &t}})
	}
}

func (w *world) deploymentStrategy(d *appsv1.Deployment) {
	surge, unavailable := intstr.FromInt32(int32(w.rnd.IntN(3))), intstr.FromString(fmt.Sprintf("%d%%", w.rnd.IntN(4)*20))
	if surge.IntVal == 0 {
		unavailable = intstr.FromString("25%")
	}
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}}
	if w.rnd.IntN(4) == 0 {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
}

func (w *world) setStrategy(set *appsv1.StatefulSet) {
	partition, unavailable := int32(w.rnd.IntN(3)), intstr.FromInt32(int32(1+w.rnd.IntN(3)))
	set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition, MaxUnavailable: &unavailable}}
	if w.rnd.IntN(5) == 0 {
		set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	}
}

func (w *world) retention(set *appsv1.StatefulSet) {
	policies := []appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
	set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: policies[w.rnd.IntN(2)], WhenScaled: policies[w.rnd.IntN(2)]}
}

func (w *world) daemonStrategy(ds *appsv1.DaemonSet) {
	surge, unavailable := intstr.FromInt32(0), intstr.FromString(fmt.Sprintf("%d%%", 10+w.rnd.IntN(60)))
	if w.rnd.IntN(2) == 0 {
		surge, unavailable = unavailable, surge
	}
	ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable}}
	if w.rnd.IntN(5) == 0 {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	}
}

// step does one thing that users or nodes could do.
func (w *world) step() {
	switch w.rnd.IntN(8) {
	case 0, 1:
		w.editDeployment()
	case 2, 3:
		w.editSet()
	case 4:
		w.editDaemon()
	case 5:
		w.disturbPod()
	case 6:
		w.disturbNode()
	case 7:
		w.remove()
	}
}

func (w *world) editDeployment() {
	edit(w, client.Deployments, namespace, web, "", func(d *appsv1.Deployment) {
		switch w.rnd.IntN(5) {
		case 0:
			n := int32(w.rnd.IntN(7))
			d.Spec.Replicas = &n
		case 1:
			w.deploymentStrategy(d)
		case 2:
			d.Spec.Paused = !d.Spec.Paused
		default:
			w.retouch(&d.Spec.Template, true)
		}
	})
	edit(w, client.ReplicationControllers, namespace, old, "", func(rc *corev1.ReplicationController) {
		n := int32(w.rnd.IntN(4))
		rc.Spec.Replicas = &n
	})
}

func (w *world) editSet() {
	edit(w, client.StatefulSets, namespace, db, "", func(set *appsv1.StatefulSet) {
		switch w.rnd.IntN(7) {
		case 0, 1:
			n := int32(w.rnd.IntN(6))
			set.Spec.Replicas = &n
		case 2:
			w.setStrategy(set)
		case 3:
			w.retention(set)
		case 4:
			set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(w.rnd.IntN(3))}
		default:
			w.retouch(&set.Spec.Template, true)
		}
	})
}

func (w *world) editDaemon() {
	edit(w, client.DaemonSets, namespace, agent, "", func(ds *appsv1.DaemonSet) {
		switch w.rnd.IntN(4) {
		case 0:
			w.daemonStrategy(ds)
		case 1:
			ds.Spec.Template.Spec.NodeSelector = []map[string]string{nil, {"disk": "ssd"}}[w.rnd.IntN(2)]
		default:
			w.retouch(&ds.Spec.Template, true)
		}
	})
}

// disturbPod deletes a pod, has it fail, or be not ready for a while.
func (w *world) disturbPod() {
	pods := all(w.Snapshot(), client.Pods)
	if len(pods) == 0 {
		return
	}
	pod := pods[w.rnd.IntN(len(pods))]
	switch n := w.rnd.IntN(3); {
	case n == 0:
		w.delete("pods", namespace, pod.Name, client.DeleteOptions{UID: pod.UID})
	case pod.DeletionTimestamp != nil || pod.Spec.NodeName == "":
	case n == 1: // its containers end, and then that is reported
		w.machines.kill(func(uid types.UID, _ process) bool { return uid == pod.UID })
		edit(w, client.Pods, namespace, pod.Name, "status", func(p *corev1.Pod) {
			reconciletest.NotReady(p, time.Now())
			p.Status.Phase = corev1.PodFailed
		})
	case pod.Status.Phase == corev1.PodRunning:
		edit(w, client.Pods, namespace, pod.Name, "status", func(p *corev1.Pod) {
			if c := condition(p); c != nil && c.Status == corev1.ConditionTrue {
				c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(time.Now()).Rfc3339Copy()
			}
		})
	}
}

// disturbNode silences a node, wakes it, evicts its pods, destroys it, makes another one, or taints one.
func (w *world) disturbNode() {
	i := w.rnd.IntN(4)
	name := fmt.Sprint("n", i)
	node, ok := client.Nodes.Get(w.Snapshot(), "", name)
	if !ok {
		w.node(i)
		return
	}
	switch w.rnd.IntN(4) {
	case 0:
		edit(w, client.Nodes, "", name, "", func(n *corev1.Node) { metav1.SetMetaDataAnnotation(&n.ObjectMeta, down, "yes") })
		w.advance(time.Duration(w.rnd.IntN(4)) * time.Second)
		for pod := range client.Pods.Index(w.Snapshot(), "node", name) { // what the eviction by taints does
			w.delete("pods", namespace, pod.Name, client.DeleteOptions{UID: pod.UID})
		}
	case 1:
		w.wake(name)
	case 2:
		if len(all(w.Snapshot(), client.Nodes)) > 2 {
			w.destroy(node.Name)
		}
	case 3:
		edit(w, client.Nodes, "", name, "", func(n *corev1.Node) {
			n.Spec.Taints = nil
			if effect := []corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute}[w.rnd.IntN(3)]; effect != "" {
				n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: effect}}
			}
		})
	}
}

func (w *world) wake(name string) {
	edit(w, client.Nodes, "", name, "", func(n *corev1.Node) { delete(n.Annotations, down) })
}

// destroy pulls the plug of a machine and then tells the API.
func (w *world) destroy(name string) {
	edit(w, client.Nodes, "", name, "", func(n *corev1.Node) { metav1.SetMetaDataAnnotation(&n.ObjectMeta, down, "yes") })
	synctest.Wait() // its kubelet does nothing any more
	w.machines.kill(func(_ types.UID, p process) bool { return p.node == name })
	w.delete("nodes", "", name, client.DeleteOptions{})
}

// remove deletes a workload in one of the three ways, and some time later makes it again.
func (w *world) remove() {
	kinds := [][2]string{{client.Deployments.Name, web}, {client.StatefulSets.Name, db}, {client.DaemonSets.Name, agent}, {client.ReplicationControllers.Name, old}}
	k := kinds[w.rnd.IntN(len(kinds))]
	ways := []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan}
	w.delete(k[0], namespace, k[1], client.DeleteOptions{Propagation: ways[w.rnd.IntN(len(ways))]})
	w.advance(time.Duration(w.rnd.IntN(20)) * time.Second)
	w.remake()
}

// calm undoes what keeps the workloads from what they ask for.
func (w *world) calm() {
	w.remake()
	for _, node := range slices.Clone(all(w.Snapshot(), client.Nodes)) {
		edit(w, client.Nodes, "", node.Name, "", func(n *corev1.Node) {
			n.Spec.Taints = nil
			delete(n.Annotations, down)
		})
	}
	edit(w, client.Deployments, namespace, web, "", func(d *appsv1.Deployment) {
		d.Spec.Paused = false
		delete(d.Spec.Template.Annotations, broken)
	})
	edit(w, client.StatefulSets, namespace, db, "", func(set *appsv1.StatefulSet) {
		delete(set.Spec.Template.Annotations, broken)
		partition := int32(0)
		if set.Spec.UpdateStrategy.RollingUpdate == nil {
			w.setStrategy(set)
		}
		if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil {
			r.Partition = &partition
		} else {
			set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType}
		}
	})
	edit(w, client.DaemonSets, namespace, agent, "", func(ds *appsv1.DaemonSet) {
		delete(ds.Spec.Template.Annotations, broken)
		for ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
			w.daemonStrategy(ds)
		}
	})
}
