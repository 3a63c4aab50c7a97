package apiextensions

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// props is one schema, or a part of one.
type props = apiextensions.JSONSchemaProps

// checker holds what a definition is held to. What it was allowed before, an update may leave as it is.
type checker struct {
	loose          bool // spec.preserveUnknownFields
	needSchema     bool // every version has a schema
	needStructural bool
	needPruned     bool // defaults hold no unknown fields
	needTypes      bool // types are those of OpenAPI
	needAtomicSets bool
	needMapKeys    bool
	hasDefaults    bool
	badAuthorities bool // a CA bundle that cannot be read is passed over
	knownReviews   bool
	manyFields     map[string]bool // versions that may keep too many selectable fields
	unchanged      map[string]bool // versions whose schema is as it was
	stored         storedExpressions
}

// newChecker says what a definition is held to; old is nil on create.
func newChecker(d, old *apiextensionsv1.CustomResourceDefinition) *checker {
	c := &checker{
		loose: d.Spec.PreserveUnknownFields, needSchema: true, needStructural: true, needPruned: true, needTypes: true,
		needAtomicSets: true, needMapKeys: true, badAuthorities: true, knownReviews: true,
	}
	if s, err := internal(&d.Spec); err == nil {
		c.hasDefaults = anySchema(s, func(p *props) bool { return p.Default != nil })
	}
	if old == nil {
		return c
	}
	s, err := internal(&old.Spec)
	if err != nil {
		return c
	}
	c.ratchet(d, old, s)
	if !c.loose || c.hasDefaults {
		c.needStructural = true
	}
	return c
}

// ratchet lets go of what the stored definition does not keep to.
func (c *checker) ratchet(d, old *apiextensionsv1.CustomResourceDefinition, s *spec) {
	for _, v := range old.Spec.Versions {
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			c.needSchema = false
		}
	}
	c.needStructural = !anyWhole(s, nonStructural)
	c.needPruned = !anyWhole(s, unprunedDefaults)
	c.needTypes = !anySchema(s, func(p *props) bool { return p.Type != "" && !slices.Contains(types, p.Type) })
	c.needAtomicSets = !anySchema(s, nonAtomicSet)
	c.needMapKeys = !anySchema(s, func(p *props) bool { return len(mapKeys(p, field.NewPath(""))) > 0 })
	c.badAuthorities = !Established(old)
	if w := old.Spec.Conversion; w != nil && w.Webhook != nil {
		list := w.Webhook.ConversionReviewVersions
		c.knownReviews = len(list) == 0 || slices.ContainsFunc(list, func(v string) bool { return slices.Contains(reviewVersions, v) })
		if w.Webhook.ClientConfig != nil && len(w.Webhook.ClientConfig.CABundle) > 0 {
			c.badAuthorities = c.badAuthorities || len(authorities(w.Webhook.ClientConfig.CABundle, nil)) > 0
		}
	}
	c.stored = expressionsOf(s)
	c.unchanged, c.manyFields = map[string]bool{}, map[string]bool{}
	for _, v := range d.Spec.Versions {
		for _, o := range old.Spec.Versions {
			if v.Name != o.Name {
				continue
			}
			c.unchanged[v.Name] = equality.Semantic.DeepEqual(v.Schema, o.Schema)
			if len(o.SelectableFields) > maxSelectableFields && equality.Semantic.DeepEqual(v.SelectableFields, o.SelectableFields) {
				c.manyFields[v.Name], c.manyFields[""] = true, true
			}
		}
	}
}

// anyWhole asks of each version's schema.
func anyWhole(s *spec, ask func(*props) bool) bool {
	if s.Validation != nil && s.Validation.OpenAPIV3Schema != nil && ask(s.Validation.OpenAPIV3Schema) {
		return true
	}
	for i := range s.Versions {
		if v := s.Versions[i].Schema; v != nil && v.OpenAPIV3Schema != nil && ask(v.OpenAPIV3Schema) {
			return true
		}
	}
	return false
}

// anySchema asks of every schema and all inside it, until one says yes.
func anySchema(s *spec, ask func(*props) bool) bool {
	return anyWhole(s, func(p *props) bool { return within(p, ask) })
}

