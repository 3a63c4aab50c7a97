package model

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

func get[T api.Object](s store.Snapshot, r client.Resource[T], name string) (T, error) {
	obj, ok := r.Get(s, namespace, name)
	if !ok {
		return obj, fmt.Errorf("%s %s is not there", r.Name, name)
	}
	return obj, nil
}

// podsOfApp are the pods with a label app, without those that have ended for good. Replica sets and replication
// controllers leave pods that failed to the pod garbage collector, the others do not.
func podsOfApp(s store.Snapshot, app string) []*corev1.Pod {
	var pods []*corev1.Pod
	for pod := range client.Pods.List(s, namespace) {
		left := app == web || app == old || pod.DeletionTimestamp != nil
		if pod.Labels["app"] == app && !(podstate.Terminal(pod) && left) {
			pods = append(pods, pod)
		}
	}
	return pods
}

func image(t *corev1.PodTemplateSpec) string { return t.Spec.Containers[0].Image }

func imageOf(pod *corev1.Pod) string { return pod.Spec.Containers[0].Image }

// settled holds that what is there is what the workloads ask for.
func settled(s store.Snapshot) error {
	for _, check := range []func(store.Snapshot) error{settledDeployment, settledSet, settledDaemon, settledController, nothingLeft} {
		if err := check(s); err != nil {
			return err
		}
	}
	return nil
}

// fine holds that there are n pods and all of them ready, of one template if it is named.
func fine(pods []*corev1.Pod, n int, image string) error {
	for _, pod := range pods {
		if !podstate.Active(pod) || !podstate.Ready(pod) {
			return fmt.Errorf("pod %s is not ready", pod.Name)
		}
		if image != "" && imageOf(pod) != image {
			return fmt.Errorf("pod %s runs %s, want %s", pod.Name, imageOf(pod), image)
		}
	}
	if len(pods) != n {
		return fmt.Errorf("%d pods, want %d", len(pods), n)
	}
	return nil
}

func settledDeployment(s store.Snapshot) error {
	d, err := get(s, client.Deployments, web)
	if err != nil {
		return err
	}
	n := *d.Spec.Replicas
	if err := fine(podsOfApp(s, web), int(n), image(&d.Spec.Template)); err != nil {
		return fmt.Errorf("deployment: %w", err)
	}
	sets, highest, current := 0, "", ""
	for rs := range client.ReplicaSets.List(s, namespace) {
		sets++
		rev := rs.Annotations["deployment.kubernetes.io/revision"]
		if len(rev) > len(highest) || len(rev) == len(highest) && rev > highest {
			highest = rev
		}
		switch {
		case !metav1.IsControlledBy(rs, d):
			return fmt.Errorf("replica set %s is nobody's", rs.Name)
		case image(&rs.Spec.Template) == image(&d.Spec.Template) && rs.Spec.Template.Annotations[broken] == "":
			current = rev
		case *rs.Spec.Replicas != 0:
			return fmt.Errorf("the old replica set %s has replicas", rs.Name)
		}
	}
	if current != highest || d.Annotations["deployment.kubernetes.io/revision"] != highest {
		return fmt.Errorf("deployment: revision %s, its replica set %s, the highest %s", d.Annotations["deployment.kubernetes.io/revision"], current, highest)
	}
	if sets > int(*d.Spec.RevisionHistoryLimit)+1 {
		return fmt.Errorf("%d replica sets, the history holds %d", sets, *d.Spec.RevisionHistoryLimit)
	}
	st := d.Status
	if st.Replicas != n || st.UpdatedReplicas != n || st.ReadyReplicas != n || st.AvailableReplicas != n || st.UnavailableReplicas != 0 ||
		st.ObservedGeneration != d.Generation || st.TerminatingReplicas == nil || *st.TerminatingReplicas != 0 {
		return fmt.Errorf("deployment: status %+v, want %d of everything", st, n)
	}
	for _, c := range st.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason != "NewReplicaSetAvailable" || c.Type == appsv1.DeploymentReplicaFailure {
			return fmt.Errorf("deployment: condition %+v", c)
		}
	}
	return nil
}

