// Package nft writes packet rules: tables of the kernel's nftables, each change one
// transaction over netlink. It owns the tables that it made, by name, and touches no other;
// it knows addresses and ports, not what they stand for, and runs no program.
package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Front is where connections come in that are to be balanced.
type Front struct {
	// Addr is the address; the zero value means every address of the node.
	Addr netip.Addr
	// Proto is the IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
	Proto uint8
	Port  uint16
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

// Balancer spreads connections to fronts over backends by destination NAT, for IPv4.
// Finding the rule for a packet is one look-up in a hash map however many fronts there
// are, and a change costs one transaction in proportion to the backends of the one
// front group that changed. It is safe for concurrent use.
type Balancer struct {
	mu       sync.Mutex // guards what follows, and the order of transactions
	conn     *nftables.Conn
	table    *nftables.Table
	fronts   *nftables.Set // address, protocol, port -> jump
	ports    *nftables.Set // protocol, port -> jump, for every address of the node
	hairpins *nftables.Set // backends that reach themselves through a front
	groups   map[string]*group
	self     map[netip.Addr]int // how many groups have the backend
}

type group struct {
	chain    *nftables.Chain
	fronts   []Front
	backends []netip.AddrPort
	sticky   time.Duration
	clients  *nftables.Set // which backend each client has, nil unless sticky
}

// Registers: the first holds 16 bytes, which are also the four registers of 4 bytes from reg32.
const (
	reg1   = unix.NFT_REG_1
	reg32b = unix.NFT_REG32_01
	reg32c = unix.NFT_REG32_02
	reg4   = unix.NFT_REG_4
)

var (
	frontType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	portType  = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	backType  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	pairType  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
)

// NewBalancer makes the table of that name anew, empty of fronts, in one transaction.
// Packets from the inside ranges to anywhere else leave with the node's address. Packets to the
// virtual ranges that no front takes are refused at once, unless the node bears the
// address itself.
func NewBalancer(name string, inside, virtual []netip.Prefix) (*Balancer, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	b := &Balancer{conn: conn, groups: map[string]*group{}, self: map[netip.Addr]int{}}
	b.table = &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	conn.AddTable(b.table) // so that the deletion finds one
	conn.DelTable(b.table)
	conn.AddTable(b.table)
	b.fronts = &nftables.Set{Table: b.table, Name: "fronts", IsMap: true, Concatenation: true, KeyType: frontType, DataType: nftables.TypeVerdict}
	b.ports = &nftables.Set{Table: b.table, Name: "ports", IsMap: true, Concatenation: true, KeyType: portType, DataType: nftables.TypeVerdict}
	b.hairpins = &nftables.Set{Table: b.table, Name: "hairpins", Concatenation: true, KeyType: pairType}
	for _, set := range []*nftables.Set{b.fronts, b.ports, b.hairpins} {
		if err := conn.AddSet(set, nil); err != nil {
			return nil, fmt.Errorf("nftables: %w", err)
		}
	}
	for hook, name := range map[*nftables.ChainHook]string{nftables.ChainHookPrerouting: "prerouting", nftables.ChainHookOutput: "output"} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: b.lookupFront()})
		conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: b.lookupPort()})
	}
	post := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: b.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	conn.AddRule(&nftables.Rule{Table: b.table, Chain: post, Exprs: []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Payload{DestRegister: reg32b, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Lookup{SourceRegister: reg1, SetName: b.hairpins.Name, SetID: b.hairpins.ID},
		&expr.Masq{},
	}})
	for _, p := range inside {
		if p.Addr().Is4() {
			exprs := append(within(12, p, expr.CmpOpEq), within(16, p, expr.CmpOpNeq)...)
			conn.AddRule(&nftables.Rule{Table: b.table, Chain: post, Exprs: append(exprs, &expr.Masq{})})
		}
	}
	b.refuse(virtual)
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: make table %s: %w", name, err)
	}
	return b, nil
}

// refuse rejects what is still on its way to a virtual range after translation.
func (b *Balancer) refuse(virtual []netip.Prefix) {
	for hook, name := range map[*nftables.ChainHook]string{nftables.ChainHookForward: "refuse-forward", nftables.ChainHookOutput: "refuse-output"} {
		chain := b.conn.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		for _, p := range virtual {
			if p.Addr().Is4() {
				exprs := append(within(16, p, expr.CmpOpEq),
					&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
					&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
					&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable})
				b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: exprs})
			}
		}
	}
}

// portUnreachable is the ICMP code with which a connection is refused (RFC 792).
const portUnreachable = 3

