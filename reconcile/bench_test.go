package reconcile_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

// BenchmarkPass is what the engine itself costs from a change to the end of the pass that it wakes: the plan does nothing,
// and the commit is included.
func BenchmarkPass(b *testing.B) {
	c := reconciletest.NewCluster(1 << 20)
	engine := reconcile.NewEngine(c, quiet(), nil)
	engine.Add(reconcile.Loop{
		Name: "nothing", Inputs: []reconcile.Input{{Resource: "configmaps"}}, Workers: 2,
		Plan: func(store.Snapshot, reconcile.Key, time.Time) (reconcile.Plan, error) { return reconcile.Plan{}, nil },
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, _, err := c.Commit(ctx, store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "configmaps", Namespace: "default", Name: fmt.Sprint(i % 1000)},
			Object: configMap("x"), Expect: store.ExpectAny}}})
		if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := engine.Settle(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(engine.Health()[0].Passes)/float64(b.N), "passes/op")
	cancel()
	<-ended
}
