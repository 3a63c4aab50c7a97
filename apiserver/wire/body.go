package wire

import (
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Body is an encoded response: a list of shared pieces that nobody may change.
type Body struct {
	parts [][]byte
	size  int
}

func newBody(parts ...[]byte) Body {
	b := Body{parts: parts}
	for _, p := range parts {
		b.size += len(p)
	}
	return b
}

func (b *Body) add(p []byte) {
	b.parts = append(b.parts, p)
	b.size += len(p)
}

// Size is the number of bytes.
func (b Body) Size() int { return b.size }

// Bytes joins the pieces.
func (b Body) Bytes() []byte {
	out := make([]byte, 0, b.size)
	for _, p := range b.parts {
		out = append(out, p...)
	}
	return out
}

// writeSize is how much is handed to the connection at once.
const writeSize = 128 << 10

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, writeSize); return &b }}

// WriteTo writes the pieces, gathered into great chunks.
func (b Body) WriteTo(w io.Writer) (int64, error) {
	if len(b.parts) == 1 {
		n, err := w.Write(b.parts[0])
		return int64(n), err
	}
	buf := writeBuffers.Get().(*[]byte)
	defer writeBuffers.Put(buf)
	out, total := (*buf)[:0], int64(0)
	flush := func() error {
		n, err := w.Write(out)
		total += int64(n)
		out = out[:0]
		return err
	}
	for _, p := range b.parts {
		for len(p) > 0 {
			n := min(len(p), writeSize-len(out))
			out = append(out, p[:n]...)
			p = p[n:]
			if len(out) == writeSize {
				if err := flush(); err != nil {
					return total, err
				}
			}
		}
	}
	return total, flush()
}

// gzipFrom is the size from which responses are compressed for clients that accept it.
const gzipFrom = 128 << 10

var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return w
}}

// Respond writes a JSON or protobuf body in the accepted form: as it is, as YAML, or indented,
// and compressed where it is long and the client takes it.
func Respond(w http.ResponseWriter, r *http.Request, code int, accept Accept, contentType string, b Body) error {
	var err error
	if accept.Media == YAML || accept.Pretty && accept.Media == JSON {
		var data []byte
		if accept.Media == YAML {
			data, err = toYAML(b.Bytes())
		} else {
			data, err = indent(b.Bytes()[:b.size-1])
		}
		if err != nil {
			return err
		}
		b = newBody(data)
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	if b.size > gzipFrom && acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		w.WriteHeader(code)
		gz := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(gz)
		gz.Reset(w)
		if _, err = b.WriteTo(gz); err == nil {
			err = gz.Close()
		}
		gz.Reset(nil)
		return err
	}
	h.Set("Content-Length", strconv.Itoa(b.size))
	w.WriteHeader(code)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = b.WriteTo(w)
	return err
}

// acceptsGzip tells whether the client takes gzip. HEAD has no body to compress.
func acceptsGzip(r *http.Request) bool {
	for _, h := range r.Header["Accept-Encoding"] {
		for part := range strings.SplitSeq(h, ",") {
			name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
			if (name == "gzip" || name == "*") && strings.TrimSpace(params) != "q=0" {
				return r.Method != http.MethodHead
			}
		}
	}
	return false
}
