package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"coracle.dev/coracle/store"
)

// simple is what a store is meant to be, written as simply as possible: a map,
// and a copy of it for each revision.
type simple struct {
	now    map[store.Key]version
	rev    store.Revision
	states []map[store.Key]version // by revision
	events [][]string              // by revision, as show gives them with the resource in front
}

type version struct {
	text string
	tags []string
	rev  store.Revision
	born store.Revision
}

// apply does what Commit should, and tells whether the conditions held.
func (m *simple) apply(txn store.Txn) bool {
	holds := func(k store.Key, rev store.Revision) bool {
		v, ok := m.now[k]
		return rev == store.ExpectAny || !ok && rev == store.ExpectAbsent || ok && rev == v.rev
	}
	for _, op := range txn.Ops {
		if !holds(op.Key, op.Expect) {
			return false
		}
	}
	for k, rev := range txn.Require {
		if !holds(k, rev) {
			return false
		}
	}
	rev, next := m.rev+1, maps.Clone(m.now)
	var events []string
	for _, op := range txn.Ops {
		old, had := next[op.Key]
		switch {
		case op.Delete && !had:
			continue
		case op.Delete:
			delete(next, op.Key)
			events = append(events, fmt.Sprintf("- %s %d", op.Key, rev))
		default:
			v := version{text: op.Object.(*Object).Text, tags: op.Object.(*Object).Tags, rev: rev, born: rev}
			sign := "+"
			if had {
				v.born, sign = old.born, "~"
			}
			next[op.Key] = v
			events = append(events, fmt.Sprintf("%s %s %d", sign, op.Key, rev))
		}
	}
	if len(events) > 0 {
		m.now, m.rev = next, rev
		m.states, m.events = append(m.states, next), append(m.events, events)
	}
	return true
}

var (
	modelResources  = []string{"a", "b", "c"}
	modelNamespaces = []string{"", "n", "n-1", "z"}
	modelTags       = []string{"", "t", "u"}
)

// dumpModel and dumpStore give everything that can be read, in the same words.
func dumpModel(state map[store.Key]version) string {
	keys := slices.SortedFunc(maps.Keys(state), func(a, b store.Key) int {
		return strings.Compare(a.Resource+"\x00"+a.Namespace+"\x00"+a.Name, b.Resource+"\x00"+b.Namespace+"\x00"+b.Name)
	})
	var b strings.Builder
	for _, r := range modelResources {
		for _, ns := range modelNamespaces {
			n := 0
			for _, k := range keys {
				if v := state[k]; k.Resource == r && (ns == "" || ns == k.Namespace) {
					fmt.Fprintf(&b, "%s %s %d %d\n", k, v.text, v.rev, v.born)
					n++
				}
			}
			fmt.Fprintln(&b, r, ns, n)
		}
		for _, tag := range modelTags {
			for _, k := range keys {
				if r != "c" && k.Resource == r && slices.Contains(state[k].tags, tag) {
					fmt.Fprintln(&b, tag, k)
				}
			}
		}
	}
	return b.String()
}

func dumpStore(s store.Snapshot) string {
	var b strings.Builder
	for _, r := range modelResources {
		for _, ns := range modelNamespaces {
			for e := range s.List(r, ns, nil) {
				fmt.Fprintf(&b, "%s %s %d %d\n", e.Key, e.Object.(*Object).Text, e.Revision, e.Created)
			}
			fmt.Fprintln(&b, r, ns, s.Count(r, ns))
		}
		for _, tag := range modelTags {
			if r != "c" {
				for e := range s.Index(r, "tag", tag) {
					fmt.Fprintln(&b, tag, e.Key)
				}
			}
		}
	}
	return b.String()
}

// randomTxn makes a transaction of which most conditions hold.
func (m *simple) randomTxn(rnd *rand.Rand) store.Txn {
	pick := func(s []string) string { return s[rnd.IntN(len(s))] }
	randomKey := func() store.Key {
		return store.Key{Resource: pick(modelResources), Namespace: pick(modelNamespaces), Name: fmt.Sprint(rnd.IntN(12))}
	}
	expect := func(k store.Key) store.Revision {
		switch rnd.IntN(20) {
		case 0:
			return store.ExpectAbsent
		case 1:
			return store.Revision(rnd.IntN(int(m.rev) + 2))
		case 2, 3, 4, 5:
			return store.ExpectAny
		}
		return m.now[k].rev // 0, absent, if there is none
	}
	txn := store.Txn{Relaxed: rnd.IntN(4) == 0}
	seen := map[store.Key]bool{}
	for range rnd.IntN(5) {
		k := randomKey()
		if seen[k] {
			continue
		}
		seen[k] = true
		op := store.Op{Key: k, Expect: expect(k), Delete: rnd.IntN(3) == 0}
		if !op.Delete {
			op.Object = &Object{Text: fmt.Sprint(rnd.IntN(1000)), Tags: slices.Clone(modelTags[rnd.IntN(3) : rnd.IntN(2)+2])}
		}
		txn.Ops = append(txn.Ops, op)
	}
	if rnd.IntN(4) == 0 {
		k := randomKey()
		txn.Require = map[store.Key]store.Revision{k: expect(k)}
	}
	return txn
}

