package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"coracle.dev/coracle/store"
)

// scripted is an upstream that answers each datagram with those that say gives, in their order; the second result asks over TCP how often
// it was asked there, where it answers with one address, or with what stream says.
func scripted(t testing.TB, say func(q *dns.Msg) [][]byte, stream func(q *dns.Msg) *dns.Msg) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	packets, listener := bothWays(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, dns.MaxMsgSize)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if err := q.Unpack(buf[:n]); err != nil {
				t.Error(err)
				return
			}
			for _, data := range say(q) {
				if _, err := packets.WriteTo(data, from); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() { packets.Close(); <-ended })
	asked := new(atomic.Int64)
	started := make(chan struct{})
	s := &dns.Server{Listener: listener, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := addressed(t, q, "192.0.2.99")
		if stream != nil {
			m = stream(q)
		}
		_ = w.WriteMsg(m)
	})}
	go s.ActivateAndServe() //nolint:errcheck // ended below
	<-started
	t.Cleanup(func() { _ = s.Shutdown() })
	return netip.MustParseAddrPort(packets.LocalAddr().String()), asked
}

func addressed(t testing.TB, q *dns.Msg, addr string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{record(t, q.Question[0].Name+" 60 IN A "+addr)}
	return m
}

func wire(t testing.TB, m *dns.Msg) []byte {
	out, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return out
}

// forwarding is a server that forwards all names as the line says, with UP for the upstream.
func forwarding(t testing.TB, line string, up netip.AddrPort) *Server {
	t.Helper()
	st := cluster(t)
	commit(t, st, "configmaps", configMap("coredns", map[string]string{"Corefile": ".:53 {\n" + strings.ReplaceAll(line, "UP", up.String()) + "\ncache 30\n}\n"}))
	return quiet(t, Config{Client: st})
}

// TestQueryIsNew holds that upstreams are told nothing of clients but what the answer is kept by: no client subnet, no cookie, no other option.
func TestQueryIsNew(t *testing.T) {
	seen := make(chan *dns.Msg, 10)
	up, _ := scripted(t, func(q *dns.Msg) [][]byte {
		seen <- q
		m := addressed(t, q, "192.0.2.1")
		m.AuthenticatedData = true
		m.SetEdns0(1232, false)
		return [][]byte{wire(t, m)}
	}, nil)
	s := forwarding(t, "forward . UP", up)
	for name, change := range map[string]func(*dns.Msg){
		"plain.org.": func(q *dns.Msg) {},
		"ecs.org.": func(q *dns.Msg) {
			q.SetEdns0(4096, false)
			q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(10, 42, 0, 0)},
				&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		},
		"dnssec.org.":  func(q *dns.Msg) { q.SetEdns0(512, true) },
		"extras.org.":  func(q *dns.Msg) { q.Extra = append(q.Extra, record(t, "a. 1 IN A 192.0.2.7")); q.Zero = true },
		"checked.org.": func(q *dns.Msg) { q.CheckingDisabled, q.RecursionDesired, q.AuthenticatedData = true, false, true },
	} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		change(q)
		m := s.Answer(q, netip.Addr{}, false)
		if show(m) != "A 192.0.2.1" {
			t.Errorf("%s: %v", name, m)
		}
		wants := q.AuthenticatedData || q.IsEdns0() != nil && q.IsEdns0().Do()
		if m.AuthenticatedData != wants {
			t.Errorf("%s: AD is %v", name, m.AuthenticatedData)
		}
		got := <-seen
		opt := got.IsEdns0()
		if len(got.Extra) != 1 || opt == nil || len(opt.Option) != 0 || opt.UDPSize() != datagramSize || opt.Do() != (name == "dnssec.org.") ||
			!got.RecursionDesired || got.CheckingDisabled != q.CheckingDisabled || got.Zero || got.Id == q.Id {
			t.Errorf("%s: the upstream was asked %v", name, got)
		}
	}
}

