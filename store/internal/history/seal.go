package history

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"

	"coracle.dev/coracle/internal/invariant"
	"coracle.dev/coracle/store"
)

// Objects are shared by all readers and nobody may change one. Builds that check
// invariants hold everybody to it: a version is sealed with a hash of its stored form
// when it is written, and looked at again when it is replaced and, now and then,
// when it is read.

// sealMedia is the name under which the hash hangs off an entry.
const sealMedia = "\x00seal"

// someReads is of how many reads one is checked.
const someReads = 8

var sealSeed = maphash.MakeSeed()

// plainer is a codec whose stored form differs each time, as that of one that encrypts. EncodePlain gives what it is made of.
type plainer interface {
	EncodePlain(store.Key, any) ([]byte, error)
}

// sum gives the hash, or false for an object that the codec does not take.
func (h *History) sum(e *store.Entry) (uint64, bool) {
	if h.opts.Codec == nil {
		return 0, false
	}
	encode := h.opts.Codec.Encode
	if p, ok := h.opts.Codec.(plainer); ok {
		encode = p.EncodePlain
	}
	data, err := encode(e.Key, e.Object)
	if err != nil {
		return 0, false
	}
	var m maphash.Hash
	m.SetSeed(sealSeed)
	m.Write(data)
	if o, ok := e.Object.(interface{ GetResourceVersion() string }); ok {
		m.WriteString(o.GetResourceVersion()) // is not part of the stored form
	}
	return m.Sum64(), true
}

// seal is called when an entry is made.
func (h *History) seal(e *store.Entry) {
	if !invariant.Enabled || e == nil {
		return
	}
	if sum, ok := h.sum(e); ok {
		e.Encoding(sealMedia, func() ([]byte, error) { return binary.LittleEndian.AppendUint64(nil, sum), nil })
	}
}

// verify panics if a sealed entry's object was changed.
func (h *History) verify(e *store.Entry) {
	if !invariant.Enabled || e == nil {
		return
	}
	sealed, err := e.Encoding(sealMedia, func() ([]byte, error) { return nil, store.ErrDamaged })
	if err != nil {
		return
	}
	if sum, ok := h.sum(e); ok && sum != binary.LittleEndian.Uint64(sealed) {
		panic(fmt.Sprintf("store: %s at revision %d was changed by a reader: objects of a snapshot are shared, deep-copy before you change one", e.Key, e.Revision))
	}
}

// verifySome verifies now and then, and returns its argument.
func (h *History) verifySome(e *store.Entry) *store.Entry {
	if invariant.Enabled && rand.IntN(someReads) == 0 {
		h.verify(e)
	}
	return e
}

// verifying wraps yield so that some of the entries are verified on their way.
func (h *History) verifying(yield func(*store.Entry) bool) func(*store.Entry) bool {
	if !invariant.Enabled {
		return yield
	}
	return func(e *store.Entry) bool { return yield(h.verifySome(e)) }
}
