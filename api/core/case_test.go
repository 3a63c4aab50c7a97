package core_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
)

var update = flag.Bool("update", false, "write what the rules say into testdata, to be read before it is kept")

// TestCases runs the objects in testdata/*.txtar through what the server does with them. A case is
// a group of files of one archive:
//
//	NAME            the object that is created, in YAML, or the old object of an update
//	NAME.patch      a JSON merge patch on it: the case is an update; a document of its own may
//	                follow the line "--- SUBRESOURCE"
//	NAME.filled     "path = value" for every leaf that defaulting and preparation changed,
//	                if it is to be looked at
//	NAME.errors     what validation says, one error a line; no file: it says nothing
//	NAME.warnings   what the client is warned of; no file: of nothing
//	NAME.row        the cells of the object as it is, wide ones in brackets; nothing else is then
//	                looked at
//	NAME.filed      the selectable fields and indexes of the object as it is, likewise
//	NAME.generation for an update: "same" or "new", if it is to be looked at
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	registry := api.NewRegistry(core.Kinds()...)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runFile(t, registry, file) })
	}
}

func runFile(t *testing.T, registry *api.Registry, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]string{}
	for _, f := range archive.Files {
		if _, twice := given[f.Name]; twice {
			t.Fatalf("%s: %s stands there twice", file, f.Name)
		}
		given[f.Name] = string(f.Data)
	}
	out := txtar.Archive{Comment: archive.Comment}
	for _, f := range archive.Files {
		name := f.Name
		if strings.Contains(name, ".") {
			continue
		}
		out.Files = append(out.Files, f)
		patch, isUpdate := given[name+".patch"]
		if isUpdate {
			out.Files = append(out.Files, txtar.File{Name: name + ".patch", Data: []byte(patch)})
		}
		t.Run(name, func(t *testing.T) {
			got := runCase(t, registry, given[name], patch, isUpdate)
			_, row := given[name+".row"]
			_, filed := given[name+".filed"]
			for _, part := range []string{"filled", "errors", "warnings", "generation", "row", "filed"} {
				want, asked := given[name+"."+part]
				if !asked && (part != "errors" && part != "warnings" || row || filed) {
					continue
				}
				if got[part] != want && !*update {
					t.Errorf("%s of %s\n--- are\n%s--- should be\n%s", part, name, got[part], want)
				}
				if got[part] != "" || asked && want == "" {
					out.Files = append(out.Files, txtar.File{Name: name + "." + part, Data: []byte(got[part])})
				}
			}
		})
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(&out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// runCase gives what happens to one object, by part.
func runCase(t *testing.T, registry *api.Registry, object, patch string, isUpdate bool) map[string]string {
	kind, obj := decode(t, registry, object)
	got := map[string]string{"row": row(kind, obj), "filed": filed(kind, obj)}
	if !isUpdate {
		before := flat(t, obj)
		call(kind.Default, obj)
		call(kind.PrepareCreate, obj)
		got["filled"] = diff(before, flat(t, obj))
		if kind.Validate != nil {
			got["errors"] = lines(kind.Validate(obj))
		}
		if kind.Warnings != nil {
			got["warnings"] = joined(kind.Warnings(obj, nil))
		}
		return got
	}
	call(kind.Default, obj)
	strategy := kind.Strategy
	if rest, ok := strings.CutPrefix(patch, "--- "); ok {
		name, body, _ := strings.Cut(rest, "\n")
		sub := kind.Subresource(name)
		if sub == nil || sub.Strategy == nil {
			t.Fatalf("no view %q", name)
		}
		strategy, patch = *sub.Strategy, body
	}
	changed := merge(t, kind, obj, patch)
	call(kind.Default, changed)
	before := flat(t, changed)
	if strategy.PrepareUpdate != nil {
		strategy.PrepareUpdate(changed, obj)
	}
	got["filled"] = diff(before, flat(t, changed))
	if strategy.ValidateUpdate != nil {
		got["errors"] = lines(strategy.ValidateUpdate(changed, obj))
	}
	if strategy.Warnings != nil {
		got["warnings"] = joined(strategy.Warnings(changed, obj))
	}
	got["generation"] = "same\n"
	if kind.Desired != nil && kind.Desired(changed, obj) {
		got["generation"] = "new\n"
	}
	return got
}

// now is the time at which tables are read.
var now = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

func row(kind *api.Kind, obj api.Object) string {
	var cells []string
	for _, c := range kind.Columns {
		cell := fmt.Sprint(c.Cell(obj, now))
		if c.Priority > 0 {
			cell = "[" + cell + "]"
		}
		cells = append(cells, cell)
	}
	return strings.Join(cells, " | ") + "\n"
}

func filed(kind *api.Kind, obj api.Object) string {
	var out []string
	for name, f := range kind.Fields {
		out = append(out, "field "+name+" = "+f(obj))
	}
	for name, f := range kind.Indexes {
		out = append(out, fmt.Sprintf("index %s = %q", name, f(obj)))
	}
	sort.Strings(out)
	return joined(out)
}

// TestColumns holds the heads of the tables: name, type, format and whether they are wide.
func TestColumns(t *testing.T) {
	var out []string
	for _, k := range api.NewRegistry(core.Kinds()...).All() {
		if len(k.Columns) == 0 {
			continue
		}
		line := k.Kind + ":"
		for _, c := range k.Columns {
			line += fmt.Sprintf(" %s(%s", c.Name, c.Type)
			if c.Format != "" {
				line += "," + c.Format
			}
			if c.Priority > 0 {
				line += ",wide"
			}
			line += ")"
			if c.Description == "" || c.Cell == nil {
				t.Errorf("%s: column %s is not described", k.Kind, c.Name)
			}
		}
		out = append(out, line)
	}
	slices.Sort(out)
	want, err := os.ReadFile("testdata/columns.txt")
	if *update {
		err = os.WriteFile("testdata/columns.txt", []byte(joined(out)), 0o644)
	} else if string(want) != joined(out) {
		t.Errorf("columns are\n%s", joined(out))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// call applies a rule of a Kind, if it has it.
func call(f func(api.Object), obj api.Object) {
	if f != nil {
		f(obj)
	}
}

func decode(t *testing.T, registry *api.Registry, object string) (*api.Kind, api.Object) {
	t.Helper()
	var meta struct {
		Kind string `json:"kind"`
	}
	if err := yaml.Unmarshal([]byte(object), &meta); err != nil {
		t.Fatal(err)
	}
	for _, k := range registry.All() {
		if k.Kind == meta.Kind && k.Group == "" {
			obj := k.Hub().New().(api.Object)
			if err := yaml.UnmarshalStrict([]byte(object), obj); err != nil {
				t.Fatal(err)
			}
			return k, obj
		}
	}
	t.Fatalf("no kind %q", meta.Kind)
	return nil, nil
}

func merge(t *testing.T, kind *api.Kind, obj api.Object, patch string) api.Object {
	t.Helper()
	was, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	change, err := yaml.YAMLToJSON([]byte(patch))
	if err != nil {
		t.Fatal(err)
	}
	is, err := jsonpatch.MergePatch(was, change)
	if err != nil {
		t.Fatal(err)
	}
	changed := kind.Hub().New().(api.Object)
	if err := yaml.UnmarshalStrict(is, changed); err != nil {
		t.Fatal(err)
	}
	return changed
}

// flat gives the leaves of an object by path.
func flat(t *testing.T, obj api.Object) map[string]string {
	t.Helper()
	data, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	leaves := map[string]string{}
	flatten(leaves, "", v)
	return leaves
}

func flatten(leaves map[string]string, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			leaves[path] = "{}"
		}
		for k, e := range v {
			if path != "" && !strings.ContainsAny(k, "./") {
				k = path + "." + k
			} else if path != "" {
				k = path + "[" + k + "]"
			}
			flatten(leaves, k, e)
		}
	case []any:
		if len(v) == 0 {
			leaves[path] = "[]"
		}
		for i, e := range v {
			flatten(leaves, fmt.Sprintf("%s[%d]", path, i), e)
		}
	default:
		data, _ := json.Marshal(v)
		leaves[path] = string(data)
	}
}

// diff gives a line for every leaf that is new, gone or different.
func diff(before, after map[string]string) string {
	var out []string
	for path, v := range after {
		if before[path] != v {
			out = append(out, path+" = "+v)
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			out = append(out, path+" is gone")
		}
	}
	sort.Strings(out)
	return joined(out)
}

func lines(errs field.ErrorList) string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return joined(out)
}

func joined(list []string) string {
	var b strings.Builder
	for _, s := range list {
		b.WriteString(strings.ReplaceAll(s, "\n", "\n  "))
		b.WriteByte('\n')
	}
	return b.String()
}

// TestKindsRegister holds the names by which kubectl knows the kinds.
func TestKindsRegister(t *testing.T) {
	registry := api.NewRegistry(core.Kinds()...)
	want := []string{
		"bindings Binding true []",
		"componentstatuses ComponentStatus false [cs]",
		"configmaps ConfigMap true [cm]",
		"endpoints Endpoints true [ep]",
		"events Event true [ev]",
		"limitranges LimitRange true [limits]",
		"namespaces Namespace false [ns] finalize status",
		"nodes Node false [no] proxy status",
		"persistentvolumeclaims PersistentVolumeClaim true [pvc] status",
		"persistentvolumes PersistentVolume false [pv] status",
		"pods Pod true [po] attach binding ephemeralcontainers eviction exec log portforward proxy resize status",
		"podtemplates PodTemplate true []",
		"replicationcontrollers ReplicationController true [rc] scale status",
		"resourcequotas ResourceQuota true [quota] status",
		"secrets Secret true []",
		"serviceaccounts ServiceAccount true [sa] token",
		"services Service true [svc] proxy status",
	}
	var got []string
	for _, k := range registry.All() {
		line := fmt.Sprintf("%s %s %v %v", k.Resource, k.Kind, k.Namespaced, k.ShortNames)
		for _, s := range k.Subresources {
			line += " " + s.Name
		}
		got = append(got, line)
		if k.Hub() == nil || k.Hub().Name != "v1" || len(k.Versions) != 1 {
			t.Errorf("%s: versions %v", k.Resource, k.Versions)
		}
	}
	slices.Sort(got)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("kinds:\n%s", strings.Join(got, "\n"))
	}
}
