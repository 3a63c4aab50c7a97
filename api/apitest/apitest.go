// Package apitest runs scenarios, written as text, against Kinds: what becomes of an object when it is
// created or changed, and what the client is told.
//
// A scenario is a txtar file. Each section begins with a verb; what follows the verb is a remark:
//
//	create     a YAML object: defaulted, prepared and validated as new
//	update     a YAML object: as a change of the present one, which it replaces if it is good
//	status     the same through the subresource of that name (also: approval)
//	errors     what the last of those was answered, one error a line; absent means none
//	warnings   the warnings that went with it
//	object     the YAML of the object as it is now stored
//	table      the cells that kubectl get shows
//	wide       the cells that kubectl get -o wide shows in addition
//	fields     the selectable fields
//
// go test -update writes the sections that hold results.
package apitest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
)

var update = flag.Bool("update", false, "write the results into the scenarios")

// Now is the time at which tables are shown; objects were created five minutes before.
var Now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// Run runs every scenario that the pattern finds, each as a subtest.
func Run(t *testing.T, kinds []*api.Kind, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenario at %s (%v)", pattern, err)
	}
	registry := api.NewRegistry(kinds...)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runFile(t, registry, file) })
	}
}

// scenario is one file under way.
type scenario struct {
	t        *testing.T
	registry *api.Registry
	kind     *api.Kind
	version  *api.Version
	obj      api.Object // the present object, nil before the first create
	errs     field.ErrorList
	warnings []string
	pending  string // the section whose errors have not been asked for
}

func runFile(t *testing.T, registry *api.Registry, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &scenario{t: t, registry: registry}
	changed := false
	for i := range archive.Files {
		section := &archive.Files[i]
		verb, _, _ := strings.Cut(section.Name, " ")
		verb = strings.TrimSuffix(verb, ":")
		if verb != "errors" {
			s.settle()
		}
		got, isResult := s.step(verb, section)
		if !isResult || string(section.Data) == got {
			continue
		}
		if *update {
			section.Data, changed = []byte(got), true
			continue
		}
		t.Errorf("%s: %s\n got:\n%s want:\n%s", file, section.Name, got, section.Data)
	}
	s.settle()
	if changed {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// settle complains of errors that the scenario did not ask for.
func (s *scenario) settle() {
	if len(s.errs) > 0 {
		s.t.Errorf("%s: unexpected errors:\n%s", s.pending, errorLines(s.errs))
		s.errs = nil
	}
}

// step runs one section; for a section with results it gives what they are.
func (s *scenario) step(verb string, section *txtar.File) (result string, isResult bool) {
	switch verb {
	case "errors":
		text := errorLines(s.errs)
		s.errs = nil
		return text, true
	case "warnings":
		return lines(s.warnings), true
	case "object":
		return s.yaml(), true
	case "table":
		return s.table(0), true
	case "wide":
		return s.table(1), true
	case "fields":
		return s.fields(), true
	}
	s.pending = section.Name
	s.errs, s.warnings = s.write(verb, section.Data)
	return "", false
}

func (s *scenario) write(verb string, data []byte) (field.ErrorList, []string) {
	obj, err := s.decode(data)
	if err != nil {
		s.t.Fatalf("%s: %v", s.pending, err)
	}
	strategy := &s.kind.Strategy
	if verb == "create" {
		obj.SetUID("5d2e3d5c-0000-4000-8000-000000000001")
		obj.SetCreationTimestamp(metav1.NewTime(Now.Add(-5 * time.Minute)))
		if s.kind.Default != nil {
			s.kind.Default(obj)
		}
		if strategy.PrepareCreate != nil {
			strategy.PrepareCreate(obj)
		}
		s.obj = obj
		return call(strategy.Validate, obj), warnings(strategy, obj, nil)
	}
	if verb != "update" {
		sub := s.kind.Subresource(verb)
		if sub == nil || sub.Strategy == nil {
			s.t.Fatalf("%s: %s has no such endpoint", s.pending, s.kind.Name())
		}
		strategy = sub.Strategy
	}
	old := s.obj
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	if s.kind.Default != nil {
		s.kind.Default(obj)
	}
	if strategy.PrepareUpdate != nil {
		strategy.PrepareUpdate(obj, old)
	}
	var errs field.ErrorList
	if strategy.ValidateUpdate != nil {
		errs = strategy.ValidateUpdate(obj, old)
	}
	if len(errs) == 0 {
		s.obj = obj
	}
	return errs, warnings(strategy, obj, old)
}

func call(validate func(api.Object) field.ErrorList, obj api.Object) field.ErrorList {
	if validate == nil {
		return nil
	}
	return validate(obj)
}

func warnings(s *api.Strategy, obj, old api.Object) []string {
	if s.Warnings == nil {
		return nil
	}
	return s.Warnings(obj, old)
}

// decode reads an object strictly, in the version that it names, and gives the hub version.
func (s *scenario) decode(data []byte) (api.Object, error) {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(data, &head); err != nil {
		return nil, err
	}
	gv, err := schema.ParseGroupVersion(head.APIVersion)
	if err != nil {
		return nil, err
	}
	if s.kind = s.registry.ByKind(schema.GroupKind{Group: gv.Group, Kind: head.Kind}); s.kind == nil {
		return nil, fmt.Errorf("no kind %s %s", head.APIVersion, head.Kind)
	}
	if s.version = s.kind.Version(gv.Version); s.version == nil {
		return nil, fmt.Errorf("no version %s of %s", gv.Version, head.Kind)
	}
	obj := s.version.New()
	if err := yaml.UnmarshalStrict(data, obj); err != nil {
		return nil, err
	}
	if s.version.ToHub != nil {
		return s.version.ToHub(obj)
	}
	return obj.(api.Object), nil
}

// yaml shows the present object in the version in which it was last written.
func (s *scenario) yaml() string {
	obj := s.obj.DeepCopyObject()
	if s.version.FromHub != nil {
		converted, err := s.version.FromHub(s.obj)
		if err != nil {
			s.t.Fatal(err)
		}
		obj = converted
	}
	if m, err := meta.Accessor(obj); err == nil {
		m.SetUID("")
		m.SetCreationTimestamp(metav1.Time{})
	}
	data, err := yaml.Marshal(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

func (s *scenario) table(priority int32) string {
	var names, cells []string
	for _, c := range s.kind.Columns {
		if c.Priority == priority {
			names = append(names, strings.ToUpper(c.Name))
			cells = append(cells, fmt.Sprint(c.Cell(s.obj, Now)))
		}
	}
	return strings.Join(names, " | ") + "\n" + strings.Join(cells, " | ") + "\n"
}

func (s *scenario) fields() string {
	var all []string
	for name, f := range s.kind.Fields {
		all = append(all, name+"="+f(s.obj))
	}
	sort.Strings(all)
	return lines(all)
}

func errorLines(errs field.ErrorList) string {
	all := make([]string, len(errs))
	for i, e := range errs {
		all[i] = e.Error()
	}
	return lines(all)
}

func lines(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all, "\n") + "\n"
}
