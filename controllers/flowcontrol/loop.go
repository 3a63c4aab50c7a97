// Package flowcontrol keeps the objects of API Priority and Fairness: the mandatory flow schemas and priority levels as they must
// be, the suggested ones as long as nobody wants them otherwise, and the condition Dangling of every schema. It hands the API
// server what it sorts requests by whenever that changes.
//
// It owns the existence of those objects and, where apf.kubernetes.io/autoupdate-spec allows it, their spec
// (https://kubernetes.io/docs/concepts/cluster-administration/flow-control/#maintenance-of-the-mandatory-and-suggested-configuration-objects).
// It never touches what others made, but for that condition.
package flowcontrol

import (
	"context"
	"fmt"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

var (
	schemas = client.Resource[*flowcontrolv1.FlowSchema]{Name: "flowschemas.flowcontrol.apiserver.k8s.io"}
	levels  = client.Resource[*flowcontrolv1.PriorityLevelConfiguration]{Name: "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io"}
)

// configuration is the key of a pass that hands over what there is.
var configuration = reconcile.Key{Resource: "configuration"}

// objects is what is handed over.
type objects struct {
	schemas []*flowcontrolv1.FlowSchema
	levels  []*flowcontrolv1.PriorityLevelConfiguration
}

// Update takes what requests are sorted by from now on (fairness.Gate.Update). The objects are shared.
type Update func([]*flowcontrolv1.FlowSchema, []*flowcontrolv1.PriorityLevelConfiguration)

// wanted is one object that every cluster begins with.
type wanted struct {
	schema    *flowcontrolv1.FlowSchema
	level     *flowcontrolv1.PriorityLevelConfiguration
	mandatory bool
}

// Loop keeps the objects and calls update when they change, for the first time when all there are at the start are known.
func Loop(update Update) reconcile.Loop {
	all := map[reconcile.Key]wanted{}
	var always []reconcile.Key
	add := func(w wanted) {
		key := reconcile.Key{Resource: levels.Name}
		if w.schema != nil {
			key = reconcile.Key{Resource: schemas.Name, Name: w.schema.Name}
		} else {
			key.Name = w.level.Name
		}
		all[key] = w
		always = append(always, key)
	}
	// Levels first: schemas name them.
	for _, l := range flowcontrol.MandatoryLevels() {
		add(wanted{level: l, mandatory: true})
	}
	for _, l := range flowcontrol.SuggestedLevels() {
		add(wanted{level: l})
	}
	for _, s := range flowcontrol.MandatorySchemas() {
		add(wanted{schema: s, mandatory: true})
	}
	for _, s := range flowcontrol.SuggestedSchemas() {
		add(wanted{schema: s})
	}
	return reconcile.Loop{
		Name:   "api-priority-and-fairness-config-controller",
		Always: append(always, configuration),
		Inputs: []reconcile.Input{{Resource: schemas.Name, Keys: ofSchema}, {Resource: levels.Name, Keys: ofLevel}},
		Outputs: []reconcile.Output{
			{Resource: schemas.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}},
			{Resource: schemas.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: levels.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			switch key.Resource {
			case schemas.Name:
				return planSchema(s, key, all[key], now), nil
			case levels.Name:
				return planLevel(s, key, all[key]), nil
			}
			return planConfiguration(s), nil
		},
		Apply: func(_ context.Context, _ reconcile.Key, effect any) error {
			o := effect.(objects)
			update(o.schemas, o.levels)
			return nil
		},
	}
}

func ofSchema(_ store.Snapshot, ev store.Event) []reconcile.Key {
	return []reconcile.Key{{Resource: schemas.Name, Name: ev.Entry.Name}, configuration}
}

// ofLevel: a level concerns itself and the schemas that name it.
func ofLevel(s store.Snapshot, ev store.Event) []reconcile.Key {
	keys := []reconcile.Key{{Resource: levels.Name, Name: ev.Entry.Name}, configuration}
	for fs := range schemas.List(s, "") {
		if fs.Spec.PriorityLevelConfiguration.Name == ev.Entry.Name {
			keys = append(keys, reconcile.Key{Resource: schemas.Name, Name: fs.Name})
		}
	}
	return keys
}

func planConfiguration(s store.Snapshot) reconcile.Plan {
	var o objects
	for fs := range schemas.List(s, "") {
		o.schemas = append(o.schemas, fs)
	}
	for l := range levels.List(s, "") {
		o.levels = append(o.levels, l)
	}
	// Without the mandatory objects some requests would be nobody's: they are about to be made.
	if _, ok := schemas.Get(s, "", flowcontrolv1.FlowSchemaNameCatchAll); !ok {
		return reconcile.Plan{}
	}
	if _, ok := levels.Get(s, "", flowcontrolv1.PriorityLevelConfigurationNameCatchAll); !ok {
		return reconcile.Plan{}
	}
	return reconcile.Plan{Effect: o}
}

func one(w reconcile.Write) reconcile.Plan { return reconcile.Plan{Writes: []reconcile.Write{w}} }

func annotated[T api.Object](obj T) T {
	obj.SetAnnotations(map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"})
	return obj
}

// auto tells whether the spec of an object is ours to keep, and what the annotation should say. Who made the object
// without the annotation and changed it since wants it that way.
func auto(obj api.Object, mandatory bool) (ours bool, annotation string) {
	switch v := obj.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey]; {
	case mandatory, v == "true":
		return true, "true"
	case v == "false":
		return false, "false"
	}
	ours = obj.GetGeneration() <= 1
	return ours, fmt.Sprint(ours)
}

// keep brings annotation and spec of a copy into line and tells whether it had to.
func keep[T api.Object](had T, mandatory bool, differs func(T) bool, set func(T)) (T, bool) {
	ours, annotation := auto(had, mandatory)
	wrong := ours && differs(had)
	if !wrong && had.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey] == annotation {
		return had, false
	}
	obj := had.DeepCopyObject().(T)
	notes := obj.GetAnnotations()
	if notes == nil {
		notes = map[string]string{}
	}
	notes[flowcontrolv1.AutoUpdateAnnotationKey] = annotation
	obj.SetAnnotations(notes)
	if wrong {
		set(obj)
	}
	return obj, true
}

