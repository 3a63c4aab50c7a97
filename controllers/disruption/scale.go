package disruption

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/autoscaling"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// scale is the sum of what the controllers of the pods ask for; unmanaged tells that there are pods for which nobody asks.
func scale(s store.Snapshot, reg *api.Registry, pods []*corev1.Pod) (total int32, unmanaged bool, err error) {
	seen, asked := map[types.UID]bool{}, map[types.UID]bool{}
	for _, pod := range pods {
		ref := metav1.GetControllerOfNoCopy(pod)
		switch {
		case ref == nil:
			unmanaged = true
			continue
		case asked[ref.UID]:
			continue
		}
		asked[ref.UID] = true
		uid, n, err := replicas(s, reg, pod.Namespace, ref)
		if err != nil {
			return 0, unmanaged, err
		}
		if uid == "" {
			return 0, unmanaged, fmt.Errorf("found no controllers for pod %q", pod.Name)
		}
		if !seen[uid] {
			seen[uid] = true
			total += n
		}
	}
	return total, unmanaged, nil
}

// replicas is what the controller of a pod asks for: the deployment of its replica set, or else whatever
// has the subresource scale, custom resources included. Without a UID there is no such controller.
func replicas(s store.Snapshot, reg *api.Registry, namespace string, ref *metav1.OwnerReference) (types.UID, int32, error) {
	if ref.Kind == "ReplicaSet" {
		if rs, ok := client.ReplicaSets.Get(s, namespace, ref.Name); ok && rs.UID == ref.UID {
			if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
				if d, ok := client.Deployments.Get(s, namespace, up.Name); ok && d.UID == up.UID {
					return d.UID, number(d.Spec.Replicas), nil
				}
			}
		}
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return "", 0, err
	}
	gk := schema.GroupKind{Group: gv.Group, Kind: ref.Kind}
	kind := reg.ByKind(gk)
	if kind == nil {
		return "", 0, &meta.NoKindMatchError{GroupKind: gk, SearchedVersions: []string{gv.Version}}
	}
	sub := kind.Subresource("scale")
	if sub == nil || sub.Versions != nil && !slices.Contains(sub.Versions, gv.Version) {
		return "", 0, fmt.Errorf("%s does not implement the scale subresource", kind.GroupResource())
	}
	e := s.Get(store.Key{Resource: kind.Name(), Namespace: namespace, Name: ref.Name})
	if e == nil || e.Object.(api.Object).GetUID() != ref.UID {
		return "", 0, nil
	}
	if sub.Scale == nil {
		if scaled := autoscaling.ScaleOf(e.Object.(api.Object)); scaled != nil {
			return ref.UID, scaled.Spec.Replicas, nil
		}
		return "", 0, fmt.Errorf("%s does not implement the scale subresource", kind.GroupResource())
	}
	obj, err := kind.Loaded(context.Background(), e.Object.(api.Object)) // stored in another version, perhaps
	if err != nil {
		return "", 0, err
	}
	scaled, missing, err := sub.Scale(obj)
	switch {
	case err != nil:
		return "", 0, err
	case missing != "":
		return "", 0, fmt.Errorf("the spec replicas field %q does not exist", missing)
	}
	return ref.UID, scaled.Spec.Replicas, nil
}

func number(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}
