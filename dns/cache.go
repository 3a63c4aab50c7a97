package dns

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// cache keeps the answers of upstreams for as long as they say, five minutes at most.
// When it is full, entries go at random.
type cache struct {
	mu      sync.Mutex // guards entries
	entries map[cacheKey]cached
}

type cacheKey struct {
	name   string
	qtype  uint16
	dnssec bool
}

type cached struct {
	msg     *dns.Msg
	from    time.Time
	expires time.Time
}

func keyOf(q *dns.Msg) cacheKey {
	opt := q.IsEdns0()
	return cacheKey{strings.ToLower(q.Question[0].Name), q.Question[0].Qtype, opt != nil && opt.Do()}
}

// get returns a copy of a kept answer with what is left of its lifetimes, or nil.
func (c *cache) get(q *dns.Msg, now time.Time) *dns.Msg {
	c.mu.Lock()
	e, ok := c.entries[keyOf(q)]
	c.mu.Unlock()
	if !ok || now.After(e.expires) {
		return nil
	}
	m := e.msg.Copy()
	m.Id = q.Id
	age := uint32(now.Sub(e.from) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

// put keeps an answer that says something definite.
func (c *cache) put(q, m *dns.Msg, now time.Time) {
	if m.Truncated || (m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError) {
		return
	}
	life := cacheMost
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			life = min(life, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	if life <= 0 || len(m.Answer)+len(m.Ns) == 0 {
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
	c.entries[keyOf(q)] = cached{msg: m.Copy(), from: now, expires: now.Add(life)}
}
