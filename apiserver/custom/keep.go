package custom

import (
	"sync"
	"sync/atomic"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
)

const (
	// nodeCost is about how many bytes a part of a schema takes once its validators and expressions are made, as
	// measured (TestMemory).
	nodeCost = 3 << 10
	// keepBytes is how much may be made of schemas at once. What was not used for the longest goes first; it is made again
	// when it is needed, which takes a few milliseconds.
	keepBytes = 48 << 20
)

// keep bounds what is made of schemas. Safe for concurrent use; a nil keep keeps everything.
type keep struct {
	count atomic.Int64

	mu    sync.Mutex // guards all below
	kept  map[*rules]int
	bytes int
}

// tick is a moment later than all before.
func (k *keep) tick() int64 {
	if k == nil {
		return 0
	}
	return k.count.Add(1)
}

// add tells that something was made of r that takes size bytes.
func (k *keep) add(r *rules, size int) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept == nil {
		k.kept = map[*rules]int{}
	}
	k.bytes += size - k.kept[r]
	k.kept[r] = size
	for k.bytes > keepBytes && len(k.kept) > 1 {
		k.drop(k.oldest(r))
	}
}

// oldest is what was not used for the longest, other than r. mu is held.
func (k *keep) oldest(r *rules) *rules {
	var found *rules
	for other := range k.kept {
		if other != r && (found == nil || other.used.Load() < found.used.Load()) {
			found = other
		}
	}
	return found
}

// drop lets go of what was made; who uses it just now goes on with it. mu is held.
func (k *keep) drop(r *rules) {
	k.bytes -= k.kept[r]
	delete(k.kept, r)
	r.made.Store(nil)
}

// forget is drop for a definition that is no longer served.
func (k *keep) forget(all map[string]*rules) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range all {
		if _, ok := k.kept[r]; ok {
			k.drop(r)
		}
	}
}

// nodes counts the parts of a schema.
func nodes(s *structural.Structural) int {
	if s == nil {
		return 0
	}
	n := 1 + nodes(s.Items)
	for _, p := range s.Properties {
		n += nodes(&p)
	}
	if s.AdditionalProperties != nil {
		n += nodes(s.AdditionalProperties.Structural)
	}
	return n
}
