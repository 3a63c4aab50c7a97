package reconciletest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// Cluster is a client.Client on a store in memory. It is safe for concurrent use.
type Cluster struct {
	store.Store
	Registry *api.Registry
	// Refuse, if not nil, is asked before each write and refuses it by returning an error. verb is
	// "create", "update" or "delete". It is set before loops run.
	Refuse func(verb string, ref client.Ref, obj api.Object) error

	gate gate

	mu           sync.Mutex // guards what follows
	names        map[string]int
	uids, events int
}

var _ client.Client = (*Cluster)(nil)

// NewCluster returns an empty cluster with all built-in kinds. window is how many events
// cursors can look back, 0 for the default.
func NewCluster(window int) *Cluster {
	reg := api.NewRegistry()
	for _, k := range append(core.Kinds(), builtin.Kinds()...) {
		_ = reg.Add(k) // those of core may be among the others
	}
	return &Cluster{
		Store:    memory.New(storeOptions(reg, window)),
		Registry: reg,
		names:    map[string]int{},
	}
}

func storeOptions(reg *api.Registry, window int) store.Options {
	return store.Options{
		Window: window,
		Stamp: func(obj any, rev store.Revision) {
			obj.(api.Object).SetResourceVersion(fmt.Sprint(int64(rev)))
		},
		Indexes: func(resource string) map[string]func(any) []string {
			all := map[string]func(any) []string{"owner": owners}
			kind := reg.ByName(resource)
			if kind == nil {
				return all
			}
			for name, f := range kind.Indexes {
				all[name] = func(obj any) []string { return f(obj.(api.Object)) }
			}
			if all["node"] == nil && resource == client.Pods.Name {
				all["node"] = func(obj any) []string { return []string{obj.(*corev1.Pod).Spec.NodeName} }
			}
			if all["service"] == nil && resource == client.EndpointSlices.Name {
				all["service"] = func(obj any) []string {
					es := obj.(*discoveryv1.EndpointSlice)
					return []string{es.Namespace + "/" + es.Labels[discoveryv1.LabelServiceName]}
				}
			}
			return all
		},
	}
}

func owners(obj any) []string {
	var uids []string
	for _, ref := range obj.(api.Object).GetOwnerReferences() {
		if !slices.Contains(uids, string(ref.UID)) {
			uids = append(uids, string(ref.UID))
		}
	}
	return uids
}

// Create implements client.Writer.
func (c *Cluster) Create(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	kind, err := c.kind(resource)
	if err != nil {
		return nil, err
	}
	c.identify(obj)
	ref := client.Ref{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if err := c.refuse("create", ref, obj); err != nil {
		return nil, err
	}
	if kind.Namespaced {
		if err := c.namespaceOpen(kind, ref); err != nil {
			return nil, err
		}
	}
	if kind.Default != nil {
		kind.Default(obj)
	}
	if kind.PrepareCreate != nil {
		kind.PrepareCreate(obj)
	}
	if ns, ok := obj.(*corev1.Namespace); ok && kind.PrepareCreate == nil {
		ns.Status.Phase = corev1.NamespaceActive
		ns.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
	}
	if kind.Validate != nil {
		if errs := kind.Validate(obj); len(errs) > 0 {
			return nil, invalid(kind, obj.GetName(), errs)
		}
	}
	return c.commit(ctx, ref, store.Op{Object: obj, Expect: store.ExpectAbsent})
}

// identify gives a new object its name, UID and time.
func (c *Cluster) identify(obj api.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if obj.GetName() == "" {
		base := obj.GetGenerateName()
		c.names[base]++
		obj.SetName(fmt.Sprintf("%s%05d", base, c.names[base]))
	}
	if _, ok := obj.(*corev1.Event); ok { // events are written beside everything else, and are not to change what that looks like
		c.events++
		obj.SetUID(types.UID(fmt.Sprintf("%08d-event", c.events)))
	} else {
		c.uids++
		obj.SetUID(types.UID(fmt.Sprintf("%08d-uid", c.uids)))
	}
	obj.SetCreationTimestamp(metav1.NewTime(time.Now()).Rfc3339Copy())
	obj.SetDeletionTimestamp(nil)
	obj.SetGeneration(1)
	obj.SetResourceVersion("")
}

func (c *Cluster) namespaceOpen(kind *api.Kind, ref client.Ref) error {
	ns, ok := client.Namespaces.Get(c.Snapshot(), "", ref.Namespace)
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, ref.Namespace)
	}
	if ns.DeletionTimestamp == nil || kind.Name() == client.Events.Name {
		return nil
	}
	err := apierrors.NewForbidden(kind.GroupResource(), ref.Name,
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ref.Namespace))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", ref.Namespace), Field: "metadata.namespace"})
	return err
}

