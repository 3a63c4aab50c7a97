package memory_test

import (
	"testing"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
	"coracle.dev/coracle/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(_ testing.TB, opts store.Options) store.Store { return memory.New(opts) })
}

func BenchmarkStore(b *testing.B) {
	storetest.Bench(b, func(_ testing.TB, opts store.Options) store.Store { return memory.New(opts) })
}
