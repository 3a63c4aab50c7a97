package proxy

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// cluster is what the proxy knows of a backend over tables: its endpoints' connections, health and load.
type cluster struct {
	id     string
	source func(netip.Addr) netip.Addr // Config.Source
	state  atomic.Pointer[clusterState]
	active atomic.Int64
	turn   atomic.Uint64
	// ejected is how many endpoints are out of use for their failures.
	mu sync.Mutex // guards ejections, so that their bound holds
}

// clusterState is a cluster at one table. It is immutable.
type clusterState struct {
	backend *table.Backend
	// tiers by preference: ready ones by priority, then those that terminate.
	tiers []tier
	size  int
	token map[string]*endpoint
	all   map[netip.AddrPort]*endpoint
}

// tier is the endpoints of equal preference.
type tier struct {
	endpoints []*endpoint
	// upTo are cumulative weights, nil if all are equal.
	upTo  []uint64
	total uint64
	ring  []point
}

type point struct {
	at  uint64
	who int
}

const (
	ringPoints    = 64
	maxRing       = 1 << 16
	defaultUnused = 50 * time.Second
)

func newCluster(b *table.Backend, source func(netip.Addr) netip.Addr) *cluster {
	c := &cluster{id: b.ID, source: source}
	c.update(b)
	return c
}

// update takes over the next version of the backend and returns what is to be closed once that is in use.
func (c *cluster) update(b *table.Backend) (retired []*endpoint) {
	old := c.state.Load()
	next := &clusterState{backend: b, all: make(map[netip.AddrPort]*endpoint, len(b.Endpoints)), token: map[string]*endpoint{}}
	keep := old != nil && old.backend.Protocol == b.Protocol && old.backend.TLS == b.TLS
	tiers := map[int]*tier{}
	var order []int
	for _, spec := range b.Endpoints {
		if next.all[spec.Address] != nil {
			continue
		}
		var e *endpoint
		if keep {
			e = old.all[spec.Address]
		}
		if e == nil {
			e = newEndpoint(c, spec.Address)
		}
		next.all[spec.Address] = e
		next.token[e.token] = e
		rank := int(spec.Priority)
		if spec.State == table.Terminating {
			rank = 1 << 8
			retired = append(retired, e)
		}
		if tiers[rank] == nil {
			tiers[rank] = &tier{}
			order = append(order, rank)
		}
		t := tiers[rank]
		t.endpoints = append(t.endpoints, e)
		t.total += uint64(max(1, spec.Weight))
		t.upTo = append(t.upTo, t.total)
	}
	slices.Sort(order)
	for _, rank := range order {
		t := tiers[rank]
		t.finish(b.Balance.Policy == table.Hash)
		next.tiers = append(next.tiers, *t)
	}
	next.size = len(next.all)
	if old != nil {
		for address, e := range old.all {
			if next.all[address] != e {
				e.gone.Store(true)
				retired = append(retired, e)
			}
		}
	}
	c.state.Store(next)
	return retired
}

