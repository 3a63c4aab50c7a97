package dns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Limits of what is kept of upstreams' answers.
const (
	cacheEntries    = 10_000
	cacheMost       = 5 * time.Minute
	cacheMostDenial = 30 * time.Second
	cacheStale      = time.Hour
	staleTTL        = 0 // seconds that a stale answer may be kept, as RFC 8767 and CoreDNS have it: none
)

// cachePolicy says for how long answers are kept.
type cachePolicy struct {
	// most is for answers, mostDenial for denials; 0 keeps none.
	most, mostDenial time.Duration
	// stale is how long an answer may be used behind its end when no upstream answers (RFC 8767), 0 for not at all.
	stale time.Duration
}

// cache keeps the answers of upstreams for as long as they and the policy say. It belongs to one configuration, so that what the upstreams
// of another said never gets into it. When it is full, entries go at random. It is safe for concurrent use.
type cache struct {
	mu      sync.Mutex // guards entries
	entries map[cacheKey]cached
}

// cacheKey has all that an answer may depend on: upstreams are told nothing else.
type cacheKey struct {
	zone   string // of the server block, whose upstreams answered
	name   string // in lower case
	qtype  uint16
	dnssec bool
}

type cached struct {
	msg     *dns.Msg
	from    time.Time
	expires time.Time
}

func keyOf(zone string, i inquiry) cacheKey {
	return cacheKey{zone, i.name, i.qtype, i.dnssec}
}

// get returns the sections of a kept answer with what is left of their lifetimes, or nil. With stale, one that ended not longer ago than
// that is good enough. What it returns is the caller's.
func (c *cache) get(zone string, i inquiry, now time.Time, stale time.Duration) *dns.Msg {
	c.mu.Lock()
	e, ok := c.entries[keyOf(zone, i)]
	c.mu.Unlock()
	if !ok || now.After(e.expires.Add(stale)) {
		return nil
	}
	m := e.msg.Copy()
	age := uint32(now.Sub(e.from) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if h.Rrtype == dns.TypeOPT {
				continue
			}
			if h.Ttl -= min(age, h.Ttl); now.After(e.expires) {
				h.Ttl = staleTTL
			}
		}
	}
	return m
}

// lifetime is how long an answer may be kept.
func (p cachePolicy) lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || (m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError) || len(m.Answer)+len(m.Ns) == 0 {
		return 0
	}
	life := p.most
	if m.Rcode == dns.RcodeNameError || len(m.Answer) == 0 {
		life = p.mostDenial
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
			// How long a denial holds is the smaller of two numbers (RFC 2308, section 5).
			if soa, ok := rr.(*dns.SOA); ok && len(m.Answer) == 0 {
				life = min(life, time.Duration(soa.Minttl)*time.Second)
			}
		}
	}
	return life
}

// put keeps an answer that says something definite.
func (c *cache) put(zone string, p cachePolicy, i inquiry, m *dns.Msg, now time.Time) {
	life := p.lifetime(m)
	if life <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[cacheKey]cached{}
	}
	for k := range c.entries {
		if len(c.entries) < cacheEntries {
			break
		}
		delete(c.entries, k)
	}
	c.entries[keyOf(zone, i)] = cached{msg: m.Copy(), from: now, expires: now.Add(life)}
}
