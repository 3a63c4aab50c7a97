package wire

import (
	"bytes"
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// managedFields are the longest part of many objects and JSON already. encoding/json would read them twice over, so they
// are left out of what it writes, and put in the place of a mark.

// mark is how managedFields with one empty entry are written. It cannot stand earlier in an object: in strings the quotes are
// escaped, and nothing before it in metadata has lists under names of its own.
var mark = []byte(`"managedFields":[{}]`)

// marked is what the mark is made from; it is only read.
var marked = []metav1.ManagedFieldsEntry{{}}

// unmanaged gives a copy of a struct with the mark in place of its managedFields, and these; obj itself and none if there is nothing
// to gain.
func unmanaged(obj runtime.Object) (runtime.Object, []metav1.ManagedFieldsEntry) {
	o, ok := obj.(metav1.Object)
	if !ok {
		return obj, nil
	}
	entries := o.GetManagedFields()
	if len(entries) == 0 {
		return obj, nil
	}
	for i := range entries {
		if f := entries[i].FieldsV1; f != nil {
			if raw := f.GetRawBytes(); len(raw) < 2 || raw[0] != '{' || raw[len(raw)-1] != '}' {
				return obj, nil
			}
		}
	}
	c := Shallow(obj)
	c.(metav1.Object).SetManagedFields(marked)
	return c, entries
}

// putFields puts managedFields in the place of the mark, which stands after from.
func putFields(buf *bytes.Buffer, from int, entries []metav1.ManagedFieldsEntry) bool {
	at := bytes.Index(buf.Bytes()[from:], mark)
	if at < 0 {
		return false
	}
	at += from
	tail := bytes.Clone(buf.Bytes()[at+len(mark):])
	buf.Truncate(at)
	buf.WriteString(`"managedFields":[`)
	for i := range entries {
		if i > 0 {
			buf.WriteByte(',')
		}
		appendEntry(buf, &entries[i])
	}
	buf.WriteByte(']')
	buf.Write(tail)
	return true
}

// appendEntry writes an entry as encoding/json does, but for FieldsV1, which stay as they are.
func appendEntry(buf *bytes.Buffer, e *metav1.ManagedFieldsEntry) {
	sep := byte('{')
	name := func(n string) {
		buf.WriteByte(sep)
		buf.WriteByte('"')
		buf.WriteString(n)
		buf.WriteString(`":`)
		sep = ','
	}
	text := func(n, v string) {
		if v == "" {
			return
		}
		name(n)
		data, _ := json.Marshal(v)
		buf.Write(data)
	}
	text("manager", e.Manager)
	text("operation", string(e.Operation))
	text("apiVersion", e.APIVersion)
	if e.Time != nil {
		name("time")
		if e.Time.IsZero() {
			buf.WriteString("null")
		} else {
			buf.Write(e.Time.UTC().AppendFormat(append(buf.AvailableBuffer(), '"'), time.RFC3339+`"`))
		}
	}
	text("fieldsType", e.FieldsType)
	if e.FieldsV1 != nil {
		name("fieldsV1")
		buf.Write(e.FieldsV1.GetRawBytes())
	}
	text("subresource", e.Subresource)
	if sep == '{' {
		buf.WriteByte('{')
	}
	buf.WriteByte('}')
}
