package remote

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// How often a single object is asked for that cannot be watched: at first, and when it is settled or has not changed for long.
const (
	askFirst = time.Second
	askMost  = time.Minute
)

// single is one object that is mirrored by itself, as long as somebody needs it.
type single struct {
	users int // guarded by mirror.mu
	end   context.CancelFunc
	known chan struct{} // closed when the server has answered, whatever it said
	once  sync.Once
	mu    sync.Mutex // guards err
	err   error
}

func (s *single) answered() { s.once.Do(func() { close(s.known) }) }

func (s *single) failed(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		s.answered()
	}
}

// demand notes what an object needs now, starts to mirror what is new of it, stops what nobody needs any
// more, and returns what is not known yet. mu is held.
func (m *mirror) demand(owner store.Key, obj api.Object) []*single {
	if m.c.cfg.Needs == nil || m.life == nil {
		return nil
	}
	wanted := m.c.cfg.Needs(obj)
	old := m.needs[owner]
	if len(wanted) == 0 && len(old) == 0 {
		return nil
	}
	var waits []*single
	for _, key := range wanted {
		s := m.start(key)
		select {
		case <-s.known:
		default:
			waits = append(waits, s)
		}
	}
	for _, key := range old {
		m.drop(key)
	}
	if m.needs[owner] = wanted; len(wanted) == 0 {
		delete(m.needs, owner)
	}
	return waits
}

// release gives up what an object needed; mu is held.
func (m *mirror) release(owner store.Key) {
	for _, key := range m.needs[owner] {
		m.drop(key)
	}
	delete(m.needs, owner)
}

// keepSingle mirrors an object for as long as the mirror lives.
func (m *mirror) keepSingle(key store.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.start(key)
}

// awaitSingle waits until an object was asked for.
func (m *mirror) awaitSingle(ctx context.Context, key store.Key) error {
	m.mu.Lock()
	s := m.singles[key]
	m.mu.Unlock()
	if s == nil {
		return errors.New("it is not mirrored")
	}
	select {
	case <-s.known:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		return errors.Join(s.err, ctx.Err())
	}
}

// start counts one more user of an object and begins to mirror it if that is the first; mu is held.
func (m *mirror) start(key store.Key) *single {
	s := m.singles[key]
	if s != nil {
		s.users++
		return s
	}
	ctx, cancel := context.WithCancel(m.life)
	s = &single{users: 1, end: cancel, known: make(chan struct{})}
	m.singles[key] = s
	m.busy.Add(1)
	go func() {
		defer m.busy.Done()
		defer cancel()
		m.followSingle(ctx, key, s)
	}()
	return s
}

// drop counts one user less; mu is held.
func (m *mirror) drop(key store.Key) {
	s := m.singles[key]
	if s == nil {
		return
	}
	if s.users--; s.users > 0 {
		return
	}
	s.end()
	delete(m.singles, key)
	delete(m.held, key)
	delete(m.gone, key)
	if now := m.current(key); now != nil {
		m.commit(remove(key, now))
	}
	m.release(key)
}

// followSingle keeps one object up to date until ctx is done.
func (m *mirror) followSingle(ctx context.Context, key store.Key, s *single) {
	k := m.c.cfg.Registry.ByName(key.Resource)
	if k == nil {
		s.answered()
		return
	}
	if m.c.cfg.Watchable == nil || !m.c.cfg.Watchable(key.Resource) {
		m.askForSingle(ctx, key, s)
		return
	}
	f := follower{c: m.c, kind: k, resource: key.Resource, namespace: key.Namespace, selector: "metadata.name=" + key.Name,
		ours: func(other store.Key) bool { return other == key }, listed: s.answered, failed: s.failed}
	f.run(ctx)
}

// askForSingle asks for an object again and again, often while it changes.
func (m *mirror) askForSingle(ctx context.Context, key store.Key, s *single) {
	wait, last := askFirst, int64(-1)
	for {
		obj, err := m.c.get(ctx, key)
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		switch {
		case err == nil:
			obj.SetManagedFields(nil)
			h := m.seen(key.Resource, obj)
			if now := revisionOf(obj); now != last {
				wait, last = askFirst, now
			}
			if m.c.cfg.Settled == nil || m.c.cfg.Settled(obj) {
				wait = askMost
			}
			if h != nil {
				<-h.done // within Config.Patience
			}
			s.answered()
		case apierrors.IsNotFound(err):
			m.forget(key)
		case apierrors.IsForbidden(err):
			m.hide(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, askMost)
	}
}
