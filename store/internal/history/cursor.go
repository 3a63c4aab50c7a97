package history

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"coracle.dev/coracle/store"
)

// batchSize is about how many events a cursor returns at once, so that one who
// is far behind does not need memory for all of them.
const batchSize = 1024

// cursor implements store.Cursor.
type cursor struct {
	h         *History
	set       string   // the resources, as the notifier names them
	resources []string // nil for all
	parts     []part
	pos       store.Revision
}

// part is the position in one resource's log.
type part struct {
	resource string
	seq      int64
}

// Cursor is store.Store's.
func (h *History) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	if h.closed.Load() {
		return nil, store.ErrClosed
	}
	s := h.visible.Load()
	if from > s.rev {
		return nil, store.ErrFuture
	}
	if from < s.compacted {
		return nil, store.ErrCompacted
	}
	c := &cursor{h: h, pos: from}
	if len(resources) > 0 {
		c.resources = slices.Compact(slices.Sorted(slices.Values(resources)))
		c.set = strings.Join(c.resources, "\x00")
		for _, r := range c.resources {
			c.parts = append(c.parts, part{resource: r})
		}
	} else {
		c.follow(s)
	}
	for i := range c.parts {
		p := &c.parts[i]
		t := s.table(p.resource)
		if t == nil {
			continue
		}
		if from < t.log.gone {
			return nil, store.ErrCompacted
		}
		p.seq = t.log.behind(from)
	}
	return c, nil
}

// follow adds the resources that have come up, for a cursor over all.
func (c *cursor) follow(s *state) {
	for _, t := range s.tables[len(c.parts):] {
		c.parts = append(c.parts, part{resource: t.resource})
	}
}

// pending returns the parts that have something new.
func (c *cursor) pending(s *state) []int {
	if c.resources == nil && len(c.parts) < len(s.tables) {
		c.follow(s)
	}
	var which []int
	for i := range c.parts {
		if t := s.table(c.parts[i].resource); t != nil && t.log.next > c.parts[i].seq {
			which = append(which, i)
		}
	}
	return which
}

// Poll implements store.Cursor.
func (c *cursor) Poll() ([]store.Event, error) {
	if c.h.closed.Load() {
		return nil, store.ErrClosed
	}
	s := c.h.visible.Load()
	which := c.pending(s)
	upTo := s.rev
	for _, i := range which {
		l := &s.table(c.parts[i].resource).log
		if c.parts[i].seq < l.first {
			return nil, store.ErrCompacted
		}
		if l.next-c.parts[i].seq > batchSize {
			upTo = min(upTo, l.at(c.parts[i].seq+batchSize-1).entry.Revision)
		}
	}
	events := c.collect(s, which, upTo)
	c.pos = max(c.pos, upTo)
	return events, nil
}

// collect returns, in order, the events of the parts through a revision.
func (c *cursor) collect(s *state, which []int, upTo store.Revision) []store.Event {
	if len(which) == 0 {
		return nil
	}
	if len(which) == 1 {
		return c.take(s, &c.parts[which[0]], upTo)
	}
	var records []*record
	for _, i := range which {
		p := &c.parts[i]
		l := &s.table(p.resource).log
		for ; p.seq < l.next && l.at(p.seq).entry.Revision <= upTo; p.seq++ {
			records = append(records, l.at(p.seq))
		}
	}
	slices.SortFunc(records, func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.entry.Revision, b.entry.Revision), cmp.Compare(a.order, b.order))
	})
	events := make([]store.Event, len(records))
	for i, r := range records {
		events[i] = r.event()
	}
	return events
}

func (c *cursor) take(s *state, p *part, upTo store.Revision) []store.Event {
	l := &s.table(p.resource).log
	events := make([]store.Event, 0, min(l.next-p.seq, batchSize))
	for ; p.seq < l.next; p.seq++ {
		r := l.at(p.seq)
		if r.entry.Revision > upTo {
			break
		}
		events = append(events, r.event())
	}
	return events
}

func (r *record) event() store.Event {
	return store.Event{Entry: r.entry, Prev: r.prev, Deleted: r.deleted}
}

// Next implements store.Cursor.
func (c *cursor) Next(ctx context.Context) ([]store.Event, error) {
	for {
		events, err := c.Poll()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-c.Ready():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ready implements store.Cursor.
func (c *cursor) Ready() <-chan struct{} {
	if c.something() {
		return closedChannel
	}
	ready := c.h.notify.wait(c.set, c.resources)
	if c.something() { // committed since the first look
		return closedChannel
	}
	return ready
}

func (c *cursor) something() bool {
	return c.h.closed.Load() || len(c.pending(c.h.visible.Load())) > 0
}

// Position implements store.Cursor.
func (c *cursor) Position() store.Revision { return c.pos }
