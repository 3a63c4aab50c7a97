// Package aggregate hands API groups to other API servers, as APIServices ask
// (https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/).
//
// It owns the table of who answers for which group version, the proxy to those servers, and what they said of their
// kinds. It is told of APIServices and asked to probe or to look; it decides neither when, nor writes anything. Who made a
// request it tells the other server in headers, which that server believes because of the client certificate.
package aggregate

import (
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/discovery"
	"coracle.dev/coracle/apiserver/openapi"
)

// Aggregator knows the APIServices. It is safe for concurrent use and has no goroutine of its own. The fields are set before
// the first call.
type Aggregator struct {
	// Pool reaches the servers; its certificate is who we are to them.
	Pool *backend.Pool
	// Default is the priority that the APIService of a group version has which nobody changed.
	Default func(schema.GroupVersion) discovery.Priority
	Log     *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time

	mu       sync.Mutex          // guards writers of table and what follows
	services map[string]*service // by name of the APIService: remote ones, and those with another priority
	table    atomic.Pointer[table]
}

// table is what requests see. It is immutable.
type table struct {
	remote     map[schema.GroupVersion]*service
	aggregated *discovery.Aggregated
	documents  []openapi.Remote
}

// service is one APIService. Its fields are set once, but for those below mu.
type service struct {
	gv        schema.GroupVersion
	priority  discovery.Priority
	available bool
	target    *backend.Target // nil for one that is served here
	owner     *Aggregator

	found *findings // what the server said last, nil for nothing yet
}

// findings are what a server said of a group version. They are immutable but for v2.
type findings struct {
	discovery apidiscoveryv2.APIVersionDiscovery
	fresh     bool
	hashV3    string // "" where the server has no such document

	mu   sync.Mutex // guards what follows, held while it is fetched
	v2   []byte     // compressed
	v2At time.Time
}

// Set tells of an APIService as it is now.
func (a *Aggregator) Set(s *apiregistrationv1.APIService) {
	gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
	n := &service{gv: gv, owner: a, available: available(s),
		priority: discovery.Priority{Group: s.Spec.GroupPriorityMinimum, Version: s.Spec.VersionPriority}}
	if ref := s.Spec.Service; ref != nil {
		n.target = target(&s.Spec)
	} else if n.priority == a.Default(gv) {
		a.Remove(s.Name)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.services[s.Name]; old != nil {
		if old.same(n) {
			return
		}
		if old.target != nil && n.target != nil && old.target.Service != nil && *old.target.Service == *n.target.Service {
			n.found = old.found
		}
	}
	if a.services == nil {
		a.services = map[string]*service{}
	}
	a.services[s.Name] = n
	a.publish()
}

// target is where the server of an APIService is reached.
func target(s *apiregistrationv1.APIServiceSpec) *backend.Target {
	t := &backend.Target{
		Service:  &backend.Service{Namespace: s.Service.Namespace, Name: s.Service.Name},
		CABundle: s.CABundle, Insecure: s.InsecureSkipTLSVerify, Identify: true,
	}
	if s.Service.Port != nil {
		t.Service.Port = *s.Service.Port
	}
	return t
}

// same tells whether nothing changed that matters here.
func (s *service) same(o *service) bool {
	if s.available != o.available || s.priority != o.priority || (s.target == nil) != (o.target == nil) {
		return false
	}
	return s.target == nil || *s.target.Service == *o.target.Service && s.target.Insecure == o.target.Insecure &&
		string(s.target.CABundle) == string(o.target.CABundle)
}

func available(s *apiregistrationv1.APIService) bool {
	for _, c := range s.Status.Conditions {
		if c.Type == apiregistrationv1.Available {
			return c.Status == apiregistrationv1.ConditionTrue
		}
	}
	return false
}

// Remove tells that an APIService is gone. The group version is then served here, if it is at all.
func (a *Aggregator) Remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.services[name] == nil {
		return
	}
	delete(a.services, name)
	a.publish()
}

// note keeps what a server said, unless the APIService changed meanwhile to name another.
func (a *Aggregator) note(name string, t *backend.Target, f *findings) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.services[name]
	if s == nil || s.target == nil || *s.target.Service != *t.Service {
		return
	}
	n := *s
	n.found = f
	a.services[name] = &n
	a.publish()
}

// publish makes the table anew. mu is held.
func (a *Aggregator) publish() {
	if len(a.services) == 0 {
		a.table.Store(nil)
		return
	}
	t := &table{
		remote: map[schema.GroupVersion]*service{},
		aggregated: &discovery.Aggregated{
			Priorities: map[schema.GroupVersion]discovery.Priority{},
			Remote:     map[schema.GroupVersion]*apidiscoveryv2.APIVersionDiscovery{},
		},
	}
	for _, s := range a.services {
		t.aggregated.Priorities[s.gv] = s.priority
		if s.target == nil {
			continue
		}
		t.remote[s.gv] = s
		t.aggregated.Remote[s.gv] = s.shown()
		if s.available && s.found != nil {
			t.documents = append(t.documents, s.document())
		}
	}
	a.table.Store(t)
}

// shown is what discovery says of the group version: stale while the server cannot be asked.
func (s *service) shown() *apidiscoveryv2.APIVersionDiscovery {
	out := &apidiscoveryv2.APIVersionDiscovery{Version: s.gv.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale}
	if s.found != nil {
		*out = s.found.discovery
		out.Freshness = apidiscoveryv2.DiscoveryFreshnessStale
		if s.available && s.found.fresh {
			out.Freshness = apidiscoveryv2.DiscoveryFreshnessCurrent
		}
	}
	return out
}

// Delegate gives who answers for a group version, nil if that is this server. It costs one atomic load while no APIService
// names another server.
func (a *Aggregator) Delegate(group, version string) http.Handler {
	t := a.table.Load()
	if t == nil {
		return nil
	}
	if s := t.remote[schema.GroupVersion{Group: group, Version: version}]; s != nil {
		return s
	}
	return nil
}

// Discovery is what APIServices add to discovery; nil for nothing. It is the same pointer until something changes.
func (a *Aggregator) Discovery() *discovery.Aggregated {
	if t := a.table.Load(); t != nil {
		return t.aggregated
	}
	return nil
}

// Documents are the OpenAPI documents of the servers that are available.
func (a *Aggregator) Documents() []openapi.Remote {
	if t := a.table.Load(); t != nil {
		return t.documents
	}
	return nil
}

// Unavailable are the group versions whose server cannot be asked just now. Who has to see every kind (the deletion of a
// namespace) waits for them.
func (a *Aggregator) Unavailable() []schema.GroupVersion {
	t := a.table.Load()
	if t == nil {
		return nil
	}
	var out []schema.GroupVersion
	for gv, s := range t.remote {
		if s.shown().Freshness != apidiscoveryv2.DiscoveryFreshnessCurrent {
			out = append(out, gv)
		}
	}
	return out
}

// Fresh tells whether the server of an APIService was asked, with success, since it became available.
func (a *Aggregator) Fresh(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.services[name]
	return s != nil && s.found != nil && s.found.fresh
}

func (a *Aggregator) now() time.Time {
	if a.Now == nil {
		return time.Now()
	}
	return a.Now()
}
