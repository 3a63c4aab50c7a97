// Package serviceaccount sees to it that every active namespace has the service
// account "default", which pods that name none run as.
//
// It owns the existence of those accounts and nothing in them. It never makes tokens.
package serviceaccount

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const name = "default"

// Loop is the service account controller. Its keys are namespaces.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name: "service-account-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Namespaces.Name},
			{Resource: client.ServiceAccounts.Name, Keys: lost},
		},
		Outputs: []reconcile.Output{{Resource: client.ServiceAccounts.Name, Verbs: []reconcile.Verb{reconcile.Create}}},
		Workers: 2,
		Plan:    plan,
	}
}

// lost gives the namespace whose default account was deleted.
func lost(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted || ev.Entry.Name != name {
		return nil
	}
	return []reconcile.Key{{Name: ev.Entry.Namespace}}
}

func plan(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
	ns, ok := client.Namespaces.Get(s, "", key.Name)
	if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return reconcile.Plan{}, nil
	}
	if _, ok := client.ServiceAccounts.Get(s, ns.Name, name); ok {
		return reconcile.Plan{}, nil
	}
	return reconcile.Plan{Writes: []reconcile.Write{{
		Verb: reconcile.Create, Resource: client.ServiceAccounts.Name,
		Object: &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name}},
	}}}, nil
}
