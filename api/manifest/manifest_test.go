package manifest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
)

var update = flag.Bool("update", false, "write the results into testdata")

// TestFix holds each manifest of testdata against what it becomes and what is said of it. What comes out without an open
// note is accepted by the present kinds, and is left alone the second time.
func TestFix(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	registry := api.NewRegistry(builtin.Kinds()...)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out, notes, err := Fix(a.Files[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			open := false
			for _, n := range notes {
				said.WriteString(n.String() + "\n")
				open = open || n.Open
			}
			if *update {
				a.Files = []txtar.File{a.Files[0], {Name: "out.yaml", Data: out}, {Name: "notes", Data: said.Bytes()}}
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if len(a.Files) != 3 {
				t.Fatal("want in.yaml, out.yaml and notes")
			}
			same(t, "output", string(a.Files[1].Data), string(out))
			same(t, "notes", string(a.Files[2].Data), said.String())
			again, more, err := Fix(out)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "output of a second run", string(out), string(again))
			for _, n := range more {
				if !n.Open {
					t.Errorf("a second run still says: %s", n)
				}
			}
			if !open {
				accepted(t, registry, out)
			}
		})
	}
}

func same(t *testing.T, what, want, have string) {
	t.Helper()
	if want != have {
		t.Errorf("%s:\n%s\nwant:\n%s", what, have, want)
	}
}

// accepted decodes and validates objects as the server does.
func accepted(t *testing.T, registry *api.Registry, out []byte) {
	t.Helper()
	for _, d := range split(out) {
		var meta struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(d.text, &meta); err != nil || meta.Kind == "" || meta.Kind == "List" {
			continue
		}
		gvk := schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind)
		kind := registry.ByKind(gvk.GroupKind())
		if kind == nil || kind.Version(gvk.Version) == nil {
			t.Errorf("%s is not served", gvk)
			continue
		}
		data, err := yaml.YAMLToJSON(d.text)
		if err != nil {
			t.Fatal(err)
		}
		versioned := kind.Version(gvk.Version).New()
		strict, err := kjson.UnmarshalStrict(data, versioned)
		if err != nil || len(strict) > 0 {
			t.Errorf("%s: %v %v", gvk, err, strict)
			continue
		}
		obj, ok := versioned.(api.Object)
		if !ok || kind.Hub().Name != gvk.Version {
			continue
		}
		if kind.Namespaced {
			obj.SetNamespace("default")
		}
		if kind.Default != nil {
			kind.Default(obj)
		}
		obj.SetUID("8b2f3e0a-0000-4000-8000-000000000001")
		if kind.PrepareCreate != nil {
			kind.PrepareCreate(obj)
		}
		if kind.Validate != nil {
			if errs := kind.Validate(obj); len(errs) > 0 {
				t.Errorf("%s %s is refused: %v", gvk, obj.GetName(), errs.ToAggregate())
			}
		}
	}
}

func TestFixRefuses(t *testing.T) {
	_, _, err := Fix([]byte("kind: Pod\n---\na: b: c\n"))
	if err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("error %v, want one that names the document after line 2", err)
	}
}

// TestHint holds the hint of a refusal against what it is about.
func TestHint(t *testing.T) {
	for _, c := range []struct{ kind, refusal, want string }{
		{"Job", `Job.batch "x" is invalid: spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`, "restartPolicy"},
		{"PersistentVolumeClaim", `PersistentVolumeClaim "x" is invalid: spec.accessModes: Required value: at least 1 access mode is required`, "accessModes"},
		{"Deployment", `Deployment.apps "x" is invalid: spec.selector: Required value`, "selector"},
		{"Deployment", `Deployment.apps "x" is invalid: spec.replicas: Invalid value: -1`, ""},
		{"CustomResourceDefinition", `strict decoding error: unknown field "spec.version"`, "spec.versions"},
		{"CustomResourceDefinition", `CustomResourceDefinition.apiextensions.k8s.io "x" is invalid: spec.versions: Required value`, "spec.versions"},
		{"CustomResourceDefinition", `CustomResourceDefinition.apiextensions.k8s.io "x" is invalid: spec.versions[0].schema.openAPIV3Schema.properties[a].x-kubernetes-list-map-keys: Invalid value`, ""},
		{"CustomResourceDefinition", `CustomResourceDefinition.apiextensions.k8s.io "x" is invalid: spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required`, "schema"},
	} {
		have := Hint(c.kind, c.refusal)
		if (have == "") != (c.want == "") || !strings.Contains(have, c.want) {
			t.Errorf("Hint(%q, %q) = %q, want it to speak of %q", c.kind, c.refusal, have, c.want)
		}
	}
}

func FuzzFix(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		out, notes, err := Fix(in)
		if err != nil {
			return
		}
		if len(notes) == 0 && !bytes.Equal(in, out) {
			t.Errorf("changed without a note: %q became %q", in, out)
		}
		if _, _, err := Fix(out); err != nil {
			t.Errorf("%q became %q, which cannot be read: %v", in, out, err)
		}
	})
}

func TestRemoved(t *testing.T) {
	for _, c := range []struct{ version, resource, want string }{
		{"extensions/v1beta1", "ingresses", "networking.k8s.io/v1 takes its place"},
		{"extensions/v1beta1", "networkpolicies", "networking.k8s.io/v1 takes its place"},
		{"extensions/v1beta1", "podsecuritypolicies", "pod-security.kubernetes.io/enforce"},
		{"batch/v1beta1", "cronjobs", "batch/v1 takes its place"},
		{"batch/v1", "cronjobs", ""},
		{"example.com/v1beta1", "cronjobs", ""},
	} {
		if have := Removed(c.version, c.resource); (have == "") != (c.want == "") || !strings.Contains(have, c.want) {
			t.Errorf("Removed(%q, %q) = %q, want it to speak of %q", c.version, c.resource, have, c.want)
		}
	}
}
