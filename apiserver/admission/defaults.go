package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	resourcehelper "k8s.io/component-helpers/resource"
	storagehelper "k8s.io/component-helpers/storage/volume"

	"coracle.dev/coracle/client"
	kubernetes "coracle.dev/coracle/internal/version"
)

// taintNodes keeps pods off a new node until the node lifecycle has seen that it is ready.
func taintNodes() Plugin {
	return Plugin{Name: "TaintNodesByCondition", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is("nodes", "") {
			return nil
		}
		node := r.Object.(*corev1.Node)
		taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
		if !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&taint) }) {
			node.Spec.Taints = append(node.Spec.Taints, taint)
		}
		return nil
	}}
}

// claimResize lets a claim grow only where its class can make volumes grow
// (https://kubernetes.io/docs/concepts/storage/persistent-volumes/#expanding-persistent-volumes-claims).
func claimResize() Plugin {
	return Plugin{Name: "PersistentVolumeClaimResize", Validate: func(_ context.Context, r *Request) error {
		if r.Operation != Update || !r.Is("persistentvolumeclaims", "") {
			return nil
		}
		now, old := r.Object.(*corev1.PersistentVolumeClaim), r.Old.(*corev1.PersistentVolumeClaim)
		size, was := now.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
		if size.Cmp(was) <= 0 {
			return nil
		}
		if old.Status.Phase != corev1.ClaimBound {
			return Forbidden(r, errors.New("Only bound persistent volume claims can be expanded")) //nolint:staticcheck // upstream's words
		}
		class := storagehelper.GetPersistentVolumeClaimClass(now)
		if class != "" && class == storagehelper.GetPersistentVolumeClaimClass(old) {
			if sc, ok := client.StorageClasses.Get(r.Snapshot, "", class); ok && sc.AllowVolumeExpansion != nil && *sc.AllowVolumeExpansion {
				return nil
			}
		}
		return Forbidden(r, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
	}}
}

// podTopologyLabels gives a pod that names its node that node's zone and region (KEP-4742). Those that are
// bound get them with the binding.
func podTopologyLabels() Plugin {
	return Plugin{Name: "PodTopologyLabels", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is("pods", "") {
			return nil
		}
		pod := r.Object.(*corev1.Pod)
		if pod.Spec.NodeName == "" {
			return nil
		}
		node, ok := client.Nodes.Get(r.Snapshot, "", pod.Spec.NodeName)
		if !ok {
			return nil
		}
		for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
			if v, ok := node.Labels[key]; ok {
				metav1.SetMetaDataLabel(&pod.ObjectMeta, key, v)
			}
		}
		return nil
	}}
}

// declared infers from the change of a pod what its node must be able to do. It is made at the first update of the
// spec of a pod that has a node.
var declared = sync.OnceValues(func() (*version.Version, error) { return version.Parse(kubernetes.Kubernetes) })

// nodeDeclaredFeatures refuses a change of a bound pod that its node does not declare to be able to carry out (KEP-5328).
func nodeDeclaredFeatures() Plugin {
	return Plugin{Name: "NodeDeclaredFeatureValidator", Validate: func(_ context.Context, r *Request) error {
		pod, old, ok := changedBoundPod(r)
		if !ok {
			return nil
		}
		release, err := declared()
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		needs, err := ndf.DefaultFramework.InferForPodUpdate(&ndf.PodInfo{Spec: &old.Spec, Status: &old.Status},
			&ndf.PodInfo{Spec: &pod.Spec, Status: &pod.Status}, release)
		if err != nil {
			return Forbidden(r, fmt.Errorf("failed to infer pod capability requirements: %w", err))
		}
		if needs.IsEmpty() {
			return nil
		}
		node, ok := client.Nodes.Get(r.Snapshot, "", pod.Spec.NodeName)
		if !ok {
			return Forbidden(r, fmt.Errorf("node %q not found", pod.Spec.NodeName))
		}
		result, err := ndf.DefaultFramework.MatchNode(needs, node)
		if err != nil {
			return Forbidden(r, fmt.Errorf("failed to match pod requirements against node %q: %w", node.Name, err))
		}
		if !result.IsMatch {
			return Forbidden(r, fmt.Errorf("pod update requires features %s which are not available on node %q",
				strings.Join(result.UnsatisfiedRequirements, ", "), node.Name))
		}
		return nil
	}}
}

// changedBoundPod gives the pod of an update that changes the spec of a pod which has a node.
func changedBoundPod(r *Request) (pod, old *corev1.Pod, ok bool) {
	if r.Operation != Update || !r.Is("pods", "") && !r.Is("pods", "resize") {
		return nil, nil, false
	}
	pod, ok = r.Object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil, nil, false
	}
	old, ok = r.Old.(*corev1.Pod)
	return pod, old, ok && old.Generation != pod.Generation
}

// podResize refuses to resize a pod beyond what its node can ever give, or on a node that cannot resize.
func podResize() Plugin {
	return Plugin{Name: "PodResizeValidator", Validate: func(_ context.Context, r *Request) error {
		pod, _, ok := changedBoundPod(r)
		if !ok || r.Subresource != "resize" {
			return nil
		}
		node, ok := client.Nodes.Get(r.Snapshot, "", pod.Spec.NodeName)
		if !ok {
			return Forbidden(r, fmt.Errorf("node %q not found", pod.Spec.NodeName))
		}
		if os := node.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
			return caused(r, fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", node.Name, os), "UnsupportedPlatform")
		}
		requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
		var lacking []string
		if cpu := requests.Cpu(); cpu.Cmp(*node.Status.Allocatable.Cpu()) > 0 {
			lacking = append(lacking, fmt.Sprintf("cpu, requested: %d, allocatable: %d", cpu.MilliValue(), node.Status.Allocatable.Cpu().MilliValue()))
		}
		if memory := requests.Memory(); memory.Cmp(*node.Status.Allocatable.Memory()) > 0 {
			lacking = append(lacking, fmt.Sprintf("memory, requested: %d, allocatable: %d", memory.Value(), node.Status.Allocatable.Memory().Value()))
		}
		if len(lacking) > 0 {
			return caused(r, fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(lacking, "; ")), "NodeCapacity")
		}
		return nil
	}}
}

// caused is Forbidden with a cause that programs can tell.
func caused(r *Request, reason error, cause metav1.CauseType) error {
	err := Forbidden(r, reason)
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	}
	return err
}
