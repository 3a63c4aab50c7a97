// Package apps holds the Kinds of the API group apps: workloads: deployments, replica sets, stateful sets, daemon sets and controller revisions.
package apps

import (
	appsv1 "k8s.io/api/apps/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		deploymentKind(),
		replicaSetKind(),
		statefulSetKind(),
		daemonSetKind(),
		controllerRevisionKind(),
	}
}

func deploymentKind() *api.Kind {
	return &api.Kind{
		Group: appsv1.GroupName, Kind: "Deployment", Resource: "deployments", Singular: "deployment",
		ShortNames:   []string{"deploy"},
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[appsv1.Deployment, appsv1.DeploymentList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{}), declare.Scale()},
	}
}

func replicaSetKind() *api.Kind {
	return &api.Kind{
		Group: appsv1.GroupName, Kind: "ReplicaSet", Resource: "replicasets", Singular: "replicaset",
		ShortNames:   []string{"rs"},
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[appsv1.ReplicaSet, appsv1.ReplicaSetList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{}), declare.Scale()},
	}
}

func statefulSetKind() *api.Kind {
	return &api.Kind{
		Group: appsv1.GroupName, Kind: "StatefulSet", Resource: "statefulsets", Singular: "statefulset",
		ShortNames:   []string{"sts"},
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[appsv1.StatefulSet, appsv1.StatefulSetList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{}), declare.Scale()},
	}
}

func daemonSetKind() *api.Kind {
	return &api.Kind{
		Group: appsv1.GroupName, Kind: "DaemonSet", Resource: "daemonsets", Singular: "daemonset",
		ShortNames:   []string{"ds"},
		Categories:   []string{"all"},
		Namespaced:   true,
		Versions:     declare.V1[appsv1.DaemonSet, appsv1.DaemonSetList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func controllerRevisionKind() *api.Kind {
	return &api.Kind{
		Group: appsv1.GroupName, Kind: "ControllerRevision", Resource: "controllerrevisions", Singular: "controllerrevision",
		Namespaced: true,
		Versions:   declare.V1[appsv1.ControllerRevision, appsv1.ControllerRevisionList](),
	}
}
