package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/dns/corefile"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// resolver is an upstream that answers with one address, or SERVFAIL for names that begin with "bad", NXDOMAIN with "no".
func resolver(t testing.TB, addr string) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	packets, stream := bothWays(t)
	asked := new(atomic.Int64)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch {
		case strings.HasPrefix(name, "no"), strings.HasSuffix(name, ".org.no.test."):
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{record(t, ". 60 IN SOA a. b. 1 2 3 4 60")}
		case strings.HasPrefix(name, "bad"):
			m.Rcode = dns.RcodeServerFailure
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{record(t, name+" 60 IN A "+addr)}
		default:
			m.Ns = []dns.RR{record(t, ". 60 IN SOA a. b. 1 2 3 4 60")}
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: stream, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe() //nolint:errcheck // ended below
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String()), asked
}

// bothWays opens one port over UDP and TCP.
func bothWays(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var last error
	for range 100 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stream, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, stream
		}
		last = err // somebody has that port over TCP
		packets.Close()
	}
	t.Fatal(last)
	return nil, nil
}

func record(t testing.TB, text string) dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Error(err)
	}
	return rr
}

func commit(t testing.TB, s store.Store, resource string, obj api.Object) {
	t.Helper()
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Data: data}
}

func ask(s *Server, source, name string, qtype uint16) string {
	from, _ := netip.ParseAddr(source)
	return show(s.Answer(new(dns.Msg).SetQuestion(name, qtype), from, false))
}

// TestConfigured holds what the directives do.
func TestConfigured(t *testing.T) {
	main, _ := resolver(t, "192.0.2.1")
	stub, _ := resolver(t, "192.0.2.2")
	st := cluster(t)
	commit(t, st, "configmaps", configMap("coredns", map[string]string{"Corefile": `
(common) {
    errors
    cache 30
}
.:53 {
    import common
    log
    health {
        lameduck 5s
    }
    hosts /etc/coredns/NodeHosts {
        203.0.113.7 override.example.org www.override.example.org
        ttl 60
        fallthrough
    }
    rewrite name exact old.example.org web.shop.svc.cluster.local
    rewrite name regex (.*)\.in\.example\.org {1}.shop.svc.cluster.local answer auto
    rewrite stop {
        name suffix .short.test. .shop.svc.cluster.local.
        answer auto
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
        ttl 7
        fallthrough in-addr.arpa ip6.arpa
    }
    import /etc/coredns/custom/*.override
    forward . ` + main.String() + `
    reload
}
import /etc/coredns/custom/*.server
`, "NodeHosts": "203.0.113.9 node1\n# comment\nnonsense\n"}))
	commit(t, st, "configmaps", configMap("coredns-custom", map[string]string{
		"stub.server":    "corp.test:53 {\n    forward . " + stub.String() + " {\n        policy sequential\n    }\n}\n",
		"more.override":  "rewrite name prefix pre- x-\n",
		"not.read":       "nonsense {",
		"other.override": "# nothing",
	}))
	s := quiet(t, Config{Client: st})
	for _, test := range []struct{ name, qtype, want string }{
		{"web.shop.svc.cluster.local.", "A", "A 10.43.0.7"},
		{"example.org.", "A", "A 192.0.2.1"},
		{"a.corp.test.", "A", "A 192.0.2.2"},
		{"node1.", "A", "A 203.0.113.9"},
		{"Override.example.org.", "A", "A 203.0.113.7"},
		{"override.example.org.", "AAAA", "NOERROR"},
		{"7.113.0.203.in-addr.arpa.", "PTR", "PTR override.example.org.; PTR www.override.example.org."},
		{"old.example.org.", "A", "A 10.43.0.7"},
		{"web.in.example.org.", "A", "A 10.43.0.7"},
		{"web.short.test.", "AAAA", "AAAA fd00::7"},
		{"no.example.org.", "A", "NXDOMAIN"},
		{"bad.example.org.", "A", "SERVFAIL"},
		{"10-42-0-5.shop.pod.cluster.local.", "A", "NXDOMAIN"},
		{"1.2.0.192.in-addr.arpa.", "A", "A 192.0.2.1"},
	} {
		if got := ask(s, "", test.name, dns.StringToType[test.qtype]); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.name, test.qtype, got, test.want)
		}
	}
	m := s.Answer(new(dns.Msg).SetQuestion("web.Short.test.", dns.TypeA), netip.Addr{}, false)
	if m.Answer[0].Header().Name != "web.Short.test." || m.Answer[0].Header().Ttl != 7 {
		t.Errorf("a rewritten name is answered as %v", m.Answer[0])
	}
}

