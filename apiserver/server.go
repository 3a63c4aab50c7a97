package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/version"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/policy"
	"coracle.dev/coracle/apiserver/admission/webhook"
	"coracle.dev/coracle/apiserver/allocate"
	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/discovery"
	"coracle.dev/coracle/apiserver/fairness"
	"coracle.dev/coracle/apiserver/list"
	"coracle.dev/coracle/apiserver/managed"
	"coracle.dev/coracle/apiserver/metrics"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Config is everything that a Server is made of. Store, Registry and Log are needed.
type Config struct {
	Store    store.Store
	Registry *api.Registry
	// Now is the clock, time.Now if nil.
	Now func() time.Time
	Log *slog.Logger

	// ClientCA signs the client certificates that are accepted; nil accepts none.
	ClientCA *x509.CertPool
	// ServiceAccountKey signs and verifies the tokens of service accounts (P-256); nil issues none.
	ServiceAccountKey *ecdsa.PrivateKey
	// Issuer is the iss claim, "https://kubernetes.default.svc.cluster.local" if empty.
	Issuer string
	// Audiences are those of the API server, the issuer if empty.
	Audiences []string
	// Verifiers find the users of bearer tokens that are neither those of service accounts nor bootstrap tokens (OIDC).
	Verifiers []authn.Verifier
	// Anonymous says at which paths requests without credentials are let in, as system:anonymous. Nil: where the server tells of its
	// health and version. What they may do there is for the authorizer to say.
	Anonymous func(path string) bool
	// Authorizer is asked beside system:masters and the Node authorizer; nil is RBAC from the store.
	Authorizer authz.Authorizer
	// Authorization makes what is asked after system:masters out of the Node authorizer and Authorizer; nil asks these two. What it makes
	// may have the method Rules of authz.RBAC.
	Authorization func(node, rbac authz.Authorizer) (authz.Authorizer, error)
	// Reviewer judges bearer tokens that nobody else knows; nil for nobody.
	Reviewer authn.Reviewer
	// Admission plug-ins run after the built-in ones, then admission policies, then webhooks, then admission.Last.
	Admission []admission.Plugin

	// ServiceCIDRs are the ranges of cluster IPs, one for each family, the preferred first.
	ServiceCIDRs []netip.Prefix
	// NodePorts is the range of node ports, both ends included; 30000-32767 if zero.
	NodePorts [2]int

	// Nodes gives the kubelet API of a node, for logs, exec, attach, port-forward and proxy.
	Nodes func(node string) (http.Handler, error)
	// Backends are what webhooks and the like are reached through; nil makes one of Dial.
	Backends *backend.Pool
	// Dial reaches pods and services for their proxies; a plain net.Dialer if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Version is what /version says.
	Version version.Info
	// OpenAPIV2 and OpenAPIV3 answer /openapi/v2 and /openapi/v3...; nil is 404.
	OpenAPIV2, OpenAPIV3 http.Handler
	// Checks are the named parts of /healthz, /livez and /readyz.
	Checks []Check
	// GroupPriority orders the groups in discovery, the greatest first, and VersionPriority the versions of each; equal
	// ones are ordered by name.
	GroupPriority   func(group string) int32
	VersionPriority func(group, version string) int32
	// StorageVersion names the version in which a kind is stored, "" for its hub version; nil is that for all.
	StorageVersion func(*api.Kind) string

	// Foreign are API groups that others in this program answer for.
	Foreign []Foreign

	// Delegate gives who answers for a group version in place of this server (an aggregated API), nil if nobody does. The
	// request's context holds the user (client.UserFrom). It is asked for each request for objects, and must be cheap.
	Delegate func(group, version string) http.Handler
	// Aggregated is what the APIServices add to discovery, for the group versions of Delegate; nil for nothing.
	Aggregated func() *discovery.Aggregated

	// MaxReads and MaxWrites together are the seats for requests in flight, which priority levels share; 400 and 200 if
	// zero, as upstream. Requests of exempt levels (system:masters) and long-running ones do not count.
	MaxReads, MaxWrites int
	// InflightBytes bounds the memory that requests in flight may need for bodies and lists, by estimate; beyond it clients
	// get 429. 256 MiB if zero.
	InflightBytes int64
	// Audit records requests; nil records none.
	Audit *audit.Recorder
	// Stale tells that an entry is stored in a form that writing it again would change; see write.Chain.
	Stale func(*store.Entry) bool
	// Collect write what else /metrics shows, in the text format of Prometheus.
	Collect []func(io.Writer)
	// Warn records a warning about an object as an event, and does not wait for that; nil records none.
	Warn func(about corev1.ObjectReference, reason, message string)
	// EncodingBytes bounds what is kept of encoded objects for further readers, 32 MiB if zero.
	EncodingBytes int
}

