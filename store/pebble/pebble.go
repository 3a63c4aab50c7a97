package pebble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/internal/history"
)

// Store is a store.Store that survives a crash and a power loss.
type Store struct {
	h     *history.History
	codec store.Codec
	dir   *directory
	db    *pebble.DB
	log   *slog.Logger

	// Guarded by the lock of h.
	next    *batch // gathers what the writer takes next, nil if there is nothing
	flying  *batch // is being written
	closing bool
	err     error // why the store failed

	kick   chan struct{} // wakes the writer; holds one
	failed chan struct{} // closed when err is set
	idle   chan struct{} // closed when the writer has ended

	// background is the last error of work in the background, nil once such work succeeded again.
	background atomic.Pointer[error]

	// unchecked counts the bytes accepted since the free space was last looked
	// at. It starts, and stays while there is too little, above checkEvery.
	unchecked atomic.Int64

	disk disk // the writer's own
}

var _ store.Store = (*Store)(nil)

// checkEvery is how many bytes are accepted between two looks at the free space.
const checkEvery = 1 << 20

// Open opens the store in a directory, which is made if it is absent. Options.Codec
// is required. The error is, or wraps, store.ErrInUse, store.ErrNewer, store.ErrDamaged
// or store.ErrFull where one of them is the reason. History from before is compacted:
// cursors go on from the present revision only.
//
// log hears of what goes wrong in the background; nothing of the objects is logged.
func Open(dir string, opts store.Options, log *slog.Logger) (*Store, error) {
	return open(dir, vfs.Default, opts, log)
}

func open(path string, fs vfs.FS, opts store.Options, log *slog.Logger) (*Store, error) {
	if opts.Codec == nil {
		return nil, errors.New("store: a durable store needs a codec")
	}
	dir, err := openDirectory(path, fs)
	if err != nil {
		return nil, err
	}
	s := &Store{
		h:      history.New(opts),
		codec:  opts.Codec,
		dir:    dir,
		log:    log,
		kick:   make(chan struct{}, 1),
		failed: make(chan struct{}),
		idle:   make(chan struct{}),
	}
	s.unchecked.Store(checkEvery)
	if err := s.openDatabase(opts); err != nil {
		return nil, errors.Join(err, dir.close())
	}
	go s.write()
	return s, nil
}

func (s *Store) openDatabase(opts store.Options) error {
	desc, err := pebble.Peek(s.dir.path, s.dir.fs)
	if err != nil {
		return s.dir.wrapOpen(err)
	}
	if mark := s.dir.marked(); mark > 0 && !desc.Exists {
		return fmt.Errorf("%w: %s held revision %d, its database is gone", store.ErrDamaged, s.dir.path, mark)
	}
	err = s.guard(func() (err error) {
		s.db, err = pebble.Open(s.dir.path, s.dir.options(s.events(), logger{s}))
		return err
	})
	if err != nil {
		return s.dir.wrapOpen(err)
	}
	if err := s.load(opts); err != nil {
		return errors.Join(err, s.guard(s.db.Close))
	}
	return nil
}

// guard runs f, which calls into the database, on a goroutine of its own: logger
// ends the one on which the database meets an error that it cannot handle.
func (s *Store) guard(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("database: %v", r)
			}
		}()
		err = errors.New("database: gave up")
		err = f()
	}()
	<-done
	if err != nil {
		if cause := s.failure(); cause != nil {
			return cause
		}
	}
	return err
}

// Snapshot implements store.Store. What it shows is durable.
func (s *Store) Snapshot() store.Snapshot { return s.h.Snapshot() }

// SnapshotAt implements store.Store.
func (s *Store) SnapshotAt(rev store.Revision, resources ...string) (store.Snapshot, error) {
	return s.h.SnapshotAt(rev, resources...)
}

// Cursor implements store.Store.
func (s *Store) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	return s.h.Cursor(from, resources...)
}

// Commit implements store.Store. If ctx ends while the transaction is on its way
// to the disk, the error is store.ErrUnknown.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (store.Revision, []*store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if err := history.Check(txn); err != nil {
		return 0, nil, err
	}
	payloads, err := s.encode(txn)
	if err != nil {
		return 0, nil, err
	}
	rev, entries, b, err := s.apply(txn, payloads)
	// A refusal waits too: the caller shall find what it was refused for.
	if werr := s.wait(ctx, b); werr != nil {
		return 0, nil, werr
	}
	return rev, entries, err
}

// encode turns the objects of a transaction into bytes, and refuses them if the disk is full.
func (s *Store) encode(txn store.Txn) ([][]byte, error) {
	payloads := make([][]byte, len(txn.Ops))
	size := 0
	for i := range txn.Ops {
		op := &txn.Ops[i]
		if op.Delete || op.Change != nil {
			continue
		}
		data, err := s.codec.Encode(op.Key, op.Object)
		if err != nil {
			return nil, err
		}
		payloads[i] = data
		size += len(data)
	}
	if size > 0 && s.unchecked.Add(int64(size)) > checkEvery {
		if err := s.dir.space(); err != nil {
			s.unchecked.Store(checkEvery)
			return nil, err
		}
		s.unchecked.Store(0)
	}
	return payloads, nil
}

