// Package filter decides by tables of the kernel's nftables which packets between addresses pass: each change one transaction
// over netlink. It owns the table that it made, by name, and touches no other; it knows addresses and ports, not what they stand
// for, and runs no program.
package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Hook says which traffic of an address a chain decides about.
type Hook uint8

// The hooks.
const (
	Egress  Hook = iota // what the address sends through the machine
	Ingress             // what is sent to the address through the machine
	Near                // what the address sends to the machine itself, at the addresses in Change.AddMachine
)

// Set is one of the maps in which a chain looks up what to do. They are asked in this order, and the first that has an
// answer decides; behind them stands the chain's default. Each costs one look-up however much is in it.
type Set uint8

// The maps of a chain. The peer is the other end: the source for Ingress, the destination otherwise. Ports are
// destination ports.
const (
	Exact    Set = iota // peer, protocol and port
	Spans               // peer, protocol and a range of ports
	Peers               // peer
	NetSpans            // a range of peers, protocol and a range of ports
	Nets                // a range of peers
	Ports               // protocol and a range of ports
	setCount
)

// Key is a key of one of a chain's maps. Fields that the map does not ask are zero. Ranges of one map do not overlap.
type Key struct {
	Set Set
	// Peer is the peer, or the first of a range whose last is Last.
	Peer, Last netip.Addr
	Proto      uint8
	// Port is the port, or the first of a range whose last is LastPort.
	Port, LastPort uint16
}

// Element is what a map answers: the name of a refusal, or "" to let the packet pass.
type Element struct {
	Key
	Refusal string
}

// ChainChange makes, changes or removes a chain.
type ChainChange struct {
	Name string
	// IPv6 and Hook are what the chain is for; they do not change.
	IPv6 bool
	Hook Hook
	// Default is the refusal for what no map knows, "" to let it pass.
	Default string
	Remove  bool
	// Add puts elements into the maps, Delete, which comes first, takes elements out.
	Add, Delete []Element
}

// Binding has the chain decide about the traffic of an address at a hook.
type Binding struct {
	Hook  Hook
	Addr  netip.Addr
	Chain string // "" for no chain
}

// Refusal is a way in which packets are refused: counted, logged if the Table logs, and dropped.
type Refusal struct {
	Name string
	// Prefix begins the line in the kernel's log.
	Prefix string
}

// Flow is one direction of a flow that is cut: for a moment its packets open no connection.
type Flow struct {
	Src, Dst netip.AddrPort
	Proto    uint8
}

// Change is one transaction: all of it happens at once, or nothing.
type Change struct {
	// Replace drops everything that was there before, whoever made it. No packet meets a state in between: what an address is
	// bound to changes from the old chain to the new one in one look-up.
	Replace        bool
	AddRefusals    []Refusal
	RemoveRefusals []string
	Chains         []ChainChange
	Bindings       []Binding
	AddMachine     []netip.Addr
	RemoveMachine  []netip.Addr
	// AddStandIns and RemoveStandIns are addresses of the machine whose traffic with others is decided about as that which goes
	// through the machine.
	AddStandIns, RemoveStandIns []netip.Addr
	Cut                         []Flow
}

// Empty says that there is nothing to do.
func (c *Change) Empty() bool {
	return !c.Replace && len(c.AddRefusals)+len(c.RemoveRefusals)+len(c.Chains)+len(c.Bindings)+len(c.AddMachine)+len(c.RemoveMachine)+len(c.AddStandIns)+len(c.RemoveStandIns)+len(c.Cut) == 0
}

// Table lets packets between addresses pass or not, for IPv4 and IPv6, in a table of its own. Addresses without a binding are not
// restricted, and replies of connections that were let pass are not either; a packet of a bound address that belongs to no
// connection and opens none is dropped. It is safe for concurrent use.
type Table struct {
	mu       sync.Mutex // guards what follows, and the order of transactions
	conn     *nftables.Conn
	table    *nftables.Table
	log      bool
	chains   map[string]*chainState
	bindings map[place]string
	bound    map[netip.Addr]int // how many bindings each address has
	ids      uint32
	// epoch is in the names of chains and refusals: those of an earlier start stand beside ours until nobody is bound to them.
	epoch int
	fixed map[string]*nftables.Set // the sets that are always there
}

type place struct {
	hook Hook
	addr netip.Addr
}

// chainState is what is known of a chain that is there.
type chainState struct {
	v6      bool
	hook    Hook
	refuse  string // the default
	counts  [setCount]int
	sets    [setCount]*nftables.Set
	changed bool // its rules are not what they have to be
}

// cutTime is how long the packets of a flow that was cut open no connection: long enough for what is on its way.
const cutTime = 2 * time.Second

