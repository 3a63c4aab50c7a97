package managed

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// anyAtomic is any JSON, owned as a whole; anyDeduced any JSON whose objects are owned field by field.
const (
	anyAtomic  = "__untyped_atomic_"
	anyDeduced = "__untyped_deduced_"
)

// typeOf makes of a plan the schema that structured-merge-diff works with. It knows the types of that one kind only.
func typeOf(root *plan) *typed.ParseableType {
	b := &schemaBuilder{names: map[*plan]string{}, structs: map[*plan]*schema.Map{}}
	ref := b.ref(root)
	b.untyped()
	return &typed.ParseableType{TypeRef: ref, Schema: &schema.Schema{Types: b.types}}
}

type schemaBuilder struct {
	names   map[*plan]string
	structs map[*plan]*schema.Map
	types   []schema.TypeDef
}

func (b *schemaBuilder) untyped() {
	scalar := schema.Untyped
	atomic, deduced := anyAtomic, anyDeduced
	inner := schema.TypeRef{NamedType: &atomic}
	for _, name := range []string{anyAtomic, anyDeduced} {
		m := &schema.Map{ElementType: inner, ElementRelationship: schema.Atomic}
		if name == anyDeduced {
			m = &schema.Map{ElementType: schema.TypeRef{NamedType: &deduced}, ElementRelationship: schema.Separable}
		}
		b.types = append(b.types, schema.TypeDef{Name: name, Atom: schema.Atom{
			Scalar: &scalar, List: &schema.List{ElementType: inner, ElementRelationship: schema.Atomic}, Map: m,
		}})
	}
}

// simpleTypes have a JSON form of their own that is a scalar.
var simpleTypes = map[reflect.Type]bool{
	reflect.TypeFor[metav1.Time](): true, reflect.TypeFor[metav1.MicroTime](): true, reflect.TypeFor[metav1.Duration](): true,
	reflect.TypeFor[resource.Quantity](): true, reflect.TypeFor[intstr.IntOrString](): true,
}

// scalarRef is the type of a scalar.
func scalarRef(t reflect.Type) schema.TypeRef {
	kind := schema.Untyped
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		if !simpleTypes[t] {
			name := anyAtomic
			return schema.TypeRef{NamedType: &name}
		}
		return schema.TypeRef{Inlined: schema.Atom{Scalar: &kind}}
	}
	switch t.Kind() {
	case reflect.String, reflect.Slice:
		kind = schema.String
	case reflect.Bool:
		kind = schema.Boolean
	case reflect.Interface:
		name := anyAtomic
		return schema.TypeRef{NamedType: &name}
	default:
		kind = schema.Numeric
	}
	return schema.TypeRef{Inlined: schema.Atom{Scalar: &kind}}
}

// ref gives the type of a plan, adding it at need.
func (b *schemaBuilder) ref(p *plan) schema.TypeRef {
	switch p.form {
	case scalar:
		return scalarRef(p.typ)
	case list:
		return schema.TypeRef{Inlined: schema.Atom{List: b.list(p)}}
	case mapping:
		m := &schema.Map{ElementType: b.ref(p.item)}
		if p.atomic {
			m.ElementRelationship = schema.Atomic
		}
		return schema.TypeRef{Inlined: schema.Atom{Map: m}}
	}
	name, ok := b.names[p]
	if !ok {
		name = p.typ.PkgPath() + "." + p.typ.Name() + "#" + strconv.Itoa(len(b.names))
		b.names[p] = name
		m := &schema.Map{}
		b.structs[p] = m
		b.types = append(b.types, schema.TypeDef{Name: name, Atom: schema.Atom{Map: m}})
		b.structure(m, p)
	}
	return schema.TypeRef{NamedType: &name}
}

func (b *schemaBuilder) structure(m *schema.Map, p *plan) {
	if p.atomic {
		m.ElementRelationship = schema.Atomic
	}
	if len(p.fields) == 0 {
		name := anyDeduced
		m.ElementType = schema.TypeRef{NamedType: &name}
	}
	m.Fields = make([]schema.StructField, len(p.fields))
	for i := range p.fields {
		m.Fields[i].Name = p.fields[i].name
		m.Fields[i].Type = b.ref(p.fields[i].plan)
	}
}

func (b *schemaBuilder) list(p *plan) *schema.List {
	l := &schema.List{ElementType: b.ref(p.item), ElementRelationship: schema.Atomic}
	if p.set || p.keys != nil {
		l.ElementRelationship = schema.Associative
	}
	for i := range p.keys {
		k := &p.keys[i]
		l.Keys = append(l.Keys, k.name)
		if k.standard != "" {
			b.standard(b.structs[p.item], k)
		}
	}
	return l
}

// standard sets the default of a key in the struct of the items.
func (b *schemaBuilder) standard(m *schema.Map, k *keyField) {
	for i := range m.Fields {
		if m.Fields[i].Name == k.name {
			_ = json.Unmarshal([]byte(k.standard), &m.Fields[i].Default)
			if n, ok := m.Fields[i].Default.(float64); ok {
				m.Fields[i].Default = int64(n)
			}
			return
		}
	}
	panic(fmt.Sprintf("no key %q", k.name))
}