// follower is a cursor and where it should be.
type follower struct {
	cursor    store.Cursor
	resources []string
	next      store.Revision
}

func (f *follower) want(m *simple) []string {
	var out []string
	for ; f.next <= m.rev; f.next++ {
		for _, ev := range m.events[f.next] {
			resource, _, _ := strings.Cut(ev[2:], "/")
			if f.resources == nil || slices.Contains(f.resources, resource) {
				out = append(out, ev)
			}
		}
	}
	return out
}

// model holds a store to a simple map under random transactions: what can be read at
// every revision, live and afterwards, and what cursors return.
func model(h *harness) {
	seed := rand.Uint64()
	h.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	m := &simple{now: map[store.Key]version{}}
	m.states, m.events = []map[store.Key]version{m.now}, [][]string{nil}
	var kept []store.Snapshot
	var followers []*follower
	for range 1500 {
		txn := m.randomTxn(rnd)
		want := m.apply(txn)
		rev, _, err := h.s.Commit(h.Context(), txn)
		var conflict *store.ConflictError
		if want && err != nil || !want && !errors.As(err, &conflict) {
			h.Fatalf("the model says %v, the store %v", want, err)
		}
		if want && rev != m.rev {
			h.Fatalf("revision %d, want %d", rev, m.rev)
		}
		switch rnd.IntN(20) {
		case 0:
			kept = append(kept, h.s.Snapshot())
			h.equal("present", dumpStore(h.s.Snapshot()), dumpModel(m.now))
		case 1:
			f := &follower{next: store.Revision(rnd.IntN(int(m.rev)+1)) + 1}
			if rnd.IntN(2) == 0 {
				f.resources = [][]string{{"a"}, {"b", "c"}, {"c"}}[rnd.IntN(3)]
			}
			f.cursor = h.cursor(f.next-1, f.resources...)
			followers = append(followers, f)
		}
		for _, f := range followers {
			if rnd.IntN(30) == 0 {
				h.equal("events", h.poll(f.cursor), f.want(m))
				h.equal("position", f.cursor.Position(), m.rev)
			}
		}
	}
	for _, f := range followers {
		h.equal("events at the end", h.poll(f.cursor), f.want(m))
	}
	for _, s := range kept {
		h.equal("kept snapshot", dumpStore(s), dumpModel(m.states[s.Revision()]))
	}
	for rev := range m.states {
		if rev%7 != 0 {
			continue
		}
		s, err := h.s.SnapshotAt(store.Revision(rev))
		if err != nil {
			h.Fatal(err)
		}
		h.equal(fmt.Sprintf("snapshot at %d", rev), dumpStore(s), dumpModel(m.states[rev]))
	}
}

// counters lets writers race for the same objects: no update may be lost.
func counters(h *harness) {
	const writers, each = 8, 60
	h.commit(put("a/0", "0", 0), put("a/1", "0", 0))
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; i < each; {
				k := key(fmt.Sprintf("a/%d", (w+i)%2))
				e := h.s.Snapshot().Get(k)
				var n int
				fmt.Sscan(e.Object.(*Object).Text, &n)
				_, _, err := h.s.Commit(h.within(), store.Txn{Relaxed: w%3 == 0, Ops: []store.Op{{
					Key: k, Expect: e.Revision, Object: &Object{Text: fmt.Sprint(n + 1)}}}})
				var conflict *store.ConflictError
				switch {
				case err == nil:
					i++
				case !errors.As(err, &conflict):
					h.Error(err)
					return
				case h.s.Snapshot().Get(k).Revision == e.Revision:
					h.Error("after a conflict the snapshot still shows what was expected")
					return
				}
			}
		})
	}
	wg.Wait()
	s := h.s.Snapshot()
	var x, y int
	fmt.Sscan(h.text(s, "a/0"), &x)
	fmt.Sscan(h.text(s, "a/1"), &y)
	h.equal("sum", x+y, writers*each)
}

