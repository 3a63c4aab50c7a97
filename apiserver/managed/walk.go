package managed

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// item is a value on one side of a walk: absent (the zero item), null, or there.
type item struct {
	v reflect.Value
	// there tells a value from null or nothing, known null from nothing.
	there, known bool
}

// settle looks behind pointers and finds out whether there is anything.
func settle(v reflect.Value) item {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return item{known: true}
		}
		v = v.Elem()
	}
	if k := v.Kind(); (k == reflect.Slice || k == reflect.Map) && v.IsNil() {
		return item{known: true}
	}
	return item{v, true, true}
}

// get reads a field of a struct; left out ones are absent.
func (f *fieldPlan) get(of item) item {
	if !of.there {
		return item{}
	}
	v := of.v
	for _, i := range f.index {
		v = v.Field(i)
	}
	if f.omit && empty(v) || f.omitZero != nil && f.omitZero(v) {
		return item{}
	}
	return settle(v)
}

func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Map, reflect.Slice, reflect.String, reflect.Array:
		return v.Len() == 0
	case reflect.Struct:
		return false
	case reflect.Pointer, reflect.Interface:
		return v.IsNil()
	}
	return v.IsZero()
}

// mark is what a walk found at a place: whether the value itself counts, and what below it.
type mark struct {
	self  bool
	below set
}

func (m mark) any() bool { return m.self || len(m.below) > 0 }

// difference is the outcome of a walk.
type difference struct {
	// changed has what is new or other than it was, removed what is gone.
	changed, removed set
}

// walker compares two objects. It belongs to one goroutine and is used again.
type walker struct {
	// stacks of elements whose parents are not complete
	changed, removed []element
	buf              []byte
	// err is the first thing that upstream would refuse to compare.
	err error
}

// compare gives the difference between two objects of a type, either of which may be the zero value. Fields of the root
// in skip are passed over. Its cost is that of looking at all fields once, and one allocation for each place
// with a difference below.
func (w *walker) compare(p *plan, old, obj reflect.Value, skip set) (difference, error) {
	w.changed, w.removed, w.err = w.changed[:0], w.removed[:0], nil
	l, r := item{old, true, true}, item{obj, true, true}
	for i := range p.fields {
		f := &p.fields[i]
		if f.untracked || skips(skip, f.key) {
			continue
		}
		c, d := w.value(f.plan, f.get(l), f.get(r))
		if f.name == "metadata" {
			c.self, d.self = false, false
		}
		w.push(f.key, c, d)
	}
	out := difference{cut(&w.changed, 0), cut(&w.removed, 0)}
	return out, w.err
}

func skips(skip set, key string) bool {
	for i := range skip {
		if skip[i].member && skip[i].key == key {
			return true
		}
	}
	return false
}

func (w *walker) push(key string, changed, removed mark) {
	if changed.any() {
		w.changed = append(w.changed, element{key, changed.self, changed.below})
	}
	if removed.any() {
		w.removed = append(w.removed, element{key, removed.self, removed.below})
	}
}

// cut takes what lies above a height from a stack.
func cut(stack *[]element, from int) set {
	s := *stack
	if len(s) == from {
		return nil
	}
	out := slices.Clone(s[from:])
	clear(s[from:])
	*stack = s[:from]
	return out
}

// value compares two values of which at least one may be absent.
func (w *walker) value(p *plan, l, r item) (changed, removed mark) {
	if !l.known && !r.known {
		return
	}
	if p.atomic || p.form == scalar {
		return w.whole(p, l, r)
	}
	c0, r0 := len(w.changed), len(w.removed)
	var some bool
	switch p.form {
	case structure:
		some = w.structure(p, l, r)
	case mapping:
		some = w.mapping(p, l, r)
	default:
		some = w.list(p, l, r)
	}
	if !some {
		return w.whole(p, l, r)
	}
	changed = mark{!l.known, cut(&w.changed, c0)}
	removed = mark{!r.known, cut(&w.removed, r0)}
	return changed, removed
}

