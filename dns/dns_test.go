package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func cluster(t testing.TB) store.Store {
	t.Helper()
	s := memory.New(client.StoreOptions(api.NewRegistry(append(core.Kinds(), discovery.Kinds()...)...), 0))
	put := func(resource string, obj api.Object) {
		key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
		if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj}}}); err != nil {
			t.Fatal(err)
		}
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	put("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	put("services", &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.7", ClusterIPs: []string{"10.43.0.7", "fd00::7"},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}})
	put("services", &corev1.Service{ObjectMeta: meta("db"), Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}})
	put("services", &corev1.Service{ObjectMeta: meta("away"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}})
	yes, no, name, tcp, port := true, false, "pg", corev1.ProtocolTCP, int32(5432)
	host := "db-0"
	ready := slice("web", "10.42.0.7")
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta("db-abc"), AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.0.5"}, Hostname: &host, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.42.0.6"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.42.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}}}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "db"}
	put("endpointslices.discovery.k8s.io", slice)
	put("endpointslices.discovery.k8s.io", ready)
	for name, target := range map[string]string{"near": "web.shop.svc.cluster.local", "round": "round.shop.svc.cluster.local"} {
		put("services", &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}})
	}
	return s
}

// slice is one of a service's, with ready endpoints.
func slice(service string, ips ...string) *discoveryv1.EndpointSlice {
	yes := true
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4}
	for _, ip := range ips {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	return out
}

// quiet is a server that listens nowhere unless c says so.
func quiet(t testing.TB, c Config) *Server {
	t.Helper()
	c.Domain, c.Log = "cluster.local", slog.New(slog.DiscardHandler)
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestAnswers holds the forms of the DNS specification.
func TestAnswers(t *testing.T) {
	s := quiet(t, Config{Client: cluster(t)})
	for _, test := range []struct{ name, qtype, want string }{
		{"web.shop.svc.cluster.local.", "A", "A 10.43.0.7"},
		{"WEB.shop.svc.Cluster.Local.", "AAAA", "AAAA fd00::7"},
		{"web.shop.svc.cluster.local.", "MX", "NOERROR"},
		{"nothing.shop.svc.cluster.local.", "A", "NXDOMAIN"},
		{"web.nowhere.svc.cluster.local.", "A", "NXDOMAIN"},
		{"shop.svc.cluster.local.", "A", "NOERROR"},
		{"db.shop.svc.cluster.local.", "A", "A 10.42.0.5; A 10.42.0.6"},
		{"db-0.db.shop.svc.cluster.local.", "A", "A 10.42.0.5"},
		{"10-42-0-6.db.shop.svc.cluster.local.", "A", "A 10.42.0.6"},
		{"10-42-0-7.web.shop.svc.cluster.local.", "A", "A 10.42.0.7"}, // of a service with an address too, as CoreDNS has it
		{"7.0.42.10.in-addr.arpa.", "PTR", "PTR 10-42-0-7.web.shop.svc.cluster.local."},
		{"ns.dns.cluster.local.", "A", "NOERROR"},
		{"cluster.local.", "NS", "NS ns.dns.cluster.local."},
		{"cluster.local.", "SOA", "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
		{"near.shop.svc.cluster.local.", "A", "A 10.43.0.7; CNAME web.shop.svc.cluster.local."},
		{"near.shop.svc.cluster.local.", "CNAME", "CNAME web.shop.svc.cluster.local."},
		{"round.shop.svc.cluster.local.", "CNAME", "CNAME round.shop.svc.cluster.local."},
		{"fd00--5.shop.pod.cluster.local.", "AAAA", "AAAA fd00::5"},
		{"10-42-0-9.db.shop.svc.cluster.local.", "A", "NXDOMAIN"},
		{"db-0.web.shop.svc.cluster.local.", "A", "NXDOMAIN"},
		{"_http._tcp.web.shop.svc.cluster.local.", "SRV", "SRV 0 100 80 web.shop.svc.cluster.local.; +A 10.43.0.7; +AAAA fd00::7"},
		{"_http._udp.web.shop.svc.cluster.local.", "SRV", "NXDOMAIN"},
		{"_pg._tcp.db.shop.svc.cluster.local.", "SRV", "SRV 0 100 5432 10-42-0-6.db.shop.svc.cluster.local.; SRV 0 100 5432 db-0.db.shop.svc.cluster.local.; +A 10.42.0.5; +A 10.42.0.6"},
		{"away.shop.svc.cluster.local.", "CNAME", "CNAME example.org."},
		{"10-42-0-5.shop.pod.cluster.local.", "A", "A 10.42.0.5"},
		{"10-42-0-5.nowhere.pod.cluster.local.", "A", "NXDOMAIN"},
		{"dns-version.cluster.local.", "TXT", `TXT "1.1.0"`},
		{"7.0.43.10.in-addr.arpa.", "PTR", "PTR web.shop.svc.cluster.local."},
		{"5.0.42.10.in-addr.arpa.", "PTR", "PTR db-0.db.shop.svc.cluster.local."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", "PTR web.shop.svc.cluster.local."},
		{"example.org.", "A", "REFUSED"},
	} {
		q := new(dns.Msg).SetQuestion(test.name, dns.StringToType[test.qtype])
		if got := show(s.Answer(q, netip.Addr{}, false)); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.name, test.qtype, got, test.want)
		}
	}
}

// show writes an answer in one line, in an order that does not depend on the shuffling.
func show(m *dns.Msg) string {
	var parts []string
	add := func(prefix string, rrs []dns.RR) {
		for _, rr := range rrs {
			if rr.Header().Rrtype != dns.TypeOPT {
				fields := strings.Fields(rr.String())
				parts = append(parts, prefix+strings.Join(fields[3:], " "))
			}
		}
	}
	add("", m.Answer)
	if len(parts) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	add("+", m.Extra)
	// "+" sorts before letters: put it last.
	sort.Slice(parts, func(i, j int) bool {
		a, b := strings.HasPrefix(parts[i], "+"), strings.HasPrefix(parts[j], "+")
		if a != b {
			return b
		}
		return parts[i] < parts[j]
	})
	return strings.Join(parts, "; ")
}

// TestForward serves on loopback and forwards to an upstream that counts its queries.
func TestForward(t *testing.T) {
	asked := make(chan string, 10)
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- q.Question[0].Name
		m := new(dns.Msg).SetReply(q)
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
		_ = w.WriteMsg(m)
	})}
	go upstream.ActivateAndServe() //nolint:errcheck // ended below
	defer upstream.Shutdown()      //nolint:errcheck // it has been active

	s, at := listening(t, Config{Client: cluster(t), Host: Host{Upstreams: []netip.AddrPort{netip.MustParseAddrPort(packets.LocalAddr().String())}}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 5 * time.Second}
		for name, want := range map[string]string{"web.shop.svc.cluster.local.": "A 10.43.0.7", "example.org.": "A 192.0.2.1"} {
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), at.String())
			if err != nil || show(m) != want {
				t.Errorf("%s %s: %v %v", network, name, m, err)
			}
		}
	}
	if n := len(asked); n != 1 {
		t.Errorf("the upstream was asked %d times, want once and then the cache", n)
	}
	cancel()
	<-ended
}

