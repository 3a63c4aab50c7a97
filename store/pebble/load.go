package pebble

import (
	"errors"
	"fmt"
	"runtime"
	"unique"

	"github.com/cockroachdb/pebble/v2"

	"coracle.dev/coracle/store"
)

// chunkSize is how many records are decoded as one piece of work.
const chunkSize = 128

// chunk is some records in order, on their way from bytes to entries.
type chunk struct {
	keys    []store.Key
	revs    []store.Revision
	created []store.Revision
	data    []byte // all payloads
	ends    []int  // of the payloads in data
	entries []*store.Entry
	err     error
	done    chan struct{}
}

// load fills the history with what is on disk, after checking all of it.
func (s *Store) load(opts store.Options) error {
	m, err := s.readMeta()
	if err != nil {
		return err
	}
	mark := s.dir.marked()
	if m.revision < mark {
		return fmt.Errorf("%w: %s held revision %d and now ends at %d: the end of its log is lost or damaged",
			store.ErrDamaged, s.dir.path, mark, m.revision)
	}
	sum, chunks, err := s.readObjects(m, opts)
	if err != nil {
		return err
	}
	if sum.objects != m.objects || sum.digest != m.digest {
		return fmt.Errorf("%w: %s: %d objects were written and %d found, or some are not the newest",
			store.ErrDamaged, s.dir.path, m.objects, sum.objects)
	}
	rev := m.revision
	if !m.clean {
		rev = m.ceiling
	}
	s.h.Lock()
	defer s.h.Unlock()
	s.h.Load(rev, func(yield func(*store.Entry) bool) {
		for _, c := range chunks {
			for _, e := range c.entries {
				if !yield(e) {
					return
				}
			}
		}
	})
	s.disk.meta = m
	s.disk.meta.revision = rev
	s.disk.ceiling = rev
	return nil
}

// readMeta returns the zero meta for a new database.
func (s *Store) readMeta() (meta, error) {
	value, closer, err := s.db.Get([]byte(metaKey))
	if errors.Is(err, pebble.ErrNotFound) {
		return meta{clean: true}, nil
	}
	if err != nil {
		return meta{}, s.dir.wrap(err)
	}
	m, err := parseMeta(value)
	return m, errors.Join(err, closer.Close())
}

// readObjects reads every record once, in order, and has the objects decoded on all processors.
// The meta returned holds what the records add up to.
func (s *Store) readObjects(m meta, opts store.Options) (sum meta, chunks []*chunk, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{objectPrefix},
		UpperBound: []byte{objectPrefix + 1},
	})
	if err != nil {
		return sum, nil, s.dir.wrap(err)
	}
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	send := func(c *chunk) {
		slots <- struct{}{}
		go func() {
			c.decode(opts)
			close(c.done)
			<-slots
		}()
	}
	c := newChunk()
	for valid := it.First(); valid; valid = it.Next() {
		if err = c.read(it, m, &sum); err != nil {
			break
		}
		if len(c.keys) == chunkSize {
			chunks = append(chunks, c)
			send(c)
			c = newChunk()
		}
	}
	if err == nil {
		chunks = append(chunks, c)
		send(c)
	}
	err = errors.Join(err, s.dir.wrap(it.Error()), s.dir.wrap(it.Close()))
	for _, c := range chunks {
		<-c.done
		err = errors.Join(err, c.err)
	}
	return sum, chunks, err
}

func newChunk() *chunk { return &chunk{done: make(chan struct{})} }

// read checks the record at which the iterator stands and adds it to the chunk.
func (c *chunk) read(it *pebble.Iterator, m meta, sum *meta) error {
	value, err := it.ValueAndErr()
	if err != nil {
		return err
	}
	rev, created, payload, err := parseRecord(it.Key(), value)
	if err != nil {
		return err
	}
	key, err := parseKey(it.Key())
	if err != nil {
		return err
	}
	if rev > m.revision || created > rev {
		return fmt.Errorf("%w: %s is of revision %d, the newest transaction is %d", store.ErrDamaged, key, rev, m.revision)
	}
	sum.add(it.Key(), rev)
	key.Resource = unique.Make(key.Resource).Value()
	key.Namespace = unique.Make(key.Namespace).Value()
	c.keys = append(c.keys, key)
	c.revs = append(c.revs, rev)
	c.created = append(c.created, created)
	c.data = append(c.data, payload...)
	c.ends = append(c.ends, len(c.data))
	return nil
}

func (c *chunk) decode(opts store.Options) {
	c.entries = make([]*store.Entry, len(c.keys))
	start := 0
	for i, key := range c.keys {
		obj, err := opts.Codec.Decode(key, c.data[start:c.ends[i]:c.ends[i]])
		if err != nil {
			c.err = fmt.Errorf("%w: %w", store.ErrDamaged, err)
			return
		}
		start = c.ends[i]
		if opts.Stamp != nil {
			opts.Stamp(obj, c.revs[i])
		}
		c.entries[i] = &store.Entry{Key: key, Revision: c.revs[i], Created: c.created[i], Object: obj}
	}
	c.data = nil
}
