package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/apps/poddisruptionbudget"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// binding is what a pod is told when it is assigned to a node.
type binding struct {
	uid                 types.UID // condition, "" for none
	resourceVersion     string    // condition, "" for none
	node                string
	labels, annotations map[string]string
	as                  *api.Kind // the kind of the path that it came by, nil for pods
}

// bindPod answers POST to pods/x/binding.
func (c *call) bindPod() error {
	b, o, err := c.readBinding()
	if err != nil {
		return err
	}
	if b.Name == "" {
		b.Name = c.info.Name
	}
	if err := c.matches(b); err != nil {
		return err
	}
	return c.carryOutBinding(b, o, c.kind, c.info.Name, nil)
}

// createBinding answers POST to bindings, the older way to assign a pod.
func (c *call) createBinding() error {
	b, o, err := c.readBinding()
	if err != nil {
		return err
	}
	pods := c.cfg.Registry.ByName(client.Pods.Name)
	if pods == nil {
		return apierrors.NewNotFound(c.kind.GroupResource(), b.Name)
	}
	return c.carryOutBinding(b, o, pods, b.Name, c.kind)
}

func (c *call) readBinding() (*corev1.Binding, writeOptions, error) {
	b := &corev1.Binding{}
	o, err := c.options("CreateOptions")
	if err != nil {
		return b, o, err
	}
	return b, o, c.decode(b, corev1.SchemeGroupVersion.WithKind("Binding"), &o)
}

func (c *call) carryOutBinding(b *corev1.Binding, o writeOptions, pods *api.Kind, name string, as *api.Kind) error {
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return errs.ToAggregate()
	}
	t := c.target()
	t.Kind, t.Name, t.DryRun, t.Subresource = pods, name, o.dryRun, "binding"
	t.Options = c.createOptions()
	err := c.bind(c.r.Context(), t, binding{
		uid: b.UID, resourceVersion: b.ResourceVersion, node: b.Target.Name, labels: b.Labels, annotations: b.Annotations, as: as,
	})
	if err != nil {
		return err
	}
	return c.success()
}

// bind assigns a pod to a node. Admission is shown the Binding.
func (s *Server) bind(ctx context.Context, t write.Target, b binding) error {
	var present *corev1.Pod
	_, _, err := s.chain.Update(ctx, t, write.Update{
		Raw: true,
		UID: b.uid,
		Make: func(current *store.Entry) (api.Object, error) {
			present = current.Object.(*corev1.Pod)
			if b.resourceVersion != "" && b.resourceVersion != present.ResourceVersion {
				return nil, write.Conflict(t.Kind, t.Name, write.OptimisticLock)
			}
			why := unbindable(present)
			if why != "" {
				return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, present.Name, errors.New(why))
			}
			return s.assigned(present, b), nil
		},
		Created: true,
		As:      b.as,
		View:    func(api.Object) api.Object { return b.shown(&t) },
		Merge: func(_, view api.Object) (api.Object, error) {
			changed := view.(*corev1.Binding)
			b := b
			b.node, b.labels, b.annotations = changed.Target.Name, changed.Labels, changed.Annotations
			return s.assigned(present, b), nil
		},
	})
	return err
}

// shown is the Binding that a client would have sent.
func (b *binding) shown(t *write.Target) *corev1.Binding {
	return &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: t.Namespace, Name: t.Name, UID: b.uid, ResourceVersion: b.resourceVersion, Labels: b.labels, Annotations: b.annotations,
		},
		Target: corev1.ObjectReference{Kind: "Node", Name: b.node},
	}
}

// unbindable says why a pod cannot be assigned, "" if it can.
func unbindable(pod *corev1.Pod) string {
	switch {
	case pod.DeletionTimestamp != nil:
		return fmt.Sprintf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return fmt.Sprintf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) != 0:
		return fmt.Sprintf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	return ""
}

// topologyLabels are copied from the node to its pods (KEP-4742).
var topologyLabels = []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion}

// assigned is the pod on its node. What is not changed is shared with the old one.
func (s *Server) assigned(old *corev1.Pod, b binding) *corev1.Pod {
	pod := wire.Shallow(old)
	pod.Spec.NodeName = b.node
	pod.Status.NominatedNodeName = ""
	if len(b.annotations) > 0 {
		pod.Annotations = merged(pod.Annotations, b.annotations)
	}
	extra := b.labels
	if node, ok := client.Nodes.Get(s.cfg.Store.Snapshot(), "", b.node); ok {
		for _, key := range topologyLabels {
			if v, ok := node.Labels[key]; ok {
				extra = merged(extra, map[string]string{key: v})
			}
		}
	}
	if len(extra) > 0 {
		pod.Labels = merged(pod.Labels, extra)
	}
	setPodCondition(pod, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
	}, s.now())
	return pod
}

