package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"coracle.dev/coracle/linux/nft/filter"
)

// Compiling asks judge, the function that Evaluate asks, once for each class of peers and ports that the rules tell apart: for each
// known peer (a pod, a node) that a selector means, each stretch of addresses between the bounds of blocks, and each stretch of
// ports between the bounds of ranges. The answers of all policies together become one set of maps, so that a packet costs the same
// few look-ups however many policies there are.

// refusal is a way to be denied: by a rule of a ClusterNetworkPolicy, or by isolation through some NetworkPolicies.
type refusal struct {
	direction Direction
	policies  []Ref
}

// name is the refusal's in the kernel.
func (r *refusal) name() string { return "d" + digest(r.String()) }

// String gives the direction and the policies.
func (r *refusal) String() string {
	names := make([]string, len(r.policies))
	for i, p := range r.policies {
		names[i] = p.String()
	}
	return r.direction.String() + " " + strings.Join(names, ",")
}

// prefix begins a line in the kernel's log.
func (r *refusal) prefix() string {
	more := ""
	if n := len(r.policies) - 1; n > 0 {
		more = fmt.Sprintf(" +%d", n)
	}
	const room = 100
	text := r.policies[0].String()
	return "coracle denied " + r.direction.String() + " " + text[:min(len(text), room)] + more + ": "
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:12])
}

// refusals are all those with which a program may answer.
func (g *program) refusals() []refusal {
	var out []refusal
	if len(g.isolating) > 0 {
		out = append(out, refusal{g.direction, g.isolating})
	}
	for _, tier := range []Tier{TierAdmin, TierBaseline} {
		for _, set := range g.tiers[tier] {
			if slices.ContainsFunc(set.rules[g.direction], func(r rule) bool { return r.action == deny }) {
				out = append(out, refusal{g.direction, []Ref{set.ref}})
			}
		}
	}
	return out
}

// compiler makes the content of one chain.
type compiler struct {
	*program
	own  *pod // any of the pods that share the chain
	near bool
	v6   bool
	// names remembers what refusals are called.
	names map[string]string
	// tables remembers tables by which rules mean the peer.
	tables map[string]table
}

func newCompiler(g *program, own *pod, near, v6 bool) *compiler {
	return &compiler{program: g, own: own, near: near, v6: v6, names: map[string]string{}, tables: map[string]table{}}
}

// table is what happens to the traffic with one peer.
type table struct {
	// other is what happens to all that is in no span, protocols without ports among it.
	other string
	spans []span
}

// span is a stretch of ports with one answer.
type span struct {
	proto  uint8
	lo, hi uint16
	answer string
}

// answer turns a decision into a refusal's name, "" for none.
func (c *compiler) answer(s Step) string {
	if s.Allowed {
		return ""
	}
	r := refusal{c.direction, s.Isolating}
	if s.Reason == ReasonRule {
		r.policies = []Ref{s.Policy}
	}
	text := r.String()
	name, ok := c.names[text]
	if !ok {
		name = r.name()
		c.names[text] = name
	}
	return name
}

// narrow is the program with only the rules that mean a peer, and a key that is the same for peers that the same rules mean.
func (c *compiler) narrow(other *party) (*program, string) {
	sub := &program{direction: c.direction, isolating: c.isolating}
	var key []byte
	n := uint32(0)
	for tier, sets := range c.tiers {
		for _, set := range sets {
			var hit *ruleset
			for i := range set.rules[c.direction] {
				n++
				if r := &set.rules[c.direction][i]; r.matchesPeer(other) {
					if hit == nil {
						hit = &ruleset{ref: set.ref}
					}
					open := *r
					open.anyPeer = true
					hit.rules[c.direction] = append(hit.rules[c.direction], open)
					key = binary.AppendUvarint(key, uint64(n))
				}
			}
			if hit != nil {
				sub.tiers[tier] = append(sub.tiers[tier], hit)
			}
		}
	}
	return sub, string(key)
}

// named says whether rules of a program name ports, so that each destination has to be asked for its own.
func (g *program) named() bool {
	for _, name := range g.portNames() {
		if name != "" {
			return true
		}
	}
	return false
}

