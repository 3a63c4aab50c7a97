package apiservice

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// How often a server that is there is probed, and one that is not: after ever longer waits up to the former.
const (
	probeAgain = 30 * time.Second
	probeSoon  = 500 * time.Millisecond
)

// result is the outcome of a probe.
type result struct {
	of       *apiregistrationv1.APIService // as it was; nil for no result
	err      error
	failures int // in a row
}

// results are those of the last probes.
type results struct {
	mu   sync.Mutex // guards last
	last map[string]result
}

// take returns the result that nobody took yet. What a later pass finds out it finds out anew.
func (r *results) take(name string) result {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.last[name]
	r.last[name] = result{failures: out.failures}
	return out
}

func (r *results) put(of *apiregistrationv1.APIService, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := result{of: of, err: err}
	if err != nil {
		n.failures = r.last[of.Name].failures + 1
	}
	r.last[of.Name] = n
}

func (r *results) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, name)
}

// availability keeps the condition. A pass that cannot tell from the objects alone has the server probed, and the pass behind it writes
// down what came of it.
func availability(cfg Config) reconcile.Loop {
	probes := &results{last: map[string]result{}}
	return reconcile.Loop{
		Name:    "apiservice-availability",
		Workers: 4,
		Inputs: []reconcile.Input{
			{Resource: APIServices.Name, Keys: serverChanged},
			{Resource: client.Services.Name, Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
				return behind(s, ev.Entry.Namespace, ev.Entry.Name)
			}},
			{Resource: client.EndpointSlices.Name, Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
				slice, ok := ev.Entry.Object.(*discoveryv1.EndpointSlice)
				if !ok {
					return nil
				}
				return behind(s, slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])
			}},
		},
		Outputs: []reconcile.Output{{Resource: APIServices.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			a, ok := APIServices.Get(s, "", key.Name)
			if !ok {
				probes.forget(key.Name)
				return reconcile.Plan{}, nil
			}
			return plan(s, a, probes.take(a.Name), now), nil
		},
		Apply: func(ctx context.Context, _ reconcile.Key, effect any) error {
			a := effect.(*apiregistrationv1.APIService)
			probes.put(a, cfg.Probe(ctx, a))
			return nil
		},
	}
}

// serverChanged gives an APIService whose condition may differ now.
func serverChanged(s store.Snapshot, ev store.Event) []reconcile.Key {
	if a, ok := ev.Entry.Object.(*apiregistrationv1.APIService); ok && ev.Prev != nil && !ev.Deleted {
		old, ok := ev.Prev.Object.(*apiregistrationv1.APIService)
		if ok && sameServer(a, old) && condition(a) != nil {
			return nil
		}
	}
	return reconcile.Self(s, ev)
}

// sameServer tells whether two states of an APIService name the same server.
func sameServer(a, b *apiregistrationv1.APIService) bool {
	return equality.Semantic.DeepEqual(a.Spec.Service, b.Spec.Service) && bytes.Equal(a.Spec.CABundle, b.Spec.CABundle) &&
		a.Spec.InsecureSkipTLSVerify == b.Spec.InsecureSkipTLSVerify
}

// behind gives the APIServices that a service stands behind.
func behind(s store.Snapshot, namespace, name string) []reconcile.Key {
	if name == "" {
		return nil
	}
	var keys []reconcile.Key
	for a := range APIServices.Index(s, "service", namespace+"/"+name) {
		keys = append(keys, reconcile.Key{Name: a.Name})
	}
	return keys
}

// plan is one pass.
func plan(s store.Snapshot, a *apiregistrationv1.APIService, last result, now time.Time) reconcile.Plan {
	if a.Spec.Service == nil {
		return report(a, true, "Local", "Local APIServices are always available", now)
	}
	if reason, message := missing(s, a); reason != "" {
		return report(a, false, reason, message, now)
	}
	if last.of == nil || !sameServer(last.of, a) {
		return reconcile.Plan{Effect: a, After: time.Nanosecond}
	}
	if last.err != nil {
		p := report(a, false, "FailedDiscoveryCheck", last.err.Error(), now)
		p.After = min(probeSoon<<min(last.failures, 10), probeAgain)
		return p
	}
	p := report(a, true, "Passed", "all checks passed", now)
	p.After = probeAgain
	return p
}

// missing says what a server lacks that has to be there before it is worth asking.
func missing(s store.Snapshot, a *apiregistrationv1.APIService) (reason, message string) {
	ref := a.Spec.Service
	svc, ok := client.Services.Get(s, ref.Namespace, ref.Name)
	if !ok {
		return "ServiceNotFound", fmt.Sprintf("service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	if svc.Spec.Type != corev1.ServiceTypeClusterIP && svc.Spec.Type != "" {
		return "", ""
	}
	port := int32(443)
	if ref.Port != nil {
		port = *ref.Port
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port })
	if i < 0 {
		return "ServicePortError", fmt.Sprintf("service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, port)
	}
	found, ready := false, false
	for slice := range client.EndpointSlices.List(s, ref.Namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] == ref.Name {
			found = true
			ready = ready || hasEndpoint(slice, svc.Spec.Ports[i].Name)
		}
	}
	switch {
	case !found:
		return "EndpointsNotFound", fmt.Sprintf("cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
	case !ready:
		return "MissingEndpoints", fmt.Sprintf("endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, svc.Spec.Ports[i].Name)
	}
	return "", ""
}

// hasEndpoint tells whether a slice has a ready address with a port of that name.
func hasEndpoint(slice *discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool {
		return e.Conditions.Ready == nil || *e.Conditions.Ready
	}) && slices.ContainsFunc(slice.Ports, func(p discoveryv1.EndpointPort) bool {
		return p.Port != nil && (p.Name != nil && *p.Name == port || p.Name == nil && port == "")
	})
}

// report writes the condition down if it differs.
func report(a *apiregistrationv1.APIService, available bool, reason, message string, now time.Time) reconcile.Plan {
	c := apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse,
		Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	if available {
		c.Status = apiregistrationv1.ConditionTrue
	}
	had := condition(a)
	if had != nil {
		if had.Status == c.Status {
			c.LastTransitionTime = had.LastTransitionTime
		}
		if *had == c {
			return reconcile.Plan{}
		}
	}
	a = a.DeepCopy()
	if had = condition(a); had != nil {
		*had = c
	} else {
		a.Status.Conditions = append(a.Status.Conditions, c)
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: APIServices.Name, Subresource: "status", Object: a}}}
}

// condition is Available, nil if it is not there.
func condition(a *apiregistrationv1.APIService) *apiregistrationv1.APIServiceCondition {
	for i := range a.Status.Conditions {
		if a.Status.Conditions[i].Type == apiregistrationv1.Available {
			return &a.Status.Conditions[i]
		}
	}
	return nil
}

func isAvailable(a *apiregistrationv1.APIService) bool {
	c := condition(a)
	return c != nil && c.Status == apiregistrationv1.ConditionTrue
}
