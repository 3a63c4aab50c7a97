package clustertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/node/simulated"
)

// Time limits of a start, of an end, and of Eventually. In a bubble they are of its time.
const (
	startTimeout      = time.Minute
	closeTimeout      = time.Minute
	eventuallyTimeout = time.Minute
)

// Cluster is a running cluster. Its methods are safe for concurrent use.
type Cluster struct {
	inner     *cluster.Cluster
	transport *transport
	handlers  map[string]*transport // of webhooks, by host name
	tokens    *tokens
	config    *rest.Config
	typed     kubernetes.Interface
	dynamic   dynamic.Interface
	names     []string // of controllers, in the order in which they were offered

	url string
	ca  []byte

	closing sync.Once
	closed  error
}

// Start makes a cluster that is closed when the test and all its subtests have ended. When it returns, the cluster is ready:
// everything that was to be installed is there, and all nodes are Ready. If that fails, the test fails.
func Start(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	logs := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c, err := New(ctx, append([]Option{Log(logs)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// testLog is the log of a test.
type testLog struct{ t testing.TB }

// Write implements io.Writer.
func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("cluster: %s", p)
	return len(p), nil
}

// New is Start for programs that are no tests. ctx bounds the start; the caller closes the cluster.
func New(ctx context.Context, opts ...Option) (_ *Cluster, err error) {
	o := &options{nodes: 1, log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(o)
	}
	if o.err != nil {
		return nil, o.err
	}
	memory, err := o.memory()
	if err != nil {
		return nil, err
	}
	c := &Cluster{tokens: &tokens{users: map[string]client.User{}}}
	memory.Users = c.tokens
	memory.Loops = func(name string) bool {
		c.names = append(c.names, name)
		return o.runs(name)
	}
	handlers := o.transports()
	memory.Backend = func(u *url.URL) http.RoundTripper {
		if t := handlers[u.Hostname()]; t != nil {
			return t
		}
		return nil
	}
	c.handlers = handlers
	c.inner, err = cluster.Start(ctx, cluster.Config{}, cluster.Options{Log: o.log, Memory: memory})
	if err != nil {
		return nil, fmt.Errorf("clustertest: start: %w", err)
	}
	c.transport = newTransport(c.inner.Handler())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("clustertest: start: %w", err), c.Close())
		}
	}()
	c.config = c.ConfigFor("kubernetes-admin", client.GroupMasters)
	if c.typed, err = kubernetes.NewForConfig(protobuf(c.config)); err != nil {
		return nil, err
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		return nil, err
	}
	if o.listen != "" {
		if err := c.listen(o.listen); err != nil {
			return nil, err
		}
	}
	if err := c.install(ctx, o); err != nil {
		return nil, err
	}
	return c, c.awaitNodes(ctx, o.nodes)
}

// memory is the part of the options that a cluster is told.
func (o *options) memory() (*cluster.Memory, error) {
	m := &cluster.Memory{Now: o.now, NoScheduler: o.noScheduler, Nodes: simulated.Config{
		Count: o.nodes, Prefix: nodePrefix, Capacity: o.capacity, Labels: o.labels, LeaseEvery: o.leaseEvery}}
	var err error
	if o.snapshot != nil {
		m.Objects, err = readSnapshot(o.snapshot)
	}
	return m, err
}

// transports lead to the handlers of the options.
func (o *options) transports() map[string]*transport {
	all := make(map[string]*transport, len(o.handlers))
	for host, h := range o.handlers {
		all[host] = newTransport(h)
	}
	return all
}

// nodePrefix is how the names of simulated nodes begin.
const nodePrefix = "node-"

