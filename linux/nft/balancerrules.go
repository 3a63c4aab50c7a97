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
	for _, s := range append(append(k.families[0].sets(), k.families[1].sets()...), k.plans) {
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
		t.picks(f)
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
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: r(0)},
		&expr.Bitwise{SourceRegister: r(0), DestRegister: r(0), Len: 4, Mask: number(numberMask), Xor: number(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r(0), Data: number(firstPlan)},
		&expr.Immediate{Register: r(0), Data: number(0)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: r(0), SourceRegister: true},
	})
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
	t.follow(f, far, place{})
	t.follow(f, far, place{port: true})

	near := t.chain(fmt.Sprint("near", f.number))
	t.follow(f, near, place{near: true})
	t.follow(f, near, place{port: true, near: true})
	t.rule(near, goTo(far.Name))

	outside := t.chain(fmt.Sprint("outside", f.number))
	for _, p := range inside {
		if familyOf(p.Addr()) == f.number {
			t.rule(outside, f.within(f.src, p, expr.CmpOpEq), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
		}
	}
	t.rule(outside, goTo("mark"))

	entry := t.chain(fmt.Sprint("entry", f.number))
	front, next := f.front(place{})
	t.rule(entry, front, []expr.Any{
		&expr.Lookup{SourceRegister: r(0), SetName: f.limited.Name, SetID: f.limited.ID},
		f.client(next),
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

// front loads a packet's front from r(0) on: address, protocol and port, or the latter two. next is the register behind it.
func (f *familyMaps) front(p place) (load []expr.Any, next uint32) {
	if !p.port {
		load, next = []expr.Any{&expr.Payload{DestRegister: r(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.addrLen}}, f.afterAddr
	}
	return append(load, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r(next)},
		&expr.Payload{DestRegister: r(next + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}), next + 2
}

// client loads a packet's source.
func (f *familyMaps) client(at uint32) expr.Any {
	return &expr.Payload{DestRegister: r(at), Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.addrLen}
}

func priority(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: register}
}

func setPriority(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: register, SourceRegister: true}
}

// ask looks r(0) and what follows it up in a map. A rule looks up once only, and never what it found: nft 1.0.6 aborts where it is to print
// such a rule.
func ask(s *nftables.Set, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: r(0), DestRegister: register, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}
}

// follow goes to the plan of a packet's front, if it has one.
func (t *transaction) follow(f *familyMaps, chain *nftables.Chain, p place) {
	var only []expr.Any
	if p.port {
		only = append(local(false, expr.CmpOpEq), f.within(f.dst, loopback[f.number], expr.CmpOpNeq)...)
	}
	front, _ := f.front(p)
	t.rule(chain, only, front, []expr.Any{ask(f.at(p), numberReg), setPriority(numberReg)})
	t.rule(chain, []expr.Any{priority(r(0)), ask(t.kernel.plans, unix.NFT_REG_VERDICT)})
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
	p := &plan{id: firstPlan + b.lastID%plans}
	p.chain = t.chain(fmt.Sprint("plan", b.lastID))
	b.plans[key] = p
	f := t.kernel.family(key.family)
	if key.count > 0 && key.sticky > 0 {
		p.memory = b.memoryFor(t, memoryKey{key.family, key.place.port, key.sticky})
	}
	for _, rule := range f.rules(key, p.memory) {
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
		if m := p.memory; m != nil {
			if m.users--; m.users == 0 {
				delete(b.memories, m.key)
				t.doomed = append(t.doomed, m.recall, m.learn)
			}
		}
	}
}

// deleteOp is the third operation of a set's change by a rule, after adding and updating (linux/netfilter/nf_tables.h).
const deleteOp = 2

// rules are those of a plan's chain. None of them looks anything up: a chain that comes to look a map up makes the kernel walk all elements
// of the map once, so that the chains that do are few and there from the start (pick) or for each time of sticky ones (memory).
func (f *familyMaps) rules(key planKey, m *memory) [][]expr.Any {
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
	first := frontKey{near: key.place.near}.firstIndex()
	pick := f.pick(key.place)
	random := []expr.Any{&expr.Numgen{Register: r(0), Type: unix.NFT_NG_RANDOM, Modulus: uint32(key.count), Offset: first}, setPriority(r(0))}
	if key.sticky > 0 {
		rules = append(rules, jumpTo(m.recall.Name), random, jumpTo(m.learn.Name))
	} else if key.count > 1 {
		rules = append(rules, random, jumpTo(pick))
	}
	// While a backend goes, a packet may have the count of before and the map of after.
	return append(rules, []expr.Any{&expr.Immediate{Register: r(0), Data: number(first)}, setPriority(r(0))}, goTo(pick))
}

// pick is the name of the chain that sends a packet to the backend whose number it has, if there is one.
func (f *familyMaps) pick(p place) string {
	if p.port {
		return fmt.Sprint("pick-port", f.number)
	}
	return fmt.Sprint("pick", f.number)
}

// picks makes the chains that send packets to backends.
func (t *transaction) picks(f *familyMaps) {
	for _, p := range []place{{}, {port: true}} {
		front, next := f.front(p)
		t.rule(t.chain(f.pick(p)), front, []expr.Any{priority(r(next)), ask(f.maps(p).backends, backendReg),
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: backendReg, RegProtoMin: backendReg + f.afterAddr, Specified: true}})
	}
}

// memoryFor is that of a sticky plan, which is made if need be.
func (b *Balancer) memoryFor(t *transaction, key memoryKey) *memory {
	m := b.memories[key]
	if m == nil {
		f := t.kernel.family(key.family)
		p := place{port: key.port}
		name := fmt.Sprint(f.number, "-", b.lastID)
		m = &memory{key: key, recall: t.chain("recall" + name), learn: t.chain("learn" + name)}
		b.memories[key] = m
		maps := f.maps(p)
		front, next := f.front(p)
		remember := func(op uint32) expr.Any {
			return &expr.Dynset{SrcRegKey: r(0), SrcRegData: numberReg, SetName: maps.clients.Name, SetID: maps.clients.ID, Operation: op, Timeout: key.sticky}
		}
		t.rule(m.recall, front, []expr.Any{f.client(next), ask(maps.clients, numberReg), setPriority(numberReg), priority(numberReg), remember(unix.NFT_DYNSET_OP_UPDATE)})
		t.rule(m.recall, goTo(f.pick(p)))
		// An update would keep the token of before, whose backend is gone.
		t.rule(m.learn, front, []expr.Any{priority(r(next)), ask(maps.tokens, numberReg), setPriority(numberReg), f.client(next), priority(numberReg),
			remember(deleteOp), remember(unix.NFT_DYNSET_OP_ADD)})
		t.rule(m.learn, goTo(f.pick(p)))
	}
	m.users++
	return m
}
