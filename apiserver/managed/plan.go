package managed

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// form says how the fields in a value are owned.
type form uint8

const (
	// scalar: as a whole, as anything with a JSON form of its own is.
	scalar form = iota
	// structure and mapping: field by field, key by key.
	structure
	mapping
	// list: as a whole, unless keys or set say more.
	list
)

// plan is what the walk has to know of a type in its place. Plans are immutable once made and shared; those of types that
// contain themselves are cyclic.
type plan struct {
	form form
	// atomic values are owned as a whole whatever they are made of.
	atomic bool
	// set is a list of different scalars.
	set bool
	// keys tell the items of a list apart, in the order of their names.
	keys []keyField
	typ  reflect.Type // without pointers
	// fields of a structure, in the order of their JSON names.
	fields []fieldPlan
	// item is the plan of what is in a list or a mapping.
	item *plan
	// equal compares two scalars.
	equal func(a, b reflect.Value) bool
}

// fieldPlan is a field of a struct as JSON has it; those of embedded structs are among those of the outer one.
type fieldPlan struct {
	name     string
	key      string // "f:" + name
	index    []int
	omit     bool // omitempty
	omitZero func(reflect.Value) bool
	plan     *plan
	// untracked fields are never owned (metadata.uid).
	untracked bool
}

// keyField is a field that an item is known by.
type keyField struct {
	fieldPlan
	// standard is the JSON of its default, "" for none.
	standard string
}

//go:embed relations.txt
var relationsText string

// relation is a row of relations.txt.
type relation struct {
	how  string // "atomic", "granular", "set", "map"
	keys []string
}

// relations reads the table, by "TYPE" and "TYPE FIELD". Only the making of plans needs it.
func relations() map[string]relation {
	out := make(map[string]relation, strings.Count(relationsText, "\n"))
	for line := range strings.Lines(relationsText) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2:
			out[words[0]] = relation{how: words[1]}
		case len(words) > 2:
			out[words[0]+" "+words[1]] = relation{words[2], words[3:]}
		}
	}
	return out
}

// plans holds the plans of root types. It is safe for concurrent use.
type plans struct {
	made sync.Map // reflect.Type -> *plan

	mu    sync.Mutex // guards all below, which making uses
	types map[planKey]*plan
}

// planKey tells apart the plans of a type in different places.
type planKey struct {
	typ reflect.Type
	how string // of the field that it is in, "" for nothing special
}

// of gives the plan of a kind's struct type, making it at the first call. That takes some hundred microseconds and, for
// a pod, about 250 kB; types that kinds have in common are shared.
func (p *plans) of(t reflect.Type) *plan {
	if have, ok := p.made.Load(t); ok {
		return have.(*plan)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.types == nil {
		p.types = map[planKey]*plan{}
	}
	m := &planner{relations: relations(), types: p.types}
	have, _ := p.made.LoadOrStore(t, m.root(t))
	return have.(*plan)
}

type planner struct {
	relations map[string]relation
	types     map[planKey]*plan
}

// untracked are the fields of the metadata of an object that nobody owns.
var untracked = map[string]bool{
	"name": true, "namespace": true, "creationTimestamp": true, "selfLink": true, "uid": true, "generation": true,
	"managedFields": true, "resourceVersion": true,
}

// root is the plan of an object: its type and the fields that the server keeps are not tracked.
func (m *planner) root(t reflect.Type) *plan {
	out := *m.value(t, relation{})
	out.fields = slices.Clone(out.fields)
	for i := range out.fields {
		f := &out.fields[i]
		switch f.name {
		case "apiVersion", "kind":
			f.untracked = true
		case "metadata":
			meta := *f.plan
			meta.fields = slices.Clone(meta.fields)
			for j := range meta.fields {
				meta.fields[j].untracked = untracked[meta.fields[j].name]
			}
			f.plan = &meta
		}
	}
	return &out
}

var marshaler = reflect.TypeFor[json.Marshaler]()

// value is the plan of a type in a place.
func (m *planner) value(t reflect.Type, r relation) *plan {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	key := planKey{t, r.how + " " + strings.Join(r.keys, " ")}
	if have := m.types[key]; have != nil {
		return have
	}
	p := &plan{typ: t, atomic: r.how == "atomic"}
	m.types[key] = p
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		p.equal = equality(t)
		return p
	}
	switch t.Kind() {
	case reflect.Struct:
		p.form = structure
		if r.how != "granular" && m.relations[t.PkgPath()+"."+t.Name()].how == "atomic" {
			p.atomic = true
		}
		p.fields = m.fields(t, t, nil)
		slices.SortFunc(p.fields, func(a, b fieldPlan) int { return strings.Compare(a.name, b.name) })
	case reflect.Map:
		p.form = mapping
		p.item = m.value(t.Elem(), relation{})
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			p.equal = equality(t)
			break
		}
		p.form = list
		p.item = m.value(t.Elem(), relation{})
		p.set = r.how == "set"
		if r.how == "map" {
			p.keys = keyFields(p.item, r.keys)
		}
		p.atomic = !p.set && p.keys == nil
	default:
		p.equal = equality(t)
	}
	return p
}

