package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/api/quota"
	"coracle.dev/coracle/client"
)

// amounts reads "cpu=1,pods=2".
func amounts(t *testing.T, text string) corev1.ResourceList {
	t.Helper()
	l := corev1.ResourceList{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(value)
		if err != nil {
			t.Fatal(err)
		}
		l[corev1.ResourceName(name)] = q
	}
	return l
}

// limit makes a quota of which nothing is used, with the status that the controller would give it.
func (e *env) limit(t *testing.T, name string, spec corev1.ResourceQuotaSpec) {
	t.Helper()
	quotas := e.typed.CoreV1().ResourceQuotas("default")
	q, err := quotas.Create(ctx(t), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q.Status.Hard, q.Status.Used = q.Spec.Hard, corev1.ResourceList{}
	for n := range q.Spec.Hard {
		q.Status.Used[n] = resource.MustParse("0")
	}
	if _, err := quotas.UpdateStatus(ctx(t), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (e *env) used(t *testing.T, name string) string {
	t.Helper()
	q, ok := client.ResourceQuotas.Get(e.store.Snapshot(), "default", name)
	if !ok {
		t.Fatalf("no quota %s", name)
	}
	return quota.Text(q.Status.Used)
}

func quotaPod(t *testing.T, name, requests, limits string) *corev1.Pod {
	p := simplePod(name)
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i",
		Resources: corev1.ResourceRequirements{Requests: amounts(t, requests), Limits: amounts(t, limits)}}}
	return p
}

// TestQuota charges objects of several kinds to quotas, in upstream's words where they do not fit.
func TestQuota(t *testing.T) {
	deadline := int64(5)
	ending := func(p *corev1.Pod) *corev1.Pod { p.Spec.ActiveDeadlineSeconds = &deadline; return p }
	service := func(name string, kind corev1.ServiceType, ports int) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: kind}}
		for i := range ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(80 + i)})
		}
		return s
	}
	claim := func(name, class, size string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: amounts(t, "storage="+size)}}}
	}
	priority := []corev1.ScopedResourceSelectorRequirement{{ScopeName: corev1.ResourceQuotaScopePriorityClass,
		Operator: corev1.ScopeSelectorOpIn, Values: []string{"system-cluster-critical"}}}
	cases := []struct {
		name  string
		spec  corev1.ResourceQuotaSpec
		makes []any
		// want is the error of the last, the one before it succeed; used is the status after it.
		want, used string
	}{
		{"pods", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=2")},
			[]any{simplePod("a"), simplePod("b"), simplePod("d")},
			`pods "d" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2`, "pods=2"},
		{"compute", corev1.ResourceQuotaSpec{Hard: amounts(t, "requests.cpu=1,limits.memory=1Gi,count/pods=9")},
			[]any{quotaPod(t, "a", "cpu=600m", "memory=512Mi"), quotaPod(t, "b", "cpu=600m", "memory=768Mi")},
			`pods "b" is forbidden: exceeded quota: q, requested: limits.memory=768Mi,requests.cpu=600m, used: limits.memory=512Mi,requests.cpu=600m, limited: limits.memory=1Gi,requests.cpu=1`,
			"count/pods=1,limits.memory=512Mi,requests.cpu=600m"},
		{"unsaid", corev1.ResourceQuotaSpec{Hard: amounts(t, "cpu=1,limits.memory=1Gi")},
			[]any{quotaPod(t, "a", "", "")},
			`pods "a" is forbidden: failed quota: q: must specify cpu for: c; limits.memory for: c`, "cpu=0,limits.memory=0"},
		{"extended", corev1.ResourceQuotaSpec{Hard: amounts(t, "requests.example.com/gpu=1")},
			[]any{quotaPod(t, "a", "example.com/gpu=2", "example.com/gpu=2")},
			`pods "a" is forbidden: exceeded quota: q, requested: requests.example.com/gpu=2, used: requests.example.com/gpu=0, limited: requests.example.com/gpu=1`, "requests.example.com/gpu=0"},
		{"best effort", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=1"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}},
			[]any{quotaPod(t, "a", "cpu=1", ""), quotaPod(t, "b", "cpu=1", ""), simplePod("d"), simplePod("f")},
			`pods "f" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`, "pods=1"},
		{"terminating", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=1"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}},
			[]any{simplePod("a"), ending(simplePod("b")), ending(simplePod("d"))},
			`pods "d" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`, "pods=1"},
		{"priority class", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=0"), ScopeSelector: &corev1.ScopeSelector{MatchExpressions: priority}},
			[]any{simplePod("a"), simplePod("b")}, "", "pods=0"},
		{"services", corev1.ResourceQuotaSpec{Hard: amounts(t, "services=4,services.nodeports=3,services.loadbalancers=1")},
			[]any{service("a", corev1.ServiceTypeClusterIP, 1), service("b", corev1.ServiceTypeLoadBalancer, 2), service("d", corev1.ServiceTypeNodePort, 2)},
			`services "d" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=2, limited: services.nodeports=3`,
			"services=2,services.loadbalancers=1,services.nodeports=2"},
		{"storage", corev1.ResourceQuotaSpec{Hard: amounts(t, "requests.storage=3Gi,gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=5")},
			[]any{claim("a", "silver", "2Gi"), claim("b", "gold", "1Gi"), claim("d", "gold", "1")},
			`persistentvolumeclaims "d" is forbidden: exceeded quota: q, requested: gold.storageclass.storage.k8s.io/requests.storage=1,requests.storage=1, used: gold.storageclass.storage.k8s.io/requests.storage=1Gi,requests.storage=3Gi, limited: gold.storageclass.storage.k8s.io/requests.storage=1Gi,requests.storage=3Gi`,
			"gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=2,requests.storage=3Gi"},
		{"counts", corev1.ResourceQuotaSpec{Hard: amounts(t, "configmaps=1,count/configmaps=1")},
			[]any{&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "b"}}},
			`configmaps "b" is forbidden: exceeded quota: q, requested: configmaps=1,count/configmaps=1, used: configmaps=1,count/configmaps=1, limited: configmaps=1,count/configmaps=1`,
			"configmaps=1,count/configmaps=1"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			e := start(t, builtin.Kinds())
			e.limit(t, "q", tc.spec)
			for i, obj := range tc.makes {
				err := e.make(t, obj)
				want := ""
				if i == len(tc.makes)-1 {
					want = tc.want
				}
				if got := message(err); got != want {
					t.Errorf("object %d:\n%s, want\n%s", i, got, want)
				}
			}
			if got := e.used(t, "q"); got != tc.used {
				t.Errorf("used is %s, want %s", got, tc.used)
			}
		})
	}
}

