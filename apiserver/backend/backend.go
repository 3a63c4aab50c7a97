// Package backend reaches what the API server calls out to: admission and conversion webhooks, aggregated API servers
// and the sinks of audit events. A backend is a URL or a service of the cluster, with the certificates that it is known by.
//
// It owns the HTTP clients, one for each distinct backend, and closes those that nobody has used for a while. It finds a
// service's pods in a snapshot, without DNS and without the service's virtual address. It knows nothing of what is said to
// a backend.
package backend

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/apiserver/proxy"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Service names a port of a service.
type Service struct {
	Namespace, Name string
	// Port is the service's port, 443 if zero.
	Port int32
	// Path is where requests go, "" for the root.
	Path string
}

// ErrTooLong says that a backend's answer is longer than what is read.
var ErrTooLong = errors.New("the answer is too long")

// Target is one backend: exactly one of URL and Service is set.
type Target struct {
	// URL is an https address with host, port and path.
	URL     string
	Service *Service
	// CABundle holds the PEM certificates that the backend's is verified with; the machine's own if empty.
	CABundle []byte
	// Insecure passes over the backend's certificate (APIService.spec.insecureSkipTLSVerify).
	Insecure bool
	// Identify presents Pool.Certificate to the backend.
	Identify bool
	// HTTP1 keeps to HTTP/1.1, for connections that are upgraded.
	HTTP1 bool
}

// Pool hands out HTTP clients for backends. It is safe for concurrent use. The fields are set before the first call.
type Pool struct {
	// Snapshot is the state in which services are looked up.
	Snapshot func() store.Snapshot
	// Dial opens connections to pods and URLs; a plain net.Dialer if nil.
	Dial proxy.Dial
	// Patience is how long one pod of a service is waited for while there are others, 3 s if zero.
	Patience time.Duration
	// Certificate is who the API server is to backends that ask; nil for nobody.
	Certificate func() (*tls.Certificate, error)
	// Inside gives who answers in this process for what is known by an address, nil for what the network is asked for. A
	// service has the host "name.namespace.svc". Nil: nothing is answered here.
	Inside func(*url.URL) http.RoundTripper

	mu      sync.Mutex // guards clients
	clients map[[sha256.Size]byte]*pooled
}

type pooled struct {
	transport *http.Transport
	used      time.Time
	// pods are the addresses behind a service as they were at the last use.
	pods string
}

// follow closes the connections that wait for use once a service has other pods than before: one of them may lead to a pod that the
// service has left.
func (c *pooled) follow(pods string) {
	if c.pods != pods {
		c.pods = pods
		c.transport.CloseIdleConnections()
	}
}

// pods are the addresses behind a service, "" for a URL.
func (p *Pool) pods(t Target) string {
	if t.Service == nil {
		return ""
	}
	addresses, _ := Resolve(p.Snapshot(), *t.Service) // an error is told by the dial
	slices.Sort(addresses)
	return strings.Join(addresses, ",")
}

// maxClients is how many backends keep their connections. Beyond it the one that was used the longest ago is closed.
const maxClients = 256

// Client returns a client for a backend and the URL that requests go to. The client has no time limit of its own and follows
// no redirects: the caller's context bounds a call. An error says what is wrong with the target itself; a backend that cannot
// be reached fails the call.
func (p *Pool) Client(t Target) (*http.Client, *url.URL, error) {
	u, err := t.address()
	if err != nil {
		return nil, nil, err
	}
	var transport http.RoundTripper
	if p.Inside != nil {
		transport = p.Inside(u)
	}
	if transport == nil {
		if transport, err = p.transport(t, u); err != nil {
			return nil, nil, err
		}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}, u, nil
}

// address is where requests go. A service has the name by which its certificate is verified.
func (t *Target) address() (*url.URL, error) {
	if t.Service == nil {
		u, err := url.Parse(t.URL)
		if err != nil {
			return nil, fmt.Errorf("backend address: %w", err)
		}
		if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return nil, fmt.Errorf("backend address %q: it must be an absolute https URL", t.URL)
		}
		return u, nil
	}
	s := t.Service
	if s.Namespace == "" || s.Name == "" {
		return nil, errors.New("backend service: namespace and name are needed")
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(s.host(), strconv.Itoa(int(s.port()))), Path: s.Path}, nil
}

