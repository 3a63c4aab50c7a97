package daemonset

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// How long a pod that failed is left before it is replaced, counted from when the one before it was, by how often that
// happened on its node lately.
const (
	firstTry = time.Second
	lastTry  = 15 * time.Minute
	// remembered bounds how many nodes are kept in mind; beyond that all start again.
	remembered = 10000
)

// tries remembers how often the pods of a set failed on a node, so that a pod which cannot run is not
// made again and again without pause. Safe for concurrent use.
type tries struct {
	mu   sync.Mutex // guards last
	last map[tryKey]*try
}

// tryKey has the generation of the set, so that another template is tried at once.
type tryKey struct {
	set        types.UID
	generation int64
	node       string
}

// try is the last pod that was replaced, and how long the next one is left.
type try struct {
	pod   types.UID
	at    time.Time
	delay time.Duration
}

// wait is how long the pod that failed is still to be left. Zero counts as its replacement.
func (t *tries) wait(key tryKey, pod types.UID, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := t.last[key]
	if had == nil || now.Sub(had.at) > 2*lastTry {
		if t.last == nil || len(t.last) >= remembered {
			t.last = map[tryKey]*try{}
		}
		t.last[key] = &try{pod: pod, at: now, delay: firstTry}
		return 0
	}
	if had.pod == pod {
		return 0 // it was to go already, and could not be deleted
	}
	if left := had.at.Add(had.delay).Sub(now); left > 0 {
		return left
	}
	had.pod, had.at, had.delay = pod, now, min(had.delay*2, lastTry)
	return 0
}
