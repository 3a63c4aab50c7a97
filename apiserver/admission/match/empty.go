package match

import (
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
)

// empty is a new object of the type of another.
func empty(like runtime.Object) runtime.Object {
	return reflect.New(reflect.TypeOf(like).Elem()).Interface().(runtime.Object)
}
