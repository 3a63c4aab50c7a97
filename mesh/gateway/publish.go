package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/store"
)

// Publisher puts the parts of the table together and hands each new one to whoever serves it. Safe for concurrent use.
type Publisher struct {
	// Client is where endpoints are read at the moment at which a part is published: passes of several loops come in no order, and an
	// older one must not bring back endpoints that are gone.
	Client client.Reader
	// Serve takes the next table. It is called with each one, in order, and says which listeners could not be opened, by their ids.
	Serve func(*table.Table) map[string]error
	// Claim and Release give this machine an address and take it back; nil does nothing.
	Claim, Release func(netip.Addr) error

	mu        sync.Mutex // guards all below, and orders calls of Serve
	now       *table.Table
	parts     map[string]*part           // by owner
	used      map[string]*backend        // by id: those of the table
	count     map[string]int             // how many parts have a backend
	byService map[string]map[string]bool // ids of used, by their service
}

// owned is what an owner adds to the table from now on, nil for nothing.
type owned struct {
	owner string
	part  *part
}

// set gives owners what they add to the table, all at once. What is the same as before stays the very same.
func (p *Publisher) set(rev store.Revision, all ...owned) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		p.now, p.parts, p.used, p.count, p.byService = &table.Table{}, map[string]*part{}, map[string]*backend{}, map[string]int{}, map[string]map[string]bool{}
	}
	e := table.Edit{Revision: int64(rev)}
	var fresh view
	for _, o := range all {
		if len(o.after().backends) > 0 && fresh.Snapshot == nil {
			fresh.Snapshot = p.Client.Snapshot()
		}
		for _, a := range o.after().addresses {
			if p.Claim != nil {
				if err := p.Claim(a); err != nil {
					return err
				}
			}
		}
	}
	var released []netip.Addr
	changed := map[string]bool{}
	for _, o := range all {
		before, after := p.before(o.owner), o.after()
		e.Listeners = append(e.Listeners, after.listeners...)
		for _, l := range before.listeners {
			if !slices.ContainsFunc(after.listeners, func(o *table.Listener) bool { return o.ID == l.ID }) {
				e.RemoveListeners = append(e.RemoveListeners, l.ID)
			}
		}
		p.exchange(before, after, fresh, changed)
		for _, a := range before.addresses {
			if !slices.Contains(after.addresses, a) {
				released = append(released, a)
			}
		}
		if delete(p.parts, o.owner); o.part != nil {
			p.parts[o.owner] = o.part
		}
	}
	for id := range changed {
		if b := p.used[id]; b != nil {
			e.Backends = append(e.Backends, b.Backend)
		} else {
			e.RemoveBackends = append(e.RemoveBackends, id)
		}
	}
	failed, err := p.serve(e)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range released {
		if p.Release != nil {
			errs = append(errs, p.Release(a))
		}
	}
	for _, l := range e.Listeners {
		if err := failed[l.ID]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Address, err))
		}
	}
	return errors.Join(errs...)
}

func (o *owned) after() *part {
	if o.part == nil {
		return &part{}
	}
	return o.part
}

func (p *Publisher) before(owner string) *part {
	if before := p.parts[owner]; before != nil {
		return before
	}
	return &part{}
}

// exchange counts the backends of a part instead of those of another, and notes which of the table's changed. mu is held.
func (p *Publisher) exchange(before, after *part, fresh view, changed map[string]bool) {
	for id, b := range after.backends {
		if before.backends[id] == nil {
			p.count[id]++
		}
		if had := p.used[id]; had != nil && had.same(b) {
			continue // its endpoints are followed
		}
		next := *b
		filled := *b.Backend
		filled.Endpoints = endpoints(fresh, b.service, b.port, b.proto)
		next.Backend, next.rev = &filled, fresh.Revision()
		p.use(id, &next)
		changed[id] = true
	}
	for id := range before.backends {
		if after.backends[id] != nil {
			continue
		}
		if p.count[id]--; p.count[id] == 0 {
			p.drop(id)
			changed[id] = true
		}
	}
}

func (p *Publisher) use(id string, b *backend) {
	p.used[id] = b
	if p.byService[b.service] == nil {
		p.byService[b.service] = map[string]bool{}
	}
	p.byService[b.service][id] = true
}

func (p *Publisher) drop(id string) {
	service := p.used[id].service
	delete(p.count, id)
	delete(p.used, id)
	if delete(p.byService[service], id); len(p.byService[service]) == 0 {
		delete(p.byService, service)
	}
}

// same tells whether two backends can be told apart by nobody, but for their endpoints.
func (b *backend) same(o *backend) bool {
	return b.secured == o.secured && b.Protocol == o.Protocol && b.service == o.service && b.port == o.port && b.proto == o.proto
}

// portKey is a port of a service.
type portKey struct {
	name  string
	proto corev1.Protocol
}

// endpoints gives the backends of a service their endpoints, as they were at a revision.
func (p *Publisher) endpoints(service string, rev store.Revision, of map[portKey][]table.Endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := table.Edit{Revision: int64(rev)}
	for id := range p.byService[service] {
		b := p.used[id]
		if rev < b.rev {
			continue // newer ones were read since
		}
		b.rev = rev
		now := of[portKey{b.port, b.proto}]
		if slices.Equal(now, b.Endpoints) {
			continue
		}
		t := *b.Backend
		t.Endpoints = now
		next := *b
		next.Backend = &t
		p.used[id] = &next
		e.Backends = append(e.Backends, &t)
	}
	if len(e.Backends) == 0 {
		return nil
	}
	_, err := p.serve(e)
	return err
}

// serve makes the next table. mu is held.
func (p *Publisher) serve(e table.Edit) (failed map[string]error, err error) {
	next, err := p.now.With(e)
	if err != nil {
		return nil, err
	}
	p.now = next
	if p.Serve != nil {
		failed = p.Serve(next)
	}
	return failed, nil
}

// Close takes back every address that was claimed, and leaves a table of nothing.
func (p *Publisher) Close() error {
	p.mu.Lock()
	var all []owned
	for _, o := range slices.Sorted(maps.Keys(p.parts)) {
		all = append(all, owned{owner: o})
	}
	p.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	return p.set(0, all...)
}
