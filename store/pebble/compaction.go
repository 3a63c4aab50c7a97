package pebble

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// scheduler lets one compaction run at a time. Pebble's own would wake up ten times a
// second to see whether more are allowed; here the number never changes, so that there is
// something to grant only when a compaction is asked for and when one ends.
type scheduler struct {
	db pebble.DBForCompaction

	mu       sync.Mutex // guards all below; never held in calls to db
	idle     sync.Cond  // on mu: granting became false
	running  int
	granting bool
	ended    bool
}

var (
	_ pebble.CompactionScheduler   = (*scheduler)(nil)
	_ pebble.CompactionGrantHandle = (*scheduler)(nil)
)

func newScheduler() *scheduler {
	s := &scheduler{}
	s.idle.L = &s.mu
	return s
}

// Register is called once, before all others.
func (s *scheduler) Register(_ int, db pebble.DBForCompaction) { s.db = db }

// Unregister ends granting, and waits for a grant that is under way.
func (s *scheduler) Unregister() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for s.granting {
		s.idle.Wait()
	}
}

// TrySchedule grants a compaction if none is running. Otherwise Done will.
func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.running > 0 {
		return false, nil
	}
	s.running++
	return true, s
}

// Done is called when a compaction has ended, and starts the next.
func (s *scheduler) Done() {
	if !s.begin() {
		return
	}
	accepted := false
	if waiting, _ := s.db.GetWaitingCompaction(); waiting {
		accepted = s.db.Schedule(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if accepted {
		s.running++
	}
	s.granting = false
	s.idle.Broadcast()
}

// begin takes a compaction off the count and tells whether to look for another.
func (s *scheduler) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	for s.granting {
		s.idle.Wait()
	}
	if s.ended || s.running > 0 {
		return false
	}
	s.granting = true
	return true
}

// UpdateGetAllowedWithoutPermission has nothing to tell: the number is always one.
func (s *scheduler) UpdateGetAllowedWithoutPermission() {}

// Started, MeasureCPU and CumulativeStats report what a compaction costs.
func (s *scheduler) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *scheduler) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}
