package volume

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// FieldValue gives the text of a field of a pod as the downward API shows it
// (https://kubernetes.io/docs/concepts/workloads/pods/downward-api/). It knows the fields that volumes may
// use and, from spec and status as they stand in pod, those for the environment.
func FieldValue(pod *corev1.Pod, path string) (string, error) {
	if base, key, ok := splitSubscript(path); ok {
		switch base {
		case "metadata.annotations":
			if errs := validation.IsQualifiedName(strings.ToLower(key)); len(errs) != 0 {
				return "", fmt.Errorf("invalid key subscript in %s: %s", path, strings.Join(errs, ";"))
			}
			return pod.Annotations[key], nil
		case "metadata.labels":
			if errs := validation.IsQualifiedName(key); len(errs) != 0 {
				return "", fmt.Errorf("invalid key subscript in %s: %s", path, strings.Join(errs, ";"))
			}
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch path {
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		ips := make([]string, len(pod.Status.HostIPs))
		for i, ip := range pod.Status.HostIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		ips := make([]string, len(pod.Status.PodIPs))
		for i, ip := range pod.Status.PodIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// splitSubscript takes "a.b['key']" apart.
func splitSubscript(path string) (base, key string, ok bool) {
	rest, found := strings.CutSuffix(path, "']")
	if !found {
		return "", "", false
	}
	return strings.Cut(rest, "['")
}

// formatMap writes a map as lines key="value", sorted, with Go's quoting.
func formatMap(m map[string]string) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	lines := make([]string, len(keys))
	for i, k := range keys {
		lines[i] = k + "=" + strconv.Quote(m[k])
	}
	return strings.Join(lines, "\n")
}

// ResourceValue gives the text of a container's resource as the downward API shows it: the amount in
// units of the divisor, rounded up. container is used where the selector names none. A limit
// that is not set counts as what the node can allocate.
func ResourceValue(pod *corev1.Pod, container string, sel *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	if sel.ContainerName != "" {
		container = sel.ContainerName
	}
	c := findContainer(pod, container)
	if c == nil {
		return "", fmt.Errorf("container %s not found", container)
	}
	kind, name, ok := strings.Cut(sel.Resource, ".")
	if !ok || (kind != "limits" && kind != "requests") {
		return "", fmt.Errorf("unsupported container resource : %v", sel.Resource)
	}
	res := corev1.ResourceName(name)
	switch {
	case res == corev1.ResourceCPU, res == corev1.ResourceMemory, res == corev1.ResourceEphemeralStorage:
	case strings.HasPrefix(name, corev1.ResourceHugePagesPrefix):
	default:
		return "", fmt.Errorf("unsupported container resource : %v", sel.Resource)
	}
	amount := c.Resources.Requests[res]
	if kind == "limits" {
		amount = effectiveLimit(pod, c, res, allocatable)
	}
	return inUnits(amount, sel.Divisor, res == corev1.ResourceCPU), nil
}

// effectiveLimit is the container's limit, or that of its pod, or that of the node.
func effectiveLimit(pod *corev1.Pod, c *corev1.Container, res corev1.ResourceName, allocatable corev1.ResourceList) resource.Quantity {
	if q := c.Resources.Limits[res]; !q.IsZero() {
		return q
	}
	if pod.Spec.Resources != nil {
		if q := pod.Spec.Resources.Limits[res]; !q.IsZero() {
			return q
		}
	}
	if strings.HasPrefix(string(res), corev1.ResourceHugePagesPrefix) {
		return resource.Quantity{}
	}
	return allocatable[res]
}

// inUnits divides and rounds up, in thousandths for CPU, in ones for the rest.
func inUnits(q, divisor resource.Quantity, milli bool) string {
	amount, unit := q.Value(), divisor.Value()
	if milli {
		amount, unit = q.MilliValue(), divisor.MilliValue()
		if divisor.IsZero() {
			unit = 1000
		}
	}
	if unit <= 0 {
		unit = 1
	}
	n := amount / unit
	if amount%unit > 0 {
		n++
	}
	return strconv.FormatInt(n, 10)
}

// findContainer looks among containers and init containers.
func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
