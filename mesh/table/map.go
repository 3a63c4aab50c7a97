package table

import (
	"hash/maphash"
	"iter"
)

// shards is the number of parts of a Map: an edit copies one of them.
const shards = 256

var seed = maphash.MakeSeed()

// Map is a persistent map from names to values: With makes a new one that shares what it does not change. The zero Map is empty. A Map is
// safe for concurrent use, since nothing ever changes one.
type Map[V comparable] struct {
	parts *[shards]map[string]V
	size  int
}

func shard(name string) uint8 { return uint8(maphash.String(seed, name)) }

// Get returns the value of name.
func (m Map[V]) Get(name string) (V, bool) {
	if m.size == 0 {
		var none V
		return none, false
	}
	v, ok := m.parts[shard(name)][name]
	return v, ok
}

// Len is the number of names.
func (m Map[V]) Len() int { return m.size }

// All yields every name and value, in no order.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if m.parts == nil {
			return
		}
		for _, part := range m.parts {
			for k, v := range part {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// With returns m with the names of put set and those of remove gone; a name in both is put. m is as it was.
func (m Map[V]) With(put map[string]V, remove []string) Map[V] {
	if len(put) == 0 && len(remove) == 0 {
		return m
	}
	next := Map[V]{parts: new([shards]map[string]V), size: m.size}
	if m.parts != nil {
		*next.parts = *m.parts
	}
	var own [shards]bool
	edit := func(name string) map[string]V {
		i := shard(name)
		if !own[i] {
			own[i] = true
			part := make(map[string]V, len(next.parts[i])+1)
			for k, v := range next.parts[i] {
				part[k] = v
			}
			next.parts[i] = part
		}
		return next.parts[i]
	}
	for _, name := range remove {
		part := edit(name)
		if _, ok := part[name]; ok {
			delete(part, name)
			next.size--
		}
	}
	for name, v := range put {
		part := edit(name)
		if _, ok := part[name]; !ok {
			next.size++
		}
		part[name] = v
	}
	return next
}

// Changed yields what is in m and not the same in old, and with ok false what is in old and no longer in m. Parts that both share are
// skipped, so that the cost is that of the change.
func (m Map[V]) Changed(old Map[V]) iter.Seq2[string, Change[V]] {
	return func(yield func(string, Change[V]) bool) {
		for i := range shards {
			var was, is map[string]V
			if old.parts != nil {
				was = old.parts[i]
			}
			if m.parts != nil {
				is = m.parts[i]
			}
			if sameMap(was, is) {
				continue
			}
			for name, v := range is {
				before, had := was[name]
				if (!had || before != v) && !yield(name, Change[V]{Old: before, New: v, Had: had, Has: true}) {
					return
				}
			}
			for name, v := range was {
				if _, has := is[name]; !has && !yield(name, Change[V]{Old: v, Had: true}) {
					return
				}
			}
		}
	}
}

// Change is how one name differs between two Maps.
type Change[V any] struct {
	// Old and New are the values in the earlier and the later Map.
	Old, New V
	// Had and Has say whether there was and is a value.
	Had, Has bool
}
