package policy

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/linux/nft/filter"
)

// plan is what the node's filter has to hold, kept up to date change by change: pure, in proportion to what changed. Changes gather
// until take hands them out as one transaction. It is used by one goroutine at a time.
type plan struct {
	node     string // the name of this node
	spaces   map[string]labels.Set
	pods     map[podKey]*pod
	nodes    map[string]*node
	bearers  map[netip.Addr]*node // nodes by address
	policies map[Ref]*ruleset
	ordered  []*ruleset
	// owners are the pods that say that they have an address, the latest last.
	owners map[netip.Addr][]*pod
	// admitted says which address belongs to which local pod, whatever anybody's status says.
	admitted map[netip.Addr]podKey
	// held are admitted pods that the API has forgotten, or calls ended: while their sandbox is there, their verdicts are too.
	held map[podKey]bool
	// standIns by name; dns and gateways are their addresses, the latter with how many nodes have them.
	standIns map[string]*pod
	dns      map[netip.Addr]bool
	gateways map[netip.Addr]int

	chains   map[string]*chain
	bindings map[place]string
	// gathered since the last take:
	bound          map[place]string    // what was bound before
	added, removed map[netip.Addr]bool // addresses of the machine
	// stands are the addresses here of stand-ins that the filter has.
	stands map[netip.Addr]bool
	// applied are the refusals that are there.
	applied map[string]bool
	// quiet are addresses that came with this change: there is nothing to cut.
	quiet map[netip.Addr]bool
}

type place struct {
	hook filter.Hook
	addr netip.Addr
}

// chain is one chain of the filter, shared by all addresses to which the same policies apply.
type chain struct {
	hook      filter.Hook
	compiler  *compiler
	users     map[place]bool
	content   map[filter.Key]string
	byPeer    map[netip.Addr][]filter.Key
	common    []filter.Key
	otherwise string
	refusals  []refusal
	// before is what changed keys were answered with, nil for not at all; there says that the filter has the chain.
	before map[filter.Key]*string
	was    string // the default that the filter has
	there  bool
}

func newPlan(nodeName string, dns []netip.Addr) *plan {
	p := &plan{node: nodeName, spaces: map[string]labels.Set{}, pods: map[podKey]*pod{},
		nodes: map[string]*node{}, bearers: map[netip.Addr]*node{}, policies: map[Ref]*ruleset{}, owners: map[netip.Addr][]*pod{}, admitted: map[netip.Addr]podKey{}, held: map[podKey]bool{},
		chains: map[string]*chain{}, bindings: map[place]string{}, applied: map[string]bool{}}
	p.standIns, p.dns, p.gateways, p.stands = standIns(nil), map[netip.Addr]bool{}, map[netip.Addr]int{}, map[netip.Addr]bool{}
	for _, a := range dns {
		p.dns[a] = true
	}
	p.settle()
	return p
}

// settle forgets what was gathered.
func (p *plan) settle() {
	p.bound, p.quiet = map[place]string{}, map[netip.Addr]bool{}
	p.added, p.removed = map[netip.Addr]bool{}, map[netip.Addr]bool{}
}

// owner is the pod at an address, nil if there is none.
func (p *plan) owner(a netip.Addr) *pod {
	if key, ok := p.admitted[a]; ok {
		return p.pods[key]
	}
	if list := p.owners[a]; len(list) > 0 {
		return list[len(list)-1]
	}
	return nil
}

// at is who has an address.
func (p *plan) at(a netip.Addr) party {
	if s := p.standing(a); s != nil {
		return party{pod: s, addr: a}
	}
	if owner := p.owner(a); owner != nil {
		return party{pod: owner, addr: a}
	}
	return party{node: p.bearers[a], addr: a}
}

// local says whether the pod at an address runs here.
func (p *plan) local(a netip.Addr, owner *pod) bool {
	_, admitted := p.admitted[a]
	return owner != nil && !owner.standIn && (admitted || owner.node == p.node)
}

// setPod takes in what a pod is now, nil for gone.
func (p *plan) setPod(key podKey, now *pod) {
	old := p.pods[key]
	if now == nil && old != nil && p.isAdmitted(key) {
		p.held[key] = true
		return
	}
	delete(p.held, key)
	if old != nil && now != nil && old.equal(now) {
		return
	}
	dirty := map[netip.Addr]bool{}
	if old != nil {
		for _, a := range old.addrs {
			dirty[a] = true
			if p.owners[a] = slices.DeleteFunc(p.owners[a], func(o *pod) bool { return o == old }); len(p.owners[a]) == 0 {
				delete(p.owners, a)
			}
		}
	}
	for a, k := range p.admitted {
		if k == key {
			dirty[a] = true
		}
	}
	if now == nil {
		delete(p.pods, key)
	} else {
		p.pods[key] = now
		for _, a := range now.addrs {
			dirty[a] = true
			p.owners[a] = append(p.owners[a], now)
		}
	}
	for a := range dirty {
		p.refresh(a)
	}
}

