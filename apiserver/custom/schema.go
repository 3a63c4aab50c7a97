package custom

import (
	"fmt"
	"sync"
	"sync/atomic"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"coracle.dev/coracle/api"
)

// rules are what one version of a definition says of its objects. Everything that costs something is made at first
// use, shared while it is used, and let go when others are used instead (keep). Safe for concurrent use.
type rules struct {
	version *apiextensionsv1.CustomResourceDefinitionVersion // shared, never changed
	kind    schema.GroupVersionKind
	// loose is spec.preserveUnknownFields, which definitions have that are older than v1.
	loose bool
	keep  *keep

	made atomic.Pointer[compiled]
	used atomic.Int64 // when made was used last, by the count of keep
}

// compiled is what was made of a schema.
type compiled struct {
	s   *structural.Structural // nil if there is none
	err error

	checks struct {
		once sync.Once
		all  validation.SchemaValidator
		// status is for the status alone, nil where the schema has none.
		status validation.SchemaValidator
		err    error
	}
	programs struct {
		once sync.Once
		v    *cel.Validator // nil without rules
	}
}

// compiled gives what was made of the schema, or makes it.
func (r *rules) compiled() *compiled {
	r.used.Store(r.keep.tick())
	if c := r.made.Load(); c != nil {
		return c
	}
	c := &compiled{}
	c.s, c.err = r.build()
	if !r.made.CompareAndSwap(nil, c) {
		if other := r.made.Load(); other != nil {
			return other
		}
		return c
	}
	r.keep.add(r, nodes(c.s)*nodeCost)
	return c
}

// noSchema is what a version without a schema shows.
var noSchema = &apiextensionsv1.JSONSchemaProps{Type: "object"}

// props is the schema as the definition has it.
func (r *rules) props() *apiextensionsv1.JSONSchemaProps {
	if r.version.Schema == nil || r.version.Schema.OpenAPIV3Schema == nil {
		return noSchema
	}
	return r.version.Schema.OpenAPIV3Schema
}

// internal converts the schema into the form that the library's functions take.
func (r *rules) internal() (*apiextensions.JSONSchemaProps, error) {
	if r.version.Schema == nil || r.version.Schema.OpenAPIV3Schema == nil {
		return nil, nil
	}
	out := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(r.version.Schema.OpenAPIV3Schema, out, nil); err != nil {
		return nil, fmt.Errorf("the server could not properly serve the CR schema: %w", err)
	}
	return out, nil
}

// structure is the structural schema, with defaults that fit into it.
func (r *rules) structure() (*structural.Structural, error) {
	c := r.compiled()
	return c.s, c.err
}

func (r *rules) build() (*structural.Structural, error) {
	props, err := r.internal()
	if err != nil || props == nil {
		return nil, err
	}
	s, err := structural.NewStructural(props)
	switch {
	case r.loose && err != nil:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("the server could not properly serve the CR schema: %w", err)
	case r.loose:
		return s, nil
	}
	s = s.DeepCopy() // the defaults are shared with the definition
	if err := defaulting.PruneDefaults(s); err != nil {
		return nil, fmt.Errorf("the server could not properly serve the CR schema: %w", err)
	}
	return s, nil
}

// validators gives those of whole objects and of their status.
func (r *rules) validators() (all, status validation.SchemaValidator, err error) {
	c := &r.compiled().checks
	c.once.Do(func() {
		props, err := r.internal()
		if err != nil {
			c.err = err
			return
		}
		if c.all, _, c.err = validation.NewSchemaValidator(props); c.err != nil || props == nil {
			return
		}
		if s, ok := props.Properties["status"]; ok {
			c.status, _, c.err = validation.NewSchemaValidator(&s)
		}
	})
	return c.all, c.status, c.err
}

// expressions are the compiled CEL rules, nil if there are none.
func (r *rules) expressions() *cel.Validator {
	c := r.compiled()
	c.programs.once.Do(func() {
		if c.err == nil && c.s != nil {
			c.programs.v = cel.NewValidator(c.s, true, celconfig.PerCallLimit)
		}
	})
	return c.programs.v
}

