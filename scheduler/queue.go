package scheduler

import (
	"container/heap"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// queue holds the pods that have no node: those ready to be tried, the most important
// first, those in back-off, and those that wait for a change that may help them. It
// belongs to one goroutine. Its size is that of the unscheduled pods in the store.
type queue struct {
	items  map[types.UID]*item
	active activeHeap
	timed  timedHeap
}

type place uint8

const (
	isActive  place = iota
	isBackoff       // until due
	isWaiting       // for a change in wakes, or until due
	isTaken         // a pass or a binding is under way
)

type item struct {
	pod      *corev1.Pod
	priority int32
	added    time.Time
	attempts int
	place    place
	wakes    change
	due      time.Time // of back-off or, while waiting, of the pass that is made in any case
	retry    time.Time // not before then
	missed   change    // what happened while the item was taken
	index    int       // in the heap that place names
}

// Back-off after a failed attempt: 1 s doubling to 10 s. A waiting pod is tried again after
// five minutes whatever happened, as upstream does.
const (
	firstBackoff = time.Second
	mostBackoff  = 10 * time.Second
	mostWait     = 5 * time.Minute
)

func newQueue() *queue { return &queue{items: map[types.UID]*item{}} }

// put adds a pod or takes note of a newer version. A change to what scheduling looks at
// is a chance for a waiting pod.
func (q *queue) put(pod *corev1.Pod, now time.Time) {
	it := q.items[pod.UID]
	if it == nil {
		it = &item{pod: pod, priority: priority(pod), added: now, place: isActive}
		q.items[pod.UID] = it
		heap.Push(&q.active, it)
		return
	}
	changed := !sameForScheduling(it.pod, pod)
	it.pod = pod
	if changed {
		q.wakeOne(it, podItself, now)
	}
}

// remove forgets a pod.
func (q *queue) remove(uid types.UID) {
	it := q.items[uid]
	if it == nil {
		return
	}
	q.leave(it)
	delete(q.items, uid)
}

// leave takes an item out of its heap.
func (q *queue) leave(it *item) {
	switch it.place {
	case isActive:
		heap.Remove(&q.active, it.index)
	case isBackoff, isWaiting:
		heap.Remove(&q.timed, it.index)
	}
	it.place = isTaken
}

// take returns the most important pod that is ready, nil for none. It stays known until
// remove, or until fail puts it back.
func (q *queue) take(now time.Time) *item {
	q.fire(now)
	if len(q.active) == 0 {
		return nil
	}
	it := heap.Pop(&q.active).(*item)
	it.place, it.missed = isTaken, 0
	it.attempts++
	return it
}

// fail puts a taken item back: it waits for one of the changes, at least for its back-off.
func (q *queue) fail(it *item, wakes change, now time.Time) {
	if q.items[it.pod.UID] != it || it.place != isTaken {
		return
	}
	delay := firstBackoff
	for i := 1; i < it.attempts && delay < mostBackoff; i++ {
		delay *= 2
	}
	it.retry = now.Add(min(delay, mostBackoff))
	it.wakes = wakes
	it.place, it.due = isWaiting, now.Add(mostWait)
	if it.missed&wakes != 0 {
		it.place, it.due = isBackoff, it.retry
	}
	heap.Push(&q.timed, it)
}

// wake gives every pod that waits for one of these changes another try. It costs one
// test for each waiting pod.
func (q *queue) wake(what change, now time.Time) {
	if what == 0 {
		return
	}
	for _, it := range q.items {
		if it.place == isTaken || (it.place == isWaiting && it.wakes&what != 0) {
			q.wakeOne(it, what, now)
		}
	}
}

func (q *queue) wakeOne(it *item, what change, now time.Time) {
	switch it.place {
	case isTaken:
		it.missed |= what
	case isWaiting:
		q.leave(it)
		if it.retry.After(now) {
			it.place, it.due = isBackoff, it.retry
			heap.Push(&q.timed, it)
			return
		}
		it.place = isActive
		heap.Push(&q.active, it)
	}
}

// fire makes items ready whose time has come.
func (q *queue) fire(now time.Time) {
	for len(q.timed) > 0 && !q.timed[0].due.After(now) {
		it := heap.Pop(&q.timed).(*item)
		it.place = isActive
		heap.Push(&q.active, it)
	}
}

// next is when fire has something to do.
func (q *queue) next() (time.Time, bool) {
	if len(q.timed) == 0 {
		return time.Time{}, false
	}
	return q.timed[0].due, true
}

type activeHeap []*item

// Len, Less, Swap, Push and Pop make heap.Interface.
func (h activeHeap) Len() int { return len(h) }

// Less puts higher priority first, then longer waiting (PrioritySort).
func (h activeHeap) Less(i, j int) bool {
	if h[i].priority != h[j].priority {
		return h[i].priority > h[j].priority
	}
	return h[i].added.Before(h[j].added)
}

// Swap exchanges two items.
func (h activeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push adds an item at the end.
func (h *activeHeap) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

// Pop removes the last item.
func (h *activeHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}

type timedHeap []*item

// Len, Less, Swap, Push and Pop make heap.Interface.
func (h timedHeap) Len() int { return len(h) }

// Less puts what is due first first.
func (h timedHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }

// Swap exchanges two items.
func (h timedHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push adds an item at the end.
func (h *timedHeap) Push(x any) { (*activeHeap)(h).Push(x) }

// Pop removes the last item.
func (h *timedHeap) Pop() any { return (*activeHeap)(h).Pop() }
