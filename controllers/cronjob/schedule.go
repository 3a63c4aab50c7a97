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
	// From behind, in steps that double: a schedule may have been due very often.
	for back := between; ; back *= 2 {
		start := now.Add(-back)
		if start.Before(first) || back > 100*365*24*time.Hour {
			start = first.Add(-time.Second)
		}
		t := s.Next(start)
		if t.IsZero() || t.After(now) {
			continue
		}
		for !t.IsZero() && !t.After(now) {
			due, t = t, s.Next(t)
		}
		return due, missed
	}
}
