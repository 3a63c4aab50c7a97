// Package memory is a store that lives in memory alone: for tests, and for
// clusters that need not outlive their process.
//
// It owns nothing of its own: history keeps the truth, and each transaction is
// published at once. It never blocks but for the lock of other commits.
package memory

import (
	"context"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/internal/history"
)

// Store is a store.Store. A commit costs O(log n) for each change and index
// of its resource, and no more with 1,000 watchers than with one.
type Store struct {
	h *history.History
}

var _ store.Store = (*Store)(nil)

// New returns an empty store. Options.Codec is not needed.
func New(opts store.Options) *Store { return &Store{history.New(opts)} }

// Snapshot implements store.Store.
func (s *Store) Snapshot() store.Snapshot { return s.h.Snapshot() }

// SnapshotAt implements store.Store.
func (s *Store) SnapshotAt(rev store.Revision, resources ...string) (store.Snapshot, error) {
	return s.h.SnapshotAt(rev, resources...)
}

// Cursor implements store.Store.
func (s *Store) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	return s.h.Cursor(from, resources...)
}

// Commit implements store.Store. Durable means visible here.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (store.Revision, []*store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if err := history.Check(txn); err != nil {
		return 0, nil, err
	}
	rev, entries, sealed, err := s.commit(txn)
	s.h.Wake(sealed)
	return rev, entries, err
}

func (s *Store) commit(txn store.Txn) (store.Revision, []*store.Entry, history.Sealed, error) {
	s.h.Lock()
	defer s.h.Unlock()
	if s.h.Closed() {
		return 0, nil, history.Sealed{}, store.ErrClosed
	}
	txn, _, err := s.h.Resolve(txn)
	if err != nil {
		return 0, nil, history.Sealed{}, err
	}
	rev, entries, err := s.h.Apply(txn, nil)
	sealed := s.h.Seal()
	s.h.Publish(sealed)
	return rev, entries, sealed, err
}

// Compact implements store.Store.
func (s *Store) Compact(rev store.Revision) error {
	s.h.Lock()
	defer s.h.Unlock()
	if s.h.Closed() {
		return store.ErrClosed
	}
	err := s.h.Compact(rev)
	s.h.Publish(s.h.Seal())
	return err
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.h.Lock()
	defer s.h.Unlock()
	s.h.Close()
	return nil
}
