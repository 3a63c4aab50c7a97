package openapi

import (
	"encoding/json"
	"net/http"
	"path"
	"strings"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

const (
	protobufV3  = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
	protobufV3b = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// V3 answers /openapi/v3, the index, and the documents of group versions below it
// (/openapi/v3/apis/apps/v1).
func (p *Publisher) V3() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		where := strings.Trim(strings.TrimPrefix(path.Clean(r.URL.Path), "/openapi/v3"), "/")
		if where == "" {
			p.serveIndex(w, r)
			return
		}
		remotes := p.remotes()
		for i := range remotes {
			if remotes[i].path() == where {
				remotes[i].Handler.ServeHTTP(w, r)
				return
			}
		}
		if hash, ok := builtIn()[where]; ok {
			serveV3(w, r, where, hash, func() ([]byte, error) { return embedded(v3File(where)), nil })
			return
		}
		g, ok := p.custom()[where]
		if !ok {
			http.NotFound(w, r)
			return
		}
		hash := g.hash()
		serveV3(w, r, where, hash, func() ([]byte, error) {
			return p.document(where, hash, g.writeV3)
		})
	})
}

func (p *Publisher) remotes() []Remote {
	if p.Remote == nil {
		return nil
	}
	return p.Remote()
}

// serveIndex lists all documents with their hashes. It is made for each request: it costs less than a millisecond for
// hundreds of definitions, and is never older than the definitions.
func (p *Publisher) serveIndex(w http.ResponseWriter, r *http.Request) {
	paths := map[string]map[string]string{}
	enter := func(where, hash string) {
		paths[where] = map[string]string{"serverRelativeURL": address(where, hash)}
	}
	for where, g := range p.custom() {
		enter(where, g.hash())
	}
	for where, hash := range builtIn() {
		enter(where, hash)
	}
	remotes := p.remotes()
	for i := range remotes {
		if where := remotes[i].path(); remotes[i].Hash == "" {
			delete(paths, where)
		} else {
			enter(where, remotes[i].Hash)
		}
	}
	data, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	etag := `"` + hashOf(data) + `"`
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(data) // a client that went away
}

// address is where a client finds a document with a content.
func address(where, hash string) string { return "/openapi/v3/" + where + "?hash=" + hash }

// serveV3 sends the document of a group version, whose hash is known before it is made.
func serveV3(w http.ResponseWriter, r *http.Request, where, hash string, get func() ([]byte, error)) {
	if asked := r.URL.Query().Get("hash"); asked == hash {
		// The address names the content, so that it can be kept for good.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", "Thu, 31 Dec 2099 00:00:00 GMT")
	} else if asked != "" {
		http.Redirect(w, r, address(where, hash), http.StatusMovedPermanently)
		return
	}
	data, err := get()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if !accepts(r, protobufV3, protobufV3b) {
		serve(w, r, data, hash, "application/json")
		return
	}
	if data, err = toProtobufV3(data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	serve(w, r, data, hash+"-PB", protobufV3)
}

func toProtobufV3(compressed []byte) ([]byte, error) {
	text, err := decompress(compressed)
	if err != nil {
		return nil, err
	}
	doc, err := openapi_v3.ParseDocument(text)
	if err != nil {
		return nil, err
	}
	data, err := proto.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return compress(plain(data))
}

// accepts tells whether the first media type that the client takes, of those that are offered here, is one of media. Names are
// compared as text: the one with "@" that older clients send is no media type by RFC 9110, and no parser takes it.
func accepts(r *http.Request, media ...string) bool {
	for _, part := range strings.Split(strings.Join(r.Header["Accept"], ","), ",") {
		got, _, _ := strings.Cut(part, ";")
		got = strings.ToLower(strings.TrimSpace(got))
		for _, m := range media {
			if got == m {
				return true
			}
		}
		if got == "application/json" || got == "*/*" || got == "application/*" {
			return false
		}
	}
	return false
}
