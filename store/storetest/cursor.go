package storetest

import (
	"fmt"
	"sync"

	"coracle.dev/coracle/store"
)

func cursors(h *harness) {
	all, a, b, none, ab := h.cursor(0), h.cursor(0, "a"), h.cursor(0, "b"), h.cursor(0, "none"), h.cursor(0, "b", "a")
	h.equal("nothing yet", h.poll(all), "[]")
	h.commit(put("a/x", "", 0))
	h.commit(put("b/y", "", 0))
	h.commit(put("a/x", "", 1))
	h.commit(del("b/y", 2), put("c/z", "", 0))
	h.equal("all", h.poll(all), "[+ a/x 1 + b/y 2 ~ a/x 3 - b/y 4 + c/z 4]")
	h.equal("a", h.poll(a), "[+ a/x 1 ~ a/x 3]")
	h.equal("b", h.poll(b), "[+ b/y 2 - b/y 4]")
	h.equal("both", h.poll(ab), "[+ a/x 1 + b/y 2 ~ a/x 3 - b/y 4]")
	h.equal("none", h.poll(none), "[]")
	h.equal("again", h.poll(all), "[]")
	h.equal("from 2", h.poll(h.cursor(2)), "[~ a/x 3 - b/y 4 + c/z 4]")
	h.equal("from the present", h.poll(h.cursor(4)), "[]")
	h.equal("named twice", h.poll(h.cursor(2, "a", "a")), "[~ a/x 3]")
	h.commit(put("none/n", "", 0))
	h.equal("a resource that came up later", h.poll(none), "[+ none/n 5]")
	h.equal("a resource that came up later, for all", h.poll(all), "[+ none/n 5]")
	_, err := h.s.Cursor(6)
	wantErr(h, "the future", err, store.ErrFuture)
}

// cursorOrder checks that the events of a transaction come in the order of its ops, and
// with the versions that readers see.
func cursorOrder(h *harness) {
	c, two := h.cursor(0), h.cursor(0, "b", "c")
	h.commit(put("c/1", "", 0), put("a/2", "", 0), put("b/3", "", 0), put("c/4", "", 0), put("a/5", "", 0))
	h.equal("order", h.poll(c), "[+ c/1 1 + a/2 1 + b/3 1 + c/4 1 + a/5 1]")
	h.equal("order of two", h.poll(two), "[+ c/1 1 + b/3 1 + c/4 1]")
	old := h.s.Snapshot().Get(key("a/2"))
	h.commit(put("a/2", "", 1), del("a/5", 1))
	events, err := c.Poll()
	if err != nil || len(events) != 2 {
		h.Fatal(events, err)
	}
	if events[0].Prev != old || events[0].Entry != h.s.Snapshot().Get(key("a/2")) {
		h.Error("the entries of an event are not those of the snapshots")
	}
}

func cursorWaits(h *harness) {
	c := h.cursor(0, "a")
	ready := c.Ready()
	select {
	case <-ready:
		h.Fatal("ready with nothing there")
	default:
	}
	got := make(chan []store.Event)
	go func() {
		w := h.cursor(0, "a")
		for range 3 {
			events, err := w.Next(h.within())
			if err != nil {
				h.Error(err)
			}
			got <- events
		}
	}()
	h.commit(put("b/x", "", 0)) // of no concern
	h.commit(put("a/x", "", 0))
	<-ready
	h.equal("after ready", h.poll(c), "[+ a/x 2]")
	h.equal("first", show((<-got)[0]), "+ a/x 2")
	h.commit(put("a/x", "", 2))
	h.equal("second", show((<-got)[0]), "~ a/x 3")
	h.commit(del("a/x", 3))
	h.equal("third", show((<-got)[0]), "- a/x 4")
	<-c.Ready() // ready at once, two events behind
	h.equal("rest", h.poll(c), "[~ a/x 3 - a/x 4]")

	any, ab := h.cursor(4), h.cursor(4, "a", "b")
	r1, r2 := any.Ready(), ab.Ready()
	h.commit(put("c/x", "", 0))
	<-r1
	h.commit(put("b/y", "", 0))
	<-r2
	h.equal("any", h.poll(any), "[+ c/x 5 + b/y 6]")
	h.equal("a or b", h.poll(ab), "[+ b/y 6]")
}

func cursorPosition(h *harness) {
	c := h.cursor(0, "a")
	h.equal("at the start", c.Position(), 0)
	h.commit(put("b/x", "", 0))
	h.commit(put("b/x", "", 1))
	h.equal("before poll", c.Position(), 0)
	h.poll(c)
	h.equal("after commits to another resource", c.Position(), 2)
	h.commit(put("a/x", "", 0))
	h.commit(put("b/x", "", 2))
	h.poll(c)
	h.equal("past the last event", c.Position(), 4)
	h.equal("a new cursor", h.cursor(3, "a").Position(), 3)
}

