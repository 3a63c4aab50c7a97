package list

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/store"
)

// Page is what a LIST answers.
type Page struct {
	Meta    metav1.ListMeta
	Entries []*store.Entry
}

// Lister answers LIST requests. It keeps the snapshots of chunked lists for as long
// as their clients may come back. It is safe for concurrent use.
type Lister struct {
	Store store.Store
	Now   func() time.Time

	pins pins
}

// token is a continue token, in upstream's form: the revision of the list and the
// key from which it goes on, below the resource (and the namespace of the request).
type token struct {
	Version  string         `json:"v"`
	Revision store.Revision `json:"rv"`
	Start    string         `json:"start"`
}

func (t token) encode() string {
	data, _ := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(data)
}

// decodeToken reads a token; the errors are those of upstream.
func decodeToken(s string) (token, error) {
	var t token
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	switch {
	case err != nil:
		return t, fmt.Errorf("continue key is not valid: %v", err)
	case t.Version != "meta.k8s.io/v1":
		return t, fmt.Errorf("continue key is not valid: server does not recognize this encoded version %v", t.Version)
	case t.Revision == 0:
		return t, errors.New("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case t.Start == "":
		return t, errors.New("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)")
	case strings.Contains("/"+t.Start+"/", "/../"), strings.Contains("/"+t.Start+"/", "/./"), strings.Contains(t.Start, "//"):
		return t, fmt.Errorf("continue key is not valid: %v", t.Start)
	}
	return t, nil
}

// List answers a request. namespace is that of the path, namespaced that of the kind.
func (l *Lister) List(ctx context.Context, sel *Selection, namespace string, namespaced bool, o Options) (Page, error) {
	snap, after, err := l.place(ctx, sel, namespace, namespaced, o)
	if err != nil {
		return Page{}, err
	}
	page := Page{Meta: metav1.ListMeta{ResourceVersion: revision(snap)}}
	if o.Limit == 0 {
		if after == nil && sel.index == "" && sel.name == "" {
			page.Entries = make([]*store.Entry, 0, snap.Count(sel.resource, sel.namespace))
		}
		for e, err := range sel.Walk(ctx, snap, after) {
			if err != nil {
				return Page{}, err
			}
			page.Entries = append(page.Entries, e)
		}
		return page, nil
	}
	more := int64(0)
	for e, err := range sel.Walk(ctx, snap, after) {
		if err != nil {
			return Page{}, err
		}
		if int64(len(page.Entries)) < o.Limit {
			page.Entries = append(page.Entries, e)
			continue
		}
		more++
		if !sel.All() {
			break
		}
		if after == nil {
			more = int64(snap.Count(sel.resource, sel.namespace)) - o.Limit
			break
		}
	}
	if more == 0 {
		return page, nil
	}
	last := page.Entries[len(page.Entries)-1].Key
	page.Meta.Continue = token{"meta.k8s.io/v1", snap.Revision(), start(last, namespace, namespaced) + "\x00"}.encode()
	if sel.All() {
		page.Meta.RemainingItemCount = &more
	}
	l.pins.hold(snap, o.Continue != "", l.Now())
	return page, nil
}

// start is the key of the last entry as a token names it.
func start(key store.Key, namespace string, namespaced bool) string {
	if namespaced && namespace == "" {
		return key.Namespace + "/" + key.Name
	}
	return key.Name
}

// place finds the snapshot to list, and behind which key.
func (l *Lister) place(ctx context.Context, sel *Selection, namespace string, namespaced bool, o Options) (store.Snapshot, *store.Key, error) {
	if o.Continue != "" {
		return l.resume(sel, namespace, namespaced, o)
	}
	want, errs := ParseRevision(o.ResourceVersion)
	if len(errs) > 0 {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", errs.ToAggregate()))
	}
	exact := o.Match == metav1.ResourceVersionMatchExact || o.Match == "" && o.Limit > 0 && want > 0
	snap, err := l.Fresh(ctx, want)
	if err != nil || !exact || snap.Revision() == want {
		return snap, nil, err
	}
	snap, err = l.Store.SnapshotAt(want, sel.resource)
	if errors.Is(err, store.ErrCompacted) {
		return nil, nil, apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	}
	return snap, nil, err
}

// resume goes on where a token ends, in the state that the first chunk was taken from.
func (l *Lister) resume(sel *Selection, namespace string, namespaced bool, o Options) (store.Snapshot, *store.Key, error) {
	if o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return nil, nil, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	t, err := decodeToken(o.Continue)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	key := store.Key{Resource: sel.resource, Namespace: namespace, Name: strings.TrimSuffix(t.Start, "\x00")}
	if namespaced && namespace == "" {
		key.Namespace, key.Name, _ = strings.Cut(key.Name, "/")
	}
	if t.Revision < 0 {
		return l.Store.Snapshot(), &key, nil
	}
	snap, over := l.pins.get(t.Revision, l.Now())
	switch {
	case over:
		return nil, nil, continueExpired(t)
	case snap != nil:
		return snap, &key, nil
	}
	snap, err = l.Store.SnapshotAt(t.Revision, sel.resource)
	switch {
	case errors.Is(err, store.ErrCompacted):
		return nil, nil, continueExpired(t)
	case errors.Is(err, store.ErrFuture):
		return nil, nil, TooLarge(t.Revision, l.Store.Snapshot().Revision())
	}
	return snap, &key, err
}

// continueExpired is the 410 for a chunk whose state is gone, with the token that goes on in the present.
func continueExpired(t token) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list.")
	t.Revision = -1
	err.ErrStatus.ListMeta.Continue = t.encode()
	return err
}

// freshFor is how long a request waits for a revision that was not reached yet.
const freshFor = 3 * time.Second

// Fresh returns the present as soon as it includes a revision, or the error that it is too large.
func (l *Lister) Fresh(ctx context.Context, want store.Revision) (store.Snapshot, error) {
	snap := l.Store.Snapshot()
	if snap.Revision() >= want {
		return snap, nil
	}
	cursor, err := l.Store.Cursor(snap.Revision())
	if err != nil {
		return nil, TooLarge(want, snap.Revision())
	}
	ctx, cancel := context.WithTimeout(ctx, freshFor)
	defer cancel()
	for {
		if _, err := cursor.Next(ctx); err != nil {
			return nil, TooLarge(want, l.Store.Snapshot().Revision())
		}
		if snap = l.Store.Snapshot(); snap.Revision() >= want {
			return snap, nil
		}
	}
}

func revision(s store.Snapshot) string { return strconv.FormatInt(int64(s.Revision()), 10) }
