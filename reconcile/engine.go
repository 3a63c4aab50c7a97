package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Engine runs loops. Between NewEngine and Run, loops are added; after that it is
// safe for concurrent use.
//
// It has two goroutines of its own while nothing happens: the dispatcher, which reads
// the history with one cursor for all loops and keeps the one timer, and the
// event recorder. Workers exist only while there are keys to work on.
type Engine struct {
	client   client.Client
	log      *slog.Logger
	now      func() time.Time
	recorder *Recorder
	strict   bool
	ordered  bool

	runners []*runner            // fixed when Run starts
	byName  map[string]*runner   // fixed when Run starts
	inputs  map[string][]watcher // by resource; fixed when Run starts
	workers sync.WaitGroup
	poke    chan struct{} // tells the dispatcher to look at timers and position again

	mu       sync.Mutex // guards what follows and every queue
	started  bool
	stopped  bool
	timers   timers
	position store.Revision // through which the dispatcher has read; -1 before it began
	waiters  []*waiter
	ctx      context.Context // of Run
}

// runner is a loop together with its queue and its figures, which Engine.mu guards.
type runner struct {
	Loop
	engine  *Engine
	user    client.User
	queue   *queue
	running int
	stats   Health
}

// watcher is an input of a runner.
type watcher struct {
	runner *runner
	keys   func(store.Snapshot, store.Event) []Key
}

type waiter struct {
	rev   store.Revision
	idle  bool     // wait until nothing at all is to be done, too
	loops []string // wait for these alone; nil for all
	done  chan struct{}
}

// NewEngine returns an engine that reads and writes through c. now is the
// clock that plans are given, time.Now if nil; timers follow package time.
func NewEngine(c client.Client, log *slog.Logger, now func() time.Time) *Engine {
	if now == nil {
		now = time.Now
	}
	return &Engine{
		client:   c,
		log:      log,
		now:      now,
		recorder: NewRecorder(c, log, now),
		byName:   map[string]*runner{},
		inputs:   map[string][]watcher{},
		poke:     make(chan struct{}, 1),
		position: -1,
	}
}

// Strict makes programming errors of loops (an undeclared write, a panic) end the
// program instead of being reported as the loop's errors. Tests set it.
func (e *Engine) Strict() *Engine {
	e.strict = true
	return e
}

// Ordered makes everything happen one after the other: one pass at a time, on the dispatcher's
// goroutine, after all that was written before is dispatched, and the writes of a plan in
// order; Loop.Spacing is passed over. What comes out is then the same in each run. Tests set it before Add.
func (e *Engine) Ordered() *Engine {
	e.ordered = true
	return e
}

// Recorder is what the engine records events with, for parts that are not loops.
// It works while Run does.
func (e *Engine) Recorder() *Recorder { return e.recorder }

// Add gives the engine a loop to run. A loop without Plan, with a name that is taken, or
// after Run has started is a programming error and panics.
func (e *Engine) Add(loops ...Loop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range loops {
		switch {
		case e.started:
			panic("reconcile: loop " + l.Name + " added to an engine that runs")
		case l.Plan == nil || l.Name == "":
			panic("reconcile: a loop needs a name and a plan: " + l.Name)
		case e.byName[l.Name] != nil:
			panic("reconcile: two loops are named " + l.Name)
		}
		if l.Workers == 0 {
			l.Workers = 1
		}
		if l.Timeout == 0 {
			l.Timeout = time.Minute
		}
		if l.Source == "" {
			l.Source = l.Name
		}
		if l.ServiceAccount == "" {
			l.ServiceAccount = l.Name
		}
		r := &runner{Loop: l, engine: e, user: serviceAccount(l.ServiceAccount), queue: newQueue(&e.timers)}
		if !e.ordered {
			r.queue.spacing = l.Spacing
		}
		e.byName[l.Name] = r
		e.runners = append(e.runners, r)
		for _, in := range l.Inputs {
			w := watcher{runner: r, keys: in.Keys}
			if w.keys == nil {
				w.keys = Self
			}
			e.inputs[in.Resource] = append(e.inputs[in.Resource], w)
		}
	}
}

func serviceAccount(name string) client.User {
	return client.User{
		Name:   "system:serviceaccount:kube-system:" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
	}
}

// Run runs all loops until ctx is done, and returns when every pass under way has
// ended. It returns an error if the history cannot be read any more.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	if e.started {
		e.mu.Unlock()
		return errors.New("reconcile: the engine was started already")
	}
	e.started, e.ctx = true, ctx
	e.mu.Unlock()

	e.workers.Go(func() { e.recorder.Run(ctx) })
	err := e.dispatchAll(ctx)
	cancel()
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.workers.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// dispatchAll follows the history from a snapshot on, and from a new snapshot
// whenever it fell behind the window.
func (e *Engine) dispatchAll(ctx context.Context) error {
	for {
		snap := e.client.Snapshot()
		cursor, err := e.client.Cursor(snap.Revision(), e.resources()...)
		if err == nil {
			e.wakeAll(snap)
			err = e.follow(ctx, cursor)
		}
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
		e.log.Warn("loops fell behind the history and start again from a snapshot")
	}
}

