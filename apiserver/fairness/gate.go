package fairness

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// Config is what a Gate is made of.
type Config struct {
	// Seats is how many requests of width one run at a time, over all limited levels.
	Seats int
	// Bytes bounds what the requests in flight may need for bodies and lists; 0 is no bound.
	Bytes int64
	// QueueWait is how long a request waits at most, 15 s if zero (a quarter of the request timeout, as upstream).
	QueueWait time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Gate lets requests in. It is safe for concurrent use.
type Gate struct {
	cfg   Config
	seed  maphash.Seed
	table atomic.Pointer[table]
	bytes atomic.Int64
	// Refused counts those that found too many bytes in flight.
	tooMuch atomic.Int64

	mu     sync.Mutex // guards core and series
	core   core
	series map[[2]string]*series
}

// New makes a Gate that knows the given objects until Update.
func New(cfg Config, schemas []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) *Gate {
	if cfg.QueueWait == 0 {
		cfg.QueueWait = 15 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	g := &Gate{cfg: cfg, seed: maphash.MakeSeed(), series: map[[2]string]*series{}}
	g.core.total = cfg.Seats
	g.Update(schemas, levels)
	return g
}

// Update sorts requests by these objects from now on. Those that run or wait are not disturbed. A schema whose level does not
// exist takes no requests.
func (g *Gate) Update(schemas []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	objects := make(map[string]*flowcontrolv1.PriorityLevelConfiguration, len(levels))
	for _, o := range levels {
		objects[o.Name] = o
	}
	c := &g.core
	for _, l := range c.levels {
		l.gone = true
	}
	byName := map[string]*level{}
	for _, o := range levels {
		at := slices.IndexFunc(c.levels, func(l *level) bool { return l.name == o.Name })
		if at < 0 {
			at = len(c.levels)
			c.levels = append(c.levels, &level{name: o.Name})
		}
		c.levels[at].configure(o)
		byName[o.Name] = c.levels[at]
	}
	c.levels = slices.DeleteFunc(c.levels, (*level).over)
	c.shareOut(objects)
	t := &table{}
	for _, s := range sortSchemas(schemas) {
		l := byName[s.Spec.PriorityLevelConfiguration.Name]
		if l == nil {
			continue
		}
		made := schema{name: s.Name, uid: string(s.UID), spec: &s.Spec, level: l, levelUID: l.uid, exempt: l.exempt, series: g.seriesOf(s.Name, l.name)}
		if s.Spec.DistinguisherMethod != nil {
			made.by = s.Spec.DistinguisherMethod.Type
		}
		t.schemas = append(t.schemas, made)
	}
	g.table.Store(t)
	c.dispatch()
}

// Pass is the right to run. The zero Pass needs no Release.
type Pass struct {
	gate  *Gate
	level *level
	queue *queue
	width int
	bytes int64
	began time.Time
	// Schema and Level are the UIDs of the objects that the request was sorted by, "" where it was not.
	Schema, Level string
	series        *series
}

// Rejected says that a request cannot run now, and should be tried again in a second.
type Rejected struct{ Reason string }

// Error implements error.
func (*Rejected) Error() string { return "too many requests, please try again later" }

// Left tells of an error of Enter whether the wait was ended by its context rather than by the gate.
func Left(err error) bool {
	var r *Rejected
	return errors.As(err, &r) && r.Reason == string(cancelled)
}

// Enter waits until a request may run. width is how many seats it takes (1 for most), bytes what it may need of memory. ctx
// ends the wait. The Pass names schema and level with an error too.
func (g *Gate) Enter(ctx context.Context, info *route.Info, user *client.User, width int, bytes int64) (Pass, error) {
	s, p := g.sort(info, user, width, bytes)
	switch {
	case s == nil:
		return Pass{}, nil
	case p.gate == nil:
		return p, &Rejected{tooManyBytes}
	}
	if n := s.level.nominal; !s.level.exempt && p.width > n {
		p.width = max(n, 1)
	}
	q, in, why := g.core.arrive(s.level, s.flow(g.seed, info, user), p.width)
	p.queue = q
	if in {
		g.mu.Unlock()
		s.series.admit(0)
		return p, nil
	}
	if why == "" {
		why = g.queued(ctx, s, &p, info, user)
	} else {
		g.mu.Unlock()
	}
	if why != "" {
		g.bytes.Add(-p.bytes)
		s.series.reject(string(why))
		p.gate = nil
		return p, &Rejected{string(why)}
	}
	return p, nil
}

// sort finds the schema of a request, nil if there is none, and reserves its bytes. It returns with the lock held, so that the
// schema's level is one that is there, unless there is no schema or the bytes are too many: the pass is without gate then.
func (g *Gate) sort(info *route.Info, user *client.User, width int, bytes int64) (*schema, Pass) {
	for {
		t := g.table.Load()
		s := t.classify(info, user)
		if s == nil {
			return nil, Pass{}
		}
		p := Pass{gate: g, level: s.level, width: width, bytes: bytes, Schema: s.uid, Level: s.levelUID, series: s.series}
		if !g.reserve(bytes, s.exempt) {
			s.series.reject(tooManyBytes)
			p.gate, p.bytes = nil, 0
			return s, p
		}
		p.began = g.cfg.Now()
		g.mu.Lock()
		if g.table.Load() == t {
			return s, p
		}
		// The level may have been deleted meanwhile.
		g.mu.Unlock()
		g.bytes.Add(-bytes)
	}
}

// queued waits in the queue of a pass. It is called with the lock held and returns without.
func (g *Gate) queued(ctx context.Context, s *schema, p *Pass, info *route.Info, user *client.User) refusal {
	w := &waiter{level: p.level, queue: p.queue, width: p.width, arrived: p.began, ready: make(chan struct{}),
		who: requestInfo{schema: s.name, user: user.Name, path: info.Path, verb: info.Verb}}
	switch s.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		w.who.flow = user.Name
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		w.who.flow = info.Namespace
	}
	g.core.wait(w)
	g.mu.Unlock()
	timer := time.NewTimer(g.cfg.QueueWait)
	defer timer.Stop()
	why := timeOut
	select {
	case <-w.ready:
		why = ""
	case <-timer.C:
	case <-ctx.Done():
		why = cancelled
	}
	now := g.cfg.Now()
	if why != "" {
		g.mu.Lock()
		out := g.core.withdraw(w, why)
		g.mu.Unlock()
		if out {
			return why
		}
	}
	s.series.admit(now.Sub(p.began))
	p.began = now
	return ""
}

// Release gives back what the pass took. Only the first call does.
func (p *Pass) Release() {
	g := p.gate
	if g == nil {
		return
	}
	p.gate = nil
	g.bytes.Add(-p.bytes)
	took := g.cfg.Now().Sub(p.began)
	g.mu.Lock()
	g.core.finish(p.level, p.queue, p.width, took)
	g.mu.Unlock()
	p.series.executing.Add(-1)
	p.series.execution.observe(took)
}

const tooManyBytes = "memory"

// reserve takes bytes out of what may be in flight. Exempt requests may take a quarter more, so that an administrator gets through.
func (g *Gate) reserve(n int64, exempt bool) bool {
	limit := g.cfg.Bytes
	if exempt {
		limit += limit / 4
	}
	// One request alone is always let in.
	if had := g.bytes.Add(n) - n; g.cfg.Bytes == 0 || n == 0 || had == 0 || had+n <= limit {
		return true
	}
	g.bytes.Add(-n)
	g.tooMuch.Add(1)
	return false
}

// maxWidth is the most seats that one request takes.
const maxWidth = 10

// ListWidth is how many seats a list of a number of objects takes: one for every hundred, at most ten.
func ListWidth(objects int) int { return max(1, min(maxWidth, (objects+99)/100)) }