// Foreign is an API group that is not stored: discovery shows its kinds, and requests for its resources go to the
// handler once they are authenticated and authorized.
type Foreign struct {
	Group   string
	Kinds   []*api.Kind
	Handler http.Handler
}

// Check is one named part of the server's health.
type Check struct {
	Name string
	// Live checks count for /livez too, not only for /readyz and /healthz.
	Live bool
	// Err says what is wrong, nil if nothing is. It is quick.
	Err func() error
}

// Server is the API server. It is safe for concurrent use and has no goroutine of its own.
type Server struct {
	cfg       Config
	chain     *write.Chain
	policies  *policy.Policies
	webhooks  *webhook.Webhooks
	lister    *list.Lister
	authn     *authn.Authenticator
	tokens    *authn.Tokens
	authz     authz.Authorizer
	rules     authz.Authorizer // lists what users may do, if it can
	discovery *discovery.Handler
	openAPI   http.Handler

	gate     *fairness.Gate
	requests metrics.Requests

	stop     chan struct{}
	stopOnce sync.Once
	cache    *wire.Cache
	views    sync.Map // canonical resource and version -> *wire.View
}

// New makes a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Registry == nil || cfg.Log == nil {
		return nil, errors.New("apiserver: Config needs Store, Registry and Log")
	}
	cfg.setDefaults()
	s := &Server{
		cfg:    cfg,
		lister: &list.Lister{Store: cfg.Store, Now: cfg.Now},
		authn:  &authn.Authenticator{ClientCA: cfg.ClientCA, Others: cfg.Verifiers, Reviewer: cfg.Reviewer, Audiences: cfg.Audiences, Now: cfg.Now},
		discovery: &discovery.Handler{Registry: cfg.Registry, Priority: cfg.GroupPriority, VersionPriority: cfg.VersionPriority,
			StorageVersion: cfg.StorageVersion, Aggregated: cfg.Aggregated},
		gate: fairness.New(fairness.Config{Seats: cfg.MaxReads + cfg.MaxWrites, Bytes: cfg.InflightBytes, Now: cfg.Now},
			append(flowcontrol.MandatorySchemas(), flowcontrol.SuggestedSchemas()...),
			append(flowcontrol.MandatoryLevels(), flowcontrol.SuggestedLevels()...)),
		stop:  make(chan struct{}),
		cache: &wire.Cache{Budget: cfg.EncodingBytes},
	}
	if err := s.authorize(); err != nil {
		return nil, err
	}
	if cfg.ServiceAccountKey != nil {
		s.tokens = &authn.Tokens{
			Key: cfg.ServiceAccountKey, Issuer: cfg.Issuer, Audiences: cfg.Audiences,
			Snapshot: cfg.Store.Snapshot, Now: cfg.Now, Used: s.labelUsed,
		}
		s.authn.Tokens = s.tokens
	}
	if cfg.Registry.ByName(client.Secrets.Name) != nil {
		s.authn.Bootstrap = &authn.Bootstrap{Snapshot: cfg.Store.Snapshot, Now: cfg.Now}
	}
	for _, f := range cfg.Foreign {
		s.discovery.Foreign = append(s.discovery.Foreign, f.Kinds...)
	}
	rbac, ok := cfg.Authorizer.(*authz.RBAC)
	if !ok {
		rbac = &authz.RBAC{Store: cfg.Store}
	}
	rights := &escalation{authorizer: s.authz, rbac: rbac}
	s.chain = &write.Chain{
		Store: cfg.Store, Registry: cfg.Registry, Now: cfg.Now, Log: cfg.Log, Fields: managed.New(), Stale: cfg.Stale,
	}
	s.policies = policy.New(policy.Config{Registry: cfg.Registry, Authorizer: s.authz, Types: s.chain.Fields.Types})
	s.webhooks = s.newWebhooks()
	s.chain.Admission = s.plugins(rights)
	numbers, err := allocate.New(cfg.Store, cfg.ServiceCIDRs, cfg.NodePorts)
	if err != nil {
		return nil, fmt.Errorf("apiserver: %w", err)
	}
	s.chain.Allocate = numbers.Allocate
	cfg.Registry.OnRemove(s.forget)
	return s, nil
}