// socketBuffer is how much a transaction and its answers may take in the socket.
const socketBuffer = 32 << 20

// New is the filter in the table of that name. Nothing is changed before the first Commit, which has to replace
// what is there. With log, refused packets are logged by the kernel, some a second.
func New(name string, log bool) (*Table, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	f := &Table{conn: conn, log: log, table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	f.forget()
	return f, nil
}

// Delete removes the table of that name with all that is in it. An absent one is no error.
func Delete(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: delete table %s: %w", name, err)
	}
	return nil
}

func (f *Table) forget() {
	f.chains, f.bindings, f.bound = map[string]*chainState{}, map[place]string{}, map[netip.Addr]int{}
	f.fixed = map[string]*nftables.Set{}
}

// Commit carries out a change. After an error the kernel has what it had before, and only a change that replaces all may follow.
func (f *Table) Commit(c *Change) error {
	if c.Empty() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var old *inventory
	if c.Replace {
		var err error
		if old, err = f.replace(); err != nil {
			return err
		}
	}
	for _, r := range c.AddRefusals {
		f.addRefusal(r)
	}
	for i := range c.Chains {
		if !c.Chains[i].Remove {
			f.changeChain(&c.Chains[i])
		}
	}
	for name, chain := range f.chains {
		if chain.changed {
			f.writeRules(name, chain)
		}
	}
	if old != nil {
		// The new chains come first, bound to nobody: the kernel reads which generation of rules counts at a packet's start, and which
		// elements do at each look-up, so that a packet in between would be sent to a new chain as it was before, which is empty.
		if err := f.conn.Flush(); err != nil {
			return fmt.Errorf("nftables: change table %s: %w", f.table.Name, err)
		}
		f.unbind(old)
	}
	f.bind(c.Bindings)
	f.machine("machine", c.AddMachine, f.conn.SetAddElements)
	f.machine("machine", c.RemoveMachine, f.conn.SetDeleteElements)
	f.machine("standin", c.AddStandIns, f.conn.SetAddElements)
	f.machine("standin", c.RemoveStandIns, f.conn.SetDeleteElements)
	f.cut(c.Cut)
	for i := range c.Chains {
		if c.Chains[i].Remove {
			f.removeChain(c.Chains[i].Name)
		}
	}
	for _, name := range c.RemoveRefusals {
		f.removeRefusal(name)
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: change table %s: %w", f.table.Name, err)
	}
	if old != nil {
		// Not in the same transaction: a packet that is in an old chain at that moment is to find in it what was there. This waits until
		// no processor is at such a packet; where the kernel cannot (ENOSYS), the time between two transactions has to do.
		_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
		return f.clean(old)
	}
	return nil
}

// Count is how much a refusal has refused.
type Count struct{ Packets, Bytes uint64 }

// Counts reads what each refusal has refused since it was made.
func (f *Table) Counts() (map[string]Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	objects, err := f.conn.GetObjects(f.table)
	if err != nil {
		return nil, fmt.Errorf("nftables: counters of %s: %w", f.table.Name, err)
	}
	counts := map[string]Count{}
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			if name, ok := strings.CutSuffix(c.Name, f.suffix()); ok {
				counts[name] = Count{c.Packets, c.Bytes}
			}
		}
	}
	return counts, nil
}

// suffix is what is behind the names of this start's chains and refusals in the kernel.
func (f *Table) suffix() string { return "_" + strconv.Itoa(f.epoch) }

// in is the name of a chain or refusal in the kernel.
func (f *Table) in(name string) string { return name + f.suffix() }

func (f *Table) nextID() uint32 {
	f.ids++
	return f.ids
}

// must is for what the library refuses when it is called in a wrong way only.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// membarrierGlobal is the command of membarrier(2) that waits until every processor was seen between two things.
const membarrierGlobal = 1

// elementsOnce is how many elements go into one message, whose length is limited to 64 KiB.
const elementsOnce = 256

func eachPart(elements []nftables.SetElement, do func([]nftables.SetElement) error) {
	for part := range slices.Chunk(elements, elementsOnce) {
		must(do(part))
	}
}