// TestLastGood holds that a configuration that is wrong is told of where its author looks, and changes nothing.
func TestLastGood(t *testing.T) {
	st := cluster(t)
	told := make(chan reconcile.Event, 10)
	s := quiet(t, Config{Client: st, Event: func(ev reconcile.Event) { told <- ev }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.follow(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	until := func(want string) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for ask(s, "", "x.test.", dns.TypeA) != want {
			if time.Now().After(deadline) {
				t.Fatalf("x.test. is not %s: %s", want, ask(s, "", "x.test.", dns.TypeA))
			}
			time.Sleep(time.Millisecond)
		}
	}
	until("REFUSED")
	commit(t, st, "configmaps", configMap("coredns", map[string]string{"Corefile": ".:53 {\n hosts {\n 192.0.2.8 x.test\n }\n}"}))
	until("A 192.0.2.8")
	commit(t, st, "configmaps", configMap("coredns", map[string]string{"Corefile": ".:53 {\n hosts {\n 192.0.2.9 x.test\n }\n forwards . 1.1.1.1\n}"}))
	ev := <-told
	if want := `Corefile:5: the directive "forwards" is not known; the last good configuration stays in use`; ev.Message != want || ev.Regarding.Name != "coredns" || ev.Type != "Warning" {
		t.Errorf("%+v, want %q", ev, want)
	}
	until("A 192.0.2.8")
}

// TestWrong holds what is said of what cannot be read.
func TestWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "the configuration has no server block",
		". {\n forward . \n}":                   "C:2: forward takes the zone and then the upstreams: addresses, or /etc/resolv.conf for the node's",
		". {\n forward . tls://1.1.1.1\n}":      "C:2: the upstream tls://1.1.1.1 is not known here: only dns:// is",
		". {\n hosts {\n what ever\n }\n}":      `C:3: "what ever" is neither an option of hosts nor an address with names behind it`,
		". {\n hosts /etc/hosts\n}":             "C:2: there is no key for the file /etc/hosts in the config map",
		". {\n autopath @kubernetes\n}":         "C:1: autopath @kubernetes needs the directive kubernetes beside it",
		". {\n rewrite name a\n}":               "C:2: rewrite takes [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO, or type FROM TO",
		". {\n rewrite name regex ( x\n}":       "C:2: error parsing regexp: missing closing ): `(`",
		". {\n}\n.:53 {\n}":                     "C:3: the zone . has two server blocks",
		"tls://. {\n}":                          "C:1: tls://. is not served, only dns:// is",
		". {\n kubernetes {\n pods maybe\n}\n}": "C:3: pods takes disabled, insecure or verified",
		". {\n cache {\n serve_stale x\n}\n}":   "C:3: serve_stale takes a duration such as 1h",
		"10.0.0.0/9 {\n}":                       "C:1: the range 10.0.0.0/9 does not end at the border of a label",
	} {
		_, err := compile(corefile.Text{Name: "C", Data: text}, nil, env{domain: "cluster.local.", file: func(string) (string, bool) { return "", false }})
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// FuzzCompile holds that no configuration makes the compiler panic.
func FuzzCompile(f *testing.F) {
	f.Add(DefaultCorefile)
	f.Add("10.0.0.0/8 a.org { rewrite stop name regex (a) b answer auto\n cache 30 {\n success 1 2\n}\n}")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := compile(corefile.Text{Name: "C", Data: text}, nil, env{domain: "cluster.local.", file: func(string) (string, bool) { return "1.1.1.1 a", true }})
		if err != nil {
			return
		}
		for _, b := range s.blocks {
			name, _ := b.rewritten("abc.example.org.", dns.TypeA)
			if _, ok := dns.IsDomainName(name); !ok {
				t.Errorf("rewritten to %q", name)
			}
		}
	})
}

func pod(st store.Store, t testing.TB, name, ip string, change func(*corev1.Pod)) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst},
		Status: corev1.PodStatus{PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}}
	if change != nil {
		change(p)
	}
	commit(t, st, "pods", p)
}

