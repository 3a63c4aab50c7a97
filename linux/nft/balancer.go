// Package nft writes packet rules: tables of the kernel's nftables, each change one
// transaction over netlink. It owns the tables that it made, by name, and touches no other;
// it knows addresses and ports, not what they stand for, and runs no program.
package nft

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Front is where connections come in that are to be balanced.
type Front struct {
	// Addr is the address; the zero value means every address of the node but those of loopback.
	Addr netip.Addr
	// Proto is the IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
	Proto uint8
	Port  uint16
	// Family is 4 or 6 where Addr is zero; 0 means those families that the backends have.
	Family uint8
	// Near makes it a front only for connections from the inside ranges and from the node itself. It goes before one
	// without Near.
	Near bool
}

// Backend is where connections go.
type Backend struct {
	Addr netip.AddrPort
	// Local says that it is on this node, and so may reach itself through a front.
	Local bool
}

// Source says what a backend sees as the source of a connection.
type Source uint8

// The choices of Source.
const (
	// KeepSource leaves the client's address, but for a backend that reaches itself.
	KeepSource Source = iota
	// HideOutside puts the node's address in the place of those that are not of the inside ranges.
	HideOutside
	// HideSource puts the node's address in the place of all.
	HideSource
)

// Empty says what becomes of connections to a front without backends.
type Empty uint8

// The choices of Empty.
const (
	// PassEmpty leaves them as they are, as if there were no front.
	PassEmpty Empty = iota
	// RefuseEmpty answers with ICMP port unreachable.
	RefuseEmpty
	// DropEmpty gives no answer.
	DropEmpty
)

// Route leads a front to a pool of a Group.
type Route struct {
	Front  Front
	Pool   int // index of Group.Pools
	Source Source
	Empty  Empty
	// Allowed, if not nil, are the clients whose connections are taken; those of others are dropped. It is for fronts with an address.
	Allowed []netip.Prefix
}

// Group is what changes as one: fronts and the pools of backends that they lead to.
type Group struct {
	Routes []Route
	// Pools have backends of both families in any order; a connection goes to those of its own.
	Pools [][]Backend
	// Sticky, if not zero, is how long after its last connection a client's address keeps its backend.
	Sticky time.Duration
	// Keep are backends in no pool whose connections go on all the same: they are about to end, or not for clients of this node.
	Keep []netip.AddrPort
	// Refused are addresses to which nothing but the fronts leads: the rest is refused, unless the node bears the address.
	Refused []netip.Addr
}

// Protocol is the number of a protocol that has ports, by its usual name in capitals; 0 for any other.
func Protocol(name string) uint8 {
	switch name {
	case "TCP":
		return unix.IPPROTO_TCP
	case "UDP":
		return unix.IPPROTO_UDP
	case "SCTP":
		return unix.IPPROTO_SCTP
	}
	return 0
}

// Balancer spreads connections to fronts over backends by destination NAT, for IPv4 and IPv6.
//
// What differs from service to service is elements of a few hash maps: front -> plan, (front, index) -> backend. The rules are
// the same for all: a plan is a chain for so and so many backends. So a packet costs the same however many fronts there are,
// a change costs the elements that differ, and the kernel, which checks all chains that can be reached whenever a
// rule changes, has a few dozen of them to look at. No rule looks up what another map gave: from rule to rule a number is handed on in the
// packet's priority, so that nft can print them all.
//
// It is safe for concurrent use. If the kernel refuses a transaction, the next one makes the table anew.
type Balancer struct {
	mu     sync.Mutex // guards what follows, and the order of transactions
	kernel *kernel
	name   string
	inside []netip.Prefix
	// virtual are the ranges to which nothing but fronts leads.
	virtual []netip.Prefix
	// groups are what is wanted; all else says what the kernel has of it.
	groups   map[string]*Group
	made     map[string]*made
	tokens   uint32 // the last one of a backend of a sticky pool
	plans    map[planKey]*plan
	lastID   uint32 // the last number of a plan
	memories map[memoryKey]*memory
	claims   map[frontKey][]claim
	locals   map[netip.Addr]int // how many pools have the local backend
	refused  map[netip.Addr]int // how many groups refuse the rest of the address
	broken   bool
	flows    flows
}

// made is what the kernel has of a group.
type made struct {
	pools   map[poolKey]*pool
	fronts  map[frontKey]value
	refused []netip.Addr
	// flows are the backends whose connections go on, nil for groups without a front of a protocol without connections.
	flows map[netip.AddrPort]bool
}

type poolKey struct {
	index  int
	family uint8
}

