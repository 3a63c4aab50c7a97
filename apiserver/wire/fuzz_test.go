package wire

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// FuzzDeleteOptions: the body of a DELETE, in any form, is understood or refused; what is understood can be sent again.
func FuzzDeleteOptions(f *testing.F) {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}
	seconds, policy := int64(5), metav1.DeletePropagationForeground
	whole := &metav1.DeleteOptions{GracePeriodSeconds: &seconds, PropagationPolicy: &policy, Preconditions: metav1.NewUIDPreconditions("u"), DryRun: []string{"All"}}
	for _, m := range []Media{Protobuf, JSON, YAML} {
		if b, err := Object(m, whole, gvk); err == nil {
			f.Add(b.Bytes(), uint8(m))
		}
	}
	f.Add([]byte("k8s\x00\x0a\xff"), uint8(Protobuf))
	f.Add([]byte(`{"kind":"Pod","apiVersion":"v1"}`), uint8(JSON))
	f.Fuzz(func(t *testing.T, data []byte, media uint8) {
		into := &metav1.DeleteOptions{}
		if _, err := Decode(Media(media%3), data, gvk, into, true, nil); err != nil {
			return
		}
		b, err := Object(JSON, into, gvk)
		if err != nil {
			t.Skip()
		}
		if _, err := Decode(JSON, b.Bytes(), gvk, &metav1.DeleteOptions{}, false, nil); err != nil {
			t.Fatalf("%v in %s", err, b.Bytes())
		}
	})
}
