package client

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// StoreOptions are the options of a store that holds objects of a registry's
// kinds, and of custom resources whose kind is not registered yet. window is
// store.Options.Window.
func StoreOptions(reg *api.Registry, window int) store.Options {
	return store.Options{
		Codec:   &codec{reg: reg},
		Stamp:   stamp,
		Clone:   clone,
		Indexes: Indexes(reg),
		Window:  window,
	}
}

// stamp sets metadata.resourceVersion.
func stamp(obj any, rev store.Revision) {
	obj.(api.Object).SetResourceVersion(strconv.FormatInt(int64(rev), 10))
}

// clone copies an object so far that its metadata fields can be set without changing the
// original. Everything behind pointers, slices and maps is shared.
func clone(obj any) any {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return cloneUnstructured(u)
	}
	v := reflect.ValueOf(obj).Elem()
	c := reflect.New(v.Type())
	c.Elem().Set(v)
	return c.Interface()
}

func cloneUnstructured(u *unstructured.Unstructured) *unstructured.Unstructured {
	content := make(map[string]any, len(u.Object))
	for k, v := range u.Object {
		content[k] = v
	}
	if meta, ok := content["metadata"].(map[string]any); ok {
		c := make(map[string]any, len(meta))
		for k, v := range meta {
			c[k] = v
		}
		content["metadata"] = c
	}
	return &unstructured.Unstructured{Object: content}
}

// codec is the store.Codec for API objects. Its bytes are those that upstream's
// API server keeps in etcd: for kinds with generated protobuf the four bytes
// "k8s\0" and a runtime.Unknown message around the object's own, JSON for the others
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding).
type codec struct {
	reg   *api.Registry
	forms atomic.Pointer[forms]
}

// forms is what was derived from one generation of the registry. It has no custom resources: they are stored as the JSON that they
// are, and what is kept until the next generation must not keep a definition that went.
type forms struct {
	generation int64
	byResource map[string]*form
}

// form is how one resource is stored.
type form struct {
	kind *api.Kind
	hub  *api.Version
	gvk  schema.GroupVersionKind
	// prefix is the magic and the TypeMeta of the envelope, up to the length of the object.
	prefix []byte
}

// message is what every type with generated protobuf code has.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

var (
	magic = []byte("k8s\x00")
	// trailer is the empty contentEncoding and contentType that end the envelope.
	trailer = []byte{0x1a, 0, 0x22, 0}
)

// Tags of the fields of runtime.Unknown and runtime.TypeMeta, all length-delimited.
const (
	tagTypeMeta   = 0x0a
	tagRaw        = 0x12
	tagAPIVersion = 0x0a
	tagKind       = 0x12
)

func newForm(k *api.Kind) *form {
	f := &form{kind: k, hub: k.Hub()}
	f.gvk = schema.GroupVersionKind{Group: k.Group, Version: f.hub.Name, Kind: k.Kind}
	apiVersion := f.gvk.GroupVersion().String()
	meta := appendField(nil, tagAPIVersion, apiVersion)
	meta = appendField(meta, tagKind, k.Kind)
	f.prefix = append(bytes.Clone(magic), appendField(nil, tagTypeMeta, string(meta))...)
	return f
}

func appendField(b []byte, tag byte, value string) []byte {
	b = binary.AppendUvarint(append(b, tag), uint64(len(value)))
	return append(b, value...)
}

// verbatim tells that the objects of a kind are stored as the JSON that they are, in whichever version.
func verbatim(k *api.Kind) bool {
	_, loose := k.Hub().New().(*unstructured.Unstructured)
	return loose && !slices.ContainsFunc(k.Versions, func(v api.Version) bool { return v.ToHub != nil })
}

// form returns how a resource is stored, nil for custom resources and for what is not registered.
func (c *codec) form(resource string) *form {
	fs := c.forms.Load()
	if g := c.reg.Generation(); fs == nil || fs.generation != g {
		fs = &forms{g, make(map[string]*form)}
		for _, k := range c.reg.All() {
			if s := storedKind(c.reg, k.Name()); s != nil && s.Hub() != nil && !verbatim(s) {
				fs.byResource[k.Name()] = newForm(s)
			}
		}
		c.forms.Store(fs)
	}
	return fs.byResource[resource]
}

// Encode implements store.Codec.
func (c *codec) Encode(key store.Key, obj any) ([]byte, error) {
	o, ok := obj.(api.Object)
	if !ok {
		return nil, fmt.Errorf("encode %s: %T is not an API object", key, obj)
	}
	if o.GetResourceVersion() != "" || o.GetSelfLink() != "" {
		o = clone(o).(api.Object)
		o.SetResourceVersion("")
		o.SetSelfLink("")
	}
	if u, ok := o.(*unstructured.Unstructured); ok {
		return json.Marshal(u.Object)
	}
	f := c.form(key.Resource)
	if f == nil {
		return nil, fmt.Errorf("encode %s: the resource is not registered", key)
	}
	if m, ok := o.(message); ok {
		return f.envelope(m)
	}
	// The clone keeps the caller's TypeMeta as it is.
	o = clone(o).(api.Object)
	o.GetObjectKind().SetGroupVersionKind(f.gvk)
	return json.Marshal(o)
}

