// Package storetest is the conformance suite of store.Store: what the
// interface promises, as tests that every implementation passes.
//
// It owns the meaning of the interface where words leave room. It never looks
// inside an implementation. Run holds for every store, Durable for those that
// outlive their process.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/store"
)

// Opener opens an empty store. The suite closes it.
type Opener func(t testing.TB, opts store.Options) store.Store

// Object is what the suite stores. A store sees no more of it than the
// functions of Options tell.
type Object struct {
	Text string
	Tags []string       // indexed as "tag" in the resources that Options indexes
	Rev  store.Revision `json:"-"` // set by Stamp
}

// Options are those that the suite uses: JSON, resources "a" and "b" indexed by "tag".
func Options() store.Options {
	return store.Options{
		Codec: codec{},
		Stamp: func(obj any, rev store.Revision) { obj.(*Object).Rev = rev },
		Clone: func(obj any) any { c := *obj.(*Object); return &c },
		Indexes: func(resource string) map[string]func(any) []string {
			if resource != "a" && resource != "b" {
				return nil
			}
			return map[string]func(any) []string{"tag": func(obj any) []string { return obj.(*Object).Tags }}
		},
	}
}

type codec struct{}

func (codec) Encode(_ store.Key, obj any) ([]byte, error) { return json.Marshal(obj) }

func (codec) Decode(_ store.Key, data []byte) (any, error) {
	o := &Object{}
	return o, json.Unmarshal(data, o)
}

