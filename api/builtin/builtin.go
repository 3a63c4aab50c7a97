// Package builtin lists the Kinds that are compiled in, and what discovery must
// know of their groups. It has no rules of its own: those are in the group packages.
package builtin

import (
	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/admissionregistration"
	"coracle.dev/coracle/api/apiextensions"
	"coracle.dev/coracle/api/apiregistration"
	"coracle.dev/coracle/api/apps"
	"coracle.dev/coracle/api/authentication"
	"coracle.dev/coracle/api/authorization"
	"coracle.dev/coracle/api/autoscaling"
	"coracle.dev/coracle/api/batch"
	"coracle.dev/coracle/api/certificates"
	"coracle.dev/coracle/api/coordination"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	"coracle.dev/coracle/api/events"
	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/api/networking"
	"coracle.dev/coracle/api/node"
	"coracle.dev/coracle/api/policy"
	"coracle.dev/coracle/api/policynetworking"
	"coracle.dev/coracle/api/rbac"
	"coracle.dev/coracle/api/resource"
	"coracle.dev/coracle/api/scheduling"
	"coracle.dev/coracle/api/storage"
	"coracle.dev/coracle/api/storagemigration"
)

// Kinds returns new descriptors of every built-in kind: what upstream v1.37
// serves by default, in stable versions.
func Kinds() []*api.Kind {
	all := core.Kinds()
	for _, k := range all {
		if k.Resource == "events" {
			all = append(all, events.Kinds(k)...)
			break
		}
	}
	for _, kinds := range []func() []*api.Kind{
		apps.Kinds, authentication.Kinds, authorization.Kinds, autoscaling.Kinds,
		batch.Kinds, certificates.Kinds, networking.Kinds, policy.Kinds, rbac.Kinds, storage.Kinds,
		admissionregistration.Kinds, apiextensions.Kinds, scheduling.Kinds, coordination.Kinds,
		node.Kinds, discovery.Kinds, flowcontrol.Kinds, resource.Kinds, storagemigration.Kinds,
		apiregistration.Kinds, policynetworking.Kinds, gateway.Kinds,
	} {
		all = append(all, kinds()...)
	}
	return all
}

// GroupPriority orders the groups in discovery and in the APIServices that stand
// for them (spec.groupPriorityMinimum): the greatest comes first. A group that is
// not listed, as those of custom resources, has 1000.
var GroupPriority = map[string]int32{
	"":                             18000,
	"apiregistration.k8s.io":       20001, // always the first
	"apps":                         17800,
	"events.k8s.io":                17750,
	"authentication.k8s.io":        17700,
	"authorization.k8s.io":         17600,
	"autoscaling":                  17500,
	"batch":                        17400,
	"certificates.k8s.io":          17300,
	"networking.k8s.io":            17200,
	"policy":                       17100,
	"rbac.authorization.k8s.io":    17000,
	"storage.k8s.io":               16800,
	"apiextensions.k8s.io":         16700,
	"admissionregistration.k8s.io": 16700,
	"scheduling.k8s.io":            16600,
	"coordination.k8s.io":          16500,
	"node.k8s.io":                  16300,
	"discovery.k8s.io":             16200,
	"flowcontrol.apiserver.k8s.io": 16100,
	"resource.k8s.io":              15900,
	"storagemigration.k8s.io":      15800,
	"policy.networking.k8s.io":     1000, // as that of a CustomResourceDefinition, which it is elsewhere
	"gateway.networking.k8s.io":    1000, // likewise
}

// VersionPriority orders the versions inside the groups that have more than one
// (APIService spec.versionPriority); 15 for every other stable version, 1 for core's.
func VersionPriority(group, version string) int32 {
	switch {
	case group == "":
		return 1
	case group == "autoscaling" && version == "v2":
		return 30
	case group == "flowcontrol.apiserver.k8s.io":
		return 21
	case group == "policy.networking.k8s.io":
		return 100
	}
	return 15
}