func settledSet(s store.Snapshot) error {
	set, err := get(s, client.StatefulSets, db)
	if err != nil {
		return err
	}
	n, start := int(*set.Spec.Replicas), 0
	if set.Spec.Ordinals != nil {
		start = int(set.Spec.Ordinals.Start)
	}
	if err := fine(podsOfApp(s, db), n, image(&set.Spec.Template)); err != nil {
		return fmt.Errorf("stateful set: %w", err)
	}
	for i := start; i < start+n; i++ {
		name := fmt.Sprint(db, "-", i)
		pod, ok := client.Pods.Get(s, namespace, name)
		switch {
		case !ok:
			return fmt.Errorf("stateful set: no pod %s", name)
		case pod.Labels[appsv1.ControllerRevisionHashLabelKey] != set.Status.UpdateRevision:
			return fmt.Errorf("pod %s is of revision %s, the set of %s", name, pod.Labels[appsv1.ControllerRevisionHashLabelKey], set.Status.UpdateRevision)
		case pod.Spec.Hostname != name || pod.Spec.Subdomain != db || pod.Labels[appsv1.PodIndexLabel] != fmt.Sprint(i):
			return fmt.Errorf("pod %s is not itself: %s.%s, index %s", name, pod.Spec.Hostname, pod.Spec.Subdomain, pod.Labels[appsv1.PodIndexLabel])
		}
		if err := ownedAsAsked(s, set, "data-"+name); err != nil {
			return err
		}
	}
	st := set.Status
	if int(st.Replicas) != n || int(st.ReadyReplicas) != n || int(st.AvailableReplicas) != n || int(st.UpdatedReplicas) != n || int(st.CurrentReplicas) != n ||
		st.CurrentRevision != st.UpdateRevision || st.ObservedGeneration != set.Generation {
		return fmt.Errorf("stateful set: status %+v, want %d of everything", st, n)
	}
	return historyOf(s, set, *set.Spec.RevisionHistoryLimit)
}

// ownedAsAsked holds that the claim of a pod which is there goes with whom the retention policy says.
func ownedAsAsked(s store.Snapshot, set *appsv1.StatefulSet, name string) error {
	c, err := get(s, client.PersistentVolumeClaims, name)
	if err != nil {
		return err
	}
	goes := set.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	if metav1.IsControlledBy(c, set) != goes || len(c.OwnerReferences) > 1 || c.DeletionTimestamp != nil {
		return fmt.Errorf("claim %s is owned by %+v, deleted at %v; it should go with the set: %v", name, c.OwnerReferences, c.DeletionTimestamp, goes)
	}
	return nil
}

func historyOf(s store.Snapshot, owner api.Object, limit int32) error {
	n := int32(0)
	for rev := range client.ControllerRevisions.List(s, namespace) {
		if metav1.IsControlledBy(rev, owner) {
			n++
		}
	}
	if n > limit+1 {
		return fmt.Errorf("%s: %d revisions, the history holds %d", owner.GetName(), n, limit)
	}
	return nil
}

// wanted tells whether a pod of the daemon set is to be on a node.
func wanted(ds *appsv1.DaemonSet, node *corev1.Node) bool {
	for k, v := range ds.Spec.Template.Spec.NodeSelector {
		if node.Labels[k] != v {
			return false
		}
	}
	return len(node.Spec.Taints) == 0
}