// listening is a server at a port that nobody else had.
func listening(t *testing.T, c Config) (*Server, netip.AddrPort) {
	t.Helper()
	c.Domain, c.Log = "cluster.local", slog.New(slog.DiscardHandler)
	var last error
	for range 100 {
		packets, stream := bothWays(t)
		at := netip.MustParseAddrPort(packets.LocalAddr().String())
		packets.Close()
		stream.Close()
		c.Listen = []netip.AddrPort{at}
		s, err := New(c)
		if err == nil {
			return s, at
		}
		last = err
	}
	t.Fatal(last)
	return nil, netip.AddrPort{}
}

func TestCacheEnds(t *testing.T) {
	var c cache
	q := inquiry{name: "example.org.", qtype: dns.TypeA}
	m := new(dns.Msg).SetReply(q.query(1, true))
	rr, err := dns.NewRR("example.org. 60 IN A 192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	m.Answer = []dns.RR{rr}
	now := time.Unix(1000, 0)
	c.put(".", cachePolicy{most: time.Minute}, q, m, now)
	if got := c.get(".", q, now.Add(20*time.Second), 0); got == nil || got.Answer[0].Header().Ttl != 40 {
		t.Errorf("after 20 s: %v", got)
	}
	if got := c.get(".", q, now.Add(61*time.Second), 0); got != nil {
		t.Errorf("after its end: %v", got)
	}
}

func FuzzFromArpa(f *testing.F) {
	f.Add("7.0.43.10.in-addr.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		if ip, ok := fromArpa(name); ok {
			back, err := dns.ReverseAddr(ip.String())
			if err != nil || len(back) == 0 {
				t.Errorf("%q gives %s, which has no reverse name: %v", name, ip, err)
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := quiet(b, Config{Client: cluster(b)})
	q := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		if m := s.Answer(q, netip.Addr{}, false); len(m.Answer) != 1 {
			b.Fatal(m)
		}
	}
}
