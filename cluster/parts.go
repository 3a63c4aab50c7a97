package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/apiserver/openapi"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/client/encrypt"
	"coracle.dev/coracle/internal/version"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/node/kubelet"
	"coracle.dev/coracle/node/simulated"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/scheduler"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/pebble"
)

// parts lists everything in the order of its start. What a line needs stands above it.
func (c *Cluster) parts() []part {
	if c.memory != nil {
		return c.memoryParts()
	}
	if c.cfg.Join != nil {
		return c.agentParts()
	}
	parts := []part{
		{name: "state", start: c.startState},
		{name: "store", start: c.startStore},
		{name: "api", start: c.startAPI},
		{name: "controllers", start: c.startControllers, problem: func() error { return c.engine.Healthy() }},
		{name: "aggregation", start: c.startAggregation},
		{name: "scheduler", start: c.startScheduler},
	}
	if c.cfg.Nodes.Simulated > 0 {
		parts = append(parts, part{name: "simulated", start: c.startSimulated})
	}
	if c.cfg.Nodes.Real {
		parts = append(parts,
			part{name: "containers", start: c.startRuntime, problem: c.runtimeProblem},
			part{name: "network", start: c.startNetwork},
			part{name: "policy", start: c.startPolicy},
			part{name: "dns", start: c.startDNS},
			part{name: "node", start: c.startNode, problem: c.nodeProblem})
	}
	return append(parts,
		part{name: "kubeconfig", start: c.writeKubeconfig},
		part{name: "control", start: func(context.Context) (func(context.Context) error, string, error) {
			stop, err := c.serveControl()
			return func(context.Context) error { stop(); return nil }, "", err
		}})
}

func (c *Cluster) startState(context.Context) (func(context.Context) error, string, error) {
	if c.cfg.Nodes.Real && os.Getuid() != 0 {
		return nil, "", errors.New("running containers needs root: run it with sudo, or choose --nodes=simulated for an API whose pods are only reported as running")
	}
	s, err := openState(c.cfg.DataDir, c.chooseRanges)
	if err != nil {
		return nil, "", err
	}
	c.state = s
	stop := func(context.Context) error { s.close(); return nil }
	if c.keys, err = loadPKI(s.path("pki"), time.Now()); err != nil {
		s.close()
		return nil, "", err
	}
	return stop, c.cfg.DataDir, nil
}

// chooseRanges chooses the ranges of a new instance and reserves them, with or without a real node: it may get one later.
// Without root it can have none.
func (c *Cluster) chooseRanges() (pods, services []netip.Prefix, err error) {
	unlock, err := lockMachine()
	if err != nil {
		return pods, services, err
	}
	defer unlock()
	if c.cfg.PodCIDR != "" {
		id := identity{PodCIDR: c.cfg.PodCIDR, ServiceCIDR: c.cfg.ServiceCIDR}
		pods, services = id.podRanges(), id.serviceRanges()
	} else {
		routed, err := link.Routed()
		if err != nil {
			return pods, services, err
		}
		others, err := reserved(c.cfg.DataDir)
		if err != nil {
			return pods, services, err
		}
		p, s, err := freeRanges(append(routed, others...))
		if err != nil {
			return nil, nil, err
		}
		pods, services = []netip.Prefix{p}, []netip.Prefix{s}
	}
	if os.Getuid() == 0 {
		err = reserve(c.cfg.DataDir, pods, services)
	}
	return pods, services, err
}

// podRange and serviceRange are the ranges of the preferred family.
func (c *Cluster) podRange() netip.Prefix     { return c.podRanges()[0] }
func (c *Cluster) serviceRange() netip.Prefix { return c.serviceRanges()[0] }

// dnsIndex is the place of the cluster's DNS in the service range, by custom.
const dnsIndex = 10

// serviceIP is the n-th address of the service range: 1 is the API, dnsIndex the DNS.
func (c *Cluster) serviceIP(n int) netip.Addr { return nth(c.serviceRange(), n) }

// nth is the n-th address behind a range's first.
func nth(r netip.Prefix, n int) netip.Addr {
	ip := r.Addr()
	for range n {
		ip = ip.Next()
	}
	return ip
}

