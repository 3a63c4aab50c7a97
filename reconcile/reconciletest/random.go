package reconciletest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
)

// History is a random history to run loops under.
type History struct {
	// Seeds is how many histories are run, Rounds how many times each comes to rest.
	Seeds, Rounds int
	// Loops are those under test, made again at each restart.
	Loops func(c *Cluster) []reconcile.Loop
	// Begin sets the scene. It may be nil.
	Begin func(h *Harness, rnd *rand.Rand)
	// Step does one thing that users, nodes or others could do. Loops are at work meanwhile.
	Step func(h *Harness, rnd *rand.Rand)
	// Rest is how long a round takes to come to rest, a minute if zero.
	Rest time.Duration
	// Faults makes one in so many writes fail while a round goes on: with a conflict, or with an
	// error that calls for back-off. 0 is none.
	Faults int
	// Check holds that what is there is what should be, and returns what is not.
	Check func(h *Harness) error
}

// Random runs loops under random histories: steps at random moments, restarts in the middle, writes
// that fail. After each round, when everything has come to rest, Check decides.
func Random(t *testing.T, hist History) {
	t.Helper()
	for seed := range hist.Seeds {
		synctest.Test(t, func(t *testing.T) { hist.run(t, uint64(seed)) })
		if t.Failed() {
			return
		}
	}
}

func (hist History) run(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, seed+1))
	c := NewCluster(0)
	faults := &faults{rnd: rand.New(rand.NewPCG(seed, 77)), oneIn: hist.Faults}
	c.Refuse = faults.refuse(c)
	h := New(t, c, hist.Loops(c)...)
	defer func() { h.Stop() }()
	if hist.Begin != nil {
		hist.Begin(h, rnd)
	}
	rest := hist.Rest
	if rest == 0 {
		rest = time.Minute
	}
	for round := range hist.Rounds {
		for range 1 + rnd.IntN(6) {
			faults.set(false) // a step itself does not fail
			hist.Step(h, rnd)
			faults.set(true)
			if rnd.IntN(3) == 0 {
				h.Advance(time.Duration(rnd.IntN(5000)) * time.Millisecond)
			}
			if rnd.IntN(8) == 0 {
				h.Stop()
				h.Start(hist.Loops(c)...)
			}
		}
		faults.set(false)
		h.Advance(rest)
		if err := hist.Check(h); err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
	}
}

// faults makes writes fail at random.
type faults struct {
	mu    sync.Mutex // guards what follows
	on    bool
	rnd   *rand.Rand
	oneIn int
}

func (f *faults) set(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on && f.oneIn > 0
}

func (f *faults) refuse(c *Cluster) func(string, client.Ref, api.Object) error {
	return func(verb string, ref client.Ref, _ api.Object) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.on || ref.Resource == client.Events.Name || f.rnd.IntN(f.oneIn) != 0 {
			return nil
		}
		if kind := c.Registry.ByName(ref.Resource); verb != "create" && f.rnd.IntN(2) == 0 {
			return conflict(kind, ref.Name)
		}
		return apierrors.NewInternalError(errors.New("a fault, injected"))
	}
}
