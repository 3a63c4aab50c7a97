// Package bootstrap makes the objects that every cluster has: the four system
// namespaces, the service default/kubernetes with its endpoints, the two system priority classes
// and the default service range.
//
// It owns the existence of these objects, and the addresses and ports of the service kubernetes. It never
// takes anything out of them that others added.
package bootstrap

import (
	"net/netip"
	"time"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what the objects say.
type Config struct {
	// ServiceCIDRs are the ranges of cluster IPs, one for each family. The first address of
	// the first is that of the service kubernetes.
	ServiceCIDRs []netip.Prefix
	// Endpoints are where the API server can be reached by pods: one port, and at least one address.
	Endpoints []netip.AddrPort
	// DNS is the service address at which nodes answer for the cluster's DNS; zero for none.
	DNS netip.Addr
	// Authentication is what extension API servers read to know who speaks to them: the data of the config map
	// kube-system/extension-apiserver-authentication; nil makes none.
	Authentication map[string]string
}

const (
	serviceCIDRs = "servicecidrs.networking.k8s.io"
	service      = "kubernetes"
	namespace    = "default"
)

// Loop makes the objects at each start and whenever one of them is deleted or
// (service and endpoints) changed.
func Loop(cfg Config) reconcile.Loop {
	wanted := cfg.objects()
	l := reconcile.Loop{
		Name: "bootstrap-controller",
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			w, ok := wanted[key]
			if !ok {
				return reconcile.Plan{}, nil
			}
			return w.plan(s, key, now), nil
		},
	}
	resources := map[string]bool{}
	for _, key := range cfg.order() {
		l.Always = append(l.Always, key)
		if resources[key.Resource] {
			continue
		}
		resources[key.Resource] = true
		l.Inputs = append(l.Inputs, reconcile.Input{Resource: key.Resource, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			key := reconcile.Key{Resource: ev.Entry.Resource, Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}
			if _, ok := wanted[key]; !ok {
				return nil
			}
			return []reconcile.Key{key}
		}})
		verbs := []reconcile.Verb{reconcile.Create}
		switch key.Resource {
		case client.Services.Name, client.Endpoints.Name, client.EndpointSlices.Name, client.ConfigMaps.Name:
			verbs = append(verbs, reconcile.Update)
		}
		l.Outputs = append(l.Outputs, reconcile.Output{Resource: key.Resource, Verbs: verbs})
	}
	l.Outputs = append(l.Outputs, reconcile.Output{Resource: serviceCIDRs, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}})
	return l
}
