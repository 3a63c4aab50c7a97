package pebble

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/internal/history"
)

// batch is the transactions that share one write and one fsync.
type batch struct {
	changes []change
	durable bool // holds a transaction that is not relaxed
	sealed  history.Sealed
	done    chan struct{} // closed when the batch is visible
}

// change is one object changed.
type change struct {
	prev, entry *store.Entry
	payload     []byte
	deleted     bool
}

// disk is what the writer knows of the disk.
type disk struct {
	meta meta
	// ceiling is the one of the last meta that was synced.
	ceiling store.Revision
	key     []byte // a buffer
}

// ceilingAhead is by how much the ceiling is kept ahead of the revision. It is what revisions
// jump by after a crash, and how many relaxed transactions go without a sync.
const ceilingAhead = 1000

// write is the writer. It ends when the store is closing and all is written, or failed.
func (s *Store) write() {
	defer close(s.idle)
	defer s.unwound()
	for {
		b, closing := s.take()
		switch {
		case b != nil:
			if err := s.flush(b); err != nil {
				s.fail(s.dir.wrap(err))
				return
			}
			s.publish(b)
		case closing:
			return
		default:
			select {
			case <-s.kick:
			case <-s.failed:
				return
			}
		}
	}
}

// unwound turns a panic of the database on the writer into a failure. (Fatalf has set one
// already when it ends the goroutine.)
func (s *Store) unwound() {
	if r := recover(); r != nil {
		err, ok := r.(error)
		if !ok {
			err = fmt.Errorf("database: %v", r)
		}
		s.fail(s.dir.wrap(err))
	}
}

func (s *Store) take() (*batch, bool) {
	s.h.Lock()
	defer s.h.Unlock()
	b := s.next
	s.next, s.flying = nil, b
	if b != nil {
		b.sealed = s.h.Seal()
	}
	return b, s.closing || s.err != nil
}

func (s *Store) publish(b *batch) {
	s.h.Publish(b.sealed)
	s.h.Lock()
	s.flying = nil
	s.h.Unlock()
	close(b.done)
	s.h.Wake(b.sealed)
}

// flush puts a batch into the log and, unless all of it is relaxed, syncs it.
func (s *Store) flush(b *batch) error {
	if len(b.changes) == 0 {
		return nil
	}
	d := &s.disk
	pb := s.db.NewBatch()
	for i := range b.changes {
		if err := d.add(pb, &b.changes[i]); err != nil {
			return err
		}
	}
	d.meta.revision = b.sealed.Revision()
	d.meta.ceiling = d.meta.revision + ceilingAhead
	d.meta.clean = false
	if err := pb.Set([]byte(metaKey), d.meta.encode(), nil); err != nil {
		return err
	}
	if !b.durable && d.meta.revision <= d.ceiling {
		return errors.Join(s.db.Apply(pb, pebble.NoSync), s.dir.log.failure(), pb.Close())
	}
	return errors.Join(s.sync(pb), pb.Close())
}

// sync applies a batch that holds the meta and waits until it is on disk.
func (s *Store) sync(pb *pebble.Batch) error {
	if err := s.db.Apply(pb, pebble.Sync); err != nil {
		return err
	}
	if err := s.dir.log.failure(); err != nil {
		return err
	}
	s.disk.ceiling = s.disk.meta.ceiling
	return s.dir.setMark(s.disk.meta.revision, s.disk.meta.clean)
}

// add puts a change into a database batch and accounts for it in the meta.
func (d *disk) add(pb *pebble.Batch, c *change) error {
	d.key = appendKey(d.key[:0], c.entry.Key)
	if c.prev != nil {
		d.meta.remove(d.key, c.prev.Revision)
	}
	if c.deleted {
		return pb.Delete(d.key, nil)
	}
	d.meta.add(d.key, c.entry.Revision)
	var buf [maxHeader]byte
	head := header(&buf, d.key, c.entry.Revision, c.entry.Created, c.payload)
	op := pb.SetDeferred(len(d.key), len(head)+len(c.payload))
	copy(op.Key, d.key)
	copy(op.Value[copy(op.Value, head):], c.payload)
	return op.Finish()
}

// finish writes down that all is on disk, and closes the database.
func (s *Store) finish() error {
	d := &s.disk
	if !d.meta.clean && d.meta.revision > 0 {
		d.meta.clean = true
		d.meta.ceiling = d.meta.revision
		pb := s.db.NewBatch()
		if err := pb.Set([]byte(metaKey), d.meta.encode(), nil); err != nil {
			return err
		}
		if err := errors.Join(s.sync(pb), pb.Close()); err != nil {
			return s.dir.wrap(err)
		}
	}
	return s.dir.wrap(s.db.Close())
}
