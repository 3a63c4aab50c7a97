package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// dnsQueries is how many queries are sent for each line of the table, by dnsClients that each wait for their answers.
const (
	dnsQueries = 200_000
	dnsClients = 16
	// dnsRate is the load, in queries a second, under which waiting times are measured: what is asked of one core.
	dnsRate = 30_000
	// dnsPaced is how long that load goes on.
	dnsPaced = 5 * time.Second
)

// names measures the cluster's DNS over UDP: queries per second as they come, and what each costs the server.
func (b *bench) names() error {
	i, _, err := b.start()
	if err != nil {
		return err
	}
	defer i.remove()
	c, err := i.client(true)
	if err != nil {
		return err
	}
	upstream, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &dns.Server{PacketConn: upstream, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(m)
	})}
	go server.ActivateAndServe() //nolint:errcheck // ended with the process
	corefile := strings.ReplaceAll(".:53 {\n autopath @kubernetes\n kubernetes cluster.local in-addr.arpa {\n pods insecure\n fallthrough in-addr.arpa\n }\n forward . UP\n cache 300\n}\n", "UP", upstream.LocalAddr().String())
	if _, err := c.CoreV1().ConfigMaps("kube-system").Create(b.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "coredns"},
		Data: map[string]string{"Corefile": corefile}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	svc, err := c.CoreV1().Services("kube-system").Get(b.ctx, "kube-dns", metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, test := range []struct{ what, name string }{
		{"a service", "kubernetes.default.svc.cluster.local."},
		{"a name that is not there", "nothing.default.svc.cluster.local."},
		{"a cached name of an upstream", "www.example.org."},
	} {
		if err := b.query(i, net.JoinHostPort(svc.Spec.ClusterIP, "53"), test.what, test.name); err != nil {
			return err
		}
	}
	return b.forwarded(i, net.JoinHostPort(svc.Spec.ClusterIP, "53"))
}

// dnsForwarded is how many names that nobody asked for before are asked for.
const dnsForwarded = 20_000

// forwarded measures queries that an upstream on this machine has to answer.
func (b *bench) forwarded(i *instance, at string) error {
	conn, err := net.Dial("udp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	before, err := i.cpu()
	if err != nil {
		return err
	}
	var all []time.Duration
	for n := range dnsForwarded {
		data, err := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.org.", n), dns.TypeA).Pack()
		if err != nil {
			return err
		}
		took, err := askOver(conn, data, 1)
		if err != nil {
			return err
		}
		all = append(all, took...)
	}
	after, err := i.cpu()
	if err != nil {
		return err
	}
	b.add("DNS, a name that an upstream is asked for: server CPU a query", fmt.Sprintf("%.1f us", float64((after-before).Nanoseconds())/1000/dnsForwarded), "")
	b.add("DNS, a name that an upstream is asked for: p50 and p99", quantiles(all), "")
	return nil
}

func (b *bench) query(i *instance, at, what, name string) error {
	data, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		return err
	}
	if _, err := ask(at, data, 100); err != nil { // what is kept is kept from here on
		return err
	}
	before, err := i.cpu()
	if err != nil {
		return err
	}
	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards all and failed
		all   []time.Duration
		bad   error
	)
	start := time.Now()
	for range dnsClients {
		group.Go(func() {
			took, err := ask(at, data, dnsQueries/dnsClients)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				bad = err
			}
		})
	}
	group.Wait()
	wall := time.Since(start)
	if bad != nil {
		return bad
	}
	after, err := i.cpu()
	if err != nil {
		return err
	}
	cost := (after - before) / time.Duration(len(all))
	b.add("DNS, "+what+": server CPU a query", fmt.Sprintf("%.1f us", float64(cost.Nanoseconds())/1000), "33 us (30,000/s a core)")
	b.add("DNS, "+what+": with the clients on the same machine", fmt.Sprintf("%.0f/s", float64(len(all))/wall.Seconds()), "")
	b.add("DNS, "+what+": p50 and p99 then", quantiles(all), "")
	all, rate, err := paced(at, data)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("DNS, %s: p50 and p99 at %.0f/s", what, rate), quantiles(all), "p99 < 2 ms at 30,000/s")
	return nil
}

func quantiles(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("%s, %s", all[len(all)/2].Round(time.Microsecond), all[len(all)*99/100].Round(time.Microsecond))
}

// paced sends a query at dnsRate in all, and gives the rate that came of it. A client that is late sends what it owes at once.
func paced(at string, data []byte) (all []time.Duration, rate float64, err error) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards all and err
	)
	start := time.Now()
	for range dnsClients {
		group.Go(func() {
			var mine []time.Duration
			conn, failed := net.Dial("udp", at)
			if failed == nil {
				defer conn.Close()
			}
			for failed == nil && time.Since(start) < dnsPaced {
				owed := int(time.Since(start).Seconds()*dnsRate/dnsClients) - len(mine)
				if owed <= 0 {
					time.Sleep(time.Millisecond / 2) // the load is one in time
					continue
				}
				var took []time.Duration
				took, failed = askOver(conn, data, owed)
				mine = append(mine, took...)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if failed != nil {
				err = failed
			}
		})
	}
	group.Wait()
	return all, float64(len(all)) / time.Since(start).Seconds(), err
}

// ask sends a query again and again from one socket, each when the one before was answered.
func ask(at string, data []byte, n int) ([]time.Duration, error) {
	conn, err := net.Dial("udp", at)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return askOver(conn, data, n)
}

func askOver(conn net.Conn, data []byte, n int) ([]time.Duration, error) {
	took := make([]time.Duration, 0, n)
	buf := make([]byte, 1500)
	for range n {
		start := time.Now()
		if err := conn.SetDeadline(start.Add(5 * time.Second)); err != nil {
			return nil, err
		}
		if _, err := conn.Write(data); err != nil {
			return nil, err
		}
		if _, err := conn.Read(buf); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}
