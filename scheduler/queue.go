package scheduler

import (
	"container/heap"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
)

// queue holds the pods that have no node: those ready to be tried, the most important
// first; those in back-off; and those that wait for a change that may help them. It
// belongs to one goroutine. Its size is that of the unscheduled pods in the store.
type queue struct {
	items map[types.UID]*item
	// wakeable are those that changes matter to: taken or waiting. All others are tried in any case.
	wakeable map[*item]struct{}
	// active are ready. While there are none, the first of backoff is tried before its time.
	active, backoff, timed itemHeap
	// profiles by name; a pod of another has the default one.
	profiles map[string]*Profile
	// firstBackoff doubles up to mostBackoff.
	firstBackoff, mostBackoff time.Duration
}

type place uint8

const (
	isTaken   place = iota // a pass or a binding is under way
	isActive               // ready
	isBackoff              // a change may have helped it: until due, or until nothing else is to be done
	isTimed                // after an error: until due
	isWaiting              // for a change in wakes, or until due
)

type item struct {
	pod      *pod
	added    time.Time
	attempts int
	place    place
	wakes    change
	due      time.Time                   // of back-off or, while waiting, of the pass that is made in any case
	retry    time.Time                   // not before then
	missed   change                      // what happened while the item was taken or held
	held     int                         // preemptions under way in its favour; it waits for all of them
	reserved []*resourcev1.ResourceClaim // claims that were reserved for the pod in the binding under way
	index    int                         // in the heap that place names
}

// Back-off after a failed attempt: 1 s doubling to 10 s. A waiting pod is tried again after
// five minutes whatever happened, as upstream does.
const (
	firstBackoff = time.Second
	mostBackoff  = 10 * time.Second
	mostWait     = 5 * time.Minute
)

func newQueue() *queue {
	more := func(a, b *item) bool { // PrioritySort
		if a.pod.priority != b.pod.priority {
			return a.pod.priority > b.pod.priority
		}
		return a.added.Before(b.added)
	}
	sooner := func(a, b *item) bool { return a.due.Before(b.due) }
	return &queue{firstBackoff: firstBackoff, mostBackoff: mostBackoff, items: map[types.UID]*item{}, wakeable: map[*item]struct{}{}, active: itemHeap{less: more}, timed: itemHeap{less: sooner},
		backoff: itemHeap{less: func(a, b *item) bool {
			if !a.due.Equal(b.due) {
				return a.due.Before(b.due)
			}
			return more(a, b)
		}}}
}

// put adds a pod or takes note of a newer version. A change to what scheduling looks at
// is a chance for a waiting pod.
func (q *queue) put(pod *corev1.Pod, now time.Time) {
	it := q.items[pod.UID]
	if it == nil {
		it = &item{pod: q.pod(pod), added: now}
		q.items[pod.UID] = it
		q.enter(it, isActive)
		return
	}
	if sameForScheduling(it.pod.object, pod) {
		it.pod.object = pod
		return
	}
	place := it.place
	q.leave(it)
	it.pod = q.pod(pod)
	q.enter(it, place)
	q.wakeOne(it, podItself, now)
}

// pod works out what the scheduler needs of a pod that asks for one of the profiles.
func (q *queue) pod(object *corev1.Pod) *pod {
	p := newPod(object)
	if profile := q.profiles[object.Spec.SchedulerName]; profile != nil {
		p.profile = profile
	}
	return p
}

// remove forgets a pod.
func (q *queue) remove(uid types.UID) {
	if it := q.items[uid]; it != nil {
		q.leave(it)
		delete(q.items, uid)
		delete(q.wakeable, it)
	}
}

func (q *queue) heap(p place) *itemHeap {
	switch p {
	case isActive:
		return &q.active
	case isBackoff:
		return &q.backoff
	case isTimed, isWaiting:
		return &q.timed
	}
	return nil
}

// enter puts an item that is taken into its place.
func (q *queue) enter(it *item, p place) {
	it.place = p
	if p == isTaken || p == isWaiting {
		q.wakeable[it] = struct{}{}
	} else {
		delete(q.wakeable, it)
	}
	if h := q.heap(p); h != nil {
		heap.Push(h, it)
	}
}

// leave takes an item out of its place.
func (q *queue) leave(it *item) {
	if h := q.heap(it.place); h != nil {
		heap.Remove(h, it.index)
	}
	it.place = isTaken
	q.wakeable[it] = struct{}{}
}

