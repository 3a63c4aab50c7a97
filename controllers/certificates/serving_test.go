package certificates

import (
	"crypto/x509"
	"net"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// TestServingCertificates says who may have which names: a node those that its own Node object has as addresses, and that are
// nobody else's.
func TestServingCertificates(t *testing.T) {
	names := func(dns []string, ips ...string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) {
			r.DNSNames = dns
			for _, ip := range ips {
				r.IPAddresses = append(r.IPAddresses, net.ParseIP(ip))
			}
		}
	}
	usages := []certificatesv1.KeyUsage{certificatesv1.UsageServerAuth, certificatesv1.UsageDigitalSignature}
	for _, c := range []struct {
		name    string
		request func(*x509.CertificateRequest)
		user    string
		groups  []string
		usages  []certificatesv1.KeyUsage
		want    bool
	}{
		{name: "address", request: names(nil, "10.0.0.1"), want: true},
		{name: "addresses-of-both-families", request: names(nil, "10.0.0.1", "2001:db8::1"), want: true},
		{name: "host-name", request: names([]string{"n"}, "10.0.0.1"), want: true},
		{name: "outer-address", request: names(nil, "203.0.113.1"), want: true},
		{name: "no-name", request: names(nil)},
		{name: "anothers-address", request: names(nil, "10.0.0.2")},
		{name: "one-too-many", request: names(nil, "10.0.0.1", "10.0.0.2")},
		{name: "nobodys-address", request: names(nil, "10.0.0.9")},
		{name: "shared-address", request: names(nil, "10.0.0.3")},
		{name: "anothers-name", request: names([]string{"other"}, "10.0.0.1")},
		{name: "name-of-the-api", request: names([]string{"kubernetes.default.svc"}, "10.0.0.1")},
		{name: "loopback", request: names(nil, "127.0.0.1")},
		{name: "unspecified", request: names(nil, "0.0.0.0")},
		{name: "address-of-a-service", request: names(nil, "10.96.0.1")},
		{name: "asked-by-another-node", request: names(nil, "10.0.0.1"), user: "system:node:other"},
		{name: "asked-by-a-person", request: names(nil, "10.0.0.1"), user: "alice"},
		{name: "not-in-the-group", request: names(nil, "10.0.0.1"), groups: []string{"system:authenticated"}},
		{name: "other-usages", request: names(nil, "10.0.0.1"), usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := authority(t, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC))
			reconciletest.Run(t, func(h *reconciletest.Harness) {
				addresses(h, "n", corev1.NodeHostName, "n", corev1.NodeHostName, "kubernetes.default.svc", corev1.NodeInternalIP, "10.0.0.1", corev1.NodeInternalIP, "2001:db8::1",
					corev1.NodeExternalIP, "203.0.113.1", corev1.NodeInternalIP, "10.0.0.3", corev1.NodeInternalIP, "10.96.0.1",
					corev1.NodeInternalIP, "127.0.0.1", corev1.NodeInternalIP, "0.0.0.0")
				addresses(h, "other", corev1.NodeInternalIP, "10.0.0.2", corev1.NodeExternalIP, "10.0.0.3")
				h.Create(client.Services.Name, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
					Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP", TargetPort: intstr.FromInt32(80)}}}})
				csr := asking(t, "csr", certificatesv1.KubeletServingSignerName, node(c.request), usages...)
				csr.Spec.Groups = []string{nodesGroup}
				if c.user != "" {
					csr.Spec.Username = c.user
				}
				if c.groups != nil {
					csr.Spec.Groups = c.groups
				}
				if c.usages != nil {
					csr.Spec.Usages = c.usages
				}
				h.Create(client.CertificateRequests.Name, csr)
				h.Settle()
				got := reconciletest.Get(h, client.CertificateRequests, "", "csr")
				if has(got, certificatesv1.CertificateApproved) != c.want || (len(got.Status.Certificate) > 0) != c.want {
					t.Errorf("approved: %v, signed: %d bytes, want %v", got.Status.Conditions, len(got.Status.Certificate), c.want)
				}
			}, Loops(Config{Authority: a, Allowed: func(client.User, string) bool { return false }, ServingCA: a.Certificate.Raw})...)
		})
	}
}

// TestServingCertificateWaitsForTheAddress: a node that asks before its address is known is answered once it is.
func TestServingCertificateWaitsForTheAddress(t *testing.T) {
	a := authority(t, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC))
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		addresses(h, "n")
		csr := asking(t, "csr", certificatesv1.KubeletServingSignerName,
			node(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }), certificatesv1.UsageServerAuth, certificatesv1.UsageDigitalSignature)
		csr.Spec.Groups = []string{nodesGroup}
		h.Create(client.CertificateRequests.Name, csr)
		h.Settle()
		if got := reconciletest.Get(h, client.CertificateRequests, "", "csr"); len(got.Status.Conditions) > 0 {
			t.Fatalf("decided: %v", got.Status.Conditions)
		}
		reconciletest.Change(h, client.Nodes, "", "n", "status", func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
		})
		h.Settle()
		if got := reconciletest.Get(h, client.CertificateRequests, "", "csr"); len(got.Status.Certificate) == 0 {
			t.Errorf("not signed: %v", got.Status.Conditions)
		}
	}, Loops(Config{Authority: a, Allowed: func(client.User, string) bool { return false }, ServingCA: a.Certificate.Raw})...)
}

// addresses makes a node with addresses, each a type and a text.
func addresses(h *reconciletest.Harness, name string, pairs ...any) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for i := 0; i < len(pairs); i += 2 {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: pairs[i].(corev1.NodeAddressType), Address: pairs[i+1].(string)})
	}
	h.Create(client.Nodes.Name, n)
	reconciletest.Change(h, client.Nodes, "", name, "status", func(have *corev1.Node) { have.Status.Addresses = n.Status.Addresses })
}
