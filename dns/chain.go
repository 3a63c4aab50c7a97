package dns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// forever is the life of what holds until the epoch changes.
const forever = time.Duration(1<<63 - 1)

// walkTimeout bounds the walk of a search path, below the five seconds after which clients ask again.
const walkTimeout = 2 * time.Second

// maxChase is how many aliases are followed.
const maxChase = 8

// request is a question on its way through the directives.
type request struct {
	server   *Server
	ctx      context.Context
	settings *settings
	snapshot store.Snapshot
	// dnssec says that the client wants signatures, and unchecked that it checks them itself.
	dnssec, unchecked bool
	source            netip.Addr
	tcp               bool
	now               time.Time
	// local asks for an answer without waiting for anybody; blocked then says that there is none.
	local, blocked bool
	// search says that a search path may be walked for the client; searchable then that the name is of the form for it.
	search     bool
	searchable bool
	walking    bool
}

// outcome is the answer to a question.
type outcome struct {
	rcode             int
	answer, ns, extra []dns.RR
	authoritative     bool
	truncated         bool
	authentic         bool          // as the upstream says that validated it
	life              time.Duration // for how long it holds, 0 for not at all
}

// resolve answers a question about a name in lower case.
func (r *request) resolve(name string, qtype uint16) outcome {
	out := r.ask(name, qtype, 0)
	b := r.settings.find(name)
	if out.rcode != dns.RcodeNameError || b == nil || !b.autopath || r.blocked {
		return out
	}
	relative, namespace, ok := b.kubernetes.searched(name)
	if !ok {
		return out
	}
	r.searchable = true
	if !r.search {
		return out
	}
	paths, ok := r.server.searches(r.snapshot, r.source, namespace, strings.TrimPrefix(name, relative+"."+namespace+".svc."))
	if !ok {
		return out
	}
	// The client would ask all of this itself: it must not wait longer for it than it would for one of its own queries, and goes on
	// by itself where this gives up.
	ctx, cancel := context.WithTimeout(r.ctx, walkTimeout)
	defer cancel()
	r.ctx, r.walking = ctx, true
	for _, path := range paths {
		next := relative + "." + path
		if path == "." {
			if !strings.Contains(relative, ".") {
				break // names of one label are nobody's outside
			}
			next = relative + "."
		}
		found := r.ask(next, qtype, 0)
		if r.blocked {
			return found
		}
		if found.rcode == dns.RcodeServerFailure {
			out.life = 0
			return out // nobody knows
		}
		if found.rcode != dns.RcodeSuccess {
			out.life = min(out.life, max(found.life, time.Second))
			continue
		}
		// What follows the alias holds no longer than it does, and the other way round.
		ttl := uint32(denialTTL)
		for _, rr := range found.answer {
			ttl = rr.Header().Ttl
			break
		}
		alias := &dns.CNAME{Hdr: header(name, dns.TypeCNAME, ttl), Target: next}
		found.answer = append([]dns.RR{alias}, found.answer...)
		found.authentic = false // nobody signed the alias
		return found
	}
	return out
}

// searched takes a name apart that the first entry of a pod's search path may have been put behind:
// <relative>.<namespace>.svc.<domain>.
func (k *kubernetes) searched(name string) (relative, namespace string, ok bool) {
	for _, z := range k.zones {
		rest, is := strings.CutSuffix(name, ".svc."+z.domain)
		if !is {
			continue
		}
		if i := strings.LastIndexByte(rest, '.'); i > 0 {
			return rest[:i], rest[i+1:], true
		}
	}
	return "", "", false
}

// searches gives what follows the first entry of the search path of the pod that asks, "." last; ok is false if it is no pod of that
// namespace that has such a path.
func (s *Server) searches(snapshot store.Snapshot, source netip.Addr, namespace, domain string) (paths []string, ok bool) {
	pod := podAt(snapshot, source)
	if pod == nil || pod.Namespace != namespace || pod.Spec.DNSPolicy != corev1.DNSClusterFirst {
		return nil, false
	}
	paths = append(paths, "svc."+domain, domain)
	if c := pod.Spec.DNSConfig; c != nil {
		for _, search := range c.Searches {
			if zone, err := canonical(search); err == nil {
				paths = append(paths, zone)
			}
		}
	}
	paths = append(paths, s.Host.Searches...)
	return append(paths, "."), true
}

// podAt is the pod with an address of its own, nil if there is none or more than one.
func podAt(snapshot store.Snapshot, addr netip.Addr) *corev1.Pod {
	var found *corev1.Pod
	for p := range client.Pods.Index(snapshot, "ip", addr.String()) {
		if found != nil {
			return nil
		}
		found = p
	}
	return found
}

// ask sends a question through the directives of its server block, and follows aliases.
func (r *request) ask(name string, qtype uint16, depth int) outcome {
	b := r.settings.find(name)
	if b == nil {
		return outcome{rcode: dns.RcodeRefused}
	}
	asked, kind := b.rewritten(name, qtype)
	out := r.direct(b, asked, kind)
	if n := len(out.answer); n > 0 && kind != dns.TypeCNAME && depth < maxChase && out.authoritative {
		if alias, ok := out.answer[n-1].(*dns.CNAME); ok {
			more := r.ask(strings.ToLower(alias.Target), kind, depth+1)
			out.rcode, out.life = more.rcode, min(out.life, more.life)
			out.answer = append(out.answer, more.answer...)
			out.ns, out.extra = more.ns, more.extra
		}
	}
	if asked != name {
		out.authentic = false // of another name
		for _, section := range [][]dns.RR{out.answer, out.ns, out.extra} {
			for i, rr := range section {
				if strings.EqualFold(rr.Header().Name, asked) {
					section[i] = dns.Copy(rr)
					section[i].Header().Name = name
				}
			}
		}
	}
	return out
}

