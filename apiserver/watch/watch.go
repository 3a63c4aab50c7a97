// Package watch streams the changes of one resource to one client: a cursor in
// the store's history, filtered by a selection, written as frames whose bytes all watchers share.
//
// A stream owns the goroutine of its request and ends with it, at its timeout, or when
// the server stops. It holds no queue: a slow client is a cursor that stands far back, and one
// that falls out of the window is told to list again.
package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/list"
	"coracle.dev/coracle/apiserver/table"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/store"
)

// Request is one watch.
type Request struct {
	Store     store.Store
	Lister    *list.Lister
	Now       func() time.Time
	Kind      *api.Kind
	Selection *list.Selection
	Options   list.Options
	View      *wire.View
	// Table, if not nil, shows each object as a table of one row.
	Table *table.Writer
	Media wire.Media
	// Stop ends the stream when it is closed.
	Stop <-chan struct{}
	// Begun, if not nil, is called once the present state is sent and only changes are to follow.
	Begun func()
}

const (
	// minTimeout: a watch without a timeout of its own ends after this long to twice this long,
	// so that clients spread over servers again (kube-apiserver --min-request-timeout).
	minTimeout = 30 * time.Minute
	// bookmarkEvery is how often clients that allow it hear which revision they have seen.
	bookmarkEvery = time.Minute
	// chunk is how many bytes of frames are gathered before they are written.
	chunk = 64 << 10
)

// initialEventsEnd marks the bookmark that ends the initial events
// (KEP-3157, WatchList).
const initialEventsEnd = "k8s.io/initial-events-end"

// stream is a watch that has begun.
type stream struct {
	*Request
	w       http.ResponseWriter
	flush   func()
	buf     []byte
	columns bool // table columns are still to be sent
	sent    store.Revision
	skip    store.Revision // events up to here are not sent
}

// Serve answers a watch. An error means that nothing was written yet.
func (q *Request) Serve(w http.ResponseWriter, r *http.Request) error {
	want, errs := list.ParseRevision(q.Options.ResourceVersion)
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: q.Kind.Group, Kind: q.Kind.Resource}, "", errs)
	}
	flusher, ok := w.(http.Flusher)
	if !ok {
		return apierrors.NewInternalError(errors.New("unable to start watch - can't get http.Flusher"))
	}
	ctx, cancel := context.WithTimeout(r.Context(), q.timeout())
	defer cancel()
	s := &stream{Request: q, w: w, flush: flusher.Flush, columns: true}
	var snap store.Snapshot
	if q.Options.SendInitialEvents || want == 0 {
		var err error
		if snap, err = q.Lister.Fresh(ctx, want); err != nil {
			return err
		}
		want = snap.Revision()
	}
	w.Header().Set("Content-Type", q.Media.Stream())
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(http.StatusOK)
	s.flush()
	if q.Options.SendInitialEvents {
		if !s.initial(ctx, snap) {
			return nil
		}
	}
	snap = nil
	if q.Begun != nil {
		q.Begun()
	}
	cursor, err := s.cursor(want)
	if err != nil {
		s.fail(want, err)
		return nil
	}
	s.sent = want
	s.run(ctx, cursor)
	return nil
}

func (q *Request) timeout() time.Duration {
	if q.Options.TimeoutSeconds > 0 {
		return time.Duration(q.Options.TimeoutSeconds) * time.Second
	}
	return minTimeout + time.Duration(rand.Int64N(int64(minTimeout)))
}

// cursor stands behind a revision, also one that is still to come.
func (s *stream) cursor(from store.Revision) (store.Cursor, error) {
	c, err := s.Store.Cursor(from, s.Selection.Resource())
	if errors.Is(err, store.ErrFuture) {
		s.skip = from
		return s.Store.Cursor(s.Store.Snapshot().Revision(), s.Selection.Resource())
	}
	return c, err
}

// initial sends the present state and the bookmark that ends it; false when the client is gone.
func (s *stream) initial(ctx context.Context, snap store.Snapshot) bool {
	for e, err := range s.Selection.Walk(ctx, snap, nil) {
		if err != nil {
			return s.broken(err)
		}
		if !s.event(wire.Added, e) || len(s.buf) >= chunk && !s.write() {
			return false
		}
	}
	if s.Options.AllowWatchBookmarks && !s.bookmark(snap.Revision(), true) {
		return false
	}
	return s.write()
}

// run sends what comes, until someone has had enough.
func (s *stream) run(ctx context.Context, cursor store.Cursor) {
	var mark <-chan time.Time
	if s.Options.AllowWatchBookmarks {
		timer := time.NewTicker(bookmarkEvery + time.Duration(rand.Int64N(int64(bookmarkEvery/4))))
		defer timer.Stop()
		mark = timer.C
	}
	for {
		ready := cursor.Ready()
		events, err := cursor.Poll()
		if err != nil {
			s.fail(s.sent, err)
			return
		}
		if len(events) > 0 {
			if !s.events(ctx, events) {
				return
			}
			continue
		}
		select {
		case <-ready:
		case <-mark:
			if !s.progress(cursor.Position()) {
				return
			}
		case <-ctx.Done():
			// Those who reach their timeout hear how far they came.
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && mark != nil {
				s.progress(cursor.Position())
			}
			return
		case <-s.Stop:
			return
		}
	}
}

