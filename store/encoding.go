package store

import "sync/atomic"

// encodings holds what a version looks like on the wire, by media type. It is
// filled at first demand, shared by all who send the version, and may be
// dropped at any time.
type encodings struct {
	list atomic.Pointer[encoding]
}

type encoding struct {
	media string
	data  []byte
	next  *encoding
}

// Encoding returns this version in the given form, which make produces at
// first demand. Two callers at once may both make it; one result is kept. The
// bytes are shared and must not be changed. They are kept until DropEncodings, which the
// embedded stores call when a few hundred changes of the same resource have come after.
func (e *Entry) Encoding(media string, make func() ([]byte, error)) ([]byte, error) {
	for {
		head := e.encodings.list.Load()
		for n := head; n != nil; n = n.next {
			if n.media == media {
				return n.data, nil
			}
		}
		data, err := make()
		if err != nil {
			return nil, err
		}
		if e.encodings.list.CompareAndSwap(head, &encoding{media: media, data: data, next: head}) {
			return data, nil
		}
	}
}

// DropEncodings frees what Encoding kept.
func (e *Entry) DropEncodings() { e.encodings.list.Store(nil) }
