// Package customresource holds the loops of CustomResourceDefinitions: one gives them their names and establishes them, one
// says whether they follow the API approval policy, one removes the objects of a definition that is deleted.
//
// It owns the conditions of definitions and their accepted names. It does not serve objects: it asks for that (Config.Serve)
// before it says that they are served.
//
// https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
package customresource

import (
	"context"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
)

var definitions = client.Resource[*apiextensionsv1.CustomResourceDefinition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

type definition = apiextensionsv1.CustomResourceDefinition

// Config is what the loops need beside the store.
type Config struct {
	// Registry tells names that built-in kinds have.
	Registry *api.Registry
	// BuiltIn tells whether a resource, by its canonical name, is served by the program itself.
	BuiltIn func(resource string) bool
	// Serve makes the objects of a definition available; crd has the accepted names in its status. It is asked before the
	// definition is said to be established.
	Serve func(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error
}

// Loops returns the three loops.
func Loops(c Config) []reconcile.Loop {
	status := []reconcile.Output{{Resource: definitions.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}}}
	n, f := &naming{c}, &finalizer{c}
	return []reconcile.Loop{
		{
			Name: "crd-naming-controller", ServiceAccount: serviceAccount,
			Inputs:  []reconcile.Input{{Resource: definitions.Name, Keys: n.keys}},
			Outputs: status,
			Plan:    n.plan, Apply: n.apply,
		},
		{
			Name: "crd-approval-controller", ServiceAccount: serviceAccount,
			Inputs:  []reconcile.Input{{Resource: definitions.Name}},
			Outputs: status,
			Plan:    planApproval,
		},
		{
			Name: "crd-finalizer-controller", ServiceAccount: serviceAccount,
			Inputs: []reconcile.Input{
				{Resource: definitions.Name, Keys: deleted},
				{Resource: reconcile.AnyResource, Resources: func() []string { return nil }, Keys: instances},
			},
			Outputs: append([]reconcile.Output{{Resource: reconcile.AnyResource, Verbs: []reconcile.Verb{reconcile.Delete}}}, status...),
			Workers: 4,
			Plan:    f.plan, Failed: f.failed,
		},
	}
}

// serviceAccount is who the loops are; upstream's run inside of the API server.
const serviceAccount = "crd-controller"

// setCondition sets a condition, and tells whether that changed anything. The time stays where only words change.
func setCondition(crd *definition, c apiextensionsv1.CustomResourceDefinitionCondition, now time.Time) bool {
	c.LastTransitionTime = metav1.NewTime(now.UTC().Truncate(time.Second))
	for i := range crd.Status.Conditions {
		have := &crd.Status.Conditions[i]
		if have.Type != c.Type {
			continue
		}
		if have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message {
			return false
		}
		if have.Status == c.Status {
			c.LastTransitionTime = have.LastTransitionTime
		}
		*have = c
		return true
	}
	crd.Status.Conditions = append(crd.Status.Conditions, c)
	return true
}

func condition(crd *definition, kind apiextensionsv1.CustomResourceDefinitionConditionType) *apiextensionsv1.CustomResourceDefinitionCondition {
	for i := range crd.Status.Conditions {
		if crd.Status.Conditions[i].Type == kind {
			return &crd.Status.Conditions[i]
		}
	}
	return nil
}

func isTrue(crd *definition, kind apiextensionsv1.CustomResourceDefinitionConditionType) bool {
	c := condition(crd, kind)
	return c != nil && c.Status == apiextensionsv1.ConditionTrue
}

// updateStatus is the write of a changed status.
func updateStatus(crd *definition) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: definitions.Name, Subresource: "status", Object: crd}
}
