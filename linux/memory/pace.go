package memory

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// Pacer chooses the collector's goal (GOGC) by what is live: a small heap may grow to four times its size before it is
// collected, since doubling it would mean a collection every few megabytes; a large one may not, since most of it would be garbage.
// It follows each collection and costs nothing between them.
type Pacer struct {
	percent atomic.Int64
	stopped atomic.Bool
	before  int
}

// The garbage that a heap may hold: spare bytes, within the two percentages of what is live.
const (
	spare       = 48 << 20
	mostPercent = 300
	fewest      = 75
)

// Pace begins to choose the goal. One Pacer a process is enough; Stop ends it.
func Pace() *Pacer {
	p := &Pacer{before: debug.SetGCPercent(mostPercent)}
	p.percent.Store(mostPercent)
	p.follow()
	return p
}

// Percent is the goal as it is now.
func (p *Pacer) Percent() int { return int(p.percent.Load()) }

// Stop gives the goal back that was there before.
func (p *Pacer) Stop() {
	if !p.stopped.Swap(true) {
		debug.SetGCPercent(p.before)
	}
}

// follow has the next collection call adjust, by way of an object that it finds dead.
func (p *Pacer) follow() {
	type sentinel struct{ _ [16]byte }
	runtime.SetFinalizer(&sentinel{}, func(*sentinel) {
		if !p.stopped.Load() {
			p.adjust()
			p.follow()
		}
	})
}

// adjust sets the goal for what the last collection found live. Setting it stops the world for some microseconds, so
// small differences are passed over.
func (p *Pacer) adjust() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	want, have := goal(sample[0].Value.Uint64()), p.percent.Load()
	if diff := want - have; diff*10 > have || -diff*10 > have {
		debug.SetGCPercent(int(want))
		p.percent.Store(want)
	}
}

// goal is the percentage for so many live bytes.
func goal(live uint64) int64 {
	return min(mostPercent, max(fewest, int64(spare*100/max(live, 1))))
}
