package cronjob

import (
	"time"

	"coracle.dev/coracle/api/batch"
)

// latest is the last time at which the schedule was due in (after, now], and how many there were
// as far as the distance of the first two tells; the zero time if there was none.
func latest(s batch.Schedule, after, now time.Time) (due time.Time, missed int64) {
	first := s.Next(after)
	if first.IsZero() || first.After(now) {
		return time.Time{}, 0
	}
	second := s.Next(first)
	if second.IsZero() || second.After(now) {
		return first, 1
	}
	between := max(second.Sub(first), time.Second)
	missed = int64(now.Sub(first)/between) + 1
	// From behind, in steps that double: a schedule may have been due very often. All are whole multiples of the
	// distance after the first, which keeps "@every" in its rhythm.
	periods := int64(now.Sub(first) / between)
	for back := int64(1); ; back *= 2 {
		t := first
		if back < periods {
			t = s.Next(first.Add(time.Duration(periods-back) * between))
		}
		if t.IsZero() || t.After(now) {
			continue
		}
		for !t.IsZero() && !t.After(now) {
			due, t = t, s.Next(t)
		}
		return due, missed
	}
}
