package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// keepBuffer is the greatest buffer that goes back into the pool.
const keepBuffer = 1 << 20

func withBuffer(f func(*bytes.Buffer) error) ([]byte, error) {
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= keepBuffer {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	if err := f(buf); err != nil {
		return nil, err
	}
	return slices.Clone(buf.Bytes()), nil
}

// head is how the JSON of an object of a type begins, up to and without the comma
// before the next field.
func head(gvk schema.GroupVersionKind) []byte {
	kind, _ := json.Marshal(gvk.Kind)
	version, _ := json.Marshal(gvk.GroupVersion().String())
	return fmt.Appendf(nil, `{"kind":%s,"apiVersion":%s`, kind, version)
}

// typed returns obj, or a copy of it, whose own TypeMeta is empty, so that the type can be
// written in front. Objects in the store are like that already.
func typed(obj runtime.Object, gvk schema.GroupVersionKind) runtime.Object {
	if have := obj.GetObjectKind().GroupVersionKind(); have.Empty() {
		return obj
	}
	c := Shallow(obj)
	c.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return c
}

// encodeJSON gives compact JSON that begins with head(gvk). Unstructured objects must
// be of the type already.
func encodeJSON(obj runtime.Object, gvk schema.GroupVersionKind, head []byte) ([]byte, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return json.Marshal(u.Object)
	}
	obj, fields := unmanaged(typed(obj, gvk))
	return withBuffer(func(buf *bytes.Buffer) error {
		buf.Write(head)
		at := buf.Len()
		if err := json.NewEncoder(buf).Encode(obj); err != nil {
			return err
		}
		if fields != nil && !putFields(buf, at, fields) {
			return fmt.Errorf("%T has no place for managedFields", obj)
		}
		buf.Truncate(buf.Len() - 1) // the newline
		data := buf.Bytes()
		if len(data) == at+2 {
			buf.Truncate(at)
			buf.WriteByte('}')
			return nil
		}
		data[at] = ','
		return nil
	})
}

// marshaler is a type with a protobuf form.
type marshaler interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// HasProtobuf tells whether objects of that type can be sent as protobuf.
func HasProtobuf(obj runtime.Object) bool {
	_, ok := obj.(marshaler)
	return ok
}

// encodeProtobuf gives the bare message, without envelope.
func encodeProtobuf(obj runtime.Object) ([]byte, error) {
	m, ok := obj.(marshaler)
	if !ok {
		return nil, fmt.Errorf("object %T does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message", obj)
	}
	data := make([]byte, m.Size())
	n, err := m.MarshalToSizedBuffer(data)
	if err != nil {
		return nil, err
	}
	return data[len(data)-n:], nil
}

// envelopeHead is what stands before a message of n bytes: the magic, the type
// and the length.
func envelopeHead(gvk schema.GroupVersionKind, n int) []byte {
	var t []byte
	t = appendField(t, 1, []byte(gvk.GroupVersion().String()))
	t = appendField(t, 2, []byte(gvk.Kind))
	out := slices.Clone(magic)
	out = appendField(out, 1, t)
	out = append(out, 2<<3|2)
	return binary.AppendUvarint(out, uint64(n))
}

// envelopeTail ends an envelope: empty content encoding and content type.
var envelopeTail = []byte{3<<3 | 2, 0, 4<<3 | 2, 0}

// appendField appends a length-delimited protobuf field.
func appendField(dst []byte, field int, data []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(field)<<3|2)
	dst = binary.AppendUvarint(dst, uint64(len(data)))
	return append(dst, data...)
}

// Object encodes any object of a known type.
func Object(media Media, obj runtime.Object, gvk schema.GroupVersionKind) (Body, error) {
	if media == Protobuf {
		raw, err := encodeProtobuf(obj)
		if err != nil {
			return Body{}, err
		}
		return newBody(envelopeHead(gvk, len(raw)), raw, envelopeTail), nil
	}
	data, err := encodeJSON(obj, gvk, head(gvk))
	if err != nil {
		return Body{}, err
	}
	return newBody(data, newline), nil
}

// Raw is a body of JSON that is complete already.
func Raw(data []byte) Body { return newBody(data, newline) }

var newline = []byte{'\n'}

// Shallow copies the struct that an object points to, so that its own fields can be
// set; what they point to stays shared and must be replaced, not changed. Unstructured
// objects get a copy of their outer map and of metadata.
func Shallow[T runtime.Object](obj T) T {
	if u, ok := any(obj).(*unstructured.Unstructured); ok {
		outer := make(map[string]any, len(u.Object))
		for k, v := range u.Object {
			outer[k] = v
		}
		if meta, ok := outer["metadata"].(map[string]any); ok {
			inner := make(map[string]any, len(meta))
			for k, v := range meta {
				inner[k] = v
			}
			outer["metadata"] = inner
		}
		return any(&unstructured.Unstructured{Object: outer}).(T)
	}
	v := reflect.ValueOf(obj)
	c := reflect.New(v.Type().Elem())
	c.Elem().Set(v.Elem())
	return c.Interface().(T)
}

// toYAML turns a JSON body into YAML.
func toYAML(data []byte) ([]byte, error) { return yaml.JSONToYAML(data) }

// indent is the readable form of JSON.
func indent(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(len(data) * 2)
	if err := json.Indent(&buf, data, "", "  "); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// partial is the metadata of an object as an object of its own.
func partial(obj metav1.Object) *metav1.PartialObjectMetadata {
	if o, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := o.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return &metav1.PartialObjectMetadata{ObjectMeta: *m}
		}
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(),
		UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(),
		CreationTimestamp: obj.GetCreationTimestamp(), DeletionTimestamp: obj.GetDeletionTimestamp(),
		DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(),
		Labels:                     obj.GetLabels(), Annotations: obj.GetAnnotations(), OwnerReferences: obj.GetOwnerReferences(),
		Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields(),
	}}
}
