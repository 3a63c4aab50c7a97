package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// sockets are large enough for a transaction of many elements, and for an answer to each of its messages.
const (
	sendBuffer    = 64 << 20
	receiveBuffer = 8 << 20
)

// maps of one family, and what its packets look like.
type familyMaps struct {
	number uint8 // 4 or 6
	proto  byte  // as the kernel names the family
	// near, fronts and nearPorts, ports lead to a plan. A front of an address is address, protocol, port, of all addresses protocol, port.
	near, fronts, nearPorts, ports *nftables.Set
	addresses, all                 backendMaps   // of the fronts with an address, and of the others
	hairpins                       *nftables.Set // backends that may reach themselves
	refused                        *nftables.Set
	limited                        *nftables.Set // fronts that not everybody may use
	allowed                        *nftables.Set // front, range of clients

	addrType  nftables.SetDatatype
	src, dst  uint32 // offsets in the network header
	addrLen   uint32
	afterAddr uint32 // registers behind an address that begins at reg0
}

// backendMaps lead from fronts to backends.
type backendMaps struct {
	backends *nftables.Set // front, index or token -> address, port
	tokens   *nftables.Set // front, index -> token: of sticky pools
	clients  *nftables.Set // front, client -> token
}

func (m backendMaps) sets() []*nftables.Set { return []*nftables.Set{m.backends, m.tokens, m.clients} }

// kernel is the table as the kernel has it.
type kernel struct {
	conn     *nftables.Conn
	table    *nftables.Table
	plans    *nftables.Set // plan -> goto
	families [2]*familyMaps
}

// reg1 is the first register of 16 bytes.
const reg1 = unix.NFT_REG_1

// Registers of four bytes: r(0) is the first.
func r(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// The places of what is not part of a key. A key begins at r(0) and has ten registers at most.
var (
	backendReg = r(10) // address and port of a backend
	numberReg  = r(15)
)

// Numbers that a packet's priority has from one rule to the next: of a plan, of a backend's index, or a token. No traffic class has such a
// number, and only who may administer the network can give it to a packet; it is taken away before the packet leaves.
const (
	numberMask = 0xe000_0000
	firstPlan  = 0xc000_0000
	plans      = 0x0800_0000
	// firstIndex is of the first backend, nearIndex of a Near front's: one that is not may have others.
	firstIndex = 0xc800_0000
	nearIndex  = 0xcc00_0000
	firstToken = 0xd000_0000
	tokens     = 0x1000_0000
)

func openKernel(name string) (*kernel, error) {
	k := &kernel{table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	number := nftables.TypeClassID // what a priority is to nft, which does not print integers
	k.plans = &nftables.Set{Table: k.table, Name: "plans", IsMap: true, KeyType: number, DataType: nftables.TypeVerdict}
	for i, f := range []*familyMaps{
		{number: 4, proto: unix.NFPROTO_IPV4, addrType: nftables.TypeIPAddr, src: 12, dst: 16, addrLen: 4},
		{number: 6, proto: unix.NFPROTO_IPV6, addrType: nftables.TypeIP6Addr, src: 8, dst: 24, addrLen: 16},
	} {
		f.afterAddr = f.addrLen / 4
		front := nftables.MustConcatSetType(f.addrType, nftables.TypeInetProto, nftables.TypeInetService)
		port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		backend := nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)
		set := func(name string, key nftables.SetDatatype) *nftables.Set {
			return &nftables.Set{Table: k.table, Name: fmt.Sprint(name, f.number), KeyType: key}
		}
		mapping := func(name string, key, data nftables.SetDatatype) *nftables.Set {
			s := set(name, key)
			s.IsMap, s.DataType, s.Concatenation = true, data, true
			return s
		}
		maps := func(prefix string, key ...nftables.SetDatatype) backendMaps {
			indexed, client := nftables.MustConcatSetType(append(key, number)...), nftables.MustConcatSetType(append(key, f.addrType)...)
			m := backendMaps{mapping(prefix+"backends", indexed, backend), mapping(prefix+"tokens", indexed, number), mapping(prefix+"clients", client, number)}
			m.clients.Dynamic, m.clients.HasTimeout, m.clients.Size = true, true, maxClients
			return m
		}
		f.near, f.fronts = mapping("near", front, number), mapping("fronts", front, number)
		f.nearPorts, f.ports = mapping("near-ports", port, number), mapping("ports", port, number)
		f.addresses = maps("", f.addrType, nftables.TypeInetProto, nftables.TypeInetService)
		f.all = maps("port-", nftables.TypeInetProto, nftables.TypeInetService)
		f.hairpins = set("hairpins", nftables.MustConcatSetType(f.addrType, f.addrType))
		f.hairpins.Concatenation = true
		f.refused = set("refused", f.addrType)
		f.limited = set("limited", front)
		f.limited.Concatenation = true
		f.allowed = set("allowed", nftables.MustConcatSetType(f.addrType, nftables.TypeInetProto, nftables.TypeInetService, f.addrType))
		f.allowed.Concatenation, f.allowed.Interval = true, true
		k.families[i] = f
	}
	return k, k.open()
}

// maxClients is how many clients of sticky fronts are remembered in each map.
const maxClients = 1 << 20

func (f *familyMaps) sets() []*nftables.Set {
	return append(append(f.addresses.sets(), f.all.sets()...), f.near, f.fronts, f.nearPorts, f.ports, f.hairpins, f.refused, f.limited, f.allowed)
}

func (k *kernel) open() error {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(receiveBuffer))
	}))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	k.conn = conn
	return nil
}