// settle makes of a decoded body an object of this version: type and metadata are in order, unknown fields and nulls that
// mean nothing are gone. With strict set, it names what it took out.
func (r *rules) settle(u *unstructured.Unstructured, apiVersion string, strict bool) ([]error, error) {
	if u.Object == nil {
		u.Object = map[string]any{}
	}
	for field, value := range map[string]string{"apiVersion": apiVersion, "kind": r.kind.Kind} {
		switch have := u.Object[field].(type) {
		case nil:
			u.Object[field] = value
		case string:
			if have == "" {
				u.Object[field] = value
			}
		default:
			return nil, fmt.Errorf(".%s accessor error: %v is of the type %T, expected string", field, have, have)
		}
	}
	unknown, err := r.coerce(u.Object, false, strict)
	if err != nil || !strict {
		return nil, err
	}
	var errs []error
	for _, path := range unknown {
		errs = append(errs, fmt.Errorf("unknown field %q", path))
	}
	return errs, nil
}

// coerce does for an unstructured object what decoding into a Go struct does for others: metadata has its types, what the schema
// does not know is taken out. drop takes out malformed metadata instead of failing; paths names what was taken out.
func (r *rules) coerce(obj map[string]any, drop, paths bool) ([]string, error) {
	kind, apiVersion := obj["kind"], obj["apiVersion"]
	meta, found, unknown, err := objectmeta.GetObjectMetaWithOptions(obj, objectmeta.ObjectMetaOptions{
		DropMalformedFields: drop, ReturnUnknownFieldPaths: paths,
	})
	if err != nil {
		return nil, err
	}
	s, err := r.structure()
	if err != nil {
		return nil, err
	}
	if !r.loose {
		unknown = append(unknown, pruning.PruneWithOptions(obj, s, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: paths})...)
		defaulting.PruneNonNullableNullsWithoutDefaults(obj, s)
	}
	bad, more := objectmeta.CoerceWithOptions(nil, obj, s, false, objectmeta.CoerceOptions{
		DropInvalidFields: drop, ReturnUnknownFieldPaths: paths,
	})
	if bad != nil {
		return nil, bad
	}
	if kind != nil {
		obj["kind"] = kind
	}
	if apiVersion != nil {
		obj["apiVersion"] = apiVersion
	}
	if found {
		if err := objectmeta.SetObjectMeta(obj, meta); err != nil {
			return nil, err
		}
	}
	return append(unknown, more...), nil
}

// setDefaults fills in the schema's defaults.
func (r *rules) setDefaults(obj api.Object) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return
	}
	if s, err := r.structure(); err == nil && s != nil {
		defaulting.Default(u.UnstructuredContent(), s)
	}
}

// read is a stored object as this version shows it today: the schema may have been changed since it was written. It is the
// same object if nothing has to change, else a copy.
func (r *rules) read(u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	s, err := r.structure()
	if err != nil {
		return nil, err
	}
	if r.settled(u.Object, s) {
		return u, nil
	}
	out := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(u.Object)}
	if _, err := r.coerce(out.Object, true, false); err != nil {
		return nil, err
	}
	if s != nil {
		defaulting.Default(out.Object, s)
	}
	return out, nil
}

// settled tells that coerce and setDefaults would change nothing outside of metadata, which has been in order since the object was
// written. Where that is not plain it says no.
func (r *rules) settled(obj map[string]any, s *structural.Structural) bool {
	return r.loose || s == nil || plain(obj, s, true)
}

// plain is settled of one value and the schema it is under.
func plain(value any, s *structural.Structural, root bool) bool {
	switch v := value.(type) {
	case map[string]any:
		return plainMap(v, s, root)
	case []any:
		if s.Items == nil {
			return s.XPreserveUnknownFields || len(v) == 0
		}
		for _, item := range v {
			if item == nil || !plain(item, s.Items, false) {
				return false
			}
		}
	}
	return true
}

func plainMap(m map[string]any, s *structural.Structural, root bool) bool {
	if s.XEmbeddedResource && !root {
		return false
	}
	for k, v := range m {
		if root && (k == "metadata" || k == "kind" || k == "apiVersion") {
			continue
		}
		below, known := s.Properties[k]
		switch {
		case known:
		case s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil:
			below = *s.AdditionalProperties.Structural
		case s.XPreserveUnknownFields, s.AdditionalProperties != nil && s.AdditionalProperties.Bool:
			continue
		default:
			return false
		}
		if v == nil && !below.Nullable || v != nil && !plain(v, &below, false) {
			return false
		}
	}
	for k := range s.Properties {
		if s.Properties[k].Default.Object != nil {
			if _, ok := m[k]; !ok {
				return false
			}
		}
	}
	return true
}