func (s *Service) host() string { return s.Name + "." + s.Namespace + ".svc" }

func (s *Service) port() int32 {
	if s.Port == 0 {
		return 443
	}
	return s.Port
}

// transport finds or makes the connections of a backend.
func (p *Pool) transport(t Target, u *url.URL) (http.RoundTripper, error) {
	id := sha256.Sum256(fmt.Appendf(nil, "%s|%t|%t|%t|%t|%s", u.Host, t.Service != nil, t.Insecure, t.Identify, t.HTTP1, t.CABundle))
	pods := p.pods(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.clients[id]; c != nil {
		c.used = time.Now()
		c.follow(pods)
		return steady{c.transport}, nil
	}
	config, err := p.tls(t, u)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext:         p.dial(t),
		TLSClientConfig:     config,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 16,
		ForceAttemptHTTP2:   !t.HTTP1,
	}
	if t.HTTP1 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	p.makeRoom()
	if p.clients == nil {
		p.clients = map[[sha256.Size]byte]*pooled{}
	}
	p.clients[id] = &pooled{transport, time.Now(), pods}
	return steady{transport}, nil
}

// makeRoom closes the client that was used the longest ago once there are too many. mu is held.
func (p *Pool) makeRoom() {
	if len(p.clients) < maxClients {
		return
	}
	var oldest [sha256.Size]byte
	var found *pooled
	for id, c := range p.clients {
		if found == nil || c.used.Before(found.used) {
			oldest, found = id, c
		}
	}
	delete(p.clients, oldest)
	found.transport.CloseIdleConnections()
}

// Close closes all connections that are not in use.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.transport.CloseIdleConnections()
	}
	p.clients = nil
}

func (p *Pool) tls(t Target, u *url.URL) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), InsecureSkipVerify: t.Insecure} //nolint:gosec // only where the user asks for it
	if len(t.CABundle) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(t.CABundle) {
			return nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	if t.Identify && p.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.Certificate() }
	}
	return config, nil
}

// maxAttempts is how many pods of a service are tried for one connection.
const maxAttempts = 3

// dial opens a connection to a URL's host, or to one of the ready pods of a service. Each dial looks the service up
// anew and tries up to three of its pods.
func (p *Pool) dial(t Target) proxy.Dial {
	open := p.Dial
	if open == nil {
		open = new(net.Dialer).DialContext
	}
	if t.Service == nil {
		return open
	}
	service := *t.Service
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		addresses, err := Resolve(p.Snapshot(), service)
		if err != nil {
			return nil, err
		}
		rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
		addresses = addresses[:min(len(addresses), maxAttempts)]
		var conn net.Conn
		for i, a := range addresses {
			if conn, err = p.attempt(ctx, open, network, a, i == len(addresses)-1); err == nil || ctx.Err() != nil {
				return conn, err
			}
		}
		return nil, err
	}
}

// attempt dials one pod. The last has all the time that is left.
func (p *Pool) attempt(ctx context.Context, open proxy.Dial, network, address string, last bool) (net.Conn, error) {
	if last {
		return open(ctx, network, address)
	}
	patience := p.Patience
	if patience == 0 {
		patience = 3 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return open(ctx, network, address)
}

// Resolve finds the addresses ("host:port") behind a service, at least one. The errors are worded as upstream's service
// resolver words them.
func Resolve(s store.Snapshot, service Service) ([]string, error) {
	svc, ok := client.Services.Get(s, service.Namespace, service.Name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, service.Name)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return []string{net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(service.port())))}, nil
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == service.port() })
	if i < 0 {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", service.port(), service.Name))
	}
	addresses := proxy.Ready(s, svc, svc.Spec.Ports[i].Name)
	addresses = slices.DeleteFunc(addresses, forbidden)
	if len(addresses) == 0 {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", service.Name))
	}
	return addresses, nil
}

// forbidden refuses addresses that no pod or outside server has, so that nobody who may write endpoints gets the API
// server to talk to what only this machine can reach.
func forbidden(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err != nil || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback()
}