// isAdmitted says whether a sandbox of the pod has an address here.
func (p *plan) isAdmitted(key podKey) bool {
	for _, k := range p.admitted {
		if k == key {
			return true
		}
	}
	return false
}

func (p *pod) equal(o *pod) bool {
	return p.node == o.node && p.known == o.known && maps.Equal(p.labels, o.labels) && maps.Equal(p.nsLabels, o.nsLabels) &&
		slices.Equal(p.addrs, o.addrs) && slices.Equal(p.ports, o.ports)
}

// admit gives addresses to a local pod; its verdicts are part of the next take.
func (p *plan) admit(now *pod, addrs []netip.Addr) {
	key := podKey{now.namespace, now.name}
	for _, a := range addrs {
		p.admitted[a] = key
		p.quiet[a] = true
	}
	if old := p.pods[key]; old == nil || !old.equal(now) {
		p.setPod(key, now)
		return
	}
	for _, a := range addrs {
		p.refresh(a)
	}
}

// release takes addresses back.
func (p *plan) release(addrs []netip.Addr) {
	for _, a := range addrs {
		key := p.admitted[a]
		delete(p.admitted, a)
		if p.held[key] && !p.isAdmitted(key) {
			p.setPod(key, nil)
		}
		// Who had it last does not have it any more, though its status may still say so.
		for _, o := range p.owners[a] {
			if o.node == p.node {
				o.addrs = slices.DeleteFunc(slices.Clone(o.addrs), func(b netip.Addr) bool { return a == b })
			}
		}
		if p.owners[a] = slices.DeleteFunc(p.owners[a], func(o *pod) bool { return o.node == p.node }); len(p.owners[a]) == 0 {
			delete(p.owners, a)
		}
		p.refresh(a)
	}
}

// setSpace takes in the labels of a namespace; known is false when it is gone.
func (p *plan) setSpace(name string, now labels.Set, known bool) {
	old, was := p.spaces[name]
	if was == known && maps.Equal(old, now) {
		return
	}
	if known {
		p.spaces[name] = now
	} else {
		delete(p.spaces, name)
	}
	if name == StandInNamespace {
		p.standIns = standIns(p.spaces)
		p.eachStandIn(p.refresh)
	}
	for key, o := range p.pods {
		if key.namespace == name {
			fresh := *o
			fresh.nsLabels, fresh.known = now, known
			p.setPod(key, &fresh)
		}
	}
}

// setNode takes in what a node is now, nil for gone.
func (p *plan) setNode(name string, now *node) {
	old := p.nodes[name]
	if old != nil && now != nil && maps.Equal(old.labels, now.labels) && slices.Equal(old.addrs, now.addrs) && slices.Equal(old.gateways, now.gateways) {
		return
	}
	dirty := map[netip.Addr]bool{}
	if old != nil {
		for _, a := range old.addrs {
			dirty[a] = true
			delete(p.bearers, a)
		}
		for _, a := range old.gateways {
			dirty[a] = true
			if p.gateways[a]--; p.gateways[a] == 0 {
				delete(p.gateways, a)
			}
		}
	}
	delete(p.nodes, name)
	if now != nil {
		p.nodes[name] = now
		for _, a := range now.addrs {
			dirty[a] = true
			p.bearers[a] = now
		}
		for _, a := range now.gateways {
			dirty[a] = true
			p.gateways[a]++
		}
	}
	for a := range dirty {
		if name == p.node {
			p.bear(a, now != nil && slices.Contains(now.addrs, a), old != nil && slices.Contains(old.addrs, a))
		}
		p.refresh(a)
	}
}

// bear notes that the machine has an address, or has it no more.
func (p *plan) bear(a netip.Addr, is, was bool) {
	switch {
	case is == was:
	case is:
		if p.removed[a] {
			delete(p.removed, a)
		} else {
			p.added[a] = true
		}
	case p.added[a]:
		delete(p.added, a)
	default:
		p.removed[a] = true
	}
}

// setPolicy takes in what a policy is now, nil for gone.
func (p *plan) setPolicy(ref Ref, now *ruleset) {
	old := p.policies[ref]
	if old == nil && now == nil {
		return
	}
	delete(p.policies, ref)
	if now != nil {
		p.policies[ref] = now
	}
	p.ordered = slices.DeleteFunc(p.ordered, func(r *ruleset) bool { return r == old })
	if now != nil {
		at, _ := slices.BinarySearchFunc(p.ordered, now, compareRulesets)
		p.ordered = slices.Insert(p.ordered, at, now)
	}
	p.eachLocal(func(a netip.Addr, owner *pod) {
		if (old != nil && old.subject.selects(owner)) || (now != nil && now.subject.selects(owner)) {
			p.bind(a, owner)
		}
	})
}

