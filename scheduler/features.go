package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	versionutil "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/nodedeclaredfeatures"

	"coracle.dev/coracle/internal/version"
)

var kubernetes = versionutil.MustParseGeneric(version.Kubernetes)

// featuresOf are the features that a pod makes a node need, nil for most pods.
func featuresOf(spec *corev1.PodSpec) []string {
	f := nodedeclaredfeatures.DefaultFramework
	set, err := f.InferForPodScheduling(&nodedeclaredfeatures.PodInfo{Spec: spec}, kubernetes)
	if err != nil || set.IsEmpty() {
		return nil
	}
	names, _ := f.Unmap(set) // of its own names it knows all
	return names
}

// featuresOn tells whether a node declares what the pod needs.
func (p *pod) featuresOn(n *node) bool {
	return !slices.ContainsFunc(p.features, func(f string) bool { return !slices.Contains(n.object.Status.DeclaredFeatures, f) })
}
