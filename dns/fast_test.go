package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fastReader is a reader without a socket.
func fastReader(s *Server) *reader {
	return &reader{server: s, key: make([]byte, 0, 300), answers: map[string]*packed{}}
}

// answer gives what the fast path says to a packet, nil if it leaves it to the slow one.
func (r *reader) answer(data []byte, now time.Time) []byte {
	q, ok := parse(data, r.scratch[:])
	if !ok {
		return nil
	}
	p := r.find(&q, data, nil, now)
	if p == nil {
		return nil
	}
	return p.appendTo(nil, data, &q, now.Unix())
}

// TestFastIsSlow holds the fast path against the slow one, for the same question again and again.
func TestFastIsSlow(t *testing.T) {
	s := quiet(t, Config{Client: cluster(t)})
	s.settings.Load().blocks[0].autopath = false
	r := fastReader(s)
	for _, name := range []string{"web.shop.svc.cluster.local.", "Web.SHOP.svc.cluster.local.", "db.shop.svc.cluster.local.", "nothing.shop.svc.cluster.local.",
		"_pg._tcp.db.shop.svc.cluster.local.", "_http._tcp.web.shop.svc.cluster.local.", "cluster.local.", "dns-version.cluster.local.", "7.0.43.10.in-addr.arpa.",
		"away.shop.svc.cluster.local.", "10-42-0-5.shop.pod.cluster.local.", `a\.b.shop.svc.cluster.local.`, "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeNS, dns.TypeSOA} {
			for round := range 3 {
				q := new(dns.Msg).SetQuestion(name, qtype)
				q.RecursionDesired = round != 1
				if round == 2 {
					q.SetEdns0(4096, false)
				}
				data, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				out := r.answer(data, time.Now())
				if out == nil {
					continue // it may always decline
				}
				got, want := new(dns.Msg), s.Answer(q, netip.Addr{}, false)
				if err := got.Unpack(out); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got.Question[0] != want.Question[0] {
					t.Errorf("%s: asked %v", name, got.Question)
				}
				if a, b := canonicalText(got), canonicalText(want); a != b {
					t.Errorf("%s %d round %d:\n%s\nwant\n%s", name, qtype, round, a, b)
				}
			}
		}
	}
}

// canonicalText is a message without the order of its records, and without the case of names that point to the question.
func canonicalText(m *dns.Msg) string {
	lines := strings.Split(strings.ToLower(m.String()), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestNewEndpoint holds that a change is in the next answer.
func TestNewEndpoint(t *testing.T) {
	st := cluster(t)
	s := quiet(t, Config{Client: st})
	r := fastReader(s)
	q, err := new(dns.Msg).SetQuestion("fresh.shop.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		ip := fmt.Sprintf("10.43.1.%d", i)
		commit(t, st, "services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "fresh"}, Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}}})
		for range 2 {
			m := new(dns.Msg)
			if err := m.Unpack(r.answer(q, time.Now())); err != nil || show(m) != "A "+ip {
				t.Fatalf("want %s: %v %v", ip, m, err)
			}
		}
	}
	before := len(r.answers)
	epoch := s.epoch.now()
	commit(t, st, "configmaps", configMap("unrelated", nil))
	if s.epoch.now() != epoch || len(r.answers) != before {
		t.Error("a change of something else begins a new epoch")
	}
}

// TestOrder holds that every address comes first now and then, whole.
func TestOrder(t *testing.T) {
	s := quiet(t, Config{Client: cluster(t)})
	r := fastReader(s)
	q, err := new(dns.Msg).SetQuestion("db.shop.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	first := map[string]int{}
	for range 200 {
		m := new(dns.Msg)
		if err := m.Unpack(r.answer(q, time.Now())); err != nil || show(m) != "A 10.42.0.5; A 10.42.0.6" {
			t.Fatal(m, err)
		}
		first[m.Answer[0].(*dns.A).A.String()]++
	}
	if len(first) != 2 {
		t.Errorf("first were %v", first)
	}
}

// TestOneSocket sends A and AAAA from one socket at the same time, as libc does, and wants both answers of every pair; over UDP,
// cut to what the client takes, and whole over TCP.
func TestOneSocket(t *testing.T) {
	st := cluster(t)
	var ips []string
	for i := range 100 {
		ips = append(ips, fmt.Sprintf("10.42.1.%d", i))
	}
	many := slice("many", ips...)
	commit(t, st, "endpointslices.discovery.k8s.io", many)
	commit(t, st, "services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "many"}, Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	s, at := listening(t, Config{Client: st})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		want := map[uint16]bool{}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", qtype)
			want[q.Id] = true
			data, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 512)
		for range 2 {
			if _, err := conn.Read(buf); err != nil {
				t.Fatal(err)
			}
			delete(want, binary.BigEndian.Uint16(buf))
		}
		if len(want) != 0 {
			t.Fatal("two answers to one query")
		}
	}
	q := new(dns.Msg).SetQuestion("many.shop.svc.cluster.local.", dns.TypeA)
	c := dns.Client{Timeout: 30 * time.Second}
	if m, _, err := c.Exchange(q, at.String()); err != nil || !m.Truncated || len(m.Answer) == 0 || len(m.Answer) > 30 {
		t.Errorf("over UDP: %v %v", m, err)
	}
	c.UDPSize = 4096
	q.SetEdns0(4096, false)
	if m, _, err := c.Exchange(q, at.String()); err != nil || m.Truncated || len(m.Answer) != 100 || m.IsEdns0() == nil {
		t.Errorf("over UDP with EDNS0: %v %v", m, err)
	}
	c.Net = "tcp"
	if m, _, err := c.Exchange(q, at.String()); err != nil || m.Truncated || len(m.Answer) != 100 {
		t.Errorf("over TCP: %v %v", m, err)
	}
}

// FuzzPacket holds that no packet makes the server panic, and that what it says can be read.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web.shop.svc.cluster.local.", "x.y.shop.svc.cluster.local."} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		data, _ := q.Pack()
		f.Add(data)
		q.SetEdns0(4096, true)
		data, _ = q.Pack()
		f.Add(data)
	}
	s := quiet(f, Config{Client: cluster(f)})
	s.settings.Load().blocks[0].autopath = false
	r := fastReader(s)
	f.Fuzz(func(t *testing.T, data []byte) {
		if out := r.answer(data, time.Now()); out != nil {
			if err := new(dns.Msg).Unpack(out); err != nil {
				t.Errorf("%x: %v", out, err)
			}
		}
		q := new(dns.Msg)
		if q.Unpack(data) != nil {
			return
		}
		if _, err := s.Answer(q, netip.Addr{}, false).Pack(); err != nil {
			t.Errorf("%v: %v", q, err)
		}
	})
}

// BenchmarkFast is the work on a query that was asked before.
func BenchmarkFast(b *testing.B) {
	s := quiet(b, Config{Client: cluster(b)})
	r := fastReader(s)
	data, err := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, 512)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		q, _ := parse(data, r.scratch[:])
		if p := r.find(&q, data, nil, now); p == nil || p.appendTo(out, data, &q, now.Unix()) == nil {
			b.Fatal("no answer")
		}
	}
}
