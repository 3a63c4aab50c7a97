package openapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

const (
	protobufV2  = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protobufV2b = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"

	fileV2  = "spec/v2.json.gz"
	fileV2P = "spec/v2.pb.gz"
)

// V2 answers /openapi/v2, in JSON or protobuf. The embedded document goes out as it is while there is nothing to add.
func (p *Publisher) V2() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, media := fileV2, "application/json"
		if accepts(r, protobufV2, protobufV2b) {
			file, media = fileV2P, protobufV2
		}
		base := embedded(file)
		groups, remote := p.custom(), p.remoteV2()
		if len(groups) == 0 && len(remote) == 0 {
			serve(w, r, base, hashOf(base), media)
			return
		}
		tag := tagV2(file, groups, remote)
		data, err := p.document(file, tag, func(w io.Writer) error {
			text, err := decompress(base)
			if err != nil {
				return err
			}
			more := additions(groups, remote)
			if file == fileV2P {
				return more.appendTo(w, text)
			}
			return more.mergeInto(w, text)
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		serve(w, r, data, tag, media)
	})
}

// tagV2 names the content of the document by what it is made from.
func tagV2(file string, groups map[string]*group, remote []remoteDocument) string {
	h := sha256.New()
	fmt.Fprintln(h, form, file, hashOf(embedded(file)))
	for _, where := range slices.Sorted(maps.Keys(groups)) {
		fmt.Fprintln(h, where)
		groups[where].identify(h)
	}
	for i := range remote {
		fmt.Fprintln(h, remote[i].group, remote[i].version)
		h.Write(remote[i].data)
	}
	return fmt.Sprintf("%X", h.Sum(nil))
}

// remoteDocument is the document of an aggregated server, of which one group version counts.
type remoteDocument struct {
	group, version string
	data           []byte
}

// remoteV2 gets the documents of aggregated servers. One that cannot be had is left out.
func (p *Publisher) remoteV2() []remoteDocument {
	var out []remoteDocument
	for _, r := range p.remotes() {
		if r.V2 == nil {
			continue
		}
		if data, err := r.V2(); err == nil && len(data) > 0 {
			out = append(out, remoteDocument{r.Group, r.Version, data})
		}
	}
	return out
}

// additionsV2 are the definitions and paths that go into the document beside the embedded ones.
type additionsV2 struct {
	groups             map[string]*group // custom resources
	models             map[string]bool   // the names of their definitions
	definitions, paths map[string]any    // of aggregated servers
	known              map[string]bool   // names of embedded definitions; nil until they are needed
}

func additions(groups map[string]*group, remote []remoteDocument) *additionsV2 {
	a := &additionsV2{groups: groups, models: map[string]bool{}, definitions: map[string]any{}, paths: map[string]any{}}
	for d, g := range all(groups) {
		r := newResource(d, g.version)
		a.models[r.model(r.kind)], a.models[r.model(r.listKind)] = true, true
	}
	for i := range remote {
		a.addRemote(&remote[i]) //nolint:errcheck // what a server says wrongly is left out
	}
	return a
}

// section is everything that goes into a section of the document.
func (a *additionsV2) section(name string) entries {
	custom, remote := definitionsV2(a.groups), a.definitions
	if name == "paths" {
		custom, remote = pathsV2(a.groups), a.paths
	}
	return func(yield func(string, any) bool) {
		for name, entry := range custom {
			if !yield(name, entry) {
				return
			}
		}
		for _, name := range slices.Sorted(maps.Keys(remote)) {
			if !yield(name, remote[name]) {
				return
			}
		}
	}
}

var errDocument = errors.New("not an OpenAPI v2 document")

// addRemote enters the paths of one group version of an aggregated server and the definitions that they need. A definition
// that bears the name of another one here but says something else gets a name of its own; those of Kubernetes' libraries are
// taken to be the same everywhere.
func (a *additionsV2) addRemote(d *remoteDocument) error {
	var doc struct {
		Swagger     string
		Definitions map[string]any
		Paths       map[string]any
		Parameters  map[string]any
	}
	if err := json.Unmarshal(d.data, &doc); err != nil || doc.Swagger != "2.0" {
		return errors.Join(errDocument, err)
	}
	base := "/" + documentPath(d.group, d.version)
	paths := map[string]any{}
	for path, item := range doc.Paths {
		if _, ok := item.(map[string]any); ok && (path == base || strings.HasPrefix(path, base+"/")) {
			paths[path] = inlined(item, doc.Parameters, 0)
		}
	}
	if a.known == nil {
		a.known = baseDefinitions()
	}
	known := a.known
	names := map[string]string{} // of the remote document, to those here
	defs := map[string]any{}
	var need func(v any)
	need = func(v any) {
		for name := range references(v, "#/definitions/") {
			if _, done := names[name]; done {
				continue
			}
			def, ok := doc.Definitions[name].(map[string]any)
			if !ok {
				def = map[string]any{"type": "object"}
			}
			names[name] = a.nameFor(name, def, known)
			defs[name] = def
			need(def)
		}
	}
	need(paths)
	for name, def := range doc.Definitions {
		if _, done := names[name]; !done && hasKind(def, d.group, d.version) {
			names[name] = a.nameFor(name, def, known)
			defs[name] = def
			need(def)
		}
	}
	for name, def := range defs {
		if to := names[name]; !known[to] {
			a.definitions[to] = renamed(def, names)
		}
	}
	for path, item := range paths {
		a.paths[path] = renamed(item, names)
	}
	return nil
}