func planLevel(s store.Snapshot, key reconcile.Key, w wanted) reconcile.Plan {
	if w.level == nil {
		return reconcile.Plan{}
	}
	had, ok := levels.Get(s, "", key.Name)
	if !ok {
		return one(reconcile.Write{Verb: reconcile.Create, Resource: levels.Name, Object: annotated(w.level.DeepCopy())})
	}
	spec := *w.level.Spec.DeepCopy()
	if w.mandatory && had.Spec.Exempt != nil && spec.Exempt != nil {
		spec.Exempt = had.Spec.Exempt.DeepCopy() // what it lends is the administrator's to say
	}
	obj, changed := keep(had, w.mandatory,
		func(l *flowcontrolv1.PriorityLevelConfiguration) bool {
			return !equality.Semantic.DeepEqual(l.Spec, spec)
		},
		func(l *flowcontrolv1.PriorityLevelConfiguration) { l.Spec = spec })
	if !changed {
		return reconcile.Plan{}
	}
	return one(reconcile.Write{Verb: reconcile.Update, Resource: levels.Name, Object: obj})
}

func planSchema(s store.Snapshot, key reconcile.Key, w wanted, now time.Time) reconcile.Plan {
	had, ok := schemas.Get(s, "", key.Name)
	if !ok && w.schema == nil {
		return reconcile.Plan{}
	}
	if !ok {
		return one(reconcile.Write{Verb: reconcile.Create, Resource: schemas.Name, Object: annotated(w.schema.DeepCopy())})
	}
	if w.schema != nil {
		obj, changed := keep(had, w.mandatory,
			func(o *flowcontrolv1.FlowSchema) bool { return !equality.Semantic.DeepEqual(o.Spec, w.schema.Spec) },
			func(o *flowcontrolv1.FlowSchema) { o.Spec = *w.schema.Spec.DeepCopy() })
		if changed {
			return one(reconcile.Write{Verb: reconcile.Update, Resource: schemas.Name, Object: obj})
		}
	}
	_, found := levels.Get(s, "", had.Spec.PriorityLevelConfiguration.Name)
	want := dangling(had.Spec.PriorityLevelConfiguration.Name, found)
	at := -1
	for i, c := range had.Status.Conditions {
		if c.Type == want.Type {
			at = i
		}
	}
	if at >= 0 {
		c := had.Status.Conditions[at]
		if c.Status == want.Status && c.Reason == want.Reason && c.Message == want.Message {
			return reconcile.Plan{}
		}
	}
	want.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	obj := had.DeepCopy()
	switch {
	case at < 0:
		obj.Status.Conditions = append(obj.Status.Conditions, want)
	default:
		if obj.Status.Conditions[at].Status == want.Status {
			want.LastTransitionTime = obj.Status.Conditions[at].LastTransitionTime
		}
		obj.Status.Conditions[at] = want
	}
	return one(reconcile.Write{Verb: reconcile.Update, Resource: schemas.Name, Subresource: "status", Object: obj})
}

// dangling is the condition of a schema whose level is there or not.
func dangling(level string, found bool) flowcontrolv1.FlowSchemaCondition {
	c := flowcontrolv1.FlowSchemaCondition{Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionTrue, Reason: "NotFound",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", level)}
	if found {
		c.Status, c.Reason = flowcontrolv1.ConditionFalse, "Found"
		c.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", level)
	}
	return c
}
