package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/datagram"
	"coracle.dev/coracle/reconcile"
)

// Config is what a Server needs.
type Config struct {
	Client client.Reader
	// Domain is the cluster domain, "cluster.local".
	Domain string
	// Listen is where to answer, on UDP and TCP.
	Listen []netip.AddrPort
	// Host is what the node's own resolver would do; without upstreams, names outside of the cluster are refused.
	Host Host
	// Event records what is said of the config map kube-system/coredns; nil for nowhere.
	Event func(reconcile.Event)
	Log   *slog.Logger
}

// Limits of the server.
const (
	waitingAtOnce   = 2048 // queries that wait for upstreams; more are answered SERVFAIL at once
	waitingOfOne    = 512  // of one client, so that it leaves room for others
	connections     = 512  // over TCP, on each address
	maxReaders      = 4    // sockets on each address
	batchSize       = 32   // datagrams that are read at once
	maxDatagram     = 1500
	answersByReader = 4096
)

// Server answers DNS queries. Make it with New, end it with Close.
type Server struct {
	Config
	addresses []string // of Listen, for the name ns.dns
	settings  atomic.Pointer[settings]
	epoch     epoch
	conns     []*datagram.Conn
	streams   []*dns.Server
	slots     chan struct{}
	clients   clients
	exchanger exchanger
	waiting   sync.WaitGroup // for upstreams
}

// New binds all addresses, so that queries are taken from its return on.
func New(c Config) (*Server, error) {
	s := &Server{Config: c, slots: make(chan struct{}, waitingAtOnce)}
	s.exchanger.ctx, s.exchanger.cancel = context.WithCancel(context.Background())
	for _, at := range c.Listen {
		s.addresses = append(s.addresses, at.Addr().String())
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	for _, at := range c.Listen {
		if err := s.listen(at); err != nil {
			return nil, errors.Join(fmt.Errorf("listen: %w", err), s.Close())
		}
	}
	return s, nil
}

// listen opens the sockets of an address.
func (s *Server) listen(at netip.AddrPort) error {
	var config net.ListenConfig
	stream, err := config.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return err
	}
	s.streams = append(s.streams, &dns.Server{Listener: netutil.LimitListener(stream, connections), Handler: s})
	for range min(runtime.GOMAXPROCS(0), maxReaders) {
		conn, err := datagram.Listen(at)
		if err != nil {
			return err
		}
		s.conns = append(s.conns, conn)
	}
	return nil
}

// Run answers until ctx is done or a listener fails.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(s.streams)+len(s.conns))
	var group sync.WaitGroup
	for _, server := range s.streams {
		group.Go(func() { failed <- server.ActivateAndServe() })
	}
	for _, conn := range s.conns {
		group.Go(func() { failed <- s.read(ctx, conn) })
	}
	group.Go(func() { s.follow(ctx) })
	defer group.Wait()
	defer s.Close()
	defer cancel()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-failed:
		return err
	}
}

// Close ends all listeners, and waits for those who wait for upstreams.
func (s *Server) Close() error {
	var errs []error
	for _, server := range s.streams {
		// A server that was never activated has only its socket to close.
		if err := server.Shutdown(); err != nil {
			errs = append(errs, ignoreClosed(server.Listener.Close()))
		}
	}
	for _, conn := range s.conns {
		errs = append(errs, ignoreClosed(conn.Close()))
	}
	s.exchanger.cancel()
	s.waiting.Wait()
	s.exchanger.close()
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// reader answers the datagrams of one socket. It belongs to one goroutine.
type reader struct {
	server  *Server
	conn    *datagram.Conn
	batch   *datagram.Batch
	out     [][]byte
	scratch [256]byte
	key     []byte
	// answers are those that were given, by type, search and name; they are dropped together when there are too many.
	answers map[string]*packed
}

// read answers the datagrams of a socket until it is closed.
func (s *Server) read(ctx context.Context, conn *datagram.Conn) error {
	r := &reader{server: s, conn: conn, batch: datagram.NewBatch(batchSize, maxDatagram), out: make([][]byte, batchSize),
		key: make([]byte, 0, 300), answers: map[string]*packed{}}
	for {
		n, err := conn.Receive(r.batch)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return ctx.Err()
			}
			return err
		}
		now := time.Now()
		for i := range n {
			r.one(i, now)
		}
		if err := conn.Send(r.batch); err != nil && ctx.Err() == nil {
			s.Log.Debug("dns answers not sent", "error", err)
		}
	}
}

