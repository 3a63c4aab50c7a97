package remote

import (
	"context"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// mirror is what is known of the server's objects. All changes go through it, one after the other.
type mirror struct {
	c     *Client
	store *memory.Store
	codec store.Codec

	mu sync.Mutex // guards what follows, and is held over commits, which wait for nothing
	// gone has the UIDs of objects that we know to be deleted although the watch has not said so yet: what it
	// says of them is old.
	gone map[store.Key]types.UID
	// needs are the single objects that an object asked for.
	needs   map[store.Key][]store.Key
	singles map[store.Key]*single
	// held are objects that wait for what they need.
	held map[store.Key]*heldObject
	// kept are the objects of Config.Keep, the oldest first.
	kept map[string][]store.Key
	life context.Context // of single objects and waits; nil before begin
	busy sync.WaitGroup
}

// heldObject is the newest version of an object that is not shown yet.
type heldObject struct {
	obj  api.Object
	done chan struct{} // closed when it is shown or given up
}

func newMirror(c *Client) *mirror {
	opts := client.StoreOptions(c.cfg.Registry, c.cfg.Window)
	m := &mirror{c: c, codec: opts.Codec, gone: map[store.Key]types.UID{}, needs: map[store.Key][]store.Key{},
		singles: map[store.Key]*single{}, held: map[store.Key]*heldObject{}, kept: map[string][]store.Key{}}
	// Objects show the server's revision, and are given back as they were when they are deleted. Nothing is encoded.
	opts.Stamp, opts.Clone, opts.Codec = nil, nil, nil
	m.store = memory.New(opts)
	return m
}

func (m *mirror) begin(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life = ctx
}

// end waits for all goroutines; the context of begin is done. What is mirrored can still be read.
func (m *mirror) end() { m.busy.Wait() }

// revisionOf is the server's revision of an object, 0 if it has none.
func revisionOf(obj api.Object) int64 {
	n, _ := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	return n
}

// current is what is shown at a key, nil for nothing.
func (m *mirror) current(key store.Key) api.Object {
	if e := m.store.Snapshot().Get(key); e != nil {
		return e.Object.(api.Object)
	}
	return nil
}

// commit shows or removes (nil) an object. Its conditions hold by the lock alone.
func (m *mirror) commit(ops ...store.Op) {
	if len(ops) == 0 {
		return
	}
	// The only errors are a done context, a closed store and a broken condition, of which there are none.
	_, _, _ = m.store.Commit(context.Background(), store.Txn{Ops: ops})
}

func put(key store.Key, obj api.Object) store.Op {
	return store.Op{Key: key, Object: obj, Expect: store.ExpectAny}
}

// remove is the deletion of an object that is there. last is its last state.
func remove(key store.Key, last api.Object) store.Op {
	return store.Op{Key: key, Delete: true, Object: last, Expect: store.ExpectAny}
}

// stale tells whether a version says nothing new; mu is held.
func (m *mirror) stale(key store.Key, obj api.Object) bool {
	if uid, ok := m.gone[key]; ok {
		if uid == obj.GetUID() {
			return true
		}
		delete(m.gone, key)
	}
	now := m.current(key)
	return now != nil && revisionOf(now) >= revisionOf(obj)
}

// seen takes a version that the server told of, and holds it back until what it needs is known. What is returned tells when it is
// shown, nil if it is.
func (m *mirror) seen(resource string, obj api.Object) *heldObject {
	key := keyOf(resource, obj)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale(key, obj) || m.c.source(resource) == nil && m.singles[key] == nil {
		return nil
	}
	if h := m.held[key]; h != nil {
		if revisionOf(h.obj) < revisionOf(obj) {
			h.obj = obj
			m.demand(key, obj)
		}
		return h
	}
	waits := m.demand(key, obj)
	if len(waits) == 0 || m.life == nil {
		m.commit(put(key, obj))
		return nil
	}
	h := &heldObject{obj, make(chan struct{})}
	m.held[key] = h
	m.busy.Add(1)
	go func() {
		defer m.busy.Done()
		defer close(h.done)
		m.await(waits)
		m.show(key, h)
	}()
	return h
}

// await waits for single objects, with patience.
func (m *mirror) await(waits []*single) {
	ctx, cancel := context.WithTimeout(m.life, m.c.cfg.Patience)
	defer cancel()
	for _, s := range waits {
		select {
		case <-s.known:
		case <-ctx.Done():
			return
		}
	}
}

// show ends the wait of an object.
func (m *mirror) show(key store.Key, h *heldObject) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[key] != h {
		return // deleted meanwhile
	}
	delete(m.held, key)
	if !m.stale(key, h.obj) {
		m.commit(put(key, h.obj))
	}
}

