package history

import "slices"

const (
	// maxItems is the size at which a node is split. A commit copies one node
	// for each level, so that smaller is cheaper to write and deeper to read.
	maxItems = 16
	// minItems is the size below which a node is joined with its neighbour.
	minItems = maxItems / 4
)

// ordered is an item of a tree: it knows its key and how it compares to one.
type ordered[K any] interface {
	key() K
	// compare is negative if the item stands before the key.
	compare(K) int
}

// tree is a persistent B-tree. The zero tree is empty. A copy of the struct is
// a snapshot, provided that later changes are made under another edit number:
// a node that carries the number of the present edit is not shared yet and is
// changed in place, every other is copied first.
//
// get, put, remove and rank are O(log n); put and remove copy O(log n) nodes.
type tree[T ordered[K], K any] struct {
	root *node[T, K]
}

type node[T ordered[K], K any] struct {
	edit  uint64
	size  int // items in this node and below
	items []T
	kids  []*node[T, K] // nil in a leaf, else one more than items
}

func find[T ordered[K], K any](items []T, k K) (int, bool) {
	lo, hi := 0, len(items)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := items[mid].compare(k); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

func (t *tree[T, K]) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.size
}

func (t *tree[T, K]) get(k K) (T, bool) {
	for n := t.root; n != nil; {
		i, found := find(n.items, k)
		if found {
			return n.items[i], true
		}
		if n.kids == nil {
			break
		}
		n = n.kids[i]
	}
	var zero T
	return zero, false
}

// rank is the number of items before k.
func (t *tree[T, K]) rank(k K) int {
	r := 0
	for n := t.root; n != nil; {
		i, found := find(n.items, k)
		r += i
		if n.kids == nil {
			break
		}
		for _, kid := range n.kids[:i] {
			r += kid.size
		}
		if found {
			r += n.kids[i].size
			break
		}
		n = n.kids[i]
	}
	return r
}

// ascend walks the items from k on, k itself only if inclusive, until yield
// returns false.
func (t *tree[T, K]) ascend(k K, inclusive bool, yield func(T) bool) {
	if t.root != nil {
		t.root.from(k, inclusive, yield)
	}
}

func (n *node[T, K]) from(k K, inclusive bool, yield func(T) bool) bool {
	i, found := find(n.items, k)
	switch {
	case !found && n.kids != nil:
		if !n.kids[i].from(k, inclusive, yield) {
			return false
		}
	case found && !inclusive:
		if n.kids != nil && !n.kids[i+1].all(yield) {
			return false
		}
		i++
	}
	return n.rest(i, yield)
}

func (n *node[T, K]) all(yield func(T) bool) bool {
	if n.kids != nil && !n.kids[0].all(yield) {
		return false
	}
	return n.rest(0, yield)
}

// rest walks from item i on.
func (n *node[T, K]) rest(i int, yield func(T) bool) bool {
	for ; i < len(n.items); i++ {
		if !yield(n.items[i]) {
			return false
		}
		if n.kids != nil && !n.kids[i+1].all(yield) {
			return false
		}
	}
	return true
}

// put adds an item or replaces the one with its key, which it returns.
func (t *tree[T, K]) put(edit uint64, item T) (old T, replaced bool) {
	if t.root == nil {
		t.root = newNode(edit, []T{item}, nil)
		return old, false
	}
	t.root, old, replaced = t.root.put(edit, item, item.key(), true)
	if len(t.root.items) > maxItems {
		top := newNode(edit, nil, []*node[T, K]{t.root})
		top.split(0, len(t.root.items)/2)
		t.root = top
	}
	return old, replaced
}

// put works below n. last tells that n is at the right edge of the tree, where
// a split leaves the left half full: keys that arrive in order fill the nodes.
func (n *node[T, K]) put(edit uint64, item T, k K, last bool) (_ *node[T, K], old T, replaced bool) {
	i, found := find(n.items, k)
	n = n.own(edit)
	if found {
		old, n.items[i] = n.items[i], item
		return n, old, true
	}
	if n.kids == nil {
		n.items = slices.Insert(n.items, i, item)
		n.size++
		return n, old, false
	}
	last = last && i == len(n.items)
	n.kids[i], old, replaced = n.kids[i].put(edit, item, k, last)
	if !replaced {
		n.size++
		if kid := n.kids[i]; len(kid.items) > maxItems {
			at := len(kid.items) / 2
			if last {
				at = len(kid.items) - 2
			}
			n.split(i, at)
		}
	}
	return n, old, replaced
}

// own returns n if the edit made it, otherwise a copy.
func (n *node[T, K]) own(edit uint64) *node[T, K] {
	if n.edit == edit {
		return n
	}
	return newNode(edit, n.items, n.kids)
}

// leaf and branch are a node and the room that its slices lie in, so that a copy
// takes one allocation.
type leaf[T ordered[K], K any] struct {
	node[T, K]
	itemRoom [maxItems + 1]T
}

