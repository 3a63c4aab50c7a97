// Package store keeps every object of a cluster as one ordered history of
// immutable versions. It is the only truth: API server, loops, scheduler and
// node agent read the same pointers from it and meet nowhere else.
//
// It owns revisions, transactions, snapshots, the watch log, compaction and
// durability. It knows no kinds: an object is opaque, and what must be known
// of it (how it is stored, how it shows its revision, what it is indexed by)
// is given as functions when the store is opened.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Revision is a position in the history. Revisions grow by one for each
// transaction, start at 1, and never go back, across restarts too.
type Revision int64

// Key names an object. Resource is the canonical resource name: the plural,
// followed by "." and the group unless the group is the core group ("pods",
// "deployments.apps"). Namespace is empty for cluster-scoped objects.
type Key struct {
	Resource, Namespace, Name string
}

// String gives "resource/namespace/name", without the namespace where there is none.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Resource + "/" + k.Name
	}
	return k.Resource + "/" + k.Namespace + "/" + k.Name
}

// Op is one change of a transaction.
type Op struct {
	Key Key
	// Delete removes the object; otherwise the Op puts Object.
	Delete bool
	// Object is the new version (put), or the last state that watchers are
	// shown (delete; nil means the version being removed as it was). The store
	// owns it from the call of Commit on: it is stamped with the revision
	// and from then on shared, so that nobody may change it again.
	Object any
	// Expect is the revision at which the object must stand: that revision,
	// ExpectAbsent, or ExpectAny.
	Expect Revision
	// Change, in the place of Object, makes the new version from the newest one (nil if there is none) at the moment
	// of the commit, so that writers who add to the same object do not refuse each other. It runs under the store's lock, must
	// be quick, and calls nothing of the store. What it returns belongs to the store; an error ends the transaction with that
	// error, and nothing changes. Transactions of one store make their changes one after the other.
	Change func(current *Entry) (any, error)
}

const (
	// ExpectAbsent asks that no object has this key.
	ExpectAbsent Revision = 0
	// ExpectAny asks nothing. A delete of an absent object is then no change.
	ExpectAny Revision = -1
)

// Txn is a set of changes that happen together or not at all, at one
// revision. It holds at most one Op for each key.
type Txn struct {
	Ops []Op
	// Require lists keys that are read but not written, each with the revision
	// at which it must stand (same meaning as Op.Expect).
	Require map[Key]Revision
	// Relaxed returns before the change is on disk (Events, Leases). After a crash or
	// power loss the most recent relaxed changes may be gone, always as a suffix
	// that holds no later durable change. Their revisions are not used again.
	Relaxed bool
}

// Entry is one version of one object. It is immutable and shared by all readers.
type Entry struct {
	Key
	// Revision is that of the transaction that wrote this version.
	Revision Revision
	// Created is the revision at which the object came to be.
	Created Revision
	// Object is the decoded object, never to be changed by a reader.
	Object any

	encodings encodings
}

// Event is one change of one object, as watchers see it.
type Event struct {
	// Entry is the new version, or for a delete the last state, whose
	// Revision is that of the delete.
	Entry *Entry
	// Prev is the version before, nil if the object was created.
	Prev *Entry
	// Deleted tells a delete from a put.
	Deleted bool
}

// Snapshot is the whole store as it was at one revision. It is cheap to take
// and to hold (what it alone keeps alive is what was changed since), and safe for
// concurrent use.
type Snapshot interface {
	// Revision is the newest revision that this snapshot includes.
	Revision() Revision
	// Get returns the version of an object, nil if there is none. O(log n).
	Get(Key) *Entry
	// List walks the objects of a resource in order of namespace and name; an
	// empty namespace means all of them. The walk starts behind After, if given.
	List(resource, namespace string, after *Key) iter.Seq[*Entry]
	// Index walks the objects of a resource that the named index files under
	// value, in order of namespace and name. An unknown index is a
	// programming error and panics.
	Index(resource, index, value string) iter.Seq[*Entry]
	// Count is the number of objects that List would walk. O(log n).
	Count(resource, namespace string) int
}

// Cursor is a position in the history. It is used by one goroutine at a time.
// A slow reader costs the others nothing: past the window it gets ErrCompacted.
type Cursor interface {
	// Next returns the next events in order, never none: it waits for the
	// first until ctx is done. All events of one transaction are in one batch.
	// The slice is the caller's, the entries are shared.
	Next(ctx context.Context) ([]Event, error)
	// Poll is Next without the wait: no events means that there are none yet.
	Poll() ([]Event, error)
	// Ready returns a channel that is closed when Poll may have something.
	Ready() <-chan struct{}
	// Position is the revision through which everything relevant was returned.
	// It moves with commits to other resources too, when Poll or Next is called.
	Position() Revision
}

