// Package nodejoin lets machines join as nodes: it makes the rights that a bootstrap token and a node's certificate
// carry, as kubeadm does, and the config map that tells a new node what the cluster's network is
// (https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/).
//
// It owns the existence of these objects at each start and the content of the config map. Roles and bindings are made where they are
// missing at the start and otherwise left alone: who changes them means it.
package nodejoin

import (
	"maps"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// TokenGroup is the group of bootstrap tokens whose bearers may become nodes, as kubeadm names it.
const TokenGroup = "system:bootstrappers:kubeadm:default-node-token"

// ConfigMap is the name, in kube-system, of what new nodes read.
const ConfigMap = "coracle-node"

// DNSConfigMap is the name, in kube-system, of the DNS servers' configuration, which nodes read because each of them answers.
const DNSConfigMap = "coredns"

// nodeRole is what nodes may read beside what the Node authorizer lets them: what a proxy of services, a DNS server and a
// filter of packets need.
const nodeRole = "coracle:node"

// ServerUser is who the API server is to nodes. It has the rights to their API and no others.
const ServerUser = "kube-apiserver-kubelet-client"

// Network is what a node must know of the cluster.
type Network struct {
	// Domain is that of the cluster's DNS.
	Domain string
	// Pods and Services are the cluster's ranges, one for each family, the primary one first.
	Pods, Services []netip.Prefix
	// Overlay is how nodes reach each other's pods, as the nodes read it.
	Overlay string
}

// Data is the config map's form.
func (n Network) Data() map[string]string {
	return map[string]string{"clusterDomain": n.Domain, "podCIDR": join(n.Pods), "serviceCIDR": join(n.Services), "overlay": n.Overlay}
}

// Parse reads what Data wrote.
func Parse(data map[string]string) (Network, error) {
	n := Network{Domain: data["clusterDomain"], Overlay: data["overlay"]}
	var err error
	if n.Pods, err = split(data["podCIDR"]); err != nil {
		return n, err
	}
	n.Services, err = split(data["serviceCIDR"])
	return n, err
}

func join(ranges []netip.Prefix) string {
	var text []string
	for _, r := range ranges {
		text = append(text, r.String())
	}
	return strings.Join(text, ",")
}

func split(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for one := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(one)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Loop makes the objects.
func Loop(n Network) reconcile.Loop {
	wanted := objects(n)
	l := reconcile.Loop{
		Name: "node-join-controller",
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key, wanted[key]), nil
		},
	}
	outputs := map[string]bool{}
	for key := range wanted {
		l.Always = append(l.Always, key)
		if outputs[key.Resource] {
			continue
		}
		outputs[key.Resource] = true
		verbs := []reconcile.Verb{reconcile.Create}
		if key.Resource == client.ConfigMaps.Name {
			verbs = append(verbs, reconcile.Update)
		}
		l.Outputs = append(l.Outputs, reconcile.Output{Resource: key.Resource, Verbs: verbs})
	}
	l.Inputs = []reconcile.Input{
		{Resource: client.ConfigMaps.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			key := reconcile.Key{Resource: ev.Entry.Resource, Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}
			if wanted[key] == nil {
				return nil
			}
			return []reconcile.Key{key}
		}},
		{Resource: client.Namespaces.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			if ev.Prev != nil || ev.Entry.Name != metav1.NamespaceSystem {
				return nil
			}
			return l.Always // now there is room for them
		}},
	}
	return l
}

func plan(s store.Snapshot, key reconcile.Key, want api.Object) reconcile.Plan {
	if want == nil {
		return reconcile.Plan{}
	}
	if key.Namespace != "" {
		if ns, ok := client.Namespaces.Get(s, "", key.Namespace); !ok || ns.DeletionTimestamp != nil {
			return reconcile.Plan{}
		}
	}
	entry := s.Get(store.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name})
	if entry == nil {
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Create, Resource: key.Resource, Object: want.DeepCopyObject().(api.Object)}}}
	}
	have, ok := entry.Object.(*corev1.ConfigMap)
	if !ok || have.DeletionTimestamp != nil || maps.Equal(have.Data, want.(*corev1.ConfigMap).Data) {
		return reconcile.Plan{}
	}
	have = have.DeepCopy()
	have.Data = want.(*corev1.ConfigMap).Data
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: key.Resource, Object: have}}}
}

// objects are all that has to be there.
func objects(n Network) map[reconcile.Key]api.Object {
	all := map[reconcile.Key]api.Object{}
	add := func(resource string, obj api.Object) {
		all[reconcile.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}] = obj
	}
	bind := func(name, role, group string) {
		add(client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: groups(group)})
	}
	bind("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", TokenGroup)
	bind("kubeadm:node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", TokenGroup)
	bind("kubeadm:node-autoapprove-certificate-rotation", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", client.GroupNodes)
	read := []string{"get", "list", "watch"}
	add(client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: nodeRole}, Rules: []rbacv1.PolicyRule{
		{Verbs: read, APIGroups: []string{""}, Resources: []string{"pods", "nodes", "namespaces"}},
		{Verbs: read, APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}},
		{Verbs: read, APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}},
		{Verbs: read, APIGroups: []string{"policy.networking.k8s.io"}, Resources: []string{"clusternetworkpolicies"}},
	}})
	bind(nodeRole, nodeRole, client.GroupNodes)
	add(client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: ServerUser},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:kubelet-api-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: ServerUser}}})
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "coracle:node-config"}
	add(client.Roles.Name, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{Verbs: read, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{ConfigMap, DNSConfigMap}}}})
	add(client.RoleBindings.Name, &rbacv1.RoleBinding{ObjectMeta: meta,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name}, Subjects: groups(client.GroupNodes, TokenGroup)})
	add(client.ConfigMaps.Name, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: ConfigMap}, Data: n.Data()})
	return all
}

func groups(names ...string) []rbacv1.Subject {
	var out []rbacv1.Subject
	for _, name := range names {
		out = append(out, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name})
	}
	return out
}