func (k *kernel) close() error { return k.conn.CloseLasting() }

// family is 4 or 6.
func (k *kernel) family(n uint8) *familyMaps { return k.families[(n-4)/2] }

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// element is one of a set or map.
type element struct{ key, end, value []byte }

type elementKey struct {
	set *nftables.Set
	key string
}

// edit is what becomes of an element in a transaction.
type edit struct {
	was, is bool
	before  []byte // value, of maps
	after   element
}

// transaction collects changes; what was added and removed again is not sent.
type transaction struct {
	kernel *kernel
	edits  map[elementKey]*edit
	order  []elementKey
	size   int // elements
	// doomed are chains that nothing leads to once the elements are changed.
	doomed []*nftables.Chain
	// orphans are fronts that are sticky no more.
	orphans []frontKey
}

func (k *kernel) begin() *transaction {
	return &transaction{kernel: k, edits: map[elementKey]*edit{}}
}

func (t *transaction) add(s *nftables.Set, e element) {
	key := elementKey{s, string(e.key) + string(e.end)}
	d := t.edits[key]
	if d == nil {
		d = &edit{}
		t.edits[key] = d
		t.order = append(t.order, key)
	}
	d.is, d.after = true, e
	t.size++
}

func (t *transaction) remove(s *nftables.Set, e element) {
	key := elementKey{s, string(e.key) + string(e.end)}
	d := t.edits[key]
	if d == nil {
		d = &edit{was: true, before: e.value, after: e}
		t.edits[key] = d
		t.order = append(t.order, key)
	}
	d.is = false
	t.size++
}

// inMessage is how many elements one message has: its length is told in 16 bits.
const inMessage = 300

// send carries the transaction out.
func (t *transaction) send() error {
	conn := t.kernel.conn
	removed, added := map[*nftables.Set][]nftables.SetElement{}, map[*nftables.Set][]nftables.SetElement{}
	var sets []*nftables.Set
	for _, key := range t.order {
		d := t.edits[key]
		if d.was == d.is && slices.Equal(d.before, d.after.value) {
			continue
		}
		if removed[key.set] == nil && added[key.set] == nil {
			sets = append(sets, key.set)
		}
		if d.was {
			removed[key.set] = append(removed[key.set], nftables.SetElement{Key: d.after.key, KeyEnd: d.after.end})
		}
		if d.is {
			added[key.set] = append(added[key.set], nftables.SetElement{Key: d.after.key, KeyEnd: d.after.end, Val: d.after.value})
		}
	}
	var errs []error
	for _, s := range sets {
		for part := range slices.Chunk(removed[s], inMessage) {
			errs = append(errs, conn.SetDeleteElements(s, part))
		}
		for part := range slices.Chunk(added[s], inMessage) {
			errs = append(errs, conn.SetAddElements(s, part))
		}
	}
	for _, c := range t.doomed {
		conn.FlushChain(c)
		conn.DelChain(c)
	}
	err := errors.Join(errs...)
	if flushed := conn.Flush(); err == nil {
		err = flushed
	}
	if err != nil {
		// Answers to what was sent may still come: they must not be taken for those of the next transaction.
		return errors.Join(err, t.kernel.close(), t.kernel.open())
	}
	return nil
}