// Update implements client.Writer.
func (c *Cluster) Update(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	kind, err := c.kind(resource)
	if err != nil {
		return nil, err
	}
	ref := client.Ref{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if err := c.refuse("update", ref, obj); err != nil {
		return nil, err
	}
	entry := c.Snapshot().Get(store.Key{Resource: resource, Namespace: ref.Namespace, Name: ref.Name})
	if entry == nil {
		return nil, apierrors.NewNotFound(kind.GroupResource(), ref.Name)
	}
	old := entry.Object.(api.Object)
	if rv := obj.GetResourceVersion(); rv != "" && rv != fmt.Sprint(int64(entry.Revision)) || obj.GetUID() != "" && obj.GetUID() != old.GetUID() {
		return nil, conflict(kind, ref.Name)
	}
	if err := c.prepareUpdate(kind, opts.Subresource, obj, old); err != nil {
		return nil, err
	}
	if equality.Semantic.DeepEqual(obj, old) {
		return old, nil
	}
	return c.store(ctx, ref, obj, entry.Revision)
}

// prepareUpdate applies the rules of the main resource or of a subresource.
func (c *Cluster) prepareUpdate(kind *api.Kind, subresource string, obj, old api.Object) error {
	strategy := &kind.Strategy
	if subresource != "" {
		sub := kind.Subresource(subresource)
		if sub == nil && subresource != "finalize" {
			return apierrors.NewNotFound(kind.GroupResource(), obj.GetName()+"/"+subresource)
		}
		strategy = &api.Strategy{}
		if sub != nil && sub.Strategy != nil {
			strategy = sub.Strategy
		}
	}
	if subresource == "" && kind.Default != nil {
		kind.Default(obj)
	}
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetGeneration(old.GetGeneration())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetResourceVersion(old.GetResourceVersion())
	if strategy.PrepareUpdate != nil {
		strategy.PrepareUpdate(obj, old)
	} else {
		keep(obj, old, subresource)
	}
	if strategy.ValidateUpdate != nil {
		if errs := strategy.ValidateUpdate(obj, old); len(errs) > 0 {
			return invalid(kind, obj.GetName(), errs)
		}
	}
	if subresource == "" && desired(kind, obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	return nil
}

// keep is what an update leaves alone in kinds that say nothing themselves: the status,
// or everything else for the subresource "status".
func keep(obj, old api.Object, subresource string) {
	was := old.DeepCopyObject()
	take := func(name string) {
		to, from := reflect.ValueOf(obj).Elem().FieldByName(name), reflect.ValueOf(was).Elem().FieldByName(name)
		if to.IsValid() && from.IsValid() {
			to.Set(from)
		}
	}
	switch subresource {
	case "":
		take("Status")
	case "status":
		take("Spec")
		obj.SetLabels(was.(api.Object).GetLabels())
	case "finalize":
		take("Status")
	}
}

func desired(kind *api.Kind, obj, old api.Object) bool {
	if kind.Desired != nil {
		return kind.Desired(obj, old)
	}
	a, b := reflect.ValueOf(obj).Elem().FieldByName("Spec"), reflect.ValueOf(old).Elem().FieldByName("Spec")
	return a.IsValid() && !equality.Semantic.DeepEqual(a.Interface(), b.Interface())
}

// store puts an object, or removes it if it was only waiting for its finalizers.
func (c *Cluster) store(ctx context.Context, ref client.Ref, obj api.Object, expect store.Revision) (api.Object, error) {
	op := store.Op{Object: obj, Expect: expect}
	if obj.GetDeletionTimestamp() != nil && len(obj.GetFinalizers()) == 0 {
		grace := obj.GetDeletionGracePeriodSeconds()
		ns, isNamespace := obj.(*corev1.Namespace)
		op.Delete = (grace == nil || *grace == 0) && (!isNamespace || len(ns.Spec.Finalizers) == 0)
	}
	return c.commit(ctx, ref, op)
}

func (c *Cluster) commit(ctx context.Context, ref client.Ref, op store.Op) (api.Object, error) {
	op.Key = store.Key{Resource: ref.Resource, Namespace: ref.Namespace, Name: ref.Name}
	kind := c.Registry.ByName(ref.Resource)
	_, entries, err := c.Commit(ctx, store.Txn{Ops: []store.Op{op}})
	var failed *store.ConflictError
	switch e := err.(type) {
	case nil:
	case *store.ConflictError:
		failed = e
	default:
		return nil, apierrors.NewInternalError(err)
	}
	switch {
	case failed == nil && entries[0] == nil:
		return op.Object.(api.Object), nil
	case failed == nil:
		return entries[0].Object.(api.Object), nil
	case failed.Expect == store.ExpectAbsent:
		return nil, apierrors.NewAlreadyExists(kind.GroupResource(), ref.Name)
	case failed.Current == nil:
		return nil, apierrors.NewNotFound(kind.GroupResource(), ref.Name)
	}
	return nil, conflict(kind, ref.Name)
}

// Delete implements client.Writer.
func (c *Cluster) Delete(ctx context.Context, ref client.Ref, opts client.DeleteOptions) error {
	kind, err := c.kind(ref.Resource)
	if err != nil {
		return err
	}
	for {
		entry := c.Snapshot().Get(store.Key{Resource: ref.Resource, Namespace: ref.Namespace, Name: ref.Name})
		if entry == nil {
			return apierrors.NewNotFound(kind.GroupResource(), ref.Name)
		}
		old := entry.Object.(api.Object)
		if err := c.refuse("delete", ref, old); err != nil {
			return err
		}
		if opts.UID != "" && opts.UID != old.GetUID() || opts.ResourceVersion != "" && opts.ResourceVersion != old.GetResourceVersion() {
			return conflict(kind, ref.Name)
		}
		obj := old.DeepCopyObject().(api.Object)
		mark(kind, obj, opts)
		if equality.Semantic.DeepEqual(obj, old) {
			return nil
		}
		if _, err := c.store(ctx, ref, obj, entry.Revision); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// mark does to an object what a delete does before anything is removed.
func mark(kind *api.Kind, obj api.Object, opts client.DeleteOptions) {
	finalizer := map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationForeground: metav1.FinalizerDeleteDependents,
		metav1.DeletePropagationOrphan:     metav1.FinalizerOrphanDependents,
	}[opts.Propagation]
	if opts.Propagation != "" {
		kept := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool {
			return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
		})
		if finalizer != "" {
			kept = append(kept, finalizer)
		}
		obj.SetFinalizers(kept)
	}
	var grace int64
	if pod, ok := obj.(*corev1.Pod); ok {
		grace = podGrace(pod, opts.GraceSeconds)
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second)).Rfc3339Copy()
	if had := obj.GetDeletionTimestamp(); had == nil || at.Before(had) || grace == 0 && *obj.GetDeletionGracePeriodSeconds() > 0 {
		obj.SetDeletionTimestamp(&at)
		obj.SetDeletionGracePeriodSeconds(&grace)
		if obj.GetGeneration() > 0 {
			obj.SetGeneration(obj.GetGeneration() + 1)
		}
	}
}

func podGrace(pod *corev1.Pod, requested *int64) int64 {
	var grace int64 = 30
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = *s
	}
	if requested != nil {
		grace = *requested
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		grace = 0
	}
	return grace
}

