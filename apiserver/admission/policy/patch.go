package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"google.golang.org/protobuf/types/known/structpb"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	celmutation "k8s.io/apiserver/pkg/cel/mutation"
	"k8s.io/apiserver/pkg/cel/mutation/dynamic"
	sjson "sigs.k8s.io/json"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"coracle.dev/coracle/api/expression"
	evaluate "coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/apiserver/managed"
)

// patch evaluates one mutation and puts its outcome in the request. The new object is another one: what was there before is left as it
// is. An error that is a status ends the request.
func (m *mutations) patch(ctx context.Context, c *mutatingCase, one *mutation, param runtime.Object) error {
	in, err := m.in.of(ctx, c.match)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if one.Err != nil {
		return one.Err
	}
	results, _, err := c.code.scope.Evaluate(ctx, in.WithParams(param), []*expression.Expression{one.Expression}, true, evaluate.Budget)
	if err != nil {
		return err
	}
	if results[0].Err != nil {
		return results[0].Err
	}
	var out runtime.Object
	if one.kind == admissionregistrationv1.PatchTypeJSONPatch {
		out, err = jsonPatched(in.Object, c.match.New(in.Object), results[0].Value)
	} else {
		var converter managedfields.TypeConverter
		if converter, err = m.p.converter(c.match.Kind); err == nil {
			out, err = merged(converter, in.Object, results[0].Value)
		}
	}
	if err != nil || out == in.Object {
		return err
	}
	if out, err = structured(out, c.match.New(in.Object)); err != nil {
		return err
	}
	hub, err := c.match.Restore(ctx, m.r, out)
	if err != nil {
		return err
	}
	if _, ok := hub.(runtime.Unstructured); !ok {
		hub.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	m.r.Object = hub
	return nil
}

// converter finds how objects of a kind merge. The error is a status.
func (p *Policies) converter(gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	kind := p.cfg.Registry.ByKind(gvk.GroupKind())
	if gvk.Group == managed.ScaleKind.Group && gvk.Kind == managed.ScaleKind.Kind {
		kind = managed.ScaleKind // of a subresource: it has no objects of its own
	}
	if kind == nil || p.cfg.Types == nil {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("Resource kind %s not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.", gvk))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.types[gvk.GroupKind()]; have.kind == kind {
		return have, nil
	}
	if p.types == nil {
		p.types = map[schema.GroupKind]kindTypes{}
	}
	made := kindTypes{kind, p.cfg.Types(kind)}
	p.types[gvk.GroupKind()] = made
	return made, nil
}

// structured turns an unstructured object into one of a Go type, unless that is unstructured too.
func structured(obj, empty runtime.Object) (runtime.Object, error) {
	u, ok := obj.(runtime.Unstructured)
	if !ok {
		return obj, nil
	}
	if _, ok := empty.(runtime.Unstructured); ok {
		return obj, nil
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.UnstructuredContent(), empty); err != nil {
		return nil, err
	}
	return empty, nil
}

// merged applies an apply configuration to an object. Fields are set as server-side apply would set them, but nobody owns them
// afterwards.
func merged(converter managedfields.TypeConverter, obj runtime.Object, result ref.Val) (runtime.Object, error) {
	wanted, ok := result.(*dynamic.ObjectVal)
	if !ok {
		return nil, fmt.Errorf("unsupported return type from ApplyConfiguration expression: %v", result.Type())
	}
	if err := wanted.CheckTypeNamesMatchFieldPathNames(); err != nil {
		return nil, fmt.Errorf("type mismatch: %w", err)
	}
	content, ok := wanted.Value().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("invalid return type: %T", result)
	}
	patch := &unstructured.Unstructured{Object: content}
	patch.SetGroupVersionKind(obj.GetObjectKind().GroupVersionKind())
	out, err := merge(converter, obj, patch)
	if err != nil {
		return nil, fmt.Errorf("error applying patch: %w", err)
	}
	return out, nil
}

func merge(converter managedfields.TypeConverter, obj runtime.Object, patch *unstructured.Unstructured) (runtime.Object, error) {
	wanted, err := converter.ObjectToTyped(patch)
	if err != nil {
		return nil, fmt.Errorf("failed to convert patch object to typed object: %w", err)
	}
	if found := atomics(nil, wanted.Schema(), wanted.TypeRef(), wanted.AsValue()); len(found) > 0 {
		return nil, fmt.Errorf("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: %v", strings.Join(found, ", "))
	}
	live, err := converter.ObjectToTyped(obj, typed.AllowDuplicates)
	if err != nil {
		return nil, fmt.Errorf("failed to convert original object to typed object: %w", err)
	}
	out, err := live.Merge(wanted)
	if err != nil {
		return nil, fmt.Errorf("failed to merge patch: %w", err)
	}
	result, err := converter.TypedToObject(out)
	if err != nil {
		return nil, fmt.Errorf("failed to convert typed object to object: %w", err)
	}
	return result, nil
}