func (t *transaction) hairpins(a netip.Addr) *nftables.Set {
	return t.kernel.family(familyOf(a)).hairpins
}
func (t *transaction) refusals(a netip.Addr) *nftables.Set {
	return t.kernel.family(familyOf(a)).refused
}

// place says which of a family's maps of fronts is meant.
type place struct{ port, near bool }

func (key frontKey) place() place { return place{!key.addr.IsValid(), key.near} }

func (f *familyMaps) at(p place) *nftables.Set {
	switch {
	case p.port && p.near:
		return f.nearPorts
	case p.port:
		return f.ports
	case p.near:
		return f.near
	}
	return f.fronts
}

func (t *transaction) fronts(key frontKey) *nftables.Set {
	return t.kernel.family(key.family).at(key.place())
}

// limit adds or removes the clients that may use a front.
func (t *transaction) limit(key frontKey, l *limit, yes bool) {
	if l == nil {
		return
	}
	f := t.kernel.family(key.family)
	change := t.remove
	if yes {
		change = t.add
	}
	change(f.limited, element{key: key.bytes()})
	for _, p := range disjoint(l.allowed, key.family) {
		from := p.Masked().Addr()
		change(f.allowed, element{key: append(key.bytes(), from.AsSlice()...), end: append(key.bytes(), last(p).AsSlice()...)})
	}
}

// disjoint are the ranges of one family without those that lie within others, which the kernel would refuse.
func disjoint(all []netip.Prefix, family uint8) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range all {
		within := familyOf(p.Addr()) != family
		for j, o := range all {
			if i != j && o.Overlaps(p) && (o.Bits() < p.Bits() || o.Bits() == p.Bits() && j < i) {
				within = true
			}
		}
		if !within {
			out = append(out, p)
		}
	}
	return out
}

// last is the highest address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Each part of a key or value is padded to four bytes.
func number(n uint32) []byte    { return binary.NativeEndian.AppendUint32(nil, n) }
func portBytes(n uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, n), 0, 0) }
func addrPort(a netip.AddrPort) []byte {
	return append(a.Addr().AsSlice(), portBytes(a.Port())...)
}

func (key frontKey) bytes() []byte {
	var b []byte
	if key.addr.IsValid() {
		b = key.addr.AsSlice()
	}
	return append(append(b, key.proto, 0, 0, 0), portBytes(key.port)...)
}

// lead brings a front from where it leads to where it should.
func (t *transaction) lead(key frontKey, was, is value) {
	f := t.kernel.family(key.family)
	name := key.bytes()
	if was.plan != is.plan {
		if was.plan != nil {
			t.remove(t.fronts(key), element{key: name, value: number(was.plan.id)})
		}
		if is.plan != nil {
			t.add(t.fronts(key), element{key: name, value: number(is.plan.id)})
		}
	}
	if was.limit != is.limit {
		t.limit(key, was.limit, false)
		t.limit(key, is.limit, true)
	}
	if was.pool == is.pool {
		return
	}
	t.leadTo(f.maps(key.place()), name, key.firstIndex(), was.pool, is.pool)
	if was.pool.isSticky() && !is.pool.isSticky() {
		t.orphans = append(t.orphans, key)
	}
}

// leadTo changes the elements of a front that are of a pool.
func (t *transaction) leadTo(maps backendMaps, name []byte, first uint32, was, is *pool) {
	element := func(n uint32, value []byte) element {
		return element{key: append(slices.Clip(name), number(n)...), value: value}
	}
	had, has := was.byToken(), is.byToken()
	for i := range max(was.size(), is.size()) {
		at := first + uint32(i)
		before, after := was.at(i), is.at(i)
		if before != after && before.IsValid() {
			t.remove(maps.backends, element(at, addrPort(before)))
		}
		if before != after && after.IsValid() {
			t.add(maps.backends, element(at, addrPort(after)))
		}
		gone, come := was.token(i), is.token(i)
		if gone == come {
			continue
		}
		if gone != 0 {
			t.remove(maps.tokens, element(at, number(gone)))
			if !has[gone].IsValid() {
				t.remove(maps.backends, element(gone, addrPort(before)))
			}
		}
		if come != 0 {
			t.add(maps.tokens, element(at, number(come)))
			if !had[come].IsValid() {
				t.add(maps.backends, element(come, addrPort(after)))
			}
		}
	}
}

