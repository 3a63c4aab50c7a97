package core

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// podKind describes pods. The indexes that in-process readers have beside "owner":
//
//	node            spec.nodeName, "" for pods that wait for the scheduler
//	serviceaccount  namespace/name of the service account
//	claim           namespace/name of each PersistentVolumeClaim, also of those that
//	                are made for ephemeral volumes
//	orphan          namespace of pods that nobody controls
func podKind() *api.Kind {
	return &api.Kind{
		Kind: "Pod", Resource: "pods", Singular: "pod",
		ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true,
		Versions: v1[corev1.Pod, corev1.PodList](),
		Default:  api.On(defaultPod),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(preparePodCreate),
			PrepareUpdate:  api.OnUpdate(preparePodUpdate),
			Validate:       api.Checks(ValidatePod),
			ValidateUpdate: api.ChecksUpdate(ValidatePodUpdate),
			Warnings:       podCreateWarnings,
		},
		Desired:             podDesired,
		Grace:               podGrace,
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns:             podColumns(),
		Fields:              podFields(),
		Indexes:             podIndexes(),
		Subresources:        podSubresources(),
	}
}

func podSubresources() []api.Subresource {
	return []api.Subresource{
		connect("attach", "PodAttachOptions", "create", "get"),
		{Name: "binding", Type: coreType("Binding"), Verbs: []string{"create"}},
		view("ephemeralcontainers", api.Strategy{
			PrepareUpdate:  api.OnUpdate(prepareEphemeralContainers),
			ValidateUpdate: api.ChecksUpdate(validateEphemeralContainersUpdate),
		}),
		{Name: "eviction", Type: schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}, Verbs: []string{"create"}},
		connect("exec", "PodExecOptions", "create", "get"),
		{Name: "log", Verbs: []string{"get"}},
		connect("portforward", "PodPortForwardOptions", "create", "get"),
		connect("proxy", "PodProxyOptions", proxyVerbs...),
		view("resize", api.Strategy{
			PrepareUpdate:  api.OnUpdate(preparePodResize),
			ValidateUpdate: api.ChecksUpdate(validatePodResize),
		}),
		view("status", api.Strategy{
			PrepareUpdate:  api.OnUpdate(preparePodStatus),
			ValidateUpdate: api.ChecksUpdate(ValidatePodStatusUpdate),
			Warnings:       podStatusWarnings,
		}),
	}
}

// podDesired follows KEP-5067: any change of the spec is a new generation.
func podDesired(obj, old api.Object) bool {
	return !equality.Semantic.DeepEqual(&obj.(*corev1.Pod).Spec, &old.(*corev1.Pod).Spec)
}

// podGrace is how long the node of a pod may take to stop it. Pods that no node has, and those
// that have ended, go at once.
func podGrace(obj api.Object, requested *int64) int64 {
	p := obj.(*corev1.Pod)
	if p.Spec.NodeName == "" || PodTerminal(p) {
		return 0
	}
	var seconds int64
	switch {
	case requested != nil:
		seconds = *requested
	case p.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	if seconds < 0 {
		return 1
	}
	return seconds
}

func podFields() map[string]func(api.Object) string {
	return map[string]func(api.Object) string{
		"spec.nodeName":            api.Field(func(p *corev1.Pod) string { return p.Spec.NodeName }),
		"spec.restartPolicy":       api.Field(func(p *corev1.Pod) string { return string(p.Spec.RestartPolicy) }),
		"spec.schedulerName":       api.Field(func(p *corev1.Pod) string { return p.Spec.SchedulerName }),
		"spec.serviceAccountName":  api.Field(func(p *corev1.Pod) string { return p.Spec.ServiceAccountName }),
		"spec.hostNetwork":         api.Field(func(p *corev1.Pod) string { return strconv.FormatBool(p.Spec.HostNetwork) }),
		"status.phase":             api.Field(func(p *corev1.Pod) string { return string(p.Status.Phase) }),
		"status.podIP":             api.Field(podIP),
		"status.nominatedNodeName": api.Field(func(p *corev1.Pod) string { return p.Status.NominatedNodeName }),
	}
}

func podIP(p *corev1.Pod) string {
	if len(p.Status.PodIPs) > 0 {
		return p.Status.PodIPs[0].IP
	}
	return p.Status.PodIP
}

// podIPs are the addresses of a pod that has its own; those of its node are not its.
func podIPs(p *corev1.Pod) []string {
	if p.Spec.HostNetwork || len(p.Status.PodIPs) == 0 || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	ips := make([]string, len(p.Status.PodIPs))
	for i := range p.Status.PodIPs {
		ips[i] = p.Status.PodIPs[i].IP
	}
	return ips
}

func podIndexes() map[string]func(api.Object) []string {
	return map[string]func(api.Object) []string{
		"node": api.Values(func(p *corev1.Pod) []string { return []string{p.Spec.NodeName} }),
		"serviceaccount": api.Values(func(p *corev1.Pod) []string {
			return []string{p.Namespace + "/" + p.Spec.ServiceAccountName}
		}),
		"claim":         api.Values(podClaims),
		"ip":            api.Values(podIPs),
		"resourceclaim": api.Values(podResourceClaims),
		api.OrphanIndex: api.Orphans,
	}
}

func podClaims(p *corev1.Pod) []string {
	var claims []string
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			claims = append(claims, p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			claims = append(claims, p.Namespace+"/"+EphemeralClaimName(p, v))
		}
	}
	return claims
}

// podResourceClaims are the ResourceClaims that a pod is known to use; of those that are made from templates its status tells.
func podResourceClaims(p *corev1.Pod) []string {
	var claims []string
	for i := range p.Spec.ResourceClaims {
		if name := p.Spec.ResourceClaims[i].ResourceClaimName; name != nil {
			claims = append(claims, p.Namespace+"/"+*name)
		}
	}
	for i := range p.Status.ResourceClaimStatuses {
		if name := p.Status.ResourceClaimStatuses[i].ResourceClaimName; name != nil {
			claims = append(claims, p.Namespace+"/"+*name)
		}
	}
	return claims
}

// EphemeralClaimName is the name of the PersistentVolumeClaim that is made for an
// ephemeral volume of a pod (KEP-1698).
func EphemeralClaimName(p *corev1.Pod, v *corev1.Volume) string { return p.Name + "-" + v.Name }
