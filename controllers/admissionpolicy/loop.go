// Package admissionpolicy writes the status of ValidatingAdmissionPolicies: what is wrong with their expressions, given the types
// of the resources that they match
// (https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#type-checking).
//
// It owns status.typeChecking and status.observedGeneration. What it finds changes nothing in how a policy works. It checks a policy
// once in each generation, as upstream does; MutatingAdmissionPolicies have no status.
package admissionpolicy

import (
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Policies are the ValidatingAdmissionPolicies.
var Policies = client.Resource[*admissionregistrationv1.ValidatingAdmissionPolicy]{
	Name: "validatingadmissionpolicies." + admissionregistrationv1.GroupName,
}

// Config is what the loop needs; all of it.
type Config struct {
	// Registry says which kinds there are.
	Registry *api.Registry
	// Document gives the OpenAPI document (v3, as JSON) of a group version that the registry knows. It is asked for policies that are new
	// or have changed, reads memory only, and what it returns is not kept.
	Document func(group, version string) ([]byte, error)
}

// Loop is the controller.
func Loop(c Config) reconcile.Loop {
	checker := &checker{registry: c.Registry, document: c.Document}
	return reconcile.Loop{
		Name:   "validatingadmissionpolicy-status-controller",
		Inputs: []reconcile.Input{{Resource: Policies.Name}},
		Outputs: []reconcile.Output{{
			Resource: Policies.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update},
		}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			p, ok := Policies.Get(s, "", key.Name)
			if !ok || p.Generation <= p.Status.ObservedGeneration {
				return reconcile.Plan{}, nil
			}
			out := p.DeepCopy()
			out.Status.ObservedGeneration = p.Generation
			out.Status.TypeChecking = &admissionregistrationv1.TypeChecking{ExpressionWarnings: checker.check(&p.Spec)}
			return reconcile.Plan{Writes: []reconcile.Write{{
				Verb: reconcile.Update, Resource: Policies.Name, Subresource: "status", Object: out,
			}}}, nil
		},
	}
}
