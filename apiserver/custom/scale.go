package custom

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"coracle.dev/coracle/api"
)

// scale reads and sets the number of replicas at the paths that a version names.
type scale struct {
	*apiextensionsv1.CustomResourceSubresourceScale
}

// show is api.Subresource.Scale.
func (s scale) show(o api.Object) (*autoscalingv1.Scale, string, error) {
	obj := o.(*unstructured.Unstructured)
	replicas, found, err := unstructured.NestedInt64(obj.Object, steps(s.SpecReplicasPath)...)
	if err != nil {
		return nil, "", err
	}
	missing := ""
	if !found {
		missing = s.SpecReplicasPath
	}
	present, _, err := unstructured.NestedInt64(obj.Object, steps(s.StatusReplicasPath)...)
	if err != nil {
		return nil, "", err
	}
	selector := ""
	if s.LabelSelectorPath != nil && *s.LabelSelectorPath != "" {
		if selector, _, err = unstructured.NestedString(obj.Object, steps(*s.LabelSelectorPath)...); err != nil {
			return nil, "", err
		}
	}
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: int32(replicas)},
		Status: autoscalingv1.ScaleStatus{Replicas: int32(present), Selector: selector},
	}, missing, nil
}

// change is api.Subresource.Rescale.
func (s scale) change(o api.Object, replicas int32) error {
	return unstructured.SetNestedField(o.(*unstructured.Unstructured).Object, int64(replicas), steps(s.SpecReplicasPath)...)
}