// TestFastAuthentic holds that the answer that is kept for a plain query says that it was validated only to those who ask for that.
func TestFastAuthentic(t *testing.T) {
	up, _ := scripted(t, func(q *dns.Msg) [][]byte {
		m := addressed(t, q, "192.0.2.1")
		m.AuthenticatedData = true
		return [][]byte{wire(t, m)}
	}, nil)
	s := forwarding(t, "forward . UP", up)
	r := fastReader(s)
	q := new(dns.Msg).SetQuestion("a.org.", dns.TypeA)
	s.Answer(q, netip.Addr{}, false)
	for _, ad := range []bool{false, true, false} {
		q.AuthenticatedData = ad
		m := new(dns.Msg)
		if err := m.Unpack(r.answer(wire(t, q), time.Now())); err != nil || show(m) != "A 192.0.2.1" || m.AuthenticatedData != ad {
			t.Errorf("AD %v: %v %v", ad, m, err)
		}
	}
}

// TestWithoutEDNS holds that an upstream that knows no options is asked without them, even if it says so with no question (RFC 6891, section 7).
func TestWithoutEDNS(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers} {
		up, _ := scripted(t, func(q *dns.Msg) [][]byte {
			if q.IsEdns0() == nil {
				return [][]byte{wire(t, addressed(t, q, "192.0.2.1"))}
			}
			m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: rcode}}
			if rcode > 0xf {
				m.SetEdns0(512, false)
			}
			return [][]byte{wire(t, m)}
		}, nil)
		if got := ask(forwarding(t, "forward . UP", up), "", "a.org.", dns.TypeA); got != "A 192.0.2.1" {
			t.Errorf("%s: %s", dns.RcodeToString[rcode], got)
		}
	}
}

