package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Source is a resource that is mirrored by list and watch.
type Source struct {
	// Resource is the canonical resource name.
	Resource string
	// FieldSelector narrows it on the server, "" for all objects.
	FieldSelector string
	// Match tells whether an object that was written is one of those that FieldSelector selects. Nil: all are.
	Match func(api.Object) bool
	// Trim takes out of an object what nobody here reads, to save memory. It may change the object. Nil: nothing.
	Trim func(api.Object)
	// Optional sources are not waited for: the server may not have the resource.
	Optional bool
}

// Config says what to mirror and how to reach the server.
type Config struct {
	// Server is the URL of the API, "https://10.0.0.1:6443".
	Server string
	// TLS says whom to believe and who we are; nil for what net/http does by itself.
	TLS *tls.Config
	// Token, if not empty, is sent as bearer token.
	Token string
	// Registry has the kinds of all resources that are read or written.
	Registry *api.Registry
	Sources  []Source
	// Needs gives the single objects without which obj is of no use to its readers. It is pure. Nil: none.
	Needs func(obj api.Object) []store.Key
	// Watchable tells whether single objects of a resource may be watched; others are asked for again from time to time.
	Watchable func(resource string) bool
	// Settled tells that a single object that cannot be watched need not be asked for often any more. Nil: all are.
	Settled func(obj api.Object) bool
	// Objects are single objects that are mirrored whoever needs them.
	Objects []store.Key
	// Keep are resources of which the client remembers the objects that it wrote itself, and how many at most.
	Keep map[string]int
	// Patience is for how long an object is held back for what it needs, 10 s if zero.
	Patience time.Duration
	// Window is how many past events of a resource are kept for slow cursors, 512 if zero.
	Window int
	Log    *slog.Logger
}

// Client is a client.Client. Reads cost what those of a store in memory do. It is safe for concurrent use.
type Client struct {
	cfg    Config
	mirror *mirror

	mu        sync.Mutex // guards what follows
	transport *http.Transport

	sources []*source
	running sync.WaitGroup
}

var _ client.Client = (*Client)(nil)

// New makes a client. Writes work at once, the mirror is empty until Run.
func New(cfg Config) (*Client, error) {
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.Window == 0 {
		cfg.Window = 512
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Server = strings.TrimSuffix(cfg.Server, "/")
	c := &Client{cfg: cfg}
	c.transport = c.newTransport()
	c.mirror = newMirror(c)
	for _, s := range cfg.Sources {
		k := cfg.Registry.ByName(s.Resource)
		if k == nil {
			return nil, fmt.Errorf("mirror: %s is not registered", s.Resource)
		}
		c.sources = append(c.sources, newSource(c, k, s))
	}
	return c, nil
}

// Run keeps the mirror until ctx is done. It is called once.
func (c *Client) Run(ctx context.Context) error {
	c.mirror.begin(ctx)
	for _, s := range c.sources {
		c.running.Go(func() { s.run(ctx) })
	}
	for _, key := range c.cfg.Objects {
		c.mirror.keepSingle(key)
	}
	<-ctx.Done()
	c.running.Wait()
	c.mirror.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.transport.CloseIdleConnections()
	return nil
}

// WaitSynced returns when every Source that is not optional was listed once and Config.Objects were asked for.
// The error says what is missing and why.
func (c *Client) WaitSynced(ctx context.Context) error {
	for _, s := range c.sources {
		if s.Optional {
			continue
		}
		select {
		case <-s.synced:
		case <-ctx.Done():
			return fmt.Errorf("%s cannot be read: %w", s.Resource, errors.Join(s.lastError(), ctx.Err()))
		}
	}
	for _, key := range c.cfg.Objects {
		if err := c.mirror.awaitSingle(ctx, key); err != nil {
			return fmt.Errorf("%s cannot be read: %w", key, err)
		}
	}
	return nil
}

// Problem says why the mirror does not follow the server at present, nil if it does.
func (c *Client) Problem() error {
	for _, s := range c.sources {
		if err := s.lastError(); err != nil && !s.Optional {
			return fmt.Errorf("%s: %w", s.Resource, err)
		}
	}
	return nil
}

// Renew has connections made from now on with the certificate that Config.TLS gives now; those that are open
// live until their requests have ended.
func (c *Client) Renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.transport
	c.transport = c.newTransport()
	old.CloseIdleConnections()
}

// Snapshot implements client.Reader.
func (c *Client) Snapshot() store.Snapshot { return c.mirror.store.Snapshot() }

// Cursor implements client.Reader.
func (c *Client) Cursor(from store.Revision, resources ...string) (store.Cursor, error) {
	return c.mirror.store.Cursor(from, resources...)
}

// Create implements client.Writer.
func (c *Client) Create(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	out, err := c.write(ctx, http.MethodPost, resource, obj, opts)
	if apierrors.IsAlreadyExists(err) && opts.Subresource == "" && obj.GetName() != "" {
		c.refresh(ctx, keyOf(resource, obj))
	}
	return out, err
}

