package history

import (
	"sort"

	"coracle.dev/coracle/internal/invariant"
	"coracle.dev/coracle/store"
)

const (
	segmentBits = 6
	segmentSize = 1 << segmentBits
)

// record is one event in a log.
type record struct {
	entry, prev *store.Entry
	// order is the position within the transaction, across resources.
	order   uint32
	deleted bool
}

// keepEncoded is for how many of the newest events of a resource the encodings are kept.
// Watchers that keep up find them made; what was read long ago does not hold memory.
const keepEncoded = 256

type segment [segmentSize]record

// log is the events of one resource that are still kept. It is a value: a copy
// is a snapshot. Segments are shared between copies; the writer fills places
// from next on, which no older copy looks at, and never changes one again.
//
// A cursor holds a sequence number, not a segment, so that one which has fallen
// behind keeps nothing alive.
type log struct {
	segments []*segment // the first holds the record first
	// first and next are sequence numbers: first is the oldest that is kept, next
	// that of the next event of this resource.
	first, next int64
	// gone is the revision of the newest event that is no longer kept.
	gone store.Revision
}

func (l *log) at(seq int64) *record {
	return &l.segments[seq>>segmentBits-l.first>>segmentBits][seq&(segmentSize-1)]
}

func (l *log) append(r record, window int) {
	if l.next&(segmentSize-1) == 0 {
		// A new backing array, so that copies of the log do not share its end.
		segments := make([]*segment, len(l.segments), len(l.segments)+1)
		copy(segments, l.segments)
		l.segments = append(segments, new(segment))
	}
	l.next++
	*l.at(l.next - 1) = r
	if old := l.next - 1 - keepEncoded; old >= l.first && !invariant.Enabled { // seals are kept there too
		l.at(old).dropEncodings()
	}
	if over := l.next - l.first - int64(window); over > 0 {
		l.drop(l.first + over)
	}
}

func (r *record) dropEncodings() {
	r.entry.DropEncodings()
	if r.prev != nil {
		r.prev.DropEncodings()
	}
}

// drop forgets what is before seq.
func (l *log) drop(seq int64) {
	if seq <= l.first {
		return
	}
	l.gone = l.at(seq - 1).entry.Revision
	whole := seq>>segmentBits - l.first>>segmentBits
	l.first = seq
	l.segments = l.segments[min(int(whole), len(l.segments)):]
}

// compact forgets what is at or before a revision.
func (l *log) compact(rev store.Revision) { l.drop(l.behind(rev)) }

// behind is the sequence number of the first event that is kept and newer than rev.
func (l *log) behind(rev store.Revision) int64 {
	n := int(l.next - l.first)
	return l.first + int64(sort.Search(n, func(i int) bool {
		return l.at(l.first+int64(i)).entry.Revision > rev
	}))
}

// newest is the revision of the last event, 0 if none is kept.
func (l *log) newest() store.Revision {
	if l.next == l.first {
		return 0
	}
	return l.at(l.next - 1).entry.Revision
}
