package reconciletest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

var update = flag.Bool("update", false, "write what scenarios print into their txtar files")

// Scenarios runs every txtar file that matches pattern. The comment of a file is its script, one
// command a line, the files are what the commands name:
//
//	apply FILE                   create or update the objects of a YAML file, with their status
//	patch RESOURCE NS/NAME FILE  apply a merge patch
//	delete RESOURCE NS/NAME [foreground|background|orphan|now]
//	ready NS SELECTOR            pods that the selector matches become ready
//	unready NS SELECTOR          ... or not ready
//	let-go NS SELECTOR           pods that Kubelet keeps because of "test/lingers" may end
//	advance DURATION             let time pass
//	restart                      stop the loops and start them again
//	show FILE RESOURCE COLUMN... print objects, a line each: their name and JSONPath columns
//	events FILE [KIND]           print events since the last time
//
// Loops have come to rest before each command, and see what it does when it is done. A file that show or events names holds what they
// are to print; "go test -update" writes it. Hashes of pod templates are shown as hash1, hash2 and so on, in
// the order of their appearance, and lines with them are sorted again.
func Scenarios(t *testing.T, pattern string, loops func(c *Cluster) []reconcile.Loop) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			runScenario(t, file, loops)
		})
	}
}

type scenario struct {
	*Harness
	archive *txtar.Archive
	loops   func(c *Cluster) []reconcile.Loop
	seen    map[string]bool // events that were shown
	hashes  []string        // of pod templates, as they appeared
}

