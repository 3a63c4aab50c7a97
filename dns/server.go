package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"coracle.dev/coracle/client"
)

// Config is what a Server needs.
type Config struct {
	Client client.Reader
	// Domain is the cluster domain, "cluster.local".
	Domain string
	// Listen is where to answer, on UDP and TCP.
	Listen []netip.AddrPort
	// Upstreams are asked for all other names, in order; none: such names are refused.
	Upstreams []netip.AddrPort
	Log       *slog.Logger
}

// Limits of forwarding.
const (
	forwardTimeout = 2 * time.Second // for each upstream
	forwardAtOnce  = 512             // more are answered SERVFAIL at once
	cacheEntries   = 10_000
	cacheMost      = 5 * time.Minute
)

// Server answers DNS queries. Make it with New, end it with Close.
type Server struct {
	Config
	zone    zone
	servers []*dns.Server
	slots   chan struct{}
	cache   cache
}

// New binds all addresses, so that queries are taken from its return on.
func New(c Config) (*Server, error) {
	s := &Server{Config: c, zone: zone{dns.Fqdn(strings.ToLower(c.Domain))}, slots: make(chan struct{}, forwardAtOnce)}
	var config net.ListenConfig
	for _, at := range c.Listen {
		packets, err := config.ListenPacket(context.Background(), "udp", at.String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen: %w", err), s.Close())
		}
		s.servers = append(s.servers, &dns.Server{PacketConn: packets, Handler: s, UDPSize: 4096})
		stream, err := config.Listen(context.Background(), "tcp", at.String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen: %w", err), s.Close())
		}
		s.servers = append(s.servers, &dns.Server{Listener: stream, Handler: s})
	}
	return s, nil
}

// Run answers until ctx is done or a listener fails.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.servers))
	var group sync.WaitGroup
	for _, server := range s.servers {
		group.Add(1)
		go func() {
			defer group.Done()
			failed <- server.ActivateAndServe()
		}()
	}
	defer group.Wait()
	defer s.Close()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-failed:
		return err
	}
}

// Close ends all listeners.
func (s *Server) Close() error {
	var errs []error
	for _, server := range s.servers {
		// A server that was never activated has only its socket to close.
		if err := server.Shutdown(); err != nil {
			if server.PacketConn != nil {
				errs = append(errs, ignoreClosed(server.PacketConn.Close()))
			}
			if server.Listener != nil {
				errs = append(errs, ignoreClosed(server.Listener.Close()))
			}
		}
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// ServeDNS answers one query; it implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.Answer(q, w.RemoteAddr().Network() == "tcp")
	if err := w.WriteMsg(m); err != nil {
		s.Log.Debug("dns answer not sent", "error", err)
	}
}

// Answer makes the answer to one query.
func (s *Server) Answer(q *dns.Msg, tcp bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || q.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	switch {
	case dns.IsSubDomain(s.zone.domain, name):
		s.reply(m, s.zone.ask(s.Client.Snapshot(), question.Name, question.Qtype))
	case question.Qtype == dns.TypePTR:
		a, ours := s.zone.reverse(s.Client.Snapshot(), question.Name)
		if !ours {
			m = s.forward(q, tcp)
			break
		}
		s.reply(m, a)
	default:
		m = s.forward(q, tcp)
	}
	fit(m, q, tcp)
	return m
}

// reply fills in an answer from the cluster's own zone.
func (s *Server) reply(m *dns.Msg, a answer) {
	m.Authoritative, m.RecursionAvailable = true, true
	m.Answer, m.Extra = a.records, a.extra
	// Callers take the first address: each gets another one first.
	rand.Shuffle(len(m.Answer), func(i, j int) { m.Answer[i], m.Answer[j] = m.Answer[j], m.Answer[i] })
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: s.zone.domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5},
			Ns: "ns.dns." + s.zone.domain, Mbox: "hostmaster." + s.zone.domain, Serial: 1,
			Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: 5}}
		if !a.exists {
			m.Rcode = dns.RcodeNameError
		}
	}
}

// fit cuts an answer to what the asker can take.
func fit(m, q *dns.Msg, tcp bool) {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(int(opt.UDPSize()), dns.MinMsgSize)
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, false)
		}
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	m.Compress = true
	m.Truncate(size)
}

// forward asks the upstreams, or the cache of their answers.
func (s *Server) forward(q *dns.Msg, tcp bool) *dns.Msg {
	failed := func(code int) *dns.Msg {
		m := new(dns.Msg)
		m.SetRcode(q, code)
		m.RecursionAvailable = true
		return m
	}
	if len(s.Upstreams) == 0 {
		return failed(dns.RcodeRefused)
	}
	if m := s.cache.get(q, time.Now()); m != nil {
		return m
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return failed(dns.RcodeServerFailure)
	}
	network := "udp"
	if tcp {
		network = "tcp"
	}
	c := dns.Client{Net: network, Timeout: forwardTimeout}
	for _, upstream := range s.Upstreams {
		m, _, err := c.Exchange(q.Copy(), upstream.String())
		if err != nil {
			s.Log.Debug("dns upstream failed", "upstream", upstream, "error", err)
			continue
		}
		m.Id = q.Id
		s.cache.put(q, m, time.Now())
		return m
	}
	return failed(dns.RcodeServerFailure)
}

// Upstreams reads the name servers of a resolv.conf, without those in except.
func Upstreams(path string, except ...netip.Addr) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var all []netip.AddrPort
	for _, server := range config.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil {
			continue
		}
		skip := false
		for _, e := range except {
			skip = skip || e == addr
		}
		if !skip {
			all = append(all, netip.AddrPortFrom(addr, 53))
		}
	}
	return all, nil
}
