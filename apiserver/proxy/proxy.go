// Package proxy finds the address behind pods/x/proxy, services/x/proxy and
// nodes/x/proxy, and forwards requests and upgraded connections to it.
//
// It reads a snapshot and opens connections only through the dial function that it is given. It
// never sends on the credentials of the request.
package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Dial opens a connection.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Name is what a proxy path names: [scheme:]name[:port].
type Name struct {
	Scheme, Name, Port string
}

// ParseName reads a name; false if it has not that form.
func ParseName(s string) (Name, bool) {
	parts := strings.Split(s, ":")
	n := Name{Scheme: "http"}
	switch len(parts) {
	case 1:
		n.Name = parts[0]
	case 2:
		n.Name, n.Port = parts[0], parts[1]
	case 3:
		if parts[0] != "" {
			n.Scheme = parts[0]
		}
		n.Name, n.Port = parts[1], parts[2]
	default:
		return n, false
	}
	return n, n.Name != "" && (n.Scheme == "http" || n.Scheme == "https")
}

// Pod finds the address of a pod.
func Pod(s store.Snapshot, namespace, id string) (*url.URL, error) {
	n, ok := ParseName(id)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid pod request %q", id))
	}
	pod, ok := client.Pods.Get(s, namespace, n.Name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, n.Name)
	}
	port := n.Port
	if port == "" {
		for i := range pod.Spec.Containers {
			if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
				port = strconv.Itoa(int(ports[0].ContainerPort))
				break
			}
		}
	}
	if err := allowed(pod.Status.PodIP); err != nil {
		return nil, err
	}
	host := pod.Status.PodIP
	if port != "" {
		host = net.JoinHostPort(host, port)
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return &url.URL{Scheme: n.Scheme, Host: host}, nil
}

// allowed refuses addresses that are no pod's.
func allowed(ip string) error {
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() ||
		addr.IsInterfaceLocalMulticast() || addr.IsUnspecified() {
		return apierrors.NewBadRequest("address not allowed")
	}
	return nil
}

// Service picks one of the ready addresses behind a service.
func Service(s store.Snapshot, namespace, id string) (*url.URL, error) {
	n, ok := ParseName(id)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", id))
	}
	svc, ok := client.Services.Get(s, namespace, n.Name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, n.Name)
	}
	port, err := portName(svc, n.Port)
	if err != nil {
		return nil, err
	}
	hosts := Ready(s, svc, port)
	if len(hosts) == 0 {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", id))
	}
	host := hosts[rand.IntN(len(hosts))]
	if h, _, err := net.SplitHostPort(host); err != nil || allowed(h) != nil {
		return nil, apierrors.NewBadRequest("address not allowed")
	}
	return &url.URL{Scheme: n.Scheme, Host: host}, nil
}

// portName turns the port of a request, a number or a name, into the name of a service port.
func portName(svc *corev1.Service, port string) (string, error) {
	number, err := strconv.Atoi(port)
	if err != nil {
		return port, nil
	}
	for i := range svc.Spec.Ports {
		if int(svc.Spec.Ports[i].Port) == number {
			return svc.Spec.Ports[i].Name, nil
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", number, svc.Name))
}

// Ready are the ready addresses ("ip:port") of the service port with that name; "" is the port without a name. It costs one
// walk over the endpoint slices of the namespace.
func Ready(s store.Snapshot, svc *corev1.Service, port string) []string {
	var out []string
	for slice := range client.EndpointSlices.List(s, svc.Namespace) {
		if slice.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || (p.Name == nil || *p.Name == "") != (port == "") || p.Name != nil && *p.Name != port {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return out
}

// Forward sends the request to a location, whose path it appends rest to. Answers in HTML get
// links that lead through the proxy again.
func Forward(w http.ResponseWriter, r *http.Request, to *url.URL, rest string, dial Dial, fail func(error)) {
	location := *to
	location.Path = rest
	location.RawQuery = r.URL.RawQuery
	transport := &http.Transport{
		DialContext:       dial,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // pods have no names to verify
		DisableKeepAlives: true,
	}
	h := utilproxy.NewUpgradeAwareHandler(&location, transport, true, false, responder(fail))
	h.ServeHTTP(w, r)
}

// responder hears of failures before a response began.
type responder func(error)

// Error implements utilproxy.ErrorResponder.
func (f responder) Error(_ http.ResponseWriter, _ *http.Request, err error) { f(err) }