// Update implements client.Writer.
func (c *Client) Update(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	out, err := c.write(ctx, http.MethodPut, resource, obj, opts)
	switch key := keyOf(resource, obj); {
	case apierrors.IsConflict(err):
		c.refresh(ctx, key)
	case apierrors.IsNotFound(err):
		c.mirror.forget(key)
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		// The server judges an update before it compares revisions: what was refused may only have been old.
		c.refresh(ctx, key)
		if now := c.mirror.current(key); now != nil && obj.GetResourceVersion() != "" && revisionOf(now) > revisionOf(obj) {
			err = apierrors.NewConflict(schema.ParseGroupResource(resource), obj.GetName(),
				errors.New("the object has been modified; please apply your changes to the latest version and try again"))
		}
	}
	return out, err
}

func (c *Client) write(ctx context.Context, method, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	k, err := c.kind(resource)
	if err != nil {
		return nil, err
	}
	body, media, err := encode(k, obj)
	if err != nil {
		return nil, err
	}
	r := request{method: method, kind: k, namespace: obj.GetNamespace(), name: obj.GetName(), subresource: opts.Subresource, body: body, media: media}
	if method == http.MethodPost && opts.Subresource == "" {
		r.name = ""
	}
	if opts.FieldManager != "" {
		r.set("fieldManager", opts.FieldManager)
	}
	answer, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := decode(c.mirror.codec, resource, answer)
	if err != nil {
		return nil, err
	}
	if obj, ok := out.(api.Object); ok {
		return c.mirror.wrote(resource, obj), nil
	}
	return nil, fmt.Errorf("%s: the server answered with %T", resource, out)
}

// refresh has the mirror know the present version of an object that it turned out not to know. An object that may not
// be read is forgotten.
func (c *Client) refresh(ctx context.Context, key store.Key) {
	if !c.mirror.tracks(key) {
		return
	}
	obj, err := c.get(ctx, key)
	switch {
	case err == nil:
		c.mirror.wrote(key.Resource, obj)
	case apierrors.IsNotFound(err):
		c.mirror.forget(key)
	case apierrors.IsForbidden(err), apierrors.IsMethodNotSupported(err):
		c.mirror.hide(key)
	}
}

// get reads one object from the server.
func (c *Client) get(ctx context.Context, key store.Key) (api.Object, error) {
	k, err := c.kind(key.Resource)
	if err != nil {
		return nil, err
	}
	answer, err := c.do(ctx, request{method: http.MethodGet, kind: k, namespace: key.Namespace, name: key.Name})
	if err != nil {
		return nil, err
	}
	out, err := decode(c.mirror.codec, key.Resource, answer)
	if err != nil {
		return nil, err
	}
	return out.(api.Object), nil
}

// Get reads one object from the server itself, past the mirror.
func (c *Client) Get(ctx context.Context, resource, namespace, name string) (api.Object, error) {
	return c.get(ctx, store.Key{Resource: resource, Namespace: namespace, Name: name})
}

// Delete implements client.Writer.
func (c *Client) Delete(ctx context.Context, ref client.Ref, opts client.DeleteOptions) error {
	k, err := c.kind(ref.Resource)
	if err != nil {
		return err
	}
	how := &metav1.DeleteOptions{GracePeriodSeconds: opts.GraceSeconds}
	if opts.UID != "" || opts.ResourceVersion != "" {
		how.Preconditions = &metav1.Preconditions{}
		if opts.UID != "" {
			how.Preconditions.UID = &opts.UID
		}
		if opts.ResourceVersion != "" {
			how.Preconditions.ResourceVersion = &opts.ResourceVersion
		}
	}
	if opts.Propagation != "" {
		how.PropagationPolicy = &opts.Propagation
	}
	body, err := envelope("v1", "DeleteOptions", how)
	if err != nil {
		return err
	}
	key := store.Key{Resource: ref.Resource, Namespace: ref.Namespace, Name: ref.Name}
	known := c.mirror.uid(key)
	answer, err := c.do(ctx, request{method: http.MethodDelete, kind: k, namespace: ref.Namespace, name: ref.Name, body: body, media: protobufMedia})
	switch {
	case apierrors.IsNotFound(err):
		c.mirror.forgetUID(key, known)
		return err
	case apierrors.IsConflict(err):
		c.refresh(ctx, key)
		return err
	case err != nil:
		return err
	}
	if answer.isStatus() {
		c.mirror.forgetUID(key, known)
		return nil
	}
	if out, err := decode(c.mirror.codec, ref.Resource, answer); err == nil {
		if obj, ok := out.(api.Object); ok {
			c.mirror.wrote(ref.Resource, obj)
		}
	}
	return nil
}

// Bind implements client.Writer.
func (c *Client) Bind(ctx context.Context, namespace, pod string, uid types.UID, node string) error {
	k, err := c.kind(client.Pods.Name)
	if err != nil {
		return err
	}
	b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod, UID: uid},
		Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	body, err := envelope("v1", "Binding", b)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, request{method: http.MethodPost, kind: k, namespace: namespace, name: pod, subresource: "binding", body: body, media: protobufMedia})
	key := store.Key{Resource: client.Pods.Name, Namespace: namespace, Name: pod}
	if err == nil || apierrors.IsConflict(err) {
		c.refresh(ctx, key)
	}
	return err
}

func (c *Client) kind(resource string) (*api.Kind, error) {
	if k := c.cfg.Registry.ByName(resource); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%s is not registered", resource)
}

func keyOf(resource string, obj api.Object) store.Key {
	return store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
}
