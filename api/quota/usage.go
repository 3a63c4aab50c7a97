// Package quota measures what objects use of the quotas of their namespace
// (https://kubernetes.io/docs/concepts/policy/resource-quotas/).
//
// It owns which names of a quota an object counts for, by how much, and whether the quota's scopes take it. It is pure:
// admission charges with it and the controller counts with it, so that both agree. It knows no store.
package quota

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/api"
)

// The resources that count by more than their number.
const (
	pods     = "pods"
	services = "services"
	claims   = "persistentvolumeclaims"
)

const (
	countPrefix       = "count/"
	requestsPrefix    = corev1.DefaultResourceRequestsPrefix
	deviceClassPrefix = "deviceclass.resource.kubernetes.io/"
	classSuffix       = ".storageclass.storage.k8s.io/"
)

// aliases are the older names of object counts.
var aliases = map[string]corev1.ResourceName{
	"configmaps":             corev1.ResourceConfigMaps,
	"resourcequotas":         corev1.ResourceQuotas,
	"replicationcontrollers": corev1.ResourceReplicationControllers,
	"secrets":                corev1.ResourceSecrets,
}

// Ignored tells which resources no quota counts.
func Ignored(name string) bool { return name == "events" || name == "events.events.k8s.io" }

// CountName is the name under which objects of a resource (by canonical name) are counted.
func CountName(name string) corev1.ResourceName { return corev1.ResourceName(countPrefix + name) }

// Resource is the canonical resource that a name of a quota counts, "" for none.
func Resource(name corev1.ResourceName) string {
	if r, ok := strings.CutPrefix(string(name), countPrefix); ok {
		return r
	}
	for r, alias := range aliases {
		if alias == name {
			return r
		}
	}
	for _, r := range []string{pods, services, claims} {
		if Counts(r, name) {
			return r
		}
	}
	return ""
}

// Counts tells whether a name of a quota is about a resource.
func Counts(kind string, name corev1.ResourceName) bool {
	if name == CountName(kind) {
		return true
	}
	switch kind {
	case pods:
		return podName(name)
	case services:
		return name == corev1.ResourceServices || name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case claims:
		_, what, ok := strings.Cut(string(name), classSuffix)
		if !ok {
			what = string(name)
		}
		return what == string(corev1.ResourcePersistentVolumeClaims) || what == string(corev1.ResourceRequestsStorage)
	}
	alias, ok := aliases[kind]
	return ok && name == alias
}

func podName(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	rest, requests := strings.CutPrefix(string(name), requestsPrefix)
	if strings.HasPrefix(rest, corev1.ResourceHugePagesPrefix) {
		return true
	}
	return requests && (!native(name) || strings.HasPrefix(rest, deviceClassPrefix))
}

// native tells the resources that Kubernetes itself knows from extended ones.
func native(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

var one = *resource.NewQuantity(1, resource.DecimalSI)

// Usage is what an object of a resource counts, by the names that quotas use. now decides whether a pod that is
// being deleted has outstayed its grace period.
func Usage(kind string, obj api.Object, now time.Time) corev1.ResourceList {
	used := corev1.ResourceList{CountName(kind): one}
	if alias, ok := aliases[kind]; ok {
		used[alias] = one
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		podUsage(used, o, now)
	case *corev1.Service:
		serviceUsage(used, o)
	case *corev1.PersistentVolumeClaim:
		claimUsage(used, o)
	}
	return used
}

// Free is when a pod that is being deleted counts no more, whether it is gone or not. ok is false for all others.
func Free(pod *corev1.Pod) (at time.Time, ok bool) {
	if pod.DeletionTimestamp == nil || pod.DeletionGracePeriodSeconds == nil || finished(pod) {
		return at, false
	}
	return pod.DeletionTimestamp.Add(time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second), true
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

func podUsage(used corev1.ResourceList, pod *corev1.Pod, now time.Time) {
	if finished(pod) {
		return
	}
	if at, ok := Free(pod); ok && now.After(at) {
		return
	}
	options := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	used[corev1.ResourcePods] = one
	computeUsage(used, resourcehelper.PodRequests(pod, options), resourcehelper.PodLimits(pod, options))
}

// computeUsage files requests and limits under their names in quotas.
func computeUsage(used, requests, limits corev1.ResourceList) {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := requests[name]; ok {
			used[name], used[requestsPrefix+name] = q, q
		}
		if q, ok := limits[name]; ok {
			used["limits."+name] = q
		}
	}
	for name, q := range requests {
		switch {
		case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			used[name], used[requestsPrefix+name] = q, q
		case !native(name) && !strings.HasPrefix(string(name), requestsPrefix), strings.HasPrefix(string(name), deviceClassPrefix):
			used[requestsPrefix+name] = q
		}
	}
}

func serviceUsage(used corev1.ResourceList, svc *corev1.Service) {
	nodePorts, balancers := 0, 0
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		nodePorts = len(svc.Spec.Ports)
	case corev1.ServiceTypeLoadBalancer:
		balancers = 1
		// Ports are not allocated yet when a new service is charged: what it asks for counts.
		for i := range svc.Spec.Ports {
			if a := svc.Spec.AllocateLoadBalancerNodePorts; a == nil || *a || svc.Spec.Ports[i].NodePort != 0 {
				nodePorts++
			}
		}
	}
	used[corev1.ResourceServices] = one
	used[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(nodePorts), resource.DecimalSI)
	used[corev1.ResourceServicesLoadBalancers] = *resource.NewQuantity(int64(balancers), resource.DecimalSI)
}

func claimUsage(used corev1.ResourceList, pvc *corev1.PersistentVolumeClaim) {
	class := pvc.Annotations[corev1.BetaStorageClassAnnotation]
	if _, ok := pvc.Annotations[corev1.BetaStorageClassAnnotation]; !ok && pvc.Spec.StorageClassName != nil {
		class = *pvc.Spec.StorageClassName
	}
	set := func(name corev1.ResourceName, q resource.Quantity) {
		used[name] = q
		if class != "" {
			used[corev1.ResourceName(class+classSuffix)+name] = q
		}
	}
	set(corev1.ResourcePersistentVolumeClaims, one)
	size, ok := pvc.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return
	}
	if a, ok := pvc.Status.AllocatedResources[corev1.ResourceStorage]; ok && a.Cmp(size) > 0 {
		size = a
	}
	size = size.DeepCopy()
	size.RoundUp(0)
	set(corev1.ResourceRequestsStorage, size)
}
