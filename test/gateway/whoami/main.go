// Command whoami is what the suite's UDP tests need of CoreDNS: it answers every query at port 53 with the address of who asks. Its
// image stands in for registry.k8s.io/coredns/coredns.
package main

import (
	"log"
	"net"

	"github.com/miekg/dns"
)

func main() {
	answer := func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if from, ok := w.RemoteAddr().(*net.UDPAddr); ok && len(r.Question) == 1 {
			m.Extra = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: from.IP.To4()}}
		}
		if err := w.WriteMsg(m); err != nil {
			log.Print(err)
		}
	}
	log.Fatal((&dns.Server{Addr: ":53", Net: "udp", Handler: dns.HandlerFunc(answer)}).ListenAndServe())
}