// one answers a datagram, at once or in a goroutine that may wait.
func (r *reader) one(i int, now time.Time) {
	data := r.batch.Data(i)
	q, ok := parse(data, r.scratch[:])
	if !ok {
		r.later(i)
		return
	}
	p := r.find(&q, data, r.batch.Peer(i), now)
	if p == nil {
		r.later(i)
		return
	}
	out := p.appendTo(r.out[i][:0], data, &q, now.Unix())
	if out == nil {
		r.later(i)
		return
	}
	r.out[i] = out
	r.batch.Reply(i, out)
}

// find gives the answer to a plain question, nil if it needs time or care.
func (r *reader) find(q *question, data []byte, peer *datagram.Peer, now time.Time) *packed {
	epoch := r.server.epoch.now()
	p := r.lookup(q, 0, epoch, now)
	if p == nil {
		if p = r.make(q, data, netip.Addr{}, false, epoch, now); p == nil {
			return nil
		}
	}
	if !p.search {
		return p
	}
	name, _, err := dns.UnpackDomainName(data, headerSize)
	if err != nil {
		return nil
	}
	switch r.server.searchesPlainly(peer.Addr(), strings.ToLower(name)) {
	case searchNone:
		return p
	case searchOwn:
		return nil // a path of its own: its answers are not those of others
	}
	if p := r.lookup(q, 1, epoch, now); p != nil {
		return p
	}
	return r.make(q, data, peer.Addr(), true, epoch, now)
}

// lookup finds an answer that was given before and still holds.
func (r *reader) lookup(q *question, search byte, epoch uint64, now time.Time) *packed {
	r.key = append(append(r.key[:0], byte(q.qtype>>8), byte(q.qtype), search), q.name...)
	if p := r.answers[string(r.key)]; p != nil && p.holds(epoch, now.Unix()) {
		return p
	}
	return nil
}

// make makes an answer that can be had without waiting, and keeps it. r.key is its key.
func (r *reader) make(q *question, data []byte, source netip.Addr, search bool, epoch uint64, now time.Time) *packed {
	name, _, err := dns.UnpackDomainName(data, headerSize)
	if err != nil {
		return nil
	}
	s := r.server
	settings := s.settings.Load()
	req := &request{server: s, ctx: context.Background(), settings: settings, snapshot: s.Client.Snapshot(),
		source: source, now: now, local: true, search: search}
	name = strings.ToLower(name)
	if b := settings.find(name); b == nil || b.log {
		return nil
	}
	out := req.resolve(name, q.qtype)
	if req.blocked || out.truncated || out.life < time.Second {
		return nil
	}
	p, err := pack(out.message(name, q.qtype), out.life, epoch, now)
	if err != nil {
		return nil
	}
	p.search = req.searchable && !search
	if len(r.answers) >= answersByReader {
		clear(r.answers)
	}
	r.answers[string(r.key)] = p
	return p
}

// searchKind says what the pod that asks has for a search path.
type searchKind uint8

const (
	searchNone  searchKind = iota // none that begins with this namespace
	searchPlain                   // what every pod of the namespace has
	searchOwn                     // one with entries of its own
)

// searchesPlainly says whose search path applies to a name, if any does.
func (s *Server) searchesPlainly(source netip.Addr, name string) searchKind {
	settings := s.settings.Load()
	b := settings.find(name)
	if b == nil || b.kubernetes == nil {
		return searchNone
	}
	_, namespace, ok := b.kubernetes.searched(name)
	if !ok {
		return searchNone
	}
	snapshot := s.Client.Snapshot()
	pod := podAt(snapshot, source)
	if _, ok := s.searches(snapshot, source, namespace, ""); !ok || pod == nil {
		return searchNone
	}
	if c := pod.Spec.DNSConfig; c != nil && len(c.Searches) > 0 {
		return searchOwn
	}
	return searchPlain
}

// later hands a datagram to a goroutine that may wait.
func (r *reader) later(i int) {
	s := r.server
	q := new(dns.Msg)
	if err := q.Unpack(r.batch.Data(i)); err != nil || q.Response {
		return // nobody can be told
	}
	peer := *r.batch.Peer(i)
	from := peer.Addr()
	if !s.enter(from) {
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeServerFailure)
		if out, err := m.Pack(); err == nil {
			r.out[i] = out
			r.batch.Reply(i, out)
		}
		return
	}
	s.waiting.Go(func() {
		defer s.leave(from)
		out, err := s.Answer(q, peer.Addr(), false).Pack()
		if err == nil {
			err = r.conn.WriteTo(out, &peer)
		}
		if err != nil {
			s.Log.Debug("dns answer not sent", "error", err)
		}
	})
}

