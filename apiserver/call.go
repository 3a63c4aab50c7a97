package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/apiserver/table"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// call is one request for objects on its way through the server. It belongs to one goroutine.
type call struct {
	*Server
	x       *exchange
	w       http.ResponseWriter // x, or what stands before it
	r       *http.Request
	info    route.Info
	user    client.User
	query   url.Values
	kind    *api.Kind
	version *api.Version
	sub     *api.Subresource // nil for the main resource
	warned  warnings
}

// warnings gathers what the client is to be told, each once.
type warnings struct {
	seen  map[string]bool
	runes int
}

// maxWarnings is how many characters of warnings a response carries, maxWarning how many of one warning
// once there are too many.
const (
	maxWarnings = 4 * 1024
	maxWarning  = 256
)

// warn adds a Warning header (RFC 7234, 299).
func (c *call) warn(text string) {
	if text == "" || c.warned.seen[text] {
		return
	}
	if c.warned.seen == nil {
		c.warned.seen = map[string]bool{}
	}
	c.warned.seen[text] = true
	n := utf8.RuneCountInString(text)
	if c.warned.runes+n > maxWarnings {
		if n > maxWarning {
			text, n = string([]rune(text)[:maxWarning]), maxWarning
		}
		if c.warned.runes+n > 2*maxWarnings {
			return
		}
	}
	c.warned.runes += n
	if header, err := utilnet.NewWarningHeader(299, "-", text); err == nil {
		c.w.Header().Add("Warning", header)
	}
}

func (c *call) warnStrict(errs []error) {
	for _, w := range wire.StrictWarnings(errs) {
		c.warn(w)
	}
}

// target is where a write of this request goes.
func (c *call) target() write.Target {
	t := write.Target{
		Kind: c.kind, Version: c.version.Name, Subresource: c.info.Subresource,
		Namespace: c.info.Namespace, Name: c.info.Name, User: c.user, Warn: c.warn,
	}
	if !c.kind.Namespaced {
		t.Namespace = ""
	}
	if c.x.audit != nil {
		t.Annotate, t.AnnotateBodies = c.x.audit.Annotate, c.x.audit.WantsRequest()
	}
	return t
}

// view is Server.view bound to the request.
func (c *call) view(k *api.Kind, v *api.Version) *wire.View {
	return c.Server.view(k, v).For(c.r.Context())
}

// gvk is the type of the endpoint's main resource.
func (c *call) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: c.kind.Group, Version: c.version.Name, Kind: c.kind.Kind}
}

// key is where the named object is stored.
func (c *call) key() store.Key { return write.Key(c.kind, c.info.Namespace, c.info.Name) }

// current reads the named object, or gives 404.
func (c *call) current() (*store.Entry, error) {
	if e := c.cfg.Store.Snapshot().Get(c.key()); e != nil {
		return e, nil
	}
	return nil, apierrors.NewNotFound(c.kind.GroupResource(), c.info.Name)
}

// offer is what responses with objects of this kind can be.
func (c *call) offer() wire.Offer {
	return wire.Offer{NoProtobuf: c.view(c.kind, c.version).NoProtobuf(), Transform: true}
}

// known tells whether a kind is served in a version.
func (c *call) known(gvk schema.GroupVersionKind) bool {
	k := c.cfg.Registry.ByKind(gvk.GroupKind())
	if k == nil {
		return gvk.GroupVersion() == schema.GroupVersion{Version: "v1"} && (gvk.Kind == "Status" || gvk.Kind == "DeleteOptions")
	}
	return k.Version(gvk.Version) != nil
}

// answer sends an entry.
func (c *call) answer(code int, e *store.Entry) error {
	accept, err := wire.Negotiate(c.r, c.offer())
	if err != nil {
		return err
	}
	view := c.view(c.kind, c.version)
	if accept.As != nil {
		switch accept.As.Kind {
		case "Table":
			return c.answerTable(code, accept, view, func(w *table.Writer) ([]byte, error) { return w.One(nil, e, true, c.cfg.Now()) })
		case "PartialObjectMetadata":
			view = view.Metadata(accept.As.Version)
		default:
			return wire.NotAcceptableMessage(fmt.Sprintf("you requested PartialObjectMetadataList, but the requested object is not a list (%T)", e.Object))
		}
	}
	body, err := view.One(accept.Media, e)
	if err != nil {
		return err
	}
	c.x.recordAnswer(accept.Media, body, func() (wire.Body, error) { return view.One(wire.JSON, e) })
	return c.send(code, accept, body)
}

func (c *call) answerTable(code int, accept wire.Accept, view *wire.View, fill func(*table.Writer) ([]byte, error)) error {
	opts, err := table.ParseOptions(c.query, accept.As.Version)
	if err != nil {
		return err
	}
	data, err := fill(table.NewWriter(view, opts))
	if err != nil {
		return err
	}
	return c.send(code, accept, wire.Raw(data))
}

// answerObject sends an object that is not an entry, of any type.
func (c *call) answerObject(code int, obj runtime.Object, gvk schema.GroupVersionKind) error {
	accept, err := wire.Negotiate(c.r, wire.Offer{NoProtobuf: !wire.HasProtobuf(obj), Transform: true})
	if err != nil {
		return err
	}
	accept.As = nil
	body, err := wire.Object(accept.Media, obj, gvk)
	if err != nil {
		return err
	}
	c.x.recordAnswer(accept.Media, body, func() (wire.Body, error) { return wire.Object(wire.JSON, obj, gvk) })
	if status, ok := obj.(*metav1.Status); ok {
		c.x.audit.Status(status)
	}
	return c.send(code, accept, body)
}

// send writes a response. From here on nothing can be answered otherwise.
func (c *call) send(code int, accept wire.Accept, body wire.Body) error {
	if err := wire.Respond(c.w, c.r, code, accept, accept.Media.String(), body); err != nil {
		return sentError{err}
	}
	return nil
}

// sentError is a failure after the response began.
type sentError struct{ error }

var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// fail answers with a Status.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var sent sentError
	if errors.As(err, &sent) {
		return
	}
	status := wire.StatusOf(err)
	if status.Code == http.StatusInternalServerError && r.Context().Err() == nil {
		s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "code", status.Code, "error", err)
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	accept, err := wire.Negotiate(r, wire.Offer{Transform: true})
	if err != nil {
		accept = wire.Accept{}
	}
	status.TypeMeta = metav1.TypeMeta{}
	if x, ok := w.(*exchange); ok && x.audit != nil {
		x.audit.Status(status)
		defer func() {
			x.recordAnswer(wire.Protobuf, wire.Body{}, func() (wire.Body, error) { return wire.Object(wire.JSON, status, statusKind) })
		}()
	}
	body, err := wire.Object(accept.Media, status, statusKind)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = wire.Respond(w, r, int(status.Code), accept, accept.Media.String(), body)
}

// requestTimeout is how long a request may take that does not stream.
const requestTimeout = 60 * time.Second

// deadline gives the context of a request that does not stream.
func (c *call) deadline() (context.Context, context.CancelFunc, error) {
	limit := requestTimeout
	if v := c.query.Get("timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - timeout: %q", v))
		}
		if d > 0 && d < limit {
			limit = d
		}
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), limit)
	return ctx, cancel, nil
}
