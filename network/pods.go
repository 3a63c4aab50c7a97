package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"coracle.dev/coracle/linux/link"
)

// Pods hands out links and addresses to the sandboxes of one node. It is safe
// for concurrent use.
type Pods struct {
	prefix string // of the names of our links
	mtu    int

	mu     sync.Mutex // guards what is below; never held during a netlink call
	ranges []*addresses
	bySand map[string][]netip.Addr
	before []Hook
	after  []Hook
}

// Hook does something about a sandbox that is being connected or was disconnected. It has to end with its context.
type Hook func(ctx context.Context, sandboxID string, addrs []netip.Addr) error

// BeforeUp has h called before the link of every sandbox that is attached from now on exists, in the order in which hooks
// were added: nothing that runs in the sandbox can have sent or received a packet. If one fails, the sandbox is not connected,
// and the AfterDown hooks are called for it. Sandboxes that were connected before (see Connected) are not told.
func (p *Pods) BeforeUp(h Hook) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = append(p.before, h)
}

// AfterDown has h called when the link of a sandbox is gone and before its addresses can go to another, in the reverse of the
// order in which hooks were added. What fails is tried again with the next Detach.
func (p *Pods) AfterDown(h Hook) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = append([]Hook{h}, p.after...)
}

func (p *Pods) hooks(list *[]Hook) []Hook {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(*list)
}

// Connected lists the sandboxes that have addresses, and which.
func (p *Pods) Connected() map[string][]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.bySand)
}

// LinkName is the name of the host end of a sandbox's link, whether it is there or not.
func (p *Pods) LinkName(sandboxID string) string { return p.linkName(sandboxID) }

// addresses hands out the addresses of one range, the longest unused first, so that an
// address that was given back is not met again at once by its old peers.
type addresses struct {
	prefix netip.Prefix
	next   netip.Addr
	used   map[netip.Addr]string // sandbox by address
}

// ErrNoAddress says that every address of the node's range is in use.
var ErrNoAddress = errors.New("no free address in the node's pod range")

var errNoRange = errors.New("the node has no pod range yet")

// NewPods takes over the pods of this instance that are connected already.
// instance is a short hexadecimal name that tells the links of two instances on one
// machine apart.
func NewPods(instance string, mtu int) (*Pods, error) {
	p := &Pods{prefix: linkPrefix(instance), mtu: mtu, bySand: map[string][]netip.Addr{}}
	found, err := link.Pairs(p.prefix)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		p.bySand[f.Alias] = f.Addrs
	}
	return p, nil
}

func linkPrefix(instance string) string { return link.InstancePrefix(instance) }

// SetRanges sets the node's ranges (Node.spec.podCIDRs). Addresses in use outside
// of them stay with their pods.
func (p *Pods) SetRanges(ranges []netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ranges = nil
	for _, r := range ranges {
		a := &addresses{prefix: r.Masked(), used: map[netip.Addr]string{}}
		a.next = a.first()
		for sandbox, addrs := range p.bySand {
			for _, addr := range addrs {
				if r.Contains(addr) {
					a.used[addr] = sandbox
				}
			}
		}
		p.ranges = append(p.ranges, a)
	}
	for sandbox, addrs := range p.bySand {
		p.bySand[sandbox] = inOrder(addrs, ranges)
	}
}

// inOrder sorts addresses that were read back as their ranges are: that of the preferred family comes first.
func inOrder(addrs []netip.Addr, ranges []netip.Prefix) []netip.Addr {
	place := func(a netip.Addr) int {
		if i := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }); i >= 0 {
			return i
		}
		return len(ranges)
	}
	addrs = slices.Clone(addrs)
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return place(a) - place(b) })
	return addrs
}

// first is the lowest address that pods get: the network's own and the one after it,
// by custom the gateway's, are left out.
func (a *addresses) first() netip.Addr { return a.prefix.Addr().Next().Next() }

func (a *addresses) take(sandbox string) (netip.Addr, error) {
	start := a.next
	for {
		addr := a.next
		a.next = a.next.Next()
		// The last address of an IPv4 range is its broadcast address.
		if !a.prefix.Contains(a.next) || (addr.Is4() && !a.prefix.Contains(a.next.Next())) {
			a.next = a.first()
		}
		if _, taken := a.used[addr]; !taken {
			a.used[addr] = sandbox
			return addr, nil
		}
		if a.next == start {
			return netip.Addr{}, fmt.Errorf("%w %s", ErrNoAddress, a.prefix)
		}
	}
}

