package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

var (
	errNoUpstream = errors.New("there is no upstream")
	errNoAnswer   = errors.New("what came is no answer to the question")
)

// inquiry is a question to upstreams. It has all that they are told of what a client asked: not its address or the part of the network that
// it is in, nor any option of its own, on which an answer that is kept for everybody must not depend.
type inquiry struct {
	name  string // in lower case
	qtype uint16
	// dnssec asks for signatures, unchecked for what they do not prove.
	dnssec, unchecked bool
}

// query is the message for it. With options, it says what datagrams can be taken; without, the upstream is one that knows no options.
func (i inquiry) query(id uint16, options bool) *dns.Msg {
	m := &dns.Msg{Question: []dns.Question{{Name: i.name, Qtype: i.qtype, Qclass: dns.ClassINET}}}
	m.Id, m.RecursionDesired, m.CheckingDisabled = id, true, i.unchecked
	m.AuthenticatedData = true // "tell me whether you validated it": the answer is kept for those who want to know too
	if options {
		m.SetEdns0(datagramSize, i.dnssec)
	}
	return m
}

// exchanger asks upstreams, and watches those that do not answer.
type exchanger struct {
	group  sync.WaitGroup // of probes
	ctx    context.Context
	cancel context.CancelFunc
}

// ask asks one upstream after the other until one answers.
func (x *exchanger) ask(ctx context.Context, f *forwarder, i inquiry, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardInAll)
	defer cancel()
	failed := errNoUpstream
	var last *dns.Msg // of those that were passed over for what they said
	for _, u := range f.order() {
		m, err := exchange(ctx, u.at, i, tcp)
		if err == nil && m.Truncated && !tcp && f.udp {
			m, err = exchange(ctx, u.at, i, true)
		}
		if err == nil {
			u.fails.Store(0)
			if last = m; slices.Contains(f.failover, m.Rcode) {
				continue
			}
			return m, nil
		}
		failed = fmt.Errorf("upstream %s: %w", u.at, err)
		if ctx.Err() != nil {
			break
		}
		u.fails.Add(1)
		x.probe(u)
	}
	if last != nil {
		return last, nil
	}
	return nil, failed
}

// exchange asks one upstream, again without options if it knows none (RFC 6891, section 6.2.2 and 7).
func exchange(ctx context.Context, at netip.AddrPort, i inquiry, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	m, err := once(ctx, at, i.query(dns.Id(), true), tcp)
	if err != nil {
		return nil, err
	}
	if m.Rcode == dns.RcodeBadVers || m.IsEdns0() == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		return once(ctx, at, i.query(dns.Id(), false), tcp)
	}
	return m, nil
}

// datagrams are buffers for what comes over UDP, however much of it an upstream sends.
var datagrams = sync.Pool{New: func() any { return new([dns.MaxMsgSize]byte) }}

// once sends a query from a port of its own and waits for the answer to it until ctx is done.
func once(ctx context.Context, at netip.AddrPort, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	data, err := q.Pack()
	if err != nil {
		return nil, err
	}
	network := "udp"
	if tcp {
		network = "tcp"
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	m, err := converse(conn, data, q, tcp)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return m, err
}

// converse sends a query and reads until the answer to it has come. Whoever guesses the port may send datagrams as the upstream's: one
// that is no answer ends nothing, or else it would do to guess the port alone.
func converse(conn net.Conn, data []byte, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	c := dns.Conn{Conn: conn}
	if _, err := c.Write(data); err != nil {
		return nil, err
	}
	if tcp {
		data, err := c.ReadMsgHeader(nil)
		if err != nil {
			return nil, err
		}
		if m := reply(data, q); m != nil {
			return m, nil
		}
		return nil, errNoAnswer
	}
	buf := datagrams.Get().(*[dns.MaxMsgSize]byte)
	defer datagrams.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if m := reply(buf[:n], q); m != nil {
			return m, nil
		}
	}
}

// reply reads a message that is the answer to a query, nil if it is none: it must have the query's id and question (RFC 5452, section
// 9.1). The question may be missing where a server says that it did not understand or would not answer, which it may without having read
// that far, and where it says that a datagram is too small for it; the records of such an answer are nobody's and are left out. CoreDNS
// turns all answers without a question into FORMERR.
//
// An answer that says that it was cut may be cut anywhere, in the middle of a record too.
func reply(data []byte, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	err := m.Unpack(data)
	if m.Id != q.Id || !m.Response || m.Opcode != dns.OpcodeQuery {
		return nil
	}
	switch len(m.Question) {
	case 0:
		if err != nil || !m.Truncated && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) {
			return nil
		}
	case 1:
		asked, said := q.Question[0], m.Question[0]
		if !strings.EqualFold(asked.Name, said.Name) || asked.Qtype != said.Qtype || asked.Qclass != said.Qclass || err != nil && !m.Truncated {
			return nil
		}
	default:
		return nil
	}
	if len(m.Question) == 0 || err != nil {
		options := m.IsEdns0()
		m.Answer, m.Ns, m.Extra = nil, nil, nil
		if options != nil {
			m.Extra = []dns.RR{options}
		}
	}
	return m
}

// probe asks an upstream that failed for something that every server knows, again and again until it answers anything. There is at
// most one probe of each.
func (x *exchanger) probe(u *upstream) {
	if u.maxFails == 0 || x.ctx.Err() != nil || !u.probing.CompareAndSwap(false, true) {
		return
	}
	x.group.Go(func() {
		defer u.probing.Store(false)
		for {
			if _, err := exchange(x.ctx, u.at, inquiry{name: ".", qtype: dns.TypeNS}, u.tcp); err == nil {
				u.fails.Store(0)
				return
			}
			if u.gone.Load() {
				return
			}
			select {
			case <-x.ctx.Done():
				return
			case <-time.After(probeEvery):
			}
		}
	})
}

// close ends all probes.
func (x *exchanger) close() {
	x.cancel()
	x.group.Wait()
}
