package fairness

import (
	"math"
	"slices"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
)

// estimate is how long a request is thought to take before it is known.
const estimate = 3 * time.Millisecond

// core is the state of all levels. Its methods decide, and never wait; the caller holds a lock.
type core struct {
	total  int // seats of all limited levels
	used   int
	levels []*level
}

// level is a priority level.
type level struct {
	name, uid string
	exempt    bool
	gone      bool // its object is deleted; it goes when it is idle
	shares    int
	// nominal are the seats by its shares, least those that nobody may borrow, most those that it may use with what it borrows.
	nominal, least, most int
	used                 int
	running              int
	waiting              int // requests in queues
	// queues are where new requests wait, none if they are refused instead. active are those in which some wait, among
	// them perhaps of a former configuration.
	queues []*queue
	active []*queue
	hand   int
	limit  int
	// virtual is the virtual time: the start of the request that was let in last, in seat seconds.
	virtual float64

	dispatched, refused, timedOut, cancelled int64
}

// queue is requests of a few flows, in order of arrival.
type queue struct {
	waiters []*waiter
	// start is the virtual time at which its first request begins.
	start   float64
	seats   int // of those that run
	running int
}

// waiter is a request in a queue.
type waiter struct {
	level   *level
	queue   *queue
	width   int
	arrived time.Time
	// in tells that it has its seats. ready is closed then.
	in    bool
	ready chan struct{}
	who   requestInfo // for those who debug
}

// requestInfo names a request that waits.
type requestInfo struct{ schema, flow, user, path, verb string }

// configure gives a level what its object says, and is followed by shareOut.
func (l *level) configure(o *flowcontrolv1.PriorityLevelConfiguration) {
	l.uid, l.gone = string(o.UID), false
	l.exempt = o.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt
	var queues, hand, limit int32
	if lim := o.Spec.Limited; lim != nil {
		if q := lim.LimitResponse.Queuing; lim.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue && q != nil {
			queues, hand, limit = q.Queues, q.HandSize, q.QueueLengthLimit
		}
	}
	l.hand, l.limit = int(hand), int(limit)
	if len(l.queues) != int(queues) {
		// Those that wait stay where they are, and are let in from there.
		l.queues = make([]*queue, queues)
	}
}

// shareOut divides the seats by shares, and says how many of them are lent and borrowed.
func (c *core) shareOut(objects map[string]*flowcontrolv1.PriorityLevelConfiguration) {
	sum := 0
	for _, l := range c.levels {
		if o := objects[l.name]; o != nil {
			l.shares = int(sharesOf(&o.Spec))
			sum += l.shares
		}
	}
	for _, l := range c.levels {
		o := objects[l.name]
		if o == nil {
			l.least = 0 // it may finish what it has, with seats that others have no right to
			continue
		}
		l.nominal = 0
		if sum > 0 {
			l.nominal = int(math.Ceil(float64(c.total) * float64(l.shares) / float64(sum)))
		}
		var lendable, borrowing *int32
		switch {
		case o.Spec.Limited != nil:
			lendable, borrowing = o.Spec.Limited.LendablePercent, o.Spec.Limited.BorrowingLimitPercent
		case o.Spec.Exempt != nil:
			lendable = o.Spec.Exempt.LendablePercent
		}
		l.least, l.most = l.nominal, c.total
		if lendable != nil {
			l.least -= percent(l.nominal, *lendable)
		}
		if borrowing != nil {
			l.most = min(c.total, l.nominal+percent(l.nominal, *borrowing))
		}
	}
}

func sharesOf(s *flowcontrolv1.PriorityLevelConfigurationSpec) int32 {
	switch {
	case s.Limited != nil && s.Limited.NominalConcurrencyShares != nil:
		return *s.Limited.NominalConcurrencyShares
	case s.Limited != nil:
		return 30
	case s.Exempt != nil && s.Exempt.NominalConcurrencyShares != nil:
		return *s.Exempt.NominalConcurrencyShares
	}
	return 0
}

func percent(n int, p int32) int { return int(math.Round(float64(n) * float64(p) / 100)) }

// fits tells whether a request of a width may run now: within what is the level's own, or with seats that nobody
// else has a right to.
func (c *core) fits(l *level, width int) bool {
	if l.exempt || l.used+width <= l.least {
		return true
	}
	if l.most == 0 {
		return false
	}
	if l.used == 0 {
		return true // the widest request must get through some time
	}
	if l.used+width > l.most {
		return false
	}
	free := c.total - c.used - width
	for _, o := range c.levels {
		if o != l && o.used < o.least {
			free -= o.least - o.used
		}
	}
	return free >= 0
}

// refusal is why a request can neither run nor wait.
type refusal string

// The reasons, as metrics name them.
const (
	queueFull        refusal = "queue-full"
	concurrencyLimit refusal = "concurrency-limit"
	timeOut          refusal = "time-out"
	cancelled        refusal = "cancelled"
)

