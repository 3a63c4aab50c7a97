package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/client/remote"
	"coracle.dev/coracle/controllers/nodejoin"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/volume"
)

// Join says which control plane elsewhere this machine is a node of. The zero value: none.
type Join struct {
	// Server is the URL of its API. Empty: the one that was joined before.
	Server string
	// Token is a bootstrap token. Needed where no certificate is kept that is good.
	Token string
	// CAHash pins the control plane's authority: "sha256:" and the hexadecimal hash of its public key, as kubeadm has it.
	CAHash string
	// APIPort is where this node answers the API server: 10250 if zero.
	APIPort int
}

// DefaultNodePort is where nodes answer the API server, as kubelets do.
const DefaultNodePort = 10250

// TokenGroup is the group of bootstrap tokens with which machines join.
const TokenGroup = nodejoin.TokenGroup

// joinTimeout bounds how long it takes to be let in.
const joinTimeout = 2 * time.Minute

// agent is what a cluster has that is a node of a control plane elsewhere.
type agent struct {
	joined
	client  *remote.Client
	keys    nodeKeys
	serving atomic.Pointer[tls.Certificate]
}

// complete fills in defaults and says what is wrong.
func (j *Join) complete() error {
	if j == nil {
		return nil
	}
	if j.APIPort == 0 {
		j.APIPort = DefaultNodePort
	}
	var errs []error
	if j.Server != "" && !strings.HasPrefix(j.Server, "https://") {
		errs = append(errs, fmt.Errorf("server: %q is not an https:// URL", j.Server))
	}
	j.Server = strings.TrimSuffix(j.Server, "/")
	if _, err := parseCAHash(j.CAHash); j.CAHash != "" && err != nil {
		errs = append(errs, err)
	}
	if j.APIPort < 1 || j.APIPort > 65535 {
		errs = append(errs, fmt.Errorf("node-port: %d is not from 1 to 65535", j.APIPort))
	}
	return errors.Join(errs...)
}

// agentParts are what a node without a control plane consists of, in the order of their start.
func (c *Cluster) agentParts() []part {
	return []part{
		{name: "join", start: c.startJoin},
		{name: "mirror", start: c.startMirror, problem: func() error { return c.agent.client.Problem() }},
		{name: "loops", start: c.startNodeLoops, problem: func() error { return c.engine.Healthy() }},
		{name: "containers", start: c.startRuntime, problem: c.runtimeProblem},
		{name: "network", start: c.startNetwork},
		{name: "policy", start: c.startPolicy},
		{name: "dns", start: c.startDNS},
		{name: "node", start: c.startNode, problem: c.nodeProblem},
		{name: "node api", start: c.startNodeAPI},
		{name: "control", start: func(context.Context) (func(context.Context) error, string, error) {
			stop, err := c.serveControl()
			return func(context.Context) error { stop(); return nil }, "", err
		}},
	}
}