// fields gives the fields of a struct and those embedded in it.
func (m *planner) fields(owner, t reflect.Type, index []int) []fieldPlan {
	var out []fieldPlan
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || f.PkgPath != "" && !f.Anonymous {
			continue
		}
		at := append(slices.Clone(index), i)
		if f.Anonymous && name == "" {
			if f.Type.Kind() != reflect.Struct {
				panic(fmt.Sprintf("%s embeds %s, which is no struct", owner, f.Type))
			}
			out = append(out, m.fields(owner, f.Type, at)...)
			continue
		}
		if name == "" {
			name = f.Name
		}
		p := fieldPlan{name: name, key: "f:" + name, index: at, omit: hasOption(opts, "omitempty")}
		if hasOption(opts, "omitzero") {
			p.omitZero = value.OmitZeroFunc(f.Type)
		}
		p.plan = m.value(f.Type, m.relations[owner.PkgPath()+"."+owner.Name()+" "+name])
		out = append(out, p)
	}
	return out
}

func hasOption(opts, want string) bool { return slices.Contains(strings.Split(opts, ","), want) }

// keyFields finds the keys of a list in the struct of its items.
func keyFields(item *plan, keys []string) []keyField {
	out := []keyField{}
	for _, word := range keys {
		name, standard, _ := strings.Cut(word, "=")
		for _, f := range item.fields {
			if f.name == name {
				out = append(out, keyField{f, standard})
			}
		}
	}
	slices.SortFunc(out, func(a, b keyField) int { return strings.Compare(a.name, b.name) })
	return out
}

// equality tells how two scalars of a type are compared: by their JSON.
func equality(t reflect.Type) func(a, b reflect.Value) bool {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return func(a, b reflect.Value) bool {
			x, y := pointer[metav1.Time](a), pointer[metav1.Time](b)
			return x.IsZero() == y.IsZero() && (x.IsZero() || x.Unix() == y.Unix())
		}
	case reflect.TypeFor[metav1.MicroTime]():
		return func(a, b reflect.Value) bool {
			x, y := pointer[metav1.MicroTime](a), pointer[metav1.MicroTime](b)
			return x.IsZero() == y.IsZero() && (x.IsZero() || x.UnixMicro() == y.UnixMicro())
		}
	case reflect.TypeFor[resource.Quantity]():
		return func(a, b reflect.Value) bool {
			x, y := pointer[resource.Quantity](a), pointer[resource.Quantity](b)
			return x.Format == y.Format && x.Cmp(*y) == 0 || x.String() == y.String()
		}
	case reflect.TypeFor[intstr.IntOrString]():
		return func(a, b reflect.Value) bool {
			x, y := pointer[intstr.IntOrString](a), pointer[intstr.IntOrString](b)
			return x.Type == y.Type && (x.Type == intstr.Int && x.IntVal == y.IntVal || x.Type == intstr.String && x.StrVal == y.StrVal)
		}
	case reflect.TypeFor[metav1.Duration]():
		return func(a, b reflect.Value) bool { return a.Field(0).Int() == b.Field(0).Int() }
	case reflect.TypeFor[runtime.RawExtension]():
		return func(a, b reflect.Value) bool {
			x, y := pointer[runtime.RawExtension](a), pointer[runtime.RawExtension](b)
			return len(x.Raw) > 0 && string(x.Raw) == string(y.Raw) || sameJSON(a, b)
		}
	}
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		return sameJSON
	}
	switch t.Kind() {
	case reflect.String:
		return func(a, b reflect.Value) bool { return a.String() == b.String() }
	case reflect.Bool:
		return func(a, b reflect.Value) bool { return a.Bool() == b.Bool() }
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(a, b reflect.Value) bool { return a.Int() == b.Int() }
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(a, b reflect.Value) bool { return a.Uint() == b.Uint() }
	case reflect.Float32, reflect.Float64:
		return func(a, b reflect.Value) bool { return a.Float() == b.Float() }
	case reflect.Slice:
		return func(a, b reflect.Value) bool { return string(a.Bytes()) == string(b.Bytes()) }
	}
	return sameJSON
}

// pointer gives access to a value without a copy where it can be had.
func pointer[T any](v reflect.Value) *T {
	if v.CanAddr() {
		return v.Addr().Interface().(*T)
	}
	x := v.Interface().(T)
	return &x
}

// sameJSON compares values by what their JSON says.
func sameJSON(a, b reflect.Value) bool {
	x, errX := json.Marshal(addressable(a))
	y, errY := json.Marshal(addressable(b))
	if errX != nil || errY != nil {
		return false
	}
	if string(x) == string(y) {
		return true
	}
	var u, v any
	return json.Unmarshal(x, &u) == nil && json.Unmarshal(y, &v) == nil && reflect.DeepEqual(u, v)
}

func addressable(v reflect.Value) any {
	if v.CanAddr() {
		return v.Addr().Interface()
	}
	return v.Interface()
}