// portNames lists the names of ports in the rules, in order.
func (g *program) portNames() []string {
	var names []string
	for _, sets := range g.tiers {
		for _, set := range sets {
			for _, r := range set.rules[g.direction] {
				for _, p := range r.ports {
					if p.name != "" {
						names = append(names, p.name)
					}
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// table asks about the traffic with one peer. The key says which rules meant it.
func (c *compiler) table(other *party) (table, string) {
	sub, key := c.narrow(other)
	if c.direction == Egress && other.pod != nil && sub.named() {
		key += "\x00" + fmt.Sprint(other.pod.ports)
	}
	if t, ok := c.tables[key]; ok {
		return t, key
	}
	dst := c.own
	if c.direction == Egress {
		dst = other.pod
	}
	t := table{other: c.answer(sub.judge(c.own, other, c.near, protoOther, 0))}
	for _, proto := range []uint8{protoTCP, protoUDP, protoSCTP} {
		bounds := sub.bounds(proto, dst)
		for i, lo := range bounds {
			hi := uint16(math.MaxUint16)
			if i+1 < len(bounds) {
				hi = bounds[i+1] - 1
			}
			a := c.answer(sub.judge(c.own, other, c.near, proto, lo))
			if last := len(t.spans) - 1; last >= 0 && t.spans[last].proto == proto && t.spans[last].answer == a && t.spans[last].hi+1 == lo {
				t.spans[last].hi = hi
			} else if a != t.other {
				t.spans = append(t.spans, span{proto, lo, hi, a})
			}
		}
	}
	c.tables[key] = t
	return t, key
}

// bounds are the ports of a protocol at which the answer may change, 0 first.
func (g *program) bounds(proto uint8, dst *pod) []uint16 {
	at := []uint16{0}
	for _, sets := range g.tiers {
		for _, set := range sets {
			for i := range set.rules[g.direction] {
				r := &set.rules[g.direction][i]
				for j := range r.ports {
					r.ports[j].spans(dst, func(p uint8, lo, hi uint16) {
						if p != proto || lo > hi {
							return
						}
						at = append(at, lo)
						if hi < math.MaxUint16 {
							at = append(at, hi+1)
						}
					})
				}
			}
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// stretch is a range of addresses that the same rules mean.
type stretch struct {
	lo, hi netip.Addr
	key    string
	table  table
}

// stretches cuts the addresses of the family at the bounds of all blocks, and leaves out what no block means.
func (c *compiler) stretches() []stretch {
	var at []netip.Addr
	bound := func(p netip.Prefix) {
		if p.Addr().Is6() != c.v6 {
			return
		}
		at = append(at, p.Addr())
		if next := last(p).Next(); next.IsValid() {
			at = append(at, next)
		}
	}
	for _, sets := range c.tiers {
		for _, set := range sets {
			for _, r := range set.rules[c.direction] {
				for _, p := range r.peers {
					if p.block.IsValid() {
						bound(p.block)
						for _, e := range p.except {
							bound(e)
						}
					}
				}
			}
		}
	}
	slices.SortFunc(at, netip.Addr.Compare)
	at = slices.Compact(at)
	_, none := c.table(&party{})
	var out []stretch
	for i, lo := range at {
		hi := last(netip.PrefixFrom(lo, 0))
		if i+1 < len(at) {
			hi = at[i+1].Prev()
		}
		t, key := c.table(&party{addr: lo})
		if key == none {
			continue
		}
		if n := len(out) - 1; n >= 0 && out[n].key == key && out[n].hi.Next() == lo {
			out[n].hi = hi
			continue
		}
		out = append(out, stretch{lo, hi, key, t})
	}
	return out
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// common is what a chain holds for peers that are not known: blocks, and what holds for everybody.
func (c *compiler) common() (elements []filter.Element, otherwise string) {
	everybody, _ := c.table(&party{})
	for _, s := range everybody.spans {
		elements = append(elements, filter.Element{Refusal: s.answer,
			Key: filter.Key{Set: filter.Ports, Proto: s.proto, Port: s.lo, LastPort: s.hi}})
	}
	for _, r := range c.stretches() {
		elements = append(elements, filter.Element{Refusal: r.table.other, Key: filter.Key{Set: filter.Nets, Peer: r.lo, Last: r.hi}})
		for _, s := range r.table.spans {
			elements = append(elements, filter.Element{Refusal: s.answer,
				Key: filter.Key{Set: filter.NetSpans, Peer: r.lo, Last: r.hi, Proto: s.proto, Port: s.lo, LastPort: s.hi}})
		}
	}
	return elements, everybody.other
}

// known is what a chain holds for one address of a pod or node: nothing, if the rules mean it no more than any address there.
func (c *compiler) known(other *party) []filter.Element {
	if !other.addr.IsValid() || other.addr.Is6() != c.v6 {
		return nil
	}
	t, key := c.table(other)
	if _, bare := c.table(&party{addr: other.addr}); key == bare {
		return nil
	}
	elements := []filter.Element{{Refusal: t.other, Key: filter.Key{Set: filter.Peers, Peer: other.addr}}}
	for _, s := range t.spans {
		k := filter.Key{Set: filter.Exact, Peer: other.addr, Proto: s.proto, Port: s.lo}
		if s.hi != s.lo {
			k.Set, k.LastPort = filter.Spans, s.hi
		}
		elements = append(elements, filter.Element{Key: k, Refusal: s.answer})
	}
	return elements
}

// chainName names the chain that pods with the same program share. What the names of ports stand for at own is part of it.
func chainName(g *program, own *pod, near, v6 bool) string {
	var b strings.Builder
	fmt.Fprint(&b, g.direction, near, v6)
	for tier, sets := range g.tiers {
		for _, set := range sets {
			fmt.Fprint(&b, "\n", tier, set.ref, set.isolates[g.direction])
		}
	}
	if g.direction == Ingress {
		for _, name := range g.portNames() {
			for _, p := range own.ports {
				if p.name == name {
					fmt.Fprint(&b, "\n", p)
				}
			}
		}
	}
	return "c" + digest(b.String())
}

// sortElements puts elements in a fixed order, for tests and for transactions that can be compared.
func sortElements(list []filter.Element) {
	slices.SortFunc(list, func(a, b filter.Element) int {
		return cmp.Or(cmp.Compare(a.Set, b.Set), a.Peer.Compare(b.Peer), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
}
