// Package apiservice keeps APIServices: it makes those of the group versions that this server answers for, built-in ones at
// each start and those of custom resources as they come and go, tells the proxy of all of them, and finds out whether
// the servers behind the others are there.
//
// It owns the condition Available of every APIService, and the existence and spec of those with the label
// kube-aggregator.kubernetes.io/automanaged. It calls no server itself: how to probe one is given to it.
package apiservice

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what the loops are told and what they tell.
type Config struct {
	// BuiltIn are the group versions that are compiled in.
	BuiltIn []Local
	// Route tells the proxy of an APIService as it is, Forget of one that is gone. They are quick.
	Route  func(*apiregistrationv1.APIService)
	Forget func(name string)
	// Probe asks the server of an APIService whether it is there; the error goes into the condition. It has an end of its own.
	Probe func(context.Context, *apiregistrationv1.APIService) error
	// Look asks it for its kinds, and Fresh tells whether that succeeded the last time.
	Look  func(context.Context, *apiregistrationv1.APIService) error
	Fresh func(name string) bool
}

// Local is a group version that this server answers for, with its place in the order of groups and versions.
type Local struct {
	Group, Version                 string
	GroupPriority, VersionPriority int32
}

func (l Local) name() string { return l.Version + "." + l.Group }

// APIServices are read as any resource; their index "service" files them under the service ("namespace/name") that their spec
// names.
var APIServices = client.Resource[*apiregistrationv1.APIService]{Name: "apiservices.apiregistration.k8s.io"}

// Priorities of the group versions of custom resources, as upstream's.
const (
	CustomGroupPriority   = 1000
	CustomVersionPriority = 100
)

// Loops are those that only read and write objects.
func Loops(cfg Config) []reconcile.Loop {
	return []reconcile.Loop{registration(cfg), routes(cfg)}
}

// RemoteLoops are those that call other servers, which may take their time or fail for long: they belong to an engine of their
// own, for which nobody waits.
func RemoteLoops(cfg Config) []reconcile.Loop {
	return []reconcile.Loop{availability(cfg), lookout(cfg)}
}

// routes tells the proxy.
func routes(cfg Config) reconcile.Loop {
	return reconcile.Loop{
		Name:   "apiservice-routes",
		Inputs: []reconcile.Input{{Resource: APIServices.Name}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			a, _ := APIServices.Get(s, "", key.Name)
			return reconcile.Plan{Effect: a}, nil
		},
		Apply: func(_ context.Context, key reconcile.Key, effect any) error {
			if a := effect.(*apiregistrationv1.APIService); a != nil {
				cfg.Route(a)
			} else {
				cfg.Forget(key.Name)
			}
			return nil
		},
	}
}

// How often a server is asked for its kinds, while that works and until it does.
const (
	lookAgain = time.Minute
	lookSoon  = 2 * time.Second
)

// lookout asks the servers that are there for their kinds.
func lookout(cfg Config) reconcile.Loop {
	return reconcile.Loop{
		Name:    "apiservice-discovery",
		Workers: 4,
		Inputs:  []reconcile.Input{{Resource: APIServices.Name, Keys: becameAvailable}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			a, ok := APIServices.Get(s, "", key.Name)
			if !ok || a.Spec.Service == nil || !isAvailable(a) {
				return reconcile.Plan{}, nil
			}
			again := lookAgain
			if !cfg.Fresh(a.Name) {
				again = lookSoon
			}
			return reconcile.Plan{Effect: a, After: again}, nil
		},
		Apply: func(ctx context.Context, _ reconcile.Key, effect any) error {
			a := effect.(*apiregistrationv1.APIService)
			cfg.Route(a)         // so that there is somebody to note it for
			_ = cfg.Look(ctx, a) // what is known stays, marked stale, until the next time
			return nil
		},
	}
}

// becameAvailable gives an APIService whose server is to be asked anew.
func becameAvailable(s store.Snapshot, ev store.Event) []reconcile.Key {
	a, ok := ev.Entry.Object.(*apiregistrationv1.APIService)
	if !ok || ev.Deleted || a.Spec.Service == nil || !isAvailable(a) {
		return nil
	}
	if ev.Prev != nil {
		if old, ok := ev.Prev.Object.(*apiregistrationv1.APIService); ok && isAvailable(old) && sameServer(a, old) {
			return nil
		}
	}
	return reconcile.Self(s, ev)
}

func groupVersion(a *apiregistrationv1.APIService) schema.GroupVersion {
	return schema.GroupVersion{Group: a.Spec.Group, Version: a.Spec.Version}
}