// Run holds a store to the interface.
func Run(t *testing.T, open Opener) {
	for _, test := range []struct {
		name string
		f    func(*harness)
	}{
		{"Lifecycle", lifecycle},
		{"Conditions", conditions},
		{"Malformed", malformed},
		{"Transactions", transactions},
		{"Panics", panicking},
		{"Deletes", deletes},
		{"Lists", lists},
		{"Indexes", indexes},
		{"SnapshotsStay", snapshotsStay},
		{"Past", past},
		{"Cursors", cursors},
		{"CursorOrder", cursorOrder},
		{"CursorWaits", cursorWaits},
		{"CursorPosition", cursorPosition},
		{"CursorBacklog", cursorBacklog},
		{"Window", window},
		{"Compaction", compaction},
		{"Encodings", encodings},
		{"Closed", closed},
		{"Canceled", canceled},
		{"Model", model},
		{"Transfers", transfers},
		{"Counters", counters},
		{"Changes", changes},
		{"ManyWatchers", manyWatchers},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := Options()
			if test.name == "Window" {
				opts.Window = 10
			}
			s := open(t, opts)
			test.f(&harness{t, s, opts})
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// harness is a store under test with short ways to use it.
type harness struct {
	*testing.T
	s    store.Store
	opts store.Options
}

func key(s string) store.Key {
	p := strings.Split(s, "/")
	if len(p) == 2 {
		return store.Key{Resource: p[0], Name: p[1]}
	}
	return store.Key{Resource: p[0], Namespace: p[1], Name: p[2]}
}

func put(k, text string, expect store.Revision, tags ...string) store.Op {
	return store.Op{Key: key(k), Object: &Object{Text: text, Tags: tags}, Expect: expect}
}

func del(k string, expect store.Revision) store.Op {
	return store.Op{Key: key(k), Delete: true, Expect: expect}
}

// commit must succeed.
func (h *harness) commit(ops ...store.Op) store.Revision {
	h.Helper()
	rev, entries, err := h.s.Commit(h.Context(), store.Txn{Ops: ops})
	if err != nil {
		h.Fatalf("commit: %v", err)
	}
	if len(entries) != len(ops) {
		h.Fatalf("commit of %d ops returned %d entries", len(ops), len(entries))
	}
	return rev
}

func (h *harness) text(s store.Snapshot, k string) string {
	if e := s.Get(key(k)); e != nil {
		return e.Object.(*Object).Text
	}
	return "-"
}

func (h *harness) cursor(from store.Revision, resources ...string) store.Cursor {
	h.Helper()
	c, err := h.s.Cursor(from, resources...)
	if err != nil {
		h.Fatalf("cursor from %d: %v", from, err)
	}
	return c
}

// poll returns what a cursor has, in short.
func (h *harness) poll(c store.Cursor) []string {
	h.Helper()
	events, err := c.Poll()
	if err != nil {
		h.Fatalf("poll: %v", err)
	}
	var out []string
	for _, ev := range events {
		out = append(out, show(ev))
	}
	return out
}

// show gives "+ key rev" for a creation, "~" for a change, "-" for a delete.
func show(ev store.Event) string {
	sign := "~"
	switch {
	case ev.Deleted:
		sign = "-"
	case ev.Prev == nil:
		sign = "+"
	}
	return fmt.Sprintf("%s %s %d", sign, ev.Entry.Key, ev.Entry.Revision)
}

func (h *harness) equal(what string, got, want any) {
	h.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		h.Fatalf("%s:\n got %s\nwant %s", what, g, w)
	}
}

func names(seq func(func(*store.Entry) bool)) []string {
	var out []string
	for e := range seq {
		out = append(out, strings.TrimPrefix(e.Namespace+"/"+e.Name, "/"))
	}
	return out
}

func wantErr(h *harness, what string, err, want error) {
	h.Helper()
	if !errors.Is(err, want) {
		h.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

// within gives a context that ends long after anything should have happened.
func (h *harness) within() context.Context {
	ctx, cancel := context.WithTimeout(h.Context(), 30*time.Second)
	h.Cleanup(cancel)
	return ctx
}

func lifecycle(h *harness) {
	h.equal("first revision", h.s.Snapshot().Revision(), 0)
	r1 := h.commit(put("a/ns/x", "one", store.ExpectAbsent))
	h.equal("revision of the first transaction", r1, 1)
	r2 := h.commit(put("a/ns/x", "two", r1))
	e := h.s.Snapshot().Get(key("a/ns/x"))
	h.equal("revision", e.Revision, r2)
	h.equal("created", e.Created, r1)
	h.equal("key", e.Key, key("a/ns/x"))
	h.equal("object", *e.Object.(*Object), Object{Text: "two", Rev: r2})
	r3 := h.commit(del("a/ns/x", r2))
	h.equal("deleted", h.text(h.s.Snapshot(), "a/ns/x"), "-")
	r4 := h.commit(put("a/ns/x", "again", store.ExpectAbsent))
	h.equal("created again", h.s.Snapshot().Get(key("a/ns/x")).Created, r4)
	h.equal("revisions", []store.Revision{r1, r2, r3, r4}, "[1 2 3 4]")
	h.equal("snapshot", h.s.Snapshot().Revision(), r4)
	h.equal("absent resource", h.text(h.s.Snapshot(), "nothing/x"), "-")
	relaxed, _, err := h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{put("a/e", "", 0)}, Relaxed: true})
	if err != nil || relaxed != 5 || h.s.Snapshot().Get(key("a/e")) == nil {
		h.Fatalf("relaxed commit: %d, %v", relaxed, err)
	}
}

func conditions(h *harness) {
	r := h.commit(put("a/x", "1", 0))
	for _, c := range []struct {
		name    string
		txn     store.Txn
		current bool // whether the conflict shows an entry
	}{
		{"create existing", store.Txn{Ops: []store.Op{put("a/x", "no", store.ExpectAbsent)}}, true},
		{"wrong revision", store.Txn{Ops: []store.Op{put("a/x", "no", r+1)}}, true},
		{"delete wrong revision", store.Txn{Ops: []store.Op{del("a/x", r+1)}}, true},
		{"update absent", store.Txn{Ops: []store.Op{put("a/y", "no", r)}}, false},
		{"delete absent", store.Txn{Ops: []store.Op{del("a/y", r)}}, false},
		{"unknown resource", store.Txn{Ops: []store.Op{put("new/y", "no", r)}}, false},
		{"second op", store.Txn{Ops: []store.Op{put("a/y", "no", 0), put("a/x", "no", r+7)}}, true},
		{"require absent", store.Txn{Ops: []store.Op{put("a/y", "no", 0)},
			Require: map[store.Key]store.Revision{key("a/x"): store.ExpectAbsent}}, true},
		{"require revision", store.Txn{Ops: []store.Op{put("a/y", "no", 0)},
			Require: map[store.Key]store.Revision{key("a/x"): r + 1}}, true},
		{"require present", store.Txn{Ops: []store.Op{put("a/y", "no", 0)},
			Require: map[store.Key]store.Revision{key("a/z"): r}}, false},
		{"require alone", store.Txn{Require: map[store.Key]store.Revision{key("a/z"): r}}, false},
	} {
		_, entries, err := h.s.Commit(h.Context(), c.txn)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			h.Fatalf("%s: got %v, want a conflict", c.name, err)
		}
		if len(entries) != 0 || (conflict.Current != nil) != c.current || conflict.Error() == "" {
			h.Errorf("%s: conflict %+v with %d entries", c.name, conflict, len(entries))
		}
		if c.current && conflict.Current.Key != conflict.Key {
			h.Errorf("%s: conflict over %s shows %s", c.name, conflict.Key, conflict.Current.Key)
		}
	}
	h.equal("nothing changed", h.s.Snapshot().Revision(), r)
	h.equal("nothing written", h.text(h.s.Snapshot(), "a/y"), "-")
	h.commit(put("a/x", "2", store.ExpectAny), put("a/y", "3", store.ExpectAny))
	_, _, err := h.s.Commit(h.Context(), store.Txn{
		Ops: []store.Op{put("a/z", "4", 0)},
		Require: map[store.Key]store.Revision{
			key("a/x"): h.s.Snapshot().Get(key("a/x")).Revision,
			key("a/y"): store.ExpectAny,
			key("a/n"): store.ExpectAbsent,
		},
	})
	if err != nil {
		h.Fatalf("requirements that hold: %v", err)
	}
}