// direct asks the directives of a block in their order: hosts, kubernetes, forward.
func (r *request) direct(b *block, name string, qtype uint16) outcome {
	for _, h := range b.hosts {
		if a, ok := h.ask(name, qtype); ok {
			return settled(a, nil)
		}
	}
	if k := b.kubernetes; k != nil {
		if a, z, ok := r.kubernetes(k, name, qtype); ok {
			return settled(a, z.soa())
		}
	}
	if f := b.forwarder(name); f != nil {
		return r.forward(b, f, name, qtype)
	}
	return outcome{rcode: dns.RcodeRefused}
}

// kubernetes answers from the snapshot; ok is false if the next directive has to.
func (r *request) kubernetes(k *kubernetes, name string, qtype uint16) (a answer, z zone, ok bool) {
	for _, z := range k.zones {
		if dns.IsSubDomain(z.domain, name) {
			z.address = r.server.addresses
			a := z.ask(r.snapshot, name, qtype)
			return a, z, a.exists || !k.fallthru.has(name)
		}
	}
	for _, reverse := range k.reverse {
		if !dns.IsSubDomain(reverse, name) || len(k.zones) == 0 {
			continue
		}
		if a, ok := k.zones[0].reverse(r.snapshot, name, qtype); ok {
			return a, k.zones[0], true
		}
		return answer{}, zone{domain: reverse, rules: k}, !k.fallthru.has(name)
	}
	return a, z, false
}

// settled is an answer that is known for certain. soa goes with denials, if there is one.
func settled(a answer, soa *dns.SOA) outcome {
	out := outcome{authoritative: true, answer: a.records, extra: a.extra, life: forever}
	if !a.exists {
		out.rcode = dns.RcodeNameError
	}
	if len(a.records) == 0 && soa != nil {
		out.ns = []dns.RR{soa}
	}
	return out
}

// forward answers from the cache, or asks upstreams, or answers from what the cache had.
func (r *request) forward(b *block, f *forwarder, name string, qtype uint16) outcome {
	i := inquiry{name: name, qtype: qtype, dnssec: r.dnssec, unchecked: r.unchecked}
	cache := &r.settings.cache
	if m := cache.get(b.zone, i, r.now, 0); m != nil {
		return foreign(m, lifeOf(m, b.cache))
	}
	if r.local {
		r.blocked = true
		return outcome{}
	}
	if len(f.upstreams) == 0 {
		return outcome{rcode: dns.RcodeRefused}
	}
	if (r.walking || f.failfast) && f.down() {
		return outcome{rcode: dns.RcodeServerFailure}
	}
	if f.active.Add(1) > f.limit && f.limit > 0 {
		f.active.Add(-1)
		return outcome{rcode: dns.RcodeRefused}
	}
	m, err := r.exchange(b, f, i)
	f.active.Add(-1)
	if err == nil {
		return foreign(m, b.cache.lifetime(m))
	}
	if b.errors {
		r.server.Log.Warn("a name could not be asked for upstream", "name", name, "type", dns.Type(qtype).String(), "error", err)
	}
	if b.cache.stale > 0 {
		if m := cache.get(b.zone, i, r.now, b.cache.stale); m != nil {
			return foreign(m, 0)
		}
	}
	return outcome{rcode: dns.RcodeServerFailure}
}

// flight is a question that upstreams are being asked.
func (i inquiry) flight(zone string, tcp bool) string {
	return fmt.Sprint(zone, " ", i.name, " ", i.qtype, i.dnssec, i.unchecked, tcp)
}

// exchange asks the upstreams of a block and keeps what they say. Those who ask the same of the same configuration at the same time ask
// once. The answer is the caller's.
func (r *request) exchange(b *block, f *forwarder, i inquiry) (*dns.Msg, error) {
	settings, x, tcp := r.settings, &r.server.exchanger, f.stream(r.tcp)
	// It goes on for those who wait longer, and for the cache, when one of them has given up; it has a time-out of its own.
	results := settings.flights.DoChan(i.flight(b.zone, tcp), func() (any, error) {
		m, err := x.ask(x.ctx, f, i, tcp)
		if err == nil && !i.unchecked {
			settings.cache.put(b.zone, b.cache, i, m, time.Now())
		}
		return m, err
	})
	select {
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	case got := <-results:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(*dns.Msg).Copy(), nil
	}
}

// lifeOf is how much longer an answer from the cache holds: its lifetimes have been shortened by its age.
func lifeOf(m *dns.Msg, p cachePolicy) time.Duration { return p.lifetime(m) }

// foreign is what an upstream says. Codes that only clients with options can be told are failures to them.
func foreign(m *dns.Msg, life time.Duration) outcome {
	out := outcome{rcode: m.Rcode, answer: m.Answer, ns: m.Ns, truncated: m.Truncated, authentic: m.AuthenticatedData, life: life}
	if m.Rcode > 0xf {
		return outcome{rcode: dns.RcodeServerFailure}
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			out.extra = append(out.extra, rr)
		}
	}
	return out
}

// message puts an outcome into a message about a question.
func (o *outcome) message(name string, qtype uint16) *dns.Msg {
	m := &dns.Msg{Answer: o.answer, Ns: o.ns, Extra: o.extra}
	m.Response, m.RecursionAvailable, m.Rcode = true, true, o.rcode
	m.Authoritative, m.Truncated, m.AuthenticatedData = o.authoritative, o.truncated, o.authentic
	m.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: dns.ClassINET}}
	return m
}
