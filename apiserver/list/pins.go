package list

import (
	"sync"
	"time"

	"coracle.dev/coracle/store"
)

const (
	// pinFor is how long chunks are served from the state of the first, as upstream's compaction interval.
	pinFor = 5 * time.Minute
	// maxPins is how many snapshots are held; when one more comes, the eldest goes, and its chunks are answered from the
	// store's window, or with 410.
	maxPins = 64
)

// pins holds the snapshots of chunked lists.
type pins struct {
	mu    sync.Mutex // guards what follows
	held  map[store.Revision]*pin
	floor store.Revision // the highest revision whose time is over
}

type pin struct {
	snap  store.Snapshot
	since time.Time // of the first chunk
}

// hold keeps the snapshot of a list; a list that goes on keeps it no longer than its beginning did.
func (p *pins) hold(snap store.Snapshot, goesOn bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = map[store.Revision]*pin{}
	}
	p.expire(now)
	if h := p.held[snap.Revision()]; h != nil {
		if !goesOn {
			h.since = now
		}
		return
	}
	if len(p.held) >= maxPins {
		p.dropEldest()
	}
	p.held[snap.Revision()] = &pin{snap, now}
}

// get returns a held snapshot, or nil; over says that lists of that revision have had their time.
func (p *pins) get(rev store.Revision, now time.Time) (snap store.Snapshot, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(now)
	if h := p.held[rev]; h != nil {
		return h.snap, false
	}
	return nil, rev <= p.floor
}

// expire drops what was begun long ago; p.mu is held.
func (p *pins) expire(now time.Time) {
	for rev, h := range p.held {
		if now.Sub(h.since) > pinFor {
			delete(p.held, rev)
			p.floor = max(p.floor, rev)
		}
	}
}

func (p *pins) dropEldest() {
	var eldest store.Revision
	var since time.Time
	for rev, h := range p.held {
		if eldest == 0 || h.since.Before(since) {
			eldest, since = rev, h.since
		}
	}
	delete(p.held, eldest)
}
