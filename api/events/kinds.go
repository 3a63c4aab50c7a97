// Package events holds the Kind of the API group events.k8s.io: the same
// events that the core group shows, in the shape of events/v1.
//
// The objects live as core/v1 Events in the place of the core resource (StoredAs). What is
// written through this group is held to stricter rules than what is written through the core group.
package events

import (
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group. core is the Kind of
// the core group's events, whose table this group shares.
func Kinds(core *api.Kind) []*api.Kind { return []*api.Kind{eventKind(core)} }

func eventKind(core *api.Kind) *api.Kind {
	return &api.Kind{
		Group: eventsv1.GroupName, Kind: "Event", Resource: "events", Singular: "event",
		ShortNames: []string{"ev"},
		Namespaced: true,
		StoredAs:   core.Name(),
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
		Strategy: api.Strategy{
			Validate:       api.Checks(create),
			ValidateUpdate: api.ChecksUpdate(update),
		},
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		Relaxed:             true,
		Columns:             core.Columns,
		Indexes:             core.Indexes,
		Fields: map[string]func(api.Object) string{
			"reason":                    text(func(e *corev1.Event) string { return e.Reason }),
			"regarding.kind":            text(func(e *corev1.Event) string { return e.InvolvedObject.Kind }),
			"regarding.namespace":       text(func(e *corev1.Event) string { return e.InvolvedObject.Namespace }),
			"regarding.name":            text(func(e *corev1.Event) string { return e.InvolvedObject.Name }),
			"regarding.uid":             text(func(e *corev1.Event) string { return string(e.InvolvedObject.UID) }),
			"regarding.apiVersion":      text(func(e *corev1.Event) string { return e.InvolvedObject.APIVersion }),
			"regarding.resourceVersion": text(func(e *corev1.Event) string { return e.InvolvedObject.ResourceVersion }),
			"regarding.fieldPath":       text(func(e *corev1.Event) string { return e.InvolvedObject.FieldPath }),
			"reportingController":       text(func(e *corev1.Event) string { return e.ReportingController }),
			"type":                      text(func(e *corev1.Event) string { return e.Type }),
		},
	}
}

func text(f func(*corev1.Event) string) func(api.Object) string { return api.Field(f) }

const (
	maxText    = 128  // bytes of reason, action and reportingInstance
	maxMessage = 1024 // bytes of note
)

func create(e *corev1.Event) field.ErrorList {
	errs := common(e)
	errs = append(errs, series(e)...)
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		errs = append(errs, field.Invalid(field.NewPath("type"), "", "has invalid value: "+e.Type))
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"firstTimestamp", !e.FirstTimestamp.IsZero()},
		{"lastTimestamp", !e.LastTimestamp.IsZero()},
		{"count", e.Count != 0},
		{"source", e.Source.Component != "" || e.Source.Host != ""},
	} {
		if f.set {
			errs = append(errs, field.Invalid(field.NewPath(f.name), "", "needs to be unset"))
		}
	}
	return errs
}

// common are the rules for events with an eventTime, under whatever group they are written.
func common(e *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	about := field.NewPath("involvedObject", "namespace")
	ns := e.InvolvedObject.Namespace
	if e.EventTime.IsZero() {
		if ns != e.Namespace && (ns != "" || e.Namespace != "default") {
			errs = append(errs, field.Invalid(about, ns, "does not match event.namespace"))
		}
		return append(errs, validate.DNSSubdomainField(e.Namespace, field.NewPath("namespace"))...)
	}
	if ns == "" && e.Namespace != "default" && e.Namespace != "kube-system" {
		errs = append(errs, field.Invalid(about, ns, "does not match event.namespace"))
	}
	if e.ReportingController == "" {
		errs = append(errs, field.Required(field.NewPath("reportingController"), ""))
	}
	errs = append(errs, validate.QualifiedNameField(e.ReportingController, field.NewPath("reportingController"))...)
	for _, f := range []struct{ name, value string }{
		{"reportingInstance", e.ReportingInstance}, {"action", e.Action}, {"reason", e.Reason},
	} {
		switch p := field.NewPath(f.name); {
		case f.value == "":
			errs = append(errs, field.Required(p, ""))
		case len(f.value) > maxText:
			errs = append(errs, field.Invalid(p, "", "can have at most 128 characters"))
		}
	}
	if len(e.Message) > maxMessage {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", "can have at most 1024 characters"))
	}
	return append(errs, validate.DNSSubdomainField(e.Namespace, field.NewPath("namespace"))...)
}

func series(e *corev1.Event) field.ErrorList {
	if e.Series == nil {
		return nil
	}
	var errs field.ErrorList
	if e.Series.Count < 2 {
		errs = append(errs, field.Invalid(field.NewPath("series", "count"), "", "should be at least 2"))
	}
	if e.Series.LastObservedTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("series", "lastObservedTime"), ""))
	}
	return errs
}

// update lets nothing but the series grow.
func update(e, old *corev1.Event) field.ErrorList {
	errs := common(e)
	same := func(name string, value, was any) {
		errs = append(errs, validate.Immutable(value, was, field.NewPath(name))...)
	}
	same("involvedObject", e.InvolvedObject, old.InvolvedObject)
	same("reason", e.Reason, old.Reason)
	same("message", e.Message, old.Message)
	same("source", e.Source, old.Source)
	same("firstTimestamp", e.FirstTimestamp, old.FirstTimestamp)
	same("lastTimestamp", e.LastTimestamp, old.LastTimestamp)
	same("count", e.Count, old.Count)
	same("type", e.Type, old.Type)
	// Clients that keep microseconds and those that do not may both write.
	if !e.EventTime.Equal(&old.EventTime) && e.EventTime.Unix() != old.EventTime.Unix() {
		same("eventTime", e.EventTime, old.EventTime)
	}
	same("action", e.Action, old.Action)
	same("related", e.Related, old.Related)
	same("reportingController", e.ReportingController, old.ReportingController)
	same("reportingInstance", e.ReportingInstance, old.ReportingInstance)
	return append(errs, series(e)...)
}
