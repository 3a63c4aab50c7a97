// Package openapi serves the OpenAPI documents of the built-in kinds, which were made at build time
// (tools/openapi) and are embedded compressed.
//
// It owns the documents' addresses, hashes and forms. A document goes out as it lies in the program
// to clients that take gzip; it is decompressed only for those that do not. Nothing is kept
// in memory. Documents of custom resources come from elsewhere.
package openapi

import (
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"
)

//go:embed spec
var documents embed.FS

const (
	protobufV2  = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protobufV2b = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
)

// V2 answers /openapi/v2, in JSON or protobuf.
func V2() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, part := range strings.Split(r.Header.Get("Accept"), ",") {
			media, _, err := mime.ParseMediaType(part)
			if err == nil && (media == protobufV2 || media == protobufV2b) {
				serve(w, r, "spec/v2.pb.gz", protobufV2)
				return
			}
		}
		serve(w, r, "spec/v2.json.gz", "application/json")
	})
}

// V3 answers /openapi/v3, the index, and the documents of group versions below it
// (/openapi/v3/apis/apps/v1).
func V3() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest := strings.Trim(strings.TrimPrefix(path.Clean(r.URL.Path), "/openapi/v3"), "/")
		if rest == "" {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("ETag", `"`+index().etag+`"`)
			_, _ = w.Write(index().data) // a client that went away
			return
		}
		file := "spec/v3/" + rest + ".json.gz"
		hash, known := index().hashes[rest]
		if !known {
			http.NotFound(w, r)
			return
		}
		// The address in the index names the content, so that it can be kept for good.
		if asked := r.URL.Query().Get("hash"); asked == hash {
			w.Header().Set("Cache-Control", "public, immutable")
			w.Header().Set("Expires", "Thu, 31 Dec 2099 00:00:00 GMT")
		}
		serve(w, r, file, "application/json")
	})
}

type v3Index struct {
	data   []byte
	etag   string
	hashes map[string]string // by path, "apis/apps/v1"
}

// index is made at the first request for it.
var index = sync.OnceValue(func() v3Index {
	x := v3Index{hashes: map[string]string{}}
	paths := map[string]map[string]string{}
	err := fs.WalkDir(documents, "spec/v3", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := documents.ReadFile(file)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(strings.TrimPrefix(file, "spec/v3/"), ".json.gz")
		x.hashes[name] = hashOf(data)
		paths[name] = map[string]string{"serverRelativeURL": fmt.Sprintf("/openapi/v3/%s?hash=%s", name, x.hashes[name])}
		return nil
	})
	if err == nil {
		x.data, err = json.Marshal(map[string]any{"paths": paths})
	}
	if err != nil {
		panic(err) // the files are part of the program
	}
	x.etag = hashOf(x.data)
	return x
})

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// serve sends an embedded document.
func serve(w http.ResponseWriter, r *http.Request, file, media string) {
	data, err := documents.ReadFile(file)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Vary", "Accept, Accept-Encoding")
	etag := `"` + hashOf(data) + `"`
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
	z, err := gzip.NewReader(strings.NewReader(string(data)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.Copy(w, z)
}
