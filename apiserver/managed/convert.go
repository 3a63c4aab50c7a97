package managed

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
)

// converter brings objects of a kind from version to version as apimachinery's managedfields asks for it. Its objects bear
// their type.
type converter struct {
	ctx   context.Context // of the write, bounds what is asked of others
	kind  *api.Kind
	loose bool
}

// converter is that of a write.
func (w *Write) converter() *converter {
	return &converter{ctx: w.context(), kind: w.Kind, loose: loose(w.Kind)}
}

var (
	_ runtime.ObjectConvertor = (*converter)(nil)
	_ runtime.ObjectCreater   = (*converter)(nil)
	_ runtime.ObjectDefaulter = (*converter)(nil)
)

// Convert is not asked for.
func (c *converter) Convert(_, _, _ any) error { return fmt.Errorf("conversion into a given object") }

// ConvertFieldLabel is not asked for.
func (c *converter) ConvertFieldLabel(schema.GroupVersionKind, string, string) (string, string, error) {
	return "", "", fmt.Errorf("conversion of field labels")
}

// Default leaves objects as they are: the chain of writes does it.
func (c *converter) Default(runtime.Object) {}

// New implements runtime.ObjectCreater.
func (c *converter) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	v := c.version(gvk.GroupVersion())
	if v == nil {
		return nil, runtime.NewNotRegisteredErrForKind(c.kind.Kind, gvk)
	}
	obj := v.New()
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, nil
}

func (c *converter) version(gv schema.GroupVersion) *api.Version {
	if gv.Group != c.kind.Group {
		return nil
	}
	return c.kind.Version(gv.Version)
}

// hub is the type of objects as they are stored.
func (c *converter) hub() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: c.kind.Group, Version: c.kind.Hub().Name, Kind: c.kind.Kind}
}

// ConvertToVersion implements runtime.ObjectConvertor. The result may be in itself.
func (c *converter) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	gv, ok := target.(schema.GroupVersion)
	if !ok {
		return nil, fmt.Errorf("conversion to %v", target)
	}
	from := in.GetObjectKind().GroupVersionKind()
	have, want := c.version(from.GroupVersion()), c.version(gv)
	gvk := gv.WithKind(c.kind.Kind)
	if have == nil {
		return nil, runtime.NewNotRegisteredErrForKind(c.kind.Kind, from)
	}
	if want == nil {
		return nil, runtime.NewNotRegisteredErrForKind(c.kind.Kind, gvk)
	}
	if c.loose {
		return c.looseTo(in, want, gvk, from)
	}
	in, err := structured(in, have)
	if err != nil || have.Name == want.Name {
		return in, err
	}
	hub, err := wire.ToHub(c.ctx, c.kind, have, in)
	if err != nil {
		return nil, err
	}
	out, err := wire.FromHub(c.ctx, want, hub)
	if err != nil {
		return nil, err
	}
	if out == in || out == runtime.Object(hub) {
		out = wire.Shallow(out)
	}
	out.GetObjectKind().SetGroupVersionKind(gvk)
	return out, nil
}

// looseTo converts a custom resource.
func (c *converter) looseTo(in runtime.Object, want *api.Version, gvk, from schema.GroupVersionKind) (runtime.Object, error) {
	if from == gvk {
		return in, nil
	}
	obj, ok := in.(api.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", in)
	}
	if want.Convert != nil {
		out, err := want.Convert(c.ctx, []api.Object{obj})
		if err != nil {
			return nil, err
		}
		return out[0], nil
	}
	out := wire.Shallow[runtime.Object](obj)
	out.GetObjectKind().SetGroupVersionKind(gvk)
	return out, nil
}

// structured turns a map into the struct of its version.
func structured(in runtime.Object, v *api.Version) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return in, nil
	}
	out := v.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(u.GroupVersionKind())
	return out, nil
}

// versionsOf are the apiVersions of a kind.
func versionsOf(k *api.Kind) []string {
	var out []string
	for i := range k.Versions {
		out = append(out, APIVersion(k, &k.Versions[i]))
	}
	return slices.Compact(out)
}

// structType is the type of a version's struct.
func structType(v *api.Version) reflect.Type { return reflect.TypeOf(v.New()).Elem() }
