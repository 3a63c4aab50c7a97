package remote

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
)

// takeApart copies the items out of a decoded list.
func takeApart(from runtime.Object) (list, error) {
	about, err := meta.ListAccessor(from)
	if err != nil {
		return list{}, err
	}
	out := list{revision: about.GetResourceVersion(), next: about.GetContinue()}
	err = meta.EachListItem(from, func(item runtime.Object) error {
		v := reflect.ValueOf(item).Elem()
		one := reflect.New(v.Type())
		one.Elem().Set(v)
		obj, ok := one.Interface().(api.Object)
		if !ok {
			return fmt.Errorf("%T has no metadata", item)
		}
		out.objects = append(out.objects, obj)
		return nil
	})
	return out, err
}
