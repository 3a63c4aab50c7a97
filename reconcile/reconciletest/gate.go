package reconciletest

import (
	"context"
	"sync"

	"coracle.dev/coracle/store"
)

// gate keeps loops from seeing what a step of a scenario does before it is done: else what they
// do would depend on which goroutine is faster.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed when the gate opens; nil while it is open
}

// hold closes the gate and returns what opens it.
func (g *gate) hold() func() {
	g.mu.Lock()
	defer g.mu.Unlock()
	open := make(chan struct{})
	g.open = open
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open = nil
		close(open)
	}
}

func (g *gate) held() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// Cursor implements client.Reader. It shows nothing while the gate is closed.
func (c *Cluster) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	cursor, err := c.Store.Cursor(from, resources...)
	if err != nil {
		return nil, err
	}
	return gated{cursor, &c.gate}, nil
}

type gated struct {
	store.Cursor
	gate *gate
}

func (g gated) Poll() ([]store.Event, error) {
	if g.gate.held() != nil {
		return nil, nil
	}
	return g.Cursor.Poll()
}

func (g gated) Ready() <-chan struct{} {
	if open := g.gate.held(); open != nil {
		return open
	}
	return g.Cursor.Ready()
}

func (g gated) Next(ctx context.Context) ([]store.Event, error) {
	if open := g.gate.held(); open != nil {
		select {
		case <-open:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.Cursor.Next(ctx)
}
