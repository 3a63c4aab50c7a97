package apiextensions

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/cert"

	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/api/webhook"
)

const maxSelectableFields = 8

var (
	columnTypes    = []string{"boolean", "date", "integer", "number", "string"}
	columnFormats  = []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}
	reviewVersions = []string{"v1", "v1beta1"}
)

// spec is a specification as it is checked: what all versions share stands in it once, as upstream's errors name it
// ("spec.validation", not "spec.versions[0].schema").
type spec = apiextensions.CustomResourceDefinitionSpec

// internal gives a specification in that form.
func internal(s *apiextensionsv1.CustomResourceDefinitionSpec) (*spec, error) {
	out := &spec{}
	return out, apiextensionsv1.Convert_v1_CustomResourceDefinitionSpec_To_apiextensions_CustomResourceDefinitionSpec(s, out, nil)
}

// invalid is one error for all that is wrong with a value.
func invalid(path *field.Path, value string, messages []string, prefix string) field.ErrorList {
	if len(messages) == 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, value, prefix+strings.Join(messages, ","))}
}

// check holds a definition to its rules; old is nil on create.
func check(d, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	path := field.NewPath("spec")
	s, err := internal(&d.Spec)
	if err != nil {
		return field.ErrorList{field.Invalid(path, "", err.Error())}
	}
	c := newChecker(d, old)
	var errs field.ErrorList
	if old == nil && d.Name != s.Names.Plural+"."+s.Group {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), d.Name, `must be spec.names.plural+"."+spec.group`))
	}
	switch {
	case s.Group == "":
		errs = append(errs, field.Required(path.Child("group"), ""))
	case len(validate.DNSSubdomain(s.Group)) > 0:
		errs = append(errs, invalid(path.Child("group"), s.Group, validate.DNSSubdomain(s.Group), "")...)
	case !strings.Contains(s.Group, "."):
		errs = append(errs, field.Invalid(path.Child("group"), s.Group, "should be a domain with at least one dot"))
	}
	errs = append(errs, validate.RequiredOneOf(s.Scope, path.Child("scope"), apiextensions.ClusterScoped, apiextensions.NamespaceScoped)...)
	errs = append(errs, c.versions(s, path)...)
	for _, f := range []struct{ name, value string }{
		{"plural", s.Names.Plural}, {"singular", s.Names.Singular}, {"kind", s.Names.Kind}, {"listKind", s.Names.ListKind},
	} {
		if f.value == "" {
			errs = append(errs, field.Required(path.Child("names", f.name), ""))
		}
	}
	errs = append(errs, names(&d.Spec.Names, path.Child("names"))...)
	errs = append(errs, c.shared(s, path)...)
	if s.Conversion != nil {
		if d.Spec.Conversion.Strategy != apiextensionsv1.NoneConverter && d.Spec.PreserveUnknownFields {
			errs = append(errs, field.Invalid(path.Child("conversion", "strategy"), s.Conversion.Strategy, "must be None if spec.preserveUnknownFields is true"))
		}
		errs = append(errs, c.conversion(d.Spec.Conversion, path.Child("conversion"))...)
	}
	errs = append(errs, names(&d.Status.AcceptedNames, field.NewPath("status", "acceptedNames"))...)
	errs = append(errs, storedVersions(d)...)
	errs = append(errs, checkApproval(d, old)...)
	if d.Spec.PreserveUnknownFields && (old == nil || !old.Spec.PreserveUnknownFields) {
		errs = append(errs, field.Invalid(path.Child("preserveUnknownFields"), true,
			"cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"))
	}
	return errs
}

// shared checks what all versions have in common.
func (c *checker) shared(s *spec, path *field.Path) field.ErrorList {
	status := hasStatus(s.Subresources)
	for i := range s.Versions {
		status = status || hasStatus(s.Versions[i].Subresources)
	}
	errs := c.validation(s.Validation, status, s.Version, path.Child("validation"))
	errs = append(errs, subresources(s.Subresources, path.Child("subresources"))...)
	for i := range s.AdditionalPrinterColumns {
		errs = append(errs, column(&s.AdditionalPrinterColumns[i], path.Child("additionalPrinterColumns").Index(i))...)
	}
	if len(s.SelectableFields) > 0 {
		if s.Validation == nil {
			return append(errs, field.Invalid(path.Child("selectableFields"), "", "may only be set when validations.schema is included"))
		}
		errs = append(errs, c.selectable(s.SelectableFields, s.Validation.OpenAPIV3Schema, "", path)...)
	}
	return errs
}