func settledDaemon(s store.Snapshot) error {
	ds, err := get(s, client.DaemonSets, agent)
	if err != nil {
		return err
	}
	desired := int32(0)
	on := map[string]int{}
	for _, pod := range podsOfApp(s, agent) {
		on[pod.Spec.NodeName]++
	}
	for node := range client.Nodes.List(s, "") {
		want := 0
		if wanted(ds, node) {
			desired++
			want = 1
		}
		if on[node.Name] != want {
			return fmt.Errorf("daemon set: %d pods on %s, want %d", on[node.Name], node.Name, want)
		}
	}
	if err := fine(podsOfApp(s, agent), int(desired), image(&ds.Spec.Template)); err != nil {
		return fmt.Errorf("daemon set: %w", err)
	}
	st := ds.Status
	if st.DesiredNumberScheduled != desired || st.CurrentNumberScheduled != desired || st.NumberAvailable != desired || st.UpdatedNumberScheduled != desired ||
		st.NumberMisscheduled != 0 || st.ObservedGeneration != ds.Generation {
		return fmt.Errorf("daemon set: status %+v, want %d of everything", st, desired)
	}
	return historyOf(s, ds, *ds.Spec.RevisionHistoryLimit)
}

func settledController(s store.Snapshot) error {
	rc, err := get(s, client.ReplicationControllers, old)
	if err != nil {
		return err
	}
	n := *rc.Spec.Replicas
	if err := fine(podsOfApp(s, old), int(n), ""); err != nil {
		return fmt.Errorf("replication controller: %w", err)
	}
	if st := rc.Status; st.Replicas != n || st.ReadyReplicas != n || st.AvailableReplicas != n || st.ObservedGeneration != rc.Generation || len(st.Conditions) > 0 {
		return fmt.Errorf("replication controller: status %+v, want %d of everything", st, n)
	}
	return nil
}

// nothingLeft holds that everybody has the controller that is there, but for pods that failed: nobody adopts those.
func nothingLeft(s store.Snapshot) error {
	for pod := range client.Pods.List(s, namespace) {
		if metav1.GetControllerOfNoCopy(pod) == nil && !podstate.Terminal(pod) {
			return fmt.Errorf("pod %s is nobody's", pod.Name)
		}
	}
	for rev := range client.ControllerRevisions.List(s, namespace) {
		if metav1.GetControllerOfNoCopy(rev) == nil {
			return fmt.Errorf("revision %s is nobody's", rev.Name)
		}
	}
	return nil
}

// always holds what is so at every revision: no identity of a stateful set has two pods that live.
func always(s store.Snapshot) error {
	lives := map[string]string{}
	for pod := range client.Pods.List(s, namespace) {
		id := pod.Labels[appsv1.StatefulSetPodNameLabel]
		if id == "" || podstate.Terminal(pod) {
			continue
		}
		if lives[id] != "" {
			return fmt.Errorf("%s is both %s and %s", id, lives[id], pod.Name)
		}
		lives[id] = pod.Name
	}
	return nil
}

// bounds is how far a rollout may go, for a world in which nobody but the controllers does anything.
type bounds struct{ webMost, webLeast, dbLeast, agentLeast, agentMost int }

func (w *world) bounds() bounds {
	s := w.Snapshot()
	d, _ := client.Deployments.Get(s, namespace, web)
	set, _ := client.StatefulSets.Get(s, namespace, db)
	ds, _ := client.DaemonSets.Get(s, namespace, agent)
	n := int(*d.Spec.Replicas)
	b := bounds{webMost: n}
	if r := d.Spec.Strategy.RollingUpdate; r != nil {
		surge, unavailable := scaled(r.MaxSurge, n, true), scaled(r.MaxUnavailable, n, false)
		if surge == 0 && unavailable == 0 {
			unavailable = 1
		}
		b.webMost, b.webLeast = n+surge, n-unavailable
	}
	n = int(*set.Spec.Replicas)
	b.dbLeast = n - 1
	if r := set.Spec.UpdateStrategy.RollingUpdate; r != nil {
		b.dbLeast = n - max(scaled(r.MaxUnavailable, n, false), 1)
	}
	desired := int(ds.Status.DesiredNumberScheduled)
	surge, unavailable := scaled(ds.Spec.UpdateStrategy.RollingUpdate.MaxSurge, desired, true), scaled(ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, desired, true)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	b.agentLeast, b.agentMost = desired-unavailable, desired+surge
	return b
}

