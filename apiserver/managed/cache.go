package managed

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// interned is a field set in both its forms. Objects share bytes, which nobody may change.
type interned struct {
	bytes *metav1.FieldsV1
	set   set
}

// cacheBytes is how much of FieldsV1 a generation of the cache holds; the parsed sets are about three times as much.
const cacheBytes = 512 << 10

// cache holds the sets that were used last, by their FieldsV1, so that all pods of a template share one and none
// is parsed twice in a row. What it lets go of stays alive with the objects that have it. It is safe for
// concurrent use.
type cache struct {
	mu         sync.Mutex // guards all below
	young, old map[string]*interned
	size       int // bytes in young
}

// of gives the interned form of FieldsV1 that is canonical or, if it is trusted to be neither, what is wrong with it.
func (c *cache) of(data []byte, trusted bool) (*interned, error) {
	c.mu.Lock()
	if have := c.find(string(data)); have != nil {
		c.mu.Unlock()
		return have, nil
	}
	c.mu.Unlock()
	if !trusted {
		var err error
		if data, err = canonical(data); err != nil {
			return nil, err
		}
	}
	s, err := parse(data)
	if err != nil {
		if !trusted {
			return nil, err
		}
		return c.of(data, false)
	}
	return c.add(data, s), nil
}

// ofSet gives the interned form of a set. buf is used for the bytes, which are copied.
func (c *cache) ofSet(s set, buf *[]byte) *interned {
	*buf = s.appendJSON((*buf)[:0], false)
	c.mu.Lock()
	have := c.find(string(*buf))
	c.mu.Unlock()
	if have != nil {
		return have
	}
	return c.add(*buf, s)
}

// find looks a set up and keeps it for longer. c.mu is held.
func (c *cache) find(data string) *interned {
	if have := c.young[data]; have != nil {
		return have
	}
	have := c.old[data]
	if have != nil {
		c.put(data, have)
	}
	return have
}

func (c *cache) add(data []byte, s set) *interned {
	text := string(data)
	one := &interned{metav1.NewFieldsV1(text), s}
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.find(text); have != nil {
		return have
	}
	c.put(text, one)
	return one
}

// put adds to the young generation and, when that is full, forgets the old one.
func (c *cache) put(text string, one *interned) {
	if c.young == nil || c.size > cacheBytes {
		c.old, c.young, c.size = c.young, map[string]*interned{}, 0
	}
	c.young[text] = one
	c.size += len(text)
}
