// Package patch applies patches to objects: JSON patch (RFC 6902), JSON merge patch
// (RFC 7386) and strategic merge patch. Configurations for server-side apply are read here; package managed merges them.
//
// It is pure: a present object and a patch in, a new object out. Limits on size and
// number of operations are checked before work is done.
package patch

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"

	"coracle.dev/coracle/apiserver/wire"
)

// maxOperations is how many operations a JSON patch may have.
const maxOperations = 10000

func init() {
	// The copy operations of one patch may not produce more than a request body may hold.
	jsonpatch.AccumulatedCopySizeLimit = wire.MaxBody
}

// Patch is a patch as it came in, for objects of one version.
type Patch struct {
	Type types.PatchType
	Data []byte
	// GVK is the version in which the patch is meant, New makes an empty object of it.
	GVK schema.GroupVersionKind
	New func() runtime.Object
	// Settle is done to the outcome (api.Version.Settle), nil for nothing.
	Settle func(obj runtime.Object, strict bool) ([]error, error)
	// Check looks for unknown and duplicate fields; Strict refuses them, else Warn is told.
	Check, Strict bool
	Warn          func([]error)
}

// Types lists the patch types that a kind takes; loose kinds (custom resources) have no
// strategic merge.
func Types(loose bool) []string {
	all := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType)}
	if loose {
		all = all[:2]
	}
	return append(all, string(types.ApplyYAMLPatchType))
}

// ParseType reads the Content-Type of a patch; an unknown one gives 415.
func ParseType(header string, loose bool) (types.PatchType, error) {
	media, _, _ := strings.Cut(header, ";")
	accepted := Types(loose)
	for _, t := range accepted {
		if media == t {
			return types.PatchType(t), nil
		}
	}
	return "", wire.UnsupportedMediaType(accepted)
}

// Apply gives a new versioned object. current is the present one, which is not changed;
// asJSON its JSON. The result's TypeMeta is empty if it is a Go struct.
func (p *Patch) Apply(current runtime.Object, asJSON func() ([]byte, error)) (runtime.Object, error) {
	switch p.Type {
	case types.JSONPatchType, types.MergePatchType:
		doc, err := asJSON()
		if err != nil {
			return nil, err
		}
		return p.applyJSON(doc)
	case types.StrategicMergePatchType:
		return p.applyStrategic(current)
	}
	return nil, wire.UnsupportedMediaType(Types(false))
}

// Validate refuses what is no JSON, before anything is read for it.
func (p *Patch) Validate() error {
	if p.Type == types.ApplyYAMLPatchType {
		if _, err := yamlutil.ToJSON(p.Data); err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("error encoding patch: %v", err))
		}
		return nil
	}
	if !json.Valid(p.Data) {
		return apierrors.NewBadRequest("invalid JSON patch")
	}
	return nil
}

func (p *Patch) applyJSON(doc []byte) (runtime.Object, error) {
	var patched []byte
	var strict []error
	var err error
	if p.Type == types.JSONPatchType {
		patched, strict, err = p.operations(doc)
	} else {
		patched, strict, err = p.merge(doc)
	}
	if err != nil {
		return nil, err
	}
	out := p.New()
	found, err := wire.UnmarshalJSON(patched, out, p.Check)
	if err != nil {
		return nil, invalid(string(patched), err)
	}
	if p.Settle != nil {
		unknown, err := p.Settle(out, p.Check)
		if err != nil {
			return nil, invalid(string(patched), err)
		}
		found = append(found, unknown...)
	}
	if err := p.report(append(strict, found...), func() string { return string(patched) }); err != nil {
		return nil, err
	}
	return p.finish(out)
}

// operations runs a JSON patch.
func (p *Patch) operations(doc []byte) ([]byte, []error, error) {
	var strict []error
	if p.Check {
		var ops []struct {
			Op    string `json:"op"`
			Path  string `json:"path"`
			From  string `json:"from"`
			Value any    `json:"value"`
		}
		found, err := kjson.UnmarshalStrict(p.Data, &ops)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		for _, e := range found {
			strict = append(strict, fmt.Errorf("json patch %v", e))
		}
	}
	ops, err := jsonpatch.DecodePatch(p.Data)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > maxOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(
			fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxOperations, len(ops)))
	}
	out, err := ops.Apply(doc)
	if err != nil {
		return nil, nil, unprocessable(err)
	}
	return out, strict, nil
}

// merge runs a merge patch.
func (p *Patch) merge(doc []byte) ([]byte, []error, error) {
	var strict []error
	if p.Check {
		var err error
		m := map[string]any{}
		if strict, err = kjson.UnmarshalStrict(p.Data, &m); err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	out, err := jsonpatch.MergePatch(doc, p.Data)
	if err == jsonpatch.ErrBadJSONPatch {
		err = apierrors.NewBadRequest(err.Error())
	}
	return out, strict, err
}

func (p *Patch) applyStrategic(current runtime.Object) (runtime.Object, error) {
	patch := map[string]any{}
	var strict []error
	var err error
	if p.Check {
		strict, err = kjson.UnmarshalStrict(p.Data, &patch)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(p.Data, &patch)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	if err != nil {
		return nil, err
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(original, patch, p.New())
	if err != nil {
		return nil, strategicError(err)
	}
	out := p.New()
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, out, p.Check)
	if e, ok := runtime.AsStrictDecodingError(err); ok {
		strict = append(strict, e.Errors()...)
	} else if err != nil {
		return nil, invalid(p.text(), err)
	}
	if err := p.report(strict, p.text); err != nil {
		return nil, err
	}
	return p.finish(out)
}

// text is the patch as errors show it.
func (p *Patch) text() string {
	m := map[string]any{}
	_ = json.Unmarshal(p.Data, &m)
	return fmt.Sprintf("%+v", m)
}

// report warns of strict errors, or refuses them.
func (p *Patch) report(strict []error, value func() string) error {
	if len(strict) == 0 {
		return nil
	}
	if p.Strict {
		return invalid(value(), runtime.NewStrictDecodingError(strict))
	}
	p.Warn(strict)
	return nil
}

// finish refuses a patch that changed the type.
func (p *Patch) finish(out runtime.Object) (runtime.Object, error) {
	have := out.GetObjectKind().GroupVersionKind()
	if have.Kind != "" && have.Kind != p.GVK.Kind || have.Version != "" && have.GroupVersion() != p.GVK.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: the type of an object cannot be patched",
			have.Kind, have.Version, p.GVK.Kind))
	}
	if _, loose := out.(runtime.Unstructured); !loose {
		out.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return out, nil
}

func invalid(value string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{
		field.Invalid(field.NewPath("patch"), value, err.Error())})
}

func unprocessable(err error) error {
	return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
}

func strategicError(err error) error {
	switch err {
	case mergepatch.ErrBadJSONDoc, mergepatch.ErrBadPatchFormatForPrimitiveList, mergepatch.ErrBadPatchFormatForRetainKeys,
		mergepatch.ErrBadPatchFormatForSetElementOrderList, mergepatch.ErrUnsupportedStrategicMergePatchFormat:
		return apierrors.NewBadRequest(err.Error())
	case mergepatch.ErrNoListOfLists, mergepatch.ErrPatchContentNotMatchRetainKeys:
		return unprocessable(err)
	}
	return err
}