// pool are backends of one family. It is never changed, so that fronts can share it.
type pool struct {
	backends []Backend // the place of each is its index in the kernel
	// tokens, of sticky pools only, are what clients remember of each backend: they stay while it does, and are not used twice.
	tokens []uint32
}

func (p *pool) isSticky() bool { return p != nil && p.tokens != nil }

type frontKey struct {
	addr   netip.Addr
	family uint8
	proto  uint8
	port   uint16
	near   bool
}

// value is what a front leads to, the zero value nowhere.
type value struct {
	plan  *plan
	pool  *pool  // nil if there is no backend
	limit *limit // nil if everybody may use it
}

// limit are the clients that may use a front.
type limit struct{ allowed []netip.Prefix }

// claim is a group's wish for a front. Where several want the same, the first has it.
type claim struct {
	group string
	value value
}

// NewBalancer makes the table of that name anew, empty of fronts, in one transaction.
// Packets from the inside ranges to anywhere else leave with the node's address. Packets to the
// virtual ranges that no front takes are refused at once, unless the node bears the
// address itself.
func NewBalancer(name string, inside, virtual []netip.Prefix) (*Balancer, error) {
	b := &Balancer{name: name, inside: inside, virtual: virtual, groups: map[string]*Group{}}
	var err error
	if b.kernel, err = openKernel(name); err != nil {
		return nil, err
	}
	if err := b.rebuild(); err != nil {
		return nil, errors.Join(err, b.kernel.close())
	}
	return b, nil
}

// Close ends the connection to the kernel. The table stays.
func (b *Balancer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.kernel.close(), b.flows.close())
}

// Set makes connections to any of the fronts go to one of the backends, chosen at random. With
// no backends they stay as they are: those to a virtual range are refused. id names the group; what it was before is replaced.
// It is the short form of Apply for a Group with one pool that keeps the source.
func (b *Balancer) Set(id string, fronts []Front, backends []netip.AddrPort, sticky time.Duration) error {
	g := &Group{Sticky: sticky, Pools: [][]Backend{nil}}
	for _, f := range fronts {
		g.Routes = append(g.Routes, Route{Front: f})
	}
	for _, a := range backends {
		g.Pools[0] = append(g.Pools[0], Backend{Addr: a, Local: true})
	}
	return b.Apply(map[string]*Group{id: g})
}

// Remove takes a group out. An unknown one is no error.
func (b *Balancer) Remove(id string) error { return b.Apply(map[string]*Group{id: nil}) }

// largest is how many elements a transaction has at most, if there are more groups than one in it.
const largest = 20_000

// Apply replaces the groups that are named, and removes those that are nil, in as few transactions as their size allows: a
// group changes as a whole, and one that does not differ costs none. With a change of a front of UDP or SCTP, the
// connections are forgotten that lead to backends that it does not have any more, so that the next packet finds a new one.
// Groups must not be changed after they were given.
func (b *Balancer) Apply(changes map[string]*Group) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// What goes makes room first.
	ids := slices.SortedFunc(maps.Keys(changes), func(a, c string) int {
		if (changes[a] == nil) != (changes[c] == nil) {
			if changes[a] == nil {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, c)
	})
	if b.broken {
		b.want(ids, changes)
		return b.rebuild()
	}
	t := b.kernel.begin()
	var stale flowChanges
	for i, id := range ids {
		b.want(ids[i:i+1], changes)
		b.plan(t, id, &stale)
		if t.size < largest {
			continue
		}
		if err := b.finish(t, &stale); err != nil {
			b.want(ids[i+1:], changes)
			return err
		}
		t, stale = b.kernel.begin(), flowChanges{}
	}
	return b.finish(t, &stale)
}

func (b *Balancer) want(ids []string, changes map[string]*Group) {
	for _, id := range ids {
		if g := changes[id]; g != nil && len(g.Routes) > 0 {
			b.groups[id] = g
		} else {
			delete(b.groups, id)
		}
	}
}

// SetVirtual replaces the ranges to which nothing but fronts leads.
func (b *Balancer) SetVirtual(virtual []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.virtual, virtual) && !b.broken {
		return nil
	}
	b.virtual = slices.Clone(virtual)
	if b.broken {
		return b.rebuild()
	}
	t := b.kernel.begin()
	t.virtual(virtual, false)
	return b.finish(t, &flowChanges{})
}

// finish sends a transaction and forgets connections that it made stale.
func (b *Balancer) finish(t *transaction, stale *flowChanges) error {
	b.dropPlans(t)
	if err := t.send(); err != nil {
		b.broken = true
		return fmt.Errorf("nftables: table %s: %w", b.name, err)
	}
	return errors.Join(b.kernel.forgetClients(b.lone(t.orphans)), b.flows.forget(stale))
}