func within(p *props, ask func(*props) bool) bool {
	if p == nil {
		return false
	}
	if ask(p) {
		return true
	}
	for _, list := range [][]props{p.AllOf, p.AnyOf, p.OneOf} {
		for i := range list {
			if within(&list[i], ask) {
				return true
			}
		}
	}
	for _, m := range []map[string]props{p.Properties, p.PatternProperties, p.Definitions} {
		for _, s := range m {
			if within(&s, ask) {
				return true
			}
		}
	}
	if p.Items != nil {
		if within(p.Items.Schema, ask) {
			return true
		}
		for i := range p.Items.JSONSchemas {
			if within(&p.Items.JSONSchemas[i], ask) {
				return true
			}
		}
	}
	for _, d := range p.Dependencies {
		if within(d.Schema, ask) {
			return true
		}
	}
	return within(p.Not, ask) ||
		p.AdditionalProperties != nil && within(p.AdditionalProperties.Schema, ask) ||
		p.AdditionalItems != nil && within(p.AdditionalItems.Schema, ask)
}

func nonStructural(p *props) bool {
	s, err := structural.NewStructural(p)
	return err != nil || len(structural.ValidateStructural(nil, s)) > 0
}

func unprunedDefaults(p *props) bool {
	if !within(p, func(p *props) bool { return p.Default != nil }) {
		return false
	}
	s, err := structural.NewStructural(p)
	if err != nil || len(structural.ValidateStructural(nil, s)) > 0 {
		return false
	}
	pruned := s.DeepCopy()
	return defaulting.PruneDefaults(pruned) == nil && !reflect.DeepEqual(s, pruned)
}

func nonAtomicSet(p *props) bool {
	if p.XListType == nil || *p.XListType != "set" || p.Items == nil || p.Items.Schema == nil {
		return false
	}
	switch item := p.Items.Schema; item.Type {
	case "array":
		return item.XListType != nil && *item.XListType != "atomic"
	case "object":
		return item.XMapType == nil || *item.XMapType != "atomic"
	}
	return false
}

// rootFields are what a schema may have at its root beside a status subresource, since the status
// is held to its part of the schema alone. The names are those of upstream's Go fields, which its error shows.
var rootFields = []string{"Description", "Type", "Format", "Title", "Maximum", "ExclusiveMaximum", "Minimum", "ExclusiveMinimum", "MaxLength", "MinLength", "Pattern", "MaxItems", "MinItems", "UniqueItems", "MultipleOf", "Required", "Items", "Properties", "ExternalDocs", "Example", "XPreserveUnknownFields", "XValidations"}

// validation checks the schema of a version, or of all.
func (c *checker) validation(v *apiextensions.CustomResourceValidation, status bool, version string, path *field.Path) field.ErrorList {
	if v == nil {
		return nil
	}
	if v.OpenAPIV3Schema == nil {
		return nil
	}
	root, at := v.OpenAPIV3Schema, path.Child("openAPIV3Schema")
	var errs field.ErrorList
	if status {
		errs = append(errs, statusRoot(root, path)...)
	}
	if root.Nullable {
		errs = append(errs, field.Forbidden(path.Child("openAPIV3Schema.nullable"), "nullable cannot be true at the root"))
	}
	structure, building, sound := c.structure(root, at)
	errs = append(errs, structure...)
	w := &walker{checker: c, cheap: c.unchanged[version]}
	var scope *scope
	if sound {
		scope = rootScope(root)
	}
	bad, badRules := w.schema(root, at, place{defaults: true, root: true}, scope)
	errs = append(append(errs, bad...), badRules...)
	if len(errs) == 0 {
		errs = append(errs, building...)
	}
	errs = append(errs, w.total.errors(at)...)
	if len(errs) == 0 {
		if _, _, err := validation.NewSchemaValidator(root); err != nil {
			errs = append(errs, field.Invalid(path, "", fmt.Sprintf("error building validator: %v", err)))
		}
	}
	return errs
}

