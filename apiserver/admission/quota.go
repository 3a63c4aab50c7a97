package admission

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/api/quota"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// resourceQuota charges new and growing objects to the quotas of their namespace, in the same transaction
// (https://kubernetes.io/docs/concepts/policy/resource-quotas/). What goes away is credited by the
// quota controller.
func resourceQuota() Plugin {
	return Plugin{Name: "ResourceQuota", Validate: func(_ context.Context, r *Request) error {
		if r.Namespace == "" || !r.Kind.Namespaced || r.Kind.Virtual || r.Object == nil || quota.Ignored(r.Kind.Name()) ||
			r.Snapshot.Count(client.ResourceQuotas.Name, r.Namespace) == 0 || !charged(r) {
			return nil
		}
		for q := range client.ResourceQuotas.List(r.Snapshot, r.Namespace) {
			if err := charge(r, q); err != nil {
				return err
			}
		}
		return nil
	}}
}

// charged tells the requests that can raise what is used.
func charged(r *Request) bool {
	if r.Operation == Create {
		return r.Subresource == ""
	}
	if r.Operation != Update {
		return false
	}
	switch r.Kind.Name() + "/" + r.Subresource {
	case "pods/":
		return quota.Terminating(r.Object.(*corev1.Pod)) != quota.Terminating(r.Old.(*corev1.Pod))
	case "pods/resize", "services/", "persistentvolumeclaims/", "persistentvolumeclaims/status":
		return true
	}
	return false
}

// charge checks a request against one quota, and adds the quota's new status to the transaction.
func charge(r *Request, q *corev1.ResourceQuota) error {
	kind := r.Kind.Name()
	concerns := func(name corev1.ResourceName) bool { return quota.Counts(kind, name) }
	names := quota.Names(quota.Mask(q.Status.Hard, concerns))
	if len(names) == 0 || !quota.Scopes(&q.Spec, r.Object) {
		return nil
	}
	if err := quota.Constraints(names, r.Object); err != nil {
		return Forbidden(r, fmt.Errorf("failed quota: %s: %w", q.Name, err))
	}
	for _, name := range names {
		if _, ok := q.Status.Used[name]; !ok {
			return Forbidden(r, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, join(names)))
		}
	}
	usage := quota.Usage(kind, r.Object, r.Now)
	var negative []corev1.ResourceName
	for _, name := range quota.Names(usage) {
		if n := usage[name]; n.Sign() < 0 {
			negative = append(negative, name)
		}
	}
	if len(negative) > 0 {
		return Forbidden(r, fmt.Errorf("quota usage is negative for resource(s): %s", join(negative)))
	}
	var before corev1.ResourceList
	if r.Operation == Update && quota.Scopes(&q.Spec, r.Old) {
		before = quota.Usage(kind, r.Old, r.Now)
	}
	requested := quota.Mask(quota.Growth(usage, before), quota.Has(q.Status.Hard))
	if len(requested) == 0 {
		return nil
	}
	within := func(q *corev1.ResourceQuota) (corev1.ResourceList, error) {
		used := quota.Add(q.Status.Used, requested)
		if r.Subresource == "status" {
			return used, nil
		}
		exceeded := func(name corev1.ResourceName) bool {
			u, most := used[name], q.Status.Hard[name]
			return u.Cmp(most) > 0
		}
		if over := quota.Mask(requested, exceeded); len(over) > 0 {
			return nil, Forbidden(r, fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", q.Name, quota.Text(over),
				quota.Text(quota.Mask(q.Status.Used, quota.Has(over))), quota.Text(quota.Mask(q.Status.Hard, quota.Has(over)))))
		}
		return used, nil
	}
	if _, err := within(q); err != nil || r.DryRun {
		return err
	}
	key := store.Key{Resource: client.ResourceQuotas.Name, Namespace: q.Namespace, Name: q.Name}
	r.Also(store.Op{Key: key, Expect: store.ExpectAny, Change: func(current *store.Entry) (any, error) {
		// Others may have charged since the snapshot; that is added to. Other limits, or none, make the request begin again.
		if current == nil {
			return nil, &store.ConflictError{Key: key, Expect: store.ExpectAny}
		}
		now := current.Object.(*corev1.ResourceQuota)
		if now != q && (now.UID != q.UID || !equality.Semantic.DeepEqual(now.Spec, q.Spec) || !equality.Semantic.DeepEqual(now.Status.Hard, q.Status.Hard)) {
			return nil, &store.ConflictError{Key: key, Expect: store.ExpectAny, Current: current}
		}
		used, err := within(now)
		if err != nil {
			return nil, err
		}
		next := *now
		next.Status.Used = used
		return &next, nil
	}})
	return nil
}

func join(names []corev1.ResourceName) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = string(n)
	}
	return strings.Join(parts, ",")
}
