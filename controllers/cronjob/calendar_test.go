package cronjob_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/batch"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/cronjob"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// rule is a schedule, and what it means for the clock on the wall.
type rule struct {
	text string
	due  func(t time.Time) bool // at a whole minute
}

var rules = []rule{
	{"*/15 * * * *", func(t time.Time) bool { return t.Minute()%15 == 0 }},
	{"30 2 * * *", func(t time.Time) bool { return t.Hour() == 2 && t.Minute() == 30 }},
	{"0 1 * * *", func(t time.Time) bool { return t.Hour() == 1 && t.Minute() == 0 }},
	{"30 1 * * 0", func(t time.Time) bool { return t.Hour() == 1 && t.Minute() == 30 && t.Weekday() == time.Sunday }},
	{"@daily", func(t time.Time) bool { return t.Hour() == 0 && t.Minute() == 0 }},
	{"@monthly", func(t time.Time) bool { return t.Day() == 1 && t.Hour() == 0 && t.Minute() == 0 }},
	{"5 4 29 2 *", func(t time.Time) bool {
		return t.Month() == time.February && t.Day() == 29 && t.Hour() == 4 && t.Minute() == 5
	}},
	{"0 9-17/4 13 * 5", func(t time.Time) bool { // the day of the month or that of the week
		return (t.Day() == 13 || t.Weekday() == time.Friday) && t.Hour() >= 9 && t.Hour() <= 17 && (t.Hour()-9)%4 == 0 && t.Minute() == 0
	}},
}

// zones change their clocks in the north, in the south, at midnight, and not at all. Where they change by half an hour (Lord Howe) the
// library that upstream takes too misses a day now and then; that is left as it is.
var zones = []string{"America/New_York", "Europe/Berlin", "Australia/Sydney", "America/Santiago", "Asia/Kolkata"}

// TestSchedulesAgreeWithTheWall goes through a year and more minute by minute and holds that a schedule is due when the clock on
// the wall says so: not at all on a day on which the hour is skipped, and twice when it comes twice.
func TestSchedulesAgreeWithTheWall(t *testing.T) {
	for _, name := range zones {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Date(2023, 12, 1, 0, 0, 0, 0, time.UTC)
		end := start.AddDate(1, 1, 0)
		schedules, next := make([]batch.Schedule, len(rules)), make([]time.Time, len(rules))
		for i, r := range rules {
			if schedules[i], err = batch.ParseSchedule(r.text); err != nil {
				t.Fatal(err)
			}
			next[i] = schedules[i].Next(start.Add(-time.Second).In(zone))
		}
		wrong := 0
		for at := start; at.Before(end) && wrong < 5; at = at.Add(time.Minute) {
			wall := at.In(zone)
			for i, r := range rules {
				if due, is := r.due(wall), next[i].Equal(at); due != is {
					t.Errorf("%s, %q: due at %s is %v, next is %s", name, r.text, wall, due, next[i])
					wrong++
					next[i] = schedules[i].Next(wall)
				} else if is {
					next[i] = schedules[i].Next(next[i])
				}
			}
		}
	}
}

// TestRunsOverTheYears lets cron jobs run through months of virtual time with a controller that is away at times, and
// holds that a job was made for each time at which it was there, for the last of those that it missed, and for none twice.
func TestRunsOverTheYears(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			r, name := rules[1+rnd.IntN(len(rules)-1)], zones[rnd.IntN(len(zones))]
			zone, err := time.LoadLocation(name)
			if err != nil {
				t.Fatal(err)
			}
			c := reconciletest.NewCluster(0)
			var mu sync.Mutex
			var got []time.Time
			c.Refuse = func(verb string, ref client.Ref, obj api.Object) error {
				if verb == "create" && ref.Resource == client.Jobs.Name {
					mu.Lock()
					defer mu.Unlock()
					due, err := time.Parse(time.RFC3339, obj.GetAnnotations()[batchv1.CronJobScheduledTimestampAnnotation])
					if err != nil || obj.GetName() != fmt.Sprintf("tick-%d", due.Unix()/60) {
						t.Errorf("job %s, due %s, %v", obj.GetName(), due, err)
					}
					got = append(got, due.UTC())
				}
				return nil
			}
			h := reconciletest.New(t, c, cronjob.Loop())
			defer func() { h.Stop() }()
			h.Create("cronjobs.batch", &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tick"}, Spec: batchv1.CronJobSpec{
				Schedule: r.text, TimeZone: &name, JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
					Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}}})
			var want []time.Time
			pass := func(away bool, d time.Duration) {
				from := time.Now()
				h.Advance(d)
				var missed []time.Time
				for at := from.Truncate(time.Minute).Add(time.Minute).UTC(); !at.After(time.Now().Add(-time.Millisecond)); at = at.Add(time.Minute) {
					if r.due(at.In(zone)) {
						missed = append(missed, at)
					}
				}
				if away && len(missed) > 1 {
					missed = missed[len(missed)-1:]
				}
				want = append(want, missed...)
			}
			for range 40 {
				pass(false, time.Duration(1+rnd.IntN(20*24*3600))*time.Second+time.Second/2)
				for _, j := range reconciletest.All(h, client.Jobs, "default") {
					h.Delete("jobs.batch", "default", j.Name, metav1.DeletePropagationBackground)
				}
				h.Settle()
				if rnd.IntN(2) == 0 {
					h.Stop()
					pass(true, time.Duration(1+rnd.IntN(10*24*3600))*time.Second)
					h.Start(cronjob.Loop())
				}
			}
			h.Advance(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if !slices.EqualFunc(got, want, time.Time.Equal) {
				t.Errorf("seed %d, %q in %s: %d runs, want %d", seed, r.text, name, len(got), len(want))
				for i := range min(len(got), len(want)) {
					if !got[i].Equal(want[i]) {
						t.Errorf("the first that differs: %s, want %s", got[i].In(zone), want[i].In(zone))
						break
					}
				}
			}
		})
	}
}
