package model

import (
	"flag"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

var (
	histories = flag.Int("model.histories", 24, "how many random histories are run")
	seed      = flag.Uint64("model.seed", 0, "seed of the first history")
)

// TestHistories runs the random histories.
func TestHistories(t *testing.T) {
	revisions, started := 0, 0
	for i := range uint64(*histories) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, *seed+i)
			defer func() { w.stop() }()
			w.history(*seed + i)
			revisions, started = revisions+int(w.Snapshot().Revision()), started+w.machines.started
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d histories, %d revisions, %d pods started", *histories, revisions, started)
}

// history is four rounds of a storm and the quiet after it, each with a rollout in good weather.
func (w *world) history(seed uint64) {
	w.begin()
	w.advance(2 * time.Minute)
	for round := range 4 {
		from := w.Snapshot().Revision()
		w.storm()
		w.quiet(seed, round)
		w.rollout(seed, round)
		w.walk(from, func(store.Snapshot) error { return nil }, seed, round)
	}
}

// storm lets things happen while the controllers are at work, with writes that fail and crashes in the middle of passes.
func (w *world) storm() {
	for range 4 + w.rnd.IntN(8) {
		w.api.fail(12)
		w.step()
		if w.rnd.IntN(2) == 0 {
			w.advance(time.Duration(w.rnd.IntN(8000)) * time.Millisecond)
		}
		if w.rnd.IntN(5) == 0 {
			w.crash(w.rnd.IntN(6), time.Duration(w.rnd.IntN(3000))*time.Millisecond)
		}
	}
}

// quiet mends what users and nodes did, lets the controllers finish and holds that they did.
func (w *world) quiet(seed uint64, round int) {
	w.t.Helper()
	w.api.fail(0)
	w.calm()
	w.advance(3 * time.Minute) // deletions end
	w.calm()
	w.advance(40 * time.Minute) // longer than any back-off
	if err := settled(w.Snapshot()); err != nil {
		w.t.Fatalf("seed %d, round %d: %v\n%s", seed, round, err, picture(w.Snapshot()))
	}
}

// rollout changes templates in a world where all is well but the API and the controllers, and holds that
// no rollout went beyond its bounds.
func (w *world) rollout(seed uint64, round int) {
	w.t.Helper()
	from, bounds := w.Snapshot().Revision(), w.bounds()
	lost := w.rnd.IntN(2) == 0
	for range 1 + w.rnd.IntN(3) {
		if lost {
			w.api.fail(12)
		}
		edit(w, client.Deployments, namespace, web, "", func(d *appsv1.Deployment) { w.retouch(&d.Spec.Template, false) })
		edit(w, client.StatefulSets, namespace, db, "", func(set *appsv1.StatefulSet) { w.retouch(&set.Spec.Template, false) })
		edit(w, client.DaemonSets, namespace, agent, "", func(ds *appsv1.DaemonSet) { w.retouch(&ds.Spec.Template, false) })
		w.advance(time.Duration(w.rnd.IntN(20)) * time.Second)
		if w.rnd.IntN(2) == 0 {
			w.crash(w.rnd.IntN(6), time.Duration(w.rnd.IntN(3000))*time.Millisecond)
		}
	}
	w.api.fail(0)
	w.advance(40 * time.Minute)
	if err := settled(w.Snapshot()); err != nil {
		w.t.Fatalf("seed %d, round %d, rollout: %v\n%s", seed, round, err, picture(w.Snapshot()))
	}
	w.walk(from, func(s store.Snapshot) error { return bounds.kept(s, lost) }, seed, round)
}

// walk goes through every revision since from and holds what is so always, and check.
func (w *world) walk(from store.Revision, check func(store.Snapshot) error, seed uint64, round int) {
	w.t.Helper()
	if w.machines.twice != nil {
		w.t.Fatalf("seed %d, round %d: %v", seed, round, w.machines.twice)
	}
	for rev := from; rev <= w.Snapshot().Revision(); rev++ {
		s, err := w.SnapshotAt(rev)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, c := range []func(store.Snapshot) error{always, check} {
			if err := c(s); err != nil {
				w.t.Fatalf("seed %d, round %d, revision %d: %v\n%s", seed, round, rev, err, picture(s))
			}
		}
	}
}
