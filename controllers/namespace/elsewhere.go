package namespace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
)

const (
	apiServices = "apiservices.apiregistration.k8s.io"
	// askAgain is when other servers are asked again that still hold something, or could not be asked.
	askAgain = 5 * time.Second
)

// Elsewhere is what other API servers hold. Its functions are safe for concurrent use.
type Elsewhere struct {
	// Any tells whether there is another server at all. It costs nearly nothing.
	Any func() bool
	// Failing are the group versions whose server cannot be asked, or has not been asked yet.
	Failing func() []schema.GroupVersion
	// Empty deletes all that the others hold in a namespace and tells what is left.
	Empty func(ctx context.Context, namespace string) (Left, error)
}

// Left is what other servers still hold.
type Left struct {
	// Resources counts objects by "resource.group", Finalizers those that each finalizer holds.
	Resources, Finalizers map[string]int
}

func (e *Elsewhere) any() bool { return e != nil && e.Any() }

// controller decides. found alone changes.
type controller struct {
	registry  *api.Registry
	elsewhere *Elsewhere

	mu    sync.Mutex // guards found
	found map[string]*finding
}

// finding is what other servers said of a namespace.
type finding struct {
	left    Left
	failing []schema.GroupVersion // could not be asked
	err     error
}

func (c *controller) put(namespace string, f *finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found == nil {
		c.found = map[string]*finding{}
	}
	c.found[namespace] = f
}

// take gives what was found since the last call and forgets it.
func (c *controller) take(namespace string) *finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.found[namespace]
	delete(c.found, namespace)
	return f
}

// failing are the group versions that cannot be asked, in the order of their names.
func (c *controller) failing() []schema.GroupVersion {
	if !c.elsewhere.any() {
		return nil
	}
	list := c.elsewhere.Failing()
	slices.SortFunc(list, func(a, b schema.GroupVersion) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// undiscovered is upstream's message about groups that cannot be asked.
func undiscovered(failing []schema.GroupVersion) string {
	var groups []string
	for _, gv := range failing {
		groups = append(groups, fmt.Sprintf("%v: stale GroupVersion discovery: %v", gv, gv))
	}
	return fmt.Sprintf("Discovery failed for some groups, %d failing: unable to retrieve the complete list of server APIs: %s",
		len(failing), strings.Join(groups, ", "))
}

// join adds what other servers hold, and gives what went wrong there.
func (r *remains) join(f *finding) []error {
	for name, n := range f.left.Resources {
		r.resources[name] += n
	}
	for name, n := range f.left.Finalizers {
		r.finalizers[name] += n
	}
	switch err := f.err.(type) {
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		return err.Unwrap()
	default:
		return []error{err}
	}
}
