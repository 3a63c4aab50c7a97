// Package conntrack reads and deletes the entries of the kernel's connection tracking, over
// netlink. The kernel sorts out which entries are meant (CTA_FILTER, Linux 5.8), so that what is asked for is all that is
// copied, however many connections the machine has.
//
// It keeps nothing between calls, knows addresses and ports, not what they stand for, and touches the entries
// of the network namespace in which the Table was opened and no others.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Tuple is one direction of a flow. In a Filter, what is zero means any: an invalid address, protocol 0, port 0.
type Tuple struct {
	Src, Dst netip.Addr
	// Proto is the IP protocol number.
	Proto uint8
	// SrcPort and DstPort are 0 for protocols without ports.
	SrcPort, DstPort uint16
}

// Flow is one entry of the table.
type Flow struct {
	// Original is what the first packet had, before any translation; Reply is what answers have, as they come in: after
	// destination NAT, Reply.Src and Reply.SrcPort are the backend.
	Original, Reply Tuple
	// Zone is the conntrack zone, 0 by default.
	Zone uint16
	Mark uint32
	// Timeout is how long the entry stays if no packet comes.
	Timeout time.Duration

	id     uint32
	tuple  []byte // CTA_TUPLE_ORIG as the kernel gave it
	family uint8
}

// Filter says which entries are meant: those whose two directions both agree with it. The zero Filter means all.
// All addresses in it are of one family; without any, entries of both families are meant.
type Filter struct {
	Original, Reply Tuple
	// Family is AF_INET or AF_INET6 where there is no address; 0 means both, and then the kernel has to give all entries.
	Family uint8
}

// Table is an open connection to the kernel's table. It is safe for concurrent use.
type Table struct {
	mu   sync.Mutex // one request at a time
	conn *netlink.Conn
}

// timeout bounds the wait for one answer of the kernel.
const timeout = 5 * time.Second

// Open connects to the table of the network namespace that the calling thread is in.
func Open() (*Table, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	// A long list must not overrun the socket; if it does all the same, the read says so and is made again.
	_ = conn.SetReadBuffer(4 << 20)
	return &Table{conn: conn}, nil
}

// Close ends the connection.
func (t *Table) Close() error { return t.conn.Close() }

// listTries is how often a list is asked for that the kernel could not deliver as a whole.
const listTries = 5

// List returns the entries that the filter means. The table changes while it is read: an entry that comes meanwhile may be missing.
func (t *Table) List(f Filter) ([]Flow, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.list(f)
}

func (t *Table) list(f Filter) ([]Flow, error) {
	request, err := f.request()
	if err != nil {
		return nil, fmt.Errorf("conntrack: list: %w", err)
	}
	for try := 1; ; try++ {
		if err := t.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
			return nil, fmt.Errorf("conntrack: list: %w", err)
		}
		answers, err := t.conn.Execute(request)
		if errors.Is(err, unix.ENOBUFS) && try < listTries {
			t.drain()
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("conntrack: list: %w", err)
		}
		flows := make([]Flow, 0, len(answers))
		for _, m := range answers {
			flow, err := parse(m.Data)
			if err != nil {
				return nil, fmt.Errorf("conntrack: list: %w", err)
			}
			if f.means(&flow) {
				flows = append(flows, flow)
			}
		}
		return flows, nil
	}
}

// drain reads what is left of an answer that was overrun.
func (t *Table) drain() {
	_ = t.conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
	for {
		if _, err := t.conn.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// deletions is how many entries are deleted by one message to the kernel.
const deletions = 64

// Delete deletes exactly these entries, which List gave, and returns how many it deleted: one that is gone, or whose place a later
// connection has taken, is passed over.
func (t *Table) Delete(flows ...Flow) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.delete(flows)
}

func (t *Table) delete(flows []Flow) (int, error) {
	deleted := 0
	for len(flows) > 0 {
		part := flows[:min(len(flows), deletions)]
		flows = flows[len(part):]
		n, err := t.deletePart(part)
		deleted += n
		if err != nil {
			return deleted, fmt.Errorf("conntrack: delete: %w", err)
		}
	}
	return deleted, nil
}

func (t *Table) deletePart(flows []Flow) (deleted int, err error) {
	if err := t.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	for i := range flows {
		message, err := flows[i].deletion()
		if err != nil {
			return deleted, err
		}
		switch _, err := t.conn.Execute(message); {
		case err == nil:
			deleted++
		case !errors.Is(err, unix.ENOENT):
			return deleted, err
		}
	}
	return deleted, nil
}

// DeleteMatching deletes the entries that any of the filters means and, if match is not nil, for which it answers true. It returns
// how many it deleted.
func (t *Table) DeleteMatching(match func(*Flow) bool, filters ...Filter) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	deleted := 0
	for _, f := range filters {
		flows, err := t.list(f)
		if err != nil {
			return deleted, err
		}
		var doomed []Flow
		for i := range flows {
			if match == nil || match(&flows[i]) {
				doomed = append(doomed, flows[i])
			}
		}
		n, err := t.delete(doomed)
		deleted += n
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// means tells whether a flow agrees with the filter.
func (f Filter) means(flow *Flow) bool {
	if f.Family != 0 && f.Family != flow.family {
		return false
	}
	return f.Original.means(flow.Original) && f.Reply.means(flow.Reply)
}

func (t Tuple) means(o Tuple) bool {
	return (!t.Src.IsValid() || t.Src == o.Src) && (!t.Dst.IsValid() || t.Dst == o.Dst) && (t.Proto == 0 || t.Proto == o.Proto) &&
		(t.SrcPort == 0 || t.SrcPort == o.SrcPort) && (t.DstPort == 0 || t.DstPort == o.DstPort)
}

// String is "tcp-number src:port->dst:port".
func (t Tuple) String() string {
	return fmt.Sprintf("%d %s->%s", t.Proto, netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort))
}

// be16 is a port on the wire.
func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