// eachLocal walks the addresses of the pods that run here.
func (p *plan) eachLocal(do func(netip.Addr, *pod)) {
	for a := range p.admitted {
		if owner := p.owner(a); owner != nil {
			do(a, owner)
		}
	}
	for a := range p.owners {
		if _, done := p.admitted[a]; !done {
			if owner := p.owner(a); p.local(a, owner) {
				do(a, owner)
			}
		}
	}
}

// refresh takes in that it may be another who has an address, or that it has changed.
func (p *plan) refresh(a netip.Addr) {
	who := p.at(a)
	for _, c := range p.chains {
		p.know(c, &who)
	}
	if p.local(a, who.pod) {
		p.bind(a, who.pod)
	} else {
		p.bind(a, nil)
	}
}

// know brings what a chain holds for one address up to date.
func (p *plan) know(c *chain, who *party) {
	var elements []filter.Element
	if p.knows(c, who) {
		elements = c.compiler.known(who)
	}
	for _, k := range c.byPeer[who.addr] {
		if !slices.ContainsFunc(elements, func(e filter.Element) bool { return e.Key == k }) {
			c.set(k, nil)
		}
	}
	delete(c.byPeer, who.addr)
	for i := range elements {
		c.set(elements[i].Key, &elements[i].Refusal)
		c.byPeer[who.addr] = append(c.byPeer[who.addr], elements[i].Key)
	}
}

// knows says whether an address can be a peer in a chain: those towards the machine have only the machine's.
func (p *plan) knows(c *chain, who *party) bool {
	if c.hook == filter.Near {
		return who.node != nil && who.node.name == p.node
	}
	return who.pod != nil || who.node != nil
}

// set changes one answer, nil for none.
func (c *chain) set(k filter.Key, answer *string) {
	old, had := c.content[k]
	if answer != nil && had && old == *answer {
		return
	}
	if _, noted := c.before[k]; !noted {
		if had {
			c.before[k] = &old
		} else {
			c.before[k] = nil
		}
	}
	if answer == nil {
		delete(c.content, k)
	} else {
		c.content[k] = *answer
	}
}

// bind finds out what applies to an address, and gives it its chains. A nil owner is for an address that is not here.
func (p *plan) bind(a netip.Addr, owner *pod) {
	p.bindHook(place{filter.Egress, a}, owner, Egress)
	p.bindHook(place{filter.Ingress, a}, owner, Ingress)
	p.bindHook(place{filter.Near, a}, owner, Egress)
}

func (p *plan) bindHook(at place, owner *pod, d Direction) {
	name := ""
	if owner != nil {
		g := newProgram(p.ordered, owner, d)
		near := at.hook == filter.Near
		if near { // of which NetworkPolicies have no say
			g.tiers[TierNetworkPolicy], g.isolating = nil, nil
		}
		if !g.empty() {
			name = chainName(g, owner, near, at.addr.Is6())
			p.ensure(name, at, g, owner)
		}
	}
	old := p.bindings[at]
	if old == name {
		return
	}
	if _, noted := p.bound[at]; !noted {
		p.bound[at] = old
	}
	if old != "" {
		delete(p.chains[old].users, at)
	}
	if name == "" {
		delete(p.bindings, at)
		return
	}
	p.bindings[at] = name
	p.chains[name].users[at] = true
}

// ensure makes the chain of a program, or brings it up to date with what the policies are now.
func (p *plan) ensure(name string, at place, g *program, own *pod) {
	c := p.chains[name]
	if c == nil {
		c = &chain{hook: at.hook, users: map[place]bool{}, content: map[filter.Key]string{},
			byPeer: map[netip.Addr][]filter.Key{}, before: map[filter.Key]*string{}}
		p.chains[name] = c
	} else if c.compiler.same(g) {
		return
	}
	c.compiler = newCompiler(g, own, at.hook == filter.Near, at.addr.Is6())
	c.refusals = g.refusals()
	elements, otherwise := c.compiler.common()
	c.otherwise = otherwise
	fresh := make(map[filter.Key]bool, len(elements))
	for i := range elements {
		fresh[elements[i].Key] = true
		c.set(elements[i].Key, &elements[i].Refusal)
	}
	for _, k := range c.common {
		if !fresh[k] {
			c.set(k, nil)
		}
	}
	c.common = c.common[:0]
	for i := range elements {
		c.common = append(c.common, elements[i].Key)
	}
	for a := range p.owners {
		if owner := p.owner(a); owner != nil {
			p.know(c, &party{pod: owner, addr: a})
		}
	}
	for a := range p.admitted {
		if owner := p.owner(a); owner != nil {
			p.know(c, &party{pod: owner, addr: a})
		}
	}
	p.eachStandIn(func(a netip.Addr) { p.know(c, &party{pod: p.standing(a), addr: a}) })
	for _, n := range p.nodes {
		for _, a := range n.addrs {
			if p.owner(a) == nil {
				p.know(c, &party{node: n, addr: a})
			}
		}
	}
}