// changes adds to one object from many writers at once, through Op.Change: nobody is refused, and nothing is lost. A change that
// fails ends its whole transaction with its error, and conditions come before it.
func changes(h *harness) {
	const writers, each = 8, 60
	limit := errors.New("enough")
	h.commit(put("a/sum", "0", 0))
	add := func(most int) store.Op {
		return store.Op{Key: key("a/sum"), Expect: store.ExpectAny, Change: func(e *store.Entry) (any, error) {
			var n int
			fmt.Sscan(e.Object.(*Object).Text, &n)
			if n >= most {
				return nil, limit
			}
			return &Object{Text: fmt.Sprint(n + 1)}, nil
		}}
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				_, entries, err := h.s.Commit(h.within(), store.Txn{Relaxed: w%3 == 0, Ops: []store.Op{
					put(fmt.Sprintf("b/%d-%d", w, i), "", 0), add(writers * each)}})
				if err != nil {
					h.Error(err)
					return
				}
				if have := h.s.Snapshot().Get(key("a/sum")); have.Revision < entries[1].Revision {
					h.Error("a change is not visible to who made it")
				}
			}
		})
	}
	wg.Wait()
	h.equal("sum", h.text(h.s.Snapshot(), "a/sum"), fmt.Sprint(writers*each))
	before := h.s.Snapshot().Revision()
	_, _, err := h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{put("b/more", "", 0), add(0)}})
	wantErr(h, "change that fails", err, limit)
	_, _, err = h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{put("b/0-0", "", 0), add(0)}})
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || conflict.Key != key("b/0-0") {
		h.Errorf("a condition that does not hold and a change that fails: %v", err)
	}
	h.equal("revision", h.s.Snapshot().Revision(), before)
	h.commit(store.Op{Key: key("a/new"), Change: func(e *store.Entry) (any, error) {
		if e != nil {
			h.Error("an absent object is there")
		}
		return &Object{Text: "made"}, nil
	}})
	h.equal("made", h.text(h.s.Snapshot(), "a/new"), "made")
}

// transfers moves amounts between accounts while readers check, in every
// snapshot and by replaying the history, that nothing is lost or seen by half.
func transfers(h *harness) {
	const accounts, writers, each = 20, 4, 100
	account := func(i int) string { return fmt.Sprintf("%c/%d", "ab"[i%2], i) }
	amount := func(e *store.Entry) (n int) { fmt.Sscan(e.Object.(*Object).Text, &n); return }
	var ops []store.Op
	for i := range accounts {
		ops = append(ops, put(account(i), "100", 0))
	}
	h.commit(ops...)
	var stop atomic.Bool
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 7))
			for range each {
				for !transfer(h, account(rnd.IntN(accounts)), account(rnd.IntN(accounts)), rnd.IntN(10)) {
				}
			}
		})
	}
	sum := func(s store.Snapshot) (total int) {
		for _, r := range []string{"a", "b"} {
			for e := range s.List(r, "", nil) {
				total += amount(e)
			}
		}
		return
	}
	reading.Go(func() {
		for last := store.Revision(0); !stop.Load(); {
			s := h.s.Snapshot()
			if got := sum(s); got != accounts*100 || s.Revision() < last {
				h.Errorf("sum %d at revision %d after %d", got, s.Revision(), last)
				return
			}
			last = s.Revision()
			if old, err := h.s.SnapshotAt(1 + last/2); err != nil || sum(old) != accounts*100 {
				h.Errorf("at revision %d: %v", 1+last/2, err)
				return
			}
		}
	})
	reading.Go(func() {
		c := h.cursor(0)
		state := map[store.Key]int{}
		for !stop.Load() {
			events, err := c.Poll()
			if err != nil {
				h.Error(err)
				return
			}
			for _, ev := range events {
				state[ev.Entry.Key] = amount(ev.Entry)
			}
			total := 0
			for _, n := range state {
				total += n
			}
			if len(state) > 0 && total != accounts*100 {
				h.Errorf("replayed through %d: sum %d", c.Position(), total)
				return
			}
		}
	})
	writing.Wait()
	stop.Store(true)
	reading.Wait()
	h.equal("sum", sum(h.s.Snapshot()), accounts*100)
}

// transfer returns false if it is to be tried again.
func transfer(h *harness, from, to string, n int) bool {
	if from == to {
		return true
	}
	s := h.s.Snapshot()
	a, b := s.Get(key(from)), s.Get(key(to))
	move := func(e *store.Entry, n int) store.Op {
		var have int
		fmt.Sscan(e.Object.(*Object).Text, &have)
		return store.Op{Key: e.Key, Expect: e.Revision, Object: &Object{Text: fmt.Sprint(have + n)}}
	}
	_, _, err := h.s.Commit(h.within(), store.Txn{Ops: []store.Op{move(a, -n), move(b, n)}})
	var conflict *store.ConflictError
	if err != nil && !errors.As(err, &conflict) {
		h.Error(err)
		return true
	}
	return err == nil
}
