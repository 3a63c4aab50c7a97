package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"coracle.dev/coracle/store"
)

// Place is where a durable store keeps its things. Open opens what is there.
type Place interface {
	Open(t testing.TB, opts store.Options) store.Store
}

// Durable holds a store to what it promises about being closed and opened again.
func Durable(t *testing.T, place func(t testing.TB) Place) {
	t.Run("Reopen", func(t *testing.T) { reopen(t, place(t)) })
	t.Run("ReopenModel", func(t *testing.T) { reopenModel(t, place(t)) })
	t.Run("CloseUnderLoad", func(t *testing.T) { closeUnderLoad(t, place(t)) })
	t.Run("ReopenEmpty", func(t *testing.T) {
		p := place(t)
		for range 3 {
			h := &harness{t, p.Open(t, Options()), Options()}
			h.equal("revision", h.s.Snapshot().Revision(), 0)
			h.close()
		}
	})
}

func (h *harness) close() {
	h.Helper()
	if err := h.s.Close(); err != nil {
		h.Fatalf("close: %v", err)
	}
}

func reopen(t *testing.T, p Place) {
	h := &harness{t, p.Open(t, Options()), Options()}
	h.commit(put("a/ns/x", "1", 0, "t"), put("a/ns/y", "2", 0), put("b/z", "3", 0))
	h.commit(put("a/ns/x", "4", 1, "t", "u"))
	h.commit(del("a/ns/y", 1))
	h.close()

	h.s = p.Open(t, Options())
	s := h.s.Snapshot()
	h.equal("revision", s.Revision(), 3)
	h.equal("state", []string{h.text(s, "a/ns/x"), h.text(s, "a/ns/y"), h.text(s, "b/z")}, "[4 - 3]")
	e := s.Get(key("a/ns/x"))
	h.equal("entry", []any{e.Key, e.Revision, e.Created, e.Object.(*Object).Rev}, "[a/ns/x 2 1 2]")
	h.equal("index", names(s.Index("a", "tag", "u")), "[ns/x]")
	_, err := h.s.Cursor(2)
	wantErr(h, "cursor into the time before", err, store.ErrCompacted)
	_, err = h.s.SnapshotAt(2)
	wantErr(h, "snapshot of the time before", err, store.ErrCompacted)
	c := h.cursor(3)
	h.commit(put("a/ns/x", "5", 2), put("new/n", "6", 0))
	h.equal("events", h.poll(c), "[~ a/ns/x 4 + new/n 4]")
	h.equal("snapshot at the load", h.text(must(h.s.SnapshotAt(3))(h), "a/ns/x"), "4")
	h.close()
}

// closeUnderLoad closes a store while others commit: each commit is done and found again,
// or refused and without effect.
func closeUnderLoad(t *testing.T, p Place) {
	h := &harness{t, p.Open(t, Options()), Options()}
	const writers = 8
	var wg sync.WaitGroup
	var done [writers]atomic.Int64
	under := make(chan struct{}, writers)
	for w := range writers {
		wg.Go(func() {
			for i := 1; ; i++ {
				_, _, err := h.s.Commit(context.Background(), store.Txn{Relaxed: w%2 == 0, Ops: []store.Op{
					put(fmt.Sprintf("a/%d-%d", w, i), "", 0), put(fmt.Sprintf("b/%d-%d", w, i), "", 0)}})
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("commit while closing: %v", err)
					return
				}
				if done[w].Store(int64(i)); i == 5 {
					under <- struct{}{}
				}
			}
		})
	}
	for range writers {
		<-under
	}
	h.close()
	wg.Wait()
	rev := h.s.Snapshot().Revision()
	h.s = p.Open(t, Options())
	s := h.s.Snapshot()
	h.equal("revision", s.Revision(), rev)
	for w := range writers {
		n := int(done[w].Load())
		for i := 1; i <= n+1; i++ {
			a, b := s.Get(key(fmt.Sprintf("a/%d-%d", w, i))), s.Get(key(fmt.Sprintf("b/%d-%d", w, i)))
			if (a != nil) != (i <= n) || (b != nil) != (i <= n) {
				t.Errorf("writer %d: of %d steps, %d: %v %v", w, n, i, a, b)
			}
		}
	}
	h.close()
}

func must(s store.Snapshot, err error) func(h *harness) store.Snapshot {
	return func(h *harness) store.Snapshot {
		h.Helper()
		if err != nil {
			h.Fatal(err)
		}
		return s
	}
}

// reopenModel closes and opens the store again and again between random transactions.
func reopenModel(t *testing.T, p Place) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	m := &simple{now: map[store.Key]version{}}
	for range 8 {
		h := &harness{t, p.Open(t, Options()), Options()}
		h.equal("revision", h.s.Snapshot().Revision(), m.rev)
		h.equal("state", dumpStore(h.s.Snapshot()), dumpModel(m.now))
		for range rnd.IntN(150) {
			txn := m.randomTxn(rnd)
			want := m.apply(txn)
			if _, _, err := h.s.Commit(t.Context(), txn); (err == nil) != want {
				t.Fatalf("the model says %v, the store %v", want, fmt.Sprint(err))
			}
		}
		h.close()
	}
}
