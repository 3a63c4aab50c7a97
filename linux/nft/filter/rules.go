package filter

import (
	"encoding/binary"
	"math"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Keys of nftables maps: each part is padded to four bytes.

func word(p uint8) []byte  { return []byte{p, 0, 0, 0} }
func half(n uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, n), 0, 0) }
func jump(chain string) *expr.Verdict {
	return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}
}

// element is e as the kernel holds it. Where e is deleted, the answer is ignored.
func (f *Table) element(e *Element) nftables.SetElement {
	out := nftables.SetElement{VerdictData: &expr.Verdict{Kind: expr.VerdictReturn}}
	if e.Refusal != "" {
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: f.in(e.Refusal)}
	}
	switch e.Set {
	case Exact:
		out.Key = append(append(e.Peer.AsSlice(), word(e.Proto)...), half(e.Port)...)
	case Spans:
		out.Key = append(append(e.Peer.AsSlice(), word(e.Proto)...), half(e.Port)...)
		out.KeyEnd = append(append(e.Peer.AsSlice(), word(e.Proto)...), half(e.LastPort)...)
	case Peers:
		out.Key = e.Peer.AsSlice()
	case NetSpans:
		out.Key = append(append(e.Peer.AsSlice(), word(e.Proto)...), half(e.Port)...)
		out.KeyEnd = append(append(e.Last.AsSlice(), word(e.Proto)...), half(e.LastPort)...)
	case Nets: // the kernel's map of ranges that does not slow down has two parts at least
		out.Key = append(e.Peer.AsSlice(), word(0)...)
		out.KeyEnd = append(e.Last.AsSlice(), word(math.MaxUint8)...)
	case Ports:
		out.Key = append(word(e.Proto), half(e.Port)...)
		out.KeyEnd = append(word(e.Proto), half(e.LastPort)...)
	}
	return out
}

func (f *Flow) key() []byte {
	key := append(f.Src.Addr().AsSlice(), f.Dst.Addr().AsSlice()...)
	key = append(key, word(f.Proto)...)
	return append(append(key, half(f.Src.Port())...), half(f.Dst.Port())...)
}

func addressType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// newMap makes one of a chain's maps.
func (f *Table) newMap(chain string, kind Set, v6 bool) *nftables.Set {
	set := &nftables.Set{Table: f.table, ID: f.nextID(), IsMap: true, DataType: nftables.TypeVerdict,
		Name: f.in(chain) + [...]string{"_exact", "_spans", "_peers", "_netspans", "_nets", "_ports"}[kind]}
	addr := addressType(v6)
	switch kind {
	case Peers:
		set.KeyType = addr
	case Nets:
		set.KeyType = nftables.MustConcatSetType(addr, nftables.TypeInetProto)
	case Ports:
		set.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	default:
		set.KeyType = nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
	}
	set.Concatenation = kind != Peers
	set.Interval = kind != Peers && kind != Exact
	must(f.conn.AddSet(set, nil))
	return set
}

// fixedSets are the sets of a family that are always there.
func fixedSets(v6 bool) []*nftables.Set {
	n, addr := family(v6), addressType(v6)
	sets := []*nftables.Set{
		{Name: "self" + n, Concatenation: true, KeyType: nftables.MustConcatSetType(addr, addr)},
		{Name: "guarded" + n, KeyType: addr},
		{Name: "machine" + n, KeyType: addr},
		{Name: "standin" + n, KeyType: addr},
		{Name: "cut" + n, Concatenation: true, HasTimeout: true, Timeout: cutTime,
			KeyType: nftables.MustConcatSetType(addr, addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService)},
	}
	for _, hook := range []Hook{Egress, Ingress, Near} {
		sets = append(sets, &nftables.Set{Name: hookMap(hook, v6), IsMap: true, KeyType: addr, DataType: nftables.TypeVerdict})
	}
	return sets
}

// Registers: 16 of four bytes from reg1 on.
const firstWord = unix.NFT_REG32_00

// address loads the source or destination into registers from a word on and returns the next free word.
func address(v6, source bool, at uint32) (expr.Any, uint32) {
	p := &expr.Payload{DestRegister: firstWord + at, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if v6 {
		p.Offset, p.Len = 24, 16
	}
	if source {
		p.Offset -= p.Len
	}
	return p, at + p.Len/4
}

func protocolAt(at uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstWord + at}
}

// portAt loads the source port (offset 0) or destination port (2) of protocols that have ports.
func portAt(at, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: firstWord + at, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// ask looks the registers up in a map of verdicts.
func ask(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: firstWord, SetName: set.Name, SetID: set.ID, IsDestRegSet: true}
}

// among goes on only if the registers are in a set.
func among(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: firstWord, SetName: set.Name, SetID: set.ID}
}

func verdict(k expr.VerdictKind, chain string) expr.Any { return &expr.Verdict{Kind: k, Chain: chain} }

func (f *Table) rules(chain *nftables.Chain, rules [][]expr.Any) {
	for _, exprs := range rules {
		f.conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: exprs})
	}
}

// state goes on only if the packet's connection is in one of the states.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: unix.NFT_REG_1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: make([]byte, 4)},
	}
}

// ofFamily goes on only for packets of one family.
func ofFamily(v6 bool) []expr.Any {
	number := byte(unix.NFPROTO_IPV4)
	if v6 {
		number = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{number}},
	}
}

// Flags of TCP headers (RFC 9293).
const (
	tcpFIN, tcpSYN, tcpRST, tcpACK = 1, 2, 4, 16
	tcpFlagsOffset                 = 13
)

