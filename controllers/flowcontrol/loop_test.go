package flowcontrol_test

import (
	"slices"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	api "coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/flowcontrol"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

var (
	schemas = client.Resource[*flowcontrolv1.FlowSchema]{Name: "flowschemas.flowcontrol.apiserver.k8s.io"}
	levels  = client.Resource[*flowcontrolv1.PriorityLevelConfiguration]{Name: "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io"}
)

// settle carries out plans until there is nothing to do, and returns what was handed over last.
func settle(t *testing.T, c *reconciletest.Cluster) (handed []string) {
	t.Helper()
	loop := flowcontrol.Loop(func(s []*flowcontrolv1.FlowSchema, _ []*flowcontrolv1.PriorityLevelConfiguration) {
		handed = nil
		for _, one := range s {
			handed = append(handed, one.Name)
		}
	})
	for range 10 {
		keys := slices.Clone(loop.Always)
		for s := range schemas.List(c.Snapshot(), "") {
			if key := (reconcile.Key{Resource: schemas.Name, Name: s.Name}); !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		writes := 0
		for _, key := range keys {
			plan, err := loop.Plan(c.Snapshot(), key, time.Unix(1e9, 0))
			if err != nil {
				t.Fatal(err)
			}
			if plan.Effect != nil {
				if err := loop.Apply(t.Context(), key, plan.Effect); err != nil {
					t.Fatal(err)
				}
			}
			for _, w := range plan.Writes {
				writes++
				if w.Verb == reconcile.Create {
					_, err = c.Create(t.Context(), w.Resource, w.Object, client.WriteOptions{})
				} else {
					_, err = c.Update(t.Context(), w.Resource, w.Object, client.WriteOptions{Subresource: w.Subresource})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if writes == 0 {
			return handed
		}
	}
	t.Fatal("the loop does not come to rest")
	return nil
}

func TestObjectsAreKept(t *testing.T) {
	c := reconciletest.NewCluster(0)
	handed := settle(t, c)
	if want := len(api.MandatorySchemas()) + len(api.SuggestedSchemas()); len(handed) != want {
		t.Fatalf("%d schemas were handed over, want %d: %v", len(handed), want, handed)
	}
	for s := range schemas.List(c.Snapshot(), "") {
		if len(s.Status.Conditions) != 1 || s.Status.Conditions[0].Status != flowcontrolv1.ConditionFalse || s.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] != "true" {
			t.Errorf("%s: %v %v", s.Name, s.Status.Conditions, s.Annotations)
		}
	}
	change := func(name, auto string) {
		s, _ := schemas.Get(c.Snapshot(), "", name)
		s = s.DeepCopy()
		s.Spec.MatchingPrecedence = 77
		s.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = auto
		if _, err := c.Update(t.Context(), schemas.Name, s, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	change("service-accounts", "true")
	change("global-default", "false")
	settle(t, c)
	for name, want := range map[string]int32{"service-accounts": 9000, "global-default": 77} {
		if s, _ := schemas.Get(c.Snapshot(), "", name); s.Spec.MatchingPrecedence != want {
			t.Errorf("%s has precedence %d, want %d", name, s.Spec.MatchingPrecedence, want)
		}
	}
	if err := c.Delete(t.Context(), client.Ref{Resource: levels.Name, Name: "system"}, client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	settle(t, c)
	if _, ok := levels.Get(c.Snapshot(), "", "system"); !ok {
		t.Error("a suggested level that was deleted does not come back")
	}
}

func TestDangling(t *testing.T) {
	c := reconciletest.NewCluster(0)
	s := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "other"}, MatchingPrecedence: 5}}
	if _, err := c.Create(t.Context(), schemas.Name, s, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	check := func(status flowcontrolv1.ConditionStatus, message string) {
		t.Helper()
		settle(t, c)
		got, _ := schemas.Get(c.Snapshot(), "", "mine")
		if len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Status != status || got.Status.Conditions[0].Message != message {
			t.Errorf("%+v", got.Status.Conditions)
		}
	}
	check("True", `This FlowSchema references the PriorityLevelConfiguration object named "other" but there is no such object`)
	l := api.SuggestedLevels()[0]
	l.Name = "other"
	if _, err := c.Create(t.Context(), levels.Name, l, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	check("False", `This FlowSchema references the PriorityLevelConfiguration object named "other" and it exists`)
}
