package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"coracle.dev/coracle/dns/corefile"
)

// Limits of forwarding.
const (
	forwardTimeout = 2 * time.Second // for each upstream
	forwardInAll   = 5 * time.Second
	probeEvery     = 500 * time.Millisecond
	maxFails       = 2
)

// forwarder passes questions about a zone's names on to upstreams.
type forwarder struct {
	zone      string
	except    []string
	upstreams []*upstream
	policy    string // random, round_robin or sequential
	next      atomic.Uint32
	tcp       bool
}

// upstream is one server. It is down when it has not answered maxFails times in a row; then it is asked every probeEvery until it
// answers, and in earnest only if all are down.
type upstream struct {
	at       netip.AddrPort
	maxFails uint32
	fails    atomic.Uint32
	probing  atomic.Bool
	gone     atomic.Bool // its configuration was replaced
}

func (u *upstream) down() bool { return u.maxFails > 0 && u.fails.Load() >= u.maxFails }

// forwardDirective reads "forward FROM TO... { except; force_tcp; prefer_udp; policy; max_fails; ... }".
func (c *compiler) forwardDirective(b *block, l *corefile.Line, args []string) error {
	if len(args) < 2 {
		return l.Errorf("forward takes the zone and then the upstreams: addresses, or /etc/resolv.conf for the node's")
	}
	names, err := zones(l, args[:1])
	if err != nil {
		return err
	}
	f := &forwarder{zone: names[0], policy: "random"}
	fails := uint32(maxFails)
	for i := range l.Block {
		o := &l.Block[i]
		switch o.Words[0] {
		case "except":
			if f.except, err = zones(o, o.Words[1:]); err != nil {
				return err
			}
		case "policy":
			if len(o.Words) != 2 || !slices.Contains([]string{"random", "round_robin", "sequential"}, o.Words[1]) {
				return o.Errorf("policy takes random, round_robin or sequential")
			}
			f.policy = o.Words[1]
		case "force_tcp":
			f.tcp = true
		case "max_fails":
			n, err := strconv.ParseUint(strings.Join(o.Words[1:], " "), 10, 31)
			if err != nil {
				return o.Errorf("max_fails takes a number")
			}
			fails = uint32(n)
		case "prefer_udp", "expire", "health_check", "max_concurrent", "next", "failfast_all_unhealthy_upstreams", "failover", "max_age", "max_idle_conns":
		default:
			return o.Errorf("forward has no option %q here", o.Words[0])
		}
	}
	for _, to := range args[1:] {
		if strings.HasPrefix(to, "/") {
			// A resolv.conf: the node's, whatever the path.
			for _, at := range c.upstreams {
				f.upstreams = append(f.upstreams, &upstream{at: at, maxFails: fails})
			}
			continue
		}
		at, err := parseUpstream(to)
		if err != nil {
			return l.Errorf("%v", err)
		}
		f.upstreams = append(f.upstreams, &upstream{at: at, maxFails: fails})
	}
	b.forwards = append(b.forwards, f)
	return nil
}

func parseUpstream(text string) (netip.AddrPort, error) {
	rest, _ := strings.CutPrefix(text, "dns://")
	if strings.Contains(rest, "://") {
		return netip.AddrPort{}, fmt.Errorf("the upstream %s is not known here: only dns:// is", text)
	}
	if at, err := netip.ParseAddrPort(rest); err == nil {
		return at, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(rest, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the upstream %q is not an address, with or without a port", text)
	}
	return netip.AddrPortFrom(addr, 53), nil
}

// order lists the upstreams as they are to be asked: those that are down last.
func (f *forwarder) order() []*upstream {
	all := slices.Clone(f.upstreams)
	switch n := len(all); {
	case n < 2:
	case f.policy == "random":
		rand.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
	case f.policy == "round_robin":
		first := int(f.next.Add(1)) % n
		all = slices.Concat(all[first:], all[:first])
	}
	slices.SortStableFunc(all, func(a, b *upstream) int {
		switch ad, bd := a.down(), b.down(); {
		case ad == bd:
			return 0
		case ad:
			return 1
		}
		return -1
	})
	return all
}

// forwarder gives the first of a block's that is for a name, nil if none is.
func (b *block) forwarder(name string) *forwarder {
	for _, f := range b.forwards {
		if dns.IsSubDomain(f.zone, name) && !slices.ContainsFunc(f.except, func(z string) bool { return dns.IsSubDomain(z, name) }) {
			return f
		}
	}
	return nil
}

var errNoUpstream = errors.New("there is no upstream")

// exchanger asks upstreams, and watches those that do not answer.
type exchanger struct {
	group  sync.WaitGroup // of probes
	ctx    context.Context
	cancel context.CancelFunc
}

// ask asks one upstream after the other until one answers.
func (x *exchanger) ask(ctx context.Context, f *forwarder, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardInAll)
	defer cancel()
	failed := errNoUpstream
	for _, u := range f.order() {
		m, err := exchange(ctx, u.at, q, tcp || f.tcp)
		if err == nil {
			u.fails.Store(0)
			return m, nil
		}
		failed = fmt.Errorf("upstream %s: %w", u.at, err)
		if ctx.Err() != nil {
			break
		}
		u.fails.Add(1)
		x.probe(u)
	}
	return nil, failed
}

func exchange(ctx context.Context, at netip.AddrPort, q *dns.Msg, tcp bool) (*dns.Msg, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	c := dns.Client{Net: network, Timeout: forwardTimeout, Dialer: &net.Dialer{Timeout: forwardTimeout}}
	out := q.Copy()
	out.Id = dns.Id()
	m, _, err := c.ExchangeContext(ctx, out, at.String())
	if err != nil {
		return nil, err
	}
	if m.Id != out.Id || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("the answer is to another question")
	}
	m.Id = q.Id
	return m, nil
}

// probe asks an upstream that failed for something that every server knows, again and again until it answers anything. There is at
// most one probe of each.
func (x *exchanger) probe(u *upstream) {
	if u.maxFails == 0 || x.ctx.Err() != nil || !u.probing.CompareAndSwap(false, true) {
		return
	}
	x.group.Go(func() {
		defer u.probing.Store(false)
		q := new(dns.Msg).SetQuestion(".", dns.TypeNS)
		for {
			ctx, cancel := context.WithTimeout(x.ctx, forwardTimeout)
			_, err := exchange(ctx, u.at, q, false)
			cancel()
			if err == nil {
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

// Host is what the node's resolv.conf says.
type Host struct {
	// Upstreams are its name servers, and Searches its search domains.
	Upstreams []netip.AddrPort
	Searches  []string
}

// ReadHost reads a resolv.conf(5), without the servers in except.
func ReadHost(path string, except ...netip.Addr) (Host, error) {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return Host{}, fmt.Errorf("read %s: %w", path, err)
	}
	var h Host
	for _, server := range config.Servers {
		addr, err := netip.ParseAddr(server)
		if err == nil && !slices.Contains(except, addr) {
			h.Upstreams = append(h.Upstreams, netip.AddrPortFrom(addr, 53))
		}
	}
	for _, s := range config.Search {
		if zone, err := canonical(s); err == nil && zone != "." {
			h.Searches = append(h.Searches, zone)
		}
	}
	return h, nil
}
