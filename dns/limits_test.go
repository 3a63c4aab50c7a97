package dns

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"coracle.dev/coracle/dns/corefile"
)

// TestOneClient holds that one client whose names take long leaves room for the others, and that all together are bounded.
func TestOneClient(t *testing.T) {
	s := quiet(t, Config{Client: cluster(t)})
	client := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(n)}) }
	fill := func(who netip.Addr) (n int) {
		for s.enter(who) {
			n++
		}
		return n
	}
	for i := range waitingAtOnce / waitingOfOne {
		if n := fill(client(i)); n != waitingOfOne {
			t.Fatalf("client %d has %d places, want %d", i, n, waitingOfOne)
		}
	}
	if n := fill(client(99)); n != 0 {
		t.Errorf("%d places more than there are", n)
	}
	s.leave(client(0))
	if !s.enter(client(99)) || s.enter(client(0)) {
		t.Error("a place that is left is not for who comes first")
	}
	s.leave(client(99))
	for range waitingOfOne - 1 {
		s.leave(client(0))
	}
	if n := fill(client(0)); n != waitingOfOne {
		t.Errorf("then %d places", n)
	}
	for i := range waitingAtOnce / waitingOfOne {
		for range waitingOfOne {
			s.leave(client(i))
		}
	}
	if len(s.clients.waiting) != 0 || len(s.slots) != 0 {
		t.Errorf("%d clients are remembered, %d places taken", len(s.clients.waiting), len(s.slots))
	}
}

// TestFailover holds what the options of forward do that say when an upstream is not to be believed, or not to be asked.
func TestFailover(t *testing.T) {
	good, _ := resolver(t, "192.0.2.1")
	bad, asked := resolver(t, "192.0.2.2")
	for _, test := range []struct{ options, name, want string }{
		{"", "bad.org.", "SERVFAIL"},
		{"failover SERVFAIL", "bad.org.", "SERVFAIL"}, // both say so
		{"failover SERVFAIL REFUSED", "a.org.", "A 192.0.2.2"},
		{"failover NXDOMAIN", "no.org.", "NXDOMAIN"},
		{"max_concurrent 1", "a.org.", "A 192.0.2.2"},
	} {
		before := asked.Load()
		s := forwarding(t, "forward . UP "+good.String()+" {\npolicy sequential\n"+test.options+"\n}", bad)
		if got := ask(s, "", test.name, dns.TypeA); got != test.want || asked.Load() != before+1 {
			t.Errorf("%q, %s: %s", test.options, test.name, got)
		}
	}
	refusing, _ := scripted(t, func(q *dns.Msg) [][]byte { return [][]byte{wire(t, new(dns.Msg).SetRcode(q, dns.RcodeRefused))} }, nil)
	s := forwarding(t, "forward . UP "+good.String()+" {\npolicy sequential\nfailover REFUSED\n}", refusing)
	if got := ask(s, "", "a.org.", dns.TypeA); got != "A 192.0.2.1" {
		t.Errorf("after a refusal: %s", got)
	}
}

// TestAllDown holds that upstreams that are all down are asked all the same, unless the configuration says otherwise.
func TestAllDown(t *testing.T) {
	for option, want := range map[string]string{"": "A 192.0.2.1", "failfast_all_unhealthy_upstreams": "SERVFAIL"} {
		up, _ := resolver(t, "192.0.2.1")
		s := forwarding(t, "forward . UP {\n"+option+"\n}", up)
		s.settings.Load().blocks[0].forwards[0].upstreams[0].fails.Store(maxFails)
		if got := ask(s, "", "a.org.", dns.TypeA); got != want {
			t.Errorf("%q: %s", option, got)
		}
	}
}

// TestConcurrent holds that more questions at a time than the configuration allows are refused.
func TestConcurrent(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	up, _ := scripted(t, func(q *dns.Msg) [][]byte {
		asked <- struct{}{}
		<-release
		return [][]byte{wire(t, addressed(t, q, "192.0.2.1"))}
	}, nil)
	s := forwarding(t, "forward . UP {\nmax_concurrent 1\n}", up)
	first := make(chan string)
	go func() { first <- ask(s, "", "a.org.", dns.TypeA) }()
	<-asked
	if got := ask(s, "", "b.org.", dns.TypeA); got != "REFUSED" {
		t.Errorf("a second question: %s", got)
	}
	close(release)
	if got := <-first; got != "A 192.0.2.1" {
		t.Errorf("the first: %s", got)
	}
	if got := ask(s, "", "c.org.", dns.TypeA); got != "A 192.0.2.1" {
		t.Errorf("then: %s", got)
	}
}

// TestForwardOptions holds what is said of options that cannot be read.
func TestForwardOptions(t *testing.T) {
	for option, want := range map[string]string{
		"failover":          "failover takes codes such as SERVFAIL, and not NOERROR",
		"failover NOERROR":  "failover takes codes such as SERVFAIL, and not NOERROR",
		"failover nonsense": "failover takes codes such as SERVFAIL, and not NOERROR",
		"max_concurrent":    "max_concurrent takes a number",
		"max_concurrent -1": "max_concurrent takes a number",
	} {
		_, err := compile(corefile.Text{Name: "C", Data: ". {\nforward . 1.1.1.1 {\n" + option + "\n}\n}"}, nil, env{domain: "cluster.local."})
		if err == nil || err.Error() != "C:3: "+want {
			t.Errorf("%q: %v", option, err)
		}
	}
}