// TestSearchPath holds that the first name of a pod's search path is answered as the whole path would be.
func TestSearchPath(t *testing.T) {
	up, _ := resolver(t, "192.0.2.1")
	st := cluster(t)
	commit(t, st, "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bank"}})
	commit(t, st, "services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "till"}, Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.8", ClusterIPs: []string{"10.43.0.8"}}})
	pod(st, t, "plain", "10.42.0.5", nil)
	pod(st, t, "own", "10.42.0.6", func(p *corev1.Pod) {
		p.Spec.DNSConfig = &corev1.PodDNSConfig{Searches: []string{"bank.svc.cluster.local"}}
	})
	pod(st, t, "node", "10.42.0.7", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	s := quiet(t, Config{Client: st, Host: Host{Upstreams: []netip.AddrPort{up}, Searches: []string{"no.test."}}})
	for _, test := range []struct{ source, name, want string }{
		{"10.42.0.5", "example.org.shop.svc.cluster.local.", "A 192.0.2.1; CNAME example.org."},
		{"10.42.0.5", "till.bank.shop.svc.cluster.local.", "A 10.43.0.8; CNAME till.bank.svc.cluster.local."},
		{"10.42.0.5", "till.bank.svc.shop.svc.cluster.local.", "A 10.43.0.8; CNAME till.bank.svc.cluster.local."},
		{"10.42.0.5", "till.shop.svc.cluster.local.", "A 192.0.2.1; CNAME till.no.test."},
		{"10.42.0.6", "till.shop.svc.cluster.local.", "A 10.43.0.8; CNAME till.bank.svc.cluster.local."},
		{"10.42.0.5", "web.shop.svc.cluster.local.", "A 10.43.0.7"},
		{"10.42.0.5", "example.org.bank.svc.cluster.local.", "NXDOMAIN"}, // not its namespace
		{"10.42.0.7", "example.org.shop.svc.cluster.local.", "NXDOMAIN"}, // not a pod's address
		{"", "example.org.shop.svc.cluster.local.", "NXDOMAIN"},
	} {
		if got := ask(s, test.source, test.name, dns.TypeA); got != test.want {
			t.Errorf("%s from %s: got %q, want %q", test.name, test.source, got, test.want)
		}
	}
}

// TestStale holds for how long answers are kept, by a clock.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cache
		policy := cachePolicy{most: 5 * time.Minute, mostDenial: 30 * time.Second, stale: time.Hour}
		q := inquiry{name: "example.org.", qtype: dns.TypeA}
		m := new(dns.Msg).SetReply(q.query(1, true))
		m.Answer = []dns.RR{record(t, "example.org. 3600 IN A 192.0.2.1")}
		c.put(".", policy, q, m, time.Now())
		none := inquiry{name: "none.org.", qtype: dns.TypeA}
		m = new(dns.Msg).SetReply(none.query(1, true))
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{record(t, "org. 3600 IN SOA a. b. 1 2 3 4 60")}
		c.put(".", policy, none, m, time.Now())
		time.Sleep(29 * time.Second)
		if c.get(".", none, time.Now(), 0) == nil {
			t.Error("a denial did not last for half a minute")
		}
		time.Sleep(2 * time.Second)
		if c.get(".", none, time.Now(), 0) != nil {
			t.Error("a denial lasted for more than half a minute")
		}
		time.Sleep(5 * time.Minute)
		if c.get(".", q, time.Now(), 0) != nil {
			t.Error("an answer lasted for more than five minutes")
		}
		if m := c.get(".", q, time.Now(), policy.stale); m == nil || m.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("stale: %v", m)
		}
		time.Sleep(time.Hour)
		if c.get(".", q, time.Now(), policy.stale) != nil {
			t.Error("a stale answer lasted for more than an hour")
		}
	})
}

// TestUpstreamsDown holds that a dead upstream is passed over once it is known to be, and that what was known is served when all are.
func TestUpstreamsDown(t *testing.T) {
	up, asked := resolver(t, "192.0.2.1")
	gone, err := net.ListenPacket("udp", "127.0.0.1:0") // takes queries, answers none
	if err != nil {
		t.Fatal(err)
	}
	dead := netip.MustParseAddrPort(gone.LocalAddr().String())
	gone.Close()
	x := &exchanger{}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	f := &forwarder{policy: "sequential", upstreams: []*upstream{{at: dead, maxFails: 2}, {at: up, maxFails: 2}}}
	q := inquiry{name: "example.org.", qtype: dns.TypeA}
	for range 3 {
		if m, err := x.ask(context.Background(), f, q, false); err != nil || show(m) != "A 192.0.2.1" {
			t.Fatal(m, err)
		}
	}
	if !f.upstreams[0].down() || f.order()[0].at != up || asked.Load() != 3 {
		t.Errorf("the dead upstream is still the first: %d", asked.Load())
	}
	x.close()
}