// arrive lets a request in (q may be nil), or finds the queue in which it has to wait, or refuses it.
func (c *core) arrive(l *level, flow uint64, width int) (q *queue, in bool, why refusal) {
	if len(l.queues) == 0 {
		if !c.fits(l, width) {
			l.refused++
			return nil, false, concurrencyLimit
		}
		c.begin(l, nil, width)
		return nil, true, ""
	}
	q = l.deal(flow)
	if len(l.active) == 0 && c.fits(l, width) {
		q.start = max(q.start, l.virtual)
		l.virtual = q.start
		c.begin(l, q, width)
		return q, true, ""
	}
	if len(q.waiters) >= l.limit {
		l.refused++
		return nil, false, queueFull
	}
	return q, false, ""
}

// deal gives a flow its hand of queues, always the same, and returns the one of them with the least work.
func (l *level) deal(flow uint64) *queue {
	var taken [16]int
	var best *queue
	hand := min(l.hand, len(taken), len(l.queues))
	for i := range hand {
		left := len(l.queues) - i
		card := int(flow % uint64(left))
		flow /= uint64(left)
		// The card-th of the queues that are not taken; taken is sorted.
		at := 0
		for at < i && taken[at] <= card {
			card++
			at++
		}
		copy(taken[at+1:i+1], taken[at:i])
		taken[at] = card
		if l.queues[card] == nil {
			l.queues[card] = &queue{}
		}
		if q := l.queues[card]; best == nil || q.work() < best.work() {
			best = q
		}
	}
	return best
}

// work is what a queue has to do, in seats.
func (q *queue) work() int {
	n := q.seats
	for _, w := range q.waiters {
		n += w.width
	}
	return n
}

// wait puts a request into a queue that arrive gave.
func (c *core) wait(w *waiter) {
	if len(w.queue.waiters) == 0 {
		// A queue that was idle begins now: it has no claim from the past.
		w.queue.start = max(w.queue.start, w.level.virtual)
		w.level.active = append(w.level.active, w.queue)
	}
	w.queue.waiters = append(w.queue.waiters, w)
	w.level.waiting++
	// It may be its turn already, and narrower than what waited.
	c.dispatch()
}

func (c *core) begin(l *level, q *queue, width int) {
	l.dispatched++
	l.running++
	l.used += width
	if !l.exempt {
		c.used += width
	}
	if q != nil {
		q.seats += width
		q.running++
		q.start += float64(width) * estimate.Seconds()
	}
}

// finish gives seats back after a request has taken a time, and lets in who waits.
func (c *core) finish(l *level, q *queue, width int, took time.Duration) {
	l.running--
	l.used -= width
	if !l.exempt {
		c.used -= width
	}
	if q != nil {
		q.seats -= width
		q.running--
		q.start += float64(width) * (took - estimate).Seconds()
	}
	c.bury(l)
	c.dispatch()
}

// over tells whether a level has no object and no requests.
func (l *level) over() bool { return l.gone && l.running == 0 && l.waiting == 0 }

// bury removes a level that is over.
func (c *core) bury(l *level) {
	if l.over() {
		c.levels = slices.DeleteFunc(c.levels, func(o *level) bool { return o == l })
	}
}

// dispatch lets requests in as long as one fits: of the level that is furthest below its share, from the queue whose turn it is.
func (c *core) dispatch() {
	for {
		var best *level
		var turn int
		for _, l := range c.levels {
			if len(l.active) == 0 || best != nil && l.load() >= best.load() {
				continue
			}
			if at := l.next(); c.fits(l, l.active[at].waiters[0].width) {
				best, turn = l, at
			}
		}
		if best == nil {
			return
		}
		c.admit(best, turn)
	}
}

// load is how much of its share a level uses.
func (l *level) load() float64 { return float64(l.used) / float64(max(l.nominal, 1)) }

// next is the active queue whose turn it is.
func (l *level) next() int {
	best := 0
	for i, q := range l.active {
		if q.start < l.active[best].start {
			best = i
		}
	}
	return best
}

func (c *core) admit(l *level, turn int) {
	q := l.active[turn]
	w := q.waiters[0]
	c.remove(w, 0)
	l.virtual = max(l.virtual, q.start)
	c.begin(l, q, w.width)
	w.in = true
	close(w.ready)
}

// remove takes a waiter out of its queue.
func (c *core) remove(w *waiter, at int) {
	q := w.queue
	q.waiters = append(q.waiters[:at], q.waiters[at+1:]...)
	w.level.waiting--
	if len(q.waiters) > 0 {
		return
	}
	q.waiters = nil
	for i, a := range w.level.active {
		if a == q {
			w.level.active = append(w.level.active[:i], w.level.active[i+1:]...)
			return
		}
	}
}

// withdraw ends a wait; false if the request has been let in meanwhile.
func (c *core) withdraw(w *waiter, why refusal) bool {
	if w.in {
		return false
	}
	for i, other := range w.queue.waiters {
		if other == w {
			c.remove(w, i)
			break
		}
	}
	w.level.refused++
	if why == timeOut {
		w.level.timedOut++
	} else {
		w.level.cancelled++
	}
	c.bury(w.level)
	// The next in its queue may be narrower.
	c.dispatch()
	return true
}
