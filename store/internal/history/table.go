package history

import (
	"slices"
	"sort"
	"strings"

	"coracle.dev/coracle/store"
)

// row is an object in the tree of its resource.
type row struct{ *store.Entry }

type rowKey struct{ namespace, name string }

func (r row) key() rowKey { return rowKey{r.Namespace, r.Name} }

func (r row) compare(k rowKey) int {
	if c := strings.Compare(r.Namespace, k.namespace); c != 0 {
		return c
	}
	return strings.Compare(r.Name, k.name)
}

// posting is an object in the tree of an index.
type posting struct {
	value string
	entry *store.Entry
}

type postingKey struct{ value, namespace, name string }

func (p posting) key() postingKey {
	return postingKey{p.value, p.entry.Namespace, p.entry.Name}
}

func (p posting) compare(k postingKey) int {
	if c := strings.Compare(p.value, k.value); c != 0 {
		return c
	}
	return row{p.entry}.compare(rowKey{k.namespace, k.name})
}

// index is what a table is indexed by; fixed when the table is made.
type index struct {
	name   string
	values func(obj any) []string
}

// table is one resource at one revision.
type table struct {
	edit     uint64
	resource string
	indexes  []index // shared by all versions of the table
	rows     tree[row, rowKey]
	postings []tree[posting, postingKey] // in order of indexes
	log      log
}

func newTable(edit uint64, resource string, values map[string]func(any) []string) *table {
	t := &table{edit: edit, resource: strings.Clone(resource)}
	for name, f := range values {
		t.indexes = append(t.indexes, index{name, f})
	}
	sort.Slice(t.indexes, func(i, j int) bool { return t.indexes[i].name < t.indexes[j].name })
	t.postings = make([]tree[posting, postingKey], len(t.indexes))
	return t
}

// own returns t if the edit made it, otherwise a copy.
func (t *table) own(edit uint64) *table {
	if t.edit == edit {
		return t
	}
	c := *t
	c.edit = edit
	c.postings = slices.Clone(t.postings)
	return &c
}

func (t *table) get(namespace, name string) *store.Entry {
	r, _ := t.rows.get(rowKey{namespace, name})
	return r.Entry
}

// values returns what the indexes file an object under, in order of indexes.
func (t *table) values(obj any) [][]string {
	if len(t.indexes) == 0 {
		return nil
	}
	values := make([][]string, len(t.indexes))
	for i, ix := range t.indexes {
		values[i] = ix.values(obj)
	}
	return values
}

// put makes e, which values belongs to, the present version in place of prev, which may be nil.
func (t *table) put(e, prev *store.Entry, values [][]string) {
	t.rows.put(t.edit, row{e})
	for i, ix := range t.indexes {
		if prev != nil {
			for _, v := range ix.values(prev.Object) {
				if !slices.Contains(values[i], v) {
					t.postings[i].remove(t.edit, postingKey{v, e.Namespace, e.Name})
				}
			}
		}
		for _, v := range values[i] {
			t.postings[i].put(t.edit, posting{v, e})
		}
	}
}

// remove takes out the present version.
func (t *table) remove(prev *store.Entry) {
	t.rows.remove(t.edit, rowKey{prev.Namespace, prev.Name})
	for i, ix := range t.indexes {
		for _, v := range ix.values(prev.Object) {
			t.postings[i].remove(t.edit, postingKey{v, prev.Namespace, prev.Name})
		}
	}
}

// undo takes the table, which the caller owns, back to revision at. The log must reach there.
func (t *table) undo(at store.Revision) {
	for seq := t.log.next - 1; seq >= t.log.first; seq-- {
		r := t.log.at(seq)
		if r.entry.Revision <= at {
			return
		}
		switch {
		case r.prev == nil:
			t.remove(r.entry)
		case r.deleted:
			t.put(r.prev, nil, t.values(r.prev.Object))
		default:
			t.put(r.prev, r.entry, t.values(r.prev.Object))
		}
	}
}

func (t *table) count(namespace string) int {
	if namespace == "" {
		return t.rows.len()
	}
	return t.rows.rank(rowKey{namespace: namespace + "\x00"}) - t.rows.rank(rowKey{namespace: namespace})
}

func (t *table) list(namespace string, after *store.Key, yield func(*store.Entry) bool) {
	from, inclusive := rowKey{namespace: namespace}, true
	if after != nil {
		if k := (rowKey{after.Namespace, after.Name}); (row{&store.Entry{Key: *after}}).compare(from) >= 0 {
			from, inclusive = k, false
		}
	}
	t.rows.ascend(from, inclusive, func(r row) bool {
		if namespace != "" && r.Namespace != namespace {
			return false
		}
		return yield(r.Entry)
	})
}

func (t *table) lookup(name, value string, yield func(*store.Entry) bool) {
	i := slices.IndexFunc(t.indexes, func(ix index) bool { return ix.name == name })
	if i < 0 {
		panic("store: resource " + t.resource + " has no index " + name)
	}
	t.postings[i].ascend(postingKey{value: value}, true, func(p posting) bool {
		return p.value == value && yield(p.entry)
	})
}
