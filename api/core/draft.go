package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
)

func bindingKind() *api.Kind {
	return &api.Kind{
		Kind: "Binding", Resource: "bindings", Singular: "binding", Namespaced: true,
		Versions: []api.Version{{Name: "v1", Hub: true,
			New:     v1[corev1.Binding, corev1.List]()[0].New,
			NewList: v1[corev1.Binding, corev1.List]()[0].NewList}},
		Verbs: []string{"create"}, Virtual: true,
	}
}

func componentStatusKind() *api.Kind {
	return &api.Kind{
		Kind: "ComponentStatus", Resource: "componentstatuses", Singular: "componentstatus",
		ShortNames: []string{"cs"}, Versions: v1[corev1.ComponentStatus, corev1.ComponentStatusList](),
		Verbs: []string{"get", "list"}, Virtual: true,
	}
}

func configMapKind() *api.Kind {
	return &api.Kind{
		Kind: "ConfigMap", Resource: "configmaps", Singular: "configmap", ShortNames: []string{"cm"}, Namespaced: true,
		Versions: v1[corev1.ConfigMap, corev1.ConfigMapList](), UnconditionalUpdate: true,
	}
}

func endpointsKind() *api.Kind {
	return &api.Kind{
		Kind: "Endpoints", Resource: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"}, Namespaced: true,
		Versions: v1[corev1.Endpoints, corev1.EndpointsList](), UnconditionalUpdate: true, CreateOnUpdate: true,
	}
}

func eventKind() *api.Kind {
	return &api.Kind{
		Kind: "Event", Resource: "events", Singular: "event", ShortNames: []string{"ev"}, Namespaced: true,
		Versions: v1[corev1.Event, corev1.EventList](), UnconditionalUpdate: true, CreateOnUpdate: true, Relaxed: true,
	}
}

func limitRangeKind() *api.Kind {
	return &api.Kind{
		Kind: "LimitRange", Resource: "limitranges", Singular: "limitrange", ShortNames: []string{"limits"}, Namespaced: true,
		Versions: v1[corev1.LimitRange, corev1.LimitRangeList](), UnconditionalUpdate: true, CreateOnUpdate: true,
	}
}

func namespaceKind() *api.Kind {
	return &api.Kind{
		Kind: "Namespace", Resource: "namespaces", Singular: "namespace", ShortNames: []string{"ns"},
		Versions: v1[corev1.Namespace, corev1.NamespaceList](), UnconditionalUpdate: true,
		Verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		Subresources: []api.Subresource{
			{Name: "finalize", Verbs: []string{"update"}, Strategy: &api.Strategy{}},
			view("status", api.Strategy{PrepareUpdate: api.OnUpdate(func(n, o *corev1.Namespace) { n.Spec = o.Spec })}),
		},
	}
}

func nodeKind() *api.Kind {
	return &api.Kind{
		Kind: "Node", Resource: "nodes", Singular: "node", ShortNames: []string{"no"},
		Versions: v1[corev1.Node, corev1.NodeList](), UnconditionalUpdate: true,
		Subresources: []api.Subresource{
			connect("proxy", "NodeProxyOptions", proxyVerbs...),
			view("status", api.Strategy{PrepareUpdate: api.OnUpdate(func(n, o *corev1.Node) { n.Spec = o.Spec })}),
		},
	}
}

func podTemplateKind() *api.Kind {
	return &api.Kind{
		Kind: "PodTemplate", Resource: "podtemplates", Singular: "podtemplate", Namespaced: true,
		Versions: v1[corev1.PodTemplate, corev1.PodTemplateList](), UnconditionalUpdate: true,
		Default: api.On(func(t *corev1.PodTemplate) { DefaultPodTemplate(&t.Template) }),
	}
}

func replicationControllerKind() *api.Kind {
	return &api.Kind{
		Kind: "ReplicationController", Resource: "replicationcontrollers", Singular: "replicationcontroller", ShortNames: []string{"rc"},
		Categories: []string{"all"}, Namespaced: true,
		Versions: v1[corev1.ReplicationController, corev1.ReplicationControllerList](), UnconditionalUpdate: true,
		Subresources: []api.Subresource{
			{Name: "scale", Type: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, Verbs: []string{"get", "patch", "update"}},
			view("status", api.Strategy{PrepareUpdate: api.OnUpdate(func(n, o *corev1.ReplicationController) { n.Spec = o.Spec })}),
		},
	}
}

func resourceQuotaKind() *api.Kind {
	return &api.Kind{
		Kind: "ResourceQuota", Resource: "resourcequotas", Singular: "resourcequota", ShortNames: []string{"quota"}, Namespaced: true,
		Versions: v1[corev1.ResourceQuota, corev1.ResourceQuotaList](), UnconditionalUpdate: true,
		Subresources: []api.Subresource{
			view("status", api.Strategy{PrepareUpdate: api.OnUpdate(func(n, o *corev1.ResourceQuota) { n.Spec = o.Spec })}),
		},
	}
}

func secretKind() *api.Kind {
	return &api.Kind{
		Kind: "Secret", Resource: "secrets", Singular: "secret", Namespaced: true,
		Versions: v1[corev1.Secret, corev1.SecretList](), UnconditionalUpdate: true,
	}
}

func serviceKind() *api.Kind {
	return &api.Kind{
		Kind: "Service", Resource: "services", Singular: "service", ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true,
		Versions: v1[corev1.Service, corev1.ServiceList](), UnconditionalUpdate: true, CreateOnUpdate: true,
		Subresources: []api.Subresource{
			connect("proxy", "ServiceProxyOptions", proxyVerbs...),
			view("status", api.Strategy{PrepareUpdate: api.OnUpdate(func(n, o *corev1.Service) { n.Spec = o.Spec })}),
		},
	}
}

func serviceAccountKind() *api.Kind {
	return &api.Kind{
		Kind: "ServiceAccount", Resource: "serviceaccounts", Singular: "serviceaccount", ShortNames: []string{"sa"}, Namespaced: true,
		Versions: v1[corev1.ServiceAccount, corev1.ServiceAccountList](),
		Subresources: []api.Subresource{
			{Name: "token", Type: schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}, Verbs: []string{"create"}},
		},
	}
}

