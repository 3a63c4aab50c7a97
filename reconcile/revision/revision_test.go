package revision_test

import (
	"context"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/reconcile/revision"
	"coracle.dev/coracle/store"
)

var owner = &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "u-1"}}

func template(image string) *corev1.PodTemplateSpec {
	t := &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}}
	core.DefaultPodTemplate(t)
	return t
}

// TestCurrent holds when a template is a new revision, an old one that comes back, or the one that is there.
func TestCurrent(t *testing.T) {
	c := reconciletest.NewCluster(0)
	put := func(r *appsv1.ControllerRevision) {
		t.Helper()
		key := store.Key{Resource: "controllerrevisions.apps", Namespace: r.Namespace, Name: r.Name}
		if _, _, err := c.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: r, Expect: store.ExpectAny}}}); err != nil {
			t.Fatal(err)
		}
	}
	current := func(tmpl *corev1.PodTemplateSpec, collisions *int32) (name, verb string, number int64) {
		t.Helper()
		s := c.Snapshot()
		h := revision.Of(s, owner, claim.Reference("apps/v1", "StatefulSet", owner), labels.SelectorFromSet(labels.Set{"app": "db"}))
		rev, w, collided := h.Current(s, tmpl, nil, collisions)
		if collided {
			return "", "collided", 0
		}
		if w != nil {
			put(w.Object.(*appsv1.ControllerRevision).DeepCopy())
			return rev.Name, string(w.Verb), rev.Revision
		}
		return rev.Name, "", rev.Revision
	}
	first, verb, n := current(template("db:1"), nil)
	if verb != "create" || n != 1 {
		t.Fatalf("the first: %s %d", verb, n)
	}
	if again, verb, _ := current(template("db:1"), nil); again != first || verb != "" {
		t.Errorf("the same: %s %q", again, verb)
	}
	if _, verb, n := current(template("db:2"), nil); verb != "create" || n != 2 {
		t.Errorf("the second: %s %d", verb, n)
	}
	if back, verb, n := current(template("db:1"), nil); back != first || verb != "update" || n != 3 {
		t.Errorf("the first again: %s %s %d", back, verb, n)
	}

	// One that a version wrote which knew fewer defaults.
	s := c.Snapshot()
	key := store.Key{Resource: "controllerrevisions.apps", Namespace: "default", Name: first}
	older := s.Get(key).Object.(*appsv1.ControllerRevision).DeepCopy()
	raw := strings.Replace(string(older.Data.Raw), `"dnsPolicy":"ClusterFirst",`, "", 1)
	if raw == string(older.Data.Raw) {
		t.Fatal(raw)
	}
	older.Data.Raw = []byte(raw)
	put(older)
	if same, verb, n := current(template("db:1"), nil); same != first || verb != "" || n != 3 {
		t.Errorf("with one default less: %s %q %d", same, verb, n)
	}
	if _, verb, n := current(template("db:3"), nil); verb != "create" || n != 4 {
		t.Errorf("another one: %s %d", verb, n)
	}
}
