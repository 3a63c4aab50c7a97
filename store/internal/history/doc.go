// Package history is the in-memory truth that every embedded store stands on:
// the present as copy-on-write trees, the recent past as one event log for
// each resource, and cursors that are positions in those logs.
//
// It owns conditions, revisions, snapshots, indexes, the window of history and
// wake-ups. It never touches a disk and starts no goroutine that outlives a
// wake-up: store/memory publishes each transaction at once, store/pebble
// publishes a batch of them when it is on disk.
//
// # Shape
//
// A state is the whole store at one revision and immutable once published. It
// points to one table for each resource; a table holds a B-tree of the
// objects, one more for each index, and the log. A transaction copies the path
// from the root to each changed leaf (about 1.5 KB for each tree of 10,000
// objects) and shares all else with the state before.
//
// There are at most two states: the head, which transactions are checked
// against and applied to under History's lock, and the visible one, which
// readers load through an atomic pointer. They differ only while a batch is
// on its way to the disk.
//
// # Locks
//
// History's lock guards the head; notifier.mu guards who waits. The first may be held
// when the second is taken, never the other way round. Readers take none,
// except a cursor that is about to sleep.
package history
