package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/store"
)

// Publisher puts the parts of the table together and hands each new one to whoever serves it. Safe for concurrent use.
type Publisher struct {
	// Serve takes the next table. It is called with each one, in order, and says which listeners could not be opened, by their ids.
	Serve func(*table.Table) map[string]error
	// Claim and Release give this machine an address and take it back; nil does nothing.
	Claim, Release func(netip.Addr) error

	mu    sync.Mutex // guards all below, and orders calls of Serve
	now   *table.Table
	parts map[string]*part    // by owner
	used  map[string]*backend // by id: those of the table
	count map[string]int      // how many parts have a backend
}

// set gives an owner what it adds to the table from now on, nil for nothing. What is the same as before stays the very same.
func (p *Publisher) set(owner string, rev store.Revision, next *part) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		p.now, p.parts, p.used, p.count = &table.Table{}, map[string]*part{}, map[string]*backend{}, map[string]int{}
	}
	before := p.parts[owner]
	if before == nil && next == nil {
		return nil
	}
	if before == nil {
		before = &part{}
	}
	after := next
	if after == nil {
		after = &part{}
	}
	for _, a := range after.addresses {
		if p.Claim != nil {
			if err := p.Claim(a); err != nil {
				return err
			}
		}
	}
	e := table.Edit{Revision: int64(rev), Listeners: after.listeners}
	for _, l := range before.listeners {
		if !slices.ContainsFunc(after.listeners, func(o *table.Listener) bool { return o.ID == l.ID }) {
			e.RemoveListeners = append(e.RemoveListeners, l.ID)
		}
	}
	for id, b := range after.backends {
		if before.backends[id] == nil {
			p.count[id]++
		}
		if had := p.used[id]; had == nil || !had.same(b) {
			p.used[id] = b
			e.Backends = append(e.Backends, b.Backend)
		}
	}
	for id := range before.backends {
		if after.backends[id] != nil {
			continue
		}
		if p.count[id]--; p.count[id] == 0 {
			delete(p.count, id)
			delete(p.used, id)
			e.RemoveBackends = append(e.RemoveBackends, id)
		}
	}
	failed, err := p.serve(e)
	if err != nil {
		return err
	}
	if next == nil {
		delete(p.parts, owner)
	} else {
		p.parts[owner] = next
	}
	for _, a := range before.addresses {
		if p.Release != nil && !slices.Contains(after.addresses, a) {
			if err := p.Release(a); err != nil {
				return err
			}
		}
	}
	var errs []error
	for _, l := range after.listeners {
		if err := failed[l.ID]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.Address, err))
		}
	}
	return errors.Join(errs...)
}

// same tells whether two backends can be told apart by nobody.
func (b *backend) same(o *backend) bool {
	return b.secured == o.secured && b.Protocol == o.Protocol && b.service == o.service && b.port == o.port && slices.Equal(b.Endpoints, o.Endpoints)
}

// portKey is a port of a service.
type portKey struct {
	name  string
	proto corev1.Protocol
}

// endpoints gives the backends of a service their endpoints.
func (p *Publisher) endpoints(service string, rev store.Revision, of map[portKey][]table.Endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := table.Edit{Revision: int64(rev)}
	for id, b := range p.used {
		if b.service != service {
			continue
		}
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

// Close takes back every address that was claimed.
func (p *Publisher) Close() error {
	p.mu.Lock()
	owners := slices.Sorted(maps.Keys(p.parts))
	p.mu.Unlock()
	var first error
	for _, o := range owners {
		if err := p.set(o, 0, nil); err != nil && first == nil {
			first = err
		}
	}
	return first
}
