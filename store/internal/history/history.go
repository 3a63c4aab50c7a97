package history

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unique"

	"coracle.dev/coracle/store"
)

// DefaultWindow is how many events of each resource are kept if Options do not say.
const DefaultWindow = 10_000

// History is the in-memory part of a store. Snapshot, SnapshotAt and Cursor may
// be called at any time. Apply, Conflict, Seal, Compact and Load need the lock.
// Publish is called with states in the order in which they were sealed.
type History struct {
	sync.Mutex // guards head, edit and touched

	opts    store.Options
	head    *state   // the newest, applied but perhaps not yet visible
	edit    uint64   // under which the head may be changed, 0 if it is sealed
	touched []string // resources that this edit has changed

	edits   atomic.Uint64
	visible atomic.Pointer[state]
	notify  notifier
	closed  atomic.Bool
}

// New returns an empty history at revision 0.
func New(opts store.Options) *History {
	if opts.Window <= 0 {
		opts.Window = DefaultWindow
	}
	h := &History{opts: opts}
	h.head = &state{h: h, ids: map[string]int{}}
	h.visible.Store(h.head)
	return h
}

func (h *History) indexes(resource string) map[string]func(any) []string {
	if h.opts.Indexes == nil {
		return nil
	}
	return h.opts.Indexes(resource)
}

// Snapshot is store.Store's.
func (h *History) Snapshot() store.Snapshot { return h.visible.Load() }

// SnapshotAt is store.Store's.
func (h *History) SnapshotAt(rev store.Revision, resources ...string) (store.Snapshot, error) {
	if h.closed.Load() {
		return nil, store.ErrClosed
	}
	s := h.visible.Load()
	switch {
	case rev > s.rev:
		return nil, store.ErrFuture
	case rev < s.compacted:
		return nil, store.ErrCompacted
	case rev == s.rev:
		return s, nil
	}
	for _, t := range s.tables {
		if rev < t.log.gone && (len(resources) == 0 || slices.Contains(resources, t.resource)) {
			return nil, store.ErrCompacted
		}
	}
	if len(resources) == 0 {
		resources = nil
	}
	return &past{now: s, rev: rev, resources: resources}, nil
}

// Visible is the revision that readers see.
func (h *History) Visible() store.Revision { return h.visible.Load().rev }

// Check returns what is wrong with a transaction in itself.
func Check(txn store.Txn) error {
	for i, op := range txn.Ops {
		k := op.Key
		if k.Resource == "" || k.Name == "" {
			return fmt.Errorf("store: incomplete key %q", k)
		}
		if strings.IndexByte(k.Resource, 0) >= 0 || strings.IndexByte(k.Namespace, 0) >= 0 || strings.IndexByte(k.Name, 0) >= 0 {
			return fmt.Errorf("store: NUL in key %q", k)
		}
		if !op.Delete && op.Object == nil && op.Change == nil {
			return fmt.Errorf("store: put of %s without an object", k)
		}
		if op.Change != nil && (op.Delete || op.Object != nil) {
			return fmt.Errorf("store: put of %s with both an object and a change", k)
		}
		for _, other := range txn.Ops[:i] {
			if other.Key == k {
				return fmt.Errorf("store: two changes of %s in one transaction", k)
			}
		}
	}
	return nil
}

// Resolve gives the transaction, which passed Check, with what its changes make of the newest state, and tells for which Ops
// that was. The caller holds the lock until Apply. Conditions that do not hold come before the changes' own errors.
func (h *History) Resolve(txn store.Txn) (store.Txn, []int, error) {
	var made []int
	for i := range txn.Ops {
		if txn.Ops[i].Change != nil {
			made = append(made, i)
		}
	}
	if made == nil {
		return txn, nil, nil
	}
	if err := h.Conflict(txn); err != nil {
		return txn, nil, err
	}
	txn.Ops = slices.Clone(txn.Ops)
	for _, i := range made {
		op := &txn.Ops[i]
		obj, err := op.Change(h.head.Get(op.Key))
		if err != nil {
			return txn, nil, err
		}
		if obj == nil {
			return txn, nil, fmt.Errorf("store: the change of %s makes no object", op.Key)
		}
		op.Object, op.Change = obj, nil
	}
	return txn, made, nil
}