// within compares an address of the IPv4 header (12: source, 16: destination) with a range.
func within(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	}
}

func (b *Balancer) lookupFront() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32b},
		&expr.Payload{DestRegister: reg32c, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, SetName: b.fronts.Name, SetID: b.fronts.ID, IsDestRegSet: true},
	}
}

func (b *Balancer) lookupPort() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{DestRegister: reg32b, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, SetName: b.ports.Name, SetID: b.ports.ID, IsDestRegSet: true},
	}
}

// element is a key of the fronts or the ports map: each part padded to four bytes.
func (f Front) element(chain string) nftables.SetElement {
	var key []byte
	if f.Addr.IsValid() {
		key = append(key, f.Addr.AsSlice()...)
	}
	key = append(key, f.Proto, 0, 0, 0)
	key = binary.BigEndian.AppendUint16(key, f.Port)
	key = append(key, 0, 0)
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func (b *Balancer) mapOf(f Front) *nftables.Set {
	if f.Addr.IsValid() {
		return b.fronts
	}
	return b.ports
}

// Set makes connections to any of the fronts go to one of the backends, chosen at random. With
// no backends they stay as they are: those to a virtual range are refused. If sticky is not zero, a client's address goes to
// the backend that it had before, as long as that is one and the last connection is no longer ago than sticky. id names the
// group; what it was before is replaced, all in one transaction, except for what clients have. Fronts and backends that are
// not IPv4 are left out.
func (b *Balancer) Set(id string, fronts []Front, backends []netip.AddrPort, sticky time.Duration) error {
	fronts = slices.DeleteFunc(slices.Clone(fronts), func(f Front) bool { return f.Addr.IsValid() && !f.Addr.Is4() })
	backends = slices.DeleteFunc(slices.Clone(backends), func(a netip.AddrPort) bool { return !a.Addr().Is4() })
	slices.SortFunc(backends, netip.AddrPort.Compare)
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.groups[id]
	if old != nil && slices.Equal(old.fronts, fronts) && slices.Equal(old.backends, backends) && old.sticky == sticky {
		return nil
	}
	if len(fronts) == 0 {
		return b.remove(id)
	}
	g := &group{fronts: fronts, backends: backends, sticky: sticky}
	sum := sha256.Sum256([]byte(id))
	name := hex.EncodeToString(sum[:12])
	if old != nil {
		g.chain, g.clients = old.chain, old.clients
		b.conn.FlushChain(g.chain)
	} else {
		g.chain = b.conn.AddChain(&nftables.Chain{Name: "g" + name, Table: b.table})
		old = &group{}
	}
	if err := b.keepClients(g, "c"+name); err != nil {
		return fmt.Errorf("nftables: set %s: %w", id, err)
	}
	if len(backends) > 0 {
		for _, exprs := range b.rules(g) {
			b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: g.chain, Exprs: exprs})
		}
	}
	if err := b.change(old, g); err != nil {
		return err
	}
	if err := b.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: set %s: %w", id, err)
	}
	b.groups[id] = g
	b.count(old, -1)
	b.count(g, 1)
	return nil
}

// Remove takes a group out. An unknown one is no error.
func (b *Balancer) Remove(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.remove(id)
}

func (b *Balancer) remove(id string) error {
	g := b.groups[id]
	if g == nil {
		return nil
	}
	if err := b.change(g, &group{chain: g.chain}); err != nil {
		return err
	}
	b.conn.FlushChain(g.chain)
	b.conn.DelChain(g.chain)
	if g.clients != nil {
		b.conn.DelSet(g.clients)
	}
	if err := b.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: remove %s: %w", id, err)
	}
	delete(b.groups, id)
	b.count(g, -1)
	return nil
}

// change adds to the transaction what differs in the maps.
func (b *Balancer) change(old, fresh *group) error {
	var errs []error
	for _, f := range old.fronts {
		if !slices.Contains(fresh.fronts, f) {
			errs = append(errs, b.conn.SetDeleteElements(b.mapOf(f), []nftables.SetElement{f.element(fresh.chain.Name)}))
		}
	}
	for _, f := range fresh.fronts {
		if !slices.Contains(old.fronts, f) {
			errs = append(errs, b.conn.SetAddElements(b.mapOf(f), []nftables.SetElement{f.element(fresh.chain.Name)}))
		}
	}
	before, after := hosts(old.backends), hosts(fresh.backends)
	for addr := range before {
		if !after[addr] && b.self[addr] == 1 {
			errs = append(errs, b.conn.SetDeleteElements(b.hairpins, []nftables.SetElement{{Key: pair(addr)}}))
		}
	}
	for addr := range after {
		if !before[addr] && b.self[addr] == 0 {
			errs = append(errs, b.conn.SetAddElements(b.hairpins, []nftables.SetElement{{Key: pair(addr)}}))
		}
	}
	return errors.Join(errs...)
}