// authorize sets what decides on requests.
func (s *Server) authorize() error {
	node := &authz.Node{Store: s.cfg.Store}
	s.authz, s.rules = authz.Any{authz.Masters, node, s.cfg.Authorizer}, s.cfg.Authorizer
	if s.cfg.Authorization == nil {
		return nil
	}
	asked, err := s.cfg.Authorization(node, s.cfg.Authorizer)
	s.authz, s.rules = authz.Any{authz.Masters, asked}, asked
	return err
}

func (c *Config) setDefaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Issuer == "" {
		c.Issuer = "https://kubernetes.default.svc.cluster.local"
	}
	if len(c.Audiences) == 0 {
		c.Audiences = []string{c.Issuer}
	}
	if c.NodePorts == [2]int{} {
		c.NodePorts = [2]int{30000, 32767}
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	if c.Backends == nil {
		c.Backends = &backend.Pool{Snapshot: c.Store.Snapshot, Dial: c.Dial}
	}
	if c.InflightBytes == 0 {
		c.InflightBytes = 256 << 20
	}
	if c.MaxReads == 0 {
		c.MaxReads = 400
	}
	if c.MaxWrites == 0 {
		c.MaxWrites = 200
	}
	if c.Anonymous == nil {
		c.Anonymous = publicPath
	}
	if c.Authorizer == nil {
		c.Authorizer = &authz.RBAC{Store: c.Store}
	}
}

// Handler is the API over HTTP. The caller listens, does TLS (asking for client certificates
// without verifying them: tls.RequestClientCert) and offers HTTP/2.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// Writer is the chain for the parts of this program. The acting user is that of the
// context (client.WithUser), else the server itself; what it may do is not asked.
func (s *Server) Writer() client.Writer { return (*writer)(s) }

// Close ends all watches and other long-running requests. Requests that come after it are
// answered still; the caller closes its listener.
func (s *Server) Close() { s.stopOnce.Do(func() { close(s.stop) }) }

// Fairness is what shares the server among its clients. Its objects are the suggested ones until Update.
func (s *Server) Fairness() *fairness.Gate { return s.gate }

// forget lets go of what was made for kinds that are no longer served.
func (s *Server) forget() {
	s.views.Range(func(id, view any) bool {
		if !s.cfg.Registry.Serves(view.(*wire.View).Kind) {
			s.views.CompareAndDelete(id, view)
		}
		return true
	})
	s.chain.Fields.Forget(s.cfg.Registry.Serves)
}

// view returns the view of a kind in a version.
func (s *Server) view(k *api.Kind, v *api.Version) *wire.View {
	id := viewID{k.Group, k.Resource, v.Name}
	if have, ok := s.views.Load(id); ok {
		if view := have.(*wire.View); view.Version == v {
			return view
		}
	}
	view := wire.NewView(k, v, s.cache)
	s.views.Store(id, view)
	return view
}

// viewID names a view: a kind that takes the place of another (a definition that was changed) takes its view too.
type viewID struct{ group, resource, version string }

// foreign returns who answers for a group version, nil if the server itself does. An APIService goes before everything else.
func (s *Server) foreign(group, version string) http.Handler {
	if s.cfg.Delegate != nil {
		if h := s.cfg.Delegate(group, version); h != nil {
			return h
		}
	}
	for i := range s.cfg.Foreign {
		if s.cfg.Foreign[i].Group == group {
			return s.cfg.Foreign[i].Handler
		}
	}
	return nil
}