// same says whether a program asks the very same policies.
func (c *compiler) same(g *program) bool {
	for i := range g.tiers {
		if !slices.Equal(c.tiers[i], g.tiers[i]) {
			return false
		}
	}
	return true
}

// take hands out what was gathered as one transaction, and the addresses between which, or with which, connections may be that
// are no longer allowed.
func (p *plan) take(replace bool) (*filter.Change, map[netip.Addr]bool) {
	change := &filter.Change{Replace: replace, AddMachine: slices.Collect(maps.Keys(p.added)), RemoveMachine: slices.Collect(maps.Keys(p.removed))}
	p.takeStandIns(change)
	suspects := map[netip.Addr]bool{}
	for at, old := range p.bound {
		if now := p.bindings[at]; now != old {
			change.Bindings = append(change.Bindings, filter.Binding{Hook: at.hook, Addr: at.addr, Chain: now})
			if now != "" && !p.quiet[at.addr] {
				suspects[at.addr] = true
			}
		}
	}
	wanted := map[string]*refusal{}
	for name, c := range p.chains {
		if len(c.users) == 0 {
			if c.there {
				change.Chains = append(change.Chains, filter.ChainChange{Name: name, Remove: true})
			}
			delete(p.chains, name)
			continue
		}
		for i := range c.refusals {
			wanted[c.refusals[i].name()] = &c.refusals[i]
		}
		if delta, changed := c.take(name, suspects); changed {
			change.Chains = append(change.Chains, delta)
		}
	}
	for name, r := range wanted {
		if !p.applied[name] {
			change.AddRefusals = append(change.AddRefusals, filter.Refusal{Name: name, Prefix: r.prefix()})
		}
	}
	for name := range p.applied {
		if wanted[name] == nil {
			change.RemoveRefusals = append(change.RemoveRefusals, name)
			delete(p.applied, name)
		}
	}
	for name := range wanted {
		p.applied[name] = true
	}
	p.settle()
	return change, suspects
}

// take is one chain's part of the transaction.
func (c *chain) take(name string, suspects map[netip.Addr]bool) (filter.ChainChange, bool) {
	delta := filter.ChainChange{Name: name, IPv6: c.compiler.v6, Hook: c.hook, Default: c.otherwise}
	everybody := c.there && c.otherwise != c.was && c.otherwise != ""
	for k, old := range c.before {
		now, has := c.content[k]
		if old != nil && has && *old == now {
			continue
		}
		stricter := old != nil && *old == "" || has && now != ""
		if old != nil {
			delta.Delete = append(delta.Delete, filter.Element{Key: k, Refusal: *old})
		}
		if has {
			delta.Add = append(delta.Add, filter.Element{Key: k, Refusal: now})
		}
		switch {
		case !c.there || !stricter:
		case k.Set <= filter.Peers:
			suspects[k.Peer] = true
		default:
			everybody = true
		}
	}
	if everybody {
		for at := range c.users {
			suspects[at.addr] = true
		}
	}
	changed := !c.there || c.otherwise != c.was || len(delta.Add)+len(delta.Delete) > 0
	clear(c.before)
	c.there, c.was = true, c.otherwise
	return delta, changed
}

// allowed decides about a connection that is there, as far as the pods that run here have a say.
func (p *plan) allowed(from, to netip.Addr, proto uint8, port uint16, programs map[place]*program) bool {
	if from == to {
		return true
	}
	src, dst := p.at(from), p.at(to)
	switch proto {
	case protoTCP, protoUDP, protoSCTP:
	default:
		proto, port = protoOther, 0
	}
	ask := func(own, other *party, hook filter.Hook, d Direction) bool {
		near := other.node != nil && other.node.name == p.node
		if !p.local(own.addr, own.pod) || near && d == Ingress {
			return true
		}
		at := place{hook, own.addr}
		g := programs[at]
		if g == nil {
			g = newProgram(p.ordered, own.pod, d)
			programs[at] = g
		}
		return g.judge(own.pod, other, near, proto, port).Allowed
	}
	return ask(&src, &dst, filter.Egress, Egress) && ask(&dst, &src, filter.Ingress, Ingress)
}
