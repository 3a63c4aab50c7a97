// Command field-relations writes what apiserver/managed has to know of the built-in types beyond their Go structs: which
// lists are sets or keyed by fields of their items, and which structs and maps are owned as a whole. It reads them
// from the schema that client-go's apply configurations are made from, by walking Go types and schema side by side,
// and fails where the two do not fit. One line is
//
//	TYPE atomic                        values of a struct are owned as a whole
//	TYPE FIELD atomic                  the map or struct in a field is owned as a whole
//	TYPE FIELD granular                the struct in a field is owned field by field, though its type is atomic
//	TYPE FIELD set                     a list of different scalars
//	TYPE FIELD map KEY[=DEFAULT]...    a list whose items are told apart by fields
//	TYPE FIELD deduced                 any JSON; its objects are owned field by field, its lists as a whole
//
// Run it with `go run ./tools/field-relations > apiserver/managed/relations.txt` after an update of client-go.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/schema"

	"coracle.dev/coracle/api/builtin"
)

// extra are the rows of the types that client-go has no schema of: what the +listType and +mapType markers in
// apiextensions-apiserver, kube-aggregator and network-policy-api say.
const extra = `k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.CustomResourceDefinitionStatus conditions map type
k8s.io/kube-aggregator/pkg/apis/apiregistration/v1.APIServiceStatus conditions map type
sigs.k8s.io/network-policy-api/apis/v1alpha2.ClusterNetworkPolicyEgressPeer domainNames set
sigs.k8s.io/network-policy-api/apis/v1alpha2.ClusterNetworkPolicyEgressPeer networks set
sigs.k8s.io/network-policy-api/apis/v1alpha2.ClusterNetworkPolicyStatus conditions map type
`

type generator struct {
	rows  map[string]bool
	seen  map[reflect.Type]string // the schema type that a struct was walked with
	known *schema.Schema
	bad   []string
}

func main() {
	g := &generator{rows: map[string]bool{}, seen: map[reflect.Type]string{}}
	converter := applyconfigurations.NewTypeConverter(scheme.Scheme)
	for _, k := range builtin.Kinds() {
		for i := range k.Versions {
			obj := k.Versions[i].New()
			if _, loose := obj.(runtime.Unstructured); loose {
				continue
			}
			gvk := k.GroupResource().WithVersion(k.Versions[i].Name).GroupVersion().WithKind(k.Kind)
			obj.GetObjectKind().SetGroupVersionKind(gvk)
			tv, err := converter.ObjectToTyped(obj)
			if err != nil {
				fmt.Fprintf(os.Stderr, "no schema of %s: %v\n", gvk, err)
				continue
			}
			g.known = tv.Schema()
			g.structure(reflect.TypeOf(obj).Elem(), tv.TypeRef())
		}
	}
	for _, row := range strings.Split(strings.TrimSpace(extra), "\n") {
		g.rows[row] = true
	}
	if len(g.bad) > 0 {
		fmt.Fprintln(os.Stderr, strings.Join(g.bad, "\n"))
		os.Exit(1)
	}
	rows := make([]string, 0, len(g.rows))
	for r := range g.rows {
		rows = append(rows, r)
	}
	slices.Sort(rows)
	w := bufio.NewWriter(os.Stdout)
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	if err := w.Flush(); err != nil {
		os.Exit(1)
	}
}

func (g *generator) fail(format string, args ...any) {
	g.bad = append(g.bad, fmt.Sprintf(format, args...))
}

func name(t reflect.Type) string { return t.PkgPath() + "." + t.Name() }

var marshaler = reflect.TypeFor[json.Marshaler]()

// structure walks a struct.
func (g *generator) structure(t reflect.Type, tr schema.TypeRef) {
	atom, ok := g.known.Resolve(schema.TypeRef{NamedType: tr.NamedType, Inlined: tr.Inlined})
	if !ok || atom.Map == nil {
		g.fail("%s is no map in the schema: %+v", name(t), tr)
		return
	}
	if atom.Map.ElementRelationship == schema.Atomic {
		g.rows[name(t)+" atomic"] = true
	}
	id := "inlined"
	if tr.NamedType != nil {
		id = *tr.NamedType
	}
	if have, ok := g.seen[t]; ok {
		if have != id {
			g.fail("%s is %s and %s in the schema", name(t), have, id)
		}
		return
	}
	g.seen[t] = id
	g.fields(t, t, atom.Map)
}