func (f *Table) changeChain(c *ChainChange) {
	chain := f.chains[c.Name]
	if chain == nil {
		chain = &chainState{v6: c.IPv6, hook: c.Hook, changed: true}
		f.chains[c.Name] = chain
		f.conn.AddChain(&nftables.Chain{Name: f.in(c.Name), Table: f.table})
	}
	if chain.refuse != c.Default {
		chain.refuse, chain.changed = c.Default, true
	}
	var del, add [setCount][]nftables.SetElement
	for i := range c.Delete {
		e := &c.Delete[i]
		del[e.Set] = append(del[e.Set], f.element(e))
	}
	for i := range c.Add {
		e := &c.Add[i]
		add[e.Set] = append(add[e.Set], f.element(e))
	}
	for kind := range setCount {
		had := chain.counts[kind]
		chain.counts[kind] += len(add[kind]) - len(del[kind])
		if had == 0 && chain.counts[kind] > 0 {
			chain.sets[kind], chain.changed = f.newMap(c.Name, kind, c.IPv6), true
		}
		set := chain.sets[kind]
		eachPart(del[kind], func(part []nftables.SetElement) error { return f.conn.SetDeleteElements(set, part) })
		eachPart(add[kind], func(part []nftables.SetElement) error { return f.conn.SetAddElements(set, part) })
		if had > 0 && chain.counts[kind] == 0 {
			chain.changed = true // writeRules drops the map behind the rules that ask it
		}
	}
}

func (f *Table) removeChain(name string) {
	chain := f.chains[name]
	if chain == nil {
		return
	}
	at := &nftables.Chain{Name: f.in(name), Table: f.table}
	f.conn.FlushChain(at)
	for _, set := range chain.sets {
		if set != nil {
			f.conn.DelSet(set)
		}
	}
	f.conn.DelChain(at)
	delete(f.chains, name)
}

func (f *Table) addRefusal(r Refusal) {
	r.Name = f.in(r.Name)
	f.conn.AddObj(&nftables.CounterObj{Table: f.table, Name: r.Name})
	chain := f.conn.AddChain(&nftables.Chain{Name: r.Name, Table: f.table})
	f.rules(chain, refusalRules(r, f.log))
}

func (f *Table) removeRefusal(name string) {
	f.dropRefusal(f.in(name))
}

func (f *Table) dropRefusal(inKernel string) {
	chain := &nftables.Chain{Name: inKernel, Table: f.table}
	f.conn.FlushChain(chain)
	f.conn.DelChain(chain)
	f.conn.DeleteObject(&nftables.CounterObj{Table: f.table, Name: inKernel})
}

// bind changes who is asked about which address.
func (f *Table) bind(bindings []Binding) {
	before := map[netip.Addr]bool{}
	for _, b := range bindings {
		place := place{b.Hook, b.Addr}
		old := f.bindings[place]
		if old == b.Chain {
			continue
		}
		if _, seen := before[b.Addr]; !seen {
			before[b.Addr] = f.bound[b.Addr] > 0
		}
		set := f.fixed[hookMap(b.Hook, b.Addr.Is6())]
		key := b.Addr.AsSlice()
		if old != "" {
			must(f.conn.SetDeleteElements(set, []nftables.SetElement{{Key: key, VerdictData: jump(f.in(old))}}))
			delete(f.bindings, place)
			f.bound[b.Addr]--
		}
		if b.Chain != "" {
			must(f.conn.SetAddElements(set, []nftables.SetElement{{Key: key, VerdictData: jump(f.in(b.Chain))}}))
			f.bindings[place] = b.Chain
			f.bound[b.Addr]++
		}
	}
	for addr, was := range before {
		is := f.bound[addr] > 0
		if !is {
			delete(f.bound, addr)
		}
		if was != is {
			f.guard(addr, is)
		}
	}
}

// guard notes that an address has chains, or has none any more.
func (f *Table) guard(addr netip.Addr, on bool) {
	change := f.conn.SetDeleteElements
	if on {
		change = f.conn.SetAddElements
	}
	suffix := family(addr.Is6())
	must(change(f.fixed["self"+suffix], []nftables.SetElement{{Key: append(addr.AsSlice(), addr.AsSlice()...)}}))
	must(change(f.fixed["guarded"+suffix], []nftables.SetElement{{Key: addr.AsSlice()}}))
}

func (f *Table) machine(set string, addrs []netip.Addr, change func(*nftables.Set, []nftables.SetElement) error) {
	for _, a := range addrs {
		must(change(f.fixed[set+family(a.Is6())], []nftables.SetElement{{Key: a.AsSlice()}}))
	}
}

func (f *Table) cut(flows []Flow) {
	var elements [2][]nftables.SetElement
	for _, flow := range flows {
		i := 0
		if flow.Src.Addr().Is6() {
			i = 1
		}
		elements[i] = append(elements[i], nftables.SetElement{Key: flow.key(), Timeout: cutTime})
	}
	for i, list := range elements {
		eachPart(list, func(part []nftables.SetElement) error {
			return f.conn.SetAddElements(f.fixed["cut"+family(i == 1)], part)
		})
	}
}

func family(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

func hookMap(h Hook, v6 bool) string {
	return [...]string{"egress", "ingress", "near"}[h] + family(v6)
}
