package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	schedulinghelper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// rejection is why a node does not take a pod.
type rejection struct{ reason, message string }

// safeSysctls are those that a pod may set without being asked
// (https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/).
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
	"net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports",
	"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// admit decides whether a node takes a pod beside others that it has, by upstream's rules
// and in its words. It is pure.
func admit(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod, unsafeSysctls []string) *rejection {
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		return &rejection{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if want, ok := pod.Spec.NodeSelector[corev1.LabelOSStable]; ok && want != string(corev1.Linux) {
		return &rejection{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if s := forbiddenSysctl(pod, unsafeSysctls); s != "" {
		return &rejection{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %q not allowlisted", s)}
	}
	if r := fits(pod, node, others); r != nil {
		return r
	}
	return predicates(pod, node, others)
}

func forbiddenSysctl(pod *corev1.Pod, unsafe []string) string {
	if pod.Spec.SecurityContext == nil {
		return ""
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctlName(s.Name)
		if slices.Contains(safeSysctls, name) {
			continue
		}
		allowed := slices.ContainsFunc(unsafe, func(p string) bool {
			prefix, glob := strings.CutSuffix(p, "*")
			return p == name || glob && strings.HasPrefix(name, prefix)
		})
		if !allowed {
			return s.Name
		}
	}
	return ""
}

// fits tells whether the node has what the pod requests beside what others request.
func fits(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *rejection {
	if max, ok := node.Status.Allocatable[corev1.ResourcePods]; ok && int64(len(others))+1 > max.Value() {
		return outOf(corev1.ResourcePods, 1, int64(len(others)), max.Value())
	}
	want := resourcehelper.PodRequests(withoutDevices(pod), resourcehelper.PodResourcesOptions{})
	used := corev1.ResourceList{}
	for _, o := range others {
		for name, q := range resourcehelper.PodRequests(o, resourcehelper.PodResourcesOptions{UseStatusResources: true}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, string(name))
	}
	slices.Sort(names)
	for _, n := range names {
		name := corev1.ResourceName(n)
		q := want[name]
		if q.IsZero() {
			continue
		}
		capacity, known := node.Status.Allocatable[name]
		if !known && !plainResource(name) {
			continue // an extended resource of another node's: the scheduler's business
		}
		in := func(q resource.Quantity) int64 {
			if name == corev1.ResourceCPU {
				return q.MilliValue()
			}
			return q.Value()
		}
		if in(q)+in(used[name]) > in(capacity) {
			return outOf(name, in(q), in(used[name]), in(capacity))
		}
	}
	return nil
}

// withoutDevices is a pod without the extended resources that its claim for them gives its containers (KEP-5004).
func withoutDevices(pod *corev1.Pod) *corev1.Pod {
	st := pod.Status.ExtendedResourceClaimStatus
	if st == nil {
		return pod
	}
	out := pod.DeepCopy()
	for _, list := range [][]corev1.Container{out.Spec.InitContainers, out.Spec.Containers} {
		for i := range list {
			for _, m := range st.RequestMappings {
				if m.ContainerName == list[i].Name {
					delete(list[i].Resources.Requests, corev1.ResourceName(m.ResourceName))
				}
			}
		}
	}
	return out
}

func plainResource(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage ||
		strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

func outOf(name corev1.ResourceName, requested, used, capacity int64) *rejection {
	return &rejection{"OutOf" + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity)}
}

// predicates are the scheduler's checks that a node repeats.
func predicates(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *rejection {
	failed := func(name, why string) *rejection {
		return &rejection{name, fmt.Sprintf("Predicate %s failed: %s", name, why)}
	}
	if ok, _ := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !ok {
		return failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
	}
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != node.Name {
		return failed("NodeName", "node(s) didn't match the requested node name")
	}
	for _, o := range others {
		if portsClash(pod, o) {
			return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports")
		}
	}
	if _, found := schedulinghelper.FindMatchingUntoleratedTaint(klog.Logger{}, node.Spec.Taints, pod.Spec.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute
	}, true); found {
		return failed("TaintToleration", "node(s) had taints that the pod didn't tolerate")
	}
	return nil
}

// hostPort is a port of the node that a container takes.
type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var out []hostPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				hp := hostPort{p.HostIP, p.Protocol, p.HostPort}
				if hp.ip == "" {
					hp.ip = "0.0.0.0"
				}
				if hp.protocol == "" {
					hp.protocol = corev1.ProtocolTCP
				}
				out = append(out, hp)
			}
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			add(&pod.Spec.InitContainers[i])
		}
	}
	return out
}

// portMappings gives what a pod's host ports are to lead to; none for a pod in the host's network.
func portMappings(pod *corev1.Pod) []PortMapping {
	if pod.Spec.HostNetwork {
		return nil
	}
	var out []PortMapping
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, p := range list[i].Ports {
				if p.HostPort <= 0 || p.ContainerPort <= 0 {
					continue
				}
				m := PortMapping{HostPort: uint16(p.HostPort), Port: uint16(p.ContainerPort), Protocol: p.Protocol}
				if m.Protocol == "" {
					m.Protocol = corev1.ProtocolTCP
				}
				if ip, err := netip.ParseAddr(p.HostIP); err == nil && !ip.IsUnspecified() {
					m.HostIP = ip
				}
				out = append(out, m)
			}
		}
	}
	return out
}

func portsClash(a, b *corev1.Pod) bool {
	pa := hostPorts(a)
	if len(pa) == 0 {
		return false
	}
	for _, q := range hostPorts(b) {
		for _, p := range pa {
			if p.protocol == q.protocol && p.port == q.port && (p.ip == q.ip || p.ip == "0.0.0.0" || q.ip == "0.0.0.0") {
				return true
			}
		}
	}
	return false
}
