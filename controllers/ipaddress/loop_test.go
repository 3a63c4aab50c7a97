package ipaddress

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
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

func TestServiceCIDRs(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		cidr := func(name string, ranges ...string) {
			h.Create(cidrs.Name, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}})
			h.Settle()
		}
		state := func(name string) string {
			c, ok := cidrs.Get(h.Snapshot(), "", name)
			if !ok {
				return "gone"
			}
			cond := meta.FindStatusCondition(c.Status.Conditions, "Ready")
			if cond == nil || !slices.Contains(c.Finalizers, "networking.k8s.io/service-cidr-finalizer") {
				return "bare"
			}
			return string(cond.Status) + " " + cond.Reason + " " + cond.Message
		}
		expect := func(when, name, want string) {
			t.Helper()
			h.Settle()
			if got := state(name); got != want {
				t.Errorf("%s: %s: %q, want %q", when, name, got, want)
			}
		}
		const ready = "True  Kubernetes Service CIDR is ready"
		const blocked = "False Terminating There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
		cidr("empty", "192.0.2.0/24")
		cidr("a", "203.0.113.0/24")
		expect("created", "a", ready)
		h.Create(client.Services.Name, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "203.0.113.10", ClusterIPs: []string{"203.0.113.10"}, Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}}})
		h.Settle()
		h.Delete(cidrs.Name, "", "a", "")
		h.Delete(cidrs.Name, "", "empty", "")
		expect("in use", "a", blocked)
		h.Advance(time.Minute)
		expect("in use still", "a", blocked)
		expect("unused", "empty", "gone")
		// Another range that has the address lets it go, and one that has all of it too.
		cidr("part", "203.0.113.8/29")
		h.Advance(time.Minute)
		expect("its address is in another", "a", "gone")
		cidr("all", "203.0.0.0/16")
		h.Delete(cidrs.Name, "", "part", "")
		h.Advance(5 * time.Second)
		expect("just deleted", "part", ready)
		h.Advance(10 * time.Second)
		expect("contained", "part", "gone")
		h.Delete(cidrs.Name, "", "all", "")
		expect("the last", "all", blocked)
		h.Delete(client.Services.Name, "default", "web", "")
		h.Advance(time.Minute)
		expect("no service", "all", "gone")
	}, Loop(), RangeLoop())
}
