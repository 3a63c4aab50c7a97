package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// View is how the entries of one kind are shown: in a version, whole or only
// their metadata. The bytes of an entry are made once and kept with it. A View is
// immutable and safe for concurrent use.
type View struct {
	Kind    *api.Kind
	Version *api.Version
	// GVK is the type of one object as sent, List that of a list.
	GVK, List schema.GroupVersionKind

	ctx        context.Context // bounds conversions, never nil
	cache      *Cache
	metadata   bool // only metadata is sent
	noProtobuf bool
	loose      bool // list items keep kind and apiVersion
	head       []byte
	// The names under which encodings are kept with an entry.
	json, protobuf, leftJSON, leftProtobuf string
}

// NewView shows whole objects of a kind in a version. The cache bounds what entries keep of it.
func NewView(k *api.Kind, v *api.Version, cache *Cache) *View {
	gvk := schema.GroupVersionKind{Group: k.Group, Version: v.Name, Kind: k.Kind}
	list := gvk.GroupVersion().WithKind(k.Kind + "List")
	empty := v.New()
	if v.NewList != nil {
		if l := v.NewList(); l != nil {
			if have := l.GetObjectKind().GroupVersionKind().Kind; have != "" {
				list.Kind = have
			}
		}
	}
	_, loose := empty.(runtime.Unstructured)
	return newView(k, v, cache, gvk, list, false, loose, !HasProtobuf(empty))
}

// serial numbers the views of custom resources.
var serial atomic.Int64

// For is the same view with the context of a request, which bounds what has to be asked of others to convert objects.
func (v *View) For(ctx context.Context) *View {
	if v.Version.Convert == nil {
		return v
	}
	c := *v
	c.ctx = ctx
	return &c
}

// Metadata is the view of the same objects as PartialObjectMetadata of a version of
// meta.k8s.io.
func (v *View) Metadata(version string) *View {
	gv := schema.GroupVersion{Group: metav1.GroupName, Version: version}
	return newView(v.Kind, v.Version, v.cache, gv.WithKind("PartialObjectMetadata"), gv.WithKind("PartialObjectMetadataList"), true, true, false).For(v.ctx)
}

func newView(k *api.Kind, v *api.Version, cache *Cache, gvk, list schema.GroupVersionKind, metadata, loose, noProtobuf bool) *View {
	id := gvk.GroupVersion().String()
	if v.Convert != nil {
		// What a definition shows of its objects changes when it does.
		id += fmt.Sprintf(" %d", serial.Add(1))
	}
	return &View{
		ctx: context.Background(), Kind: k, Version: v, cache: cache, GVK: gvk, List: list, metadata: metadata, loose: loose, noProtobuf: noProtobuf,
		head: head(gvk), json: "json " + id, protobuf: "protobuf " + id,
		leftJSON: "left json " + id, leftProtobuf: "left protobuf " + id,
	}
}

// NoProtobuf tells that the objects have no protobuf form.
func (v *View) NoProtobuf() bool { return v.noProtobuf }

// Object returns the object in the view's version; it may be shared.
func (v *View) Object(obj api.Object) (runtime.Object, error) {
	out, err := FromHub(v.ctx, v.Version, obj)
	if err != nil || !v.metadata {
		return out, err
	}
	if meta, ok := out.(metav1.Object); ok {
		return partial(meta), nil
	}
	return partial(obj), nil
}

// Loaded returns entries whose objects are in the view's version, for kinds that convert many objects at once; all
// others come back as they are.
func (v *View) Loaded(entries []*store.Entry) ([]*store.Entry, error) {
	if v.Version.Convert == nil || len(entries) == 0 {
		return entries, nil
	}
	objs := make([]api.Object, len(entries))
	for i, e := range entries {
		objs[i] = e.Object.(api.Object)
	}
	out, err := v.Version.Convert(v.ctx, objs)
	if err != nil {
		return nil, err
	}
	loaded := make([]*store.Entry, len(entries))
	for i, e := range entries {
		loaded[i] = e
		if out[i] != objs[i] {
			loaded[i] = &store.Entry{Key: e.Key, Revision: e.Revision, Created: e.Created, Object: out[i]}
		}
	}
	return loaded, nil
}

// warm makes the encodings of those entries that have none yet, so that they are converted together.
func (v *View) warm(entries []*store.Entry) error {
	if v.Version.Convert == nil || len(entries) < 2 {
		return nil
	}
	var cold []*store.Entry
	for _, e := range entries {
		missing := e.Revision != 0
		if missing {
			_, err := e.Encoding(v.json, func() ([]byte, error) { return nil, errCold })
			missing = err != nil
		}
		if missing {
			cold = append(cold, e)
		}
	}
	loaded, err := v.Loaded(cold)
	if err != nil {
		return err
	}
	for i, e := range cold {
		if _, err := e.Encoding(v.json, func() ([]byte, error) { return v.kept(JSON, e, loaded[i].Object.(api.Object)) }); err != nil {
			return err
		}
	}
	return nil
}