func runScenario(t *testing.T, file string, loops func(c *Cluster) []reconcile.Loop) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := NewCluster(0)
		s := &scenario{archive: archive, loops: loops, seen: map[string]bool{}}
		s.Harness = newHarness(t, c, true, loops(c))
		defer func() { s.Stop() }()
		for n, line := range strings.Split(string(archive.Comment), "\n") {
			words := strings.Fields(line)
			if len(words) == 0 || strings.HasPrefix(words[0], "#") {
				continue
			}
			if err := s.command(words); err != nil {
				t.Fatalf("%s:%d: %s: %v", file, n+1, line, err)
			}
			s.Settle()
		}
	})
	s := archive
	if *update && !t.Failed() {
		if err := os.WriteFile(file, txtar.Format(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *scenario) command(words []string) error {
	args := words[1:]
	need := map[string]int{"apply": 1, "patch": 3, "delete": 2, "ready": 2, "unready": 2, "let-go": 2, "advance": 1, "restart": 0, "show": 2, "events": 1}
	if n, ok := need[words[0]]; !ok || len(args) < n {
		return fmt.Errorf("no such command, or too few arguments")
	}
	switch words[0] {
	case "apply", "patch", "delete", "ready", "unready", "let-go":
		return s.change(words[0], args)
	case "advance":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		s.Advance(d)
	case "restart":
		s.Stop()
		s.Start(s.loops(s.Cluster)...)
	case "show":
		return s.show(args[0], args[1], args[2:])
	case "events":
		return s.events(args)
	}
	return nil
}

// change does a command that writes, as one step in the eyes of the loops.
func (s *scenario) change(command string, args []string) error {
	defer s.gate.hold()()
	switch command {
	case "apply":
		return s.apply(args[0])
	case "patch":
		return s.patch(args)
	case "delete":
		return s.remove(args)
	case "let-go":
		return s.letGo(args[0], args[1])
	}
	s.SetReady(args[0], args[1], command == "ready")
	return nil
}

func (s *scenario) file(name string) (*txtar.File, bool) {
	for i := range s.archive.Files {
		if s.archive.Files[i].Name == name {
			return &s.archive.Files[i], true
		}
	}
	return nil, false
}

// patch changes the fields that a file names.
func (s *scenario) patch(args []string) error {
	file, ok := s.file(args[2])
	kind := s.Registry.ByName(args[0])
	if !ok || kind == nil {
		return fmt.Errorf("no file %s, or no resource %s", args[2], args[0])
	}
	change, err := yaml.YAMLToJSON(file.Data)
	if err != nil {
		return err
	}
	key := keyOf(args[0], args[1])
	entry := s.Snapshot().Get(key)
	if entry == nil {
		return fmt.Errorf("%s is not there", key)
	}
	was, err := json.Marshal(entry.Object)
	if err != nil {
		return err
	}
	is, err := jsonpatch.MergePatch(was, change)
	if err != nil {
		return err
	}
	obj := kind.Hub().New().(api.Object)
	if err := json.Unmarshal(is, obj); err != nil {
		return err
	}
	_, err = s.Update(context.Background(), args[0], obj, client.WriteOptions{})
	return err
}

// keyOf reads "namespace/name", or "name".
func keyOf(resource, name string) store.Key {
	ns, rest, ok := strings.Cut(name, "/")
	if !ok {
		ns, rest = "", name
	}
	return store.Key{Resource: resource, Namespace: ns, Name: rest}
}

func (s *scenario) remove(args []string) error {
	key := keyOf(args[0], args[1])
	var opts client.DeleteOptions
	if len(args) > 2 {
		switch args[2] {
		case "now":
			zero := int64(0)
			opts.GraceSeconds = &zero
		default:
			opts.Propagation = metav1.DeletionPropagation(strings.ToUpper(args[2][:1]) + args[2][1:])
		}
	}
	return s.Cluster.Delete(context.Background(), client.Ref{Resource: args[0], Namespace: key.Namespace, Name: key.Name}, opts)
}

// apply creates or updates the objects of a file.
func (s *scenario) apply(name string) error {
	file, ok := s.file(name)
	if !ok {
		return fmt.Errorf("no file %s", name)
	}
	for _, doc := range bytes.Split(file.Data, []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		kind, obj, err := s.decode(doc)
		if err != nil {
			return err
		}
		if kind.Namespaced && obj.GetNamespace() == "" {
			obj.SetNamespace("default")
		}
		if err := s.put(kind, obj); err != nil {
			return err
		}
	}
	return nil
}

func (s *scenario) decode(doc []byte) (*api.Kind, api.Object, error) {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return nil, nil, err
	}
	kind := s.Registry.ByKind(schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind).GroupKind())
	if kind == nil {
		return nil, nil, fmt.Errorf("unknown kind %s %s", meta.APIVersion, meta.Kind)
	}
	obj := kind.Hub().New().(api.Object)
	if err := yaml.UnmarshalStrict(doc, obj); err != nil {
		return nil, nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return kind, obj, nil
}

func (s *scenario) put(kind *api.Kind, obj api.Object) error {
	key := store.Key{Resource: kind.Name(), Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if s.Snapshot().Get(key) == nil {
		s.Create(kind.Name(), obj)
		return nil
	}
	want := obj.DeepCopyObject().(api.Object)
	if _, err := s.Update(context.Background(), kind.Name(), obj, client.WriteOptions{}); err != nil {
		return err
	}
	var changed api.Object
	now := s.Snapshot().Get(key)
	if now == nil || !copyStatus(now.Object.(api.Object).DeepCopyObject().(api.Object), want, &changed) {
		return nil
	}
	_, err := s.Update(context.Background(), kind.Name(), changed, client.WriteOptions{Subresource: "status"})
	return err
}

// copyStatus puts the status of want into obj, if want has one that differs, and hands it out.
func copyStatus(obj, want api.Object, out *api.Object) bool {
	to, from := reflect.ValueOf(obj).Elem().FieldByName("Status"), reflect.ValueOf(want).Elem().FieldByName("Status")
	if !to.IsValid() || !from.IsValid() || from.IsZero() || reflect.DeepEqual(to.Interface(), from.Interface()) {
		return false
	}
	to.Set(from)
	if out != nil {
		*out = obj
	}
	return true
}

// show prints objects and compares.
func (s *scenario) show(file, resource string, columns []string) error {
	var b strings.Builder
	for entry := range s.Snapshot().List(resource, "", nil) {
		line := []string{entry.Key.Namespace + "/" + entry.Key.Name}
		if entry.Namespace == "" {
			line[0] = entry.Name
		}
		fields, err := asMap(entry.Object)
		if err != nil {
			return err
		}
		for _, col := range columns {
			cell, err := column(fields, col)
			if err != nil {
				return err
			}
			line = append(line, cell)
		}
		b.WriteString(strings.TrimRight(strings.Join(line, " | "), " ") + "\n")
	}
	lines := strings.Split(strings.TrimSuffix(s.normalize(b.String()), "\n"), "\n")
	slices.Sort(lines)
	if b.Len() == 0 {
		lines = nil
	}
	text := strings.Join(lines, "\n")
	if text != "" {
		text += "\n"
	}
	return s.compare(file, text)
}

func asMap(obj any) (map[string]any, error) {
	if o, ok := obj.(runtime.Unstructured); ok {
		return o.UnstructuredContent(), nil
	}
	data, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, utiljson.Unmarshal(data, &m) // keeps integers as they are
}

func column(fields map[string]any, path string) (string, error) {
	p := jsonpath.New("column").AllowMissingKeys(true)
	if !strings.Contains(path, "{") {
		path = "{" + path + "}"
	}
	if err := p.Parse(path); err != nil {
		return "", err
	}
	var b bytes.Buffer
	err := p.Execute(&b, fields)
	return b.String(), err
}

func (s *scenario) events(args []string) error {
	lines := eventLines(s.Snapshot(), func(ev *corev1.Event) bool {
		if len(args) > 1 && ev.InvolvedObject.Kind != args[1] {
			return false
		}
		id := fmt.Sprint(ev.Namespace, ev.Name, ev.Count)
		if s.seen[id] {
			return false
		}
		s.seen[id] = true
		return true
	})
	out := ""
	if len(lines) > 0 {
		out = strings.Join(lines, "\n") + "\n"
	}
	return s.compare(args[0], out)
}

// letGo takes the annotation "test/lingers" off pods.
func (s *scenario) letGo(namespace, selector string) error {
	sel, err := labels.Parse(selector)
	if err != nil {
		return err
	}
	for _, pod := range All(s.Harness, client.Pods, namespace) {
		if sel.Matches(labels.Set(pod.Labels)) {
			_, err = client.Mutate(context.Background(), s.Cluster, client.Pods, pod.Namespace, pod.Name, "", func(p *corev1.Pod) bool {
				delete(p.Annotations, "test/lingers")
				return true
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// normalize replaces the hashes of pod templates, which depend on all defaults of the API.
func (s *scenario) normalize(text string) string {
	var sets []*appsv1.ReplicaSet
	for rs := range client.ReplicaSets.List(s.Snapshot(), "") {
		sets = append(sets, rs)
	}
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int { return strings.Compare(string(a.UID), string(b.UID)) })
	for _, rs := range sets {
		if h := rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; h != "" && !slices.Contains(s.hashes, h) {
			s.hashes = append(s.hashes, h)
		}
	}
	revisions := All(s.Harness, client.ControllerRevisions, "")
	slices.SortStableFunc(revisions, func(a, b *appsv1.ControllerRevision) int { return strings.Compare(string(a.UID), string(b.UID)) })
	for _, rev := range revisions {
		if h := rev.Labels["controller.kubernetes.io/hash"]; h != "" && !slices.Contains(s.hashes, h) {
			s.hashes = append(s.hashes, h)
		}
	}
	for i, h := range s.hashes {
		text = strings.ReplaceAll(text, h, fmt.Sprint("hash", i+1))
	}
	return text
}

// compare holds what was printed against the file, or writes it there.
func (s *scenario) compare(name, got string) error {
	got = s.normalize(got)
	file, ok := s.file(name)
	if *update {
		if !ok {
			s.archive.Files = append(s.archive.Files, txtar.File{Name: name, Data: []byte(got)})
		} else {
			file.Data = []byte(got)
		}
		return nil
	}
	if !ok {
		return fmt.Errorf("no file %s; it would be\n%s", name, got)
	}
	if string(file.Data) != got {
		s.T.Errorf("%s differs.\n--- is\n%s--- should be\n%s", name, got, file.Data)
	}
	return nil
}