func (p *pool) size() int {
	if p == nil {
		return 0
	}
	return len(p.backends)
}

// at is the backend of an index, the zero value if there is none.
func (p *pool) at(i int) netip.AddrPort {
	if i >= p.size() {
		return netip.AddrPort{}
	}
	return p.backends[i].Addr
}

// token is that of an index, 0 if there is none.
func (p *pool) token(i int) uint32 {
	if !p.isSticky() || i >= len(p.tokens) {
		return 0
	}
	return p.tokens[i]
}

func (p *pool) byToken() map[uint32]netip.AddrPort {
	if !p.isSticky() {
		return nil
	}
	all := make(map[uint32]netip.AddrPort, len(p.tokens))
	for i, token := range p.tokens {
		all[token] = p.backends[i].Addr
	}
	return all
}

func (key frontKey) firstIndex() uint32 {
	if key.near {
		return nearIndex
	}
	return firstIndex
}

func (f *familyMaps) maps(p place) backendMaps {
	if p.port {
		return f.all
	}
	return f.addresses
}

// pair is an address twice: the source and destination of what reaches itself.
func pair(a netip.Addr) []byte { return append(a.AsSlice(), a.AsSlice()...) }

func pairElement(a netip.Addr) element { return element{key: pair(a)} }

// forgetTries is how often the clients of pools that are no more are looked for: one of them may time out meanwhile.
const forgetTries = 5

// forgetClients removes what is remembered of clients of fronts that are sticky no more.
func (k *kernel) forgetClients(orphans []frontKey) error {
	gone := map[*nftables.Set]map[string]bool{}
	for _, key := range orphans {
		clients := k.family(key.family).maps(key.place()).clients
		if gone[clients] == nil {
			gone[clients] = map[string]bool{}
		}
		gone[clients][string(key.bytes())] = true
	}
	var errs []error
	for clients, names := range gone {
		errs = append(errs, k.forgetIn(clients, names))
	}
	return errors.Join(errs...)
}

func (k *kernel) forgetIn(clients *nftables.Set, names map[string]bool) (err error) {
	for range forgetTries {
		var all []nftables.SetElement
		if all, err = k.conn.GetSetElements(clients); err != nil {
			break
		}
		var doomed []nftables.SetElement
		for _, e := range all {
			if names[string(e.Key[:max(0, len(e.Key)-k.addrLen(clients))])] {
				doomed = append(doomed, nftables.SetElement{Key: e.Key})
			}
		}
		if len(doomed) == 0 {
			return nil
		}
		for part := range slices.Chunk(doomed, inMessage) {
			err = errors.Join(err, k.conn.SetDeleteElements(clients, part))
		}
		if err = errors.Join(err, k.conn.Flush()); err == nil {
			return nil
		}
		if opened := errors.Join(k.close(), k.open()); opened != nil {
			return opened
		}
	}
	return fmt.Errorf("nftables: forget clients: %w", err)
}

// addrLen is the length of a client's address in a set.
func (k *kernel) addrLen(s *nftables.Set) int {
	if f := k.families[1]; s == f.addresses.clients || s == f.all.clients {
		return int(f.addrLen)
	}
	return int(k.families[0].addrLen)
}

// DeleteTable removes a table with all that is in it. An absent one is no error.
func DeleteTable(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4} {
		table := &nftables.Table{Name: name, Family: family}
		conn.AddTable(table) // so that the deletion finds one
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: delete table %s: %w", name, err)
	}
	return nil
}

// within compares an address of the network header with a range.
func (f *familyMaps) within(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, f.addrLen)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.addrLen, Mask: mask, Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	}
}

// planKey says what a plan's chain does.
type planKey struct {
	family uint8
	place  place
	count  int
	sticky time.Duration
	source Source
	empty  Empty
}

type plan struct {
	id     uint32
	chain  *nftables.Chain
	memory *memory // of sticky ones
	users  int     // fronts that lead to it
}

// memory are the chains of sticky plans of the same time.
type memory struct {
	key memoryKey
	// recall goes where a client was last, if that is still there; learn has it remember the backend of an index.
	recall, learn *nftables.Chain
	users         int // plans
}

type memoryKey struct {
	family uint8
	port   bool
	sticky time.Duration
}