// fields walks the fields of a struct, those of embedded ones too, as fields of owner.
func (g *generator) fields(owner, t reflect.Type, m *schema.Map) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" || f.PkgPath != "" && !f.Anonymous {
			continue
		}
		if f.Anonymous && tag == "" {
			e := f.Type
			if e.Kind() == reflect.Pointer {
				e = e.Elem()
			}
			g.fields(owner, e, m)
			continue
		}
		sf, ok := m.FindField(tag)
		if !ok {
			g.fail("%s.%s is not in the schema", name(owner), tag)
			continue
		}
		g.value(owner, tag, f.Type, sf.Type)
	}
}

// value looks at what is in a field.
func (g *generator) value(owner reflect.Type, field string, t reflect.Type, tr schema.TypeRef) {
	at := name(owner) + " " + field
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	atom, ok := g.known.Resolve(tr)
	if !ok {
		g.fail("%s: no type", at)
		return
	}
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		switch {
		case atom.Map == nil && atom.List == nil:
		case atom.Map != nil && atom.Map.ElementRelationship != schema.Atomic && t == reflect.TypeFor[runtime.RawExtension]():
			g.rows[at+" deduced"] = true
		case atom.Map != nil && atom.Map.ElementRelationship == schema.Atomic:
		case field == "fieldsV1":
		default:
			g.fail("%s (%s) is not a scalar in the schema: %+v", at, t, atom)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		own := tr
		own.ElementRelationship = nil
		g.structure(t, own)
		if tr.ElementRelationship != nil {
			how := " granular"
			if *tr.ElementRelationship == schema.Atomic {
				how = " atomic"
			}
			g.rows[at+how] = true
		}
	case reflect.Map:
		if atom.Map == nil {
			g.fail("%s is no map in the schema", at)
			return
		}
		if atom.Map.ElementRelationship == schema.Atomic {
			g.rows[at+" atomic"] = true
		}
		g.element(at, t.Elem(), atom.Map.ElementType)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		if atom.List == nil {
			g.fail("%s is no list in the schema", at)
			return
		}
		if atom.List.ElementRelationship == schema.Associative {
			g.associative(at, atom.List)
		}
		g.element(at, t.Elem(), atom.List.ElementType)
	}
}

// element walks the items of a list or map, which must be as their type is by itself.
func (g *generator) element(at string, t reflect.Type, tr schema.TypeRef) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	atom, _ := g.known.Resolve(tr)
	switch {
	case t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler):
	case t.Kind() == reflect.Struct:
		if tr.ElementRelationship != nil {
			g.fail("%s: its items have a relation of their own", at)
		}
		g.structure(t, tr)
	case t.Kind() == reflect.Map && (atom.Map == nil || atom.Map.ElementRelationship == schema.Atomic),
		t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 && (atom.List == nil || atom.List.ElementRelationship == schema.Associative):
		g.fail("%s: its items have a relation that no row can say", at)
	}
}

func (g *generator) associative(at string, l *schema.List) {
	if len(l.Keys) == 0 {
		g.rows[at+" set"] = true
		return
	}
	item, _ := g.known.Resolve(l.ElementType)
	row := at + " map"
	for _, key := range l.Keys {
		row += " " + key
		if item.Map == nil {
			g.fail("%s: items are no maps", at)
			return
		}
		if f, ok := item.Map.FindField(key); ok && f.Default != nil {
			data, err := json.Marshal(f.Default)
			if err != nil || strings.ContainsAny(string(data), " =") {
				g.fail("%s: default %v", at, f.Default)
			}
			row += "=" + string(data)
		}
	}
	g.rows[row] = true
}
