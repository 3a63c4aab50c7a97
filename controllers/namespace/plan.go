package namespace

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// burst is how many objects one pass deletes at most.
const burst = 500

// remains is what is left in a namespace.
type remains struct {
	resources  map[string]int // by "resource.group"
	finalizers map[string]int // how many objects each finalizer holds
	deletes    []reconcile.Write
	pods       bool // there are pods, before which nothing else goes
}

// plan is one pass over a namespace: it deletes what has to go, or tells what is left, or
// lets the namespace go. found is what other servers said since the pass before, nil for nothing.
func (c *controller) plan(s store.Snapshot, ns *corev1.Namespace, found *finding, now time.Time) reconcile.Plan {
	if ns.DeletionTimestamp == nil {
		return reconcile.Plan{}
	}
	if len(ns.Spec.Finalizers) == 0 {
		if len(ns.Finalizers) > 0 {
			return reconcile.Plan{}
		}
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Namespaces.Name, Name: ns.Name, UID: ns.UID}}}
	}
	left := look(s, c.registry.All(), ns.Name)
	if len(left.deletes) > 0 {
		return reconcile.Plan{Writes: left.deletes, Parallel: true}
	}
	var again time.Duration
	var errs []error
	failing := c.failing()
	if !left.pods && c.elsewhere.any() {
		if found == nil {
			return reconcile.Plan{Effect: ns.Name, After: time.Nanosecond}
		}
		errs = left.join(found)
		if len(failing) == 0 {
			failing = found.failing
		}
		if len(found.left.Resources)+len(errs)+len(failing) > 0 {
			again = askAgain // nobody tells of changes on other servers
		}
	}
	held := len(left.resources)+len(errs)+len(failing) > 0
	if held || others(ns) {
		if w, changed := report(ns, left, errs, failing, now); changed {
			return reconcile.Plan{Writes: []reconcile.Write{w}, After: again}
		}
	}
	if held || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return reconcile.Plan{After: again}
	}
	ns = ns.DeepCopy()
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Namespaces.Name, Subresource: "finalize", Object: ns}}}
}

// others tells whether the namespace stays after its content is gone, so that someone reads the conditions.
func others(ns *corev1.Namespace) bool {
	return len(ns.Finalizers) > 0 || slices.ContainsFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f != corev1.FinalizerKubernetes })
}

// look finds what is in the namespace and what of it is to be deleted now.
func look(s store.Snapshot, kinds []*api.Kind, namespace string) remains {
	left := remains{resources: map[string]int{}, finalizers: map[string]int{}}
	for _, k := range kinds {
		if k.Name() == client.Pods.Name {
			left.add(s, k, namespace)
		}
	}
	if left.pods = len(left.resources) > 0; left.pods {
		return left
	}
	for _, k := range kinds {
		if k.Name() != client.Pods.Name {
			left.add(s, k, namespace)
		}
	}
	return left
}

func (r *remains) add(s store.Snapshot, k *api.Kind, namespace string) {
	if !deletable(k) {
		return
	}
	n := s.Count(k.Name(), namespace)
	if n == 0 {
		return
	}
	r.resources[k.Resource+"."+k.Group] = n
	for entry := range s.List(k.Name(), namespace, nil) {
		obj, ok := entry.Object.(api.Object)
		if !ok {
			continue
		}
		for _, f := range obj.GetFinalizers() {
			r.finalizers[f]++
		}
		if obj.GetDeletionTimestamp() == nil && len(r.deletes) < burst {
			r.deletes = append(r.deletes, reconcile.Write{Verb: reconcile.Delete, Resource: k.Name(), Namespace: namespace,
				Name: obj.GetName(), UID: obj.GetUID(), Propagation: metav1.DeletePropagationBackground})
		}
	}
}

// deletable tells the kinds whose objects live in namespaces and can be deleted.
func deletable(k *api.Kind) bool {
	return k.Namespaced && !k.Virtual && k.StoredAs == "" && (k.Verbs == nil || slices.Contains(k.Verbs, "delete"))
}

// report is the status that tells what is left, and whether it differs from the one that is there.
func report(ns *corev1.Namespace, left remains, failures []error, failing []schema.GroupVersion, now time.Time) (reconcile.Write, bool) {
	out := ns.DeepCopy()
	out.Status.Phase = corev1.NamespaceTerminating
	for _, cond := range conditions(left, failures, failing) {
		merge(&out.Status, cond, metav1.NewTime(now).Rfc3339Copy())
	}
	return reconcile.Write{Verb: reconcile.Update, Resource: client.Namespaces.Name, Subresource: "status", Object: out},
		!equality.Semantic.DeepEqual(out.Status, ns.Status)
}

// conditions are the five that upstream keeps on a namespace that is being deleted.
func conditions(left remains, failures []error, failing []schema.GroupVersion) []corev1.NamespaceCondition {
	conds := []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"},
		{Type: corev1.NamespaceDeletionGVParsingFailure, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
		{Type: corev1.NamespaceDeletionContentFailure, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"},
		{Type: corev1.NamespaceContentRemaining, Reason: "ContentRemoved", Message: "All content successfully removed"},
		{Type: corev1.NamespaceFinalizersRemaining, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"},
	}
	fail := func(i int, reason, message string) {
		conds[i].Status, conds[i].Reason, conds[i].Message = corev1.ConditionTrue, reason, message
	}
	for i := range conds {
		conds[i].Status = corev1.ConditionFalse
	}
	if len(failing) > 0 {
		fail(0, "DiscoveryFailed", undiscovered(failing))
	}
	if len(failures) > 0 {
		var texts []string
		for _, err := range failures {
			texts = append(texts, err.Error())
		}
		slices.Sort(texts)
		fail(2, "ContentDeletionFailed", fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", len(texts), strings.Join(texts, ", ")))
	}
	if len(left.resources) > 0 {
		fail(3, "SomeResourcesRemain", "Some resources are remaining: "+list(left.resources, "%s has %d resource instances"))
	}
	if len(left.finalizers) > 0 {
		fail(4, "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: "+list(left.finalizers, "%s in %d resource instances"))
	}
	return conds
}

func list(counts map[string]int, format string) string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf(format, name, counts[name]))
	}
	return strings.Join(lines, ", ")
}

// merge puts a condition in place; its time changes with its status only.
func merge(status *corev1.NamespaceStatus, cond corev1.NamespaceCondition, now metav1.Time) {
	cond.LastTransitionTime = now
	for i := range status.Conditions {
		if had := &status.Conditions[i]; had.Type == cond.Type {
			if had.Status == cond.Status {
				cond.LastTransitionTime = had.LastTransitionTime
			}
			*had = cond
			return
		}
	}
	status.Conditions = append(status.Conditions, cond)
}