// statusRoot refuses what cannot stand at the root of a schema beside a status subresource.
func statusRoot(root *props, path *field.Path) field.ErrorList {
	v := reflect.ValueOf(root).Elem()
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			continue
		}
		name := v.Type().Field(i).Name
		if name == "Type" {
			if root.Type != "object" {
				return field.ErrorList{field.Invalid(path.Child("openAPIV3Schema.type"), root.Type, `only "object" is allowed as the type at the root of the schema if the status subresource is enabled`)}
			}
			continue
		}
		if !slices.Contains(rootFields, name) {
			return field.ErrorList{field.Invalid(path.Child("openAPIV3Schema"), *root, fmt.Sprintf(`only %v fields are allowed at the root of the schema if the status subresource is enabled`, rootFields))}
		}
	}
	return nil
}

// structure checks that a schema is structural and its defaults are valid. building are errors that say the same as others
// will, and are shown only if there are no others; sound tells that expressions can be compiled.
func (c *checker) structure(root *props, at *field.Path) (errs, building field.ErrorList, sound bool) {
	extended := within(root, func(p *props) bool {
		return p.XEmbeddedResource || p.XPreserveUnknownFields != nil || p.XIntOrString || len(p.XListMapKeys) > 0 || p.XListType != nil || len(p.XValidations) > 0
	})
	if !c.needStructural && c.loose && !extended && !c.hasDefaults {
		return nil, nil, false
	}
	s, err := structural.NewStructural(root)
	if err != nil {
		return nil, field.ErrorList{field.Invalid(at, "", err.Error())}, false
	}
	if errs := structural.ValidateStructural(at, s); len(errs) > 0 {
		return errs, nil, false
	}
	errs, err = defaulting.ValidateDefaults(context.Background(), at, s, true, c.needPruned)
	if err != nil {
		return field.ErrorList{field.Invalid(at, "", err.Error())}, nil, false
	}
	return errs, nil, len(errs) == 0
}

// types are those of OpenAPI.
var types = []string{"array", "boolean", "integer", "number", "object", "string"}

// place is where in a schema a part stands.
type place struct {
	root bool
	// defaults tells whether it may have a default; why says why not.
	defaults bool
	why      string
	// meta is inside of the metadata of an object.
	meta bool
	// uncorrelated is the part above whose old and new values cannot be matched, nil if there is none.
	uncorrelated *field.Path
}

func (p place) without(why string) place {
	p.defaults, p.why = false, why
	return p
}

func (p place) below() place {
	p.root = false
	return p
}

func (p place) apart(path *field.Path) place {
	if p.uncorrelated == nil {
		p.uncorrelated = path
	}
	return p
}

// walker goes through one schema.
type walker struct {
	*checker
	cheap bool // rules are not held to a cost each, for they were stored before
	total totalCost
}