func (c *Cluster) startStore(context.Context) (func(context.Context) error, string, error) {
	c.registry = api.NewRegistry(builtin.Kinds()...)
	opts := client.StoreOptions(c.registry, 0)
	var err error
	if c.encryption, err = c.loadEncryption(opts.Codec); err != nil {
		return nil, "", err
	}
	opts.Codec = c.encryption.codec
	s, err := pebble.Open(c.state.path("store"), opts, c.log)
	if err != nil {
		c.encryption.close()
		return nil, "", c.explainStore(err)
	}
	c.store = s
	stopReloading := func(context.Context) error { return nil }
	if c.cfg.EncryptionConfig != "" {
		c.encryption.opened(func() store.Revision { return s.Snapshot().Revision() })
		c.stale = c.encryption.stale
	}
	if c.encryption.sub != nil {
		stopReloading = c.run("encryption", c.reloadEncryption)
	}
	stopForgetting := c.run("compaction", c.forgetHistory)
	stop := func(ctx context.Context) error {
		defer c.encryption.close()
		return errors.Join(stopForgetting(ctx), stopReloading(ctx), s.Close())
	}
	return stop, fmt.Sprintf("revision %d", s.Snapshot().Revision()), nil
}

// historyLife is how long past versions are kept for watches that come back, at least; as upstream's
// --etcd-compaction-interval.
const historyLife = 5 * time.Minute

// forgetHistory lets go of past versions by age, so that a cluster that was busy returns to the memory of one at rest. Age
// is a matter of the clock: this is one wake-up in five minutes.
func (c *Cluster) forgetHistory(ctx context.Context) error {
	timer := time.NewTimer(historyLife)
	defer timer.Stop()
	seen := c.store.Snapshot().Revision()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		if err := c.store.Compact(seen); err != nil && !errors.Is(err, store.ErrCompacted) {
			c.log.Warn("history is kept longer than it should be", "error", err)
		}
		seen = c.store.Snapshot().Revision()
		timer.Reset(historyLife)
	}
}

// explainStore adds what to do to the errors that a user can do something about.
func (c *Cluster) explainStore(err error) error {
	switch {
	case errors.Is(err, encrypt.ErrKey):
		return err // it says what to do, and nothing is damaged
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("%w: stop it with `coracle down --data-dir %s`, or choose another --data-dir", err, c.cfg.DataDir)
	case errors.Is(err, store.ErrNewer):
		return fmt.Errorf("%w: use that program, or choose another --data-dir", err)
	case errors.Is(err, store.ErrDamaged):
		return fmt.Errorf("%w: restore %s from a backup, or run `coracle reset --data-dir %s`", err, c.state.path("store"), c.cfg.DataDir)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: free some space on the file system of %s", err, c.cfg.DataDir)
	}
	return err
}

// localClient is the client of everything in this process: reads go to the store, writes
// through the chain of the API server, and neither crosses a socket.
type localClient struct {
	client.Reader
	localWriter
}

// localWriter is what the API server's Writer can do.
type localWriter interface {
	client.Writer
	client.Batcher
}

// nodeAPI holds the kubelet API of the real node and of the simulated ones once they run.
type nodeAPI struct {
	kubelet   atomic.Pointer[kubelet.Server]
	simulated atomic.Pointer[simulated.Agent]
	far       farNodes
}

func (c *Cluster) nodes(name string) (http.Handler, error) {
	if api := c.node.kubelet.Load(); api != nil && name == c.cfg.NodeName {
		return api, nil
	}
	if agent := c.node.simulated.Load(); agent != nil {
		if api := agent.Handler(name); api != nil {
			return api, nil
		}
	}
	return c.farNode(name)
}

