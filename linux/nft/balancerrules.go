package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// mark is the bit of a packet's mark that asks for the node's address as its source; it is the one that upstream's proxy uses.
const mark = 0x4000

func (t *transaction) chain(name string) *nftables.Chain {
	return t.kernel.conn.AddChain(&nftables.Chain{Name: name, Table: t.kernel.table})
}

func (t *transaction) rule(c *nftables.Chain, exprs ...[]expr.Any) {
	var all []expr.Any
	for _, e := range exprs {
		all = append(all, e...)
	}
	t.kernel.conn.AddRule(&nftables.Rule{Table: t.kernel.table, Chain: c, Exprs: all})
}

func jumpTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func (f *familyMaps) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: r(0)}, &expr.Cmp{Op: expr.CmpOpEq, Register: r(0), Data: []byte{f.proto}}}
}

func local(source bool, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: r(0), FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: r(0), Data: number(unix.RTN_LOCAL)},
	}
}

// loopback are the addresses of each family that only the node itself has.
var loopback = map[uint8]netip.Prefix{4: netip.MustParsePrefix("127.0.0.0/8"), 6: netip.MustParsePrefix("::1/128")}

// table makes the table with its maps and the rules that are always there.
func (t *transaction) table(inside []netip.Prefix) {
	k := t.kernel
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4} {
		old := &nftables.Table{Name: k.table.Name, Family: family}
		k.conn.AddTable(old) // so that the deletion finds one
		k.conn.DelTable(old)
	}
	k.conn.AddTable(k.table)
	for _, s := range append(append([]*nftables.Set{k.plans}, k.families[0].sets()...), k.families[1].sets()...) {
		// Only a wrong type of set is refused here, and they are constant.
		if err := k.conn.AddSet(s, nil); err != nil {
			panic(err)
		}
	}
	t.rule(t.chain("mark"), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: r(0)},
		&expr.Bitwise{SourceRegister: r(0), DestRegister: r(0), Len: 4, Mask: number(^uint32(mark)), Xor: number(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: r(0), SourceRegister: true},
	})
	base := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, kind nftables.ChainType) *nftables.Chain {
		return k.conn.AddChain(&nftables.Chain{Name: name, Table: k.table, Type: kind, Hooknum: hook, Priority: priority})
	}
	for _, f := range k.families {
		t.entry(f, inside)
		t.virtualChain(f)
	}
	hooks := []*nftables.Chain{
		base("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT),
		base("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest, nftables.ChainTypeNAT),
	}
	post := base("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT)
	refusing := []*nftables.Chain{
		base("refuse-forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainTypeFilter),
		base("refuse-output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainTypeFilter),
	}
	t.rule(post, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: r(0)},
		&expr.Bitwise{SourceRegister: r(0), DestRegister: r(1), Len: 4, Mask: number(mark), Xor: number(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: r(1), Data: number(0)},
		&expr.Bitwise{SourceRegister: r(0), DestRegister: r(0), Len: 4, Mask: number(^uint32(mark)), Xor: number(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: r(0), SourceRegister: true},
		&expr.Masq{},
	})
	for _, f := range k.families {
		for _, hook := range hooks {
			t.rule(hook, f.is(), jumpTo(fmt.Sprint("entry", f.number)))
		}
		for _, hook := range refusing {
			t.rule(hook, f.is(), jumpTo(fmt.Sprint("virtual", f.number)))
		}
		t.rule(post, f.is(), []expr.Any{
			&expr.Payload{DestRegister: r(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.addrLen},
			&expr.Payload{DestRegister: r(f.afterAddr), Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.addrLen},
			&expr.Lookup{SourceRegister: r(0), SetName: f.hairpins.Name, SetID: f.hairpins.ID},
			&expr.Masq{},
		})
		leave := t.chain(fmt.Sprint("leave", f.number))
		for _, p := range inside {
			if familyOf(p.Addr()) == f.number {
				t.rule(leave, f.within(f.dst, p, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
			}
		}
		t.rule(leave, []expr.Any{&expr.Masq{}})
		for _, p := range inside {
			if familyOf(p.Addr()) == f.number {
				t.rule(post, f.is(), f.within(f.src, p, expr.CmpOpEq), goTo(leave.Name))
			}
		}
	}
}

// entry makes the chains through which the first packet of every connection goes.
func (t *transaction) entry(f *familyMaps, inside []netip.Prefix) {
	far := t.chain(fmt.Sprint("far", f.number))
	t.rule(far, f.follow(place{}))
	t.rule(far, local(false, expr.CmpOpEq), f.within(f.dst, loopback[f.number], expr.CmpOpNeq), f.follow(place{port: true}))

	near := t.chain(fmt.Sprint("near", f.number))
	t.rule(near, f.follow(place{near: true}))
	t.rule(near, local(false, expr.CmpOpEq), f.within(f.dst, loopback[f.number], expr.CmpOpNeq), f.follow(place{port: true, near: true}))
	t.rule(near, goTo(far.Name))

	outside := t.chain(fmt.Sprint("outside", f.number))
	for _, p := range inside {
		if familyOf(p.Addr()) == f.number {
			t.rule(outside, f.within(f.src, p, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
		}
	}
	t.rule(outside, goTo("mark"))

	entry := t.chain(fmt.Sprint("entry", f.number))
	t.rule(entry, f.front(), []expr.Any{
		&expr.Lookup{SourceRegister: r(0), SetName: f.limited.Name, SetID: f.limited.ID},
		&expr.Payload{DestRegister: r(f.afterAddr + 2), Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.addrLen},
		&expr.Lookup{SourceRegister: r(0), SetName: f.allowed.Name, SetID: f.allowed.ID, Invert: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})
	for _, p := range inside {
		if familyOf(p.Addr()) == f.number {
			t.rule(entry, f.within(f.src, p, expr.CmpOpEq), goTo(near.Name))
		}
	}
	t.rule(entry, local(true, expr.CmpOpEq), goTo(near.Name))
	t.rule(entry, goTo(far.Name))
}

// front loads a packet's address, protocol and port, port only the latter two.
func (f *familyMaps) front() []expr.Any {
	return append([]expr.Any{&expr.Payload{DestRegister: r(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.addrLen}}, f.protoPort(f.afterAddr)...)
}

func (f *familyMaps) port() []expr.Any { return f.protoPort(0) }

func (f *familyMaps) protoPort(n uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r(n)},
		&expr.Payload{DestRegister: r(n + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// find looks a packet's front up. A rule cannot read what another has loaded (the kernel refuses it), so that a plan's rules begin with
// this too.
func (f *familyMaps) find(p place) []expr.Any {
	key, fronts := f.front(), f.at(p)
	if p.port {
		key = f.port()
	}
	return append(key, &expr.Lookup{SourceRegister: r(0), DestRegister: poolReg, IsDestRegSet: true, SetName: fronts.Name, SetID: fronts.ID})
}

// follow goes to the plan of a packet's front, if it has one.
func (f *familyMaps) follow(p place) []expr.Any {
	return append(f.find(p), &expr.Lookup{SourceRegister: planReg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: "plans"})
}

// virtualChain makes the chain that refuses what is still on its way to a virtual range after translation.
func (t *transaction) virtualChain(f *familyMaps) {
	t.chain(fmt.Sprint("virtual", f.number))
}

// virtual fills the chains that refuse, anew if they are there.
func (t *transaction) virtual(ranges []netip.Prefix, fresh bool) {
	for _, f := range t.kernel.families {
		chain := &nftables.Chain{Name: fmt.Sprint("virtual", f.number), Table: t.kernel.table}
		if !fresh {
			t.kernel.conn.FlushChain(chain)
		}
		t.rule(chain, local(false, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
		for _, p := range ranges {
			if familyOf(p.Addr()) == f.number {
				t.rule(chain, f.within(f.dst, p, expr.CmpOpEq), refuse())
			}
		}
		t.rule(chain, []expr.Any{
			&expr.Payload{DestRegister: r(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.addrLen},
			&expr.Lookup{SourceRegister: r(0), SetName: f.refused.Name, SetID: f.refused.ID},
		}, refuse())
	}
}

// refuse answers with ICMP port unreachable of the packet's family.
func refuse() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

// planFor is the plan of that key, which is made if need be.
func (b *Balancer) planFor(t *transaction, key planKey) *plan {
	if p := b.plans[key]; p != nil {
		return p
	}
	b.lastID++
	p := &plan{id: b.lastID}
	p.chain = t.chain(fmt.Sprint("plan", p.id))
	b.plans[key] = p
	f := t.kernel.family(key.family)
	for _, rule := range f.rules(key) {
		t.rule(p.chain, rule)
	}
	// The chains of the map are few: a change of it makes the kernel check them all.
	err := t.kernel.conn.SetAddElements(t.kernel.plans, []nftables.SetElement{{Key: number(p.id), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: p.chain.Name}}})
	if err != nil {
		panic(err) // only an element of another type is refused here
	}
	t.size++
	return p
}

// unused is how many plans are kept that no front leads to, for those to come.
const unused = 16

// dropPlans removes plans that nothing leads to, but for a few.
func (b *Balancer) dropPlans(t *transaction) {
	left := unused
	for key, p := range b.plans {
		if p.users > 0 {
			continue
		}
		if left--; left >= 0 {
			continue
		}
		delete(b.plans, key)
		if err := t.kernel.conn.SetDeleteElements(t.kernel.plans, []nftables.SetElement{{Key: number(p.id)}}); err != nil {
			panic(err) // as above
		}
		t.doomed = append(t.doomed, p.chain)
	}
}

// deleteOp is the third operation of a set's change by a rule, after adding and updating (linux/netfilter/nf_tables.h).
const deleteOp = 2

// rules are those of a plan's chain.
func (f *familyMaps) rules(key planKey) [][]expr.Any {
	switch {
	case key.count == 0 && key.empty == DropEmpty:
		return [][]expr.Any{{&expr.Verdict{Kind: expr.VerdictDrop}}}
	case key.count == 0:
		return [][]expr.Any{refuse()}
	}
	var rules [][]expr.Any
	switch key.source {
	case HideOutside:
		rules = append(rules, jumpTo(fmt.Sprint("outside", f.number)))
	case HideSource:
		rules = append(rules, jumpTo("mark"))
	}
	dnat := []expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: f.backAddr, RegProtoMin: f.backPort, Specified: true}}
	backend := &expr.Lookup{SourceRegister: poolReg, DestRegister: f.backAddr, IsDestRegSet: true, SetName: f.backends.Name, SetID: f.backends.ID}
	front := f.find(key.place)
	choose := []expr.Any{&expr.Numgen{Register: planReg, Type: unix.NFT_NG_RANDOM, Modulus: uint32(key.count)}, backend}
	first := []expr.Any{&expr.Immediate{Register: planReg, Data: number(0)}, backend}
	if key.count == 1 {
		choose = first
	}
	join := func(parts ...[]expr.Any) (all []expr.Any) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	if key.sticky > 0 {
		// The pool and the client's address.
		client := []expr.Any{
			&expr.Bitwise{SourceRegister: poolReg, DestRegister: r(0), Len: 4, Mask: number(^uint32(0)), Xor: number(0)},
			&expr.Payload{DestRegister: r(1), Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.addrLen},
		}
		remember := func(op uint32) []expr.Any {
			return []expr.Any{&expr.Dynset{SrcRegKey: r(0), SrcRegData: f.backAddr, SetName: f.clients.Name, SetID: f.clients.ID, Operation: op, Timeout: key.sticky}}
		}
		rules = append(rules,
			join(front, client, []expr.Any{
				&expr.Lookup{SourceRegister: r(0), DestRegister: f.backAddr, IsDestRegSet: true, SetName: f.clients.Name, SetID: f.clients.ID},
				&expr.Lookup{SourceRegister: poolReg, SetName: f.members.Name, SetID: f.members.ID},
			}, remember(unix.NFT_DYNSET_OP_UPDATE), dnat),
			// An update would keep the backend of before, which is gone.
			join(front, choose, client, remember(deleteOp), remember(unix.NFT_DYNSET_OP_ADD), dnat))
	}
	rules = append(rules, join(front, choose, dnat))
	if key.count > 1 {
		// While a backend goes, a packet may have the count of before and the map of after.
		rules = append(rules, join(front, first, dnat))
	}
	return rules
}