// startJoin opens the data directory and has this machine known to the control plane.
func (c *Cluster) startJoin(ctx context.Context) (func(context.Context) error, string, error) {
	if os.Getuid() != 0 {
		return nil, "", errors.New("running containers needs root: run it with sudo")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c.registry = api.NewRegistry(builtin.Kinds()...)
	c.agent = &agent{}
	s, err := openState(c.cfg.DataDir, func() (pods, services []netip.Prefix, err error) {
		err = c.join(ctx)
		return c.agent.network.Pods, c.agent.network.Services, err
	})
	if err != nil {
		return nil, "", err
	}
	c.state = s
	stop := func(context.Context) error { s.close(); return nil }
	if c.agent.server == "" { // the directory is not new
		if err := c.join(ctx); err != nil {
			s.close()
			return nil, "", err
		}
	}
	c.url = c.agent.server
	return stop, c.url, nil
}

// startMirror connects to the API and waits until what the node needs of it is known.
func (c *Cluster) startMirror(ctx context.Context) (func(context.Context) error, string, error) {
	cfg := mirrorOf(c.cfg.NodeName)
	cfg.Server, cfg.TLS, cfg.Registry, cfg.Log = c.agent.server, c.agent.tlsConfig(c.agent.keys.certificate), c.registry, c.log
	m, err := remote.New(cfg)
	if err != nil {
		return nil, "", err
	}
	c.agent.client, c.client = m, m
	c.engine = reconcile.NewEngine(c.client, c.log, c.now)
	stopMirror, stopRotation := c.run("mirror", m.Run), c.run("client certificate", c.renewClientCertificate)
	stop := func(ctx context.Context) error { return errors.Join(stopRotation(ctx), stopMirror(ctx)) }
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := m.WaitSynced(ctx); err != nil {
		return nil, "", errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return stop, "", nil
}

// startNodeLoops runs the loops of a node: services, ways to other nodes, policies.
func (c *Cluster) startNodeLoops(ctx context.Context) (func(context.Context) error, string, error) {
	stopServices, err := c.addNodeLoops()
	if err != nil {
		return nil, "", err
	}
	stopEngine := c.run("loops", c.engine.Run)
	stop := func(ctx context.Context) error { return errors.Join(stopEngine(ctx), stopServices(ctx)) }
	if _, err := c.engine.Settle(ctx); err != nil {
		return nil, "", errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return stop, "", nil
}

// tlsConfig believes the control plane's authority alone. Whoever has a certificate of it for the name of the
// API is the API server, at whatever address it is reached.
func (a *agent) tlsConfig(own func() *tls.Certificate) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), ServerName: apiServerName}
	cfg.RootCAs.AppendCertsFromPEM(a.ca)
	if own != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := own(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil
		}
	}
	return cfg
}

// apiServerName is a name that the API server's certificate has, and no other of its authority.
const apiServerName = "kubernetes.default.svc"

// agentToken asks for the token of a pod's service account, as the node.
func (c *Cluster) agentToken(ctx context.Context, r volume.TokenRequest) (volume.Token, error) {
	seconds := r.ExpirationSeconds
	ask := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: r.PodName, UID: r.PodUID}}}
	if r.Audience != "" {
		ask.Spec.Audiences = []string{r.Audience}
	}
	ask.ObjectMeta = metav1.ObjectMeta{Namespace: r.Namespace, Name: r.ServiceAccount}
	made, err := c.agent.client.Token(ctx, ask)
	if err != nil {
		return volume.Token{}, err
	}
	return volume.Token{Value: made.Status.Token, Expires: made.Status.ExpirationTimestamp.Time}, nil
}

// tokenSource is who issues tokens to the pods' volumes.
func (c *Cluster) tokenSource() func(context.Context, volume.TokenRequest) (volume.Token, error) {
	if c.agent != nil {
		return c.agentToken
	}
	return c.podToken
}

// nodePort is what the Node object says of where the node's API is. That of the control plane's own node is within its process:
// nothing listens.
func (c *Cluster) nodePort() int32 {
	if c.agent != nil {
		return int32(c.cfg.Join.APIPort)
	}
	return 0
}

// joinableNetwork is what nodes that join are told.
func (c *Cluster) joinableNetwork() nodejoin.Network {
	settings, _ := json.Marshal(c.cfg.Overlay) // plain fields
	return nodejoin.Network{Domain: c.cfg.Domain, Pods: c.podRanges(), Services: c.serviceRanges(), Overlay: string(settings)}
}

// takeNetwork does with the network as the control plane says.
func (c *Cluster) takeNetwork(n nodejoin.Network) error {
	c.agent.network, c.cfg.Domain = n, n.Domain
	if n.Overlay == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(n.Overlay), &c.cfg.Overlay); err != nil {
		return fmt.Errorf("the cluster's overlay settings: %w", err)
	}
	return c.cfg.Overlay.Check()
}

// agentStatus fills in what a node without a control plane knows.
func (c *Cluster) agentStatus(s *Status) {
	s.Nodes = c.cfg.NodeName
	if c.client == nil {
		return
	}
	snap := c.client.Snapshot()
	s.Revision = int64(snap.Revision())
	for _, k := range c.registry.All() {
		if !k.Virtual && k.StoredAs == "" {
			s.Objects += snap.Count(k.Name(), "")
		}
	}
	for p := range client.Pods.Index(snap, "node", c.cfg.NodeName) {
		s.Pods++
		if p.Status.Phase == "Running" {
			s.Running++
		}
	}
}
