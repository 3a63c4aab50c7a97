package reconcile

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"coracle.dev/coracle/store"
)

// Back-off of a failing key, as upstream's default rate limiter.
const (
	backoffBase = 5 * time.Millisecond
	backoffMax  = 1000 * time.Second
	// conflictsAtOnce is how often in a row a key is tried again without delay after a
	// conflict; after that a conflict is an error like any other.
	conflictsAtOnce = 8
)

// queue holds the keys of one loop that are not at rest. Each key is in it at
// most once, so that it is bounded by the number of objects, and wake-ups of a
// waiting key merge. It decides and runs nothing; the engine's lock guards it.
type queue struct {
	items  map[Key]*item
	ready  []*item // first in, first out; ready[:head] is used up
	head   int
	wakes  wakeList
	timers *timers
	jitter func() float64 // in [0,1)
	// spacing is the least time from the end of a pass to the next one for the same key.
	spacing time.Duration
}

// The states of an item:
//
//	wake          next            finish(done), nothing new
//	----> queued -----> running -------------------------> (gone)
//	        ^              |  finish(failed) or Plan.After
//	        |              v
//	        +--------- waiting (in the timer heap)
//	     timer or wake
//
// With spacing, a key that is done waits in the timer heap too (resting) before it is gone or, if it was woken, queued.
type state uint8

const (
	waiting state = iota
	queued
	running
)

type item struct {
	key   Key
	queue *queue
	state state
	// wake is the oldest wake-up that no successful pass has covered. again is the oldest that
	// came while a pass is under way.
	wake, again *wake
	dirty       bool      // woken while running or resting
	resting     bool      // waits for nothing but the spacing
	spaced      bool      // until is set
	until       time.Time // before which there is no further pass
	failures    int
	conflicts   int
	failed      bool // the last pass ended with an error
	since       time.Time
	due         time.Time
	heapIndex   int // in timers, -1 for none
}

func newQueue(t *timers) *queue {
	return &queue{items: map[Key]*item{}, timers: t, jitter: rand.Float64}
}

// wake asks for a pass over key that sees revision rev; 0 is a wake-up by the clock.
func (q *queue) wake(key Key, rev store.Revision) {
	it := q.items[key]
	if it == nil {
		it = &item{key: key, queue: q, heapIndex: -1}
		q.items[key] = it
	}
	if it.state == running {
		it.dirty = true
		if it.again == nil && rev > 0 {
			it.again = q.wakes.push(rev)
		}
		return
	}
	if it.wake == nil && rev > 0 {
		it.wake = q.wakes.push(rev)
	}
	switch {
	case it.resting:
		it.dirty = true
	case it.state == waiting && it.spaced && it.due.After(it.until):
		// It waits for the clock behind its spacing: now it waits for that alone.
		q.timers.remove(it)
		it.resting, it.dirty = true, true
		q.timers.add(it, it.until)
	case it.state == waiting:
		q.timers.remove(it)
		q.enqueue(it)
	}
}

func (q *queue) enqueue(it *item) {
	it.state = queued
	q.ready = append(q.ready, it)
}

// length is the number of keys that wait for a worker.
func (q *queue) length() int { return len(q.ready) - q.head }

// next starts a pass over the key that has waited longest, nil if none waits.
func (q *queue) next(now time.Time) *item {
	if q.head == len(q.ready) {
		q.ready, q.head = q.ready[:0], 0
		return nil
	}
	it := q.ready[q.head]
	q.ready[q.head] = nil
	q.head++
	if q.head == len(q.ready) {
		q.ready, q.head = q.ready[:0], 0
	} else if q.head > 64 && q.head*2 > len(q.ready) {
		n := copy(q.ready, q.ready[q.head:])
		clear(q.ready[n:])
		q.ready, q.head = q.ready[:n], 0
	}
	it.state, it.since, it.spaced = running, now, false
	return it
}

// outcome is how a pass ended.
type outcome uint8

const (
	done     outcome = iota // everything that was planned is written
	conflict                // something else was faster: plan again at once
	failed                  // plan again after back-off
)