// envelope puts a message into the stored form, with one allocation.
func (f *form) envelope(m message) ([]byte, error) {
	size := m.Size()
	data := make([]byte, 0, len(f.prefix)+1+binary.MaxVarintLen64+size+len(trailer))
	data = append(data, f.prefix...)
	data = binary.AppendUvarint(append(data, tagRaw), uint64(size))
	start := len(data)
	data = data[:start+size]
	n, err := m.MarshalToSizedBuffer(data[start:])
	if err != nil {
		return nil, err
	}
	if n != size {
		return nil, fmt.Errorf("%s changed while it was encoded", f.gvk.Kind)
	}
	return append(data, trailer...), nil
}

// Decode implements store.Codec. Typed objects come back with an empty TypeMeta.
func (c *codec) Decode(key store.Key, data []byte) (any, error) {
	f := c.form(key.Resource)
	var obj any
	var err error
	switch {
	case bytes.HasPrefix(data, magic):
		obj, err = decodeProtobuf(f, data)
	case len(data) > 0 && data[0] == '{':
		obj, err = decodeJSON(f, data)
	default:
		err = errors.New("neither protobuf nor JSON")
	}
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", key, err)
	}
	return obj, nil
}

func decodeProtobuf(f *form, data []byte) (any, error) {
	if f == nil {
		return nil, errors.New("the resource is not registered")
	}
	if bytes.HasPrefix(data, f.prefix) {
		if raw, ok := rawField(data[len(f.prefix):]); ok {
			return f.decodeMessage(f.hub, raw)
		}
	}
	// Written by someone else: another version, or fields in another order.
	var env runtime.Unknown
	if err := env.Unmarshal(data[len(magic):]); err != nil {
		return nil, err
	}
	if env.ContentEncoding != "" {
		return nil, fmt.Errorf("content encoding %q is not known", env.ContentEncoding)
	}
	v, err := f.version(env.APIVersion, env.Kind)
	if err != nil {
		return nil, err
	}
	return f.decodeMessage(v, env.Raw)
}

// rawField takes the object out of an envelope, if that is what follows and nothing
// but the trailer stands behind it.
func rawField(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != tagRaw {
		return nil, false
	}
	size, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return nil, false
	}
	b = b[1+n:]
	if size > uint64(len(b)) || !bytes.Equal(b[size:], trailer) {
		return nil, false
	}
	return b[:size], true
}

// version finds the version in which an object was stored.
func (f *form) version(apiVersion, kind string) (*api.Version, error) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, err
	}
	v := f.kind.Version(gv.Version)
	if gv.Group != f.kind.Group || kind != f.kind.Kind || v == nil {
		return nil, fmt.Errorf("stored as %s %s, which is not a version of %s", apiVersion, kind, f.gvk.GroupKind())
	}
	return v, nil
}

func (f *form) decodeMessage(v *api.Version, raw []byte) (any, error) {
	obj := v.New()
	m, ok := obj.(message)
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf form", obj)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, err
	}
	return f.toHub(v, obj)
}

func (f *form) toHub(v *api.Version, obj runtime.Object) (any, error) {
	if v.ToHub != nil && !v.Hub {
		return v.ToHub(obj)
	}
	if o, ok := obj.(api.Object); ok && v.Hub {
		return o, nil
	}
	return nil, fmt.Errorf("%T cannot be converted to %s", obj, f.gvk)
}

// decodeJSON decodes into the hub type or, without a form, into an unstructured object, in the version in which it was stored.
func decodeJSON(f *form, data []byte) (any, error) {
	if f == nil {
		return decodeUnstructured(data)
	}
	if _, ok := f.hub.New().(*unstructured.Unstructured); ok {
		u, err := decodeUnstructured(data)
		if err != nil {
			return nil, err
		}
		// A version that the definition no longer has stays as it is.
		v, err := f.version(u.GetAPIVersion(), u.GetKind())
		if err != nil || v.Hub || v.ToHub == nil {
			return u, nil
		}
		return v.ToHub(u)
	}
	var meta runtime.TypeMeta
	if err := json.Unmarshal(data, &meta); err != nil {
		return nil, err
	}
	v, err := f.version(meta.APIVersion, meta.Kind)
	if err != nil {
		return nil, err
	}
	obj := v.New()
	if err := utiljson.Unmarshal(data, obj); err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return f.toHub(v, obj)
}

func decodeUnstructured(data []byte) (*unstructured.Unstructured, error) {
	var content map[string]any
	if err := utiljson.Unmarshal(data, &content); err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: content}, nil
}
