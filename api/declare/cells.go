package declare

import (
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"coracle.dev/coracle/api"
)

// Words that upstream's tables use where there is nothing to show.
const (
	None    = "<none>"
	Unknown = "<unknown>"
	Unset   = "<unset>"
)

// Name is the first column of nearly every table.
func Name() api.Column {
	return api.Column{
		Name: "Name", Format: "name",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["name"],
		Cell:        func(o api.Object, _ time.Time) any { return o.GetName() },
	}
}

// Age is the column that tells for how long an object has been there.
func Age() api.Column {
	return api.Column{
		Name:        "Age",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		Cell:        func(o api.Object, now time.Time) any { return Since(o.GetCreationTimestamp(), now) },
	}
}

// CreatedAt is the column that shows the moment of creation instead of the age.
func CreatedAt() api.Column {
	return api.Column{
		Name:        "Created At",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		Cell: func(o api.Object, _ time.Time) any {
			return o.GetCreationTimestamp().UTC().Format(time.RFC3339)
		},
	}
}

// Text is a column of text; cell needs no clock.
func Text[T api.Object](name, description string, cell func(T) any) api.Column {
	return api.Column{Name: name, Description: description, Cell: api.Cell(cell)}
}

// Integer is a column of whole numbers.
func Integer[T api.Object](name, description string, cell func(T) int64) api.Column {
	return api.Column{
		Name: name, Type: "integer", Description: description,
		Cell: func(o api.Object, _ time.Time) any { return cell(o.(T)) },
	}
}

// Timed is a column of text whose cell depends on the time.
func Timed[T api.Object](name, description string, cell func(o T, now time.Time) any) api.Column {
	return api.Column{
		Name: name, Description: description,
		Cell: func(o api.Object, now time.Time) any { return cell(o.(T), now) },
	}
}

// Wide moves columns to those that are shown with -o wide alone.
func Wide(columns ...api.Column) []api.Column {
	for i := range columns {
		columns[i].Priority = 1
	}
	return columns
}

// Containers are the wide columns of a workload: the names and the images of its
// containers and, unless selector is nil, its label selector.
func Containers[T api.Object](containers func(T) []corev1.Container, selector func(T) *metav1.LabelSelector) []api.Column {
	columns := []api.Column{
		Text("Containers", "Names of each container in the template.", func(o T) any {
			return join(containers(o), func(c corev1.Container) string { return c.Name })
		}),
		Text("Images", "Images referenced by each container in the template.", func(o T) any {
			return join(containers(o), func(c corev1.Container) string { return c.Image })
		}),
	}
	if selector != nil {
		columns = append(columns, Text("Selector", "Label query over pods that this controller acts on.", func(o T) any {
			return metav1.FormatLabelSelector(selector(o))
		}))
	}
	return Wide(columns...)
}

func join[T any](list []T, text func(T) string) string {
	words := make([]string, len(list))
	for i := range list {
		words[i] = text(list[i])
	}
	return strings.Join(words, ",")
}

// Since is how long ago t was, in the short form of kubectl ("3m20s").
func Since(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return Unknown
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

// Replicas is a count that may be absent, which means 0.
func Replicas(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// Bool is how tables show a truth value that may be absent.
func Bool(b *bool) string {
	switch {
	case b == nil:
		return Unset
	case *b:
		return "True"
	}
	return "False"
}

// Some joins the first max of a list and tells how many more there are ("a,b,c + 2 more...").
func Some(list []string, max int) string {
	if len(list) <= max {
		return strings.Join(list, ",")
	}
	return strings.Join(list[:max], ",") + " + " + strconv.Itoa(len(list)-max) + " more..."
}
