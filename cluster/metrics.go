package cluster

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/node/metricsapi"
)

// metrics is the resource metrics API (metrics.k8s.io), answered from what the node measures when
// somebody asks.
func (c *Cluster) metrics() apiserver.Foreign {
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
		Handler: metricsapi.New(metricsapi.Config{Log: c.log, Sample: c.sample}),
	}
}

// sample reads what the real node and its pods have used. Simulated nodes use nothing and are left out.
func (c *Cluster) sample(context.Context) ([]metricsapi.NodeSample, error) {
	api := c.node.kubelet.Load()
	if api == nil {
		return nil, nil
	}
	var labels map[string]string
	if n, ok := client.Nodes.Get(c.store.Snapshot(), "", c.cfg.NodeName); ok {
		labels = n.Labels
	}
	s, err := api.Sample(labels)
	if err != nil {
		return nil, err
	}
	return []metricsapi.NodeSample{s}, nil
}
