package managed

import (
	"k8s.io/apimachinery/pkg/util/managedfields"

	"coracle.dev/coracle/api"
)

// Types gives what knows how objects of a kind merge, in all of its versions, for those that merge without owning fields (admission
// policies). Objects have to say what they are. For custom resources it is made from their schemas: keep it as long as the kind
// is the same.
func (t *Tracker) Types(k *api.Kind) managedfields.TypeConverter {
	if loose(k) {
		return newLooseTypes(k)
	}
	return &structTypes{tracker: t, kind: k}
}