func malformed(h *harness) {
	for name, txn := range map[string]store.Txn{
		"no name":     {Ops: []store.Op{put("a/", "", 0)}},
		"no resource": {Ops: []store.Op{put("/ns/x", "", 0)}},
		"no object":   {Ops: []store.Op{{Key: key("a/x")}}},
		"NUL":         {Ops: []store.Op{put("a/x\x00y", "", 0)}},
		"both":        {Ops: []store.Op{{Key: key("a/x"), Object: &Object{}, Change: func(*store.Entry) (any, error) { return &Object{}, nil }}}},
		"no change":   {Ops: []store.Op{{Key: key("a/x"), Change: func(*store.Entry) (any, error) { return nil, nil }}}},
		"same key":    {Ops: []store.Op{put("a/x", "", store.ExpectAny), del("a/x", store.ExpectAny)}},
	} {
		_, _, err := h.s.Commit(h.Context(), txn)
		var conflict *store.ConflictError
		if err == nil || errors.As(err, &conflict) {
			h.Errorf("%s: got %v", name, err)
		}
	}
	h.equal("revision", h.s.Snapshot().Revision(), 0)
}

func transactions(h *harness) {
	h.commit(put("a/x", "1", 0), put("b/y", "2", 0))
	rev := h.commit(put("a/x", "3", 1), del("b/y", 1), put("c/z", "4", 0), del("c/none", store.ExpectAny))
	s := h.s.Snapshot()
	h.equal("state", []string{h.text(s, "a/x"), h.text(s, "b/y"), h.text(s, "c/z")}, "[3 - 4]")
	h.equal("revision", s.Revision(), rev)
	h.equal("one revision", []store.Revision{s.Get(key("a/x")).Revision, s.Get(key("c/z")).Revision}, "[2 2]")

	got, entries, err := h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{del("a/none", store.ExpectAny), del("new/none", store.ExpectAbsent)}})
	if err != nil || got != rev || entries[0] != nil || entries[1] != nil {
		h.Fatalf("no change: %d, %v, %v", got, entries, err)
	}
	got, _, err = h.s.Commit(h.Context(), store.Txn{})
	if err != nil || got != rev {
		h.Fatalf("empty transaction: %d, %v", got, err)
	}
	_, entries, err = h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{del("a/none", store.ExpectAny), put("a/x", "5", 2), del("c/z", 2)}})
	if err != nil || entries[0] != nil {
		h.Fatalf("entries %v, %v", entries, err)
	}
	if e := h.s.Snapshot().Get(key("a/x")); e != entries[1] {
		h.Errorf("entry returned is %p, in the snapshot is %p", entries[1], e)
	}
	h.equal("entry of a delete", []any{entries[2].Key, entries[2].Revision, entries[2].Created}, "[c/z 3 2]")
}

// panicking gives the store an object that its options' functions cannot take.
func panicking(h *harness) {
	h.commit(put("a/x", "1", 0))
	bad := store.Op{Key: key("a/y"), Object: "not an *Object", Expect: 0}
	if !panics(func() { h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{put("a/x", "2", 1), bad}}) }) {
		h.Error("no panic")
	}
	h.commit(put("b/z", "3", 0))
	s := h.s.Snapshot()
	h.equal("state", []string{h.text(s, "a/x"), h.text(s, "a/y"), h.text(s, "b/z")}, "[1 - 3]")
	h.equal("events", h.poll(h.cursor(0)), "[+ a/x 1 + b/z 2]")
}

