package podautoscaler

import (
	"context"
	"errors"
	"fmt"
	"slices"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/autoscaling"
	"coracle.dev/coracle/store"
)

// target is what an autoscaler scales.
type target struct {
	// err says why there is no scale: no such kind, no such object, or a kind that does not scale.
	err    error
	kind   *api.Kind
	object api.Object
	scale  *autoscalingv1.Scale
	// parsed is the selector of the scale, nil if it has none that can be read, which badSelector tells then.
	parsed      labels.Selector
	badSelector error
}

// find looks a target up by group and kind; of its API version only the group counts, as upstream.
func find(s store.Snapshot, reg *api.Registry, hpa *autoscalingv2.HorizontalPodAutoscaler) target {
	ref := hpa.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return target{err: err}
	}
	gk := schema.GroupKind{Group: gv.Group, Kind: ref.Kind}
	kind := reg.ByKind(gk)
	if kind == nil {
		return target{err: &meta.NoKindMatchError{GroupKind: gk}}
	}
	sub := kind.Subresource("scale")
	if sub == nil || sub.Versions != nil && !slices.Contains(sub.Versions, kind.Hub().Name) {
		return target{err: errors.New("the server could not find the requested resource")}
	}
	e := s.Get(store.Key{Resource: kind.Name(), Namespace: hpa.Namespace, Name: ref.Name})
	if e == nil {
		return target{err: apierrors.NewNotFound(kind.GroupResource(), ref.Name)}
	}
	t := target{kind: kind}
	// Only custom resources that were stored in another version are converted.
	if t.object, err = kind.Loaded(context.Background(), e.Object.(api.Object)); err != nil {
		return target{err: err}
	}
	if t.scale, err = scaleOf(sub, t.object); err != nil {
		return target{err: err}
	}
	if t.scale.Status.Selector != "" {
		t.parsed, t.badSelector = labels.Parse(t.scale.Status.Selector)
	}
	return t
}

func scaleOf(sub *api.Subresource, obj api.Object) (*autoscalingv1.Scale, error) {
	if sub.Scale == nil {
		if s := autoscaling.ScaleOf(obj); s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("%T has no scale", obj)
	}
	s, missing, err := sub.Scale(obj)
	if err == nil && missing != "" {
		err = apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", missing))
	}
	return s, err
}

// resized is a copy of the target with another number of replicas.
func (t *target) resized(replicas int32) api.Object {
	out := t.object.DeepCopyObject().(api.Object)
	if sub := t.kind.Subresource("scale"); sub.Rescale != nil {
		_ = sub.Rescale(out, replicas) // the path is there: the scale was read from it
	} else {
		autoscaling.SetReplicas(out, replicas)
	}
	return out
}
