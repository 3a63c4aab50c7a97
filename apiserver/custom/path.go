package custom

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

	"k8s.io/client-go/util/jsonpath"
)

// path finds one value in an object by a JSON path such as ".spec.ports[0].name". Paths that only name fields are walked
// directly; the others are parsed at first use. Safe for concurrent use.
type path struct {
	text  string
	names []string // nil if the path is more than names

	mu     sync.Mutex // guards all below; a parsed path keeps state while it is evaluated
	parsed *jsonpath.JSONPath
	err    error
}

func newPath(text string) *path {
	p := &path{text: text}
	if names := steps(text); strings.HasPrefix(text, ".") && simple(names) {
		p.names = names
	}
	return p
}

func simple(names []string) bool {
	for _, n := range names {
		if n == "" {
			return false
		}
		for _, c := range n {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
				return false
			}
		}
	}
	return true
}

// find returns the first value, nil if there is none.
func (p *path) find(obj map[string]any) any {
	if p.names == nil {
		return p.evaluate(obj)
	}
	var at any = obj
	for _, n := range p.names {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[n]
	}
	return at
}

func (p *path) evaluate(obj map[string]any) any {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parsed == nil && p.err == nil {
		p.parsed = jsonpath.New("path").AllowMissingKeys(true)
		p.err = p.parsed.Parse("{" + p.text + "}")
	}
	if p.err != nil {
		return nil
	}
	found, err := p.parsed.FindResults(obj)
	if err != nil || len(found) == 0 || len(found[0]) == 0 || !found[0][0].IsValid() {
		return nil
	}
	return found[0][0].Interface()
}

// text prints a value as a column of type string shows it.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case int64, float64, bool:
		return fmt.Sprint(v)
	}
	var b strings.Builder
	if err := jsonpath.New("text").PrintResults(&b, []reflect.Value{reflect.ValueOf(value)}); err != nil {
		return ""
	}
	return b.String()
}