// Attach gives a sandbox its link and one address from each range, and returns
// the addresses. A sandbox that is connected already keeps what it has. On failure nothing
// is left.
func (p *Pods) Attach(ctx context.Context, sandboxID, netnsPath, hostname string) ([]netip.Addr, error) {
	return p.AttachAs(ctx, sandboxID, netnsPath, hostname, "eth0")
}

// AttachAs is Attach with a name for the link inside of the sandbox.
func (p *Pods) AttachAs(ctx context.Context, sandboxID, netnsPath, hostname, ifName string) ([]netip.Addr, error) {
	addrs, fresh, err := p.reserve(sandboxID)
	if err != nil || !fresh {
		return addrs, err
	}
	for _, h := range p.hooks(&p.before) {
		if err = h(ctx, sandboxID, addrs); err != nil {
			break
		}
	}
	if err == nil {
		err = link.Create(link.Pair{Host: p.linkName(sandboxID), Inside: ifName, Alias: sandboxID,
			NetNS: netnsPath, Addrs: addrs, MTU: p.mtu})
	}
	if err != nil {
		err = fmt.Errorf("connect pod %s: %w", hostname, err)
		return nil, errors.Join(err, p.letGo(context.WithoutCancel(ctx), sandboxID))
	}
	return addrs, nil
}

// letGo gives a sandbox's addresses back once those who were told of them know.
func (p *Pods) letGo(ctx context.Context, sandbox string) error {
	p.mu.Lock()
	addrs, after := p.bySand[sandbox], slices.Clone(p.after)
	p.mu.Unlock()
	if len(addrs) > 0 {
		var errs []error
		for _, h := range after {
			errs = append(errs, h(ctx, sandbox, addrs))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	p.release(sandbox)
	return nil
}

func (p *Pods) reserve(sandbox string) (addrs []netip.Addr, fresh bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.bySand[sandbox]; len(have) > 0 {
		return have, false, nil
	}
	if len(p.ranges) == 0 {
		return nil, false, errNoRange
	}
	for _, r := range p.ranges {
		addr, err := r.take(sandbox)
		if err != nil {
			for i, given := range addrs {
				delete(p.ranges[i].used, given)
			}
			return nil, false, err
		}
		addrs = append(addrs, addr)
	}
	p.bySand[sandbox] = addrs
	return addrs, true, nil
}

func (p *Pods) release(sandbox string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, addr := range p.bySand[sandbox] {
		for _, r := range p.ranges {
			delete(r.used, addr)
		}
	}
	delete(p.bySand, sandbox)
}

// Detach removes what Attach made. A sandbox that has no link is no error.
func (p *Pods) Detach(ctx context.Context, sandboxID, _ string) error {
	if err := link.Remove(p.linkName(sandboxID)); err != nil {
		return err
	}
	return p.letGo(ctx, sandboxID)
}

// Sandboxes lists the sandboxes that are connected.
func (p *Pods) Sandboxes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for id := range p.bySand {
		ids = append(ids, id)
	}
	return ids
}

// linkName derives the host end's name from the sandbox, so that it can be found
// without a record.
func (p *Pods) linkName(sandbox string) string { return link.HostName(p.prefix, sandbox) }

// Ready says why no sandbox can be connected: there is no range yet, or one of them has no address left.
func (p *Pods) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ranges) == 0 {
		return errNoRange
	}
	for _, r := range p.ranges {
		if !r.free() {
			return fmt.Errorf("%w %s", ErrNoAddress, r.prefix)
		}
	}
	return nil
}

// free tells whether there is an address left.
func (a *addresses) free() bool {
	spare := 2 // the network's and the gateway's
	if a.prefix.Addr().Is4() {
		spare++ // that for broadcasts
	}
	bits := a.prefix.Addr().BitLen() - a.prefix.Bits()
	return bits > 30 || len(a.used) < 1<<bits-spare
}

// RemoveAll removes every link of an instance, whatever state it was left in.
func RemoveAll(instance string) error {
	found, err := link.Pairs(linkPrefix(instance))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range found {
		errs = append(errs, link.Remove(f.Host))
	}
	return errors.Join(errs...)
}
