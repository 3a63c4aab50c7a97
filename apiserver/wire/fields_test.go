package wire

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestManagedFields: they stand in JSON as encoding/json would have them.
func TestManagedFields(t *testing.T) {
	at := metav1.NewTime(time.Unix(1e9, 0))
	mean := `"managedFields":[{}]`
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "x", Labels: map[string]string{"managedFields": mean}, Annotations: map[string]string{mean: mean},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "a<\"b", Operation: "Apply", APIVersion: "v1", Time: &at, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:a<b":{}}}`), Subresource: "status"},
				{Manager: "c", Time: &metav1.Time{}}, {},
			},
		},
		Spec: corev1.PodSpec{NodeName: mean},
	}
	gvk := corev1.SchemeGroupVersion.WithKind("Pod")
	data, err := encodeJSON(pod, gvk, head(gvk))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	if err := json.Unmarshal(plain, &want); err != nil {
		t.Fatal(err)
	}
	delete(got, "kind")
	delete(got, "apiVersion")
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %s\nwant %s", data, plain)
	}
	if len(pod.ManagedFields) != 3 {
		t.Fatal("the object was changed")
	}
}