// Bind implements client.Writer.
func (c *Cluster) Bind(ctx context.Context, namespace, name string, uid types.UID, node string) error {
	kind := c.Registry.ByName(client.Pods.Name)
	entry := c.Snapshot().Get(store.Key{Resource: client.Pods.Name, Namespace: namespace, Name: name})
	if entry == nil {
		return apierrors.NewNotFound(kind.GroupResource(), name)
	}
	pod := entry.Object.(*corev1.Pod).DeepCopy()
	if pod.UID != uid || pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
		return conflict(kind, name)
	}
	pod.Spec.NodeName = node
	_, err := c.commit(ctx, client.Ref{Resource: client.Pods.Name, Namespace: namespace, Name: name}, store.Op{Object: pod, Expect: entry.Revision})
	return err
}

func (c *Cluster) kind(resource string) (*api.Kind, error) {
	if kind := c.Registry.ByName(resource); kind != nil {
		return kind, nil
	}
	return nil, apierrors.NewNotFound(schema.ParseGroupResource(resource), "")
}

func (c *Cluster) refuse(verb string, ref client.Ref, obj api.Object) error {
	if c.Refuse == nil {
		return nil
	}
	return c.Refuse(verb, ref, obj)
}

func conflict(kind *api.Kind, name string) error {
	return apierrors.NewConflict(kind.GroupResource(), name,
		fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
}

func invalid(kind *api.Kind, name string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: kind.Group, Kind: kind.Kind}, name, errs)
}
