package history

import (
	"fmt"
	"strings"
	"testing"

	"coracle.dev/coracle/internal/invariant"
	"coracle.dev/coracle/store"
)

type textCodec struct{}

func (textCodec) Encode(_ store.Key, obj any) ([]byte, error) { return []byte(*obj.(*string)), nil }

func (textCodec) Decode(_ store.Key, data []byte) (any, error) { s := string(data); return &s, nil }

// restless stores the same object in another form each time.
type restless struct {
	textCodec
	n *int
}

func (r restless) Encode(_ store.Key, obj any) ([]byte, error) {
	*r.n++
	return fmt.Appendf(nil, "%d%s", *r.n, *obj.(*string)), nil
}

func (r restless) EncodePlain(key store.Key, obj any) ([]byte, error) {
	return r.textCodec.Encode(key, obj)
}

// TestMutationIsNoticed changes a shared object, in builds that check invariants:
// go test -tags invariants.
func TestMutationIsNoticed(t *testing.T) {
	if !invariant.Enabled {
		t.Skip("this build does not check invariants")
	}
	for name, codec := range map[string]store.Codec{"steady": textCodec{}, "restless": restless{n: new(int)}} {
		t.Run(name, func(t *testing.T) { mutate(t, codec) })
	}
}

func mutate(t *testing.T, codec store.Codec) {
	h := New(store.Options{Codec: codec})
	key := store.Key{Resource: "a", Name: "x"}
	text, other := "one", "two"
	h.Lock()
	defer h.Unlock()
	if _, _, err := h.Apply(store.Txn{Ops: []store.Op{{Key: key, Object: &text}}}, nil); err != nil {
		t.Fatal(err)
	}
	h.Publish(h.Seal())
	noticed := func(f func()) (msg string) {
		defer func() { msg, _ = recover().(string) }()
		f()
		return ""
	}
	get := func() {
		for range 100 * someReads {
			h.Snapshot().Get(key)
		}
	}
	list := func() {
		for range 100 * someReads {
			for range h.Snapshot().List("a", "", nil) {
			}
		}
	}
	replace := func() {
		h.Apply(store.Txn{Ops: []store.Op{{Key: key, Object: &other, Expect: store.ExpectAny}}}, nil)
	}
	for name, f := range map[string]func(){"get": get, "list": list} {
		if msg := noticed(f); msg != "" {
			t.Errorf("%s of an untouched object: %s", name, msg)
		}
	}
	text = "changed"
	for name, f := range map[string]func(){"get": get, "list": list, "replace": replace} {
		if msg := noticed(f); !strings.Contains(msg, "a/x at revision 1 was changed by a reader") {
			t.Errorf("%s: got %q", name, msg)
		}
	}
}