// rebuild makes the table and all that is wanted of it.
func (b *Balancer) rebuild() error {
	b.made, b.plans, b.claims = map[string]*made{}, map[planKey]*plan{}, map[frontKey][]claim{}
	b.memories = map[memoryKey]*memory{}
	b.locals, b.refused = map[netip.Addr]int{}, map[netip.Addr]int{}
	t := b.kernel.begin()
	t.table(b.inside)
	t.virtual(b.virtual, true)
	b.broken = true
	var stale flowChanges
	for _, id := range slices.Sorted(maps.Keys(b.groups)) {
		b.plan(t, id, &stale)
		if t.size >= largest {
			if err := b.finish(t, &stale); err != nil {
				return err
			}
			t = b.kernel.begin()
		}
	}
	if err := b.finish(t, &stale); err != nil {
		return err
	}
	b.broken = false
	return nil
}

// plan adds to the transaction what brings a group from what is made to what is wanted.
func (b *Balancer) plan(t *transaction, id string, stale *flowChanges) {
	want, have := b.groups[id], b.made[id]
	if want == nil && have == nil {
		return
	}
	if want == nil {
		want = &Group{}
	}
	if have == nil {
		have = &made{}
	}
	fresh := &made{pools: map[poolKey]*pool{}, fronts: map[frontKey]value{}, refused: want.Refused, flows: want.flows()}
	b.planPools(t, want, have, fresh)
	b.planFronts(t, id, want, have, fresh)
	stale.compare(have, fresh)
	b.planRefused(t, have.refused, want.Refused)
	if len(fresh.fronts) == 0 && len(fresh.pools) == 0 {
		delete(b.made, id)
	} else {
		b.made[id] = fresh
	}
}

// planPools gives each pool of each family its backends.
func (b *Balancer) planPools(t *transaction, want *Group, have, fresh *made) {
	for i, all := range want.Pools {
		var byFamily [2][]Backend
		for _, k := range all {
			place := 0
			if k.Addr.Addr().Is6() {
				place = 1
			}
			byFamily[place] = append(byFamily[place], k)
		}
		for place, backends := range byFamily {
			key := poolKey{i, uint8(4 + 2*place)}
			if len(backends) > 0 {
				fresh.pools[key] = b.fill(t, have.pools[key], backends, want.Sticky > 0)
			}
		}
	}
	for key, old := range have.pools {
		if fresh.pools[key] == nil {
			b.count(t, old.backends, -1)
		}
	}
}

// fill is a pool with what is wanted: backends that stay keep their index, and those that come take the places of those that go. It
// is the old one if that has it all.
func (b *Balancer) fill(t *transaction, old *pool, want []Backend, sticky bool) *pool {
	if old == nil {
		old = &pool{}
	}
	fresh := &pool{backends: places(old.backends, want)}
	if old.isSticky() == sticky && slices.Equal(old.backends, fresh.backends) {
		return old
	}
	if sticky {
		known := make(map[netip.AddrPort]uint32, len(old.tokens))
		for i, token := range old.tokens {
			known[old.backends[i].Addr] = token
		}
		fresh.tokens = make([]uint32, len(fresh.backends))
		for i := range fresh.backends {
			token, ok := known[fresh.backends[i].Addr]
			if !ok {
				b.tokens++
				token = firstToken + b.tokens%tokens
			}
			fresh.tokens[i] = token
		}
	}
	b.count(t, old.backends, -1)
	b.count(t, fresh.backends, 1)
	return fresh
}

// places puts what is wanted in an order that differs as little as possible from that of before.
func places(before, want []Backend) []Backend {
	left := make(map[netip.AddrPort]Backend, len(want))
	for _, k := range want {
		left[k.Addr] = k
	}
	out := make([]Backend, len(left))
	var late []Backend // those that stay, but whose index is beyond the end
	var holes []int
	for i := range max(len(before), len(out)) {
		if i < len(before) {
			if k, stays := left[before[i].Addr]; stays {
				delete(left, k.Addr)
				if i < len(out) {
					out[i] = k
				} else {
					late = append(late, k)
				}
				continue
			}
		}
		if i < len(out) {
			holes = append(holes, i)
		}
	}
	for _, k := range want {
		if _, is := left[k.Addr]; is {
			delete(left, k.Addr)
			late = append(late, k)
		}
	}
	for n, i := range holes {
		out[i] = late[n]
	}
	return out
}

