package wire

import (
	"sync"
	"weak"

	"coracle.dev/coracle/store"
)

// Cache bounds what encodings cost in memory: it knows which entries keep bytes, in the
// order in which they were made, and lets the oldest go when there are too many. Without it
// a version that nobody asks for any more would keep its bytes for as long as the store keeps the
// version. It is safe for concurrent use.
type Cache struct {
	// Budget is how many bytes may be kept, 32 MiB if zero.
	Budget int

	mu    sync.Mutex // guards all below
	ring  []kept     // a queue: head is the oldest
	head  int
	count int
	bytes int
}

// kept is an encoding. The cache does not keep its entry alive: what the store has let go of is
// gone with its bytes, and is counted until its turn comes.
type kept struct {
	entry weak.Pointer[store.Entry]
	size  int
}

func (k kept) drop() {
	if e := k.entry.Value(); e != nil {
		e.DropEncodings()
	}
}

const defaultBudget = 32 << 20

// add tells that an entry keeps size bytes more.
func (c *Cache) add(e *store.Entry, size int) {
	budget := c.Budget
	if budget == 0 {
		budget = defaultBudget
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(kept{weak.Make(e), size})
	for c.bytes > budget && c.count > 1 {
		c.pop().drop()
	}
}

func (c *Cache) push(k kept) {
	if c.count == len(c.ring) {
		grown := make([]kept, max(64, 2*len(c.ring)))
		for i := range c.count {
			grown[i] = c.ring[(c.head+i)%len(c.ring)]
		}
		c.ring, c.head = grown, 0
	}
	c.ring[(c.head+c.count)%len(c.ring)] = k
	c.count++
	c.bytes += k.size
}

func (c *Cache) pop() kept {
	k := c.ring[c.head]
	c.ring[c.head] = kept{}
	c.head = (c.head + 1) % len(c.ring)
	c.count--
	c.bytes -= k.size
	return k
}

// Size is how many bytes are kept, and in how many encodings.
func (c *Cache) Size() (bytes, encodings int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes, c.count
}

// Drop lets everything go, for when memory is short.
func (c *Cache) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.count > 0 {
		c.pop().drop()
	}
	c.ring, c.head = nil, 0
}