// notOpening goes on only for TCP packets that do not open a connection.
func notOpening() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1,
			Mask: []byte{tcpFIN | tcpSYN | tcpRST | tcpACK}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{tcpSYN}},
	}
}

// skeleton adds to the transaction what is always there: the hooks, and the maps from addresses to their chains.
func (f *Table) skeleton() {
	f.conn.AddChain(&nftables.Chain{Name: layout, Table: f.table})
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return f.conn.AddChain(&nftables.Chain{Name: name, Table: f.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
	}
	forward, input, output := base("forward", nftables.ChainHookForward), base("input", nftables.ChainHookInput), base("output", nftables.ChainHookOutput)
	known := append(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, ""))
	f.rules(forward, [][]expr.Any{known})
	f.rules(input, [][]expr.Any{known})
	// Answers to datagrams that nobody keeps track of: the question was decided about.
	f.rules(output, [][]expr.Any{known, append(state(expr.CtStateBitUNTRACKED), verdict(expr.VerdictAccept, ""))})
	for _, v6 := range []bool{false, true} {
		f.familySkeleton(v6, forward, input, output)
	}
}

func (f *Table) familySkeleton(v6 bool, forward, input, output *nftables.Chain) {
	n := family(v6)
	for _, set := range fixedSets(v6) {
		set.Table, set.ID = f.table, f.nextID()
		must(f.conn.AddSet(set, nil))
		f.fixed[set.Name] = set
	}
	chain := func(name string) *nftables.Chain {
		return f.conn.AddChain(&nftables.Chain{Name: name + n, Table: f.table})
	}
	through, astray, near := chain("through"), chain("astray"), chain("tomachine")

	src, second := address(v6, true, 0)
	dst, _ := address(v6, false, 0)
	dst2, third := address(v6, false, second)
	drop := verdict(expr.VerdictDrop, "")
	toAstray := verdict(expr.VerdictJump, astray.Name)
	f.rules(astray, [][]expr.Any{{src, among(f.fixed["guarded"+n]), drop}, {dst, among(f.fixed["guarded"+n]), drop}})
	f.rules(through, [][]expr.Any{
		{src, dst2, among(f.fixed["self"+n]), verdict(expr.VerdictReturn, "")},
		{src, dst2, protocolAt(third), portAt(third+1, 0), portAt(third+2, 2), among(f.fixed["cut"+n]), drop},
		append(state(expr.CtStateBitINVALID), toAstray),
		append(notOpening(), toAstray),
		{src, ask(f.fixed[hookMap(Egress, v6)])},
		{dst, ask(f.fixed[hookMap(Ingress, v6)])},
	})
	f.rules(near, [][]expr.Any{{dst, among(f.fixed["machine"+n]), src, ask(f.fixed[hookMap(Near, v6)])}})
	f.rules(forward, [][]expr.Any{append(ofFamily(v6), verdict(expr.VerdictJump, through.Name))})
	jumpThrough := verdict(expr.VerdictJump, through.Name)
	f.rules(input, [][]expr.Any{
		append(ofFamily(v6), dst, among(f.fixed["standin"+n]), jumpThrough),
		append(ofFamily(v6), verdict(expr.VerdictJump, near.Name)),
	})
	f.rules(output, [][]expr.Any{append(ofFamily(v6), src, among(f.fixed["standin"+n]), jumpThrough)})
}

// writeRules makes a chain's rules anew: a question to each map in which there is something, then the default.
func (f *Table) writeRules(name string, c *chainState) {
	chain := &nftables.Chain{Name: f.in(name), Table: f.table}
	f.conn.FlushChain(chain)
	peer, next := address(c.v6, c.hook == Ingress, 0)
	for kind := range setCount {
		set := c.sets[kind]
		if set == nil {
			continue
		}
		if c.counts[kind] == 0 {
			f.conn.DelSet(set)
			c.sets[kind] = nil
			continue
		}
		var exprs []expr.Any
		switch kind {
		case Peers:
			exprs = []expr.Any{peer, ask(set)}
		case Nets:
			exprs = []expr.Any{peer, protocolAt(next), ask(set)}
		case Ports:
			exprs = []expr.Any{protocolAt(0), portAt(1, 2), ask(set)}
		default:
			exprs = []expr.Any{peer, protocolAt(next), portAt(next+1, 2), ask(set)}
		}
		f.rules(chain, [][]expr.Any{exprs})
	}
	if c.refuse != "" {
		f.rules(chain, [][]expr.Any{{verdict(expr.VerdictGoto, f.in(c.refuse))}})
	}
	c.changed = false
}

// How many lines the log gets of one refusal.
const (
	logEvery = 10 // a second
	logBurst = 20
)

func refusalRules(r Refusal, log bool) [][]expr.Any {
	rules := [][]expr.Any{{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: r.Name}}}
	if log {
		prefix := r.Prefix
		if len(prefix) > maxLogPrefix {
			prefix = prefix[:maxLogPrefix]
		}
		rules = append(rules, []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: logEvery, Unit: expr.LimitTimeSecond, Burst: logBurst},
			&expr.Log{Key: 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_LEVEL, Level: expr.LogLevelInfo, Data: []byte(prefix)},
		})
	}
	return append(rules, []expr.Any{verdict(expr.VerdictDrop, "")})
}

// maxLogPrefix is the kernel's limit (NF_LOG_PREFIXLEN), less the zero byte.
const maxLogPrefix = 127
