package customresource

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// state is a store with definitions and objects of them.
func state(t *testing.T, objs ...api.Object) store.Snapshot {
	t.Helper()
	st := memory.New(client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0))
	for _, o := range objs {
		key := store.Key{Resource: definitions.Name, Namespace: o.GetNamespace(), Name: o.GetName()}
		if _, ok := o.(*definition); !ok {
			key.Resource = o.GetLabels()["resource"]
		}
		if _, _, err := st.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: key, Object: o}}}); err != nil {
			t.Fatal(err)
		}
	}
	return st.Snapshot()
}

func config() Config {
	return Config{
		Registry: api.NewRegistry(builtin.Kinds()...),
		BuiltIn:  func(resource string) bool { return resource == "deployments.apps" },
		Serve:    func(context.Context, *definition) error { return nil },
	}
}

// define makes a definition; names are plural, kind and short names.
func define(group, plural, kind string, short ...string) *definition {
	d := &definition{ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group, Generation: 1, UID: types.UID(plural)}}
	d.Spec.Group = group
	d.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: plural[:len(plural)-1], Kind: kind, ListKind: kind + "List", ShortNames: short}
	return d
}

// accepted is a definition that has its names and is established.
func accepted(d *definition) *definition {
	d.Status.AcceptedNames = d.Spec.Names
	setCondition(d, apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found"}, now)
	setCondition(d, apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}, now)
	return d
}

func TestNames(t *testing.T) {
	other := accepted(define("example.com", "widgets", "Widget", "wd"))
	for name, c := range map[string]struct {
		crd                          *definition
		reason, message, established string
	}{
		"free":            {define("example.com", "gadgets", "Gadget"), "NoConflicts", "no conflicts found", "InitialNamesAccepted"},
		"other group":     {define("example.org", "widgets", "Widget", "wd"), "NoConflicts", "no conflicts found", "InitialNamesAccepted"},
		"kind":            {define("example.com", "gadgets", "Widget"), "ListKindConflict", `"WidgetList" is already in use`, "NotAccepted"},
		"short name":      {define("example.com", "gadgets", "Gadget", "g", "wd"), "ShortNamesConflict", `"wd" is already in use`, "NotAccepted"},
		"short is plural": {define("example.com", "gadgets", "Gadget", "widgets"), "ShortNamesConflict", `"widgets" is already in use`, "NotAccepted"},
		"built-in":        {define("apps", "deployments", "Deployer"), "SingularConflict", `"deployment" is already in use`, "NotAccepted"},
	} {
		t.Run(name, func(t *testing.T) {
			n := &naming{config()}
			plan, err := n.plan(state(t, other.DeepCopy(), c.crd), reconcile.Key{Name: c.crd.Name}, now)
			if err != nil || len(plan.Writes) != 1 {
				t.Fatalf("%v, %d writes", err, len(plan.Writes))
			}
			got := plan.Writes[0].Object.(*definition)
			if c2 := condition(got, apiextensionsv1.NamesAccepted); c2.Reason != c.reason || c2.Message != c.message {
				t.Errorf("names: %s %q, want %s %q", c2.Reason, c2.Message, c.reason, c.message)
			}
			if e := condition(got, apiextensionsv1.Established); e.Reason != c.established || (plan.Effect != nil) != (e.Status == apiextensionsv1.ConditionTrue) {
				t.Errorf("established: %+v with effect %t", e, plan.Effect != nil)
			}
		})
	}
}

// A definition whose names are in use gets them once they are free.
func TestNamesAreReleased(t *testing.T) {
	n := &naming{config()}
	gone, waits := accepted(define("example.com", "widgets", "Widget")), define("example.com", "gadgets", "Widget")
	s := state(t, waits)
	keys := n.keys(s, store.Event{Entry: &store.Entry{Key: store.Key{Resource: definitions.Name, Name: gone.Name}, Object: gone}, Deleted: true})
	if len(keys) != 2 || keys[1].Name != waits.Name {
		t.Errorf("woken: %v", keys)
	}
}