// progress sends a bookmark if there is progress to tell.
func (s *stream) progress(position store.Revision) bool {
	if position <= s.sent {
		return true
	}
	return s.bookmark(position, false) && s.write()
}

// events sends a batch; false when the client is gone.
func (s *stream) events(ctx context.Context, events []store.Event) bool {
	selected, err := s.selected(ctx, events)
	if err != nil {
		return s.broken(err)
	}
	for i := range events {
		if events[i].Entry.Revision <= s.skip {
			continue
		}
		if !s.change(&events[i], selected) || len(s.buf) >= chunk && !s.write() {
			return false
		}
	}
	return s.write()
}

// selected gives the test whether an object of these events is selected.
func (s *stream) selected(ctx context.Context, events []store.Event) (func(api.Object) bool, error) {
	if !s.Selection.Converts() {
		return s.Selection.Over(ctx, nil)
	}
	var objs []api.Object
	for i := range events {
		ev := &events[i]
		if ev.Entry.Revision <= s.skip {
			continue
		}
		if !ev.Deleted {
			objs = append(objs, ev.Entry.Object.(api.Object))
		}
		if ev.Prev != nil {
			objs = append(objs, ev.Prev.Object.(api.Object))
		}
	}
	return s.Selection.Over(ctx, objs)
}

// change shows one event as this selection sees it.
func (s *stream) change(ev *store.Event, selected func(api.Object) bool) bool {
	now := !ev.Deleted && selected(ev.Entry.Object.(api.Object))
	before := ev.Prev != nil && selected(ev.Prev.Object.(api.Object))
	switch {
	case now && before:
		return s.event(wire.Modified, ev.Entry)
	case now:
		return s.event(wire.Added, ev.Entry)
	case before && ev.Deleted:
		return s.event(wire.Deleted, ev.Entry)
	case before:
		return s.left(ev)
	}
	return true
}

// event appends the frame of an entry.
func (s *stream) event(kind string, e *store.Entry) bool {
	s.sent = max(s.sent, e.Revision)
	if s.Table != nil {
		return s.row(kind, e)
	}
	data, err := s.View.Entry(s.Media, e)
	if err != nil {
		return s.broken(err)
	}
	s.buf = s.View.AppendEvent(s.buf, s.Media, kind, data)
	return true
}

// left appends the DELETED frame of an object that is no longer selected.
func (s *stream) left(ev *store.Event) bool {
	s.sent = max(s.sent, ev.Entry.Revision)
	if s.Table != nil {
		return s.row(wire.Deleted, &store.Entry{Key: ev.Entry.Key, Object: wire.Restamp(ev.Prev.Object.(api.Object), ev.Entry.Revision)})
	}
	data, err := s.View.Left(s.Media, *ev)
	if err != nil {
		return s.broken(err)
	}
	s.buf = s.View.AppendEvent(s.buf, s.Media, wire.Deleted, data)
	return true
}

func (s *stream) row(kind string, e *store.Entry) bool {
	data, err := s.Table.One(nil, e, s.columns, s.Now())
	if err != nil {
		return s.broken(err)
	}
	s.columns = false
	s.buf = wire.AppendJSONEvent(s.buf, kind, data)
	return true
}

// bookmark appends an object of the kind that has nothing but a revision.
func (s *stream) bookmark(rev store.Revision, initial bool) bool {
	s.sent = rev
	obj := s.Kind.Hub().New().(api.Object)
	if u, ok := obj.(interface{ UnstructuredContent() map[string]any }); ok && u.UnstructuredContent() != nil {
		obj.GetObjectKind().SetGroupVersionKind(s.View.GVK)
	}
	obj.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
	if initial {
		obj.SetAnnotations(map[string]string{initialEventsEnd: "true"})
	}
	if s.Table != nil {
		data, err := s.Table.Bare(nil, obj, s.columns)
		if err != nil {
			return s.broken(err)
		}
		s.columns = false
		s.buf = wire.AppendJSONEvent(s.buf, wire.Bookmark, data)
		return true
	}
	data, err := s.View.Encode(s.Media, obj)
	if err != nil {
		return s.broken(err)
	}
	s.buf = s.View.AppendEvent(s.buf, s.Media, wire.Bookmark, data)
	return true
}

// fail ends the stream with an ERROR event.
func (s *stream) fail(at store.Revision, err error) {
	if errors.Is(err, store.ErrCompacted) {
		err = apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", at, s.Store.Snapshot().Revision()))
	} else if errors.Is(err, store.ErrClosed) {
		return
	}
	s.broken(err)
}

// broken ends the stream with an ERROR event, and returns false.
func (s *stream) broken(err error) bool {
	status := wire.StatusOf(err)
	status.TypeMeta = metav1.TypeMeta{}
	if buf, err := wire.AppendStatusEvent(s.buf, s.Media, status); err == nil {
		s.buf = buf
		s.write()
	}
	return false
}

// write sends what was gathered; false when the client is gone.
func (s *stream) write() bool {
	if len(s.buf) == 0 {
		return true
	}
	_, err := s.w.Write(s.buf)
	if cap(s.buf) > 4*chunk {
		s.buf = nil
	}
	s.buf = s.buf[:0]
	if err != nil {
		return false
	}
	s.flush()
	return true
}
