package simulated

import (
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"coracle.dev/coracle/node/metricsapi"
)

// Pod annotations that say what a pod on a simulated node uses, so that autoscalers can be tried without load. They may be changed at
// any time. A value is a quantity ("250m", "64Mi") or a share of what is requested ("80%").
//
// UsageCPU and UsageMemory are for the pod as a whole, and are split between its containers as their requests are; with a dot and the name
// of a container behind them ("simulated.coracle.dev/usage-cpu.app") for that container.
//
// LoadCPU and LoadMemory are for all pods of a controller (a ReplicaSet, a StatefulSet) together: each that runs has an even part of
// the value, as if a load balancer stood before them.
//
// Without any of them a pod uses a tenth of the CPU and half of the memory that it requests, give or take a fifth.
const (
	UsageCPU    = "simulated.coracle.dev/usage-cpu"
	UsageMemory = "simulated.coracle.dev/usage-memory"
	LoadCPU     = "simulated.coracle.dev/load-cpu"
	LoadMemory  = "simulated.coracle.dev/load-memory"
)

// IsNode tells whether a node is played by this package.
func IsNode(node *corev1.Node) bool {
	return strings.HasPrefix(node.Status.NodeInfo.ContainerRuntimeVersion, scheme)
}

// Shares tells whether a pod's use depends on how many pods its controller has.
func Shares(pod *corev1.Pod) bool {
	return pod.Annotations[LoadCPU] != "" || pod.Annotations[LoadMemory] != ""
}

// Runs tells whether a pod runs on a simulated node.
func Runs(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && len(pod.Status.ContainerStatuses) > 0 &&
		strings.HasPrefix(pod.Status.ContainerStatuses[0].ContainerID, scheme)
}

// longestWindow is what a rate is said to be the mean of, as with upstream's metrics-server.
const longestWindow = 15 * time.Second

// PodUsage is what a pod on a simulated node uses at a time. peers is how many running pods its controller has, this one among
// them, for loads that they share; it is asked only if Shares says so. Without running containers there are no rates.
func PodUsage(pod *corev1.Pod, peers func() int, now time.Time) metricsapi.PodRate {
	out := metricsapi.PodRate{PodSample: metricsapi.PodSample{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: pod.Labels}}
	running := runningContainers(pod)
	if len(running) == 0 || !Runs(pod) {
		return out
	}
	share := int64(1)
	if Shares(pod) {
		share = max(int64(peers()), 1)
	}
	cpu := usage(pod, running, corev1.ResourceCPU, UsageCPU, LoadCPU, share, 10, 1)
	memory := usage(pod, running, corev1.ResourceMemory, UsageMemory, LoadMemory, share, 50, 4<<20*1000)
	for i, c := range running {
		window := now.Sub(c.since).Truncate(time.Second)
		out.Containers = append(out.Containers, metricsapi.ContainerSample{Name: c.spec.Name})
		out.Rates = append(out.Rates, metricsapi.Rate{Time: now, Window: min(max(window, 0), longestWindow),
			NanoCores: uint64(max(cpu[i], 0)) * 1e6, WorkingSetBytes: uint64(max(memory[i], 0)) / 1000})
	}
	return out
}

// runningContainer is a container that its status says to run.
type runningContainer struct {
	spec  *corev1.Container
	since time.Time
}

func runningContainers(pod *corev1.Pod) []runningContainer {
	var out []runningContainer
	add := func(specs []corev1.Container, statuses []corev1.ContainerStatus) {
		for i := range specs {
			for j := range statuses {
				if s := &statuses[j]; s.Name == specs[i].Name && s.State.Running != nil {
					out = append(out, runningContainer{&specs[i], s.State.Running.StartedAt.Time})
				}
			}
		}
	}
	add(pod.Spec.Containers, pod.Status.ContainerStatuses)
	add(pod.Spec.InitContainers, pod.Status.InitContainerStatuses)
	return out
}

// usage is what each container uses of a resource, in thousandths. By default it is percent of the request, and not less than least.
func usage(pod *corev1.Pod, running []runningContainer, name corev1.ResourceName, own, load string, share, percent, least int64) []int64 {
	requests, sum := make([]int64, len(running)), int64(0)
	for i, c := range running {
		r := c.spec.Resources.Requests[name]
		requests[i] = r.MilliValue()
		sum += requests[i]
	}
	total, given := amount(pod.Annotations[own], sum)
	if !given {
		if total, given = amount(pod.Annotations[load], sum); given {
			total /= share
		}
	}
	out := make([]int64, len(running))
	for i, c := range running {
		switch alone, ok := amount(pod.Annotations[own+"."+c.spec.Name], requests[i]); {
		case ok:
			out[i] = alone
		case given && sum > 0:
			out[i] = int64(float64(total) * float64(requests[i]) / float64(sum))
		case given:
			out[i] = total / int64(len(running))
		default:
			out[i] = max(vary(requests[i]*percent/100, string(pod.UID)+c.spec.Name), least)
		}
	}
	return out
}

// amount reads a value of an annotation, in thousandths; of is what "100%" means.
func amount(text string, of int64) (int64, bool) {
	text = strings.TrimSpace(text)
	if number, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(number, 64)
		return int64(f * float64(of) / 100), err == nil && f >= 0 && f < 1e6
	}
	if text == "" {
		return 0, false
	}
	q, err := resource.ParseQuantity(text)
	return q.MilliValue(), err == nil && q.Sign() >= 0
}

// vary moves n by up to a fifth, always the same for the same seed.
func vary(n int64, seed string) int64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(seed))
	return n + n*(int64(h.Sum32()%401)-200)/1000
}

// NodeUsage is what a simulated node uses: what its pods do, and a little of its own.
func NodeUsage(node *corev1.Node, pods []metricsapi.PodRate, now time.Time) metricsapi.NodeRate {
	cpu, memory := node.Status.Capacity[corev1.ResourceCPU], node.Status.Capacity[corev1.ResourceMemory]
	out := metricsapi.NodeRate{Node: node.Name, Labels: node.Labels, Rate: metricsapi.Rate{Time: now, Window: longestWindow,
		NanoCores:       uint64(max(vary(cpu.MilliValue()/100, node.Name), 0)) * 1e6,
		WorkingSetBytes: uint64(max(vary(memory.Value()/50, node.Name), 0))}}
	for i := range pods {
		for _, r := range pods[i].Rates {
			out.NanoCores += r.NanoCores
			out.WorkingSetBytes += r.WorkingSetBytes
		}
	}
	return out
}
