package history

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

type number struct{ k, v int }

func (n number) key() int          { return n.k }
func (n number) compare(k int) int { return cmp.Compare(n.k, k) }

type numbers = tree[number, int]

// sound checks the shape below n: order, sizes, equal depth, no node that is too large or
// empty. It returns the depth.
func sound(t *testing.T, n *node[number, int]) int {
	t.Helper()
	if len(n.items) > maxItems || len(n.items) == 0 {
		t.Fatalf("a node of %d items", len(n.items))
	}
	if !slices.IsSortedFunc(n.items, func(a, b number) int { return cmp.Compare(a.k, b.k) }) {
		t.Fatalf("items out of order: %v", n.items)
	}
	size, depth := len(n.items), 0
	if n.kids != nil && len(n.kids) != len(n.items)+1 {
		t.Fatalf("%d items and %d kids", len(n.items), len(n.kids))
	}
	for i, kid := range n.kids {
		d := sound(t, kid)
		if i > 0 && d != depth {
			t.Fatal("leaves at different depths")
		}
		depth = d
		size += kid.size
		lo, hi := kid.items[0].k, kid.items[len(kid.items)-1].k
		if i > 0 && lo <= n.items[i-1].k || i < len(n.items) && hi >= n.items[i].k {
			t.Fatal("a kid reaches past its neighbours")
		}
	}
	if n.size != size {
		t.Fatalf("size %d of %d items", n.size, size)
	}
	return depth + 1
}

func contents(tr numbers) []number {
	var out []number
	if tr.root != nil {
		tr.root.all(func(n number) bool { out = append(out, n); return true })
	}
	return out
}

func sorted(m map[int]int) []number {
	var out []number
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, number{k, m[k]})
	}
	return out
}

// TestTree compares a tree with a map under random changes, and every kept copy with
// what it was when it was taken.
func TestTree(t *testing.T) {
	type kept struct {
		tree numbers
		want []number
	}
	for _, space := range []int{20, 300, 5000} {
		rnd := rand.New(rand.NewPCG(uint64(space), 3))
		var tr numbers
		m := map[int]int{}
		var copies []kept
		edit := uint64(1)
		for i := range 20_000 {
			k := rnd.IntN(space)
			// Grow for a while, then shrink.
			if rnd.IntN(10) < 3+4*(i/5000%2) {
				old, ok := tr.remove(edit, k)
				want, had := m[k]
				if ok != had || ok && old.v != want {
					t.Fatalf("remove %d: %v %v, want %v %v", k, old, ok, want, had)
				}
				delete(m, k)
			} else {
				old, ok := tr.put(edit, number{k, i})
				want, had := m[k]
				if ok != had || ok && old.v != want {
					t.Fatalf("put %d: %v %v, want %v %v", k, old, ok, want, had)
				}
				m[k] = i
			}
			if i%500 == 0 {
				copies = append(copies, kept{tr, sorted(m)})
				edit++
			}
			if i%997 == 0 {
				checkTree(t, tr, sorted(m), space)
			}
		}
		for k := range space {
			tr.remove(edit, k)
		}
		if tr.root != nil || tr.len() != 0 {
			t.Error("an emptied tree has a root")
		}
		for _, c := range copies {
			checkTree(t, c.tree, c.want, space)
		}
	}
}

func checkTree(t *testing.T, tr numbers, want []number, space int) {
	t.Helper()
	if tr.root != nil {
		sound(t, tr.root)
	}
	if got := contents(tr); !slices.Equal(got, want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	for k := -1; k <= space; k += max(1, space/50) {
		at, found := slices.BinarySearchFunc(want, k, func(n number, k int) int { return cmp.Compare(n.k, k) })
		if r := tr.rank(k); r != at {
			t.Fatalf("rank of %d is %d, want %d", k, r, at)
		}
		if _, ok := tr.get(k); ok != found {
			t.Fatalf("get %d: %v", k, ok)
		}
		for _, inclusive := range []bool{true, false} {
			var got []number
			tr.ascend(k, inclusive, func(n number) bool { got = append(got, n); return len(got) < 40 })
			from := at
			if found && !inclusive {
				from++
			}
			if rest := want[from:]; !slices.Equal(got, rest[:min(40, len(rest))]) {
				t.Fatalf("from %d, inclusive %v: %v", k, inclusive, got)
			}
		}
	}
}

// TestTreeInOrder checks that keys which arrive in order fill the nodes.
func TestTreeInOrder(t *testing.T) {
	var tr numbers
	const n = 10_000
	for i := range n {
		tr.put(1, number{i, i})
	}
	sound(t, tr.root)
	leaves := 0
	var walk func(n *node[number, int])
	walk = func(n *node[number, int]) {
		if n.kids == nil {
			leaves++
		}
		for _, k := range n.kids {
			walk(k)
		}
	}
	walk(tr.root)
	if most := n/(maxItems-1) + 10; leaves > most {
		t.Errorf("%d leaves, want at most %d", leaves, most)
	}
}

// TestTreeShares checks that a change copies one node for each level and no more.
func TestTreeShares(t *testing.T) {
	var tr numbers
	for i := range 10_000 {
		tr.put(1, number{i * 2, i})
	}
	before := map[*node[number, int]]bool{}
	var collect func(n *node[number, int], f func(*node[number, int]))
	collect = func(n *node[number, int], f func(*node[number, int])) {
		f(n)
		for _, k := range n.kids {
			collect(k, f)
		}
	}
	collect(tr.root, func(n *node[number, int]) { before[n] = true })
	depth := sound(t, tr.root)
	tr.put(2, number{777 * 2, -1})
	fresh := 0
	collect(tr.root, func(n *node[number, int]) {
		if !before[n] {
			fresh++
		}
	})
	if fresh != depth {
		t.Errorf("%d nodes were copied, the tree is %d deep", fresh, depth)
	}
}