// awaitNodes waits until every simulated node is Ready and has lost the taint of one that is not, and all controllers have done
// what there is to do.
func (c *Cluster) awaitNodes(ctx context.Context, count int) error {
	err := c.until(ctx, func() error {
		snap := c.inner.Client().Snapshot()
		for i := range count {
			n, ok := client.Nodes.Get(snap, "", fmt.Sprintf("%s%d", nodePrefix, i))
			if !ok {
				return fmt.Errorf("node %d has not registered", i)
			}
			if len(n.Status.Conditions) == 0 {
				return fmt.Errorf("node %d is not ready", i)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = c.inner.Engine().Settle(ctx)
	return err
}

// Close ends the cluster and every goroutine of it. Watches end; requests that come later get ErrClosed.
func (c *Cluster) Close() error {
	c.closing.Do(func() {
		c.inner.EndWatches() // their clients see an end, and no failure
		c.transport.close()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		c.closed = c.inner.Stop(ctx, cluster.StopOptions{Now: true})
		for _, t := range c.handlers {
			t.close()
		}
	})
	return c.closed
}

// Config is how clients reach the cluster as its administrator (system:masters): without a socket, and without a limit on
// requests in a second. It is the caller's to change.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// ConfigFor is Config for another user, who may do what the objects in the cluster allow. The group
// system:authenticated goes without saying.
func (c *Cluster) ConfigFor(user string, groups ...string) *rest.Config {
	return &rest.Config{Host: "http://cluster", Transport: c.transport, BearerToken: c.tokens.add(user, groups), QPS: -1}
}

// Client is a typed client of the administrator's, which speaks protobuf.
func (c *Cluster) Client() kubernetes.Interface { return c.typed }

// Dynamic is a client for objects of every kind.
func (c *Cluster) Dynamic() dynamic.Interface { return c.dynamic }

// protobuf is a config for clients of built-in types.
func protobuf(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	return config
}

// Controllers are the names that the option of that name knows.
func (c *Cluster) Controllers() []string { return append([]string{}, c.names...) }

// listen serves the API at a port.
func (c *Cluster) listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	if c.ca, err = c.inner.Serve(l); err != nil {
		l.Close()
		return err
	}
	c.url = "https://" + l.Addr().String()
	return nil
}

// URL is where the API is reached from outside, "" without the option Listen.
func (c *Cluster) URL() string { return c.url }

// Kubeconfig is a kubeconfig file for URL, as the administrator; nil without the option Listen.
func (c *Cluster) Kubeconfig() []byte {
	if c.url == "" {
		return nil
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["clustertest"] = &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: c.ca}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: c.config.BearerToken}
	config.Contexts["clustertest"] = &clientcmdapi.Context{Cluster: "clustertest", AuthInfo: "admin"}
	config.CurrentContext = "clustertest"
	data, err := clientcmd.Write(*config)
	if err != nil {
		panic(err) // of what stands above
	}
	return data
}

// tokens are the users that ConfigFor made.
type tokens struct {
	mu    sync.Mutex // guards users
	users map[string]client.User
}

func (k *tokens) add(name string, groups []string) string {
	token := rand.Text()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users[token] = client.User{Name: name, Groups: append([]string{}, groups...)}
	return token
}

// Verify implements authn.Verifier.
func (k *tokens) Verify(_ context.Context, token string) (client.User, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.users[token]
	return u, ok, nil
}

// Settle returns when no controller has anything to do but wait for the clock. Scheduler and nodes do not count: use
// Eventually for what they do, or synctest.Wait in a bubble.
func (c *Cluster) Settle(ctx context.Context) error {
	_, err := c.inner.Engine().Settle(ctx)
	return err
}

// Eventually calls f, and again whenever anything in the cluster has changed, until it returns nil. After a minute the
// test fails with the last error.
func (c *Cluster) Eventually(t testing.TB, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventuallyTimeout)
	defer cancel()
	if err := c.until(ctx, f); err != nil {
		t.Fatal(err)
	}
}

// until calls f after each change until it returns nil; when ctx ends it returns what f returned the last time.
func (c *Cluster) until(ctx context.Context, f func() error) error {
	reader := c.inner.Client()
	cursor, err := reader.Cursor(reader.Snapshot().Revision())
	if err != nil {
		return err
	}
	for {
		failure := f()
		if failure == nil {
			return nil
		}
		if _, err := cursor.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return failure
			}
			if cursor, err = reader.Cursor(reader.Snapshot().Revision()); err != nil { // it fell behind, or the store is closed
				return err
			}
		}
	}
}
