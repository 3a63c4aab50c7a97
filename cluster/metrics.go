package cluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/podautoscaler"
	"coracle.dev/coracle/node/metricsapi"
	"coracle.dev/coracle/node/simulated"
	"coracle.dev/coracle/store"
)

// newMetrics is the resource metrics API (metrics.k8s.io), answered from what the node measures when
// somebody asks, and from what simulated pods are said to use.
func (c *Cluster) newMetrics() *metricsapi.Server {
	return metricsapi.New(metricsapi.Config{Log: c.log, Sample: c.sample, Now: c.now,
		Known: metricsapi.Known{Nodes: c.simulatedNodes, Pods: c.simulatedPods}})
}

// foreignMetrics is that API's place in ours.
func (c *Cluster) foreignMetrics() apiserver.Foreign {
	kind := func(name, resource string, namespaced bool, object, list func() runtime.Object) *api.Kind {
		return &api.Kind{Group: metricsapi.Group, Kind: name, Resource: resource, Namespaced: namespaced, Virtual: true,
			Verbs:    []string{"get", "list"},
			Versions: []api.Version{{Name: metricsapi.Version, Hub: true, New: object, NewList: list}}}
	}
	return apiserver.Foreign{
		Group: metricsapi.Group,
		Kinds: []*api.Kind{
			kind("NodeMetrics", "nodes", false,
				func() runtime.Object { return &metricsv1beta1.NodeMetrics{} },
				func() runtime.Object { return &metricsv1beta1.NodeMetricsList{} }),
			kind("PodMetrics", "pods", true,
				func() runtime.Object { return &metricsv1beta1.PodMetrics{} },
				func() runtime.Object { return &metricsv1beta1.PodMetricsList{} }),
		},
		Handler: c.metrics,
	}
}

// autoscaling is what autoscalers ask.
func (c *Cluster) autoscaling() podautoscaler.Config {
	return podautoscaler.Config{Registry: c.registry,
		Metrics: podautoscaler.Metrics{Registry: c.registry, Pods: c.metrics.Pods, Aggregated: c.aggregator.Delegate}}
}

// sample reads what the real nodes and their pods have used, in this process and elsewhere.
func (c *Cluster) sample(ctx context.Context) ([]metricsapi.NodeSample, error) {
	far := c.farSamples(ctx)
	own, err := c.ownSample()
	return append(own, far...), err
}

// ownSample reads what the real node of this process and its pods have used.
func (c *Cluster) ownSample() ([]metricsapi.NodeSample, error) {
	api := c.node.kubelet.Load()
	if api == nil {
		return nil, nil
	}
	var labels map[string]string
	if n, ok := client.Nodes.Get(c.client.Snapshot(), "", c.cfg.NodeName); ok {
		labels = n.Labels
	}
	s, err := api.Sample(labels)
	if err != nil {
		return nil, err
	}
	return []metricsapi.NodeSample{s}, nil
}

// simulatedNodes is metricsapi.Known.Nodes.
func (c *Cluster) simulatedNodes(name string) []metricsapi.NodeRate {
	s, now := c.store.Snapshot(), c.now()
	peers := counter{s, map[types.UID]int{}}
	var out []metricsapi.NodeRate
	add := func(node *corev1.Node) {
		if !simulated.IsNode(node) {
			return
		}
		var pods []metricsapi.PodRate
		for pod := range client.Pods.Index(s, "node", node.Name) {
			pods = append(pods, simulated.PodUsage(pod, func() int { return peers.of(pod) }, now))
		}
		out = append(out, simulated.NodeUsage(node, pods, now))
	}
	if name != "" {
		if node, ok := client.Nodes.Get(s, "", name); ok {
			add(node)
		}
		return out
	}
	for node := range client.Nodes.List(s, "") {
		add(node)
	}
	return out
}

// simulatedPods is metricsapi.Known.Pods.
func (c *Cluster) simulatedPods(namespace, name string, sel labels.Selector) []metricsapi.PodRate {
	if c.cfg.Nodes.Simulated == 0 && c.memory == nil {
		return nil
	}
	s, now := c.store.Snapshot(), c.now()
	var pods []*corev1.Pod
	if name == "" {
		pods = c.selected.Find(s, namespace, sel)
	} else if pod, ok := client.Pods.Get(s, namespace, name); ok {
		pods = []*corev1.Pod{pod}
	}
	peers := counter{s, map[types.UID]int{}}
	var out []metricsapi.PodRate
	for _, pod := range pods {
		if simulated.Runs(pod) {
			out = append(out, simulated.PodUsage(pod, func() int { return peers.of(pod) }, now))
		}
	}
	return out
}

// counter counts, once each, the simulated pods of a controller that run and share a load.
type counter struct {
	s     store.Snapshot
	known map[types.UID]int
}

func (c counter) of(pod *corev1.Pod) int {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return 1
	}
	n, ok := c.known[ref.UID]
	if !ok {
		for p := range client.Pods.Index(c.s, "owner", string(ref.UID)) {
			if p.DeletionTimestamp == nil && simulated.Runs(p) && simulated.Shares(p) {
				n++
			}
		}
		c.known[ref.UID] = n
	}
	return n
}
