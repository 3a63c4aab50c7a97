package cronjob

import (
	"math/rand/v2"
	"testing"
	"time"

	"coracle.dev/coracle/api/batch"
)

// TestLatestAgreesWithCounting compares with the plain way of finding the last run: one by one.
func TestLatestAgreesWithCounting(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	base := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, text := range []string{"* * * * *", "*/5 * * * *", "0 0 29 2 *", "0 9 * * 1-5", "30 4 1,15 * *", "@every 90s", "@hourly", "59 23 31 12 *", "0 0 30 2 *"} {
		schedule, err := batch.ParseSchedule(text)
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			after := base.Add(time.Duration(rnd.Int64N(int64(400 * 24 * time.Hour))))
			now := after.Add(time.Duration(rnd.Int64N(int64(20 * 24 * time.Hour))))
			if text == "0 0 29 2 *" || text == "59 23 31 12 *" {
				now = after.Add(time.Duration(rnd.Int64N(int64(9 * 365 * 24 * time.Hour))))
			}
			now = now.Truncate(time.Second)
			after = after.Truncate(time.Second)
			var want time.Time
			for next := schedule.Next(after); !next.IsZero() && !next.After(now); next = schedule.Next(next) {
				want = next
			}
			if got, missed := latest(schedule, after, now); !got.Equal(want) || got.IsZero() != (missed == 0) {
				t.Fatalf("%s in (%s, %s]: %s (%d), want %s", text, after, now, got, missed, want)
			}
		}
	}
}

// TestLatestIsQuick would take minutes if it went through each minute of ten years.
func TestLatestIsQuick(t *testing.T) {
	schedule, err := batch.ParseSchedule("* * * * *")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 1, 12, 0, 30, 0, time.UTC)
	steps := 0
	got, missed := latest(counted{schedule, &steps}, now.AddDate(-10, 0, 0), now)
	if !got.Equal(now.Truncate(time.Minute)) || missed < 5_000_000 || steps > 20 {
		t.Errorf("%s, %d missed, in %d steps", got, missed, steps)
	}
}

type counted struct {
	batch.Schedule
	steps *int
}

func (c counted) Next(t time.Time) time.Time {
	*c.steps++
	return c.Schedule.Next(t)
}
