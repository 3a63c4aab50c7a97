package history

import (
	"iter"
	"slices"
	"sync"

	"coracle.dev/coracle/store"
)

// state is the whole store at one revision: a store.Snapshot, immutable once published.
type state struct {
	h         *History
	rev       store.Revision
	compacted store.Revision // by Compact or by loading
	ids       map[string]int // of tables; replaced, never changed
	tables    []*table
}

func (s *state) table(resource string) *table {
	if i, ok := s.ids[resource]; ok {
		return s.tables[i]
	}
	return nil
}

// Revision implements store.Snapshot.
func (s *state) Revision() store.Revision { return s.rev }

// Get implements store.Snapshot.
func (s *state) Get(k store.Key) *store.Entry { return s.h.verifySome(get(s.table(k.Resource), k)) }

// List implements store.Snapshot.
func (s *state) List(resource, namespace string, after *store.Key) iter.Seq[*store.Entry] {
	return list(s.h, s.table(resource), namespace, after)
}

// Index implements store.Snapshot.
func (s *state) Index(resource, index, value string) iter.Seq[*store.Entry] {
	return lookup(s.h, s.table(resource), resource, index, value)
}

// Count implements store.Snapshot.
func (s *state) Count(resource, namespace string) int {
	return count(s.table(resource), namespace)
}

func get(t *table, k store.Key) *store.Entry {
	if t == nil {
		return nil
	}
	return t.get(k.Namespace, k.Name)
}

func list(h *History, t *table, namespace string, after *store.Key) iter.Seq[*store.Entry] {
	return func(yield func(*store.Entry) bool) {
		if t != nil {
			t.list(namespace, after, h.verifying(yield))
		}
	}
}

func lookup(h *History, t *table, resource, index, value string) iter.Seq[*store.Entry] {
	if t == nil && h.indexes(resource)[index] == nil {
		panic("store: resource " + resource + " has no index " + index)
	}
	return func(yield func(*store.Entry) bool) {
		if t != nil {
			t.lookup(index, value, h.verifying(yield))
		}
	}
}

func count(t *table, namespace string) int {
	if t == nil {
		return 0
	}
	return t.count(namespace)
}

// past is the store as it was. Each table is taken back from the state it was
// made from when it is first read: the cost is that of the changes since then
// to the resources that are read, and to no other.
type past struct {
	now       *state
	rev       store.Revision
	resources []string // that may be read, nil for all

	mu     sync.Mutex // guards tables
	tables map[string]*table
}

func (p *past) table(resource string) *table {
	if p.resources != nil && !slices.Contains(p.resources, resource) {
		panic("store: this snapshot was not asked for with resource " + resource)
	}
	t := p.now.table(resource)
	if t == nil || t.log.newest() <= p.rev {
		return t
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.tables[resource]; old != nil {
		return old
	}
	t = t.own(p.now.h.edits.Add(1))
	t.undo(p.rev)
	if p.tables == nil {
		p.tables = make(map[string]*table)
	}
	p.tables[resource] = t
	return t
}

// Revision implements store.Snapshot.
func (p *past) Revision() store.Revision { return p.rev }

// Get implements store.Snapshot.
func (p *past) Get(k store.Key) *store.Entry { return p.now.h.verifySome(get(p.table(k.Resource), k)) }

// List implements store.Snapshot.
func (p *past) List(resource, namespace string, after *store.Key) iter.Seq[*store.Entry] {
	return list(p.now.h, p.table(resource), namespace, after)
}

// Index implements store.Snapshot.
func (p *past) Index(resource, index, value string) iter.Seq[*store.Entry] {
	return lookup(p.now.h, p.table(resource), resource, index, value)
}

// Count implements store.Snapshot.
func (p *past) Count(resource, namespace string) int {
	return count(p.table(resource), namespace)
}
