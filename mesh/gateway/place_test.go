package gateway

import (
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestPlace holds which addresses gateways get: one of each family, those that they have, and those that they ask for.
func TestPlace(t *testing.T) {
	four, six := netip.MustParsePrefix("10.42.255.0/30"), netip.MustParsePrefix("fd42::ff00/126")
	for _, test := range []struct {
		name                string
		pools               []netip.Prefix
		others, have, wants []string
		want                string
	}{
		{"one family", []netip.Prefix{four}, nil, nil, nil, "10.42.255.1"},
		{"both", []netip.Prefix{four, six}, nil, nil, nil, "10.42.255.1 fd42::ff01"},
		{"six first", []netip.Prefix{six, four}, nil, nil, nil, "fd42::ff01 10.42.255.1"},
		{"beside others", []netip.Prefix{four, six}, []string{"10.42.255.1", "fd42::ff01"}, nil, nil, "10.42.255.2 fd42::ff02"},
		{"what it has", []netip.Prefix{four, six}, nil, []string{"10.42.255.2", "fd42::ff02"}, nil, "10.42.255.2 fd42::ff02"},
		{"one family more", []netip.Prefix{four, six}, nil, []string{"10.42.255.2"}, nil, "10.42.255.2 fd42::ff01"},
		{"asked for", []netip.Prefix{four, six}, nil, nil, []string{"fd42::ff02"}, "fd42::ff02"},
		{"the node's", []netip.Prefix{four, six}, nil, nil, []string{"2001:db8::1"}, "2001:db8::1"},
		{"any", []netip.Prefix{four, six}, nil, nil, []string{""}, "10.42.255.1 fd42::ff01"},
		{"taken", []netip.Prefix{four, six}, []string{"fd42::ff02"}, nil, []string{"fd42::ff02"}, "AddressNotUsable"},
		{"nobody's", []netip.Prefix{four, six}, nil, nil, []string{"fd43::1"}, "AddressNotUsable"},
		{"full", []netip.Prefix{four, six}, []string{"fd42::ff01", "fd42::ff02"}, nil, nil, "AddressNotAssigned"},
		{"none", nil, nil, nil, nil, "NoResources"},
	} {
		w := newTown(t)
		w.put("gatewayclasses.gateway.networking.k8s.io", &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: Class}, Spec: gatewayv1.GatewayClassSpec{ControllerName: Controller}})
		make := func(name string, have []string) *gatewayv1.Gateway {
			g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}, Spec: gatewayv1.GatewaySpec{GatewayClassName: Class}}
			for _, a := range have {
				g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Value: a})
			}
			return g
		}
		if test.others != nil {
			w.put("gateways.gateway.networking.k8s.io", make("other", test.others))
		}
		g := make("web", test.have)
		for _, a := range test.wants {
			g.Spec.Addresses = append(g.Spec.Addresses, gatewayv1.GatewaySpecAddress{Value: a})
		}
		c := Config{Pools: test.pools, Nodes: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}
		p := c.place(view{Snapshot: w.Snapshot()}, g)
		var got []string
		for _, a := range p.addresses {
			got = append(got, a.String())
		}
		if p.programmed != nil {
			got = append(got, p.programmed.reason)
		}
		if text := strings.Join(got, " "); text != test.want {
			t.Errorf("%s: %s, want %s", test.name, text, test.want)
		}
	}
}

// TestOneFamily holds that a pod that has addresses of both families is one endpoint, of the service's first family.
func TestOneFamily(t *testing.T) {
	w := newTown(t)
	s := service("s")
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	w.put(servicesOf, s)
	w.put(slicesOf, ends("s", "10.42.0.1"))
	six := ends("s", "fd42::1")
	six.Name, six.AddressType = "s6", discoveryv1.AddressTypeIPv6
	w.put(slicesOf, six)
	w.put(ingressesOf, ingress("i", 1, "s", [2]string{"", "/"}))
	if b := w.now.Backend("shop/s:80"); len(b.Endpoints) != 1 || b.Endpoints[0].Address.String() != "[fd42::1]:8080" {
		t.Errorf("%v", b.Endpoints)
	}
}
