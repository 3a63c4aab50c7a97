package core

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func configMapKind() *api.Kind {
	return &api.Kind{
		Kind: "ConfigMap", Resource: "configmaps", Singular: "configmap", ShortNames: []string{"cm"}, Namespaced: true,
		Versions: v1[corev1.ConfigMap, corev1.ConfigMapList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(validateConfigMap),
			ValidateUpdate: api.ChecksUpdate(configMapUpdate),
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Data", "string", corev1.ConfigMap{}.SwaggerDoc()["data"], 0, func(c *corev1.ConfigMap) any {
				return int64(len(c.Data) + len(c.BinaryData))
			}),
			ageColumn(),
		},
	}
}

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	r, size := &report{}, 0
	for key := range inOrder(c.Data) {
		size += len(c.Data[key])
		if m := validate.ConfigKey(key); m != nil {
			r.invalids(field.NewPath("data").Key(key), key, m)
		}
		if _, both := c.BinaryData[key]; both {
			r.invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData")
		}
	}
	for key := range inOrder(c.BinaryData) {
		size += len(c.BinaryData[key])
		if m := validate.ConfigKey(key); m != nil {
			r.invalids(field.NewPath("binaryData").Key(key), key, m)
		}
	}
	if size > corev1.MaxSecretSize {
		r.addOne(field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize)) // of the whole object
	}
	return r.errs
}

// immutableWhenSet is said of a change of a ConfigMap or Secret that says that it does not change.
const immutableWhenSet = "field is immutable when `immutable` is set"

func configMapUpdate(c, old *corev1.ConfigMap) field.ErrorList {
	r := &report{}
	if deref(old.Immutable, false) {
		if !deref(c.Immutable, false) {
			r.forbidden(field.NewPath("immutable"), immutableWhenSet)
		}
		if !maps.Equal(c.Data, old.Data) {
			r.forbidden(field.NewPath("data"), immutableWhenSet)
		}
		if !maps.EqualFunc(c.BinaryData, old.BinaryData, slices.Equal) {
			r.forbidden(field.NewPath("binaryData"), immutableWhenSet)
		}
	}
	r.add(validateConfigMap(c))
	return r.errs
}
