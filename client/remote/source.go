package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// How a source behaves.
const (
	pageSize  = 500
	watchLife = 5 * time.Minute // and up to as much again, as upstream's reflectors ask for
	backFirst = 200 * time.Millisecond
	backMost  = 30 * time.Second
	quick     = time.Second // a watch that ended sooner than this is a failure
)

// errGone says that the server has forgotten the place in its history where we are.
var errGone = errors.New("the history was compacted")

// follower keeps some objects of one resource up to date: those of a source, or a single one.
type follower struct {
	c         *Client
	kind      *api.Kind
	resource  string
	namespace string
	selector  string
	trim      func(api.Object)
	// ours tells which of the mirrored objects the selector is about.
	ours func(store.Key) bool
	// listed is called after each list; failed with what is wrong, nil when it is right again.
	listed func()
	failed func(error)
}

// source is a Source at work.
type source struct {
	Source
	follower
	synced chan struct{} // closed after the first list
	once   sync.Once

	mu  sync.Mutex // guards err
	err error
}

func newSource(c *Client, k *api.Kind, cfg Source) *source {
	s := &source{Source: cfg, synced: make(chan struct{}), err: errors.New("it was not listed yet")}
	s.follower = follower{c: c, kind: k, resource: cfg.Resource, selector: cfg.FieldSelector, trim: cfg.Trim,
		ours:   func(store.Key) bool { return true },
		listed: func() { s.once.Do(func() { close(s.synced) }) },
		failed: func(err error) { s.mu.Lock(); s.err = err; s.mu.Unlock() }}
	return s
}

func (s *source) lastError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// run lists and watches until ctx is done.
func (f *follower) run(ctx context.Context) {
	var revision string
	wait := backFirst
	said := "" // the last failure that was logged
	for ctx.Err() == nil {
		began := time.Now()
		var err error
		if revision == "" {
			if revision, err = f.list(ctx); err == nil {
				f.listed()
			}
		}
		if err == nil {
			revision, err = f.watch(ctx, revision)
		}
		if time.Since(began) >= quick {
			wait = backFirst
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errGone):
			revision = ""
			f.c.cfg.Log.Debug("mirror begins anew", "resource", f.resource, "error", err)
		case err == nil || errors.Is(err, io.EOF):
			if time.Since(began) >= quick {
				continue // the server ends watches from time to time
			}
		default:
			f.failed(err)
			if text := err.Error(); text != said {
				f.c.cfg.Log.Warn("mirror does not follow", "resource", f.resource, "error", err)
				said = text
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(float64(wait) * (0.5 + rand.Float64()))):
		}
		wait = min(2*wait, backMost)
	}
}

func (f *follower) request() request {
	r := request{method: http.MethodGet, kind: f.kind, namespace: f.namespace}
	if f.selector != "" {
		r.set("fieldSelector", f.selector)
	}
	return r
}

// list makes the mirror what the server has, and returns the revision of that.
func (f *follower) list(ctx context.Context) (string, error) {
	r := f.request()
	r.set("limit", strconv.Itoa(pageSize))
	var all []api.Object
	for {
		a, err := f.c.do(ctx, r)
		if err != nil {
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				return "", fmt.Errorf("%w: %w", errGone, err)
			}
			return "", err
		}
		page, err := decodeList(f.kind, a.data)
		if err != nil {
			return "", err
		}
		for _, obj := range page.objects {
			f.trimmed(obj)
		}
		all = append(all, page.objects...)
		if page.next == "" {
			n, err := strconv.ParseInt(page.revision, 10, 64)
			if err != nil {
				return "", fmt.Errorf("the list is of revision %q", page.revision)
			}
			f.c.mirror.replace(f.resource, f.ours, all, n)
			f.failed(nil)
			return page.revision, nil
		}
		r.set("continue", page.next)
	}
}

func (f *follower) trimmed(obj api.Object) {
	obj.SetManagedFields(nil)
	if f.trim != nil {
		f.trim(obj)
	}
}

// watch follows the changes behind a revision until the stream ends, and returns the revision that it came to.
func (f *follower) watch(ctx context.Context, revision string) (string, error) {
	r := f.request()
	r.set("watch", "true")
	r.set("allowWatchBookmarks", "true")
	r.set("resourceVersion", revision)
	r.set("timeoutSeconds", strconv.Itoa(int((watchLife + rand.N(watchLife)).Seconds())))
	media, accept := jsonMedia, jsonMedia
	if binaryKind(f.kind) {
		media, accept = protobufMedia, protobufMedia+";stream=watch"
	}
	resp, err := f.c.open(ctx, r, accept)
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return "", fmt.Errorf("%w: %w", errGone, err)
		}
		return revision, err
	}
	defer resp.Body.Close()
	f.failed(nil)
	err = decodeEvents(resp.Body, media, func(kind string, object []byte) error {
		next, err := f.event(kind, object)
		if next != "" {
			revision = next
		}
		return err
	})
	return revision, err
}

// event takes one event of a watch and returns the revision that it brings us to, "" if none.
func (f *follower) event(kind string, object []byte) (string, error) {
	if kind == "ERROR" {
		s, ok := decodeStatus(object)
		switch {
		case !ok:
			return "", errors.New("the watch ended with an error that cannot be read")
		case s.Code == http.StatusGone || s.Reason == metav1.StatusReasonExpired:
			return "", fmt.Errorf("%w: %s", errGone, s.Message)
		}
		return "", &apierrors.StatusError{ErrStatus: *s}
	}
	out, err := f.c.mirror.codec.Decode(store.Key{Resource: f.resource}, object)
	if err != nil {
		return "", err
	}
	obj, ok := out.(api.Object)
	if !ok {
		return "", fmt.Errorf("watch event with %T", out)
	}
	revision := obj.GetResourceVersion()
	switch kind {
	case "BOOKMARK":
	case "ADDED", "MODIFIED":
		f.trimmed(obj)
		f.c.mirror.seen(f.resource, obj)
	case "DELETED":
		f.trimmed(obj)
		f.c.mirror.deleted(keyOf(f.resource, obj), obj, revisionOf(obj))
	default:
		return "", fmt.Errorf("watch event of unknown type %q", kind)
	}
	return revision, nil
}
