package reconcile

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// Self is the Input.Keys that gives the changed object's own key.
func Self(_ store.Snapshot, ev store.Event) []Key {
	return []Key{{Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
}

// Controllers returns an Input.Keys that gives the controller of the changed
// object, if that is of the given kind, and the one it had before.
func Controllers(group, kind string) func(store.Snapshot, store.Event) []Key {
	return func(_ store.Snapshot, ev store.Event) []Key {
		var keys []Key
		now, ok := controllerName(ev.Entry, group, kind)
		if ok {
			keys = append(keys, Key{Namespace: ev.Entry.Namespace, Name: now})
		}
		if was, had := controllerName(ev.Prev, group, kind); had && was != now {
			keys = append(keys, Key{Namespace: ev.Entry.Namespace, Name: was})
		}
		return keys
	}
}

func controllerName(e *store.Entry, group, kind string) (string, bool) {
	if e == nil {
		return "", false
	}
	obj, ok := e.Object.(api.Object)
	if !ok {
		return "", false
	}
	ref := metav1.GetControllerOfNoCopy(obj)
	if ref == nil || ref.Kind != kind || Group(ref.APIVersion) != group {
		return "", false
	}
	return ref.Name, true
}

// Group is the group of an apiVersion: "apps" of "apps/v1", "" of "v1".
func Group(apiVersion string) string {
	group, _, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return ""
	}
	return group
}