// take returns the most important pod that is ready, nil for none. It stays known until
// remove, or until fail or retry puts it back.
func (q *queue) take(now time.Time) *item {
	for q.timed.Len() > 0 && !q.timed.items[0].due.After(now) {
		it := q.timed.items[0]
		q.leave(it)
		q.enter(it, isActive)
	}
	for q.backoff.Len() > 0 && !q.backoff.items[0].due.After(now) {
		it := q.backoff.items[0]
		q.leave(it)
		q.enter(it, isActive)
	}
	from := &q.active
	if from.Len() == 0 {
		from = &q.backoff
	}
	if from.Len() == 0 {
		return nil
	}
	it := from.items[0]
	q.leave(it)
	it.missed = 0
	it.attempts++
	return it
}

func (q *queue) isTaken(it *item) bool {
	return q.items[it.pod.object.UID] == it && it.place == isTaken
}

// fail puts a taken item back after it was refused: it waits for one of the changes.
func (q *queue) fail(it *item, wakes change, now time.Time) {
	if !q.isTaken(it) {
		return
	}
	q.setRetry(it, now)
	it.wakes, it.due = wakes|podItself, now.Add(mostWait)
	q.enter(it, isWaiting)
	q.resume(it, now)
}

// retry puts a taken item back after an error: it is tried again after its back-off.
func (q *queue) retry(it *item, now time.Time) {
	if q.isTaken(it) {
		q.setRetry(it, now)
		it.due = it.retry
		q.enter(it, isTimed)
	}
}

func (q *queue) setRetry(it *item, now time.Time) {
	delay := q.firstBackoff
	for i := 1; i < it.attempts && delay < q.mostBackoff; i++ {
		delay *= 2
	}
	it.retry = now.Add(min(delay, q.mostBackoff))
}

// wakeLater gives a waiting pod another try after its back-off, for an error and not a change is the cause.
func (q *queue) wakeLater(it *item) {
	if q.items[it.pod.object.UID] == it && it.place == isWaiting {
		q.leave(it)
		it.due = it.retry
		q.enter(it, isTimed)
	}
}

// resume takes account of what happened while an item was taken or held.
func (q *queue) resume(it *item, now time.Time) {
	if it.missed&it.wakes != 0 {
		q.wakeOne(it, it.missed, now)
	}
}

// release ends one of the preemptions that an item waits for.
func (q *queue) release(it *item, now time.Time) {
	if it.held--; it.held == 0 && q.items[it.pod.object.UID] == it {
		q.resume(it, now)
	}
}

// wake gives every pod that waits for one of these changes, and that test (if not nil) says it may help, another try. It
// costs one look at each waiting pod, and none at those that are ready.
func (q *queue) wake(what change, now time.Time, test func(it *item, what change) bool) {
	if what == 0 {
		return
	}
	for it := range q.wakeable {
		hit := what
		switch it.place {
		case isTaken: // what it will wait for is not known yet
		case isWaiting:
			hit &= it.wakes
		default:
			continue
		}
		if hit != 0 && (test == nil || test(it, hit)) {
			q.wakeOne(it, hit, now)
		}
	}
}

func (q *queue) wakeOne(it *item, what change, now time.Time) {
	switch {
	case it.place == isTaken, it.place == isWaiting && it.held > 0:
		it.missed |= what
	case it.place == isWaiting:
		q.leave(it)
		it.due = it.retry
		if it.retry.After(now) {
			q.enter(it, isBackoff)
		} else {
			q.enter(it, isActive)
		}
	}
}

// next is when take will have something to do that it has not now.
func (q *queue) next() (time.Time, bool) {
	if q.timed.Len() == 0 {
		return time.Time{}, false
	}
	return q.timed.items[0].due, true
}

// itemHeap is a heap of items that know their index.
type itemHeap struct {
	items []*item
	less  func(a, b *item) bool
}

// Len, Less, Swap, Push and Pop make heap.Interface.
func (h *itemHeap) Len() int { return len(h.items) }

// Less compares two items by the heap's own order.
func (h *itemHeap) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }

// Swap exchanges two items.
func (h *itemHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

// Push adds an item at the end.
func (h *itemHeap) Push(x any) {
	it := x.(*item)
	it.index = len(h.items)
	h.items = append(h.items, it)
}

// Pop removes the last item.
func (h *itemHeap) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return it
}