// whole compares what is owned as a whole, or has nothing in it on either side.
func (w *walker) whole(p *plan, l, r item) (changed, removed mark) {
	switch {
	case !l.known:
		changed.self = true
	case !r.known:
		removed.self = true
	case !same(p, l, r):
		changed.self = true
	}
	return changed, removed
}

// structure compares structs field by field. It is false if both have no field.
func (w *walker) structure(p *plan, l, r item) (some bool) {
	for i := range p.fields {
		f := &p.fields[i]
		a, b := f.get(l), f.get(r)
		if !a.known && !b.known {
			continue
		}
		some = true
		if !f.untracked {
			c, d := w.value(f.plan, a, b)
			w.push(f.key, c, d)
		}
	}
	return some
}

func length(i item) int {
	if !i.there {
		return 0
	}
	return i.v.Len()
}

// mapping compares maps key by key. It is false if both are empty.
func (w *walker) mapping(p *plan, l, r item) bool {
	n := max(length(l), length(r))
	if n == 0 {
		return false
	}
	if l.there && r.there && (l.v.UnsafePointer() == r.v.UnsafePointer() || same(p, l, r)) {
		return true
	}
	keys := make([]string, 0, n)
	if l.there {
		for it := l.v.MapRange(); it.Next(); {
			keys = append(keys, it.Key().String())
		}
	}
	if r.there {
		for it := r.v.MapRange(); it.Next(); {
			if k := it.Key(); !l.there || !l.v.MapIndex(k).IsValid() {
				keys = append(keys, k.String())
			}
		}
	}
	slices.Sort(keys)
	keyType := p.typ.Key()
	for _, name := range keys {
		key := reflect.ValueOf(name)
		if keyType != key.Type() {
			key = key.Convert(keyType)
		}
		c, d := w.value(p.item, lookup(l, key), lookup(r, key))
		if c.any() || d.any() {
			w.push("f:"+name, c, d)
		}
	}
	return true
}

func lookup(m item, key reflect.Value) item {
	if !m.there {
		return item{}
	}
	if v := m.v.MapIndex(key); v.IsValid() {
		return settle(v)
	}
	return item{}
}

// entry is an item of a list under its path element.
type entry struct {
	key  string
	item item
}

// list compares sets, and lists whose items have keys. It is false if both are empty.
func (w *walker) list(p *plan, l, r item) bool {
	n, m := length(l), length(r)
	if n == 0 && m == 0 {
		return false
	}
	if n == m && (l.v.UnsafePointer() == r.v.UnsafePointer() || w.unchanged(p, l.v, r.v)) {
		return true
	}
	a, b := w.entries(p, l, n), w.entries(p, r, m)
	for i, j := 0, 0; i < len(a) || j < len(b); {
		c := 0
		switch {
		case i == len(a):
			c = 1
		case j == len(b):
			c = -1
		default:
			c = compareKeys(a[i].key, b[j].key)
		}
		u, v := a[i:i], b[j:j]
		if c <= 0 {
			u = run(a[i:])
		}
		if c >= 0 {
			v = run(b[j:])
		}
		i, j = i+len(u), j+len(v)
		w.pair(p.item, u, v)
	}
	return true
}

// unchanged tells that two lists of the same length are equal.
func (w *walker) unchanged(p *plan, a, b reflect.Value) bool {
	for i := range a.Len() {
		if !same(p.item, settle(a.Index(i)), settle(b.Index(i))) {
			return false
		}
	}
	return true
}

// run is the items at the beginning that have the same key.
func run(all []entry) []entry {
	n := 1
	for n < len(all) && all[n].key == all[0].key {
		n++
	}
	return all[:n]
}

