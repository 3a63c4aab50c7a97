package wire

import (
	"encoding/binary"
	"errors"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
)

// The generated protobuf decoders recurse as deep as a message nests, and a goroutine that
// runs out of stack takes the process with it. Only types that contain themselves
// (JSON schemas) can nest without end; their bodies are measured first.

// recursive remembers which Go types contain themselves.
var recursive sync.Map // reflect.Type -> bool

func isRecursive(obj runtime.Object) bool {
	t := reflect.TypeOf(obj)
	if known, ok := recursive.Load(t); ok {
		return known.(bool)
	}
	found := containsItself(t, map[reflect.Type]bool{}, map[reflect.Type]bool{})
	recursive.Store(t, found)
	return found
}

// containsItself looks for a struct type on its own path.
func containsItself(t reflect.Type, path, done map[reflect.Type]bool) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return containsItself(t.Elem(), path, done)
	case reflect.Struct:
	default:
		return false
	}
	if path[t] {
		return true
	}
	if done[t] {
		return false
	}
	path[t] = true
	for i := range t.NumField() {
		if containsItself(t.Field(i).Type, path, done) {
			return true
		}
	}
	delete(path, t)
	done[t] = true
	return false
}

var errTooDeep = errors.New("exceeded max depth")

// checkProtobufDepth refuses a message that nests too deep. Every field that could be a message is
// taken for one; no text of that depth is one by chance. It looks at each byte once.
func checkProtobufDepth(data []byte) error {
	if _, deep := messageDepth(data, maxDepth); deep {
		return errTooDeep
	}
	return nil
}

// messageDepth tells whether data is a well-formed message, and whether it nests deeper than left.
func messageDepth(data []byte, left int) (valid, deep bool) {
	if left == 0 {
		return true, true
	}
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 || tag>>3 == 0 {
			return false, false
		}
		data = data[n:]
		size := 0
		switch tag & 7 {
		case 0:
			if _, size = binary.Uvarint(data); size <= 0 {
				return false, false
			}
		case 1:
			size = 8
		case 5:
			size = 4
		case 2:
			length, n := binary.Uvarint(data)
			if n <= 0 || length > uint64(len(data)-n) {
				return false, false
			}
			data = data[n:]
			size = int(length)
			if _, deep := messageDepth(data[:size], left-1); deep {
				return true, true
			}
		default:
			return false, false
		}
		if size > len(data) {
			return false, false
		}
		data = data[size:]
	}
	return true, false
}
