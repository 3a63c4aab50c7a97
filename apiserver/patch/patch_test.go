package patch

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

func present() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "x", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "one"}, {Name: "d", Image: "two"}}},
	}
}

func apply(t types.PatchType, data string, strict bool) (*corev1.Pod, error) {
	p := &Patch{Type: t, Data: []byte(data), GVK: corev1.SchemeGroupVersion.WithKind("Pod"),
		New: func() runtime.Object { return &corev1.Pod{} }, Check: strict, Strict: strict, Warn: func([]error) {}}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	current := present()
	out, err := p.Apply(current, func() ([]byte, error) { return json.Marshal(current) })
	if err != nil {
		return nil, err
	}
	return out.(*corev1.Pod), nil
}

func TestKinds(t *testing.T) {
	out, err := apply(types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"c","image":"new"},{"$patch":"delete","name":"d"}]}}`, true)
	if err != nil || len(out.Spec.Containers) != 1 || out.Spec.Containers[0].Image != "new" {
		t.Fatalf("%+v, %v", out, err)
	}
	out, err = apply(types.MergePatchType, `{"spec":{"containers":[{"name":"only"}]}}`, true)
	if err != nil || len(out.Spec.Containers) != 1 || out.Labels["a"] != "b" {
		t.Fatalf("%+v, %v", out, err)
	}
	out, err = apply(types.JSONPatchType, `[{"op":"add","path":"/metadata/labels/x~1y","value":"z"}]`, true)
	if err != nil || out.Labels["x/y"] != "z" {
		t.Fatalf("%+v, %v", out, err)
	}
}

func isUnprocessable(err error) bool {
	status, ok := err.(apierrors.APIStatus)
	return ok && status.Status().Code == 422
}

func TestRefused(t *testing.T) {
	many := "[" + strings.Repeat(`{"op":"test","path":"/metadata/name","value":"p"},`, maxOperations) + `{"op":"test","path":"/metadata/name","value":"p"}]`
	double := "[" + strings.Repeat(`{"op":"copy","from":"/metadata","path":"/metadata/a"},{"op":"copy","from":"/metadata","path":"/metadata/b"},`, 60) + `{"op":"test","path":"/metadata/name","value":"p"}]`
	for _, test := range []struct {
		patch types.PatchType
		data  string
		check func(error) bool
		want  string
	}{
		{types.MergePatchType, `{`, apierrors.IsBadRequest, "invalid JSON patch"},
		{types.JSONPatchType, `{}`, apierrors.IsBadRequest, "error decoding patch"},
		{types.JSONPatchType, many, apierrors.IsRequestEntityTooLargeError, "The allowed maximum operations in a JSON patch is 10000, got 10001"},
		{types.JSONPatchType, double, isUnprocessable, "the server rejected our request due to an error in our request"},
		{types.JSONPatchType, `[{"op":"remove","path":"/nope"}]`, isUnprocessable, "the server rejected our request due to an error in our request"},
		{types.StrategicMergePatchType, `{"spec":{"containers":"x"}}`, nil, ""},
		{types.MergePatchType, `{"spec":{"foo":1}}`, apierrors.IsInvalid, `strict decoding error: unknown field "spec.foo"`},
		{types.MergePatchType, `{"kind":"Service"}`, apierrors.IsBadRequest, "cannot be patched"},
		{types.MergePatchType, `{"spec":{"containers":{}}}`, apierrors.IsInvalid, "cannot unmarshal object into Go struct field PodSpec.spec.containers"},
	} {
		_, err := apply(test.patch, test.data, true)
		if err == nil || test.check != nil && !test.check(err) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %.60s: %v", test.patch, test.data, err)
		}
	}
}

func FuzzPatch(f *testing.F) {
	f.Add(uint8(0), `[{"op":"add","path":"/metadata/labels/x","value":"z"}]`)
	f.Add(uint8(1), `{"spec":{"containers":null}}`)
	f.Add(uint8(2), `{"spec":{"containers":[{"$patch":"replace"}],"$setElementOrder/containers":[{"name":"d"}]}}`)
	kinds := []types.PatchType{types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType}
	f.Fuzz(func(_ *testing.T, kind uint8, data string) {
		_, _ = apply(kinds[int(kind)%3], data, true)
	})
}
