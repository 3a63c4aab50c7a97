package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/node/simulated"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// Memory is what a program gives for a cluster that lives in its process alone: the store is in memory, there is no port
// unless Serve opens one, and neither disk nor kernel is asked for anything. It runs the same loops as every cluster. Many
// of them live side by side. All of its goroutines end with Stop, and none waits for anything but the others and the clock,
// so that it can run in a bubble of testing/synctest.
type Memory struct {
	// Now is the clock of everything that is written and decided, time.Now if nil. Timers follow package time.
	Now func() time.Time
	// Users finds the users of bearer tokens beside those of service accounts; may be nil.
	Users authn.Verifier
	// Backend gives who answers in this process for a webhook or an aggregated server, nil for what the network is asked
	// for; see backend.Pool. May be nil.
	Backend func(*url.URL) http.RoundTripper
	// Loops tells which loops of upstream's controller manager run, by name; all if nil.
	Loops func(name string) bool
	// NoScheduler leaves pods where they are.
	NoScheduler bool
	// Nodes are the simulated nodes, as far as a cluster's part (Client, Log, Now) is not concerned. Count 0: none.
	Nodes simulated.Config
	// Objects are in the store when the cluster starts, as Saved gave them.
	Objects []Saved
}

// Saved is one object as a store on disk keeps it, without its revision.
type Saved struct {
	Key  store.Key
	Data []byte
}

// What a cluster in memory is known by. Nothing outside of it reaches these addresses: the host's is of TEST-NET-1.
var (
	memoryHost     = netip.MustParseAddr("192.0.2.1")
	memoryIdentity = identity{ID: "memory", PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16"}
)

// memoryParts is parts for a cluster in memory.
func (c *Cluster) memoryParts() []part {
	parts := []part{
		{name: "store", start: c.startMemory},
		{name: "api", start: c.startMemoryAPI},
		{name: "controllers", start: c.startControllers, problem: func() error { return c.engine.Healthy() }},
		{name: "aggregation", start: c.startAggregation},
	}
	if !c.memory.NoScheduler {
		parts = append(parts, part{name: "scheduler", start: c.startScheduler})
	}
	if c.memory.Nodes.Count > 0 {
		parts = append(parts, part{name: "simulated", start: c.startMemoryNodes})
	}
	return parts
}

// startMemory makes keys and an empty store, and puts the saved definitions of custom resources into it.
func (c *Cluster) startMemory(context.Context) (_ func(context.Context) error, _ string, err error) {
	c.state = &state{identity: memoryIdentity}
	if c.cfg.Domain == "" {
		c.cfg.Domain = DefaultDomain
	}
	if c.cfg.Port == 0 {
		c.cfg.Port = DefaultPort
	}
	if c.keys, err = loadPKI("", c.now()); err != nil {
		return nil, "", err
	}
	c.registry = api.NewRegistry(builtin.Kinds()...)
	opts := client.StoreOptions(c.registry, 0)
	c.codec = opts.Codec
	c.store = memory.New(opts)
	if err := c.restore(true); err != nil {
		return nil, "", err
	}
	stopForgetting := c.run("compaction", c.forgetHistory)
	return func(ctx context.Context) error { return errors.Join(stopForgetting(ctx), c.store.Close()) }, "", nil
}

// restore puts the saved objects into the store, definitions of custom resources or all others: those can be read only once
// the definitions are known.
func (c *Cluster) restore(definitions bool) error {
	var txn store.Txn
	for _, saved := range c.memory.Objects {
		if (saved.Key.Resource == custom.Definitions.Name) != definitions {
			continue
		}
		obj, err := c.codec.Decode(saved.Key, saved.Data)
		if err != nil {
			return fmt.Errorf("saved object: %w", err)
		}
		txn.Ops = append(txn.Ops, store.Op{Key: saved.Key, Object: obj, Expect: store.ExpectAbsent})
	}
	if len(txn.Ops) == 0 {
		return nil
	}
	_, _, err := c.store.Commit(context.Background(), txn)
	return err
}

// Save returns every object of a cluster in memory, as it is at one revision.
func (c *Cluster) Save() ([]Saved, error) {
	if c.codec == nil {
		return nil, errors.New("only a cluster in memory can be saved this way")
	}
	snap := c.store.Snapshot()
	var all []Saved
	for _, k := range c.registry.All() {
		if k.Virtual || k.StoredAs != "" {
			continue
		}
		for e := range snap.List(k.Name(), "", nil) {
			data, err := c.codec.Encode(e.Key, e.Object)
			if err != nil {
				return nil, err
			}
			all = append(all, Saved{e.Key, data})
		}
	}
	return all, nil
}

func (c *Cluster) startMemoryAPI(context.Context) (func(context.Context) error, string, error) {
	if _, err := c.makeAPI(); err != nil {
		return nil, "", err
	}
	stopCustom := c.run("custom resources", c.custom.Run)
	return func(ctx context.Context) error {
		c.server.Close()
		c.backends.Close()
		return stopCustom(ctx)
	}, "", nil
}

func (c *Cluster) startMemoryNodes(context.Context) (func(context.Context) error, string, error) {
	cfg := c.memory.Nodes
	cfg.Client, cfg.Log, cfg.Now = c.client, c.log, c.now
	c.simulated = simulated.New(cfg)
	c.node.simulated.Store(c.simulated)
	return c.run("simulated nodes", c.simulated.Run), fmt.Sprintf("%d nodes", cfg.Count), nil
}

// Handler is the API over HTTP, for those who reach it without a port.
func (c *Cluster) Handler() http.Handler { return c.server.Handler() }

// EndWatches ends all watches and other long-running requests, as the first step of a stop.
func (c *Cluster) EndWatches() { c.server.Close() }

// Engine runs the cluster's loops.
func (c *Cluster) Engine() *reconcile.Engine { return c.engine }

// Nodes plays the simulated nodes of a cluster in memory, nil if it has none.
func (c *Cluster) Nodes() *simulated.Agent { return c.simulated }

// portPatience is how long clients from outside may take to end what they have under way.
const portPatience = 10 * time.Millisecond

// Serve answers the API at a listener too, with TLS, until the cluster stops. It returns the PEM certificate of the authority that the
// server is known by.
func (c *Cluster) Serve(l net.Listener) (ca []byte, err error) {
	host, _, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	cert, key, err := c.keys.issue(leaf{name: "apiserver", cn: "kube-apiserver", hosts: []string{"localhost", host}, server: true}, c.now())
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	stop := c.serve(pair, l)
	c.mu.Lock()
	defer c.mu.Unlock()
	// Watches end with the API, the part after which this one has to stop.
	c.stops = append(c.stops, running{name: "port", stop: func(ctx context.Context) error {
		c.server.Close()
		ctx, cancel := context.WithTimeout(ctx, portPatience)
		defer cancel()
		return stop(ctx)
	}})
	return c.keys.caPEM, nil
}

// Registry has the kinds that the cluster knows at present.
func (c *Cluster) Registry() *api.Registry { return c.registry }