func hosts(backends []netip.AddrPort) map[netip.Addr]bool {
	set := map[netip.Addr]bool{}
	for _, a := range backends {
		set[a.Addr()] = true
	}
	return set
}

func pair(a netip.Addr) []byte { return append(a.AsSlice(), a.AsSlice()...) }

func (b *Balancer) count(g *group, sign int) {
	for addr := range hosts(g.backends) {
		if b.self[addr] += sign; b.self[addr] == 0 {
			delete(b.self, addr)
		}
	}
}

// maxClients is how many clients a group remembers.
const maxClients = 65536

// keepClients makes the map of a sticky group's clients, and removes that of one that is sticky no more.
func (b *Balancer) keepClients(g *group, name string) error {
	if g.sticky > 0 == (g.clients != nil) {
		return nil
	}
	if g.clients != nil {
		b.conn.DelSet(g.clients)
		g.clients = nil
		return nil
	}
	g.clients = &nftables.Set{Table: b.table, Name: name, IsMap: true, Dynamic: true, HasTimeout: true, Size: maxClients,
		KeyType: nftables.TypeIPAddr, DataType: backType}
	return b.conn.AddSet(g.clients, nil)
}

// deleteOp is the third operation of a set's change by a rule, after adding and updating (linux/netfilter/nf_tables.h).
const deleteOp = 2

// rules are those of a group that has backends.
func (b *Balancer) rules(g *group) [][]expr.Any {
	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: reg32b, Specified: true}
	choose := b.choose(g.backends)
	if g.clients == nil {
		return [][]expr.Any{append(choose, dnat)}
	}
	current := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, Concatenation: true, KeyType: backType}
	elements := make([]nftables.SetElement, len(g.backends))
	for i, a := range g.backends {
		elements[i] = nftables.SetElement{Key: value(a)}
	}
	b.addConstant(current, elements)
	client := &expr.Payload{DestRegister: reg4, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	remember := func(op uint32) *expr.Dynset {
		return &expr.Dynset{SrcRegKey: reg4, SrcRegData: reg1, SetName: g.clients.Name, SetID: g.clients.ID, Operation: op, Timeout: g.sticky}
	}
	return [][]expr.Any{
		{
			client,
			&expr.Lookup{SourceRegister: reg4, DestRegister: reg1, IsDestRegSet: true, SetName: g.clients.Name, SetID: g.clients.ID},
			&expr.Lookup{SourceRegister: reg1, SetName: current.Name, SetID: current.ID},
			remember(unix.NFT_DYNSET_OP_UPDATE),
			dnat,
		},
		append(choose, client,
			// An update would keep the backend of before, which is gone.
			&expr.Dynset{SrcRegKey: reg4, SrcRegData: reg1, SetName: g.clients.Name, SetID: g.clients.ID, Operation: deleteOp},
			remember(unix.NFT_DYNSET_OP_ADD), dnat),
	}
}

// value is a backend as maps hold it: each part padded to four bytes.
func value(a netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()), 0, 0)
}

// addConstant adds an anonymous set to the transaction.
func (b *Balancer) addConstant(set *nftables.Set, elements []nftables.SetElement) {
	if err := b.conn.AddSet(set, elements); err != nil {
		panic(err) // only a wrong type of set is refused here, and it is a constant one
	}
}

// choose puts one of the backends, at random, into the first two registers.
func (b *Balancer) choose(backends []netip.AddrPort) []expr.Any {
	if len(backends) == 1 {
		return []expr.Any{
			&expr.Immediate{Register: reg1, Data: backends[0].Addr().AsSlice()},
			&expr.Immediate{Register: reg32b, Data: binary.BigEndian.AppendUint16(nil, backends[0].Port())},
		}
	}
	choice := &nftables.Set{Table: b.table, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: backType}
	elements := make([]nftables.SetElement, len(backends))
	for i, a := range backends {
		elements[i] = nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, uint32(i)), Val: value(a)}
	}
	b.addConstant(choice, elements)
	return []expr.Any{
		&expr.Numgen{Register: reg1, Type: unix.NFT_NG_RANDOM, Modulus: uint32(len(backends))},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: choice.Name, SetID: choice.ID},
	}
}

// DeleteTable removes a table with all that is in it. An absent one is no error.
func DeleteTable(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: delete table %s: %w", name, err)
	}
	return nil
}