func hasStatus(s *apiextensions.CustomResourceSubresources) bool { return s != nil && s.Status != nil }

func names(n *apiextensionsv1.CustomResourceDefinitionNames, path *field.Path) field.ErrorList {
	const mixed = "may have mixed case, but should otherwise match: "
	var errs field.ErrorList
	label := func(path *field.Path, value, prefix string) {
		if value == "" {
			return
		}
		text := value
		if prefix != "" {
			text = strings.ToLower(value)
		}
		errs = append(errs, invalid(path, value, content.IsDNS1035Label(text), prefix)...)
	}
	label(path.Child("plural"), n.Plural, "")
	label(path.Child("singular"), n.Singular, "")
	label(path.Child("kind"), n.Kind, mixed)
	label(path.Child("listKind"), n.ListKind, mixed)
	for i, short := range n.ShortNames {
		errs = append(errs, invalid(path.Child("shortNames").Index(i), short, content.IsDNS1035Label(short), "")...)
	}
	if n.Kind != "" && n.Kind == n.ListKind {
		errs = append(errs, field.Invalid(path.Child("listKind"), n.ListKind, "kind and listKind may not be the same"))
	}
	for i, c := range n.Categories {
		errs = append(errs, invalid(path.Child("categories").Index(i), c, content.IsDNS1035Label(c), "")...)
	}
	return errs
}

// versions checks the versions one by one and together.
func (c *checker) versions(s *spec, top *field.Path) field.ErrorList {
	path := top.Child("versions")
	errs := c.schemasPresent(s, path)
	if c.hasDefaults && c.loose {
		errs = append(errs, field.Invalid(top.Child("preserveUnknownFields"), true, "must be false in order to use defaults in the schema"))
	}
	stored, seen, unique := 0, map[string]bool{}, true
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.Storage {
			stored++
		}
		unique = unique && !seen[v.Name]
		seen[v.Name] = true
		errs = append(errs, invalid(path.Index(i).Child("name"), v.Name, content.IsDNS1035Label(v.Name), "")...)
		status := hasStatus(v.Subresources)
		if !slices.ContainsFunc(s.Versions, func(v apiextensions.CustomResourceDefinitionVersion) bool { return v.Subresources != nil }) {
			status = hasStatus(s.Subresources)
		}
		errs = append(errs, c.version(v, status, path.Index(i))...)
	}
	if !unique {
		errs = append(errs, field.Invalid(path, versionNames(s), "must contain unique version names"))
	}
	if stored != 1 {
		errs = append(errs, field.Invalid(path, versionNames(s), "must have exactly one version marked as storage version"))
	}
	return append(errs, invalidIfSet(top.Child("version"), s.Version)...)
}

// invalidIfSet checks the name of the first version, which upstream has in a field of its own too, that v1 does not show.
func invalidIfSet(path *field.Path, name string) field.ErrorList {
	if name == "" {
		return nil
	}
	return invalid(path, name, content.IsDNS1035Label(name), "")
}

// schemasPresent asks for a schema of each version. A definition that had none may stay without for what it does not serve.
func (c *checker) schemasPresent(s *spec, path *field.Path) field.ErrorList {
	if s.Validation != nil && s.Validation.OpenAPIV3Schema != nil {
		return nil
	}
	var errs field.ErrorList
	for i := range s.Versions {
		v, at := &s.Versions[i], path.Index(i).Child("schema", "openAPIV3Schema")
		switch missing := v.Schema == nil || v.Schema.OpenAPIV3Schema == nil; {
		case !missing:
		case c.needSchema:
			errs = append(errs, field.Required(at, ""))
		case !c.loose && v.Served:
			errs = append(errs, field.Required(at, "because otherwise all fields are pruned"))
		}
	}
	return errs
}

// versionNames stand for the versions in an error: whole schemas would drown it.
func versionNames(s *spec) []string {
	list := make([]string, len(s.Versions))
	for i := range s.Versions {
		list[i] = s.Versions[i].Name
	}
	return list
}

func (c *checker) version(v *apiextensions.CustomResourceDefinitionVersion, status bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, m := range badDeprecation(v) {
		errs = append(errs, field.Invalid(path.Child("deprecationWarning"), v.DeprecationWarning, m))
	}
	errs = append(errs, c.validation(v.Schema, status, v.Name, path.Child("schema"))...)
	errs = append(errs, subresources(v.Subresources, path.Child("subresources"))...)
	for i := range v.AdditionalPrinterColumns {
		errs = append(errs, column(&v.AdditionalPrinterColumns[i], path.Child("additionalPrinterColumns").Index(i))...)
	}
	if len(v.SelectableFields) > 0 {
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			return append(errs, field.Invalid(path.Child("selectableFields"), "", "may only be set when `version.schema.openAPIV3Schema` is not included"))
		}
		errs = append(errs, c.selectable(v.SelectableFields, v.Schema.OpenAPIV3Schema, v.Name, path)...)
	}
	return errs
}

