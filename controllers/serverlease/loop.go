// Package serverlease keeps the lease by which the API server says that it is there (KEP-1965): kube-system/apiserver-<hash>, with
// the label apiserver.kubernetes.io/identity=kube-apiserver.
//
// It owns that one lease. The scheduler and the controllers are parts of the same process and elect nobody, so they keep none.
package serverlease

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const (
	// Every is how often the lease is renewed, Valid for how long it speaks (upstream's values).
	Every = 10 * time.Second
	Valid = time.Hour

	label     = "apiserver.kubernetes.io/identity"
	component = "kube-apiserver"
)

// Name is the identity of the API server of a host.
func Name(host string) string {
	sum := sha256.Sum256([]byte(host))
	return "apiserver-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// Loop keeps the lease of the API server of a host. instance tells this process from one before it.
func Loop(host, instance string) reconcile.Loop {
	key := reconcile.Key{Namespace: metav1.NamespaceSystem, Name: Name(host)}
	holder := key.Name + "_" + instance
	return reconcile.Loop{
		Name:   "apiserver-identity-controller",
		Always: []reconcile.Key{key},
		Inputs: []reconcile.Input{
			// The namespace is made at the first start, beside this loop.
			{Resource: client.Namespaces.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				if ev.Entry.Name != key.Namespace || ev.Prev != nil {
					return nil
				}
				return []reconcile.Key{key}
			}},
			{Resource: client.Leases.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				if ev.Entry.Name != key.Name || ev.Entry.Namespace != key.Namespace || !ev.Deleted {
					return nil
				}
				return []reconcile.Key{key}
			}},
		},
		Outputs: []reconcile.Output{{Resource: client.Leases.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}}},
		Plan: func(s store.Snapshot, k reconcile.Key, now time.Time) (reconcile.Plan, error) {
			if _, ok := client.Namespaces.Get(s, "", key.Namespace); !ok || k != key {
				return reconcile.Plan{}, nil
			}
			return plan(s, key, host, holder, now), nil
		},
	}
}

func plan(s store.Snapshot, key reconcile.Key, host, holder string, now time.Time) reconcile.Plan {
	had, ok := client.Leases.Get(s, key.Namespace, key.Name)
	if ok && had.Spec.HolderIdentity != nil && *had.Spec.HolderIdentity == holder && had.Spec.RenewTime != nil {
		if left := had.Spec.RenewTime.Add(Every).Sub(now); left > 0 && left <= Every {
			return reconcile.Plan{After: left}
		}
	}
	seconds, renewed := int32(Valid/time.Second), metav1.NewMicroTime(now)
	w := reconcile.Write{Verb: reconcile.Create, Resource: client.Leases.Name}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if ok {
		w.Verb = reconcile.Update
		lease = had.DeepCopy()
	}
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	lease.Labels[label], lease.Labels[corev1.LabelHostname] = component, host
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &holder, &seconds, &renewed
	w.Object = lease
	return reconcile.Plan{Writes: []reconcile.Write{w}, After: Every}
}
