// Package rootca publishes the cluster's certificate authority in every active
// namespace, as the config map kube-root-ca.crt that pods find beside their token.
//
// It owns the data and the description of those config maps, and nothing else of them.
package rootca

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const (
	name        = "kube-root-ca.crt"
	annotation  = "kubernetes.io/description"
	description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Loop is the publisher. ca is the PEM form of the authority that signs the API server's
// certificate. Its keys are namespaces.
func Loop(ca []byte) reconcile.Loop {
	data := map[string]string{"ca.crt": string(ca)}
	return reconcile.Loop{
		Name: "root-ca-cert-publisher",
		Inputs: []reconcile.Input{
			{Resource: client.Namespaces.Name},
			{Resource: client.ConfigMaps.Name, Keys: ours},
		},
		Outputs: []reconcile.Output{{Resource: client.ConfigMaps.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}}},
		Workers: 2,
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key.Name, data), nil
		},
	}
}

// ours gives the namespace whose config map of that name changed.
func ours(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Entry.Name != name {
		return nil
	}
	return []reconcile.Key{{Name: ev.Entry.Namespace}}
}

func plan(s store.Snapshot, namespace string, data map[string]string) reconcile.Plan {
	ns, ok := client.Namespaces.Get(s, "", namespace)
	if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return reconcile.Plan{}
	}
	cm, ok := client.ConfigMaps.Get(s, namespace, name)
	w := reconcile.Write{Resource: client.ConfigMaps.Name}
	switch {
	case !ok:
		w.Verb = reconcile.Create
		cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	case maps.Equal(cm.Data, data) && cm.Annotations[annotation] != "":
		return reconcile.Plan{}
	default:
		w.Verb = reconcile.Update
		cm = cm.DeepCopy()
	}
	cm.Data = maps.Clone(data)
	metav1.SetMetaDataAnnotation(&cm.ObjectMeta, annotation, description)
	w.Object = cm
	return reconcile.Plan{Writes: []reconcile.Write{w}}
}
