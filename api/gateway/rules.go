package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"

	"coracle.dev/coracle/api"
)

// schemas are what upstream's definitions state, without the prose: made by tools/gateway-schemas.
//
//go:embed schemas/*.json.gz
var schemas embed.FS

// rules hold objects of one kind to its schema, in the words of a custom resource's validation. Everything is made at the first
// use. Safe for concurrent use.
type rules struct {
	resource, kind string

	read     sync.Once
	props    *apiextensions.JSONSchemaProps
	form     *structural.Structural
	spec     validation.SchemaValidator
	status   validation.SchemaValidator // nil if there is none
	err      error
	compile  sync.Once
	programs *cel.Validator // nil without expressions
}

func rulesOf(resource, kind string) *rules { return &rules{resource: resource, kind: kind} }

// ready reads the schema.
func (r *rules) ready() error {
	r.read.Do(func() { r.err = r.load() })
	return r.err
}

func (r *rules) load() error {
	data, err := schemas.ReadFile("schemas/" + r.resource + ".json.gz")
	if err != nil {
		return err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	var versioned apiextensionsv1.JSONSchemaProps
	if err := json.Unmarshal(text, &versioned); err != nil {
		return err
	}
	r.props = &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&versioned, r.props, nil); err != nil {
		return err
	}
	if r.form, err = structural.NewStructural(r.props); err != nil {
		return err
	}
	if r.spec, _, err = validation.NewSchemaValidator(r.props); err != nil {
		return err
	}
	if s, ok := r.props.Properties["status"]; ok {
		r.status, _, err = validation.NewSchemaValidator(&s)
	}
	return err
}

// expressions compiles the CEL rules, nil if there are none.
func (r *rules) expressions() *cel.Validator {
	r.compile.Do(func() { r.programs = cel.NewValidator(r.form, true, celconfig.PerCallLimit) })
	return r.programs
}

// loose is an object as the schema sees it. The fields that a Go type shows although nobody set them are not there, nor is the
// status unless it is asked for, which has an endpoint of its own.
func (r *rules) loose(obj api.Object, status bool) (map[string]any, error) {
	u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	u["apiVersion"], u["kind"] = Version("v1").String(), r.kind
	if meta, ok := u["metadata"].(map[string]any); ok && meta["creationTimestamp"] == nil {
		delete(meta, "creationTimestamp")
	}
	if !status {
		delete(u, "status")
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(u, r.form)
	return u, nil
}

func (r *rules) broken(err error) field.ErrorList {
	return field.ErrorList{field.InternalError(nil, fmt.Errorf("schema of %s: %w", r.kind, err))}
}

func (r *rules) validate(obj api.Object) field.ErrorList {
	if err := r.ready(); err != nil {
		return r.broken(err)
	}
	u, err := r.loose(obj, false)
	if err != nil {
		return r.broken(err)
	}
	errs := validation.ValidateCustomResource(nil, u, r.spec)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, r.form, u)...)
	return append(errs, r.evaluate(errs, u, nil)...)
}

func (r *rules) validateUpdate(obj, old api.Object) field.ErrorList {
	if err := r.ready(); err != nil {
		return r.broken(err)
	}
	u, err := r.loose(obj, false)
	if err != nil {
		return r.broken(err)
	}
	before, err := r.loose(old, false)
	if err != nil {
		return r.broken(err)
	}
	pair := common.NewCorrelatedObject(u, before, &model.Structural{Structural: r.form})
	errs := validation.ValidateCustomResourceUpdate(nil, u, before, r.spec, validation.WithRatcheting(pair))
	if lists := listtype.ValidateListSetsAndMaps(nil, r.form, u); len(lists) > 0 && len(listtype.ValidateListSetsAndMaps(nil, r.form, before)) == 0 {
		errs = append(errs, lists...)
	}
	return append(errs, r.evaluate(errs, u, before, cel.WithRatcheting(pair))...)
}

// validateStatus checks the status alone: it has limits, and no expressions.
func (r *rules) validateStatus(obj, old api.Object) field.ErrorList {
	if err := r.ready(); err != nil {
		return r.broken(err)
	}
	u, err := r.loose(obj, true)
	if err != nil {
		return r.broken(err)
	}
	status, ok := u["status"].(map[string]any)
	if !ok || r.status == nil || len(status) == 0 {
		return nil
	}
	errs := validation.ValidateCustomResource(field.NewPath("status"), status, r.status)
	return append(errs, listtype.ValidateListSetsAndMaps(nil, r.form, map[string]any{"status": status})...)
}

// evaluate runs the expressions, unless the object is so wrong that they would stumble. old is nil on create.
func (r *rules) evaluate(found field.ErrorList, u, old map[string]any, opts ...cel.Option) field.ErrorList {
	v := r.expressions()
	if v == nil {
		return nil
	}
	for _, e := range found {
		switch e.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return field.ErrorList{field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")}
		}
	}
	var before any
	if old != nil {
		before = old
	}
	errs, _ := v.Validate(context.Background(), nil, r.form, u, before, celconfig.RuntimeCELCostBudget, opts...)
	return errs
}