// message is the text of an error, "" for none.
func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// make creates an object of one of the kinds of the test.
func (e *env) make(t *testing.T, obj any) (err error) {
	c := e.typed.CoreV1()
	switch o := obj.(type) {
	case *corev1.Pod:
		_, err = c.Pods("default").Create(ctx(t), o, metav1.CreateOptions{})
	case *corev1.Service:
		_, err = c.Services("default").Create(ctx(t), o, metav1.CreateOptions{})
	case *corev1.PersistentVolumeClaim:
		_, err = c.PersistentVolumeClaims("default").Create(ctx(t), o, metav1.CreateOptions{})
	case *corev1.ConfigMap:
		_, err = c.ConfigMaps("default").Create(ctx(t), o, metav1.CreateOptions{})
	default:
		t.Fatalf("%T", obj)
	}
	return err
}

// TestQuotaOfChanges charges what a change adds, and nothing for what it takes away or for a trial.
func TestQuotaOfChanges(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.limit(t, "q", corev1.ResourceQuotaSpec{Hard: amounts(t, "services.nodeports=1,configmaps=5")})
	services := e.typed.CoreV1().Services("default")
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}}}
	svc, err := services.Create(ctx(t), svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	open := svc.DeepCopy()
	open.Spec.Type = corev1.ServiceTypeNodePort
	want := `services "s" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1`
	if _, err := services.Update(ctx(t), open, metav1.UpdateOptions{}); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	open.Spec.Ports = open.Spec.Ports[:1]
	if open, err = services.Update(ctx(t), open, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	open.Spec.Type, open.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 0
	if _, err = services.Update(ctx(t), open, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "trial"}}
	if _, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), cm, metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Fatal(err)
	}
	if got := e.used(t, "q"); got != "configmaps=0,services.nodeports=1" {
		t.Errorf("used is %s", got) // the controller credits, not admission
	}
}

