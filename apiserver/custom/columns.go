package custom

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"

	"coracle.dev/coracle/api"
)

var metaText = metav1.ObjectMeta{}.SwaggerDoc()

// ageColumn stands where a definition names no columns.
var ageColumn = []apiextensionsv1.CustomResourceColumnDefinition{{
	Name: "Age", Type: "date", Description: metaText["creationTimestamp"], JSONPath: ".metadata.creationTimestamp",
}}

// columns are the name and what the version adds to it.
func columns(v *apiextensionsv1.CustomResourceDefinitionVersion) []api.Column {
	extra := v.AdditionalPrinterColumns
	if len(extra) == 0 {
		extra = ageColumn
	}
	out := make([]api.Column, 0, 1+len(extra))
	out = append(out, api.Column{Name: "Name", Type: "string", Format: "name", Description: metaText["name"],
		Cell: func(o api.Object, _ time.Time) any { return o.GetName() }})
	for i := range extra {
		c := &extra[i]
		where := newPath(c.JSONPath)
		text := c.Description
		if text == "" {
			text = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		kind := c.Type
		out = append(out, api.Column{Name: c.Name, Type: c.Type, Format: c.Format, Description: text, Priority: c.Priority,
			Cell: func(o api.Object, now time.Time) any { return cell(kind, find(where, o), now) }})
	}
	return out
}

func find(p *path, o api.Object) any {
	if u, ok := o.(*unstructured.Unstructured); ok {
		return p.find(u.Object)
	}
	return nil
}

// cell shows a value as a column of a type, nil if it is none of that type.
func cell(kind string, value any, now time.Time) any {
	if value == nil {
		return nil
	}
	switch kind {
	case "string":
		return text(value)
	case "integer":
		switch v := value.(type) {
		case int64:
			return v
		case float64:
			return int64(v)
		}
	case "number":
		switch v := value.(type) {
		case int64:
			return float64(v)
		case float64:
			return v
		}
	case "boolean":
		if v, ok := value.(bool); ok {
			return v
		}
	case "date":
		if v, ok := value.(string); ok {
			return age(v, now)
		}
	}
	return nil
}

// age says how long ago a time was.
func age(text string, now time.Time) string {
	var at metav1.Time
	switch err := at.UnmarshalQueryParameter(text); {
	case err != nil:
		return "<invalid>"
	case at.IsZero():
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(at.Time))
}

// fields are the selectable fields of a version, by the names that selectors use.
func fields(v *apiextensionsv1.CustomResourceDefinitionVersion) map[string]func(api.Object) string {
	if len(v.SelectableFields) == 0 {
		return nil
	}
	out := make(map[string]func(api.Object) string, len(v.SelectableFields))
	for _, f := range v.SelectableFields {
		where := newPath(f.JSONPath)
		out[strings.TrimPrefix(f.JSONPath, ".")] = func(o api.Object) string {
			if value := find(where, o); value != nil {
				return fmt.Sprint(value)
			}
			return ""
		}
	}
	return out
}

// values is api.Kind.FieldValues for objects that a webhook converts.
func (f *fieldValues) values(ctx context.Context, k *api.Kind, objs []api.Object) ([]map[string]string, error) {
	out := make([]map[string]string, len(objs))
	var cold []api.Object
	var where []int
	f.mu.Lock()
	for i, o := range objs {
		if out[i] = f.all[keyOf(o)]; out[i] == nil {
			cold, where = append(cold, o), append(where, i)
		}
	}
	f.mu.Unlock()
	if len(cold) == 0 {
		return out, nil
	}
	converted, err := k.Hub().Convert(ctx, cold)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, i := range where {
		out[i] = make(map[string]string, len(k.Fields))
		for name, get := range k.Fields {
			out[i][name] = get(converted[n])
		}
		if f.all == nil || len(f.all) >= maxFieldValues {
			f.all = map[fieldKey]map[string]string{}
		}
		f.all[keyOf(cold[n])] = out[i]
	}
	return out, nil
}

// fieldValues remembers the selectable fields of objects that a webhook converts, so that each state of an object is
// converted once for its selectors. Safe for concurrent use.
type fieldValues struct {
	mu  sync.Mutex // guards all below
	all map[fieldKey]map[string]string
}

type fieldKey struct {
	uid      types.UID
	revision string
}

func keyOf(o api.Object) fieldKey { return fieldKey{o.GetUID(), o.GetResourceVersion()} }

// maxFieldValues is of how many states of objects values are remembered; when there are more, all are forgotten.
const maxFieldValues = 2000