func (t *tier) finish(ring bool) {
	if t.total%uint64(len(t.endpoints)) == 0 {
		each := t.total / uint64(len(t.endpoints))
		equal := true
		for i, at := range t.upTo {
			equal = equal && at == each*uint64(i+1)
		}
		if equal && !ring {
			t.upTo = nil
		}
	}
	if !ring {
		return
	}
	last := uint64(0)
	for who, e := range t.endpoints {
		weight := t.upTo[who] - last
		last = t.upTo[who]
		n := max(1, min(ringPoints*weight*uint64(len(t.endpoints))/t.total, maxRing/uint64(len(t.endpoints))))
		for k := range n {
			t.ring = append(t.ring, point{hash(e.token + "/" + strconv.FormatUint(k, 10)), who})
		}
	}
	slices.SortFunc(t.ring, func(a, b point) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	x := h.Sum64() // FNV's high bits are poor for short keys: mix them
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// choice is what a request says about which endpoint it wants.
type choice struct {
	key    string
	keyed  bool
	sticky string
	tried  []*endpoint
	// broke says that one of those tried took the request and closed the connection.
	broke bool
	now   time.Time
	turn  uint64 // of the choice that is being made
}

// pick chooses an endpoint that was not tried, or nil if there is none left.
func (c *cluster) pick(s *clusterState, want *choice) *endpoint {
	if want.sticky != "" {
		if e := s.token[want.sticky]; e != nil && e.usable(want) {
			return e
		}
	}
	if s.backend.Balance.Policy == table.RoundRobin {
		want.turn = c.turn.Add(1) - 1 // one for all that follows, or else turns that find nobody are others' turns
	}
	for i := range s.tiers {
		t := &s.tiers[i]
		if s.backend.Balance.Panic > 0 && t.healthy(want.now)*100 < int(s.backend.Balance.Panic)*len(t.endpoints) {
			if e := c.from(t, s.backend.Balance.Policy, want, (*endpoint).untried); e != nil {
				return e
			}
			continue
		}
		if e := c.from(t, s.backend.Balance.Policy, want, (*endpoint).usable); e != nil {
			return e
		}
	}
	for i := range s.tiers { // rather one that failed than none
		if e := c.from(&s.tiers[i], s.backend.Balance.Policy, want, (*endpoint).untried); e != nil {
			return e
		}
	}
	return nil
}

func (t *tier) healthy(now time.Time) int {
	n := 0
	for _, e := range t.endpoints {
		if e.out.Load() <= now.UnixNano() {
			n++
		}
	}
	return n
}

func (c *cluster) from(t *tier, policy table.Policy, want *choice, may func(*endpoint, *choice) bool) *endpoint {
	n := len(t.endpoints)
	var start int
	switch {
	case policy == table.Hash && want.keyed:
		return t.onRing(want, may)
	case policy == table.LeastRequest && n > 1:
		a, b := t.endpoints[t.random()], t.endpoints[t.random()]
		if !may(a, want) || may(b, want) && b.active.Load() < a.active.Load() {
			a = b
		}
		if may(a, want) {
			return a
		}
		start = rand.IntN(n)
	case policy == table.RoundRobin:
		start = t.turn(want.turn)
	default:
		start = t.random()
	}
	for k := range n {
		if e := t.endpoints[(start+k)%n]; may(e, want) {
			return e
		}
	}
	return nil
}

// turn is the endpoint whose turn it is: by weight, spread as evenly as the golden ratio spreads points.
func (t *tier) turn(count uint64) int {
	if t.upTo == nil {
		return int(count % uint64(len(t.endpoints)))
	}
	fraction := math.Mod(float64(count)*0.6180339887498949, 1)
	return t.at(uint64(fraction * float64(t.total)))
}

func (t *tier) random() int {
	if t.upTo == nil {
		return rand.IntN(len(t.endpoints))
	}
	return t.at(rand.Uint64N(t.total))
}

func (t *tier) at(weight uint64) int {
	i, found := slices.BinarySearch(t.upTo, weight)
	if found {
		i++
	}
	return min(i, len(t.endpoints)-1)
}

func (t *tier) onRing(want *choice, may func(*endpoint, *choice) bool) *endpoint {
	at := hash(want.key)
	i, _ := slices.BinarySearchFunc(t.ring, at, func(p point, at uint64) int {
		if p.at < at {
			return -1
		}
		return 1
	})
	for k := range t.ring {
		if e := t.endpoints[t.ring[(i+k)%len(t.ring)].who]; may(e, want) {
			return e
		}
	}
	return nil
}

// usable says that an endpoint may be chosen: not tried yet and not out of use.
func (e *endpoint) usable(want *choice) bool {
	return e.out.Load() <= want.now.UnixNano() && e.untried(want)
}

func (e *endpoint) untried(want *choice) bool { return !slices.Contains(want.tried, e) }

// outcome is how a try ended, for the health of the endpoint.
type outcome uint8

const (
	succeeded outcome = iota
	answered5xx
	failed      // 502, 503, 504, broken, timed out
	unreachable // not even connected
)

// outcomeOf is what an answer says of the endpoint's health.
func outcomeOf(code int) outcome {
	switch {
	case code >= 502 && code <= 504:
		return failed
	case code >= 500:
		return answered5xx
	}
	return succeeded
}

// unreachableFor is how long an endpoint that could not be connected to is passed over where there are others.
const unreachableFor = time.Second

// observe counts an outcome and takes the endpoint out of use when the backend's rules say so.
func (c *cluster) observe(e *endpoint, o outcome, now time.Time) {
	rules := c.state.Load().backend.Outlier
	if o == succeeded {
		if e.failures.Load() != 0 || e.errors.Load() != 0 {
			e.failures.Store(0)
			e.errors.Store(0)
		}
		return
	}
	if o == unreachable && e.out.Load() < now.Add(unreachableFor).UnixNano() {
		e.out.Store(now.Add(unreachableFor).UnixNano())
	}
	if rules == nil {
		return
	}
	errors := e.errors.Add(1)
	failures := int32(0)
	if o >= failed {
		failures = e.failures.Add(1)
	} else {
		e.failures.Store(0)
	}
	limit := int32(rules.Failures)
	if limit == 0 {
		limit = 5
	}
	if failures >= limit || rules.Errors > 0 && errors >= int32(rules.Errors) {
		c.eject(e, rules, now)
	}
}

func (c *cluster) eject(e *endpoint, rules *table.Outlier, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state.Load()
	out := 0
	for _, other := range s.all {
		if other != e && other.ejected && other.out.Load() > now.UnixNano() {
			out++
		}
	}
	share := int(rules.Share)
	if share == 0 {
		share = 10
	}
	if out > 0 && (out+1)*100 > share*s.size {
		return
	}
	length := rules.Ejection
	if length == 0 {
		length = 30 * time.Second
	}
	e.ejections = min(e.ejections+1, 10)
	e.ejected = true
	e.out.Store(now.Add(length * time.Duration(e.ejections)).UnixNano())
	e.failures.Store(0)
	e.errors.Store(0)
}
