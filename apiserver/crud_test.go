package apiserver

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

func simplePod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "busybox"}}},
	}
}

// eachMedia runs a test over JSON and over protobuf.
func eachMedia(t *testing.T, e *env, f func(*testing.T, *kubernetes.Clientset)) {
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(strings.TrimPrefix(media, "application/"), func(t *testing.T) {
			cfg := *e.config
			cfg.ContentType, cfg.AcceptContentTypes = media, media
			c, err := kubernetes.NewForConfig(&cfg)
			if err != nil {
				t.Fatal(err)
			}
			f(t, c)
		})
	}
}

func TestCreateGetUpdateDelete(t *testing.T) {
	e := start(t, smallKinds())
	eachMedia(t, e, func(t *testing.T, c *kubernetes.Clientset) {
		cms := c.CoreV1().ConfigMaps("default")
		made, err := cms.Create(ctx(t), configMap("a", map[string]string{"k": "v"}), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() || made.Namespace != "default" {
			t.Fatalf("system fields are missing: %+v", made.ObjectMeta)
		}
		if _, err = cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || err.Error() != `configmaps "a" already exists` {
			t.Fatalf("second create: %v", err)
		}
		got, err := cms.Get(ctx(t), "a", metav1.GetOptions{})
		if err != nil || got.Data["k"] != "v" || got.UID != made.UID {
			t.Fatalf("get: %+v, %v", got, err)
		}
		got.Data["k"] = "w"
		put, err := cms.Update(ctx(t), got, metav1.UpdateOptions{})
		if err != nil || put.Data["k"] != "w" || put.ResourceVersion == got.ResourceVersion {
			t.Fatalf("update: %+v, %v", put, err)
		}
		same, err := cms.Update(ctx(t), put.DeepCopy(), metav1.UpdateOptions{})
		if err != nil || same.ResourceVersion != put.ResourceVersion {
			t.Fatalf("an update without change was written: %v -> %v, %v", put.ResourceVersion, same.ResourceVersion, err)
		}
		got.Data["k"] = "stale"
		_, err = cms.Update(ctx(t), got, metav1.UpdateOptions{})
		if want := `Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again`; !apierrors.IsConflict(err) || err.Error() != want {
			t.Fatalf("stale update: %v", err)
		}
		free := configMap("a", map[string]string{"k": "free"})
		if put, err = cms.Update(ctx(t), free, metav1.UpdateOptions{}); err != nil || put.Data["k"] != "free" {
			t.Fatalf("unconditional update: %v", err)
		}
		if err := cms.Delete(ctx(t), "a", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}); !apierrors.IsConflict(err) {
			t.Fatalf("delete of another UID: %v", err)
		}
		if err := cms.Delete(ctx(t), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := cms.Get(ctx(t), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) || err.Error() != `configmaps "a" not found` {
			t.Fatalf("get after delete: %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	_, err := e.typed.CoreV1().ConfigMaps("nowhere").Create(ctx(t), configMap("a", nil), metav1.CreateOptions{})
	if !apierrors.IsNotFound(err) || err.Error() != `namespaces "nowhere" not found` {
		t.Errorf("missing namespace: %v", err)
	}
	_, err = cms.Create(ctx(t), configMap("Not_Valid", nil), metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.HasPrefix(err.Error(), `ConfigMap "Not_Valid" is invalid: metadata.name: Invalid value: "Not_Valid": a lowercase RFC 1123 subdomain`) {
		t.Errorf("invalid name: %v", err)
	}
	_, err = e.typed.CoreV1().Pods("default").Update(ctx(t), simplePod("absent"), metav1.UpdateOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("update of an absent pod: %v", err)
	}
	_, err = e.typed.CoreV1().Pods("default").List(ctx(t), metav1.ListOptions{FieldSelector: "spec.color=red"})
	if !apierrors.IsBadRequest(err) || err.Error() != "field label not supported: spec.color" {
		t.Errorf("field selector: %v", err)
	}
	_, err = cms.Create(ctx(t), &corev1.ConfigMap{}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || err.Error() != `ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required` {
		t.Errorf("no name: %v", err)
	}
	with := configMap("x", nil)
	with.ResourceVersion = "5"
	if _, err = cms.Create(ctx(t), with, metav1.CreateOptions{}); err == nil || err.Error() != "resourceVersion should not be set on objects to be created" {
		t.Errorf("resourceVersion on create: %v", err)
	}
	for _, test := range []struct{ body, want string }{
		{`{"kind":"Service","apiVersion":"v1"}`, `Service in version "v1" cannot be handled as a ConfigMap`},
		{`{"kind":"ConfigMap","apiVersion":"v1","data":[1]}`, `ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string`},
		{`{"kind":"ConfigMap","apiVersion":"v2"}`, `no kind "ConfigMap" is registered for version "v2"`},
		{`{`, `unexpected end of JSON input`},
		{strings.Repeat("[", 100000), `exceeded max depth`},
	} {
		err := e.typed.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").
			SetHeader("Content-Type", "application/json").Body([]byte(test.body)).Do(ctx(t)).Error()
		if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("body %.40s: %v", test.body, err)
		}
	}
	err = e.typed.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").
		SetHeader("Content-Type", "application/json").Body(make([]byte, 3<<20+1)).Do(ctx(t)).Error()
	if !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("a body of more than 3 MiB: %v", err)
	}
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [*" + strings.Repeat(p+",*", 8) + p + "]\n"
	}
	began := time.Now()
	err = e.typed.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").
		SetHeader("Content-Type", "application/yaml").Body([]byte(bomb)).Do(ctx(t)).Error()
	if !apierrors.IsBadRequest(err) || time.Since(began) > 5*time.Second {
		t.Errorf("a YAML bomb took %v: %v", time.Since(began), err)
	}
}

func TestGenerateName(t *testing.T) {
	e := start(t, smallKinds())
	cm := configMap("", nil)
	cm.GenerateName = "web-"
	made, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), cm, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	suffix, ok := strings.CutPrefix(made.Name, "web-")
	if !ok || len(suffix) != 5 || strings.Trim(suffix, "bcdfghjklmnpqrstvwxz2456789") != "" {
		t.Fatalf("generated name %q", made.Name)
	}
}

func TestDryRun(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	all := []string{metav1.DryRunAll}
	made, err := cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{DryRun: all})
	if err != nil || made.UID == "" || made.ResourceVersion != "" {
		t.Fatalf("dry run of create: %+v, %v", made, err)
	}
	if _, err := cms.Get(ctx(t), "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("a dry run was stored: %v", err)
	}
	if made, err = cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made.Data = map[string]string{"x": "y"}
	if out, err := cms.Update(ctx(t), made, metav1.UpdateOptions{DryRun: all}); err != nil || out.Data["x"] != "y" {
		t.Fatalf("dry run of update: %v, %v", out, err)
	}
	if err := cms.Delete(ctx(t), "a", metav1.DeleteOptions{DryRun: all}); err != nil {
		t.Fatal(err)
	}
	if got, err := cms.Get(ctx(t), "a", metav1.GetOptions{}); err != nil || got.Data != nil {
		t.Fatalf("dry runs changed the object: %+v, %v", got, err)
	}
	if _, err := cms.Create(ctx(t), configMap("b", nil), metav1.CreateOptions{DryRun: []string{"Some"}}); !apierrors.IsInvalid(err) {
		t.Fatalf("unknown dry run: %v", err)
	}
}

func TestFieldValidation(t *testing.T) {
	e := start(t, smallKinds())
	post := func(validation, name string) (warnings int, err error) {
		body := `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"` + name + `"},"data":{"a":"1","a":"2"},"spec":{"foo":1}}`
		r := e.typed.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").Param("fieldValidation", validation).
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(ctx(t))
		return len(r.Warnings()), r.Error()
	}
	_, err := post("Strict", "strict")
	if want := `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "data.a", unknown field "spec"`; !apierrors.IsBadRequest(err) || err.Error() != want {
		t.Errorf("strict: %v", err)
	}
	if n, err := post("Warn", "warn"); err != nil || n != 2 {
		t.Errorf("warn: %d warnings, %v", n, err)
	}
	if n, err := post("", "default"); err != nil || n != 2 {
		t.Errorf("default: %d warnings, %v", n, err)
	}
	if n, err := post("Ignore", "ignore"); err != nil || n != 0 {
		t.Errorf("ignore: %d warnings, %v", n, err)
	}
}

func TestPatch(t *testing.T) {
	e := start(t, smallKinds())
	pods := e.typed.CoreV1().Pods("default")
	if _, err := pods.Create(ctx(t), simplePod("a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := pods.Patch(ctx(t), "a", types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"side","image":"x"}]}}`), metav1.PatchOptions{})
	if err != nil || len(p.Spec.Containers) != 2 {
		t.Fatalf("strategic merge: %+v, %v", p, err)
	}
	p, err = pods.Patch(ctx(t), "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":null,"x":"y"}}}`), metav1.PatchOptions{})
	if err != nil || len(p.Labels) != 1 || p.Labels["x"] != "y" {
		t.Fatalf("merge: %+v, %v", p, err)
	}
	p, err = pods.Patch(ctx(t), "a", types.JSONPatchType, []byte(`[{"op":"test","path":"/metadata/labels/x","value":"y"},{"op":"replace","path":"/spec/containers/0/image","value":"new"}]`), metav1.PatchOptions{})
	if err != nil || p.Spec.Containers[0].Image != "new" && p.Spec.Containers[1].Image != "new" {
		t.Fatalf("json patch: %+v, %v", p, err)
	}
	_, err = pods.Patch(ctx(t), "a", types.JSONPatchType, []byte(`[{"op":"test","path":"/metadata/labels/x","value":"n"}]`), metav1.PatchOptions{})
	if err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonInvalid && !strings.Contains(err.Error(), "testing value /metadata/labels/x failed") {
		t.Fatalf("failing test: %v", err)
	}
	gen := p.Generation
	p, err = pods.Patch(ctx(t), "a", types.MergePatchType, []byte(`{"spec":{"restartPolicy":"Never"}}`), metav1.PatchOptions{})
	if err != nil || p.Generation != gen+1 {
		t.Fatalf("generation %d -> %d, %v", gen, p.Generation, err)
	}
	p, err = pods.Patch(ctx(t), "a", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"},"spec":{"restartPolicy":"Always"}}`), metav1.PatchOptions{}, "status")
	if err != nil || p.Status.Phase != corev1.PodRunning || p.Spec.RestartPolicy != corev1.RestartPolicyNever || p.Generation != gen+1 {
		t.Fatalf("status patch: %+v, %v", p, err)
	}
	_, err = pods.Patch(ctx(t), "a", types.MergePatchType, []byte(`{"metadata":{"resourceVersion":"1"}}`), metav1.PatchOptions{})
	if !apierrors.IsConflict(err) {
		t.Fatalf("patch at a stale revision: %v", err)
	}
	_, err = pods.Patch(ctx(t), "gone", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{})
	if !apierrors.IsNotFound(err) {
		t.Fatalf("patch of an absent pod: %v", err)
	}
	_, err = pods.Patch(ctx(t), "a", types.ApplyCBORPatchType, []byte{0xa0}, metav1.PatchOptions{FieldManager: "m"})
	if !apierrors.IsUnsupportedMediaType(err) || !strings.Contains(err.Error(), "accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml") {
		t.Fatalf("apply in CBOR: %v", err)
	}
	_, err = pods.Patch(ctx(t), "a", types.MergePatchType, []byte(`{"spec":{"nope":1}}`), metav1.PatchOptions{FieldValidation: "Strict"})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `strict decoding error: unknown field "spec.nope"`) {
		t.Fatalf("strict patch: %v", err)
	}
}

