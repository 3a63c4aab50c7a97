package core

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// eventKind describes events. Index "regarding": the UID of the object that an event is about.
func eventKind() *api.Kind {
	return &api.Kind{
		Kind: "Event", Resource: "events", Singular: "event", ShortNames: []string{"ev"}, Namespaced: true,
		Versions: v1[corev1.Event, corev1.EventList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(ValidateEvent),
			ValidateUpdate: api.ChecksUpdate(func(e, _ *corev1.Event) field.ErrorList { return ValidateEvent(e) }),
		},
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		Relaxed:             true,
		ValidateName:        validate.Subdomain,
		Columns:             EventColumns(),
		Fields:              EventFields(),
		Indexes: map[string]func(api.Object) []string{"regarding": api.Values(func(e *corev1.Event) []string {
			if e.InvolvedObject.UID == "" {
				return nil
			}
			return []string{string(e.InvolvedObject.UID)}
		})},
	}
}

// Limits on what an event may say, in characters.
const (
	maxEventField   = 128
	maxEventMessage = 1024
)

// ValidateEvent checks an event as the core group does: those of before events.k8s.io need not
// say more than what they are about.
func ValidateEvent(e *corev1.Event) field.ErrorList {
	r := &report{}
	place := field.NewPath("involvedObject", "namespace")
	about := e.InvolvedObject.Namespace
	const detail = "does not match event.namespace"
	if e.EventTime.IsZero() {
		if about == "" {
			if e.Namespace != "" && e.Namespace != metav1.NamespaceDefault {
				r.invalid(place, about, detail)
			}
		} else if about != e.Namespace {
			r.invalid(place, about, detail)
		}
	} else {
		if about == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
			r.invalid(place, about, detail)
		}
		reporter(r, e)
	}
	r.add(validate.Invalids(field.NewPath("namespace"), e.Namespace, validate.DNSSubdomain(e.Namespace)))
	return r.errs
}

// reporter checks who says what (KEP-383).
func reporter(r *report, e *corev1.Event) {
	controller := field.NewPath("reportingComponent") // as v1 names it
	if e.ReportingController == "" {
		r.required(controller, "")
	}
	r.add(validate.QualifiedNameField(e.ReportingController, controller))
	for _, f := range []struct{ value, name string }{
		{e.ReportingInstance, "reportingInstance"},
		{e.Action, "action"},
		{e.Reason, "reason"},
	} {
		p := field.NewPath(f.name)
		if f.value == "" {
			r.required(p, "")
		}
		if len(f.value) > maxEventField {
			r.invalid(p, "", fmt.Sprintf("can have at most %v characters", maxEventField))
		}
	}
	if len(e.Message) > maxEventMessage {
		r.invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", maxEventMessage))
	}
}

// EventFields are the selectable fields of events, in both of their groups.
func EventFields() map[string]func(api.Object) string {
	type T = *corev1.Event
	return map[string]func(api.Object) string{
		"involvedObject.kind":            api.Field(func(e T) string { return e.InvolvedObject.Kind }),
		"involvedObject.namespace":       api.Field(func(e T) string { return e.InvolvedObject.Namespace }),
		"involvedObject.name":            api.Field(func(e T) string { return e.InvolvedObject.Name }),
		"involvedObject.uid":             api.Field(func(e T) string { return string(e.InvolvedObject.UID) }),
		"involvedObject.apiVersion":      api.Field(func(e T) string { return e.InvolvedObject.APIVersion }),
		"involvedObject.resourceVersion": api.Field(func(e T) string { return e.InvolvedObject.ResourceVersion }),
		"involvedObject.fieldPath":       api.Field(func(e T) string { return e.InvolvedObject.FieldPath }),
		"reason":                         api.Field(func(e T) string { return e.Reason }),
		"reportingComponent":             api.Field(func(e T) string { return e.ReportingController }),
		"source":                         api.Field(func(e T) string { return or(e.Source.Component, e.ReportingController) }),
		"type":                           api.Field(func(e T) string { return e.Type }),
	}
}

// EventColumns are the columns of events, in both of their groups.
func EventColumns() []api.Column {
	doc := corev1.Event{}.SwaggerDoc()
	type T = *corev1.Event
	first := column("First Seen", "string", doc["firstTimestamp"], 1, func(T) any { return "" })
	first.Cell = func(o api.Object, now time.Time) any { return Since(firstSeen(o.(T)), now) }
	last := column("Last Seen", "string", doc["lastTimestamp"], 0, func(T) any { return "" })
	last.Cell = func(o api.Object, now time.Time) any { return Since(lastSeen(o.(T)), now) }
	name := nameColumn()
	name.Priority, name.Format = 1, ""
	return []api.Column{
		last,
		column("Type", "string", doc["type"], 0, func(e T) any { return e.Type }),
		column("Reason", "string", doc["reason"], 0, func(e T) any { return e.Reason }),
		column("Object", "string", doc["involvedObject"], 0, func(e T) any {
			kind := strings.ToLower(e.InvolvedObject.Kind)
			if e.InvolvedObject.Name == "" {
				return kind
			}
			return kind + "/" + e.InvolvedObject.Name
		}),
		column("Subobject", "string", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"], 1, func(e T) any { return e.InvolvedObject.FieldPath }),
		column("Source", "string", doc["source"], 1, func(e T) any {
			source := or(e.Source.Component, e.ReportingController)
			if host := or(e.Source.Host, e.ReportingInstance); host != "" {
				source += ", " + host
			}
			return source
		}),
		column("Message", "string", doc["message"], 0, func(e T) any { return strings.TrimSpace(e.Message) }),
		first,
		column("Count", "string", doc["count"], 1, func(e T) any { return eventCount(e) }),
		name,
	}
}

func firstSeen(e *corev1.Event) time.Time {
	if e.FirstTimestamp.IsZero() {
		return e.EventTime.Time
	}
	return e.FirstTimestamp.Time
}

func lastSeen(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case e.LastTimestamp.IsZero():
		return firstSeen(e)
	}
	return e.LastTimestamp.Time
}

func eventCount(e *corev1.Event) int64 {
	switch {
	case e.Series != nil:
		return int64(e.Series.Count)
	case e.Count == 0:
		return 1
	}
	return int64(e.Count)
}
