package core

import (
	"crypto/tls"
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func secretKind() *api.Kind {
	return &api.Kind{
		Kind: "Secret", Resource: "secrets", Singular: "secret", Namespaced: true,
		Versions: v1[corev1.Secret, corev1.SecretList](),
		Default:  api.On(defaultSecret),
		Strategy: api.Strategy{
			Validate:       api.Checks(validateSecret),
			ValidateUpdate: api.ChecksUpdate(secretUpdate),
			Warnings:       func(obj, _ api.Object) []string { return secretWarnings(obj.(*corev1.Secret)) },
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Type", "string", corev1.Secret{}.SwaggerDoc()["type"], 0, func(s *corev1.Secret) any { return string(s.Type) }),
			column("Data", "string", corev1.Secret{}.SwaggerDoc()["data"], 0, func(s *corev1.Secret) any { return int64(len(s.Data)) }),
			ageColumn(),
		},
		Fields: map[string]func(api.Object) string{
			"type": api.Field(func(s *corev1.Secret) string { return string(s.Type) }),
		},
	}
}

// defaultSecret also puts stringData, which is for writing alone, into data.
func defaultSecret(s *corev1.Secret) {
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
	if len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = make(map[string][]byte, len(s.StringData))
		}
		for key, value := range s.StringData {
			s.Data[key] = []byte(value)
		}
	}
	s.StringData = nil
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	r, p, size := &report{}, field.NewPath("data"), 0
	for key := range inOrder(s.Data) {
		size += len(s.Data[key])
		if m := validate.ConfigKey(key); m != nil {
			r.invalids(p.Key(key), key, m)
		}
	}
	if size > corev1.MaxSecretSize {
		r.addOne(field.TooLong(p, "", corev1.MaxSecretSize))
	}
	need := func(key string) {
		if _, ok := s.Data[key]; !ok {
			r.required(p.Key(key), "")
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			r.required(annotationsPath.Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		dockerConfig(r, s, corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		dockerConfig(r, s, corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			need(corev1.BasicAuthUsernameKey)
			need(corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			r.required(p.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		need(corev1.TLSCertKey)
		need(corev1.TLSPrivateKeyKey)
	}
	return r.errs
}

// dockerConfig checks credentials for registries. What is in them is never repeated.
func dockerConfig(r *report, s *corev1.Secret, key string) {
	p := field.NewPath("data").Key(key)
	value, ok := s.Data[key]
	if !ok {
		r.required(p, "")
		return
	}
	if err := json.Unmarshal(value, &map[string]any{}); err != nil {
		r.invalid(p, "<secret contents redacted>", err.Error())
	}
}

func secretUpdate(s, old *corev1.Secret) field.ErrorList {
	r := &report{}
	r.add(validate.Immutable(s.Type, old.Type, field.NewPath("type")))
	if deref(old.Immutable, false) {
		if !deref(s.Immutable, false) {
			r.forbidden(field.NewPath("immutable"), immutableWhenSet)
		}
		if !maps.EqualFunc(s.Data, old.Data, slices.Equal) {
			r.forbidden(field.NewPath("data"), immutableWhenSet)
		}
	}
	r.add(validateSecret(s))
	return r.errs
}

func secretWarnings(s *corev1.Secret) []string {
	if s.Type != corev1.SecretTypeTLS {
		return nil
	}
	if _, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return []string{err.Error()}
	}
	return nil
}
