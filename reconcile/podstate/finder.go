package podstate

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/internal/selector"
	"coracle.dev/coracle/store"
)

// Finder finds the pods that selectors match. What it gives follows from the snapshot alone; it only remembers, for the namespace and
// revision that were asked about last, which pods have which labels, so that many selectors in a row cost one walk over the pods
// and not one each. The zero value is ready, and safe for concurrent use.
type Finder struct {
	mu        sync.Mutex // guards what follows
	namespace string
	revision  store.Revision
	byLabel   map[string][]*corev1.Pod // nil until asked a second time
}

// Find gives the pods of a namespace that sel matches, in order of their names.
func (f *Finder) Find(s store.Snapshot, namespace string, sel labels.Selector) []*corev1.Pod {
	matches := selector.Matcher(sel)
	var out []*corev1.Pod
	if key, value, ok := selector.Pair(sel); ok {
		if filed, known := f.filed(s, namespace, key+"="+value); known {
			for _, pod := range filed {
				if matches(pod.Labels) {
					out = append(out, pod)
				}
			}
			return out
		}
	}
	for pod := range client.Pods.List(s, namespace) {
		if matches(pod.Labels) {
			out = append(out, pod)
		}
	}
	return out
}

// filed gives the pods with a label, if this is not the first question about a revision.
func (f *Finder) filed(s store.Snapshot, namespace, label string) (pods []*corev1.Pod, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.revision != s.Revision() || f.namespace != namespace {
		f.namespace, f.revision, f.byLabel = namespace, s.Revision(), nil
		return nil, false
	}
	if f.byLabel == nil {
		f.byLabel = map[string][]*corev1.Pod{}
		for pod := range client.Pods.List(s, namespace) {
			for key, value := range pod.Labels {
				f.byLabel[key+"="+value] = append(f.byLabel[key+"="+value], pod)
			}
		}
	}
	return f.byLabel[label], true
}

// Forget lets go of what is remembered.
func (f *Finder) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.namespace, f.revision, f.byLabel = "", 0, nil
}
