package memory

import (
	"runtime"
	"testing"
)

func TestGoal(t *testing.T) {
	for live, want := range map[uint64]int64{0: 300, 10 << 20: 300, 16 << 20: 300, 24 << 20: 200, 48 << 20: 100, 64 << 20: 75, 1 << 30: 75} {
		if have := goal(live); have != want {
			t.Errorf("%d MiB live: %d %%, want %d", live>>20, have, want)
		}
	}
}

// TestPace holds the goal to a heap that grows and shrinks.
func TestPace(t *testing.T) {
	p := Pace()
	defer p.Stop()
	until := func(want int) {
		t.Helper()
		for p.Percent() != want {
			if t.Context().Err() != nil {
				t.Fatalf("the goal stays at %d %%, want %d", p.Percent(), want)
			}
			runtime.GC() // finalizers run behind it, on a goroutine of their own
			runtime.Gosched()
		}
	}
	until(mostPercent)
	held := make([]byte, 128<<20)
	until(fewest)
	runtime.KeepAlive(held)
	until(mostPercent)
}