// clients counts the queries that wait, by who asked. The zero value is empty, and it is safe for concurrent use.
type clients struct {
	mu      sync.Mutex // guards waiting
	waiting map[netip.Addr]int
}

// enter takes a place for a query that may wait, false if there is none for this client. leave gives it back.
func (s *Server) enter(from netip.Addr) bool {
	c := &s.clients
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[from] >= waitingOfOne {
		return false
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return false
	}
	if c.waiting == nil {
		c.waiting = map[netip.Addr]int{}
	}
	c.waiting[from]++
	return true
}

func (s *Server) leave(from netip.Addr) {
	<-s.slots
	c := &s.clients
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[from]--; c.waiting[from] == 0 {
		delete(c.waiting, from)
	}
}

// ServeDNS answers one query over TCP; it implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	var source netip.Addr
	if at, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		source = at.AddrPort().Addr().Unmap()
	}
	s.slots <- struct{}{} // connections are bounded, so that what waits here is
	defer func() { <-s.slots }()
	if err := w.WriteMsg(s.Answer(q, source, true)); err != nil {
		s.Log.Debug("dns answer not sent", "error", err)
	}
}

// Answer makes the answer to one query. source is the address of the client, whose search path may matter; the zero value is nobody's.
func (s *Server) Answer(q *dns.Msg, source netip.Addr, tcp bool) *dns.Msg {
	m := new(dns.Msg)
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		m.SetRcode(q, dns.RcodeBadVers)
		m.SetEdns0(datagramSize, false)
		return m
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return m.SetRcode(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return m.SetRcode(q, dns.RcodeFormatError)
	case q.Question[0].Qclass != dns.ClassINET || q.Question[0].Qtype == dns.TypeAXFR || q.Question[0].Qtype == dns.TypeIXFR:
		return m.SetRcode(q, dns.RcodeRefused)
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	start := time.Now()
	opt := q.IsEdns0()
	r := &request{server: s, ctx: s.exchanger.ctx, settings: s.settings.Load(), snapshot: s.Client.Snapshot(), source: source, tcp: tcp, now: start,
		search: true, dnssec: opt != nil && opt.Do(), unchecked: q.CheckingDisabled}
	out := r.resolve(name, question.Qtype)
	m = out.message(name, question.Qtype)
	m.Id, m.RecursionDesired, m.CheckingDisabled = q.Id, q.RecursionDesired, q.CheckingDisabled
	// Who asks for neither is not told (RFC 6840, section 5.8).
	m.AuthenticatedData = out.authentic && (q.AuthenticatedData || r.dnssec)
	shuffle(m.Answer)
	restore(m, name, question.Name)
	fit(m, q, tcp)
	if b := r.settings.find(name); b != nil && b.log {
		s.Log.Info("dns", "client", source, "name", question.Name, "type", dns.Type(question.Qtype).String(), "rcode", dns.RcodeToString[m.Rcode],
			"answers", len(m.Answer), "took", time.Since(start))
	}
	return m
}

// shuffle puts another address first for each caller, if there are only addresses.
func shuffle(answers []dns.RR) {
	for _, rr := range answers {
		if t := rr.Header().Rrtype; t != dns.TypeA && t != dns.TypeAAAA && t != dns.TypeSRV {
			return
		}
	}
	rand.Shuffle(len(answers), func(i, j int) { answers[i], answers[j] = answers[j], answers[i] })
}

// restore writes the name as the client did.
func restore(m *dns.Msg, name, as string) {
	if name == as {
		return
	}
	m.Question[0].Name = as
	for _, rr := range m.Answer {
		if rr.Header().Name == name {
			rr.Header().Name = as
		}
	}
}

// fit cuts an answer to what the asker can take.
func fit(m, q *dns.Msg, tcp bool) {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(int(opt.UDPSize()), dns.MinMsgSize)
		m.SetEdns0(datagramSize, opt.Do())
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	m.Compress = true
	cut := m.Truncated
	m.Truncate(size)
	m.Truncated = m.Truncated || cut
}