type branch[T ordered[K], K any] struct {
	leaf[T, K]
	kidRoom [maxItems + 2]*node[T, K]
}

// newNode makes a node that holds copies of the slices.
func newNode[T ordered[K], K any](edit uint64, items []T, kids []*node[T, K]) *node[T, K] {
	var l *leaf[T, K]
	if kids == nil {
		l = &leaf[T, K]{}
	} else {
		b := &branch[T, K]{}
		b.kids = append(b.kidRoom[:0], kids...)
		l = &b.leaf
	}
	l.items = append(l.itemRoom[:0], items...)
	l.edit = edit
	l.measure()
	return &l.node
}

// split moves what is behind item at of kid i, which n owns, into a new kid,
// and that item up between the two.
func (n *node[T, K]) split(i, at int) {
	left := n.kids[i]
	up := left.items[at]
	var kids []*node[T, K]
	if left.kids != nil {
		kids = left.kids[at+1:]
	}
	right := newNode(left.edit, left.items[at+1:], kids)
	clear(kids)
	if kids != nil {
		left.kids = left.kids[:at+1]
	}
	clear(left.items[at:])
	left.items = left.items[:at]
	left.measure()
	n.items = slices.Insert(n.items, i, up)
	n.kids = slices.Insert(n.kids, i+1, right)
}

func (n *node[T, K]) measure() {
	n.size = len(n.items)
	for _, kid := range n.kids {
		n.size += kid.size
	}
}

// remove takes out the item with key k and returns it.
func (t *tree[T, K]) remove(edit uint64, k K) (old T, ok bool) {
	if t.root == nil {
		return old, false
	}
	t.root, old, ok = t.root.remove(edit, k)
	switch {
	case len(t.root.items) > 0:
	case t.root.kids != nil:
		t.root = t.root.kids[0]
	default:
		t.root = nil
	}
	return old, ok
}

func (n *node[T, K]) remove(edit uint64, k K) (_ *node[T, K], old T, ok bool) {
	i, found := find(n.items, k)
	if n.kids == nil {
		if !found {
			return n, old, false
		}
		n = n.own(edit)
		old = n.items[i]
		n.items = slices.Delete(n.items, i, i+1)
		n.size--
		return n, old, true
	}
	if found {
		n = n.own(edit)
		old = n.items[i]
		n.kids[i], n.items[i] = n.kids[i].removeMax(edit)
	} else {
		var kid *node[T, K]
		if kid, old, ok = n.kids[i].remove(edit, k); !ok {
			return n, old, false
		}
		n = n.own(edit)
		n.kids[i] = kid
	}
	n.size--
	n.balance(edit, i)
	return n, old, true
}

func (n *node[T, K]) removeMax(edit uint64) (*node[T, K], T) {
	n = n.own(edit)
	n.size--
	if n.kids == nil {
		last := len(n.items) - 1
		item := n.items[last]
		n.items = slices.Delete(n.items, last, last+1)
		return n, item
	}
	i := len(n.kids) - 1
	var item T
	n.kids[i], item = n.kids[i].removeMax(edit)
	n.balance(edit, i)
	return n, item
}

// balance joins kid i, if it became small, with its neighbour, or moves an
// item over if both together are too large for one node.
func (n *node[T, K]) balance(edit uint64, i int) {
	if len(n.kids[i].items) >= minItems || len(n.kids) == 1 {
		return
	}
	j := max(i-1, 0) // the left one of the pair
	left, right := n.kids[j], n.kids[j+1]
	if len(left.items)+1+len(right.items) <= maxItems {
		left = left.own(edit)
		left.items = append(append(left.items, n.items[j]), right.items...)
		left.kids = append(left.kids, right.kids...)
		left.size += 1 + right.size
		n.kids[j] = left
		n.items = slices.Delete(n.items, j, j+1)
		n.kids = slices.Delete(n.kids, j+1, j+2)
		return
	}
	left, right = left.own(edit), right.own(edit)
	n.kids[j], n.kids[j+1] = left, right
	if j < i { // the right one is small
		last := len(left.items) - 1
		right.items = slices.Insert(right.items, 0, n.items[j])
		n.items[j] = left.items[last]
		left.items = slices.Delete(left.items, last, last+1)
		if left.kids != nil {
			right.kids = slices.Insert(right.kids, 0, left.kids[last+1])
			left.kids = slices.Delete(left.kids, last+1, last+2)
		}
	} else {
		left.items = append(left.items, n.items[j])
		n.items[j] = right.items[0]
		right.items = slices.Delete(right.items, 0, 1)
		if right.kids != nil {
			left.kids = append(left.kids, right.kids[0])
			right.kids = slices.Delete(right.kids, 0, 1)
		}
	}
	left.measure()
	right.measure()
}
