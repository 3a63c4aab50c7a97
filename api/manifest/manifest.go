// Package manifest brings manifests that were written for an older Kubernetes to what the present one accepts, and says
// what it changed and why.
//
// It knows API versions that are gone, with the fields that changed between them and their successors
// (https://kubernetes.io/docs/reference/using-api/deprecation-guide/), and a few mistakes that every version refuses but
// whose meaning is plain. It is pure: text in, text out. It keeps comments and the order of fields, leaves documents alone in
// which there is nothing to fix, and never drops what it cannot fix.
package manifest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Note says one thing about a manifest.
type Note struct {
	// Line is where it stands in the input, from 1.
	Line int
	// Object is what it is about, "Deployment web".
	Object string
	// Text is what was changed and why, or why nothing was.
	Text string
	// Open says that it could not be fixed: somebody has to decide.
	Open bool
}

// String is "LINE: OBJECT: TEXT".
func (n Note) String() string {
	if n.Object == "" {
		return fmt.Sprintf("%d: %s", n.Line, n.Text)
	}
	return fmt.Sprintf("%d: %s: %s", n.Line, n.Object, n.Text)
}

// maxManifest is how large a manifest may be, in bytes.
const maxManifest = 32 << 20

// Fix gives the documents of a YAML or JSON manifest in the form that is accepted now, with a note for each change. A
// document without one comes back byte for byte. An error means that the text is no YAML; it names the line.
func Fix(in []byte) (out []byte, notes []Note, err error) {
	if len(in) > maxManifest {
		return nil, nil, fmt.Errorf("the manifest has %d bytes, more than the %d that are read at once: split it", len(in), maxManifest)
	}
	var b bytes.Buffer
	for _, d := range split(in) {
		fixed, found, err := fixDocument(d)
		if err != nil {
			return nil, nil, err
		}
		b.Write(fixed)
		notes = append(notes, inOrder(found)...)
	}
	return b.Bytes(), notes, nil
}

// inOrder sorts the notes of a document by line, and drops what was said twice of what became two things.
func inOrder(notes []Note) []Note {
	slices.SortStableFunc(notes, func(a, b Note) int { return a.Line - b.Line })
	seen := map[Note]bool{}
	return slices.DeleteFunc(notes, func(n Note) bool {
		was := seen[n]
		seen[n] = true
		return was
	})
}

// document is one YAML document as text.
type document struct {
	separator []byte // the line "---", if it has one
	text      []byte
	line      int // lines before text
}

// split cuts a stream at the lines that begin with "---".
func split(in []byte) []document {
	var docs []document
	d := document{}
	line := 0
	for len(in) > 0 {
		n := bytes.IndexByte(in, '\n') + 1
		if n == 0 {
			n = len(in)
		}
		row := in[:n]
		in = in[n:]
		line++
		if isSeparator(row) {
			if len(bytes.TrimSpace(d.text)) > 0 || d.separator != nil || len(d.text) > 0 {
				docs = append(docs, d)
			}
			d = document{separator: row, line: line}
			continue
		}
		d.text = append(d.text, row...)
	}
	return append(docs, d)
}

func isSeparator(row []byte) bool {
	rest, ok := bytes.CutPrefix(row, []byte("---"))
	if !ok {
		return false
	}
	rest = bytes.TrimSpace(rest)
	return len(rest) == 0 || rest[0] == '#'
}

// fixDocument fixes one document.
func fixDocument(d document) ([]byte, []Note, error) {
	unchanged := append(bytes.Clone(d.separator), d.text...)
	var root yaml.Node
	if err := yaml.Unmarshal(d.text, &root); err != nil {
		return nil, nil, fmt.Errorf("the document after line %d is no YAML: %s", d.line, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
		return unchanged, nil, nil
	}
	if hasAliases(&root) {
		// An alias is the same node in several places: what is right in one may be wrong in another.
		return unchanged, nil, nil
	}
	f := &fixer{offset: d.line}
	f.top(object{root.Content[0]})
	if !f.changed {
		return unchanged, f.notes, nil
	}
	var b bytes.Buffer
	b.Write(d.separator)
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&root); err != nil {
		return nil, nil, err
	}
	if err := e.Close(); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), f.notes, nil
}

func hasAliases(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode {
		return true
	}
	for _, c := range n.Content {
		if hasAliases(c) {
			return true
		}
	}
	return false
}

// fixer goes through one document.
type fixer struct {
	offset  int // lines before the document
	name    string
	changed bool
	notes   []Note
}

// fixed notes a change at a node.
func (f *fixer) fixed(at *yaml.Node, format string, args ...any) {
	f.changed = true
	f.say(at, false, format, args...)
}

// remark notes what a change of version means, without a further change.
func (f *fixer) remark(at *yaml.Node, format string, args ...any) { f.say(at, false, format, args...) }

// open notes what somebody has to decide.
func (f *fixer) open(at *yaml.Node, format string, args ...any) { f.say(at, true, format, args...) }

func (f *fixer) say(at *yaml.Node, open bool, format string, args ...any) {
	line := f.offset + 1
	if at != nil && at.Line > 0 {
		line = f.offset + at.Line
	}
	f.notes = append(f.notes, Note{Line: line, Object: f.name, Text: fmt.Sprintf(format, args...), Open: open})
}

// top fixes an object or the objects of a list.
func (f *fixer) top(o object) {
	if o.text("kind") == "List" || o.text("apiVersion") == "v1" && strings.HasSuffix(o.text("kind"), "List") {
		for _, item := range o.list("items") {
			if item.Kind == yaml.MappingNode {
				f.top(object{item})
			}
		}
		return
	}
	kind, name := o.text("kind"), o.at("metadata").text("name")
	if name == "" {
		name = o.at("metadata").text("generateName")
	}
	f.name = strings.TrimSpace(kind + " " + name)
	if kind == "" || o.text("apiVersion") == "" {
		return
	}
	from := o.text("apiVersion")
	f.version(o)
	f.strings(o)
	f.shape(o, from)
}

// version replaces an API version that is gone.
func (f *fixer) version(o object) {
	kind, from := o.text("kind"), o.text("apiVersion")
	r, gone := removed[versionedKind{from, kind}]
	if !gone {
		return
	}
	at := o.get("apiVersion")
	if r.to == "" {
		f.open(at, "%s %s was removed in %s and has no successor: %s", from, kind, r.in, r.instead)
		return
	}
	o.set("apiVersion", r.to)
	f.fixed(at, "apiVersion %s was removed in %s: %s takes its place", from, r.in, r.to)
	if r.change != nil {
		r.change(f, o)
	}
}

// shape fixes what the present version of a kind refuses. from is the apiVersion that was written.
func (f *fixer) shape(o object, from string) {
	switch group, _, _ := strings.Cut(o.text("apiVersion"), "/"); group + "/" + o.text("kind") {
	case "apps/Deployment", "apps/ReplicaSet", "apps/DaemonSet", "apps/StatefulSet":
		f.selector(o)
		for _, claim := range o.at("spec").list("volumeClaimTemplates") {
			f.claim(object{claim})
		}
	case "batch/Job":
		f.jobTemplate(o.at("spec").at("template").at("spec"), o)
	case "batch/CronJob":
		f.jobTemplate(o.at("spec").at("jobTemplate").at("spec").at("template").at("spec"), o)
	case "v1/PersistentVolumeClaim":
		f.claim(o)
	case "apiextensions.k8s.io/CustomResourceDefinition":
		f.definition(o, from)
	}
	if spec := podSpec(o); spec.Node != nil {
		f.pod(o, spec)
	}
}
