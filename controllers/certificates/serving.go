package certificates

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api/certificates"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// approveServing approves the certificate of a node's own API if the node itself asks and every name in it is the node's alone.
// Upstream leaves this to the administrator; docs/decisions says why it is decided here. A request that does not qualify yet is
// left for somebody else, and looked at again when nodes' addresses change.
func approveServing(s store.Snapshot, csr *certificatesv1.CertificateSigningRequest) (reconcile.Plan, error) {
	request, err := certificates.ParseRequest(csr.Spec.Request)
	if err != nil {
		return reconcile.Plan{}, fmt.Errorf("unable to parse csr %q: %v", csr.Name, err)
	}
	user := requester(csr)
	if kubeletServing(request, csr.Spec.Usages) != nil || user.Name != request.Subject.CommonName || !user.In(nodesGroup) {
		return reconcile.Plan{}, nil
	}
	if !ownNames(s, request, user.Name[len(nodePrefix):]) {
		return reconcile.Plan{}, nil
	}
	return reconcile.Plan{Writes: []reconcile.Write{{
		Verb: reconcile.Update, Resource: client.CertificateRequests.Name, Subresource: "approval",
		Object: withCondition(csr, certificatesv1.CertificateApproved, "AutoApproved",
			"Auto approving kubelet serving certificate: every name in it is that of the requesting node."),
	}}}, nil
}

// ownNames tells whether all names of a request are a node's, by its Node object, and no other node's, nor that of a Service.
func ownNames(s store.Snapshot, request *x509.CertificateRequest, node string) bool {
	n, ok := client.Nodes.Get(s, "", node)
	if !ok {
		return false
	}
	names := slices.Clone(request.DNSNames)
	for _, ip := range request.IPAddresses {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok || addr.Unmap().IsLoopback() || addr.IsUnspecified() {
			return false
		}
		names = append(names, addr.Unmap().String())
	}
	for _, name := range names {
		if !bears(n, name) {
			return false
		}
		for range client.Services.Index(s, "clusterIP", name) {
			return false
		}
		if ofAPI(s, name) {
			return false
		}
	}
	for other := range client.Nodes.List(s, "") {
		if other.Name != node && slices.ContainsFunc(names, func(name string) bool { return other.Name == name || bears(other, name) }) {
			return false
		}
	}
	return true
}

// ofAPI tells whether an address is one at which API servers answer: nobody else may have a certificate for it.
func ofAPI(s store.Snapshot, name string) bool {
	for slice := range client.EndpointSlices.Index(s, "service", metav1.NamespaceDefault+"/kubernetes") {
		for i := range slice.Endpoints {
			if slices.Contains(slice.Endpoints[i].Addresses, name) {
				return true
			}
		}
	}
	return false
}

// bears tells whether a name or address is one of those of a node. Host names are the node's name: what else a node calls itself
// could be the name of anything.
func bears(n *corev1.Node, name string) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP:
			return a.Address == name
		}
		return name == n.Name && a.Address == name
	})
}

// addressed gives the requests for which a change of a node's addresses may matter.
func addressed(s store.Snapshot, ev store.Event) []reconcile.Key {
	if n, ok := ev.Entry.Object.(*corev1.Node); ok && ev.Prev != nil && !ev.Deleted &&
		slices.Equal(n.Status.Addresses, ev.Prev.Object.(*corev1.Node).Status.Addresses) {
		return nil
	}
	return undecided(s, ev)
}