// TestSpoofed holds that datagrams that are no answer to the question do not end the wait for the one that is.
func TestSpoofed(t *testing.T) {
	wrong := map[string]func(q *dns.Msg) []byte{
		"another id": func(q *dns.Msg) []byte { m := addressed(t, q, "192.0.2.66"); m.Id++; return wire(t, m) },
		"another name": func(q *dns.Msg) []byte {
			m := addressed(t, q, "192.0.2.66")
			m.Question[0].Name = "b.org."
			return wire(t, m)
		},
		"another type": func(q *dns.Msg) []byte { m := addressed(t, q, "192.0.2.66"); m.Question[0].Qtype++; return wire(t, m) },
		"another class": func(q *dns.Msg) []byte {
			m := addressed(t, q, "192.0.2.66")
			m.Question[0].Qclass = 3
			return wire(t, m)
		},
		"two questions": func(q *dns.Msg) []byte {
			m := addressed(t, q, "192.0.2.66")
			m.Question = append(m.Question, m.Question[0])
			return wire(t, m)
		},
		"no question": func(q *dns.Msg) []byte { m := addressed(t, q, "192.0.2.66"); m.Question = nil; return wire(t, m) },
		"no response": func(q *dns.Msg) []byte { m := addressed(t, q, "192.0.2.66"); m.Response = false; return wire(t, m) },
		"another opcode": func(q *dns.Msg) []byte {
			m := addressed(t, q, "192.0.2.66")
			m.Opcode = dns.OpcodeNotify
			return wire(t, m)
		},
		"nothing":        func(q *dns.Msg) []byte { return nil },
		"half a header":  func(q *dns.Msg) []byte { return wire(t, addressed(t, q, "192.0.2.66"))[:7] },
		"half an answer": func(q *dns.Msg) []byte { d := wire(t, addressed(t, q, "192.0.2.66")); return d[:len(d)-3] },
		"denial, no name": func(q *dns.Msg) []byte {
			m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
			m.Question = nil
			return wire(t, m)
		},
		"rubbish": func(q *dns.Msg) []byte { return []byte(strings.Repeat("\xc0\x0c", 40)) },
		"endless pointers": func(q *dns.Msg) []byte {
			d := wire(t, addressed(t, q, "192.0.2.66"))
			copy(d[12:], "\xc0\x0c")
			return d
		},
	}
	for name, make := range wrong {
		up, _ := scripted(t, func(q *dns.Msg) [][]byte { return [][]byte{make(q), make(q), wire(t, addressed(t, q, "192.0.2.1"))} }, nil)
		if got := ask(forwarding(t, "forward . UP {\nmax_fails 0\n}", up), "", "a.org.", dns.TypeA); got != "A 192.0.2.1" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestNoQuestion holds that an upstream may leave the question out where it refuses, as servers do that could not read it, and nowhere else.
func TestNoQuestion(t *testing.T) {
	for rcode, want := range map[int]string{dns.RcodeServerFailure: "SERVFAIL", dns.RcodeRefused: "REFUSED"} {
		up, _ := scripted(t, func(q *dns.Msg) [][]byte {
			m := addressed(t, q, "192.0.2.66")
			m.Question, m.Rcode = nil, rcode
			return [][]byte{wire(t, m)}
		}, nil)
		m := forwarding(t, "forward . UP", up).Answer(new(dns.Msg).SetQuestion("a.org.", dns.TypeA), netip.Addr{}, false)
		if got := dns.RcodeToString[m.Rcode]; got != want || len(m.Answer) != 0 {
			t.Errorf("%s: %v", want, m)
		}
	}
}

// TestPreferUDP holds how upstreams are asked: as the client asked, or over UDP first with prefer_udp, or over TCP alone with force_tcp.
func TestPreferUDP(t *testing.T) {
	for _, test := range []struct {
		name, option  string
		tcp           bool
		want          string
		cut           bool
		packet, total int64
	}{
		{"short.org.", "", false, "A 192.0.2.1", false, 1, 0},
		{"long.org.", "", false, "A 192.0.2.1", true, 1, 0}, // the client asks again over TCP
		{"broken.org.", "", false, "NOERROR", true, 1, 0},
		{"short.org.", "", true, "A 192.0.2.99", false, 0, 1},
		{"short.org.", "prefer_udp", true, "A 192.0.2.1", false, 1, 0},
		{"long.org.", "prefer_udp", true, "A 192.0.2.99", false, 1, 1},
		{"long.org.", "prefer_udp", false, "A 192.0.2.99", false, 1, 1},
		{"broken.org.", "prefer_udp", false, "A 192.0.2.99", false, 1, 1},
		{"short.org.", "force_tcp", false, "A 192.0.2.99", false, 0, 1},
		{"short.org.", "prefer_udp\nforce_tcp", false, "A 192.0.2.99", false, 0, 1},
	} {
		var packets atomic.Int64
		up, streams := scripted(t, func(q *dns.Msg) [][]byte {
			packets.Add(1)
			m := addressed(t, q, "192.0.2.1")
			m.Truncated = q.Question[0].Name != "short.org."
			data := wire(t, m)
			if q.Question[0].Name == "broken.org." {
				data = data[:len(data)-3] // cut in the middle of a record
			}
			return [][]byte{data}
		}, nil)
		s := forwarding(t, "forward . UP {\n"+test.option+"\n}", up)
		m := s.Answer(new(dns.Msg).SetQuestion(test.name, dns.TypeA), netip.Addr{}, test.tcp)
		if show(m) != test.want || m.Truncated != test.cut || packets.Load() != test.packet || streams.Load() != test.total {
			t.Errorf("%s %q tcp %v: %s, cut %v, %d by UDP, %d by TCP", test.name, test.option, test.tcp, show(m), m.Truncated, packets.Load(), streams.Load())
		}
	}
}

// TestWrongStream holds that an answer to another question over TCP is none.
func TestWrongStream(t *testing.T) {
	up, _ := scripted(t, nil, func(q *dns.Msg) *dns.Msg {
		m := addressed(t, q, "192.0.2.66")
		m.Question[0].Name = "b.org."
		return m
	})
	if got := ask(forwarding(t, "forward . UP {\nforce_tcp\nmax_fails 0\n}", up), "", "a.org.", dns.TypeA); got != "SERVFAIL" {
		t.Error(got)
	}
}

// TestStrangeCode holds that a code that a client without options cannot be told is a failure.
func TestStrangeCode(t *testing.T) {
	up, _ := scripted(t, func(q *dns.Msg) [][]byte {
		m := new(dns.Msg).SetRcode(q, dns.RcodeBadCookie)
		m.SetEdns0(512, false)
		return [][]byte{wire(t, m)}
	}, nil)
	m := forwarding(t, "forward . UP", up).Answer(new(dns.Msg).SetQuestion("a.org.", dns.TypeA), netip.Addr{}, false)
	if _, err := m.Pack(); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Error(m, err)
	}
}

// TestReloadForgets holds that an answer that the old configuration waited for is nothing to the new one: neither kept for it, nor shared with it.
func TestReloadForgets(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	old, _ := scripted(t, func(q *dns.Msg) [][]byte {
		asked <- struct{}{}
		<-release
		return [][]byte{wire(t, addressed(t, q, "192.0.2.1"))}
	}, nil)
	fresh, _ := resolver(t, "192.0.2.2")
	s := forwarding(t, "forward . UP", old)
	first := make(chan string)
	go func() { first <- ask(s, "", "a.org.", dns.TypeA) }()
	<-asked
	commit(t, s.Client.(store.Store), "configmaps", configMap("coredns", map[string]string{"Corefile": ".:53 {\nforward . " + fresh.String() + "\ncache 30\n}\n"}))
	s.reload()
	if got := ask(s, "", "a.org.", dns.TypeA); got != "A 192.0.2.2" {
		t.Errorf("while the old upstream is waited for: %s", got)
	}
	close(release)
	if got := <-first; got != "A 192.0.2.1" {
		t.Errorf("who asked before: %s", got)
	}
	r := fastReader(s)
	for range 2 {
		m := new(dns.Msg)
		if err := m.Unpack(r.answer(wire(t, new(dns.Msg).SetQuestion("a.org.", dns.TypeA)), time.Now())); err != nil || show(m) != "A 192.0.2.2" {
			t.Errorf("after it: %v %v", m, err)
		}
	}
}

// TestReloadKeeps holds that what was asked stays where the configuration did not change.
func TestReloadKeeps(t *testing.T) {
	up, asked := resolver(t, "192.0.2.1")
	s := forwarding(t, "forward . UP", up)
	for range 2 {
		if got := ask(s, "", "a.org.", dns.TypeA); got != "A 192.0.2.1" || asked.Load() != 1 {
			t.Errorf("%s, asked %d times", got, asked.Load())
		}
		s.reload()
	}
}

// TestExchangeEnds holds that a question ends with its context, and not before, when only rubbish comes.
func TestExchangeEnds(t *testing.T) {
	got := make(chan struct{}, 1)
	up, _ := scripted(t, func(q *dns.Msg) [][]byte {
		got <- struct{}{}
		m := addressed(t, q, "192.0.2.66")
		m.Id++
		return [][]byte{wire(t, m)}
	}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-got; cancel() }()
	x := &exchanger{}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	defer x.close()
	f := &forwarder{policy: "random", upstreams: []*upstream{{at: up}}}
	if _, err := x.ask(ctx, f, inquiry{name: "a.org.", qtype: dns.TypeA}, false); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzReply holds that no datagram makes the reading of answers panic, and that what is taken for an answer is one.
func FuzzReply(f *testing.F) {
	q := inquiry{name: "a.org.", qtype: dns.TypeA}.query(7, true)
	data := wire(f, addressed(f, q, "192.0.2.1"))
	f.Add(data)
	f.Add(data[:len(data)-3])
	f.Add(slices.Concat(data[:2], []byte{0x81, 0x85, 0, 0, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := reply(data, q)
		if m == nil {
			return
		}
		if m.Id != 7 || !m.Response {
			t.Errorf("%x was taken for %v", data, m)
		}
		if len(m.Question) == 0 && len(m.Answer)+len(m.Ns) > 0 {
			t.Errorf("%x: records without a question: %v", data, m)
		}
		if o := foreign(m, 0); o.rcode > 0xf {
			t.Errorf("%x: %d", data, o.rcode)
		}
	})
}
