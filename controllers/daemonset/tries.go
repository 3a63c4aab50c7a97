package daemonset

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// How long a pod that ended is left before it is replaced, by how often that happened on its node lately.
const (
	firstTry = time.Second
	lastTry  = 15 * time.Minute
	// remembered bounds how many nodes are kept in mind; beyond that all start again.
	remembered = 10000
)

// tries remembers how often the pods of a set ended on a node, so that a pod which cannot run is not
// made again and again without pause. Safe for concurrent use.
type tries struct {
	mu   sync.Mutex // guards last
	last map[tryKey]*try
}

type tryKey struct {
	set  types.UID
	node string
}

type try struct {
	pod   types.UID
	after time.Duration
	due   time.Time
}

// delay is how long the pod that ended is still to be left.
func (t *tries) delay(set types.UID, node string, pod types.UID, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := tryKey{set, node}
	had := t.last[key]
	if had == nil {
		if t.last == nil || len(t.last) >= remembered {
			t.last = map[tryKey]*try{}
		}
		t.last[key] = &try{pod: pod, after: firstTry, due: now}
		return 0
	}
	if had.pod != pod {
		if now.Sub(had.due) > 2*lastTry {
			had.after = firstTry
		}
		had.pod, had.due, had.after = pod, now.Add(had.after), min(had.after*2, lastTry)
	}
	return had.due.Sub(now)
}
