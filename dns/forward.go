package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	// failover are codes with which an upstream is passed over for the next.
	failover []int
	// failfast asks nobody while all are down.
	failfast bool
	// limit is how many questions may be under way, 0 for any number; more are refused.
	limit  int64
	active atomic.Int64
	// tcp asks over TCP alone, and udp over UDP first whatever the client came by; tcp counts if both are set.
	tcp, udp bool
}

// stream says whether the question of a client that came over TCP or not goes on over TCP.
func (f *forwarder) stream(tcp bool) bool { return f.tcp || tcp && !f.udp }

// upstream is one server. It is down when it has not answered maxFails times in a row; then it is asked every probeEvery until it
// answers, and in earnest only if all are down.
type upstream struct {
	at       netip.AddrPort
	tcp      bool // it answers over TCP alone, perhaps
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
		case "prefer_udp":
			f.udp = true
		case "failfast_all_unhealthy_upstreams":
			f.failfast = true
		case "max_concurrent":
			if f.limit, err = strconv.ParseInt(strings.Join(o.Words[1:], " "), 10, 64); err != nil || f.limit < 0 {
				return o.Errorf("max_concurrent takes a number")
			}
		case "failover":
			for _, w := range o.Words[1:] {
				if code := dns.StringToRcode[strings.ToUpper(w)]; code != dns.RcodeSuccess {
					f.failover = append(f.failover, code)
				}
			}
			if len(f.failover) == 0 || len(f.failover) != len(o.Words)-1 {
				return o.Errorf("failover takes codes such as SERVFAIL, and not NOERROR")
			}
		case "health_check", "next":
			c.note(o, o.Words[0]+" is passed over")
		case "expire", "max_age", "max_idle_conns": // no connection is kept
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
	for _, u := range f.upstreams {
		u.tcp = f.tcp
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

// down says that none of the upstreams is up.
func (f *forwarder) down() bool {
	return !slices.ContainsFunc(f.upstreams, func(u *upstream) bool { return !u.down() })
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