// count keeps the set of local backends, which may reach themselves.
func (b *Balancer) count(t *transaction, backends []Backend, sign int) {
	for _, k := range backends {
		if !k.Local {
			continue
		}
		a := k.Addr.Addr()
		was := b.locals[a]
		is := was + sign
		if is == 0 {
			delete(b.locals, a)
		} else {
			b.locals[a] = is
		}
		switch {
		case was == 0 && is > 0:
			t.add(t.hairpins(a), pairElement(a))
		case was > 0 && is == 0:
			t.remove(t.hairpins(a), pairElement(a))
		}
	}
}

// planRefused keeps the set of addresses to which nothing but fronts leads.
func (b *Balancer) planRefused(t *transaction, before, after []netip.Addr) {
	for _, a := range before {
		if b.refused[a]--; b.refused[a] == 0 {
			delete(b.refused, a)
			t.remove(t.refusals(a), element{key: a.AsSlice()})
		}
	}
	for _, a := range after {
		if b.refused[a]++; b.refused[a] == 1 {
			t.add(t.refusals(a), element{key: a.AsSlice()})
		}
	}
}

// planFronts leads the fronts to the pools as they are now.
func (b *Balancer) planFronts(t *transaction, id string, want *Group, have, fresh *made) {
	for i := range want.Routes {
		r := &want.Routes[i]
		for _, key := range r.Front.keys(fresh, r.Pool) {
			p := planKey{family: key.family, place: key.place(), source: r.Source, empty: r.Empty}
			v := value{pool: fresh.pools[poolKey{r.Pool, key.family}]}
			if v.pool != nil {
				p.count, p.sticky, p.empty = len(v.pool.backends), want.Sticky, PassEmpty
			} else if r.Empty == PassEmpty {
				continue
			} else {
				p.source = KeepSource
			}
			v.plan = b.planFor(t, p)
			if r.Allowed != nil && key.addr.IsValid() {
				if v.limit = have.fronts[key].limit; v.limit == nil || !slices.Equal(v.limit.allowed, r.Allowed) {
					v.limit = &limit{r.Allowed}
				}
			}
			fresh.fronts[key] = v
		}
	}
	for key := range have.fronts {
		if _, stays := fresh.fronts[key]; !stays {
			b.release(t, key, id)
		}
	}
	for key, v := range fresh.fronts {
		if have.fronts[key] != v {
			b.claim(t, key, claim{id, v})
		}
	}
	for _, v := range have.fronts {
		v.plan.users--
	}
	for _, v := range fresh.fronts {
		v.plan.users++
	}
}

// keys are the places of a front in the maps.
func (f Front) keys(m *made, index int) []frontKey {
	key := frontKey{addr: f.Addr, proto: f.Proto, port: f.Port, near: f.Near, family: f.Family}
	if f.Addr.IsValid() {
		key.family = 4
		if f.Addr.Is6() {
			key.family = 6
		}
	}
	if key.family != 0 {
		return []frontKey{key}
	}
	var keys []frontKey
	for _, family := range []uint8{4, 6} {
		if m.pools[poolKey{index, family}] != nil {
			key.family = family
			keys = append(keys, key)
		}
	}
	return keys
}

// claim enters or changes a group's wish for a front.
func (b *Balancer) claim(t *transaction, key frontKey, c claim) {
	all := b.claims[key]
	i := slices.IndexFunc(all, func(o claim) bool { return o.group == c.group })
	var was value
	if i < 0 {
		i = len(all)
		all = append(all, c)
		b.claims[key] = all
	} else {
		was, all[i] = all[i].value, c
	}
	if i == 0 {
		t.lead(key, was, c.value)
	}
}

func (b *Balancer) release(t *transaction, key frontKey, group string) {
	all := b.claims[key]
	i := slices.IndexFunc(all, func(o claim) bool { return o.group == group })
	if i < 0 {
		return
	}
	was := all[i].value
	all = slices.Delete(all, i, i+1)
	if i == 0 {
		var is value
		if len(all) > 0 {
			is = all[0].value
		}
		t.lead(key, was, is)
	}
	if len(all) == 0 {
		delete(b.claims, key)
	} else {
		b.claims[key] = all
	}
}

// lone are those of the fronts that share what clients remember with no other: near or not is one to a client.
func (b *Balancer) lone(fronts []frontKey) []frontKey {
	return slices.DeleteFunc(fronts, func(key frontKey) bool {
		for range 2 {
			if all := b.claims[key]; len(all) > 0 && all[0].value.pool.isSticky() {
				return true
			}
			key.near = !key.near
		}
		return false
	})
}
