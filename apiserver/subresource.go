package apiserver

import (
	"errors"
	"fmt"
	"math"
	"net/http"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/store"
)

// special answers the subresources that have rules of their own.
func (c *call) special() error {
	switch c.info.Subresource {
	case "scale":
		return c.scale()
	case "proxy":
		return c.proxy()
	}
	switch c.kind.Name() + "/" + c.info.Subresource {
	case "pods/binding":
		return c.bindPod()
	case "pods/eviction":
		return c.evict()
	case "pods/log":
		return c.podLog()
	case "pods/exec", "pods/attach":
		return c.podStream()
	case "pods/portforward":
		return c.portForward()
	case "serviceaccounts/token":
		return c.issueToken()
	}
	return apierrors.NewMethodNotSupported(c.kind.GroupResource(), c.info.Verb)
}

var scaleKind = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

// scale shows and changes the number of replicas of a workload.
func (c *call) scale() error {
	if c.info.Verb == "get" {
		e, err := c.current()
		if err != nil {
			return err
		}
		obj, err := c.kind.Loaded(c.r.Context(), e.Object.(api.Object))
		if err != nil {
			return err
		}
		s, missing, err := c.scaleOf(obj)
		if err != nil {
			return err
		}
		if missing != "" {
			return apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", missing))
		}
		return c.answerObject(http.StatusOK, s, scaleKind)
	}
	change, o, err := c.scaleChange()
	if err != nil {
		return err
	}
	t := c.target()
	t.DryRun, t.Manager = o.dryRun, o.manager
	t.Options = &metav1.UpdateOptions{DryRun: c.query["dryRun"], FieldManager: c.query.Get("fieldManager"), FieldValidation: c.query.Get("fieldValidation")}
	e, _, err := c.chain.Update(c.r.Context(), t, write.Update{
		Tracked: true,
		Make: func(current *store.Entry) (api.Object, error) {
			if current == nil {
				return nil, apierrors.NewNotFound(c.kind.GroupResource(), c.info.Name)
			}
			return c.rescaleBy(&t, current.Object.(api.Object), change)
		},
		View: func(obj api.Object) api.Object {
			s, _, _ := c.scaleOf(obj)
			return s
		},
		Merge: func(obj, view api.Object) (api.Object, error) {
			return c.rescale(obj, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return view.(*autoscalingv1.Scale), nil })
		},
	})
	if err != nil {
		return err
	}
	obj, err := c.kind.Loaded(c.r.Context(), e.Object.(api.Object))
	if err != nil {
		return err
	}
	s, _, err := c.scaleOf(obj)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return c.answerObject(http.StatusOK, s, scaleKind)
}

// scaleOf shows an object as a Scale, by the rule of its kind. missing is as in api.Subresource.Scale.
func (c *call) scaleOf(obj api.Object) (s *autoscalingv1.Scale, missing string, err error) {
	if c.sub != nil && c.sub.Scale != nil {
		return c.sub.Scale(obj)
	}
	s, err = scaleOf(obj)
	return s, "", err
}

// noReplicas stands in a Scale for a number of replicas that the object lacks, so that a change that sets none is noticed.
const noReplicas = math.MinInt32

// scaleChange reads the body of PUT or PATCH as a function of the present scale.
func (c *call) scaleChange() (func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error), writeOptions, error) {
	if c.info.Verb == "update" {
		o, err := c.options("UpdateOptions")
		if err != nil {
			return nil, o, err
		}
		s := &autoscalingv1.Scale{}
		if err := c.decode(s, scaleKind, &o); err != nil {
			return nil, o, err
		}
		return func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return s, nil }, o, nil
	}
	p, o, err := c.readPatch(scaleKind, func() runtime.Object { return &autoscalingv1.Scale{} })
	if err != nil {
		return nil, o, err
	}
	if p.Type == types.ApplyYAMLPatchType {
		return func(present *autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return c.mergeScale(p, &o, present) }, o, nil
	}
	return func(present *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		out, err := p.Apply(present, func() ([]byte, error) {
			b, err := wire.Object(wire.JSON, present, scaleKind)
			return b.Bytes(), err
		})
		if err != nil {
			return nil, err
		}
		return out.(*autoscalingv1.Scale), nil
	}, o, nil
}

// rescale gives a copy of a workload with the replicas of a changed scale.
func (c *call) rescale(current api.Object, change func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (api.Object, error) {
	present, missing, err := c.scaleOf(current)
	if err != nil {
		return nil, err
	}
	if missing != "" {
		present.Spec.Replicas = noReplicas
	}
	s, err := change(present)
	if err != nil {
		return nil, err
	}
	if missing != "" && s.Spec.Replicas == noReplicas {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the spec replicas field %q cannot be empty", missing))
	}
	if s.Name == "" {
		s.Name = c.info.Name
	}
	if err := c.matches(s); err != nil {
		return nil, err
	}
	if s.UID != "" && s.UID != current.GetUID() {
		return nil, write.Conflict(c.kind, c.info.Name, fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", s.UID, current.GetUID()))
	}
	if s.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: scaleKind.Group, Kind: scaleKind.Kind}, c.info.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0")})
	}
	obj := current.DeepCopyObject().(api.Object)
	obj.SetResourceVersion(s.ResourceVersion)
	if s.ResourceVersion == "" {
		obj.SetResourceVersion(current.GetResourceVersion())
	}
	if c.sub != nil && c.sub.Rescale != nil {
		return obj, c.sub.Rescale(obj, s.Spec.Replicas)
	}
	*replicasOf(obj) = &s.Spec.Replicas
	return obj, nil
}

// replicasOf is where a workload keeps its number of replicas, nil if it is none.
func replicasOf(obj api.Object) **int32 {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Replicas
	case *appsv1.ReplicaSet:
		return &o.Spec.Replicas
	case *appsv1.StatefulSet:
		return &o.Spec.Replicas
	case *corev1.ReplicationController:
		return &o.Spec.Replicas
	}
	return nil
}

// scaleOf shows a workload as a Scale.
func scaleOf(obj api.Object) (*autoscalingv1.Scale, error) {
	replicas := replicasOf(obj)
	if replicas == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("%T has no scale", obj))
	}
	s := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
	}}
	if *replicas != nil {
		s.Spec.Replicas = **replicas
	}
	var selector *metav1.LabelSelector
	switch o := obj.(type) {
	case *appsv1.Deployment:
		s.Status.Replicas, selector = o.Status.Replicas, o.Spec.Selector
	case *appsv1.ReplicaSet:
		s.Status.Replicas, selector = o.Status.Replicas, o.Spec.Selector
	case *appsv1.StatefulSet:
		s.Status.Replicas, selector = o.Status.Replicas, o.Spec.Selector
	case *corev1.ReplicationController:
		s.Status.Replicas = o.Status.Replicas
		s.Status.Selector = labels.SelectorFromSet(o.Spec.Selector).String()
		return s, nil
	}
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	s.Status.Selector = parsed.String()
	return s, nil
}

// success answers a request that has nothing to show.
func (c *call) success() error {
	return c.answerObject(http.StatusCreated, &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusCreated}, statusKind)
}

var errNoTokens = errors.New("the server has no key to sign tokens with")
