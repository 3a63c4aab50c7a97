// Package openapi publishes what every kind looks like: the documents of the built-in kinds, which were made at build
// time (tools/openapi) and are embedded compressed, those of custom resources, which are made from their schemas when
// somebody asks, and those of aggregated API servers, which are asked for theirs.
//
// It owns the documents' addresses, hashes and forms: /openapi/v3 with one document for each group version, and
// /openapi/v2 with everything in one. It keeps nothing uncompressed, and what it made only until the next garbage
// collection that finds it unused. It reads snapshots and never writes.
package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/store"
)

//go:embed spec
var documents embed.FS

// Publisher serves the documents. It is safe for concurrent use. The zero Publisher serves the built-in kinds alone. The
// fields are set before the first request.
type Publisher struct {
	// Snapshot is the state that CustomResourceDefinitions are read from; nil for none.
	Snapshot func() store.Snapshot
	// Served tells whether the API server answers for a resource; nil: for all that are established.
	Served func(schema.GroupVersionResource) bool
	// Remote lists the documents of aggregated servers; nil for none.
	Remote func() []Remote

	mu sync.Mutex // guards made
	// made are documents that were made and are still in memory, by path ("v2" for that).
	made map[string]madeDocument
}

// Remote is what an aggregated server says of one group version.
type Remote struct {
	// Group and Version are what it serves.
	Group, Version string
	// Hash changes with the document; empty if the server offers no document in the third version.
	Hash string
	// Handler answers GET and HEAD with that server's document in the third version, whatever the path of the request.
	Handler http.Handler
	// V2 fetches the server's document in the second version as JSON; nil if it offers none. Servers of several group versions
	// may give the same.
	V2 func() ([]byte, error)
}

// path is where a document lies below /openapi/v3.
func (r *Remote) path() string { return documentPath(r.Group, r.Version) }

func documentPath(group, version string) string {
	if group == "" {
		return "api/" + version
	}
	return "apis/" + group + "/" + version
}

// madeDocument is a document in compressed form that the garbage collector may take.
type madeDocument struct {
	tag  string
	data weak.Pointer[[]byte]
}

// document returns the compressed document of a path that has a tag, and makes it if it is no longer there.
func (p *Publisher) document(path, tag string, write func(io.Writer) error) ([]byte, error) {
	p.mu.Lock()
	if m, ok := p.made[path]; ok && m.tag == tag {
		if data := m.data.Value(); data != nil {
			p.mu.Unlock()
			return *data, nil
		}
	}
	p.mu.Unlock()
	data, err := compress(write)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(path, madeDocument{tag, weak.Make(&data)})
	return data, nil
}

// maxMade bounds the list of what was made; the documents themselves go by themselves.
const maxMade = 256

// keep remembers a document. mu is held.
func (p *Publisher) keep(path string, m madeDocument) {
	if len(p.made) >= maxMade {
		for other, had := range p.made {
			if had.data.Value() == nil {
				delete(p.made, other)
			}
		}
	}
	if p.made == nil || len(p.made) >= maxMade {
		p.made = map[string]madeDocument{}
	}
	p.made[path] = m
}

// compress returns what write writes. The whole of it is never in memory.
func compress(write func(io.Writer) error) ([]byte, error) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := write(z); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(buf.Bytes()), nil
}

// plain writes bytes that are there already.
func plain(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

func decompress(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// embedded reads a document that is part of the program.
func embedded(file string) []byte {
	data, err := documents.ReadFile(file)
	if err != nil {
		panic(err) // the files are part of the program
	}
	return data
}

func v3File(path string) string { return "spec/v3/" + path + ".json.gz" }

// builtIn are the hashes of the embedded documents, by path ("apis/apps/v1"). They are made at the first use.
var builtIn = sync.OnceValue(func() map[string]string {
	hashes := map[string]string{}
	err := fs.WalkDir(documents, "spec/v3", func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			hashes[strings.TrimSuffix(strings.TrimPrefix(file, "spec/v3/"), ".json.gz")] = hashOf(embedded(file))
		}
		return err
	})
	if err != nil {
		panic(err) // the files are part of the program
	}
	return hashes
})

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// serve sends a compressed document.
func serve(w http.ResponseWriter, r *http.Request, data []byte, tag, media string) {
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Vary", "Accept, Accept-Encoding")
	etag := `"` + tag + `"`
	h.Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		_, _ = w.Write(data) // a client that went away
		return
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.Copy(w, z)
}