// apply makes the transaction part of the head and of the batch that gathers. It
// returns the batch with which the head that was looked at becomes visible, nil
// if it is.
func (s *Store) apply(txn store.Txn, payloads [][]byte) (store.Revision, []*store.Entry, *batch, error) {
	s.h.Lock()
	defer s.h.Unlock()
	if err := s.refusal(); err != nil {
		return 0, nil, nil, err
	}
	txn, made, err := s.h.Resolve(txn)
	for _, i := range made {
		if err == nil {
			payloads[i], err = s.codec.Encode(txn.Ops[i].Key, txn.Ops[i].Object)
		}
	}
	if err != nil {
		// What it was refused for may be on its way to the disk.
		return 0, nil, s.pending(), err
	}
	rev, entries, err := s.h.Apply(txn, func(i int, prev, e *store.Entry) {
		b := s.gather()
		b.durable = b.durable || !txn.Relaxed
		b.changes = append(b.changes, change{prev, e, payloads[i], txn.Ops[i].Delete})
	})
	return rev, entries, s.pending(), err
}

// pending is the batch with which the head becomes visible, nil if it is. The caller holds the lock.
func (s *Store) pending() *batch {
	if s.next != nil {
		return s.next
	}
	return s.flying
}

// refusal says why the store takes no more transactions. The caller holds the lock.
func (s *Store) refusal() error {
	if s.err != nil {
		return s.err
	}
	if s.closing {
		return store.ErrClosed
	}
	return nil
}

// gather returns the batch that is taken next. The caller holds the lock.
func (s *Store) gather() *batch {
	if s.next == nil {
		s.next = &batch{done: make(chan struct{})}
		s.wake()
	}
	return s.next
}

func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// wait returns when a batch is visible.
func (s *Store) wait(ctx context.Context, b *batch) error {
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
		return nil
	case <-s.failed:
	case <-ctx.Done():
	}
	select {
	case <-b.done:
		return nil
	case <-s.failed:
		return s.failure()
	default:
		return fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	}
}

// fail makes the store refuse all that comes, and releases those who wait.
func (s *Store) fail(err error) {
	s.h.Lock()
	defer s.h.Unlock()
	if s.err != nil {
		return
	}
	s.err = fmt.Errorf("%w: %w", store.ErrFailed, err)
	close(s.failed)
	s.log.Error("store: no more writes are accepted", "dir", s.dir.path, "err", err)
}

// Health says why the store cannot write, or why what it does in the background fails at present (a full or failing disk); nil if
// all is well. It is quick.
func (s *Store) Health() error {
	if err := s.failure(); err != nil {
		return err
	}
	if err := s.background.Load(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrFailed, *err)
	}
	return nil
}

func (s *Store) failure() error {
	s.h.Lock()
	defer s.h.Unlock()
	return s.err
}

// Compact implements store.Store. Only memory is concerned: on disk is the present alone.
func (s *Store) Compact(rev store.Revision) error {
	b, err := s.compact(rev)
	if err != nil {
		return err
	}
	return s.wait(context.Background(), b)
}

func (s *Store) compact(rev store.Revision) (*batch, error) {
	s.h.Lock()
	defer s.h.Unlock()
	if err := s.refusal(); err != nil {
		return nil, err
	}
	if err := s.h.Compact(rev); err != nil {
		return nil, err
	}
	return s.gather(), nil
}

// Close implements store.Store. After a failed write it returns that error and
// leaves the database as it is: what can be saved is found by the next Open.
func (s *Store) Close() error {
	s.h.Lock()
	if s.closing {
		s.h.Unlock()
		<-s.idle
		return nil
	}
	s.closing = true
	s.h.Unlock()
	s.wake()
	<-s.idle
	s.h.Close()
	err := s.failure()
	if err == nil {
		err = s.guard(s.finish)
	}
	return errors.Join(err, s.dir.close())
}

// logger is what the database reports to.
type logger struct{ s *Store }

// Infof drops what the database tells of its flushes and compactions.
func (l logger) Infof(string, ...any) {}

// Errorf passes on what went wrong and is tried again.
func (l logger) Errorf(format string, args ...any) {
	l.s.log.Error("store: database", "err", fmt.Sprintf(format, args...))
}

// Fatalf is called where the database cannot go on. It ends the store's writes
// and the goroutine, not the process.
func (l logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err = l.s.dir.wrap(cause)
		}
	}
	l.s.fail(err)
	runtime.Goexit()
}

func (s *Store) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			s.log.Warn("store: database, tried again", "dir", s.dir.path, "err", err)
			s.unchecked.Store(checkEvery)
			s.background.Store(&err)
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil {
				s.background.Store(nil)
			}
		},
		CompactionEnd: func(info pebble.CompactionInfo) {
			if info.Err == nil {
				s.background.Store(nil)
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			s.fail(fmt.Errorf("%w: %s: %w", store.ErrDamaged, info.Path, info.Details))
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			s.log.Warn("store: writes wait for the disk", "dir", s.dir.path, "reason", info.Reason)
		},
	}
}