// pair compares the items under one key. Doubles, which a list should not have, are owned as a whole.
func (w *walker) pair(p *plan, a, b []entry) {
	one := func(e []entry) item {
		if len(e) == 0 {
			return item{}
		}
		return e[0].item
	}
	var key string
	if len(a) > 0 {
		key = a[0].key
	} else {
		key = b[0].key
	}
	var c, d mark
	switch {
	case len(a) <= 1 && len(b) <= 1:
		c, d = w.value(p, one(a), one(b))
	case len(a) >= 2 && len(b) >= 2:
		c.self = !slices.EqualFunc(a, b, func(x, y entry) bool { return same(p, x.item, y.item) })
	case len(a) >= 2:
		if len(b) > 0 {
			c, d = w.value(p, item{}, b[0].item)
		}
		d.self = true
	default:
		if len(a) > 0 {
			c, d = w.value(p, a[0].item, item{})
		}
		c.self = true
	}
	w.push(key, c, d)
}

// entries gives the items of a list in the order of their path elements.
func (w *walker) entries(p *plan, l item, n int) []entry {
	out := make([]entry, 0, n)
	for i := range n {
		it := settle(l.v.Index(i))
		key, err := w.element(p, it)
		if err != nil {
			if w.err == nil {
				w.err = err
			}
			continue
		}
		out = append(out, entry{key, it})
	}
	slices.SortStableFunc(out, func(a, b entry) int { return compareKeys(a.key, b.key) })
	return out
}

// element is the path element of an item.
func (w *walker) element(p *plan, it item) (string, error) {
	if !it.there {
		return "", errors.New("associative list may not have a null element")
	}
	if p.set {
		w.buf = appendScalar(append(w.buf[:0], "v:"...), it.v)
		return string(w.buf), nil
	}
	w.buf = append(w.buf[:0], "k:{"...)
	none := true
	for i := range p.keys {
		k := &p.keys[i]
		v := k.get(it)
		if !v.known && k.standard == "" {
			continue
		}
		if !none {
			w.buf = append(w.buf, ',')
		}
		none = false
		w.buf = append(appendString(w.buf, k.name, false), ':')
		switch {
		case !v.known:
			w.buf = append(w.buf, k.standard...)
		case !v.there:
			w.buf = append(w.buf, "null"...)
		default:
			w.buf = appendScalar(w.buf, v.v)
		}
	}
	if none {
		return "", fmt.Errorf("associative list with keys has an element that omits all key fields of %s", p.item.typ)
	}
	w.buf = append(w.buf, '}')
	return string(w.buf), nil
}

// appendScalar appends the JSON of a scalar.
func appendScalar(dst []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.String:
		return appendString(dst, v.String(), true)
	case reflect.Bool:
		return strconv.AppendBool(dst, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(dst, v.Int(), 10)
	}
	return appendAny(dst, addressable(v))
}

// same tells whether two values have the same JSON.
func same(p *plan, l, r item) bool {
	if l.known != r.known || l.there != r.there {
		return false
	}
	if !l.there {
		return true
	}
	switch p.form {
	case structure:
		for i := range p.fields {
			f := &p.fields[i]
			if !same(f.plan, f.get(l), f.get(r)) {
				return false
			}
		}
		return true
	case mapping:
		return sameMap(p, l.v, r.v)
	case list:
		if cmp.Compare(l.v.Len(), r.v.Len()) != 0 {
			return false
		}
		for i := range l.v.Len() {
			if !same(p.item, settle(l.v.Index(i)), settle(r.v.Index(i))) {
				return false
			}
		}
		return true
	}
	return p.equal(l.v, r.v)
}

func sameMap(p *plan, a, b reflect.Value) bool {
	if a.UnsafePointer() == b.UnsafePointer() {
		return true
	}
	if a.Len() != b.Len() {
		return false
	}
	if x, ok := a.Interface().(map[string]string); ok {
		for k, v := range b.Interface().(map[string]string) {
			if have, ok := x[k]; !ok || have != v {
				return false
			}
		}
		return true
	}
	for it := a.MapRange(); it.Next(); {
		v := b.MapIndex(it.Key())
		if !v.IsValid() || !same(p.item, settle(it.Value()), settle(v)) {
			return false
		}
	}
	return true
}
