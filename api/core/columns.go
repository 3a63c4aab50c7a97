package core

import (
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"coracle.dev/coracle/api"
)

// none stands in a cell for an absent value, unknown for one that cannot be told.
const (
	none    = "<none>"
	unknown = "<unknown>"
	unset   = "<unset>"
)

// metaDoc describes the columns that show metadata.
var metaDoc = metav1.ObjectMeta{}.SwaggerDoc()

// nameColumn is the first column of every kind.
func nameColumn() api.Column {
	return api.Column{Name: "Name", Type: "string", Format: "name", Description: metaDoc["name"],
		Cell: func(o api.Object, _ time.Time) any { return o.GetName() }}
}

// ageColumn is how long ago the object was created.
func ageColumn() api.Column {
	return api.Column{Name: "Age", Type: "string", Description: metaDoc["creationTimestamp"],
		Cell: func(o api.Object, now time.Time) any { return Since(o.GetCreationTimestamp().Time, now) }}
}

// column is one that needs no clock.
func column[T api.Object](name, kind, description string, priority int32, cell func(T) any) api.Column {
	return api.Column{Name: name, Type: kind, Description: description, Priority: priority, Cell: api.Cell(cell)}
}

// Since gives the time from t to now as tables show it ("5m", "3d4h"), "<unknown>" for no time.
func Since(t, now time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(now.Sub(t))
}

// templateColumns are the wide columns that show the containers of a template.
func templateColumns[T api.Object](priority int32, spec func(T) *corev1.PodSpec) []api.Column {
	list := func(pick func(*corev1.Container) string) func(T) any {
		return func(o T) any {
			s := spec(o)
			if s == nil {
				return none
			}
			return joinContainers(s, pick)
		}
	}
	return []api.Column{
		column("Containers", "string", "Names of each container in the template.", priority,
			list(func(c *corev1.Container) string { return c.Name })),
		column("Images", "string", "Images referenced by each container in the template.", priority,
			list(func(c *corev1.Container) string { return c.Image })),
	}
}

func joinContainers(s *corev1.PodSpec, pick func(*corev1.Container) string) string {
	var b strings.Builder
	for i := range s.Containers {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pick(&s.Containers[i]))
	}
	return b.String()
}

// formatSet shows labels or a selector as "a=b,c=d", "<none>" for none.
func formatSet(set map[string]string) string {
	if len(set) == 0 {
		return none
	}
	pairs := make([]string, 0, len(set))
	for k, v := range set {
		pairs = append(pairs, k+"="+v)
	}
	sort.Strings(pairs)
	return strings.Join(pairs, ",")
}

// accessModes shows access modes in their short form, each once: "RWO,ROX".
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	short := []struct {
		mode corev1.PersistentVolumeAccessMode
		name string
	}{
		{corev1.ReadWriteOnce, "RWO"},
		{corev1.ReadOnlyMany, "ROX"},
		{corev1.ReadWriteMany, "RWX"},
		{corev1.ReadWriteOncePod, "RWOP"},
	}
	var names []string
	for _, s := range short {
		for _, m := range modes {
			if m == s.mode {
				names = append(names, s.name)
				break
			}
		}
	}
	return strings.Join(names, ",")
}

// or gives s, or otherwise where s is empty.
func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