// makeAPI makes the API server and who reads and writes through it: clients within the process and the engine of the loops.
// The recorder is nil if nothing is recorded. It starts nothing.
func (c *Cluster) makeAPI() (*audit.Recorder, error) {
	clientCA := x509.NewCertPool()
	clientCA.AddCert(c.keys.caCert)
	backends := &backend.Pool{Snapshot: c.store.Snapshot, Dial: (&net.Dialer{Timeout: 30 * time.Second}).DialContext}
	if c.memory != nil {
		backends.Inside = c.memory.Backend
	}
	c.backends = backends
	c.custom = &custom.Registrar{Store: c.store, Registry: c.registry, Backends: backends, Log: c.log}
	c.custom.Load()
	if c.memory != nil {
		if err := c.restore(false); err != nil {
			return nil, err
		}
	}
	c.aggregator = c.newAggregator(backends)
	documents := &openapi.Publisher{Snapshot: c.store.Snapshot, Served: c.served, Remote: c.aggregator.Documents}
	c.documents = documents
	admits, err := c.access()
	if err != nil {
		return nil, err
	}
	recorder, err := c.openAudit()
	if err != nil {
		return nil, err
	}
	c.metrics = c.newMetrics()
	c.server, err = apiserver.New(apiserver.Config{
		Store: c.store, Registry: c.registry, Log: c.log, Audit: recorder, Stale: c.stale, Now: c.now,
		Collect:  append(admits.collect, func(w io.Writer) { c.engine.WriteMetrics(w) }, c.writeDenied),
		ClientCA: clientCA, ServiceAccountKey: c.keys.serviceAccounts, Issuer: c.issuer(),
		Verifiers: admits.verifiers, Anonymous: admits.anonymous, Reviewer: admits.reviewer, Authorization: admits.authorization,
		ServiceCIDRs: c.serviceRanges(), Warn: c.warn,
		Nodes: c.nodes, Version: version.Info(),
		Backends:      backends,
		Admission:     []admission.Plugin{custom.Plugin(c.store)},
		OpenAPIV2:     documents.V2(),
		OpenAPIV3:     documents.V3(),
		Checks:        append(c.encryptionChecks(), apiserver.Check{Name: "controllers", Err: func() error { return c.engine.Healthy() }}),
		Foreign:       []apiserver.Foreign{c.foreignMetrics()},
		GroupPriority: groupPriority, VersionPriority: versionPriority, StorageVersion: c.storageVersion,
		Delegate: c.aggregator.Delegate, Aggregated: c.aggregator.Discovery,
	})
	if err != nil {
		return nil, err
	}
	c.followed = admits.follow
	c.client = localClient{c.store, c.server.Writer().(localWriter)}
	c.engine = reconcile.NewEngine(c.client, c.log, c.now)
	return recorder, nil
}

func (c *Cluster) startAPI(context.Context) (func(context.Context) error, string, error) {
	recorder, err := c.makeAPI()
	if err != nil {
		return nil, "", err
	}
	host, err := c.host()
	if err != nil {
		return nil, "", err
	}
	stopFollowing, err := c.followAll(c.followed)
	if err != nil {
		return nil, "", err
	}
	listeners, err := c.listen()
	if err != nil {
		_ = stopFollowing(context.Background())
		return nil, "", err
	}
	certificate, err := c.serving(host)
	if err != nil {
		closeAll(listeners)
		_ = stopFollowing(context.Background())
		return nil, "", err
	}
	stopServing := c.serve(certificate, listeners...)
	c.url = "https://" + net.JoinHostPort(c.reachable(), strconv.Itoa(c.cfg.Port))
	stopCustom := c.run("custom resources", c.custom.Run)
	stop := func(ctx context.Context) error {
		defer stopCustom(ctx) //nolint:errcheck // it only follows the store
		c.server.Close()
		err := errors.Join(stopFollowing(ctx), stopServing(ctx))
		if recorder != nil {
			err = errors.Join(err, recorder.Close(ctx))
		}
		return err
	}
	return stop, c.url, nil
}

// serve answers the API at listeners, until it is stopped.
func (c *Cluster) serve(certificate tls.Certificate, listeners ...net.Listener) (stop func(context.Context) error) {
	web := &http.Server{
		Handler:           c.server.Handler(),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       3 * time.Minute,
		ErrorLog:          log.New(quiet{c}, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12,
			ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}},
	}
	for _, l := range listeners {
		go func() {
			if err := web.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
				c.fail(fmt.Errorf("api: %w", err))
			}
		}()
	}
	return func(ctx context.Context) error {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := web.Shutdown(bounded)
		if err != nil {
			err = web.Close()
		}
		return err
	}
}

// served tells whether a resource is one of those that the API server answers for.
func (c *Cluster) served(gvr schema.GroupVersionResource) bool {
	k := c.registry.ByResource(gvr)
	return custom.Is(k) && !k.Version(gvr.Version).NotServed // a definition of what is built in adds nothing
}

func (c *Cluster) issuer() string { return "https://kubernetes.default.svc." + c.cfg.Domain }

// reachable is the address at which this machine reaches the API.
func (c *Cluster) reachable() string {
	if ip, err := netip.ParseAddr(c.cfg.Bind); err == nil && !ip.IsUnspecified() {
		return c.cfg.Bind
	}
	return "127.0.0.1"
}

