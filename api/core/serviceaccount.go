package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func serviceAccountKind() *api.Kind {
	return &api.Kind{
		Kind: "ServiceAccount", Resource: "serviceaccounts", Singular: "serviceaccount", ShortNames: []string{"sa"}, Namespaced: true,
		Versions: v1[corev1.ServiceAccount, corev1.ServiceAccountList](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(namesOfSecrets),
			PrepareUpdate: api.OnUpdate(func(s, _ *corev1.ServiceAccount) { namesOfSecrets(s) }),
			Warnings: func(obj, _ api.Object) []string {
				w := &warner{}
				if a := obj.(*corev1.ServiceAccount); a.Annotations[enforceMountableSecrets] == "true" {
					w.oldAnnotation(&a.ObjectMeta, enforceMountableSecrets, annotationsPath,
						"deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets")
				}
				return w.said
			},
		},
		ValidateName: validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Secrets", "string", corev1.ServiceAccount{}.SwaggerDoc()["secrets"], 0, func(s *corev1.ServiceAccount) any {
				return int64(len(s.Secrets))
			}),
			ageColumn(),
		},
		Subresources: []api.Subresource{{
			Name:  "token",
			Type:  schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"},
			Verbs: []string{"create"},
		}},
	}
}

const enforceMountableSecrets = "kubernetes.io/enforce-mountable-secrets"

// namesOfSecrets keeps of the references to secrets the names alone.
func namesOfSecrets(s *corev1.ServiceAccount) {
	for i := range s.Secrets {
		s.Secrets[i] = corev1.ObjectReference{Name: s.Secrets[i].Name}
	}
}
