package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"coracle.dev/coracle/store"
)

// CaughtUp is the revision through which the loop of that name has reconciled
// everything that woke it; 0 for a name that no loop has, -1 before the loops have begun. A key that
// keeps failing holds it back.
func (e *Engine) CaughtUp(loop string) store.Revision {
	e.pokeDispatcher()
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.byName[loop]; r != nil {
		return r.caughtUp()
	}
	return 0
}

// caughtUp is CaughtUp for one loop; Engine.mu is held.
func (r *runner) caughtUp() store.Revision {
	if w := r.queue.wakes.first; w != nil {
		return min(w.rev-1, r.engine.position)
	}
	return r.engine.position
}

// slowest is the revision that every loop has caught up with; Engine.mu is held.
func (e *Engine) slowest() store.Revision {
	rev := e.position
	for _, r := range e.runners {
		rev = min(rev, r.caughtUp())
	}
	return rev
}

// idle tells whether no loop has anything to do but wait for the clock; Engine.mu is held.
func (e *Engine) idle() bool {
	for _, r := range e.runners {
		if r.running > 0 || r.queue.length() > 0 || r.queue.wakes.first != nil {
			return false
		}
	}
	return true
}

// WaitFor returns when every loop has reconciled everything that was woken by
// revisions up to rev, or with the error of ctx.
func (e *Engine) WaitFor(ctx context.Context, rev store.Revision) error {
	return e.wait(ctx, &waiter{rev: rev, done: make(chan struct{})})
}

// WaitForLoops is WaitFor for the loops of these names alone. A name that no loop has is not waited for.
func (e *Engine) WaitForLoops(ctx context.Context, rev store.Revision, names ...string) error {
	return e.wait(ctx, &waiter{rev: rev, loops: names, done: make(chan struct{})})
}

// caughtUpOf is the revision that each of the loops of these names has caught up with; Engine.mu is held.
func (e *Engine) caughtUpOf(names []string) store.Revision {
	rev := e.position
	for _, name := range names {
		if r := e.byName[name]; r != nil {
			rev = min(rev, r.caughtUp())
		}
	}
	return rev
}

func (e *Engine) wait(ctx context.Context, w *waiter) error {
	e.mu.Lock()
	e.waiters = append(e.waiters, w)
	e.tellWaiters()
	e.mu.Unlock()
	e.pokeDispatcher()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		e.waiters = slices.DeleteFunc(e.waiters, func(o *waiter) bool { return o == w })
		return ctx.Err()
	}
}

// Settle returns when every loop has reconciled everything there is, its own
// writes and those of the others included, and with the revision at which that was so. Timers
// that wait for the clock do not count.
func (e *Engine) Settle(ctx context.Context) (store.Revision, error) {
	for {
		rev := e.client.Snapshot().Revision()
		if err := e.wait(ctx, &waiter{rev: rev, idle: true, done: make(chan struct{})}); err != nil {
			return 0, err
		}
		if e.client.Snapshot().Revision() == rev {
			return rev, nil
		}
	}
}

// tellWaiters releases those whose revision is reached; Engine.mu is held.
func (e *Engine) tellWaiters() {
	if len(e.waiters) == 0 {
		return
	}
	rev := e.slowest()
	e.waiters = slices.DeleteFunc(e.waiters, func(w *waiter) bool {
		if w.loops != nil {
			if w.rev > e.caughtUpOf(w.loops) {
				return false
			}
		} else if w.rev > rev || w.idle && !e.idle() {
			return false
		}
		close(w.done)
		return true
	})
}

// Health is how a loop is doing.
type Health struct {
	Loop     string
	CaughtUp store.Revision
	// Queued keys wait for a worker, Running ones have one, Waiting ones wait for the
	// clock; Failing ones are those whose last pass ended with an error.
	Queued, Running, Waiting, Failing int
	// Longest is for how long the oldest pass has been under way.
	Longest time.Duration
	// Counters since the start: passes, those that ended with an error or a conflict, and
	// writes that were refused because they were not declared.
	Passes, Errors, Conflicts, Refused uint64
	LastError                          string
	LastErrorAt                        time.Time
}

// Health tells how each loop is doing, in the order in which they were added.
func (e *Engine) Health() []Health {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]Health, 0, len(e.runners))
	for _, r := range e.runners {
		h := r.stats
		h.Loop, h.CaughtUp, h.Queued, h.Running = r.Name, r.caughtUp(), r.queue.length(), r.running
		for _, it := range r.queue.items {
			switch {
			case it.state == waiting:
				h.Waiting++
			case it.state == running:
				h.Longest = max(h.Longest, now.Sub(it.since))
			}
			if it.failed {
				h.Failing++
			}
		}
		all = append(all, h)
	}
	return all
}

// Healthy returns an error if a loop is stuck: a pass has outlived its timeout, or a write was
// refused. Failing keys are retried and are no reason.
func (e *Engine) Healthy() error {
	for _, h := range e.Health() {
		e.mu.Lock()
		limit := e.byName[h.Loop].Timeout
		e.mu.Unlock()
		switch {
		case h.Longest > 2*limit:
			return fmt.Errorf("loop %s: a pass has been under way for %s", h.Loop, h.Longest.Round(time.Second))
		case h.Refused > 0:
			return fmt.Errorf("loop %s: %d writes were refused: %s", h.Loop, h.Refused, h.LastError)
		}
	}
	return nil
}

// Graph draws the loops with what they read and write, in the DOT language.
func (e *Engine) Graph() string {
	var b strings.Builder
	b.WriteString("digraph loops {\n  rankdir=LR;\n")
	resources := map[string]bool{}
	node := func(name string) string {
		resources[name] = true
		return name
	}
	for _, r := range e.runners {
		fmt.Fprintf(&b, "  %q [shape=box];\n", r.Name)
		for _, in := range r.Inputs {
			fmt.Fprintf(&b, "  %q -> %q;\n", node(in.Resource), r.Name)
		}
		for _, out := range r.Outputs {
			name, label := out.Resource, ""
			if out.Subresource != "" {
				label = "/" + out.Subresource + " "
			}
			verbs := make([]string, len(out.Verbs))
			for i, v := range out.Verbs {
				verbs[i] = string(v)
			}
			fmt.Fprintf(&b, "  %q -> %q [label=%q];\n", r.Name, node(name), label+strings.Join(verbs, ","))
		}
	}
	names := make([]string, 0, len(resources))
	for name := range resources {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "  %q [shape=ellipse];\n", name)
	}
	b.WriteString("}\n")
	return b.String()
}
