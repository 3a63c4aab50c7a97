// Package structure holds the shape of the tree: which folder may import which, and
// that every package says what it is for. It reads source as text.
package structure

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "coracle.dev/coracle/"

// order says which top folders a top folder may import, beside itself and internal.
// It is the picture of ARCHITECTURE.md; whoever needs an arrow that is not here
// draws it there first, or turns the dependency round.
const order = `
api:          
store:        
linux:        
client:       api store
apiserver:    api store client
reconcile:    api store client
controllers:  api store client reconcile
scheduler:    api store client reconcile
dns:          api store client reconcile linux
container:    linux
volume:       api store client reconcile linux
network:      api store client reconcile linux
mesh:         api store client reconcile linux
node:         api store client reconcile linux container volume network
cluster:      api store client apiserver reconcile controllers scheduler dns container linux volume network mesh node
clustertest:  api store client apiserver reconcile controllers scheduler dns mesh node cluster
cmd:          api client store scheduler cluster container linux network
test:         *
tools:        *
examples:     clustertest
`

// separate lists folders whose packages may not import each other: loops meet at the
// store and nowhere else.
var separate = []string{"controllers"}

func allowed() map[string]map[string]bool {
	m := map[string]map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(order), "\n") {
		from, to, _ := strings.Cut(line, ":")
		m[from] = map[string]bool{from: true, "internal": true}
		for _, t := range strings.Fields(to) {
			m[from][t] = true
		}
	}
	return m
}

func TestImportOrder(t *testing.T) {
	may := allowed()
	eachFile(t, func(path string, imports []string, _ string, _ string) {
		from, _, _ := strings.Cut(path, "/")
		if strings.HasSuffix(path, "_test.go") || from == "internal" || !strings.Contains(path, "/") {
			return
		}
		if may[from] == nil {
			t.Errorf("%s: folder %s is not in the import order: give it its place there and in ARCHITECTURE.md", path, from)
			return
		}
		for _, imp := range imports {
			rest, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(rest, "/")
			if !may[from][to] && !may[from]["*"] {
				t.Errorf("%s: %s may not import %s", path, from, to)
			}
			for _, s := range separate {
				if from == s && to == s && sub(path) != sub(rest+"/x") {
					t.Errorf("%s: packages of %s may not import each other (%s): let them meet at the store", path, s, rest)
				}
			}
		}
	})
}

// sub is the second element of a path.
func sub(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

func TestPackageComments(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]string{}
	eachFile(t, func(path string, _ []string, name, doc string) {
		if strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, "internal/structure") {
			return
		}
		dir := filepath.Dir(path)
		seen[dir] = name
		documented[dir] = documented[dir] || strings.HasPrefix(doc, "Package "+name+" ") || strings.HasPrefix(doc, "Command ")
	})
	for dir, name := range seen {
		if !documented[dir] {
			t.Errorf(`%s: no file has a comment "Package %s ..." that says what the package owns and never does`, dir, name)
		}
	}
}

// TestForbidden holds the promise that no upstream server is inside.
func TestForbidden(t *testing.T) {
	eachFile(t, func(path string, imports []string, _ string, _ string) {
		for _, imp := range imports {
			if strings.HasPrefix(imp, "k8s.io/kubernetes/") || strings.HasPrefix(imp, "k8s.io/apiserver/pkg/server") ||
				strings.HasPrefix(imp, "k8s.io/apiserver/pkg/registry") {
				t.Errorf("%s imports %s: the product does not depend on upstream's server", path, imp)
			}
		}
	})
}

// eachFile calls f for every Go file of this module, with a path relative to its root.
func eachFile(t *testing.T, f func(path string, imports []string, pkg, doc string)) {
	t.Helper()
	root := filepath.Join("..", "..")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && rel != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		var imports []string
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, imp)
		}
		f(filepath.ToSlash(rel), imports, file.Name.Name, file.Doc.Text())
		files++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("only %d files were found: the test looks in the wrong place", files)
	}
}