// cursorBacklog reads a long history in whatever pieces the store gives it.
func cursorBacklog(h *harness) {
	const revisions, each = 900, 5
	for i := range revisions {
		var ops []store.Op
		for j := range each {
			ops = append(ops, put(fmt.Sprintf("%c/%d-%d", "ab"[j%2], i, j), "", 0))
		}
		h.commit(ops...)
	}
	for _, resources := range [][]string{nil, {"a", "b"}, {"a"}} {
		c := h.cursor(0, resources...)
		want := map[int]int{0: each, 2: each, 1: 3}[len(resources)]
		next := store.Revision(1)
		for next <= revisions {
			events, err := c.Next(h.within())
			if err != nil {
				h.Fatal(err)
			}
			for len(events) > 0 {
				if len(events) < want {
					h.Fatalf("a transaction was split: %d of %d events", len(events), want)
				}
				for _, ev := range events[:want] {
					h.equal("revision", ev.Entry.Revision, next)
				}
				events = events[want:]
				next++
			}
			if c.Position() < next-1 {
				h.Fatalf("position %d behind the events returned, %d", c.Position(), next-1)
			}
		}
		h.equal("rest", h.poll(c), "[]")
		h.equal("position", c.Position(), revisions)
	}
}

// window runs with a window of 10 events for each resource.
func window(h *harness) {
	slow, other := h.cursor(0, "a"), h.cursor(0, "b")
	h.commit(put("b/x", "", 0))
	for i := range 300 {
		h.commit(put("a/x", fmt.Sprint(i), store.ExpectAny))
	}
	_, err := slow.Poll()
	wantErr(h, "slow reader", err, store.ErrCompacted)
	_, err = slow.Next(h.within())
	wantErr(h, "slow reader waits", err, store.ErrCompacted)
	h.equal("another resource is not concerned", h.poll(other), "[+ b/x 1]")
	_, err = h.s.Cursor(10, "a")
	wantErr(h, "old cursor", err, store.ErrCompacted)
	_, err = h.s.Cursor(0)
	wantErr(h, "old cursor over all", err, store.ErrCompacted)
	h.equal("old cursor of another resource", h.poll(h.cursor(0, "b")), "[+ b/x 1]")
	h.equal("within the window", len(h.poll(h.cursor(301-10, "a"))), 10)
	_, err = h.s.SnapshotAt(10)
	wantErr(h, "old snapshot", err, store.ErrCompacted)
	_, err = h.s.SnapshotAt(10, "a", "b")
	wantErr(h, "old snapshot of a and b", err, store.ErrCompacted)
	s, err := h.s.SnapshotAt(1, "b")
	if err != nil || h.text(s, "b/x") != "" {
		h.Fatalf("old snapshot of another resource: %v", err)
	}
	s, err = h.s.SnapshotAt(301 - 10)
	if err != nil || h.text(s, "a/x") != "289" {
		h.Fatalf("snapshot at the edge of the window: %v", err)
	}
}

func compaction(h *harness) {
	for i := range 100 {
		h.commit(put("a/x", fmt.Sprint(i), store.ExpectAny), put(fmt.Sprintf("b/%d", i), "", 0))
	}
	behind, here := h.cursor(49), h.cursor(50)
	idle := h.cursor(20, "idle")
	wantErr(h, "compacting the future", h.s.Compact(101), store.ErrFuture)
	if err := h.s.Compact(50); err != nil {
		h.Fatal(err)
	}
	if err := h.s.Compact(30); err != nil {
		h.Fatalf("compacting what is gone: %v", err)
	}
	_, err := behind.Poll()
	wantErr(h, "cursor behind", err, store.ErrCompacted)
	h.equal("cursor at the edge", len(h.poll(here)), 100)
	h.equal("a cursor that has missed nothing", h.poll(idle), "[]")
	_, err = h.s.Cursor(49)
	wantErr(h, "new cursor", err, store.ErrCompacted)
	_, err = h.s.Cursor(49, "idle")
	wantErr(h, "new cursor of an idle resource", err, store.ErrCompacted)
	h.equal("new cursor", len(h.poll(h.cursor(50, "b"))), 50)
	_, err = h.s.SnapshotAt(49)
	wantErr(h, "snapshot", err, store.ErrCompacted)
	s, err := h.s.SnapshotAt(50)
	if err != nil || s.Count("b", "") != 50 || h.text(s, "a/x") != "49" {
		h.Fatalf("snapshot at the edge: %v", err)
	}
	h.equal("the present stays", h.s.Snapshot().Count("b", ""), 100)
	if err := h.s.Compact(100); err != nil {
		h.Fatal(err)
	}
	h.commit(put("a/x", "last", store.ExpectAny))
	h.equal("goes on", h.poll(h.cursor(100)), "[~ a/x 101]")
}

// manyWatchers checks that each of 1,000 waiting cursors gets every event.
func manyWatchers(h *harness) {
	const watchers, commits = 1000, 20
	var wg sync.WaitGroup
	for range watchers {
		c := h.cursor(0, "a")
		wg.Go(func() {
			next := store.Revision(1)
			for next <= commits {
				events, err := c.Next(h.within())
				if err != nil {
					h.Error(err)
					return
				}
				for _, ev := range events {
					if ev.Entry.Revision != next {
						h.Errorf("revision %d, want %d", ev.Entry.Revision, next)
						return
					}
					next++
				}
			}
		})
	}
	for range commits {
		h.commit(put("a/x", "", store.ExpectAny))
	}
	wg.Wait()
}
