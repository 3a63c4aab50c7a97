package customresource

import (
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// planApproval says of definitions in Kubernetes' own groups whether their API was approved
// (https://github.com/kubernetes/enhancements/pull/1111).
func planApproval(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	old, ok := definitions.Get(s, "", key.Name)
	if !ok || !apihelpers.IsProtectedCommunityGroup(old.Spec.Group) {
		return reconcile.Plan{}, nil
	}
	crd := old.DeepCopy()
	if !setCondition(crd, approval(crd), now) {
		return reconcile.Plan{}, nil
	}
	return reconcile.Plan{Writes: []reconcile.Write{updateStatus(crd)}}, nil
}

func approval(crd *definition) apiextensionsv1.CustomResourceDefinitionCondition {
	state, message := apihelpers.GetAPIApprovalState(crd.Annotations)
	c := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.KubernetesAPIApprovalPolicyConformant, Status: apiextensionsv1.ConditionFalse, Message: message,
	}
	switch state {
	case apihelpers.APIApprovalInvalid:
		c.Reason = "InvalidAnnotation"
	case apihelpers.APIApprovalMissing:
		c.Reason = "MissingAnnotation"
	case apihelpers.APIApproved:
		c.Status, c.Reason = apiextensionsv1.ConditionTrue, "ApprovedAnnotation"
	case apihelpers.APIApprovalBypassed:
		c.Reason = "UnapprovedAnnotation"
	default:
		c.Status, c.Reason = apiextensionsv1.ConditionUnknown, "UnknownAnnotation"
	}
	return c
}