// nameFor gives the name that a definition of a remote document has here.
func (a *additionsV2) nameFor(name string, def any, known map[string]bool) string {
	if known[name] && (strings.HasPrefix(name, "io.k8s.apimachinery.") || strings.HasPrefix(name, "io.k8s.api.")) {
		return name
	}
	to := name
	for n := 2; ; n++ {
		had, taken := a.definitions[to]
		if !known[to] && !a.models[to] && (!taken || equal(had, def)) {
			return to
		}
		to = fmt.Sprintf("%s_v%d", name, n)
	}
}

func equal(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// hasKind tells whether a definition says that it is a kind of a group version.
func hasKind(def any, group, version string) bool {
	m, _ := def.(map[string]any)
	list, _ := m["x-kubernetes-group-version-kind"].([]any)
	return slices.ContainsFunc(list, func(v any) bool {
		gvk, _ := v.(map[string]any)
		return gvk["group"] == group && gvk["version"] == version
	})
}

// references are the names behind a prefix that v refers to.
func references(v any, prefix string) map[string]bool {
	out := map[string]bool{}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				if name, ok := strings.CutPrefix(ref, prefix); ok {
					out[name] = true
				}
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(v)
	return out
}

// renamed is v with its references to definitions under their names here. v stays as it is.
func renamed(v any, names map[string]string) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = renamed(e, names)
		}
		if ref, ok := v["$ref"].(string); ok {
			if name, ok := strings.CutPrefix(ref, "#/definitions/"); ok && names[name] != "" {
				out["$ref"] = "#/definitions/" + names[name]
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = renamed(e, names)
		}
		return out
	}
	return v
}

// inlined puts the shared parameters of a document where they are referred to, since this document has others.
func inlined(v any, params map[string]any, depth int) any {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok && depth < 8 {
			if name, ok := strings.CutPrefix(ref, "#/parameters/"); ok {
				if p, ok := params[name].(map[string]any); ok {
					return inlined(p, params, depth+1)
				}
				return map[string]any{}
			}
		}
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = inlined(e, params, depth)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = inlined(e, params, depth)
		}
		return out
	}
	return v
}

// baseDefinitions are the names of the embedded definitions.
func baseDefinitions() map[string]bool {
	plain, err := decompress(embedded(fileV2))
	if err != nil {
		panic(err) // the file is part of the program
	}
	names := map[string]bool{}
	if at, ok := sections(plain); ok {
		for name := range members(plain[at["definitions"]-1:]) {
			names[name] = true
		}
	}
	return names
}

// mergeInto writes a JSON document with the additions at the beginning of its sections. The document is not parsed: nothing of
// its own changes. A name that it has already keeps its meaning there, as far as clients take the last.
func (a *additionsV2) mergeInto(w io.Writer, doc []byte) error {
	at, ok := sections(doc)
	if !ok {
		return errDocument
	}
	names := []string{"definitions", "paths"}
	slices.SortFunc(names, func(x, y string) int { return at[x] - at[y] })
	from := 0
	for _, name := range names {
		if _, err := w.Write(doc[from:at[name]]); err != nil {
			return err
		}
		from = at[name]
		empty := doc[space(doc, from)] == '}'
		if err := writeMembers(w, a.section(name), !empty); err != nil {
			return err
		}
	}
	_, err := w.Write(doc[from:])
	return err
}

// writeMembers writes the members of a JSON object, with a comma behind the last one if more follow.
func writeMembers(w io.Writer, members entries, more bool) error {
	first := true
	for name, entry := range members {
		key, err := json.Marshal(name)
		if err != nil {
			return err
		}
		value, err := json.Marshal(entry)
		if err != nil {
			return err
		}
		if !first {
			key = append([]byte{','}, key...)
		}
		first = false
		if _, err := w.Write(append(append(key, ':'), value...)); err != nil {
			return err
		}
	}
	if more && !first {
		_, err := w.Write([]byte{','})
		return err
	}
	return nil
}

// appendTo writes a document in protobuf and behind it the additions: fields that come twice in a message are merged, by
// definition of the encoding.
func (a *additionsV2) appendTo(w io.Writer, doc []byte) error {
	if _, err := w.Write(doc); err != nil {
		return err
	}
	for _, section := range []string{"definitions", "paths"} {
		for name, entry := range a.section(section) {
			data, err := message(section, name, entry)
			if err != nil {
				continue // what cannot be said in this form is left out of it, where upstream leaves out the entire document
			}
			if _, err := w.Write(data); err != nil {
				return err
			}
		}
	}
	return nil
}

// message is a document that has one entry in one section and nothing else.
func message(section, name string, entry any) ([]byte, error) {
	sections := map[string]any{"paths": map[string]any{}}
	sections[section] = map[string]any{name: entry}
	sections["swagger"], sections["info"] = "2.0", map[string]any{"title": "", "version": ""}
	data, err := json.Marshal(sections)
	if err != nil {
		return nil, err
	}
	parsed, err := openapi_v2.ParseDocument(data)
	if err != nil {
		return nil, err
	}
	out := &openapi_v2.Document{Definitions: parsed.GetDefinitions()}
	if section == "paths" {
		out.Paths = parsed.GetPaths()
	}
	return proto.Marshal(out)
}