// deleted takes the end of an object that the server told of. revision is that of the deletion.
func (m *mirror) deleted(key store.Key, last api.Object, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.gone, key)
	if h := m.held[key]; h != nil && revisionOf(h.obj) <= revision {
		delete(m.held, key)
	}
	if now := m.current(key); now != nil && revisionOf(now) <= revision {
		m.commit(remove(key, last))
	}
	if m.held[key] == nil && m.current(key) == nil {
		m.release(key)
	}
}

// replace makes a resource what a list says: ours tells which objects the list is about. What was written here after the
// list was made stays.
func (m *mirror) replace(resource string, ours func(store.Key) bool, objs []api.Object, revision int64) {
	there := make(map[store.Key]bool, len(objs))
	for _, obj := range objs {
		there[keyOf(resource, obj)] = true
	}
	m.mu.Lock()
	var gone []store.Key
	for e := range m.store.Snapshot().List(resource, "", nil) {
		if !there[e.Key] && ours(e.Key) && revisionOf(e.Object.(api.Object)) <= revision {
			gone = append(gone, e.Key)
		}
	}
	for key, h := range m.held {
		if key.Resource == resource && !there[key] && ours(key) && revisionOf(h.obj) <= revision && m.current(key) == nil {
			gone = append(gone, key)
		}
	}
	for key := range m.gone {
		if key.Resource == resource && !there[key] && ours(key) {
			delete(m.gone, key)
		}
	}
	m.mu.Unlock()
	for _, key := range gone {
		m.mu.Lock()
		last := m.current(key)
		m.mu.Unlock()
		m.deleted(key, last, revision)
	}
	for _, obj := range objs {
		m.seen(resource, obj)
	}
}

// wrote takes what the server answered to a write, and returns what is to be shown to the writer. It is not held back: the writer
// knows the object.
func (m *mirror) wrote(resource string, obj api.Object) api.Object {
	key := keyOf(resource, obj)
	if !m.tracks(key) || !m.c.matches(resource, obj) {
		return obj
	}
	if s := m.c.source(resource); s != nil && s.Trim != nil {
		trimmed := obj.DeepCopyObject().(api.Object)
		s.Trim(trimmed)
		m.take(key, trimmed)
		return obj
	}
	m.take(key, obj)
	return obj
}

func (m *mirror) take(key store.Key, obj api.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale(key, obj) {
		return
	}
	if h := m.held[key]; h != nil && revisionOf(h.obj) <= revisionOf(obj) {
		delete(m.held, key)
	}
	m.commit(put(key, obj))
	m.remember(key)
}

// remember keeps the number of objects that nobody watches within its bound; mu is held.
func (m *mirror) remember(key store.Key) {
	most, ok := m.c.cfg.Keep[key.Resource]
	if !ok {
		return
	}
	list := m.kept[key.Resource]
	for i := range list {
		if list[i] == key {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	list = append(list, key)
	for len(list) > most {
		if last := m.current(list[0]); last != nil {
			m.commit(remove(list[0], last))
		}
		list = list[1:]
	}
	m.kept[key.Resource] = append([]store.Key(nil), list...)
}

// forget takes out an object that is not there any more.
func (m *mirror) forget(key store.Key) { m.forgetUID(key, m.uid(key)) }

// hide takes out an object that may not be read any more; if it can be again, it is back.
func (m *mirror) hide(key store.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.current(key); now != nil {
		m.commit(remove(key, now))
		m.release(key)
	}
}

// uid is that of the object that is shown, "" for none.
func (m *mirror) uid(key store.Key) types.UID {
	if now := m.current(key); now != nil {
		return now.GetUID()
	}
	return ""
}

// forgetUID takes an object out, unless another has its name already.
func (m *mirror) forgetUID(key store.Key, uid types.UID) {
	if uid == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.current(key)
	if now == nil || now.GetUID() != uid {
		return
	}
	if m.c.source(key.Resource) != nil || m.singles[key] != nil {
		m.gone[key] = uid
	}
	delete(m.held, key)
	m.commit(remove(key, now))
	m.release(key)
}

// tracks tells whether an object is one that the mirror has or would have.
func (m *mirror) tracks(key store.Key) bool {
	if m.c.source(key.Resource) != nil {
		return true
	}
	if _, ok := m.c.cfg.Keep[key.Resource]; ok {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.singles[key] != nil
}

func (c *Client) source(resource string) *source {
	for _, s := range c.sources {
		if s.Resource == resource {
			return s
		}
	}
	return nil
}

// matches tells whether an object is one of those that its source selects.
func (c *Client) matches(resource string, obj api.Object) bool {
	s := c.source(resource)
	return s == nil || s.Match == nil || s.Match(obj)
}
