package pebble

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"coracle.dev/coracle/store"
)

const (
	objectPrefix = 'o'
	metaKey      = "m"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendKey gives a key's form on disk, in which keys sort by resource, namespace, name.
func appendKey(b []byte, k store.Key) []byte {
	b = append(b, objectPrefix)
	b = append(append(b, k.Resource...), 0)
	b = append(append(b, k.Namespace...), 0)
	return append(b, k.Name...)
}

func parseKey(b []byte) (store.Key, error) {
	parts := bytes.Split(b[1:], []byte{0})
	if len(parts) != 3 {
		return store.Key{}, fmt.Errorf("%w: malformed key %q", store.ErrDamaged, b)
	}
	return store.Key{Resource: string(parts[0]), Namespace: string(parts[1]), Name: string(parts[2])}, nil
}

// A record is: CRC-32C of the key and all that follows, little-endian; revision
// and creation revision as uvarints; the object as the codec made it.
const maxHeader = crc32.Size + 2*binary.MaxVarintLen64

// header returns the first part of a record, of which the payload is the rest.
func header(buf *[maxHeader]byte, key []byte, rev, created store.Revision, payload []byte) []byte {
	b := binary.AppendUvarint(buf[:crc32.Size], uint64(rev))
	b = binary.AppendUvarint(b, uint64(created))
	sum := crc32.Update(0, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, b[crc32.Size:])
	sum = crc32.Update(sum, castagnoli, payload)
	binary.LittleEndian.PutUint32(b, sum)
	return b
}

// verify checks the CRC that value starts with and returns what follows it.
func verify(key, value []byte) ([]byte, error) {
	if len(value) < crc32.Size {
		return nil, fmt.Errorf("%w: %q holds %d bytes", store.ErrDamaged, key, len(value))
	}
	body := value[crc32.Size:]
	sum := crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, body)
	if binary.LittleEndian.Uint32(value) != sum {
		return nil, fmt.Errorf("%w: %q does not match its checksum", store.ErrDamaged, key)
	}
	return body, nil
}

func parseRecord(key, value []byte) (rev, created store.Revision, payload []byte, err error) {
	body, err := verify(key, value)
	if err != nil {
		return 0, 0, nil, err
	}
	r, n := binary.Uvarint(body)
	c, m := binary.Uvarint(body[max(n, 0):])
	if n <= 0 || m <= 0 {
		return 0, 0, nil, fmt.Errorf("%w: %q has a malformed header", store.ErrDamaged, key)
	}
	return store.Revision(r), store.Revision(c), body[n+m:], nil
}

// meta describes the whole, and is written with each batch.
type meta struct {
	revision store.Revision
	// ceiling is a revision that relaxed transactions, which may be lost, have not
	// passed. After a crash the store goes on from there.
	ceiling store.Revision
	// objects and digest are what the records must add up to.
	objects uint64
	digest  uint64
	// clean says that the store was closed with everything on disk.
	clean bool
}

func (m meta) encode() []byte {
	b := make([]byte, crc32.Size, 64)
	b = binary.AppendUvarint(b, uint64(m.revision))
	b = binary.AppendUvarint(b, uint64(m.ceiling))
	b = binary.AppendUvarint(b, m.objects)
	b = binary.LittleEndian.AppendUint64(b, m.digest)
	if m.clean {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	sum := crc32.Update(0, castagnoli, []byte(metaKey))
	binary.LittleEndian.PutUint32(b, crc32.Update(sum, castagnoli, b[crc32.Size:]))
	return b
}

func parseMeta(value []byte) (m meta, err error) {
	body, err := verify([]byte(metaKey), value)
	if err != nil {
		return m, err
	}
	var fields [3]uint64
	for i := range fields {
		v, n := binary.Uvarint(body)
		if n <= 0 {
			return m, fmt.Errorf("%w: malformed meta record", store.ErrDamaged)
		}
		fields[i], body = v, body[n:]
	}
	if len(body) != 9 {
		return m, fmt.Errorf("%w: malformed meta record", store.ErrDamaged)
	}
	return meta{
		revision: store.Revision(fields[0]),
		ceiling:  store.Revision(fields[1]),
		objects:  fields[2],
		digest:   binary.LittleEndian.Uint64(body),
		clean:    body[8] == 1,
	}, nil
}

func (m *meta) add(key []byte, rev store.Revision) {
	m.objects++
	m.digest += hash(key, rev)
}

func (m *meta) remove(key []byte, rev store.Revision) {
	m.objects--
	m.digest -= hash(key, rev)
}

// hash is FNV-1a of the key and the revision, mixed once more (the finalizer of
// SplitMix64) so that sums of it do not cancel out.
func hash(key []byte, rev store.Revision) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range key {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h ^= uint64(rev) * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
