package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func queued(name string, important int32) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.UID, p.Namespace, p.Generation = name, types.UID(name), "default", 1
	p.Spec.Priority = &important
	return p
}

// taken takes all that is ready and says what it was.
func taken(q *queue, now time.Time) (names string, items []*item) {
	var all []string
	for it := q.take(now); it != nil; it = q.take(now) {
		all = append(all, it.pod.object.Name)
		items = append(items, it)
	}
	return strings.Join(all, " "), items
}

func TestQueueOrder(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	for i, p := range []int32{1, 5, 1, 3} {
		q.put(queued(fmt.Sprint("p", i), p), now.Add(time.Duration(i)))
	}
	q.put(queued("gone", 9), now)
	q.remove("gone")
	if got, _ := taken(q, now); got != "p1 p3 p0 p2" {
		t.Errorf("order: %s", got)
	}
}

func TestQueueWaitsForWhatHelps(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	q.put(queued("a", 0), now)
	q.put(queued("b", 0), now.Add(1))
	_, items := taken(q, now)
	q.fail(items[0], podGone, now)
	q.fail(items[1], volumes, now)
	q.wake(nodeAdded, now, nil)
	q.wake(podGone|volumes, now, func(it *item, what change) bool { return it == items[0] && what == podGone })
	if got, _ := taken(q, now); got != "a" { // from back-off, as nothing else was to be done
		t.Errorf("woken: %q", got)
	}
	if got, _ := taken(q, now.Add(mostWait-1)); got != "" {
		t.Errorf("too early: %q", got)
	}
	if got, _ := taken(q, now.Add(mostWait)); got != "b" {
		t.Errorf("after five minutes: %q", got)
	}
}

// A pod in back-off comes behind every one that is ready, and an error is waited out.
func TestQueueBackoff(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	q.put(queued("failed", 9), now)
	q.put(queued("error", 9), now.Add(1))
	_, items := taken(q, now)
	q.fail(items[0], podGone, now)
	q.retry(items[1], now)
	q.wake(podGone, now, nil)
	q.put(queued("fresh", 0), now)
	if got, _ := taken(q, now); got != "fresh failed" {
		t.Errorf("got %q", got)
	}
	if next, ok := q.next(); !ok || next != now.Add(firstBackoff) {
		t.Errorf("next is %v %v", next, ok)
	}
	if got, _ := taken(q, now.Add(firstBackoff)); got != "error" {
		t.Errorf("got %q", got)
	}
}

// What happens between the start of a pass, or of a binding, and its failure is not lost.
func TestQueueMissesNothing(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	q.put(queued("a", 0), now)
	_, items := taken(q, now)
	q.wake(podGone, now, nil)
	q.fail(items[0], podGone|nodeAdded, now)
	if got, _ := taken(q, now); got != "a" {
		t.Error("a wake-up was lost")
	}
	// The last attempt's news are not this one's.
	q.fail(items[0], podGone, now)
	if got, _ := taken(q, now); got != "" {
		t.Error("it was woken by nothing")
	}
	// Its own change counts whatever it waits for.
	changed := queued("a", 0)
	changed.Generation = 2
	q.put(changed, now)
	if got, _ := taken(q, now); got != "a" {
		t.Error("its own change was lost")
	}
}

func TestQueueHoldsAPreemptor(t *testing.T) {
	q, now := newQueue(), time.Unix(1000, 0)
	q.put(queued("a", 0), now)
	_, items := taken(q, now)
	items[0].held = 2
	q.fail(items[0], podGone, now)
	q.wake(podGone, now, nil)
	q.release(items[0], now)
	if got, _ := taken(q, now); got != "" {
		t.Error("it did not wait for the second removal")
	}
	q.release(items[0], now)
	if got, _ := taken(q, now); got != "a" {
		t.Error("the wake-up of the first was lost")
	}
}