func TestPodGrace(t *testing.T) {
	e := start(t, smallKinds())
	pods := e.typed.CoreV1().Pods("default")
	for _, name := range []string{"free", "bound"} {
		if _, err := pods.Create(ctx(t), simplePod(name), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := pods.Delete(ctx(t), "free", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(ctx(t), "free", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("an unscheduled pod is not gone at once: %v", err)
	}
	if err := pods.Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := pods.Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Target: corev1.ObjectReference{Name: "n2"}}, metav1.CreateOptions{})
	if want := `Operation cannot be fulfilled on pods/binding "bound": pod bound is already assigned to node "n1"`; !apierrors.IsConflict(err) || err.Error() != want {
		t.Fatalf("second binding: %v", err)
	}
	if err := pods.Delete(ctx(t), "bound", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := pods.Get(ctx(t), "bound", metav1.GetOptions{})
	if err != nil || p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 || p.Generation != 2 {
		t.Fatalf("a bound pod: %+v, %v", p, err)
	}
	_, err = pods.Create(ctx(t), simplePod("bound"), metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) || err.Error() != `object is being deleted: pods "bound" already exists` {
		t.Fatalf("create over a pod that is being deleted: %v", err)
	}
	five, zero := int64(5), int64(0)
	if err := pods.Delete(ctx(t), "bound", metav1.DeleteOptions{GracePeriodSeconds: &five}); err != nil {
		t.Fatal(err)
	}
	if p, err = pods.Get(ctx(t), "bound", metav1.GetOptions{}); err != nil || *p.DeletionGracePeriodSeconds != 5 {
		t.Fatalf("a shorter grace: %+v, %v", p, err)
	}
	if err := pods.Delete(ctx(t), "bound", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err = pods.Get(ctx(t), "bound", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("grace 0: %v", err)
	}
}

func TestFinalizers(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	held := configMap("held", nil)
	held.Finalizers = []string{"example.com/hold"}
	if _, err := cms.Create(ctx(t), held, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := cms.Watch(ctx(t), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	foreground := metav1.DeletePropagationForeground
	if err := cms.Delete(ctx(t), "held", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	got, err := cms.Get(ctx(t), "held", metav1.GetOptions{})
	if err != nil || got.DeletionTimestamp == nil || len(got.Finalizers) != 2 || got.Finalizers[1] != metav1.FinalizerDeleteDependents {
		t.Fatalf("marked object: %+v, %v", got.ObjectMeta, err)
	}
	got.Finalizers = append(got.Finalizers, "example.com/late")
	if _, err := cms.Update(ctx(t), got, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Fatalf("a new finalizer on a deleted object: %v", err)
	}
	if _, err := cms.Patch(ctx(t), "held", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Get(ctx(t), "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("without finalizers it should be gone: %v", err)
	}
	var seen []watch.EventType
	for ev := range w.ResultChan() {
		seen = append(seen, ev.Type)
		if ev.Type == watch.Deleted {
			break
		}
	}
	if len(seen) < 3 || seen[0] != watch.Added || seen[len(seen)-2] != watch.Modified {
		t.Fatalf("events: %v", seen)
	}
}

func TestNamespaceDeletion(t *testing.T) {
	e := start(t, smallKinds())
	nss := e.typed.CoreV1().Namespaces()
	e.namespace("doomed")
	if err := nss.Delete(ctx(t), "doomed", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ns, err := nss.Get(ctx(t), "doomed", metav1.GetOptions{})
	if err != nil || ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		t.Fatalf("terminating namespace: %+v, %v", ns, err)
	}
	_, err = e.typed.CoreV1().ConfigMaps("doomed").Create(ctx(t), configMap("late", nil), metav1.CreateOptions{})
	if want := `configmaps "late" is forbidden: unable to create new content in namespace doomed because it is being terminated`; !apierrors.IsForbidden(err) || err.Error() != want || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Fatalf("create in a terminating namespace: %v", err)
	}
	ns.Spec.Finalizers = nil
	if _, err := nss.Finalize(ctx(t), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nss.Get(ctx(t), "doomed", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("finalized namespace: %v", err)
	}
	if err := nss.Delete(ctx(t), "default", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "this namespace may not be deleted") {
		t.Fatalf("default: %v", err)
	}
}

func TestDeleteCollection(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	for _, name := range []string{"a", "b", "c"} {
		cm := configMap(name, nil)
		cm.Labels = map[string]string{"keep": map[bool]string{true: "yes", false: "no"}[name == "b"]}
		if _, err := cms.Create(ctx(t), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := cms.DeleteCollection(ctx(t), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "keep=no"}); err != nil {
		t.Fatal(err)
	}
	list, err := cms.List(ctx(t), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "b" {
		t.Fatalf("left: %+v, %v", list.Items, err)
	}
}

func TestJSONForm(t *testing.T) {
	e := start(t, smallKinds())
	if _, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), configMap("a", map[string]string{"k": "<v>"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	raw, err := e.typed.CoreV1().RESTClient().Get().Namespace("default").Resource("configmaps").DoRaw(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	var list map[string]any
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	item := list["items"].([]any)[0].(map[string]any)
	if list["kind"] != "ConfigMapList" || item["kind"] != nil || !strings.Contains(string(raw), `\u003cv\u003e`) || !strings.HasSuffix(string(raw), "]}\n") {
		t.Fatalf("list: %s", raw)
	}
	raw, err = e.typed.CoreV1().RESTClient().Get().Namespace("default").Resource("configmaps").Name("a").SetHeader("Accept", "application/yaml").DoRaw(ctx(t))
	if err != nil || !strings.HasPrefix(string(raw), "apiVersion: v1\ndata:\n  k: <v>\nkind: ConfigMap\n") {
		t.Fatalf("yaml: %s, %v", raw, err)
	}
}