// Store is the interface that every implementation meets; storetest holds
// each to it.
type Store interface {
	// Snapshot returns the present. It never blocks, and includes every commit that
	// was acknowledged before the call.
	Snapshot() Snapshot
	// SnapshotAt returns the state at a past revision that is still in the window;
	// otherwise ErrCompacted, or ErrFuture for a revision to come. Each resource has a
	// window of its own: with resources named, only theirs matter, and only they
	// may be read from the snapshot (any other is a programming error and panics).
	SnapshotAt(rev Revision, resources ...string) (Snapshot, error)
	// Commit applies a transaction and returns its revision when it is durable
	// (or, if relaxed, visible). The entries are those written, in order of Ops, nil for a
	// delete that found nothing. A failed condition gives *ConflictError and changes
	// nothing. If nothing changes, the revision is the present one.
	Commit(ctx context.Context, txn Txn) (Revision, []*Entry, error)
	// Cursor returns the history of the given resources (none: of all) behind a
	// revision: the first event has a greater one. ErrCompacted if that history is no
	// longer kept, ErrFuture for a revision to come.
	Cursor(from Revision, resources ...string) (Cursor, error)
	// Compact forgets the history up to and including a revision. The present stays.
	Compact(Revision) error
	// Close waits for commits under way and releases everything. Cursors then
	// return ErrClosed.
	Close() error
}

// Options say what a store must know about objects.
type Options struct {
	// Codec turns objects into bytes and back. Needed by durable stores.
	Codec Codec
	// Stamp sets the revision that an object itself shows. It is called once for each
	// put and for the Object of a delete, before anyone else can see the object, and for
	// each object read from disk.
	Stamp func(obj any, rev Revision)
	// Clone returns a copy that Stamp can change without changing obj; the rest may be
	// shared. With it, a delete without Object shows watchers a copy of the last version, stamped
	// with the revision of the delete; without it (nil) the last version as it was.
	Clone func(obj any) any
	// Indexes give, by resource and index name, the values that an object is filed under.
	// The functions are pure.
	Indexes func(resource string) map[string]func(obj any) []string
	// Window is how many past events are kept at most for cursors, 0 for the default
	// of 10,000 for each resource.
	Window int
}

// Codec is how objects are stored. Both directions are pure and safe for
// concurrent use. The stored form does not hold the revision.
type Codec interface {
	Encode(key Key, obj any) ([]byte, error)
	Decode(key Key, data []byte) (any, error)
}

var (
	// ErrCompacted says that the history asked for is no longer kept.
	ErrCompacted = errors.New("store: the requested revision has been compacted")
	// ErrFuture says that a revision asked for is not reached yet.
	ErrFuture = errors.New("store: the requested revision is in the future")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("store: closed")

	// The errors below come wrapped, with the directory and the cause.

	// ErrDamaged says that what is on disk is not what was written: torn or flipped
	// bytes, a missing file, records that do not fit together. Nothing of it is served.
	ErrDamaged = errors.New("store: damaged")
	// ErrNewer says that the directory was written by a newer version in a format
	// that this one does not know.
	ErrNewer = errors.New("store: written in a newer format")
	// ErrInUse says that another process has the directory open.
	ErrInUse = errors.New("store: in use by another process")
	// ErrFull says that there is no space left on the disk. Nothing was changed; commits
	// succeed again once there is space, unless ErrFailed says otherwise.
	ErrFull = errors.New("store: disk full")
	// ErrFailed says that an earlier write did not reach the disk. The store can still be
	// read, refuses all further commits, and must be opened anew.
	ErrFailed = errors.New("store: a write to disk failed, open the store again")
	// ErrUnknown says that the context ended while the transaction was on its way to
	// the disk: it may or may not have happened.
	ErrUnknown = errors.New("store: outcome unknown")
)

// ConflictError says which condition of a transaction did not hold.
type ConflictError struct {
	Key Key
	// Expect is what the transaction asked for.
	Expect Revision
	// Current is the version found, nil for none.
	Current *Entry
}

// Error names the key and both revisions.
func (e *ConflictError) Error() string {
	have := "absent"
	if e.Current != nil {
		have = fmt.Sprintf("at revision %d", e.Current.Revision)
	}
	switch e.Expect {
	case ExpectAbsent:
		return fmt.Sprintf("store: %s was expected to be absent and is %s", e.Key, have)
	case ExpectAny:
		return fmt.Sprintf("store: %s is %s", e.Key, have)
	}
	return fmt.Sprintf("store: %s was expected at revision %d and is %s", e.Key, e.Expect, have)
}
