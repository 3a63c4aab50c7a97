package apiextensions

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/api/webhook"
)

const maxSelectableFields = 8

var (
	columnTypes    = []string{"boolean", "date", "integer", "number", "string"}
	columnFormats  = []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}
	reviewVersions = []string{"v1", "v1beta1"}
)

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
	s := &d.Spec
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
	errs = append(errs, validate.RequiredOneOf(s.Scope, path.Child("scope"), apiextensionsv1.ClusterScoped, apiextensionsv1.NamespaceScoped)...)
	errs = append(errs, versions(s, path.Child("versions"))...)
	for _, f := range []struct{ name, value string }{
		{"plural", s.Names.Plural}, {"singular", s.Names.Singular}, {"kind", s.Names.Kind}, {"listKind", s.Names.ListKind},
	} {
		if f.value == "" {
			errs = append(errs, field.Required(path.Child("names", f.name), ""))
		}
	}
	errs = append(errs, names(&s.Names, path.Child("names"))...)
	if s.PreserveUnknownFields && (old == nil || !old.Spec.PreserveUnknownFields) {
		errs = append(errs, field.Invalid(path.Child("preserveUnknownFields"), true,
			"cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"))
	}
	if s.Conversion != nil {
		if s.Conversion.Strategy != apiextensionsv1.NoneConverter && s.PreserveUnknownFields {
			errs = append(errs, field.Invalid(path.Child("conversion", "strategy"), s.Conversion.Strategy, "must be None if spec.preserveUnknownFields is true"))
		}
		errs = append(errs, conversion(s.Conversion, path.Child("conversion"))...)
	}
	errs = append(errs, names(&d.Status.AcceptedNames, field.NewPath("status", "acceptedNames"))...)
	errs = append(errs, storedVersions(d)...)
	return append(errs, checkApproval(d, old)...)
}

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

func versions(s *apiextensionsv1.CustomResourceDefinitionSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range s.Versions {
		if v := &s.Versions[i]; v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			errs = append(errs, field.Required(path.Index(i).Child("schema", "openAPIV3Schema"), ""))
		}
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
		errs = append(errs, version(v, path.Index(i))...)
	}
	if !unique {
		errs = append(errs, field.Invalid(path, versionNames(s), "must contain unique version names"))
	}
	if stored != 1 {
		errs = append(errs, field.Invalid(path, versionNames(s), "must have exactly one version marked as storage version"))
	}
	if len(s.Versions) > 0 && s.Versions[0].Name != "" {
		// Upstream has the first version's name in a field of its own too, which v1 does not show.
		name := s.Versions[0].Name
		errs = append(errs, invalid(field.NewPath("spec", "version"), name, content.IsDNS1035Label(name), "")...)
	}
	return errs
}

// versionNames stand for the versions in an error: whole schemas would drown it.
func versionNames(s *apiextensionsv1.CustomResourceDefinitionSpec) []string {
	list := make([]string, len(s.Versions))
	for i := range s.Versions {
		list[i] = s.Versions[i].Name
	}
	return list
}

func version(v *apiextensionsv1.CustomResourceDefinitionVersion, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, m := range badDeprecation(v) {
		errs = append(errs, field.Invalid(path.Child("deprecationWarning"), v.DeprecationWarning, m))
	}
	if s := v.Schema; s != nil && s.OpenAPIV3Schema != nil && s.OpenAPIV3Schema.Nullable {
		errs = append(errs, field.Forbidden(path.Child("schema", "openAPIV3Schema", "nullable"), "nullable cannot be true at the root"))
	}
	if v.Subresources != nil && v.Subresources.Scale != nil {
		errs = append(errs, scale(v.Subresources.Scale, path.Child("subresources", "scale"))...)
	}
	for i := range v.AdditionalPrinterColumns {
		errs = append(errs, column(&v.AdditionalPrinterColumns[i], path.Child("additionalPrinterColumns").Index(i))...)
	}
	seen := map[string]bool{}
	for i, f := range v.SelectableFields {
		p := path.Child("selectableFields").Index(i).Child("jsonPath")
		switch {
		case f.JSONPath == "":
			errs = append(errs, field.Required(p, ""))
		case strings.HasPrefix(f.JSONPath, ".metadata"):
			errs = append(errs, field.Invalid(p, f.JSONPath, "must not point to fields in metadata"))
		case seen[f.JSONPath]:
			errs = append(errs, field.Duplicate(p, f.JSONPath))
		}
		seen[f.JSONPath] = true
	}
	if n := len(seen); n > maxSelectableFields {
		errs = append(errs, field.TooMany(path.Child("selectableFields"), n, maxSelectableFields))
	}
	return errs
}

func badDeprecation(v *apiextensionsv1.CustomResourceDefinitionVersion) []string {
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

func scale(s *apiextensionsv1.CustomResourceSubresourceScale, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	below := func(name, text string, required bool, message string, roots ...string) {
		p := path.Child(name)
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

func column(c *apiextensionsv1.CustomResourceColumnDefinition, path *field.Path) field.ErrorList {
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

func conversion(c *apiextensionsv1.CustomResourceConversion, path *field.Path) field.ErrorList {
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
	}
	if c.Webhook != nil {
		accepted = c.Webhook.ConversionReviewVersions
	}
	return append(errs, reviewVersionList(accepted, reviews)...)
}

func reviewVersionList(list []string, path *field.Path) field.ErrorList {
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
	if !known {
		errs = append(errs, field.Invalid(path, list, "must include at least one of "+strings.Join(reviewVersions, ", ")))
	}
	return errs
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