func TestNothingToDo(t *testing.T) {
	d := accepted(define("example.com", "widgets", "Widget"))
	plan, err := (&naming{config()}).plan(state(t, d), reconcile.Key{Name: d.Name}, now)
	if err != nil || len(plan.Writes) > 0 || plan.Effect != nil {
		t.Errorf("%+v, %v", plan, err)
	}
}

func TestApproval(t *testing.T) {
	for annotation, want := range map[string]string{
		"":                              "MissingAnnotation",
		"https://github.com/k/k/pull/1": "ApprovedAnnotation",
		"unapproved, experimental":      "UnapprovedAnnotation",
		"nonsense":                      "InvalidAnnotation",
	} {
		d := define("thing.k8s.io", "widgets", "Widget")
		d.Annotations = map[string]string{apiextensionsv1.KubeAPIApprovedAnnotation: annotation}
		plan, err := planApproval(state(t, d), reconcile.Key{Name: d.Name}, now)
		if err != nil || len(plan.Writes) != 1 {
			t.Fatalf("%q: %v", annotation, err)
		}
		c := condition(plan.Writes[0].Object.(*definition), apiextensionsv1.KubernetesAPIApprovalPolicyConformant)
		if c == nil || c.Reason != want {
			t.Errorf("%q: %+v, want %s", annotation, c, want)
		}
	}
	d := define("example.com", "widgets", "Widget")
	if plan, _ := planApproval(state(t, d), reconcile.Key{Name: d.Name}, now); len(plan.Writes) > 0 {
		t.Error("a group of nobody's is judged")
	}
}

func object(resource, name string, deleted bool) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Widget"}}
	u.SetName(name)
	u.SetNamespace("default")
	u.SetUID(types.UID("uid-" + name))
	u.SetLabels(map[string]string{"resource": resource})
	if deleted {
		at := metav1.NewTime(now)
		u.SetDeletionTimestamp(&at)
		u.SetFinalizers([]string{"mine"})
	}
	return u
}