func scaled(v *intstr.IntOrString, n int, up bool) int {
	if v == nil {
		return 0
	}
	k, err := intstr.GetScaledValueFromIntOrPercent(v, n, up)
	if err != nil {
		return 0
	}
	return k
}

// kept holds the bounds at one revision. lost says that answers of creates may get lost, after which there may be too many pods
// for a moment.
func (b bounds) kept(s store.Snapshot, lost bool) error {
	asked := 0
	for rs := range client.ReplicaSets.List(s, namespace) {
		asked += int(*rs.Spec.Replicas)
	}
	// Surge bounds what replica sets ask for, as upstream's does: an old one may be about to delete a pod when the new one makes its own.
	if _, available := count(s, web); asked > b.webMost || available < b.webLeast {
		return fmt.Errorf("deployment: %d pods asked for (at most %d), %d available (at least %d)", asked, b.webMost, available, b.webLeast)
	}
	if _, available := count(s, db); available < b.dbLeast {
		return fmt.Errorf("stateful set: %d pods available (at least %d)", available, b.dbLeast)
	}
	if active, available := count(s, agent); available < b.agentLeast || !lost && active > b.agentMost {
		return fmt.Errorf("daemon set: %d pods (at most %d), %d available (at least %d)", active, b.agentMost, available, b.agentLeast)
	}
	return nil
}

func count(s store.Snapshot, app string) (active, available int) {
	for _, pod := range podsOfApp(s, app) {
		if podstate.Active(pod) {
			active++
			if podstate.Ready(pod) {
				available++
			}
		}
	}
	return active, available
}

// picture is what is there, for a test that failed.
func picture(s store.Snapshot) string {
	var b strings.Builder
	for node := range client.Nodes.List(s, "") {
		fmt.Fprintf(&b, "node %s down=%q %v %v\n", node.Name, node.Annotations[down], node.Labels["disk"], node.Spec.Taints)
	}
	for d := range client.Deployments.List(s, "") {
		fmt.Fprintf(&b, "deployment %s %d %s%s %+v\n", d.Name, *d.Spec.Replicas, image(&d.Spec.Template), d.Spec.Template.Annotations, d.Status)
	}
	for rs := range client.ReplicaSets.List(s, "") {
		fmt.Fprintf(&b, "  replicaset %s %d %s%s %+v\n", rs.Name, *rs.Spec.Replicas, image(&rs.Spec.Template), rs.Spec.Template.Annotations, rs.Status)
	}
	for set := range client.StatefulSets.List(s, "") {
		fmt.Fprintf(&b, "statefulset %s %d from %v %s%s %s %+v %v %+v\n", set.Name, *set.Spec.Replicas, set.Spec.Ordinals, image(&set.Spec.Template), set.Spec.Template.Annotations,
			set.Spec.PodManagementPolicy, set.Spec.UpdateStrategy, set.Spec.PersistentVolumeClaimRetentionPolicy, set.Status)
	}
	for ds := range client.DaemonSets.List(s, "") {
		fmt.Fprintf(&b, "daemonset %s %s%s %+v %+v\n", ds.Name, image(&ds.Spec.Template), ds.Spec.Template.Annotations, ds.Spec.UpdateStrategy, ds.Status)
	}
	for c := range client.PersistentVolumeClaims.List(s, "") {
		fmt.Fprintf(&b, "claim %s %v deleted %v\n", c.Name, c.OwnerReferences, c.DeletionTimestamp)
	}
	for pod := range client.Pods.List(s, "") {
		ready := "-"
		if c := condition(pod); c != nil {
			ready = string(c.Status)
		}
		fmt.Fprintf(&b, "pod %s on %s %s%s %s ready=%s deleted=%v %s\n", pod.Name, pod.Spec.NodeName, imageOf(pod), pod.Annotations, pod.Status.Phase, ready, pod.DeletionTimestamp, pod.Labels[appsv1.ControllerRevisionHashLabelKey])
	}
	return b.String()
}
