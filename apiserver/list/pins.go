package list

import (
	"sync"
	"time"

	"coracle.dev/coracle/store"
)

const (
	// pinFor is how long a snapshot is held after its last chunk, as upstream's compaction interval.
	pinFor = 5 * time.Minute
	// maxPins is how many snapshots are held; when one more comes, that which was used longest
	// ago goes, and its chunks are answered from the store's window, or with 410.
	maxPins = 64
)

// pins holds the snapshots of chunked lists.
type pins struct {
	mu   sync.Mutex // guards held
	held map[store.Revision]*pin
}

type pin struct {
	snap store.Snapshot
	used time.Time
}

// hold keeps a snapshot, or keeps it longer.
func (p *pins) hold(snap store.Snapshot, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = map[store.Revision]*pin{}
	}
	p.expire(now)
	if len(p.held) >= maxPins && p.held[snap.Revision()] == nil {
		p.dropOldest()
	}
	p.held[snap.Revision()] = &pin{snap, now}
}

// get returns a held snapshot, or nil.
func (p *pins) get(rev store.Revision, now time.Time) store.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	if h := p.held[rev]; h != nil {
		h.used = now
		return h.snap
	}
	return nil
}

// expire drops what was not used for long; p.mu is held.
func (p *pins) expire(now time.Time) {
	for rev, h := range p.held {
		if now.Sub(h.used) > pinFor {
			delete(p.held, rev)
		}
	}
}

func (p *pins) dropOldest() {
	var oldest store.Revision
	var used time.Time
	for rev, h := range p.held {
		if oldest == 0 || h.used.Before(used) {
			oldest, used = rev, h.used
		}
	}
	delete(p.held, oldest)
}