func TestFinalizer(t *testing.T) {
	deleting := func(d *definition, reason string) *definition {
		at := metav1.NewTime(now)
		d.DeletionTimestamp, d.Finalizers = &at, []string{cleanup, "other"}
		setCondition(d, busy(reason, ""), now)
		return d
	}
	established := func() *definition { return accepted(define("example.com", "widgets", "Widget")) }
	const resource = "widgets.example.com"
	for name, c := range map[string]struct {
		crd      *definition
		objs     []api.Object
		at       time.Time
		reason   string // of the condition that is written
		released bool
		deletes  int
		after    time.Duration
	}{
		"not deleted":         {crd: established()},
		"no objects":          {crd: deleting(established(), "InstanceDeletionPending"), reason: "InstanceDeletionCompleted", released: true},
		"never established":   {crd: deleting(define("example.com", "widgets", "Widget"), "InstanceDeletionPending"), reason: "NeverEstablished", released: true},
		"never, with objects": {crd: deleting(define("example.com", "widgets", "Widget"), "InstanceDeletionInProgress"), objs: []api.Object{object(resource, "a", false)}, deletes: 1, after: time.Second},
		"goes on":             {crd: deleting(established(), "InstanceDeletionFailed"), objs: []api.Object{object(resource, "a", false)}, deletes: 1, after: time.Second},
		"built-in":            {crd: deleting(accepted(define("apps", "deployments", "Deployer")), "InstanceDeletionPending"), objs: []api.Object{object("deployments.apps", "a", false)}, reason: "OverlappingBuiltInResource", released: true},
		"says so first":       {crd: deleting(established(), "InstanceDeletionPending"), objs: []api.Object{object(resource, "a", false)}, reason: "InstanceDeletionInProgress"},
		"deletes":             {crd: deleting(established(), "InstanceDeletionInProgress"), objs: []api.Object{object(resource, "a", false), object(resource, "b", true)}, deletes: 1, after: time.Second},
		"waits":               {crd: deleting(established(), "InstanceDeletionInProgress"), objs: []api.Object{object(resource, "b", true)}, after: time.Minute},
		"waits long":          {crd: deleting(established(), "InstanceDeletionInProgress"), objs: []api.Object{object(resource, "b", true)}, at: now.Add(2 * time.Minute), reason: "InstanceDeletionCheck"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.at.IsZero() {
				c.at = now
			}
			plan, err := (&finalizer{config()}).plan(state(t, append(c.objs, c.crd)...), reconcile.Key{Name: c.crd.Name}, c.at)
			if err != nil {
				t.Fatal(err)
			}
			reason, deletes, released := "", 0, false
			for _, w := range plan.Writes {
				if w.Verb == reconcile.Delete {
					deletes++
					continue
				}
				d := w.Object.(*definition)
				reason = condition(d, apiextensionsv1.Terminating).Reason
				released = len(d.Finalizers) == 1
			}
			got := fmt.Sprint(reason, released, deletes, plan.After)
			if want := fmt.Sprint(c.reason, c.released, c.deletes, c.after); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// Why objects cannot be deleted is told, once, and telling it is no reason to try again at once.
func TestFinalizerTellsFailures(t *testing.T) {
	d := accepted(define("example.com", "widgets", "Widget"))
	at := metav1.NewTime(now)
	d.DeletionTimestamp, d.Finalizers = &at, []string{cleanup}
	setCondition(d, busy("InstanceDeletionInProgress", "CustomResource deletion is in progress"), now)
	f := &finalizer{config()}
	plan := f.failed(state(t, d, object(d.Name, "a", false)), reconcile.Key{Name: d.Name}, now, errors.New("no luck"))
	if len(plan.Writes) != 1 {
		t.Fatalf("%d writes", len(plan.Writes))
	}
	told := plan.Writes[0].Object.(*definition)
	if c := condition(told, apiextensionsv1.Terminating); c.Status != apiextensionsv1.ConditionTrue || c.Reason != "InstanceDeletionFailed" || c.Message != "could not issue all deletes: no luck" {
		t.Errorf("%+v", c)
	}
	s := state(t, told)
	if plan := f.failed(s, reconcile.Key{Name: d.Name}, now, errors.New("no luck")); len(plan.Writes) != 0 {
		t.Error("told again")
	}
	entry := func(d *definition) *store.Entry {
		return &store.Entry{Key: store.Key{Resource: definitions.Name, Name: d.Name}, Object: d}
	}
	if keys := deleted(s, store.Event{Entry: entry(told), Prev: entry(d)}); len(keys) != 0 {
		t.Errorf("woken by what the loop says itself: %v", keys)
	}
	if keys := deleted(s, store.Event{Entry: entry(told)}); len(keys) != 1 {
		t.Error("not woken at the start")
	}
}

// A definition that is going away gets no names.
func TestNoNamesForTheDeleted(t *testing.T) {
	d := define("example.com", "widgets", "Widget")
	at := metav1.NewTime(now)
	d.DeletionTimestamp, d.Finalizers = &at, []string{cleanup}
	plan, err := (&naming{config()}).plan(state(t, d), reconcile.Key{Name: d.Name}, now)
	if err != nil || len(plan.Writes) > 0 || plan.Effect != nil {
		t.Errorf("%+v, %v", plan, err)
	}
}

func TestInstancesWake(t *testing.T) {
	d := accepted(define("example.com", "widgets", "Widget"))
	at := metav1.NewTime(now)
	d.DeletionTimestamp, d.Finalizers = &at, []string{cleanup}
	s := state(t, d)
	ev := store.Event{Entry: &store.Entry{Key: store.Key{Resource: d.Name, Namespace: "default", Name: "a"}}, Deleted: true}
	if keys := instances(s, ev); len(keys) != 1 || keys[0].Name != d.Name {
		t.Errorf("woken: %v", keys)
	}
	ev.Entry.Key.Resource = "pods"
	if keys := instances(s, ev); len(keys) != 0 {
		t.Errorf("woken by a pod: %v", keys)
	}
}
