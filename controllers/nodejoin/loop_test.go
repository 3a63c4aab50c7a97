package nodejoin

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

var network = Network{Domain: "cluster.local", Overlay: `{"Port":8472}`,
	Pods:     []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/48")},
	Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}}

func TestNetworkIsReadAsWritten(t *testing.T) {
	got, err := Parse(network.Data())
	if err != nil || !reflect.DeepEqual(got, network) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []map[string]string{nil, {"podCIDR": "10.42.0.0/16"}, {"podCIDR": "10.42.0.0/16", "serviceCIDR": "10.43.0.0"},
		{"podCIDR": "10.42.0.0/16,", "serviceCIDR": "10.43.0.0/16"}} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("%v was read as %+v", bad, got)
		}
	}
}

// TestObjectsAreThere: everything is made at the start; the config map is kept as it has to be,
// and what somebody did with a role is left alone.
func TestObjectsAreThere(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Settle()
		for key := range objects(network) {
			if h.Snapshot().Get(store.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name}) == nil {
				t.Errorf("%v is not there", key)
			}
		}
		reconciletest.Change(h, client.ConfigMaps, metav1.NamespaceSystem, ConfigMap, "", func(m *corev1.ConfigMap) { m.Data["podCIDR"] = "0.0.0.0/0" })
		reconciletest.Change(h, client.ClusterRoles, "", nodeRole, "", func(r *rbacv1.ClusterRole) { r.Rules = nil })
		h.Settle()
		if got := reconciletest.Get(h, client.ConfigMaps, metav1.NamespaceSystem, ConfigMap).Data; !reflect.DeepEqual(got, network.Data()) {
			t.Errorf("the config map is %v", got)
		}
		if rules := reconciletest.Get(h, client.ClusterRoles, "", nodeRole).Rules; len(rules) != 0 {
			t.Errorf("what somebody took out of the role is back: %v", rules)
		}
		h.Delete(client.ConfigMaps.Name, metav1.NamespaceSystem, ConfigMap, "")
		h.Settle()
		reconciletest.Get(h, client.ConfigMaps, metav1.NamespaceSystem, ConfigMap)
	}, Loop(network))
}

// TestServerIsNotMaster: what the API server shows to nodes has rights to nodes' APIs and no others, whoever steals it.
func TestServerIsNotMaster(t *testing.T) {
	bound := map[string]bool{}
	for _, obj := range objects(network) {
		b, ok := obj.(*rbacv1.ClusterRoleBinding)
		if !ok {
			continue
		}
		for _, s := range b.Subjects {
			if s.Kind == rbacv1.UserKind && s.Name == ServerUser {
				bound[b.RoleRef.Name] = true
			}
		}
	}
	if len(bound) != 1 || !bound["system:kubelet-api-admin"] {
		t.Errorf("bound to %v", bound)
	}
}

// TestNodesMayNotReadSecrets: what all nodes may is to read what names, ways and policies are made of, and nothing else.
func TestNodesMayNotReadSecrets(t *testing.T) {
	for key, obj := range objects(network) {
		var rules []rbacv1.PolicyRule
		switch o := obj.(type) {
		case *rbacv1.ClusterRole:
			rules = o.Rules
		case *rbacv1.Role:
			rules = o.Rules
		}
		for _, r := range rules {
			for _, verb := range r.Verbs {
				if verb != "get" && verb != "list" && verb != "watch" {
					t.Errorf("%v allows to %s", key, verb)
				}
			}
			for _, resource := range r.Resources {
				if resource == "secrets" || resource == "*" || resource == "configmaps" && len(r.ResourceNames) == 0 {
					t.Errorf("%v allows %s", key, resource)
				}
			}
		}
	}
}
