package reconcile

import (
	"testing"
	"time"
)

func TestBackoffGrowsToAThousandSeconds(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 5 * time.Millisecond, 2: 10 * time.Millisecond, 11: 5120 * time.Millisecond, 18: 655360 * time.Millisecond, 19: 1000 * time.Second, 1000: 1000 * time.Second} {
		if got := backoff(n, 0); got != want {
			t.Errorf("backoff(%d) = %v, want %v", n, got, want)
		}
		if got := backoff(n, 0.999); got > want || got < want*9/10 {
			t.Errorf("backoff(%d) with jitter = %v", n, got)
		}
	}
}

func TestQueueKeepsTheOldestUnservedWake(t *testing.T) {
	now := time.Unix(0, 0)
	var tm timers
	q := newQueue(&tm)
	a, b := Key{Name: "a"}, Key{Name: "b"}
	q.wake(a, 10)
	q.wake(a, 11)
	q.wake(b, 12)
	first := q.next(now)
	if first.key != a || q.wakes.first.rev != 10 {
		t.Fatalf("first is %v, oldest %d", first.key, q.wakes.first.rev)
	}
	q.wake(a, 13) // while running
	second := q.next(now)
	q.finish(second, done, 0, now)
	q.finish(first, failed, 0, now)
	if q.wakes.first.rev != 10 || q.wakes.first != q.wakes.last {
		t.Fatalf("a failed pass must keep the wake that it was for, and it alone")
	}
	again := q.next(now)
	if again != first {
		t.Fatal("a key that was woken during its failed pass is not queued")
	}
	q.wake(a, 14)
	q.finish(again, done, 0, now)
	if q.wakes.first.rev != 14 {
		t.Fatalf("oldest %d, want 14", q.wakes.first.rev)
	}
	q.finish(q.next(now), done, time.Minute, now)
	if q.wakes.first != nil || len(q.items) != 1 {
		t.Fatal("a key that waits for the clock alone is caught up")
	}
	tm.fire(now.Add(time.Minute))
	q.finish(q.next(now), done, 0, now)
	if len(q.items) != 0 || len(tm.items) != 0 || q.length() != 0 {
		t.Fatal("a key at rest is kept")
	}
}

func TestQueueSpacing(t *testing.T) {
	now := time.Unix(0, 0)
	var tm timers
	q := newQueue(&tm)
	q.spacing = time.Second
	k := Key{Name: "a"}
	q.wake(k, 10)
	q.finish(q.next(now), done, 0, now)
	if len(q.items) != 1 || q.next(now) != nil || q.wakes.first != nil {
		t.Fatal("a key that is done does not rest")
	}
	q.wake(k, 11)
	q.wake(k, 12)
	if q.next(now) != nil || q.wakes.first.rev != 11 {
		t.Fatal("a key that rests is worked on before its time, or forgets what woke it")
	}
	tm.fire(now.Add(time.Second))
	it := q.next(now)
	if it == nil {
		t.Fatal("a key that was woken while it rested is not queued when its time is up")
	}
	q.wake(k, 13) // while running
	q.finish(it, done, 0, now)
	if q.next(now) != nil || q.wakes.first.rev != 13 {
		t.Fatal("a key that was woken while it ran does not rest before its next pass")
	}
	tm.fire(now.Add(time.Second))
	q.finish(q.next(now), done, 0, now)
	tm.fire(now.Add(2 * time.Second))
	if len(q.items) != 0 || len(tm.items) != 0 || q.wakes.first != nil {
		t.Fatal("a key whose rest is over is kept")
	}

	// A pass that asks for another one later is spaced too.
	q.wake(k, 20)
	q.finish(q.next(now), done, time.Minute, now)
	q.wake(k, 21)
	if q.next(now) != nil {
		t.Fatal("a key that waits for the clock is worked on before its spacing is over")
	}
	tm.fire(now.Add(time.Second))
	it = q.next(now.Add(time.Second))
	if it == nil {
		t.Fatal("a key that waits for the clock is not queued when it was woken and its spacing is over")
	}
	q.finish(it, done, time.Minute, now)
	tm.fire(now.Add(time.Minute))
	if q.next(now.Add(time.Minute)) == nil {
		t.Fatal("a key that waits for the clock is not queued when that comes")
	}
}
