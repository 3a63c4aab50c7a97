package pebble

import (
	"log/slog"
	"testing"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/storetest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t testing.TB, opts store.Options) store.Store {
		return onDisk(t.TempDir()).Open(t, opts)
	})
}

func TestDurable(t *testing.T) {
	storetest.Durable(t, func(t testing.TB) storetest.Place { return onDisk(t.TempDir()) })
}

// onDisk is a directory as a storetest.Place.
type onDisk string

func (d onDisk) Open(t testing.TB, opts store.Options) store.Store {
	s, err := Open(string(d), opts, quiet())
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func BenchmarkStore(b *testing.B) {
	storetest.Bench(b, func(b testing.TB, opts store.Options) store.Store { return onDisk(b.TempDir()).Open(b, opts) })
}
