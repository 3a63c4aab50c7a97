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
	// near, fronts and ports, nearPorts lead to a pool and a plan.
	near, fronts, nearPorts, ports *nftables.Set
	backends                       *nftables.Set // pool, index -> address, port
	members                        *nftables.Set // pool, address, port: of sticky pools
	clients                        *nftables.Set // pool, client -> address, port
	hairpins                       *nftables.Set // backends that may reach themselves
	refused                        *nftables.Set
	limited                        *nftables.Set // fronts that not everybody may use
	allowed                        *nftables.Set // front, range of clients

	addrType  nftables.SetDatatype
	src, dst  uint32 // offsets in the network header
	addrLen   uint32
	afterAddr uint32 // registers behind an address that begins at reg0
	backAddr  uint32 // where a backend's address and port come to be
	backPort  uint32
}

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

// The places of what is known of a packet. The pool and what follows it are the key of the maps of backends and members.
var (
	poolReg = r(8)
	planReg = r(9) // until a plan is chosen; then the index of the backend
)

func openKernel(name string) (*kernel, error) {
	k := &kernel{table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	integer := nftables.TypeInteger
	route := nftables.MustConcatSetType(integer, integer)
	k.plans = &nftables.Set{Table: k.table, Name: "plans", IsMap: true, KeyType: integer, DataType: nftables.TypeVerdict}
	for i, f := range []*familyMaps{
		{number: 4, proto: unix.NFPROTO_IPV4, addrType: nftables.TypeIPAddr, src: 12, dst: 16, addrLen: 4},
		{number: 6, proto: unix.NFPROTO_IPV6, addrType: nftables.TypeIP6Addr, src: 8, dst: 24, addrLen: 16},
	} {
		f.afterAddr = f.addrLen / 4
		f.backAddr, f.backPort = r(9), r(9+f.afterAddr)
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
		f.near, f.fronts = mapping("near", front, route), mapping("fronts", front, route)
		f.nearPorts, f.ports = mapping("near-ports", port, route), mapping("ports", port, route)
		f.backends = mapping("backends", nftables.MustConcatSetType(integer, integer), backend)
		f.members = set("members", nftables.MustConcatSetType(integer, f.addrType, nftables.TypeInetService))
		f.members.Concatenation = true
		f.clients = mapping("clients", nftables.MustConcatSetType(integer, f.addrType), backend)
		f.clients.Dynamic, f.clients.HasTimeout, f.clients.Size = true, true, maxClients
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

// maxClients is how many clients of sticky fronts are remembered in each family.
const maxClients = 1 << 20

func (f *familyMaps) sets() []*nftables.Set {
	return []*nftables.Set{f.near, f.fronts, f.nearPorts, f.ports, f.backends, f.members, f.clients, f.hairpins, f.refused, f.limited, f.allowed}
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
	// orphans are sticky pools that are no more.
	orphans []orphan
}

type orphan struct {
	pool   uint32
	family uint8
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

func (t *transaction) backends(family uint8) *nftables.Set { return t.kernel.family(family).backends }
func (t *transaction) members(family uint8) *nftables.Set  { return t.kernel.family(family).members }
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
func (t *transaction) limit(key frontKey, allowed []netip.Prefix, yes bool) {
	f := t.kernel.family(key.family)
	change := t.remove
	if yes {
		change = t.add
	}
	change(f.limited, element{key: key.bytes()})
	for _, p := range disjoint(allowed, key.family) {
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

func frontElement(key frontKey, v value) element {
	return element{key: key.bytes(), value: append(number(v.pool), number(v.plan.id)...)}
}

func backendElement(pool uint32, index int, a netip.AddrPort) element {
	return element{key: append(number(pool), number(uint32(index))...), value: addrPort(a)}
}

func memberElement(pool uint32, a netip.AddrPort) element {
	return element{key: append(number(pool), addrPort(a)...)}
}

// pair is an address twice: the source and destination of what reaches itself.
func pair(a netip.Addr) []byte { return append(a.AsSlice(), a.AsSlice()...) }

func pairElement(a netip.Addr) element { return element{key: pair(a)} }

// forgetTries is how often the clients of pools that are no more are looked for: one of them may time out meanwhile.
const forgetTries = 5

// forgetClients removes what clients of sticky pools that are no more had.
func (k *kernel) forgetClients(orphans []orphan) error {
	if len(orphans) == 0 {
		return nil
	}
	gone := map[orphan]bool{}
	for _, o := range orphans {
		gone[o] = true
	}
	var err error
	for _, f := range k.families {
		for range forgetTries {
			var all []nftables.SetElement
			if all, err = k.conn.GetSetElements(f.clients); err != nil {
				break
			}
			var doomed []nftables.SetElement
			for _, e := range all {
				if len(e.Key) >= 4 && gone[orphan{binary.NativeEndian.Uint32(e.Key), f.number}] {
					doomed = append(doomed, nftables.SetElement{Key: e.Key})
				}
			}
			if len(doomed) == 0 {
				break
			}
			for part := range slices.Chunk(doomed, inMessage) {
				err = errors.Join(err, k.conn.SetDeleteElements(f.clients, part))
			}
			if err = errors.Join(err, k.conn.Flush()); err == nil {
				break
			}
			if opened := errors.Join(k.close(), k.open()); opened != nil {
				return opened
			}
		}
		if err != nil {
			return fmt.Errorf("nftables: forget clients: %w", err)
		}
	}
	return nil
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
	id    uint32
	chain *nftables.Chain
	users int // fronts that lead to it
}