// resources are those that the cursor has to show: nil for all.
func (e *Engine) resources() []string {
	var names []string
	for name := range e.inputs {
		if name == AnyResource {
			return nil
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// wakeAll turns every object of a snapshot into keys.
func (e *Engine) wakeAll(snap store.Snapshot) {
	e.mu.Lock()
	for _, r := range e.runners {
		for _, key := range r.Always {
			r.queue.wake(key, snap.Revision())
		}
	}
	e.mu.Unlock()
	for _, r := range e.runners {
		for _, in := range r.Inputs {
			keys := in.Keys
			if keys == nil {
				keys = Self
			}
			names := []string{in.Resource}
			if in.Resource == AnyResource {
				names = in.Resources()
			}
			for _, name := range names {
				for entry := range snap.List(name, "", nil) {
					found := keys(snap, store.Event{Entry: entry})
					if len(found) == 0 {
						continue
					}
					e.mu.Lock()
					for _, key := range found {
						r.queue.wake(key, snap.Revision())
					}
					e.mu.Unlock()
				}
			}
		}
	}
	e.advance(snap.Revision())
}

// follow dispatches what the cursor shows and what the timers say, until one of them ends.
func (e *Engine) follow(ctx context.Context, cursor store.Cursor) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		events, err := cursor.Poll()
		if err != nil {
			return err
		}
		if len(events) > 0 {
			e.dispatch(events)
		}
		e.advance(cursor.Position())
		if (len(events) > 0 || e.ordered && e.workOne()) && ctx.Err() == nil {
			continue
		}
		var fires <-chan time.Time
		if due, ok := e.nextTimer(); ok {
			timer.Reset(due.Sub(e.now()))
			fires = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cursor.Ready():
		case <-e.poke:
		case <-fires:
		}
	}
}

func (e *Engine) nextTimer() (time.Time, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.timers.next()
}

// dispatch turns events into wake-ups.
func (e *Engine) dispatch(events []store.Event) {
	type found struct {
		queue *queue
		key   Key
		rev   store.Revision
	}
	var all []found
	snap := e.client.Snapshot()
	for _, ev := range events {
		for _, name := range [2]string{ev.Entry.Resource, AnyResource} {
			for _, w := range e.inputs[name] {
				for _, key := range w.keys(snap, ev) {
					all = append(all, found{w.runner.queue, key, ev.Entry.Revision})
				}
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range all {
		f.queue.wake(f.key, f.rev)
	}
}

// advance notes that everything through rev was dispatched, fires timers that
// are due, and sets workers on what is queued.
func (e *Engine) advance(rev store.Revision) {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.position = max(e.position, rev)
	e.timers.fire(now)
	for _, r := range e.runners {
		for r.queue.length() > 0 && r.running < r.Workers && !e.ordered {
			e.startWorker(r, now)
		}
	}
	e.tellWaiters()
}

// startWorker begins a pass on a goroutine of its own, which then goes on with
// the next key until none is left. Engine.mu is held.
func (e *Engine) startWorker(r *runner, now time.Time) {
	it := r.queue.next(now)
	r.running++
	e.workers.Go(func() {
		for it != nil {
			it = e.work(r, it)
		}
	})
}

// work does one pass and returns the next item to work on, nil if the worker ends.
func (e *Engine) work(r *runner, it *item) *item {
	o, after, err := r.pass(e.ctx, it.key)
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.finish(r, it, o, after, err, now)
	var next *item
	if !e.stopped && e.ctx.Err() == nil {
		next = r.queue.next(now)
	}
	if next == nil {
		r.running--
		e.tellWaiters()
	}
	return next
}

// workOne does one pass of the first loop that has a key waiting, and tells whether there was one.
func (e *Engine) workOne() bool {
	for _, r := range e.runners {
		e.mu.Lock()
		it := r.queue.next(e.now())
		e.mu.Unlock()
		if it == nil {
			continue
		}
		o, after, err := r.pass(e.ctx, it.key)
		e.mu.Lock()
		e.finish(r, it, o, after, err, e.now())
		e.mu.Unlock()
		return true
	}
	return false
}

// finish notes how a pass ended. Engine.mu is held.
func (e *Engine) finish(r *runner, it *item, o outcome, after time.Duration, err error, now time.Time) {
	r.stats.Passes++
	switch {
	case o == conflict:
		r.stats.Conflicts++
	case o == failed && e.ctx.Err() == nil:
		r.stats.Errors++
		r.stats.LastError, r.stats.LastErrorAt = fmt.Sprintf("%s: %v", it.key, err), now
		e.log.Log(e.ctx, failureLevel(it.failures), "pass failed", "loop", r.Name, "key", it.key.String(), "failures", it.failures+1, "error", err)
	}
	before, had := e.timers.next()
	r.queue.finish(it, o, after, now)
	if first, ok := e.timers.next(); ok && (!had || first.Before(before)) {
		e.pokeDispatcher()
	}
	e.tellWaiters()
}

// failureLevel keeps a key that fails for the first time, which the next pass
// usually mends, out of the log.
func failureLevel(failures int) slog.Level {
	if failures < 4 {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func (e *Engine) pokeDispatcher() {
	select {
	case e.poke <- struct{}{}:
	default:
	}
}