// atomics lists the paths below which a patch would replace everything, although it may mean to change a part: that is refused.
func atomics(path fieldpath.Path, s *smd.Schema, t smd.TypeRef, v value.Value) (found []string) {
	atom, ok := s.Resolve(t)
	if !ok {
		return nil
	}
	if v.IsMap() && atom.Map != nil {
		if atom.Map.ElementRelationship == smd.Atomic {
			found = append(found, path.String())
		}
		v.AsMap().Iterate(func(key string, inner value.Value) bool {
			if f, ok := atom.Map.FindField(key); ok {
				found = append(found, atomics(append(path, fieldpath.PathElement{FieldName: &key}), s, f.Type, inner)...)
			}
			return true
		})
	}
	if v.IsList() && atom.List != nil {
		if atom.List.ElementRelationship == smd.Atomic {
			found = append(found, path.String())
		}
		list := v.AsList()
		for i := range list.Length() {
			found = append(found, atomics(append(path, fieldpath.PathElement{Index: &i}), s, atom.List.ElementType, list.At(i))...)
		}
	}
	return found
}

// jsonPatched applies a list of JSONPatch to an object and decodes the outcome into empty; fields that its type does not know are errors. If a
// test operation fails the object stays as it is, and is returned itself.
func jsonPatched(obj, empty runtime.Object, result ref.Val) (runtime.Object, error) {
	patch, err := operations(result)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("failed to create JSON patch: %w", err)
	}
	if text, err = patch.Apply(text); err != nil {
		if errors.Is(err, jsonpatch.ErrTestFailed) {
			return obj, nil
		}
		return nil, fmt.Errorf("JSON Patch: %w", err)
	}
	if u, ok := empty.(*unstructured.Unstructured); ok {
		if err := u.UnmarshalJSON(text); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return u, nil
	}
	strict, err := sjson.UnmarshalStrict(text, empty)
	if err == nil && len(strict) > 0 {
		err = runtime.NewStrictDecodingError(strict)
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return empty, nil
}

// operations turns what an expression gave into a JSON patch.
func operations(result ref.Val) (jsonpatch.Patch, error) {
	list, ok := result.(traits.Lister)
	if !ok {
		return nil, errors.New("type mismatch: JSONPatchType.expression should evaluate to array")
	}
	patch := jsonpatch.Patch{}
	for it := list.Iterator(); it.HasNext() == celtypes.True; {
		v := it.Next()
		native, err := v.ConvertToNative(reflect.TypeFor[*celmutation.JSONPatchVal]())
		if err != nil {
			return nil, fmt.Errorf("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch: %w", err)
		}
		one, ok := native.(*celmutation.JSONPatchVal)
		if !ok {
			return nil, fmt.Errorf("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of %T", native)
		}
		op, err := operation(one)
		if err != nil {
			return nil, err
		}
		patch = append(patch, op)
	}
	return patch, nil
}

func operation(one *celmutation.JSONPatchVal) (jsonpatch.Operation, error) {
	op := jsonpatch.Operation{}
	for name, text := range map[string]string{"op": one.Op, "path": one.Path, "from": one.From} {
		if name == "from" && text == "" {
			continue
		}
		raw, err := json.Marshal(text)
		if err != nil {
			return nil, err
		}
		op[name] = (*json.RawMessage)(&raw)
	}
	if one.Val == nil {
		return op, nil
	}
	if o, ok := one.Val.(*dynamic.ObjectVal); ok {
		if err := o.CheckTypeNamesMatchFieldPathNames(); err != nil {
			return nil, fmt.Errorf("type mismatch: %w", err)
		}
	}
	const unfit = "JSONPath valueExpression evaluated to a type that could not marshal to JSON: %w"
	native, err := one.Val.ConvertToNative(reflect.TypeFor[*structpb.Value]())
	if err != nil {
		return nil, fmt.Errorf(unfit, err)
	}
	raw, err := json.Marshal(native)
	if err != nil {
		return nil, fmt.Errorf(unfit, err)
	}
	op["value"] = (*json.RawMessage)(&raw)
	return op, nil
}
