// Package events holds the Kind of the API group events.k8s.io: the same
// events that the core group shows, in the shape of events/v1.
//
// The objects live as core/v1 Events in the place of the core resource (StoredAs).
package events

import (
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind { return []*api.Kind{eventKind()} }

func eventKind() *api.Kind {
	return &api.Kind{
		Group: eventsv1.GroupName, Kind: "Event", Resource: "events", Singular: "event",
		ShortNames: []string{"ev"},
		Namespaced: true,
		StoredAs:   "events",
		Versions: []api.Version{
			{
				Name:    "v1",
				New:     func() runtime.Object { return &eventsv1.Event{} },
				NewList: func() runtime.Object { return &eventsv1.EventList{} },
				ToHub:   toCore,
				FromHub: fromCore,
			},
			{
				// The hub is the core type, which this group does not serve.
				Name:      runtime.APIVersionInternal,
				New:       func() runtime.Object { return &corev1.Event{} },
				NewList:   func() runtime.Object { return &corev1.EventList{} },
				Hub:       true,
				NotServed: true,
			},
		},
		Relaxed: true,
	}
}