// listen opens the API's port at the address that was asked for and on loopback.
func (c *Cluster) listen() ([]net.Listener, error) {
	addresses := []string{c.cfg.Bind}
	if ip, err := netip.ParseAddr(c.cfg.Bind); err == nil && !ip.IsUnspecified() && !ip.IsLoopback() {
		addresses = append(addresses, "127.0.0.1")
	}
	var listeners []net.Listener
	for _, a := range addresses {
		l, err := net.Listen("tcp", net.JoinHostPort(a, strconv.Itoa(c.cfg.Port)))
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			err = fmt.Errorf("port %d is in use by another program: choose another with --port", c.cfg.Port)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			err = fmt.Errorf("%s is not an address of this machine: choose another with --bind", a)
		case errors.Is(err, syscall.EACCES):
			err = fmt.Errorf("port %d needs root: choose one above 1023 with --port", c.cfg.Port)
		}
		if err != nil {
			closeAll(listeners)
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// serving is the certificate of the API server, for every name by which it is reached.
func (c *Cluster) serving(host netip.Addr) (tls.Certificate, error) {
	hosts := []string{"localhost", "127.0.0.1", "::1", host.String(), c.serviceIP(1).String(),
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.cfg.Domain}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if c.cfg.Bind != "" {
		hosts = append(hosts, c.cfg.Bind)
	}
	cert, key, err := c.keys.issue(leaf{name: "apiserver", cn: "kube-apiserver", hosts: hosts, server: true}, time.Now())
	if err != nil {
		return tls.Certificate{}, err
	}
	// The authority is shown too: who joins knows only its hash.
	return tls.X509KeyPair(append(bytes.Clone(cert), c.keys.caPEM...), key)
}

// quiet takes the HTTP server's own complaints, which are about clients, at a low level.
type quiet struct{ c *Cluster }

// Write implements io.Writer.
func (q quiet) Write(p []byte) (int, error) {
	q.c.log.Debug("http", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (c *Cluster) startScheduler(context.Context) (func(context.Context) error, string, error) {
	user := client.User{Name: "system:kube-scheduler", Groups: []string{client.GroupAuthenticated}}
	profiles, err := c.schedulerConfig()
	if err != nil {
		return nil, "", err
	}
	s := scheduler.New(scheduler.Config{Client: c.client, Log: c.log, Now: c.now, Configuration: profiles,
		RecordAs: func(profile string, ev reconcile.Event) {
			c.engine.Recorder().Record(user, corev1.EventSource{Component: profile}, ev)
		}})
	return c.run("scheduler", s.Run), "", nil
}

// schedulerConfig reads the scheduler's configuration, nil if there is none.
func (c *Cluster) schedulerConfig() (*scheduler.Configuration, error) {
	if c.cfg.SchedulerConfig == "" {
		return nil, nil
	}
	data, err := os.ReadFile(c.cfg.SchedulerConfig)
	if err != nil {
		return nil, fmt.Errorf("scheduler-config: %w", err)
	}
	profiles, err := scheduler.ParseConfiguration(data)
	if err != nil {
		return nil, fmt.Errorf("scheduler-config %s: %w", c.cfg.SchedulerConfig, err)
	}
	return profiles, nil
}

// tokens issues service account tokens to the volumes of pods.
func (c *Cluster) tokens() *authn.Tokens {
	return &authn.Tokens{Key: c.keys.serviceAccounts, Issuer: c.issuer(), Audiences: []string{c.issuer()},
		Snapshot: c.store.Snapshot, Now: c.now}
}

// writeKubeconfig makes the admin's kubeconfig in the data directory and merges its context into the user's.
func (c *Cluster) writeKubeconfig(context.Context) (func(context.Context) error, string, error) {
	cert, key, err := c.keys.issue(leaf{name: "admin", cn: "kubernetes-admin", orgs: []string{client.GroupMasters}}, time.Now())
	if err != nil {
		return nil, "", err
	}
	c.context = contextName(c.cfg.DataDir, c.state.identity.ID)
	config := adminConfig(c.context, c.url, c.keys.caPEM, cert, key)
	data, err := clientcmd.Write(*config)
	if err != nil {
		return nil, "", err
	}
	if err := writeFile(c.state.path("admin.kubeconfig"), data, 0o600); err != nil {
		return nil, "", err
	}
	path := c.cfg.Kubeconfig
	if path == "none" {
		return nil, c.state.path("admin.kubeconfig"), nil
	}
	if path == "" {
		if path, err = KubeconfigPath(); err != nil {
			return nil, "", err
		}
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, "", err
	}
	if err := mergeKubeconfig(path, config); err != nil {
		return nil, "", err
	}
	// reset takes the context out of the file that it was put into.
	return nil, path, writeFile(c.state.path("kubeconfig.path"), []byte(path+"\n"), 0o644)
}

// contextName is "coracle" for the default data directory and has the instance's ID behind it for others.
func contextName(dataDir, id string) string {
	if dataDir == DefaultDataDir {
		return "coracle"
	}
	return "coracle-" + id
}
