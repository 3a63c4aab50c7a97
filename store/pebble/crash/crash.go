// Package crash proves that a durable store keeps its promises when it is
// killed: a load whose every transaction leaves traces that must fit together, and a
// check of what is found afterwards.
//
// It owns the load and the check. It never opens a store itself: the test of this
// package kills a process, the tests of the store cut the power of a simulated disk and
// damage files, and both use the same load and check.
package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"coracle.dev/coracle/store"
)

// Object is what the load stores.
type Object struct {
	Writer, Step int
	Padding      string         `json:",omitempty"`
	Rev          store.Revision `json:"-"`
}

// Options are those of a store that the load runs on.
func Options() store.Options {
	return store.Options{
		Codec:  codec{},
		Stamp:  func(obj any, rev store.Revision) { obj.(*Object).Rev = rev },
		Window: 100,
	}
}

type codec struct{}

func (codec) Encode(_ store.Key, obj any) ([]byte, error) { return json.Marshal(obj) }

func (codec) Decode(_ store.Key, data []byte) (any, error) {
	o := &Object{}
	return o, json.Unmarshal(data, o)
}

const (
	// Writers is how many run side by side.
	Writers = 8
	// trail is how many of its last steps each writer leaves behind.
	trail = 5
)

// Ack is a transaction that the store said was done.
type Ack struct {
	Writer, Step int
	Revision     store.Revision
	// Relaxed transactions may be lost, but their revisions may not be used again.
	Relaxed bool
}

func head(w int) store.Key { return store.Key{Resource: "heads", Name: fmt.Sprint(w)} }

func left(w, step int) store.Key {
	return store.Key{Resource: "left", Namespace: fmt.Sprint(w), Name: fmt.Sprint(step)}
}

func right(w, step int) store.Key {
	return store.Key{Resource: "right", Namespace: fmt.Sprint(w), Name: fmt.Sprint(step)}
}

// Load runs the writers until ctx ends or one of them meets an error that is not ctx's.
// Each writer takes numbered steps, going on where the store says that it stopped.
// Step n is one transaction: it moves the writer's head to n, creates left/n and right/n, and deletes
// left/n-5 and right/n-5. Every fourth step is relaxed. ack is called, from many
// goroutines, after each commit has returned.
func Load(ctx context.Context, s store.Store, ack func(Ack)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, Writers)
	for w := range Writers {
		wg.Go(func() {
			if err := write(ctx, s, w, ack); err != nil && ctx.Err() == nil {
				errs[w] = fmt.Errorf("writer %d: %w", w, err)
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func write(ctx context.Context, s store.Store, w int, ack func(Ack)) error {
	step, expect := 0, store.ExpectAbsent
	if e := s.Snapshot().Get(head(w)); e != nil {
		step, expect = e.Object.(*Object).Step, e.Revision
	}
	for {
		step++
		object := func() *Object { return &Object{Writer: w, Step: step, Padding: padding[:(step*37+w)%len(padding)]} }
		txn := store.Txn{Relaxed: step%4 == 3, Ops: []store.Op{
			{Key: left(w, step), Object: object(), Expect: store.ExpectAbsent},
			{Key: head(w), Object: object(), Expect: expect},
			{Key: right(w, step), Object: object(), Expect: store.ExpectAbsent},
		}}
		if step > trail {
			txn.Ops = append(txn.Ops,
				store.Op{Key: left(w, step-trail), Delete: true, Expect: store.ExpectAny},
				store.Op{Key: right(w, step-trail), Delete: true, Expect: store.ExpectAny})
		}
		rev, _, err := s.Commit(ctx, txn)
		if err != nil {
			return err
		}
		ack(Ack{w, step, rev, txn.Relaxed})
		expect = rev
	}
}

var padding = func() string {
	b := make([]byte, 3000)
	for i := range b {
		b[i] = 'a' + byte(i*i%23)
	}
	return string(b)
}()

// Tally keeps what was acknowledged.
type Tally struct {
	mu       sync.Mutex
	step     [Writers]int // the last durable one
	durable  store.Revision
	revision store.Revision // the greatest seen, of relaxed transactions too
}

// Add takes in one.
func (t *Tally) Add(a Ack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.revision = max(t.revision, a.Revision)
	if !a.Relaxed {
		t.step[a.Writer] = max(t.step[a.Writer], a.Step)
		t.durable = max(t.durable, a.Revision)
	}
}

// Copy returns the tally as it is now.
func (t *Tally) Copy() *Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &Tally{step: t.step, durable: t.durable, revision: t.revision}
}

// Steps is the number of durable steps acknowledged.
func (t *Tally) Steps() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.step {
		n += s
	}
	return n
}

// Check holds a store that was opened after a crash to what was acknowledged
// before: nothing durable is lost, no transaction is there by half, no object is
// changed, and the revision is not behind any that was seen.
func Check(s store.Snapshot, t *Tally) error {
	if s.Revision() < t.revision {
		return fmt.Errorf("revision %d, but %d was seen before", s.Revision(), t.revision)
	}
	objects := 0
	for w := range Writers {
		n, err := checkWriter(s, w)
		if err != nil {
			return fmt.Errorf("writer %d: %w", w, err)
		}
		if n < t.step[w] {
			return fmt.Errorf("writer %d: step %d was acknowledged, %d is there", w, t.step[w], n)
		}
		if n > 0 {
			objects += 1 + 2*min(n, trail)
		}
	}
	if got := s.Count("heads", "") + s.Count("left", "") + s.Count("right", ""); got != objects {
		return fmt.Errorf("%d objects, want %d", got, objects)
	}
	return nil
}

// checkWriter returns the step that a writer's head is at.
func checkWriter(s store.Snapshot, w int) (int, error) {
	e := s.Get(head(w))
	if e == nil {
		return 0, nil
	}
	step := e.Object.(*Object).Step
	for n := max(1, step-trail+1); n <= step; n++ {
		l, r := s.Get(left(w, n)), s.Get(right(w, n))
		if l == nil || r == nil {
			return 0, fmt.Errorf("the head is at %d, of step %d are left %v and right %v", step, n, l != nil, r != nil)
		}
		for _, e := range []*store.Entry{l, r} {
			want := Object{Writer: w, Step: n, Padding: padding[:(n*37+w)%len(padding)], Rev: e.Revision}
			if *e.Object.(*Object) != want || e.Created != e.Revision {
				return 0, fmt.Errorf("%s is not what was written", e.Key)
			}
		}
		if l.Revision != r.Revision || n == step && e.Revision != l.Revision {
			return 0, fmt.Errorf("step %d has revisions %d and %d, the head %d", n, l.Revision, r.Revision, e.Revision)
		}
	}
	return step, nil
}
