package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"coracle.dev/coracle/store"
)

// Bench measures a store that holds 10,000 objects of a resource with one index.
// Beside the time it reports what each operation costs all processors together ("cpu-ns/op").
func Bench(b *testing.B, open Opener) {
	const objects = 10_000
	fill := func(b *testing.B) store.Store {
		s := open(b, Options())
		for i := 0; i < objects; i += 100 {
			var ops []store.Op
			for j := range 100 {
				ops = append(ops, put(benchKey(i+j), "", 0, fmt.Sprint("node-", j%50)))
			}
			if _, _, err := s.Commit(context.Background(), store.Txn{Ops: ops}); err != nil {
				b.Fatal(err)
			}
		}
		b.Cleanup(func() { s.Close() })
		return s
	}
	keys, tags := make([]store.Key, objects), make([][]string, objects)
	for i := range keys {
		keys[i], tags[i] = key(benchKey(i)), []string{fmt.Sprint("node-", i%50)}
	}
	commit := func(b *testing.B, s store.Store, i int, relaxed bool) {
		i = i * 7919 % objects
		op := store.Op{Key: keys[i], Object: &Object{Tags: tags[i]}, Expect: store.ExpectAny}
		if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{op}, Relaxed: relaxed}); err != nil {
			b.Fatal(err)
		}
	}
	run := func(name string, f func(b *testing.B, s store.Store)) {
		b.Run(name, func(b *testing.B) {
			s := fill(b)
			b.ReportAllocs()
			b.ResetTimer()
			before := processorTime()
			f(b, s)
			b.ReportMetric(float64(processorTime()-before)/float64(b.N), "cpu-ns/op")
		})
	}
	run("Commit", func(b *testing.B, s store.Store) {
		for i := range b.N {
			commit(b, s, i, false)
		}
	})
	run("CommitRelaxed", func(b *testing.B, s store.Store) {
		for i := range b.N {
			commit(b, s, i, true)
		}
	})
	run("Commit32", func(b *testing.B, s store.Store) {
		var n atomic.Int64
		b.SetParallelism(16)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				commit(b, s, int(n.Add(1)), false)
			}
		})
	})
	run("Get", func(b *testing.B, s store.Store) {
		k := key(benchKey(4711))
		for range b.N {
			if s.Snapshot().Get(k) == nil {
				b.Fatal("not found")
			}
		}
	})
	run("List10000", func(b *testing.B, s store.Store) {
		for range b.N {
			n := 0
			for range s.Snapshot().List("a", "", nil) {
				n++
			}
			if n != objects {
				b.Fatal(n)
			}
		}
	})
	run("Index200", func(b *testing.B, s store.Store) {
		for range b.N {
			n := 0
			for range s.Snapshot().Index("a", "tag", "node-7") {
				n++
			}
			if n != objects/50 {
				b.Fatal(n)
			}
		}
	})
	run("SnapshotAt100Behind", func(b *testing.B, s store.Store) {
		for i := range 100 {
			commit(b, s, i, false)
		}
		rev := s.Snapshot().Revision() - 100
		for range b.N {
			past, err := s.SnapshotAt(rev, "a")
			if err != nil || past.Count("a", "") != objects {
				b.Fatal(err)
			}
		}
	})
	run("FanOut1000", fanOut)
}

// fanOut measures a commit and its delivery to 1,000 waiting watchers.
func fanOut(b *testing.B, s store.Store) {
	const watchers = 1000
	from := s.Snapshot().Revision()
	last := from + store.Revision(b.N)
	var wg sync.WaitGroup
	var delivered atomic.Int64
	for range watchers {
		c, err := s.Cursor(from, "a")
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for c.Position() < last {
				events, err := c.Next(context.Background())
				if err != nil {
					b.Error(err)
					return
				}
				delivered.Add(int64(len(events)))
			}
		})
	}
	for range b.N {
		if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{put(benchKey(1), "", store.ExpectAny, "node-1")}}); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	b.ReportMetric(float64(b.Elapsed())/float64(delivered.Load()), "ns/event")
}

func benchKey(i int) string { return fmt.Sprintf("a/namespace-%d/object-%05d", i%20, i) }

// processorTime is what this process has used, in nanoseconds.
func processorTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
