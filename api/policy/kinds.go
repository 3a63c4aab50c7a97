// Package policy holds the Kinds of the API group policy: pod disruption budgets.
package policy

import (
	policyv1 "k8s.io/api/policy/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		podDisruptionBudgetKind(),
	}
}

func podDisruptionBudgetKind() *api.Kind {
	return &api.Kind{
		Group: policyv1.GroupName, Kind: "PodDisruptionBudget", Resource: "poddisruptionbudgets", Singular: "poddisruptionbudget",
		ShortNames:   []string{"pdb"},
		Namespaced:   true,
		Versions:     declare.V1[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