// schema checks one part of a schema and all below. Errors of expressions come apart: they are not looked for where there are others.
func (w *walker) schema(p *props, path *field.Path, at place, sc *scope) (errs, ruleErrs field.ErrorList) {
	if p == nil {
		return nil, nil
	}
	errs = w.standard(p, path, at)
	if p.UniqueItems {
		errs = append(errs, field.Forbidden(path.Child("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"))
	}
	add := func(below *props, path *field.Path, at place, sc *scope) {
		e, r := w.schema(below, path, at, sc)
		errs, ruleErrs = append(errs, e...), append(ruleErrs, r...)
	}
	if a := p.AdditionalProperties; a != nil {
		if len(p.Properties) > 0 && (!a.Allows || a.Schema != nil) {
			errs = append(errs, field.Forbidden(path.Child("additionalProperties"), "additionalProperties and properties are mutual exclusive"))
		}
		below := at.below()
		if at.meta {
			below = below.without("inside additionalProperties applying to object metadata")
		}
		add(a.Schema, path.Child("additionalProperties"), below, sc.values(a.Schema))
	}
	for _, name := range sorted(p.Properties) {
		s := p.Properties[name]
		add(&s, path.Child("properties").Key(name), property(p, name, path, at), sc.property(&s, name))
	}
	w.logical(p, path, at.below(), add)
	if p.Items != nil {
		below := at.below()
		if p.XListType == nil || *p.XListType != "map" {
			below = below.apart(path)
		}
		add(p.Items.Schema, path.Child("items"), below, sc.items(p.Items.Schema))
		for i := range p.Items.JSONSchemas {
			s := &p.Items.JSONSchemas[i]
			add(s, path.Child("items").Index(i), below, sc.items(s))
		}
	}
	errs = append(errs, w.extensions(p, path)...)
	errs = append(errs, ruleTexts(p, path)...)
	if len(errs) == 0 && len(p.XValidations) > 0 && sc != nil {
		ruleErrs = append(ruleErrs, w.compile(p, path.Child("x-kubernetes-validations"), at, sc)...)
	}
	return errs, ruleErrs
}

// property is the place of a property.
func property(p *props, name string, path *field.Path, at place) place {
	below := at.below()
	if !cel.MapIsCorrelatable(p.XMapType) {
		below = below.apart(path)
	}
	if (at.root || p.XEmbeddedResource) && (name == "metadata" || name == "kind" || name == "apiVersion") {
		below.meta = true
		if at.root {
			below = below.without("in top-level " + name)
		}
	}
	return below
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// logical goes into not, allOf, oneOf, anyOf, definitions and dependencies, where no expression can stand.
func (w *walker) logical(p *props, path *field.Path, at place, add func(*props, *field.Path, place, *scope)) {
	add(p.Not, path.Child("not"), at, nil)
	for _, l := range []struct {
		name string
		list []props
	}{{"allOf", p.AllOf}, {"oneOf", p.OneOf}, {"anyOf", p.AnyOf}} {
		for i := range l.list {
			add(&l.list[i], path.Child(l.name).Index(i), at, nil)
		}
	}
	for _, name := range sorted(p.Definitions) {
		s := p.Definitions[name]
		add(&s, path.Child("definitions").Key(name), at, nil)
	}
	for _, name := range sorted(p.Dependencies) {
		add(p.Dependencies[name].Schema, path.Child("dependencies").Key(name), at, nil)
	}
}

// standard refuses what OpenAPI has and Kubernetes does not take.
func (w *walker) standard(p *props, path *field.Path, at place) field.ErrorList {
	var errs field.ErrorList
	if w.needTypes && p.Type != "" && !slices.Contains(types, p.Type) {
		errs = append(errs, field.NotSupported(path.Child("type"), p.Type, types))
	}
	if p.Default != nil && !at.defaults {
		errs = append(errs, field.Forbidden(path.Child("default"), strings.TrimSpace("must not be set "+at.why)))
	}
	forbid := func(is bool, name, why string) {
		if is {
			errs = append(errs, field.Forbidden(path.Child(name), why))
		}
	}
	forbid(p.ID != "", "id", "id is not supported")
	forbid(p.AdditionalItems != nil, "additionalItems", "additionalItems is not supported")
	forbid(len(p.PatternProperties) != 0, "patternProperties", "patternProperties is not supported")
	forbid(len(p.Definitions) != 0, "definitions", "definitions is not supported")
	forbid(p.Dependencies != nil, "dependencies", "dependencies is not supported")
	forbid(p.Ref != nil, "$ref", "$ref is not supported")
	forbid(p.Type == "null", "type", "type cannot be set to null, use nullable as an alternative")
	forbid(p.Items != nil && len(p.Items.JSONSchemas) != 0, "items", "items must be a schema object and not an array")
	forbid(at.meta && p.XEmbeddedResource, "x-kubernetes-embedded-resource", "must not be used inside of resource meta")
	return errs
}

// extensions checks what Kubernetes adds to OpenAPI.
func (w *walker) extensions(p *props, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.XPreserveUnknownFields != nil && !*p.XPreserveUnknownFields {
		errs = append(errs, field.Invalid(path.Child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined"))
	}
	if p.XMapType != nil {
		errs = append(errs, wrongType(p, "object", "must be object if x-kubernetes-map-type is specified", path)...)
		errs = append(errs, oneOf(path.Child("x-kubernetes-map-type"), *p.XMapType, "atomic", "granular")...)
	}
	if p.XListType != nil {
		if bad := wrongType(p, "array", "must be array if x-kubernetes-list-type is specified", path); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if w.needAtomicSets && nonAtomicSet(p) {
			name := "x-kubernetes-map-type"
			if p.Items.Schema.Type == "array" {
				name = "x-kubernetes-list-type"
			}
			errs = append(errs, field.Invalid(path.Child("items").Child(name), p.Items.Schema.XListType, "must be atomic as item of a list with x-kubernetes-list-type=set"))
		}
		errs = append(errs, oneOf(path.Child("x-kubernetes-list-type"), *p.XListType, "atomic", "set", "map")...)
	}
	errs = append(errs, listMap(p, path)...)
	if w.needMapKeys {
		errs = append(errs, mapKeys(p, path)...)
	}
	return errs
}

func wrongType(p *props, want, why string, path *field.Path) field.ErrorList {
	switch p.Type {
	case want:
		return nil
	case "":
		return field.ErrorList{field.Required(path.Child("type"), why)}
	}
	return field.ErrorList{field.Invalid(path.Child("type"), p.Type, why)}
}

func oneOf(path *field.Path, value string, allowed ...string) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

// listMap checks lists whose items are told apart by keys.
func listMap(p *props, path *field.Path) field.ErrorList {
	const keys, kind = "x-kubernetes-list-map-keys", "x-kubernetes-list-type"
	var errs field.ErrorList
	isMap := p.XListType != nil && *p.XListType == "map"
	if len(p.XListMapKeys) > 0 && !isMap {
		const why = "must be map if x-kubernetes-list-map-keys is non-empty"
		if p.XListType == nil {
			return append(errs, field.Required(path.Child(kind), why))
		}
		return append(errs, field.Invalid(path.Child(kind), *p.XListType, why))
	}
	if !isMap {
		return nil
	}
	if len(p.XListMapKeys) == 0 {
		errs = append(errs, field.Required(path.Child(keys), "must not be empty if x-kubernetes-list-type is map"))
	}
	items := path.Child("items")
	switch {
	case p.Items == nil:
		return append(errs, field.Required(items, "must have a schema if x-kubernetes-list-type is map"))
	case p.Items.Schema == nil:
		return append(errs, field.Invalid(items, p.Items, "must only have a single schema if x-kubernetes-list-type is map"))
	case p.Items.Schema.Type != "object":
		return append(errs, field.Invalid(items.Child("type"), p.Items.Schema.Type, "must be object if parent array's x-kubernetes-list-type is map"))
	}
	seen := map[string]bool{}
	for _, k := range p.XListMapKeys {
		s, ok := p.Items.Schema.Properties[k]
		switch {
		case !ok:
			errs = append(errs, field.Invalid(path.Child(keys), p.XListMapKeys, "entries must all be names of item properties"))
		case s.Type == "array" || s.Type == "object":
			errs = append(errs, field.Invalid(items.Child("properties").Key(k).Child("type"), p.Items.Schema.Type, "must be a scalar type if parent array's x-kubernetes-list-type is map"))
		}
		if seen[k] {
			errs = append(errs, field.Invalid(path.Child(keys), p.XListMapKeys, "must not contain duplicate entries"))
		}
		seen[k] = true
	}
	return errs
}

// mapKeys checks that the keys of a list's items are always there, and that items are.
func mapKeys(p *props, path *field.Path) field.ErrorList {
	if p.Items == nil || p.Items.Schema == nil || p.XListType == nil || *p.XListType != "set" && *p.XListType != "map" {
		return nil
	}
	items := path.Child("items")
	var errs field.ErrorList
	if p.Items.Schema.Nullable {
		errs = append(errs, field.Forbidden(items.Child("nullable"), "cannot be nullable when x-kubernetes-list-type is "+*p.XListType))
	}
	if *p.XListType != "map" {
		return errs
	}
	for _, k := range p.XListMapKeys {
		s, ok := p.Items.Schema.Properties[k]
		if !ok {
			continue
		}
		at := items.Child("properties").Key(k)
		if s.Default == nil && !slices.Contains(p.Items.Schema.Required, k) {
			errs = append(errs, field.Required(at.Child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"))
		}
		if s.Nullable {
			errs = append(errs, field.Forbidden(at.Child("nullable"), "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"))
		}
	}
	return errs
}
