// Package table shows entries as meta.k8s.io Tables, the form that kubectl get
// asks for: the columns of the kind, a row for each entry, and with each row as much
// of the object as the client wants.
//
// It writes JSON itself, since a table of thousands of rows is mostly bytes that are kept with the
// entries already. It reads no store.
package table

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/store"
)

// Options say how a table is made.
type Options struct {
	// Include is how much of each object a row holds; empty is metadata.
	Include metav1.IncludeObjectPolicy
	// Version of meta.k8s.io.
	Version string
}

// ParseOptions reads the includeObject parameter.
func ParseOptions(q url.Values, version string) (Options, error) {
	o := Options{Include: metav1.IncludeObjectPolicy(q.Get("includeObject")), Version: version}
	switch o.Include {
	case "", metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return o, nil
	}
	return o, apierrors.NewBadRequest(fmt.Sprintf(
		"Unable to convert to Table as requested: includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", o.Include))
}

// Writer makes the tables of one kind in one form. It is safe for concurrent use.
type Writer struct {
	view    *wire.View
	columns []api.Column
	defs    []byte
	object  *wire.View // how a row's object is shown, nil for not at all
	bare    *wire.View // how a bookmark is shown
	head    []byte
}

// NewWriter prepares the tables of the kind that view shows.
func NewWriter(view *wire.View, o Options) *Writer {
	w := &Writer{view: view, columns: view.Kind.Columns}
	if len(w.columns) == 0 {
		w.columns = defaultColumns
	}
	defs := make([]metav1.TableColumnDefinition, len(w.columns))
	for i, c := range w.columns {
		defs[i] = metav1.TableColumnDefinition{
			Name: c.Name, Type: c.Type, Format: c.Format, Description: c.Description, Priority: c.Priority,
		}
		if c.Type == "" {
			defs[i].Type = "string"
		}
		if i == 0 && c.Format == "" && c.Name == "Name" {
			defs[i].Format = "name"
		}
	}
	w.defs, _ = json.Marshal(defs)
	w.bare = view.Metadata(o.Version)
	switch o.Include {
	case metav1.IncludeNone:
	case metav1.IncludeObject:
		w.object = view
	default:
		w.object = w.bare
	}
	w.head = fmt.Appendf(nil, `{"kind":"Table","apiVersion":"meta.k8s.io/%s","metadata":`, o.Version)
	return w
}

// defaultColumns are those of a kind that names none.
var defaultColumns = []api.Column{
	{Name: "Name", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"],
		Cell: func(o api.Object, _ time.Time) any { return o.GetName() }},
	{Name: "Created At", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		Cell: func(o api.Object, _ time.Time) any {
			return o.GetCreationTimestamp().UTC().Format(time.RFC3339)
		}},
}

// List appends the table of a list.
func (w *Writer) List(dst []byte, meta metav1.ListMeta, entries []*store.Entry, now time.Time) ([]byte, error) {
	m, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	return w.table(dst, m, true, entries, now)
}

// One appends the table of one entry, which shows the entry's revision as its own.
// Watches leave the columns out after the first event.
func (w *Writer) One(dst []byte, e *store.Entry, columns bool, now time.Time) ([]byte, error) {
	m := fmt.Appendf(nil, `{"resourceVersion":%q}`, e.Object.(api.Object).GetResourceVersion())
	return w.table(dst, m, columns, []*store.Entry{e}, now)
}

func (w *Writer) table(dst, meta []byte, columns bool, entries []*store.Entry, now time.Time) ([]byte, error) {
	loaded, err := w.view.Loaded(entries)
	if err != nil {
		return nil, err
	}
	dst = append(dst, w.head...)
	dst = append(dst, meta...)
	dst = append(dst, `,"columnDefinitions":`...)
	if columns {
		dst = append(dst, w.defs...)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"rows":[`...)
	for i, e := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = w.row(dst, loaded[i].Object.(api.Object), e, now); err != nil {
			return nil, err
		}
	}
	return append(dst, "]}"...), nil
}

func (w *Writer) row(dst []byte, obj api.Object, e *store.Entry, now time.Time) ([]byte, error) {
	dst = append(dst, `{"cells":[`...)
	for i := range w.columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendCell(dst, w.columns[i].Cell(obj, now)); err != nil {
			return nil, err
		}
	}
	dst = append(dst, `],"object":`...)
	if w.object == nil {
		return append(dst, "null}"...), nil
	}
	data, err := w.object.Entry(wire.JSON, e)
	if err != nil {
		return nil, err
	}
	dst = append(dst, data...)
	return append(dst, '}'), nil
}

// appendCell writes one cell as JSON.
func appendCell(dst []byte, cell any) ([]byte, error) {
	switch v := cell.(type) {
	case nil:
		return append(dst, "null"...), nil
	case string:
		return appendString(dst, v), nil
	case int64:
		return strconv.AppendInt(dst, v, 10), nil
	case int32:
		return strconv.AppendInt(dst, int64(v), 10), nil
	case int:
		return strconv.AppendInt(dst, int64(v), 10), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	}
	data, err := json.Marshal(cell)
	return append(dst, data...), err
}

// appendString writes a JSON string, escaping as encoding/json does.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' || c >= utf8.RuneSelf {
			data, _ := json.Marshal(s)
			return append(dst, data...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// Bare appends a table of one row without cells around an object that has nothing but
// metadata (a bookmark).
func (w *Writer) Bare(dst []byte, obj api.Object, columns bool) ([]byte, error) {
	view := w.object
	if view == nil || view.GVK.Kind != "PartialObjectMetadata" {
		view = w.bare
	}
	data, err := view.Encode(wire.JSON, obj)
	if err != nil {
		return nil, err
	}
	dst = append(dst, w.head...)
	dst = fmt.Appendf(dst, `{"resourceVersion":%q},"columnDefinitions":`, obj.GetResourceVersion())
	if columns {
		dst = append(dst, w.defs...)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"rows":[{"cells":[`...)
	for i := range w.columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `""`...)
	}
	dst = append(dst, `],"object":`...)
	dst = append(dst, data...)
	return append(dst, "}]}"...), nil
}
