package wire

import (
	"encoding/binary"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The types of watch events.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
	Bookmark = "BOOKMARK"
	Error    = "ERROR"
)

// AppendJSONEvent appends a watch event around complete JSON.
func AppendJSONEvent(dst []byte, event string, object []byte) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, event...)
	dst = append(dst, `","object":`...)
	dst = append(dst, object...)
	return append(dst, "}\n"...)
}

// AppendProtobufEvent appends a watch event around a bare message of a type: four bytes of
// length, then a metav1.WatchEvent whose object is the message in its envelope.
func AppendProtobufEvent(dst []byte, event string, gvk schema.GroupVersionKind, object []byte) []byte {
	start := envelopeHead(gvk, len(object))
	raw := len(start) + len(object) + len(envelopeTail)
	extension := 1 + uvarintLen(raw) + raw
	total := 2 + len(event) + 1 + uvarintLen(extension) + extension
	dst = binary.BigEndian.AppendUint32(dst, uint32(total))
	dst = append(dst, 1<<3|2, byte(len(event)))
	dst = append(dst, event...)
	dst = append(dst, 2<<3|2)
	dst = binary.AppendUvarint(dst, uint64(extension))
	dst = append(dst, 1<<3|2)
	dst = binary.AppendUvarint(dst, uint64(raw))
	dst = append(dst, start...)
	dst = append(dst, object...)
	return append(dst, envelopeTail...)
}

func uvarintLen(n int) int {
	size := 1
	for n >= 0x80 {
		n >>= 7
		size++
	}
	return size
}

// AppendEvent appends a watch event around the bytes that Entry or Left gave.
func (v *View) AppendEvent(dst []byte, media Media, event string, object []byte) []byte {
	if media == Protobuf {
		return AppendProtobufEvent(dst, event, v.GVK, object)
	}
	return AppendJSONEvent(dst, event, object)
}

// AppendStatusEvent appends an ERROR event.
func AppendStatusEvent(dst []byte, media Media, status *metav1.Status) ([]byte, error) {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "Status"}
	if media == Protobuf {
		raw, err := encodeProtobuf(status)
		if err != nil {
			return nil, err
		}
		return AppendProtobufEvent(dst, Error, gvk, raw), nil
	}
	data, err := encodeJSON(status, gvk, head(gvk))
	if err != nil {
		return nil, err
	}
	return AppendJSONEvent(dst, Error, data), nil
}