func deletes(h *harness) {
	h.commit(put("a/x", "x", 0), put("a/y", "y", 0))
	before := h.s.Snapshot().Get(key("a/x"))
	c := h.cursor(1)
	last := del("a/y", 1)
	last.Object = &Object{Text: "last words"}
	h.commit(del("a/x", 1), last)
	events, err := c.Poll()
	if err != nil || len(events) != 2 {
		h.Fatalf("%d events, %v", len(events), err)
	}
	h.equal("without object", *events[0].Entry.Object.(*Object), Object{Text: "x", Rev: 2})
	h.equal("with object", *events[1].Entry.Object.(*Object), Object{Text: "last words", Rev: 2})
	if events[0].Prev != before || before.Object.(*Object).Rev != 1 {
		h.Errorf("the version before was touched: %v", before.Object)
	}
	h.equal("created", events[0].Entry.Created, 1)
}

func lists(h *harness) {
	var want []string
	for _, ns := range []string{"n1", "n1-x", "n10", "n2"} {
		for i := range 100 {
			want = append(want, fmt.Sprintf("%s/o%02d", ns, i))
		}
	}
	for _, i := range []int{3, 1, 0, 2} { // namespaces out of order, names backwards
		for j := 99; j >= 0; j-- {
			h.commit(put("a/"+want[i*100+j], "", 0))
		}
	}
	h.commit(put("b/cluster2", "", 0), put("b/cluster1", "", 0))
	s := h.s.Snapshot()
	h.equal("all", names(s.List("a", "", nil)), want)
	h.equal("namespace", names(s.List("a", "n1", nil)), want[:100])
	h.equal("counts", []int{s.Count("a", ""), s.Count("a", "n1"), s.Count("a", "n"), s.Count("a", "n2"), s.Count("c", ""), s.Count("c", "n1")}, "[400 100 0 100 0 0]")
	h.equal("other resource", names(s.List("b", "", nil)), "[cluster1 cluster2]")
	h.equal("no resource", names(s.List("c", "", nil)), "[]")
	h.equal("no namespace", names(s.List("a", "n", nil)), "[]")
	for _, i := range []int{0, 1, 99, 100, 250, 399} {
		after := key("a/" + want[i])
		h.equal("after "+want[i], names(s.List("a", "", &after)), want[i+1:])
		after.Name += "+" // not there, but has a place
		h.equal("after "+after.Name, names(s.List("a", "", &after)), want[i+1:])
	}
	after := key("a/n1/o50")
	h.equal("after, in a namespace", names(s.List("a", "n1", &after)), want[51:100])
	h.equal("after, in a later namespace", names(s.List("a", "n2", &after)), want[300:])
	h.equal("after, in an earlier namespace", names(s.List("a", "n0", &after)), "[]")
	var some []string
	for e := range s.List("a", "", nil) {
		if some = append(some, e.Name); len(some) == 3 {
			break
		}
	}
	h.equal("stopped early", some, "[o00 o01 o02]")
}