// TestQuotaUnknown refuses what a quota limits whose use has not been counted yet.
func TestQuotaUnknown(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.limit(t, "q", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=1")})
	q, _ := client.ResourceQuotas.Get(e.store.Snapshot(), "default", "q")
	q = q.DeepCopy()
	q.Status.Used = nil
	if _, err := e.typed.CoreV1().ResourceQuotas("default").UpdateStatus(ctx(t), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want := `pods "a" is forbidden: status unknown for quota: q, resources: pods`
	if err := e.make(t, simplePod("a")); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestQuotaHolds lets many clients at a quota at once: exactly as many succeed as it allows, and never is there a
// revision at which the status and the number of objects differ.
func TestQuotaHolds(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.limit(t, "q", corev1.ResourceQuotaSpec{Hard: amounts(t, "configmaps=20")})
	from := e.store.Snapshot().Revision()
	var made atomic.Int64
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			if _, err := e.Writer().Create(ctx(t), "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("c", i)}},
				client.WriteOptions{}); err == nil {
				made.Add(1)
			}
		})
	}
	wg.Wait()
	if made.Load() != 20 {
		t.Errorf("%d objects were made, want 20", made.Load())
	}
	cursor, err := e.store.Cursor(from)
	if err != nil {
		t.Fatal(err)
	}
	events, err := cursor.Poll()
	if err != nil || len(events) == 0 {
		t.Fatal("no history", err)
	}
	byRevision := map[int64][2]int64{}
	objects := int64(0)
	for _, ev := range events {
		r := byRevision[int64(ev.Entry.Revision)]
		switch o := ev.Entry.Object.(api.Object).(type) {
		case *corev1.ConfigMap:
			objects++
			r[0] = objects
		case *corev1.ResourceQuota:
			n := o.Status.Used[corev1.ResourceConfigMaps]
			r[1] = n.Value()
		}
		byRevision[int64(ev.Entry.Revision)] = r
	}
	for _, rev := range slices.Sorted(maps.Keys(byRevision)) {
		if r := byRevision[rev]; r[0] != r[1] {
			t.Errorf("revision %d: %d objects, %d charged", rev, r[0], r[1])
		}
	}
}

// TestQuotaTogether charges several objects of one transaction to one quota, all or none.
func TestQuotaTogether(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.limit(t, "q", corev1.ResourceQuotaSpec{Hard: amounts(t, "pods=3")})
	batch := func(names ...string) error {
		var objs []client.New
		for _, n := range names {
			p := quotaPod(t, n, "", "")
			p.Namespace = "default"
			objs = append(objs, client.New{Resource: "pods", Object: p})
		}
		return e.Writer().(client.Batcher).CreateAll(ctx(t), objs)
	}
	if err := batch("a", "b"); err != nil {
		t.Fatal(err)
	}
	if have := e.used(t, "q"); have != "pods=2" {
		t.Errorf("used %s, want pods=2", have)
	}
	err := batch("c", "d")
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3") {
		t.Errorf("a batch that does not fit: %v", err)
	}
	if have := e.used(t, "q"); have != "pods=2" {
		t.Errorf("used %s after a refusal, want pods=2", have)
	}
}