var errCold = errors.New("not encoded yet")

// Encode gives an object as complete JSON, or as a bare protobuf message.
func (v *View) Encode(media Media, obj api.Object) ([]byte, error) {
	out, err := v.Object(obj)
	if err != nil {
		return nil, err
	}
	if media == Protobuf {
		return encodeProtobuf(out)
	}
	return encodeJSON(out, v.GVK, v.head)
}

// Entry is Encode of an entry's object. The bytes are shared. Entries that are not in the
// store (revision 0) keep nothing.
func (v *View) Entry(media Media, e *store.Entry) ([]byte, error) {
	obj := e.Object.(api.Object)
	if e.Revision == 0 {
		return v.Encode(media, obj)
	}
	name := v.json
	if media == Protobuf {
		name = v.protobuf
	}
	return e.Encoding(name, func() ([]byte, error) { return v.kept(media, e, obj) })
}

// kept encodes an object whose bytes stay with an entry.
func (v *View) kept(media Media, e *store.Entry, obj api.Object) ([]byte, error) {
	data, err := v.Encode(media, obj)
	if err == nil && v.cache != nil {
		v.cache.add(e, len(data))
	}
	return data, err
}

// Left is how the previous state of an object is shown to a watcher whose selection it
// has left: as it was, at the revision of the event.
func (v *View) Left(media Media, ev store.Event) ([]byte, error) {
	name := v.leftJSON
	if media == Protobuf {
		name = v.leftProtobuf
	}
	return ev.Entry.Encoding(name, func() ([]byte, error) {
		return v.kept(media, ev.Entry, Restamp(ev.Prev.Object.(api.Object), ev.Entry.Revision))
	})
}

// Restamp is a copy of an object that shows another revision.
func Restamp(obj api.Object, rev store.Revision) api.Object {
	c := Shallow(obj)
	c.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
	return c
}

// One is the body of a response with one entry.
func (v *View) One(media Media, e *store.Entry) (Body, error) {
	data, err := v.Entry(protobufOr(media), e)
	if err != nil {
		return Body{}, err
	}
	if media == Protobuf {
		return newBody(envelopeHead(v.GVK, len(data)), data, envelopeTail), nil
	}
	return newBody(data, newline), nil
}

// protobufOr is the media in which bytes are kept: YAML is made from JSON.
func protobufOr(m Media) Media {
	if m == Protobuf {
		return Protobuf
	}
	return JSON
}

// Many is the body of a response with a list of entries. It holds references to the
// bytes kept with the entries, not a copy of them.
func (v *View) Many(media Media, meta metav1.ListMeta, entries []*store.Entry) (Body, error) {
	if media == Protobuf {
		return v.manyProtobuf(meta, entries)
	}
	if err := v.warm(entries); err != nil {
		return Body{}, err
	}
	m, err := json.Marshal(meta)
	if err != nil {
		return Body{}, err
	}
	start := head(v.List)
	start = append(start, `,"metadata":`...)
	start = append(start, m...)
	start = append(start, `,"items":[`...)
	b := Body{parts: make([][]byte, 0, 2*len(entries)+2)}
	b.add(start)
	for i, e := range entries {
		data, err := v.Entry(JSON, e)
		if err != nil {
			return Body{}, err
		}
		open := openItem
		if i > 0 {
			open = nextItem
		}
		if v.loose {
			open, data = open[:len(open)-1], data[:]
		} else {
			data = data[len(v.head)+1:]
		}
		if len(open) > 0 {
			b.add(open)
		}
		b.add(data)
	}
	b.add(closeList)
	return b, nil
}

var (
	openItem  = []byte("{")
	nextItem  = []byte(",{")
	closeList = []byte("]}\n")
)

// manyProtobuf: every list type has its metadata in field 1 and its items in field 2.
func (v *View) manyProtobuf(meta metav1.ListMeta, entries []*store.Entry) (Body, error) {
	m, err := meta.Marshal()
	if err != nil {
		return Body{}, err
	}
	b := Body{parts: make([][]byte, 1, 2*len(entries)+3)}
	b.add(appendField(nil, 1, m))
	heads := make([]byte, 0, 5*len(entries))
	for _, e := range entries {
		data, err := v.Entry(Protobuf, e)
		if err != nil {
			return Body{}, err
		}
		from := len(heads)
		heads = append(heads, 2<<3|2)
		heads = binary.AppendUvarint(heads, uint64(len(data)))
		b.add(heads[from:len(heads):len(heads)])
		b.add(data)
	}
	start := envelopeHead(v.List, b.size)
	b.parts[0] = start
	b.size += len(start)
	b.add(envelopeTail)
	return b, nil
}
