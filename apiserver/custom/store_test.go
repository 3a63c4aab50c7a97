package custom_test

import (
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func keyOf(name string) store.Key {
	return store.Key{Resource: "gadgets.example.com", Namespace: "default", Name: name}
}

func definition(w *world) (*apiextensionsv1.CustomResourceDefinition, bool) {
	return custom.Definitions.Get(w.store.Snapshot(), "", "gadgets.example.com")
}

// restarted is a world on what another has stored, which knows of no definition when it reads the objects.
func restarted(t *testing.T, w *world) *world {
	t.Helper()
	reg := api.NewRegistry(builtin.Kinds()...)
	opts := client.StoreOptions(reg, 0)
	st := memory.New(opts)
	snap := w.store.Snapshot()
	for _, resource := range []string{"gadgets.example.com", custom.Definitions.Name} {
		for e := range snap.List(resource, "", nil) {
			data, err := opts.Codec.Encode(e.Key, e.Object)
			if err != nil {
				t.Fatal(err)
			}
			obj, err := opts.Codec.Decode(e.Key, data)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := st.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: e.Key, Object: obj}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return worldOn(t, reg, st)
}