// Conflict returns the first condition of a transaction that does not hold for
// the newest state.
func (h *History) Conflict(txn store.Txn) *store.ConflictError {
	for i := range txn.Ops {
		op := &txn.Ops[i]
		if err := h.head.expect(op.Key, op.Expect); err != nil {
			return err
		}
	}
	for k, rev := range txn.Require {
		if err := h.head.expect(k, rev); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) expect(k store.Key, rev store.Revision) *store.ConflictError {
	if rev == store.ExpectAny {
		return nil
	}
	current := s.Get(k)
	if current == nil && rev == store.ExpectAbsent || current != nil && rev == current.Revision {
		return nil
	}
	return &store.ConflictError{Key: k, Expect: rev, Current: current}
}

// Apply changes the head if the conditions of the transaction, which passed
// Check, hold. It returns what store.Commit does. Each change is reported in
// order to each, if it is not nil: prev is the version before, e the one written
// or, for a delete, shown to watchers. A panic of the functions in Options leaves the head
// as it was.
func (h *History) Apply(txn store.Txn, each func(op int, prev, e *store.Entry)) (store.Revision, []*store.Entry, error) {
	if err := h.Conflict(txn); err != nil {
		return 0, nil, err
	}
	entries := make([]*store.Entry, len(txn.Ops))
	var room [4]change
	changes := h.plan(room[:0], txn, entries)
	if len(changes) == 0 {
		return h.head.rev, entries, nil
	}
	for _, c := range changes {
		deleted := txn.Ops[c.op].Delete
		if deleted {
			c.table.remove(c.prev)
		} else {
			c.table.put(c.entry, c.prev, c.values)
		}
		if each != nil {
			each(c.op, c.prev, c.entry)
		}
		c.table.log.append(record{entry: c.entry, prev: c.prev, order: uint32(c.op), deleted: deleted}, h.opts.Window)
	}
	h.head.rev++
	return h.head.rev, entries, nil
}

// change is what one Op of a transaction comes to.
type change struct {
	op          int
	table       *table
	prev, entry *store.Entry
	values      [][]string // for each index of the table
}

// plan does all of a transaction that calls functions from Options, and changes
// nothing but that tables may be made.
func (h *History) plan(changes []change, txn store.Txn, entries []*store.Entry) []change {
	for i := range txn.Ops {
		op := &txn.Ops[i]
		prev := h.head.Get(op.Key)
		if op.Delete && prev == nil {
			continue
		}
		h.verify(prev)
		c := change{op: i, table: h.table(op.Key.Resource), prev: prev, entry: h.entry(op, prev, h.head.rev+1)}
		if !op.Delete {
			c.values = c.table.values(c.entry.Object)
		}
		h.seal(c.entry)
		entries[i] = c.entry
		changes = append(changes, c)
	}
	return changes
}

// entry makes the version that an Op writes, or that watchers of a delete see.
func (h *History) entry(op *store.Op, prev *store.Entry, rev store.Revision) *store.Entry {
	e := &store.Entry{Revision: rev, Object: op.Object}
	if prev != nil {
		e.Key, e.Created = prev.Key, prev.Created
	} else {
		e.Key, e.Created = intern(op.Key), rev
	}
	if op.Object == nil {
		if h.opts.Clone == nil {
			e.Object = prev.Object
			return e
		}
		e.Object = h.opts.Clone(prev.Object)
	}
	if h.opts.Stamp != nil {
		h.opts.Stamp(e.Object, rev)
	}
	return e
}

// intern keeps a key from holding on to the request that it was cut out of.
// The resource is set by the table.
func intern(k store.Key) store.Key {
	return store.Key{
		Resource:  unique.Make(k.Resource).Value(),
		Namespace: unique.Make(k.Namespace).Value(),
		Name:      strings.Clone(k.Name),
	}
}

// own makes the head a state that may be changed.
func (h *History) own() {
	if h.edit != 0 {
		return
	}
	c := *h.head
	c.tables = slices.Clone(c.tables)
	h.head, h.edit = &c, h.edits.Add(1)
}

// table returns the table of a resource, in a form that may be changed.
func (h *History) table(resource string) *table {
	h.own()
	i, ok := h.head.ids[resource]
	if !ok {
		t := newTable(h.edit, resource, h.indexes(resource))
		i = len(h.head.tables)
		h.head.ids = maps.Clone(h.head.ids)
		h.head.ids[t.resource] = i
		h.head.tables = append(h.head.tables, t)
		h.touched = append(h.touched, t.resource)
		return t
	}
	t := h.head.tables[i]
	if t.edit != h.edit {
		t = t.own(h.edit)
		h.head.tables[i] = t
		h.touched = append(h.touched, t.resource)
	}
	return t
}

// Sealed is a state that is ready to be published.
type Sealed struct {
	state   *state
	touched []string
}

// Revision is the newest one that the state includes.
func (s Sealed) Revision() store.Revision { return s.state.rev }

// Seal freezes the head: what is applied later goes into a state of its own.
func (h *History) Seal() Sealed {
	s := Sealed{h.head, h.touched}
	h.edit, h.touched = 0, nil
	return s
}

// Publish makes a sealed state the one that readers see. Wake is called after it,
// with no lock held.
func (h *History) Publish(s Sealed) { h.visible.Store(s.state) }

// Wake wakes the cursors that wait for what the state changed.
func (h *History) Wake(s Sealed) { h.notify.wake(s.touched) }

// Compact forgets the history up to and including a revision, which must be
// visible. The result is to be sealed and published.
func (h *History) Compact(rev store.Revision) error {
	if rev > h.Visible() {
		return store.ErrFuture
	}
	if rev <= h.head.compacted {
		return nil
	}
	h.own()
	h.head.compacted = rev
	for i, t := range h.head.tables {
		if t.log.next > t.log.first && t.log.at(t.log.first).entry.Revision <= rev {
			t = t.own(h.edit)
			t.log.compact(rev)
			h.head.tables[i] = t
		}
	}
	return nil
}

// Load fills an empty history with the present as it was kept elsewhere. Nothing
// before rev is known. Entries come in order of resource, namespace and name;
// they are stamped already.
func (h *History) Load(rev store.Revision, entries iter.Seq[*store.Entry]) {
	h.own()
	h.head.rev, h.head.compacted = rev, rev
	var t *table
	for e := range entries {
		if t == nil || t.resource != e.Resource {
			t = h.table(e.Resource)
		}
		h.seal(e)
		t.put(e, nil, t.values(e.Object))
	}
	h.Publish(h.Seal())
}

// Close makes cursors return ErrClosed, those that wait too.
func (h *History) Close() {
	h.closed.Store(true)
	h.notify.close()
}

// Closed tells whether Close was called.
func (h *History) Closed() bool { return h.closed.Load() }