// finish ends the pass of a running item and decides what comes next for its key.
func (q *queue) finish(it *item, o outcome, after time.Duration, now time.Time) {
	if o == conflict {
		it.conflicts++
		if it.conflicts > conflictsAtOnce {
			o = failed
		}
	} else {
		it.conflicts = 0
	}
	it.failed = o == failed
	dirty := it.dirty
	it.dirty = false
	if o == done {
		it.failures = 0
		q.wakes.remove(it.wake)
		it.wake, it.again = it.again, nil
		switch {
		case q.spacing > 0 && (dirty || after == 0):
			it.state, it.resting, it.dirty = waiting, true, dirty
			q.timers.add(it, now.Add(q.spacing))
		case dirty:
			q.enqueue(it)
		case after > 0:
			it.state, it.spaced, it.until = waiting, q.spacing > 0, now.Add(q.spacing)
			q.timers.add(it, now.Add(max(after, q.spacing)))
		default:
			delete(q.items, it.key)
		}
		return
	}
	// What woke the key is still to be done, and older than what came meanwhile.
	if it.wake == nil {
		it.wake = it.again
	} else {
		q.wakes.remove(it.again)
	}
	it.again = nil
	if o == failed {
		it.failures++
	}
	if o == conflict || dirty {
		q.enqueue(it)
		return
	}
	it.state = waiting
	q.timers.add(it, now.Add(backoff(it.failures, q.jitter())))
}

// backoff is the delay before the pass that follows the nth failure in a row:
// doubling from 5 ms to 1000 s, less up to a tenth, so that keys that failed
// together do not come back together.
func backoff(n int, jitter float64) time.Duration {
	d := backoffMax
	if n < 19 {
		d = min(backoffBase<<max(n-1, 0), backoffMax)
	}
	return d - time.Duration(float64(d)*jitter/10)
}

// timers is the one heap of everything that waits for the clock, over all loops.
type timers struct{ items []*item }

func (t *timers) add(it *item, due time.Time) {
	it.due = due
	heap.Push((*timerHeap)(t), it)
}

func (t *timers) remove(it *item) {
	if it.heapIndex >= 0 {
		heap.Remove((*timerHeap)(t), it.heapIndex)
	}
}

// next tells when the first timer is due.
func (t *timers) next() (time.Time, bool) {
	if len(t.items) == 0 {
		return time.Time{}, false
	}
	return t.items[0].due, true
}

// fire queues every item that is due, and forgets those that only rested.
func (t *timers) fire(now time.Time) {
	for len(t.items) > 0 && !t.items[0].due.After(now) {
		it := heap.Pop((*timerHeap)(t)).(*item)
		if it.resting && !it.dirty {
			delete(it.queue.items, it.key)
			continue
		}
		it.resting, it.dirty = false, false
		it.queue.enqueue(it)
	}
}

type timerHeap timers

func (h *timerHeap) Len() int           { return len(h.items) }
func (h *timerHeap) Less(i, j int) bool { return h.items[i].due.Before(h.items[j].due) }
func (h *timerHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].heapIndex, h.items[j].heapIndex = i, j
}

func (h *timerHeap) Push(x any) {
	it := x.(*item)
	it.heapIndex = len(h.items)
	h.items = append(h.items, it)
}

func (h *timerHeap) Pop() any {
	n := len(h.items) - 1
	it := h.items[n]
	h.items[n] = nil
	h.items = h.items[:n]
	it.heapIndex = -1
	return it
}

// wakeList holds the revisions whose wake-ups are not worked off, oldest first:
// wake-ups come in order of revision, so that adding and removing are O(1).
type wakeList struct{ first, last *wake }

type wake struct {
	rev        store.Revision
	prev, next *wake
}

func (l *wakeList) push(rev store.Revision) *wake {
	w := &wake{rev: rev, prev: l.last}
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	return w
}

func (l *wakeList) remove(w *wake) {
	if w == nil {
		return
	}
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
}