func merged(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

// now is the time as API objects hold it.
func (s *Server) now() metav1.Time { return metav1.NewTime(s.cfg.Now().UTC().Truncate(1e9)) }

// setPodCondition sets a condition in a copy of the list. The transition time moves with the status only.
func setPodCondition(pod *corev1.Pod, c corev1.PodCondition, now metav1.Time) {
	pod.Status.Conditions = slices.Clone(pod.Status.Conditions)
	c.LastTransitionTime = now
	for i := range pod.Status.Conditions {
		if have := &pod.Status.Conditions[i]; have.Type == c.Type {
			if have.Status == c.Status {
				c.LastTransitionTime = have.LastTransitionTime
			}
			*have = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}

// maxDisruptedPods is how many evictions may wait to be seen by the disruption controller.
const maxDisruptedPods = 2000

// evict answers POST to pods/x/eviction
// (https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/).
func (c *call) evict() error {
	o, err := c.options("CreateOptions")
	if err != nil {
		return err
	}
	e := &policyv1.Eviction{}
	if err := c.decode(e, policyv1.SchemeGroupVersion.WithKind("Eviction"), &o); err != nil {
		return err
	}
	if e.Name != c.info.Name {
		return apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if e, err = c.admitEviction(e, &o); err != nil {
		return err
	}
	opts, err := evictionOptions(e, c.query["dryRun"])
	if err != nil {
		return err
	}
	free := opts.Preconditions == nil || opts.Preconditions.ResourceVersion == nil
	for {
		err = c.evictOnce(opts)
		if !apierrors.IsConflict(err) || !free || c.r.Context().Err() != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	return c.success()
}

// evictionOptions joins the dry-run options of the request and of the body.
func evictionOptions(e *policyv1.Eviction, dryRun []string) (*metav1.DeleteOptions, error) {
	opts := e.DeleteOptions
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	if len(opts.DryRun) > 0 && len(dryRun) > 0 && !slices.Equal(opts.DryRun, dryRun) {
		return nil, fmt.Errorf("Non-matching dry-run options in request and content: %v and %v", dryRun, opts.DryRun) //nolint:staticcheck // upstream's words
	}
	if len(opts.DryRun) == 0 {
		opts.DryRun = dryRun
	}
	return opts, nil
}

// evictOnce decides on one version of the pod.
func (c *call) evictOnce(opts *metav1.DeleteOptions) error {
	entry, err := c.current()
	if err != nil {
		return err
	}
	pod := entry.Object.(*corev1.Pod)
	guarded := false // the delete is conditioned on the version that was judged
	name := ""
	if needsNoBudget(pod) {
		guarded = pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil
	} else {
		if guarded, name, err = c.takeFromBudget(pod, len(opts.DryRun) > 0); err != nil {
			return err
		}
	}
	own := opts.DeepCopy()
	if guarded && (own.Preconditions == nil || own.Preconditions.ResourceVersion == nil) {
		if own.Preconditions == nil {
			own.Preconditions = &metav1.Preconditions{}
		}
		own.Preconditions.ResourceVersion = &pod.ResourceVersion
	}
	err = c.disrupt(pod, own)
	if apierrors.IsConflict(err) && guarded && name != "" {
		return budgetBusy(name)
	}
	return err
}

// admitEviction runs admission on the eviction, and returns what it has made of it. The changes to the pod that follow are not
// put to admission again, as upstream has it.
func (c *call) admitEviction(e *policyv1.Eviction, o *writeOptions) (*policyv1.Eviction, error) {
	t := c.target()
	req := &admission.Request{
		Operation: admission.Create, Kind: c.kind, Version: c.version.Name, Subresource: "eviction",
		Namespace: t.Namespace, Name: t.Name, Object: e, User: c.user, DryRun: o.dryRun, Options: c.createOptions(),
		Snapshot: c.cfg.Store.Snapshot(), Now: c.cfg.Now(), Warn: c.warn, Annotate: t.Annotate, AnnotateBodies: t.AnnotateBodies,
	}
	if err := c.chain.Admission.Mutate(c.r.Context(), req); err != nil {
		return nil, err
	}
	if err := c.chain.Admission.Validate(c.r.Context(), req); err != nil {
		return nil, err
	}
	return req.Object.(*policyv1.Eviction), nil
}

// createOptions are the options of a request that creates, as admission is shown them.
func (c *call) createOptions() *metav1.CreateOptions {
	return &metav1.CreateOptions{DryRun: c.query["dryRun"], FieldManager: c.query.Get("fieldManager"), FieldValidation: c.query.Get("fieldValidation")}
}

// needsNoBudget tells that a pod is out of service already, or not in service yet.
func needsNoBudget(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// disrupt marks the pod as evicted and deletes it.
func (c *call) disrupt(pod *corev1.Pod, opts *metav1.DeleteOptions) error {
	t := c.target()
	t.Subresource = ""
	t.Admitted = true
	t.DryRun = len(opts.DryRun) > 0
	if !t.DryRun && pod.DeletionTimestamp == nil {
		marking := t
		marking.Subresource = "status"
		e, _, err := c.chain.Update(c.r.Context(), marking, write.Update{Raw: true, UID: pod.UID, Make: func(current *store.Entry) (api.Object, error) {
			old := current.Object.(*corev1.Pod)
			if p := opts.Preconditions; p != nil && p.ResourceVersion != nil && *p.ResourceVersion != old.ResourceVersion {
				return nil, write.Conflict(c.kind, old.Name, write.OptimisticLock)
			}
			marked := wire.Shallow(old)
			setPodCondition(marked, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: old.Generation,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			}, c.now())
			return marked, nil
		}})
		if err != nil {
			return err
		}
		if p := opts.Preconditions; p != nil && p.ResourceVersion != nil {
			rv := e.Object.(api.Object).GetResourceVersion()
			p.ResourceVersion = &rv
		}
	}
	_, err := c.chain.Delete(c.r.Context(), t, opts)
	return err
}

// takeFromBudget uses one disruption of the budget that covers a pod. guarded says that none was
// used, on condition that the pod stays as it is.
func (c *call) takeFromBudget(pod *corev1.Pod, dryRun bool) (guarded bool, name string, err error) {
	snap := c.cfg.Store.Snapshot()
	var budgets []*policyv1.PodDisruptionBudget
	for b := range client.PodDisruptionBudgets.List(snap, pod.Namespace) {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			budgets = append(budgets, b)
		}
	}
	if len(budgets) == 0 {
		return false, "", nil
	}
	if len(budgets) > 1 {
		return false, "", apierrors.NewInternalError(errors.New("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")) //nolint:staticcheck // upstream's words
	}
	b := budgets[0]
	if !podReady(pod) {
		always := b.Spec.UnhealthyPodEvictionPolicy != nil && *b.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
		if always || b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0 {
			return true, b.Name, nil
		}
	}
	return false, b.Name, c.decrement(b, pod.Name, dryRun)
}

func podReady(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// decrement takes one disruption off a budget.
func (c *call) decrement(b *policyv1.PodDisruptionBudget, pod string, dryRun bool) error {
	kind := c.cfg.Registry.ByName(client.PodDisruptionBudgets.Name)
	t := write.Target{Kind: kind, Subresource: "status", Namespace: b.Namespace, Name: b.Name, DryRun: dryRun,
		User: client.User{Name: client.UserServer, Groups: []string{client.GroupMasters}}}
	_, _, err := c.chain.Update(c.r.Context(), t, write.Update{Raw: true, Make: func(current *store.Entry) (api.Object, error) {
		if current == nil {
			return nil, apierrors.NewNotFound(kind.GroupResource(), b.Name)
		}
		budget := current.Object.(*policyv1.PodDisruptionBudget).DeepCopy()
		if err := exhausted(budget); err != nil {
			return nil, err
		}
		budget.Status.DisruptionsAllowed--
		if budget.Status.DisruptionsAllowed == 0 {
			poddisruptionbudget.UpdateDisruptionAllowedCondition(budget)
		}
		if budget.Status.DisruptedPods == nil {
			budget.Status.DisruptedPods = map[string]metav1.Time{}
		}
		budget.Status.DisruptedPods[pod] = c.now()
		return budget, nil
	}})
	return err
}

// exhausted says why a budget allows no disruption now, nil if it does.
func exhausted(b *policyv1.PodDisruptionBudget) error {
	gr := schema.GroupResource{Group: policyv1.GroupName, Resource: "poddisruptionbudget"}
	switch s := &b.Status; {
	case s.ObservedGeneration < b.Generation:
		return budgetBusy(b.Name)
	case s.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(gr, b.Name, errors.New("pdb disruptions allowed is negative"))
	case len(s.DisruptedPods) > maxDisruptedPods:
		return apierrors.NewForbidden(gr, b.Name, errors.New("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case s.DisruptionsAllowed == 0:
		message := fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy)
		if cond := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition); cond != nil && cond.Reason == policyv1.SyncFailedReason {
			message = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently because it failed sync: %v", b.Name, cond.Message)
		}
		return tooManyEvictions(0, message)
	}
	return nil
}

func budgetBusy(name string) error {
	return tooManyEvictions(10, fmt.Sprintf("The disruption budget %s is still being processed by the server.", name))
}

func tooManyEvictions(retryAfter int, message string) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retryAfter)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: message})
	return err
}