// selectable checks the fields of a version ("" for all versions) that selectors can name.
func (c *checker) selectable(fields []apiextensions.SelectableField, props *apiextensions.JSONSchemaProps, version string, path *field.Path) field.ErrorList {
	s, err := structural.NewStructural(props)
	if err != nil {
		return field.ErrorList{field.Invalid(path.Child("schema.openAPIV3Schema"), "", err.Error())}
	}
	path = path.Child("selectableFields")
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, f := range fields {
		at := path.Index(i).Child("jsonPath")
		if f.JSONPath == "" {
			errs = append(errs, field.Required(at, ""))
			continue
		}
		where, found, err := cel.ValidFieldPath(f.JSONPath, s, cel.WithFieldPathAllowArrayNotation(false))
		if err != nil {
			errs = append(errs, field.Invalid(at, f.JSONPath, fmt.Sprintf("is an invalid path: %v", err)))
			continue
		}
		if where.Root().String() == "metadata" {
			errs = append(errs, field.Invalid(at, f.JSONPath, "must not point to fields in metadata"))
		}
		if found == nil || found.Type != "string" && found.Type != "boolean" && found.Type != "integer" {
			errs = append(errs, field.Invalid(at, f.JSONPath, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."))
		}
		if seen[where.String()] {
			errs = append(errs, field.Duplicate(at, f.JSONPath))
		}
		seen[where.String()] = true
	}
	if n := len(seen); n > maxSelectableFields && !c.manyFields[version] {
		errs = append(errs, field.TooMany(path, n, maxSelectableFields))
	}
	return errs
}

func subresources(s *apiextensions.CustomResourceSubresources, path *field.Path) field.ErrorList {
	if s == nil || s.Scale == nil {
		return nil
	}
	return scale(s.Scale, path)
}

func badDeprecation(v *apiextensions.CustomResourceDefinitionVersion) []string {
	w := v.DeprecationWarning
	switch {
	case w == nil:
		return nil
	case !v.Deprecated:
		return []string{"can only be set for deprecated versions"}
	}
	var messages []string
	if len(*w) > 256 {
		messages = append(messages, "must be <= 256 characters long")
	}
	if *w == "" {
		messages = append(messages, "must not be an empty string")
	}
	for i, r := range *w {
		if !unicode.IsPrint(r) {
			return append(messages, fmt.Sprintf("must only contain printable UTF-8 characters; non-printable character found at index %d", i))
		}
	}
	return messages
}

func simplePath(text string, path *field.Path) field.ErrorList {
	if !strings.HasPrefix(text, ".") {
		return field.ErrorList{field.Invalid(path, text, "must be a simple json path starting with .")}
	}
	return nil
}

func scale(s *apiextensions.CustomResourceSubresourceScale, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	below := func(name, text string, required bool, message string, roots ...string) {
		p := path.Child("scale." + name)
		if text == "" {
			if required {
				errs = append(errs, field.Required(p, ""))
			}
			return
		}
		if bad := simplePath(text, p); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if !slices.ContainsFunc(roots, func(r string) bool { return strings.HasPrefix(text, r) }) {
			errs = append(errs, field.Invalid(p, text, message))
		}
	}
	below("specReplicasPath", s.SpecReplicasPath, true, "should be a json path under .spec", ".spec.")
	below("statusReplicasPath", s.StatusReplicasPath, true, "should be a json path under .status", ".status.")
	if s.LabelSelectorPath != nil {
		below("labelSelectorPath", *s.LabelSelectorPath, false, "should be a json path under either .spec or .status", ".spec.", ".status.")
	}
	return errs
}

func column(c *apiextensions.CustomResourceColumnDefinition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	types := "must be one of " + strings.Join(columnTypes, ",")
	if c.Type == "" {
		errs = append(errs, field.Required(path.Child("type"), types))
	} else if !slices.Contains(columnTypes, c.Type) {
		errs = append(errs, field.Invalid(path.Child("type"), c.Type, types))
	}
	if c.Format != "" && !slices.Contains(columnFormats, c.Format) {
		errs = append(errs, field.Invalid(path.Child("format"), c.Format, "must be one of "+strings.Join(columnFormats, ",")))
	}
	if c.JSONPath == "" {
		return append(errs, field.Required(path.Child("JSONPath"), ""))
	}
	return append(errs, simplePath(c.JSONPath, path.Child("JSONPath"))...)
}

func (k *checker) conversion(c *apiextensionsv1.CustomResourceConversion, path *field.Path) field.ErrorList {
	errs := validate.RequiredOneOf(c.Strategy, path.Child("strategy"), apiextensionsv1.NoneConverter, apiextensionsv1.WebhookConverter)
	client, reviews := path.Child("webhookClientConfig"), path.Child("conversionReviewVersions")
	if c.Strategy != apiextensionsv1.WebhookConverter {
		if c.Webhook != nil && c.Webhook.ClientConfig != nil {
			errs = append(errs, field.Forbidden(client, "should not be set when strategy is not set to Webhook"))
		}
		if c.Webhook != nil && len(c.Webhook.ConversionReviewVersions) > 0 {
			errs = append(errs, field.Forbidden(reviews, "should not be set when strategy is not set to Webhook"))
		}
		return errs
	}
	var accepted []string
	if c.Webhook == nil || c.Webhook.ClientConfig == nil {
		errs = append(errs, field.Required(client, "required when strategy is set to Webhook"))
	} else {
		where := webhook.Client{URL: c.Webhook.ClientConfig.URL}
		if s := c.Webhook.ClientConfig.Service; s != nil {
			where.Service = &webhook.Service{Namespace: s.Namespace, Name: s.Name, Path: s.Path, Port: s.Port}
		}
		errs = append(errs, where.Check(client)...)
		if pem := c.Webhook.ClientConfig.CABundle; len(pem) > 0 && !k.badAuthorities {
			errs = append(errs, authorities(pem, client.Child("caBundle"))...)
		}
	}
	if c.Webhook != nil {
		accepted = c.Webhook.ConversionReviewVersions
	}
	return append(errs, reviewVersionList(accepted, k.knownReviews, reviews)...)
}

func reviewVersionList(list []string, mustKnow bool, path *field.Path) field.ErrorList {
	if len(list) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	seen, known := map[string]bool{}, false
	for i, v := range list {
		if seen[v] {
			errs = append(errs, field.Invalid(path.Index(i), v, "duplicate version"))
			continue
		}
		seen[v] = true
		known = known || slices.Contains(reviewVersions, v)
		errs = append(errs, validate.Invalids(path.Index(i), v, content.IsDNS1035Label(v))...)
	}
	if mustKnow && !known {
		errs = append(errs, field.Invalid(path, list, "must include at least one of "+strings.Join(reviewVersions, ", ")))
	}
	return errs
}

// authorities checks the certificates that a webhook's is verified with.
func authorities(pem []byte, path *field.Path) field.ErrorList {
	if _, err := cert.ParseCertsPEM(pem); err != nil {
		return field.ErrorList{field.Invalid(path, pem, "unable to load root certificates: "+err.Error())}
	}
	return nil
}

// storedVersions checks that every version in which objects are stored can still be read.
func storedVersions(d *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	path := field.NewPath("status", "storedVersions")
	stored := d.Status.StoredVersions
	if len(stored) == 0 {
		return field.ErrorList{field.Invalid(path, stored, "must have at least one stored version")}
	}
	var errs field.ErrorList
	known := map[string]bool{}
	for _, v := range d.Spec.Versions {
		known[v.Name] = true
		if v.Storage && !slices.Contains(stored, v.Name) {
			errs = append(errs, field.Invalid(path, stored, "must have the storage version "+v.Name))
		}
	}
	for i, v := range stored {
		if !known[v] {
			errs = append(errs, field.Invalid(path.Index(i), v, fmt.Sprintf("missing from spec.versions; %[1]s was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in %[1]s and removes %[1]s from status.storedVersions", v)))
		}
	}
	return errs
}

// sameNames refuses changes of what objects are stored and known under.
func sameNames(d, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if Established(old) {
		errs = append(errs, validate.Immutable(d.Spec.Scope, old.Spec.Scope, path.Child("scope"))...)
		errs = append(errs, validate.Immutable(d.Spec.Names.Kind, old.Spec.Names.Kind, path.Child("names", "kind"))...)
	}
	errs = append(errs, validate.Immutable(d.Spec.Group, old.Spec.Group, path.Child("group"))...)
	return append(errs, validate.Immutable(d.Spec.Names.Plural, old.Spec.Names.Plural, path.Child("names", "plural"))...)
}
