package patch

import (
	"bytes"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/apiserver/wire"
)

// SpareFields takes managedFields out of what is to be patched, in a copy, where the patch cannot see them, since they are
// long and would be read and written several times over. back puts them into the outcome.
func (p *Patch) SpareFields(current runtime.Object) (spared runtime.Object, back func(runtime.Object)) {
	obj, ok := current.(metav1.Object)
	if !ok || p.seesFields() {
		return current, func(runtime.Object) {}
	}
	if u, ok := current.(*unstructured.Unstructured); ok {
		return spareLoose(u)
	}
	fields := obj.GetManagedFields()
	if len(fields) == 0 {
		return current, func(runtime.Object) {}
	}
	spared = wire.Shallow(current)
	spared.(metav1.Object).SetManagedFields(nil)
	return spared, func(out runtime.Object) { out.(metav1.Object).SetManagedFields(fields) }
}

func spareLoose(u *unstructured.Unstructured) (spared runtime.Object, back func(runtime.Object)) {
	meta, _ := u.Object["metadata"].(map[string]any)
	fields, ok := meta["managedFields"]
	if !ok {
		return u, func(runtime.Object) {}
	}
	c := wire.Shallow(u)
	delete(c.Object["metadata"].(map[string]any), "managedFields")
	return c, func(out runtime.Object) {
		o := out.(*unstructured.Unstructured)
		if meta, ok := o.Object["metadata"].(map[string]any); ok {
			meta["managedFields"] = runtime.DeepCopyJSONValue(fields)
		}
	}
}

// seesFields tells that a patch may read or write managedFields: it names them, perhaps in escaped letters, or moves the whole of
// metadata or of the object.
func (p *Patch) seesFields() bool {
	if bytes.Contains(p.Data, []byte("managedFields")) || bytes.Contains(p.Data, []byte(`\u`)) || bytes.Contains(p.Data, []byte("$patch")) {
		return true
	}
	return p.Type == types.JSONPatchType && (bytes.Contains(p.Data, []byte(`"/metadata"`)) || bytes.Contains(p.Data, []byte(`""`)))
}
