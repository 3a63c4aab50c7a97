package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// For how long a node believes what the control plane said of a token or a right, as kubelets do
// (https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/).
const (
	tokenLife   = 2 * time.Minute
	allowedLife = 5 * time.Minute
	deniedLife  = 30 * time.Second
)

// Limits of what is asked of the control plane for those who call a node's API.
const (
	reviewTimeout  = 10 * time.Second
	reviewsAtOnce  = 16 // more wait, until they give up
	reviewsOfAKind = 4096
)

// reviewKey is the hash of a question: what is kept holds no token.
type reviewKey [sha256.Size]byte

// reviews are answers of the control plane to one kind of question. Those who ask the same at the same time ask once; failures
// are not kept. When it is full, entries go at random. The zero value is ready, and safe for concurrent use.
type reviews[V any] struct {
	flights singleflight.Group
	mu      sync.Mutex // guards what follows
	kept    map[reviewKey]review[V]
	slots   chan struct{}
}

type review[V any] struct {
	value V
	until time.Time
}

// get gives the answer that is kept, or has ask find it. ask says for how long it holds.
func (r *reviews[V]) get(ctx context.Context, key reviewKey, ask func(context.Context) (V, time.Duration, error)) (V, error) {
	r.mu.Lock()
	have, ok := r.kept[key]
	if r.slots == nil {
		r.slots = make(chan struct{}, reviewsAtOnce)
	}
	r.mu.Unlock()
	if ok && time.Now().Before(have.until) {
		return have.value, nil
	}
	results := r.flights.DoChan(string(key[:]), func() (any, error) {
		// Others may wait for it when the first has given up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, errors.New("too many questions wait for the control plane")
		}
		defer func() { <-r.slots }()
		value, life, err := ask(ctx)
		if err == nil {
			r.keep(key, review[V]{value, time.Now().Add(life)})
		}
		return value, err
	})
	var none V
	select {
	case <-ctx.Done():
		return none, ctx.Err()
	case got := <-results:
		if got.Err != nil {
			return none, got.Err
		}
		return got.Val.(V), nil
	}
}

func (r *reviews[V]) keep(key reviewKey, v review[V]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil {
		r.kept = map[reviewKey]review[V]{}
	}
	for k := range r.kept {
		if len(r.kept) < reviewsOfAKind {
			break
		}
		delete(r.kept, k)
	}
	r.kept[key] = v
}
