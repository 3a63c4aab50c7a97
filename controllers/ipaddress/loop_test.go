package ipaddress

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestAddressesFollowServices(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		names := func() (out []string) {
			for _, ip := range reconciletest.All(h, addresses, "") {
				out = append(out, ip.Name)
			}
			return out
		}
		expect := func(when string, want ...string) {
			t.Helper()
			h.Settle()
			if got := names(); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		service := func(name, ip string) *corev1.Service {
			return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}}}
		}
		h.Create(client.Services.Name, service("web", "10.0.0.7"))
		h.Create(client.Services.Name, service("none", corev1.ClusterIPNone))
		expect("created", "10.0.0.7")
		ip := reconciletest.Get(h, addresses, "", "10.0.0.7")
		if ip.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv4" || ip.Labels["ipaddress.kubernetes.io/managed-by"] != Manager || ip.Spec.ParentRef.Name != "web" {
			t.Errorf("%v %v", ip.Labels, ip.Spec.ParentRef)
		}
		h.Delete(addresses.Name, "", "10.0.0.7", "")
		expect("deleted by somebody", "10.0.0.7")
		h.Create(addresses.Name, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.0.0.9"},
			Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "absent"}}})
		expect("reserved by somebody", "10.0.0.7", "10.0.0.9")
		h.Delete(client.Services.Name, "default", "web", "")
		expect("the service is gone", "10.0.0.9")
		h.Create(client.Services.Name, service("one", "10.0.0.7"))
		h.Settle()
		h.Delete(client.Services.Name, "default", "one", "")
		h.Create(client.Services.Name, service("two", "10.0.0.7"))
		expect("another service has it", "10.0.0.7", "10.0.0.9")
		if ip := reconciletest.Get(h, addresses, "", "10.0.0.7"); ip.Spec.ParentRef.Name != "two" {
			t.Errorf("the address is still of %s", ip.Spec.ParentRef.Name)
		}
	}, Loop())
}