func indexes(h *harness) {
	h.commit(put("a/n/1", "", 0, "red"), put("a/n/2", "", 0, "red", "blue"), put("a/m/3", "", 0, ""), put("b/n/4", "", 0, "red", "red"), put("a/n/5", "", 0))
	find := func(resource, tag string) []string { return names(h.s.Snapshot().Index(resource, "tag", tag)) }
	h.equal("red", find("a", "red"), "[n/1 n/2]")
	h.equal("blue", find("a", "blue"), "[n/2]")
	h.equal("the empty value", find("a", ""), "[m/3]")
	h.equal("a prefix is no value", find("a", "re"), "[]")
	h.equal("twice the same value", find("b", "red"), "[n/4]")
	before := h.s.Snapshot()
	h.commit(put("a/n/1", "", 1, "blue"), put("a/n/2", "new", 1, "red", "blue"), del("a/m/3", 1), put("b/n/4", "", 1))
	h.equal("red", find("a", "red"), "[n/2]")
	h.equal("blue", find("a", "blue"), "[n/1 n/2]")
	h.equal("deleted", find("a", ""), "[]")
	h.equal("untagged", find("b", "red"), "[]")
	for e := range h.s.Snapshot().Index("a", "tag", "red") {
		h.equal("the index shows the present version", e.Object.(*Object).Text, "new")
	}
	h.equal("before", names(before.Index("a", "tag", "red")), "[n/1 n/2]")
	for _, resource := range []string{"a", "unindexed"} {
		if !panics(func() { h.s.Snapshot().Index(resource, "wrong", "")(func(*store.Entry) bool { return true }) }) {
			h.Errorf("an unknown index of %s did not panic", resource)
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return
}

func snapshotsStay(h *harness) {
	type kept struct {
		s     store.Snapshot
		state string
	}
	var all []kept
	dump := func(s store.Snapshot) string {
		var b strings.Builder
		for e := range s.List("a", "", nil) {
			fmt.Fprintf(&b, "%s@%d=%s ", e.Name, e.Revision, e.Object.(*Object).Text)
		}
		fmt.Fprint(&b, s.Count("a", ""), names(s.Index("a", "tag", "t")))
		return b.String()
	}
	for i := range 300 {
		name := fmt.Sprintf("a/%03d", i*7%100)
		if i%3 == 2 {
			h.commit(del(name, store.ExpectAny))
		} else {
			h.commit(put(name, fmt.Sprint(i), store.ExpectAny, slices.Repeat([]string{"t"}, i%2)...))
		}
		s := h.s.Snapshot()
		all = append(all, kept{s, dump(s)})
	}
	for _, k := range all {
		h.equal("old snapshot", dump(k.s), k.state)
	}
}

func past(h *harness) {
	h.commit(put("a/x", "1", 0, "t"))
	h.commit(put("a/x", "2", 1))
	h.commit(put("b/y", "3", 0))
	h.commit(del("a/x", 2))
	want := map[store.Revision]string{1: "1 - [x] 1", 2: "2 - [] 1", 3: "2 3 [] 1", 4: "- 3 [] 0"}
	for rev := store.Revision(4); rev >= 1; rev-- {
		s, err := h.s.SnapshotAt(rev)
		if err != nil {
			h.Fatalf("snapshot at %d: %v", rev, err)
		}
		h.equal("revision", s.Revision(), rev)
		got := fmt.Sprint(h.text(s, "a/x"), " ", h.text(s, "b/y"), " ", names(s.Index("a", "tag", "t")), " ", s.Count("a", ""))
		h.equal(fmt.Sprintf("state at %d", rev), got, want[rev])
	}
	s, err := h.s.SnapshotAt(1, "a")
	if err != nil || h.text(s, "a/x") != "1" {
		h.Errorf("snapshot of one resource: %v", err)
	}
	_, err = h.s.SnapshotAt(5)
	wantErr(h, "the future", err, store.ErrFuture)
}

func encodings(h *harness) {
	h.commit(put("a/x", "1", 0))
	e := h.s.Snapshot().Get(key("a/x"))
	made := 0
	encode := func(media string) string {
		b, err := e.Encoding(media, func() ([]byte, error) { made++; return []byte(media), nil })
		if err != nil {
			h.Fatal(err)
		}
		return string(b)
	}
	h.equal("encodings", []string{encode("json"), encode("cbor"), encode("json"), encode("cbor")}, "[json cbor json cbor]")
	h.equal("made", made, 2)
	_, err := e.Encoding("bad", func() ([]byte, error) { return nil, errors.ErrUnsupported })
	wantErr(h, "failing encoder", err, errors.ErrUnsupported)
	e.DropEncodings()
	encode("json")
	h.equal("made again", made, 3)
}

func closed(h *harness) {
	h.commit(put("a/x", "1", 0))
	c := h.cursor(1)
	ended := make(chan error)
	go func() {
		_, err := c.Next(h.within())
		ended <- err
	}()
	if err := h.s.Close(); err != nil {
		h.Fatal(err)
	}
	wantErr(h, "waiting cursor", <-ended, store.ErrClosed)
	_, err := c.Poll()
	wantErr(h, "poll", err, store.ErrClosed)
	_, _, err = h.s.Commit(h.Context(), store.Txn{Ops: []store.Op{put("a/y", "", 0)}})
	wantErr(h, "commit", err, store.ErrClosed)
	_, err = h.s.Cursor(0)
	wantErr(h, "cursor", err, store.ErrClosed)
	h.equal("compact", h.s.Compact(1), store.ErrClosed)
}

func canceled(h *harness) {
	ctx, cancel := context.WithCancel(h.Context())
	cancel()
	_, _, err := h.s.Commit(ctx, store.Txn{Ops: []store.Op{put("a/x", "", 0)}})
	wantErr(h, "commit", err, context.Canceled)
	h.equal("nothing happened", h.s.Snapshot().Revision(), 0)
	_, err = h.cursor(0).Next(ctx)
	wantErr(h, "next", err, context.Canceled)
}
