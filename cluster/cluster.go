package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/apiserver/aggregate"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/apiserver/openapi"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/internal/version"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/policy"
	"coracle.dev/coracle/node/metricsapi"
	"coracle.dev/coracle/node/simulated"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Step is one line of progress of a start.
type Step struct {
	// Name of the part, and how long it took to start.
	Name string
	Took time.Duration
	// Detail is for a person ("https://127.0.0.1:6443").
	Detail string
	// Context is the kubeconfig context, in the last step.
	Context string
	Last    bool
	// Err says why the start failed; it is then the last step.
	Err string
}

// Options are what a program, rather than a user, gives.
type Options struct {
	Log *slog.Logger
	// Progress is called from one goroutine as parts start. May be nil.
	Progress func(Step)
	// Memory, if not nil, asks for a cluster that lives in this process alone; Config then says nothing but Domain and how
	// many nodes are simulated.
	Memory *Memory
}

// Cluster is a running cluster. Its methods are safe for concurrent use.
type Cluster struct {
	cfg         Config
	log         *slog.Logger
	progress    func(Step)
	began       time.Time
	ready       time.Duration
	url         string
	context     string
	memory      *Memory // nil: it has a data directory and a port
	agent       *agent  // nil: it has a control plane of its own
	nodeReviews nodeReviews
	now         func() time.Time

	// The parts, in the order in which they are made.
	state *state
	keys  *pki
	store store.Store
	codec store.Codec // of a cluster in memory, nil otherwise
	// encryption is that of the store; nil for a cluster in memory.
	encryption *encryption
	// followed are the files that the API server was told of and that count again when they change.
	followed   []*followed
	stale      func(*store.Entry) bool // stored in another form than would be written today; nil: none is
	registry   *api.Registry
	custom     *custom.Registrar
	backends   *backend.Pool
	aggregator *aggregate.Aggregator
	documents  *openapi.Publisher
	metrics    *metricsapi.Server
	selected   podstate.Finder // of simulated pods whose metrics are asked for
	server     *apiserver.Server
	client     client.Client
	engine     *reconcile.Engine
	runtime    container.Runtime
	balancer   *nft.Balancer
	pods       *network.Pods
	policies   atomic.Pointer[policy.Enforcer] // nil until there is one
	node       nodeAPI
	simulated  *simulated.Agent // of a cluster in memory, nil otherwise

	stops []running // in the order of their start

	mu        sync.Mutex // guards what follows
	how       StopOptions
	failure   error
	stopping  bool
	stopAsked chan struct{}
	failed    chan struct{}
}

// running is a part that was started, and how it is ended.
type running struct {
	name    string
	took    time.Duration
	stop    func(ctx context.Context) error
	problem func() error // nil: as long as it runs it is well
}

// part is one entry of the list that Start goes through: it starts something, and returns
// how to stop it. detail is shown to the user.
type part struct {
	name  string
	start func(ctx context.Context) (stop func(context.Context) error, detail string, err error)
	// problem tells what is wrong with it while it runs.
	problem func() error
}

// Start builds and starts every part in order and returns when the cluster is ready: the API
// answers, and the node, if there is one, is Ready. If one fails, those before it
// are stopped again. ctx bounds the start, not the life of the cluster.
func Start(ctx context.Context, cfg Config, opts Options) (_ *Cluster, err error) {
	c := &Cluster{cfg: cfg, log: opts.Log, progress: opts.Progress, memory: opts.Memory, now: time.Now,
		stopAsked: make(chan struct{}), failed: make(chan struct{})}
	if c.memory != nil && c.memory.Now != nil {
		c.now = c.memory.Now
	}
	c.began = c.now()
	if c.progress == nil {
		c.progress = func(Step) {}
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, c.Stop(undo, StopOptions{Now: true}))
		}
	}()
	for _, p := range c.parts() {
		began := time.Now()
		stop, detail, err := p.start(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		took := time.Since(began)
		c.mu.Lock()
		c.stops = append(c.stops, running{p.name, took, stop, p.problem})
		c.mu.Unlock()
		c.progress(Step{Name: p.name, Took: took, Detail: detail})
		c.log.Info("started", "part", p.name, "took", took)
	}
	c.mu.Lock()
	c.ready = c.now().Sub(c.began)
	c.mu.Unlock()
	return c, nil
}

// Stop ends every part, the last started first.
func (c *Cluster) Stop(ctx context.Context, how StopOptions) error {
	c.mu.Lock()
	stops := c.stops
	c.stops, c.stopping = nil, true
	c.how = how
	c.mu.Unlock()
	var errs []error
	for i := len(stops) - 1; i >= 0; i-- {
		if stops[i].stop == nil {
			continue
		}
		began := time.Now()
		if err := stops[i].stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", stops[i].name, err))
		}
		c.log.Info("stopped", "part", stops[i].name, "took", time.Since(began))
	}
	return errors.Join(errs...)
}

// StopOptions say how to stop.
type StopOptions struct {
	// Keep leaves containers running; the next Start takes them over.
	Keep bool
	// Now gives containers no time to end by themselves.
	Now bool
}

// RequestStop asks whoever runs the cluster to stop it.
func (c *Cluster) RequestStop(how StopOptions) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.stopAsked:
	default:
		c.how = how
		close(c.stopAsked)
	}
}

// StopRequested is closed when a stop was asked for.
func (c *Cluster) StopRequested() <-chan struct{} { return c.stopAsked }

// Asked is how the stop that was asked for should be made.
func (c *Cluster) Asked() StopOptions {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.how
}

// Failed is closed when a part ended that should not have. Err says why.
func (c *Cluster) Failed() <-chan struct{} { return c.failed }

// Err is why the cluster failed, nil while it has not.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// run starts a goroutine that lasts until its part is stopped. That it ends earlier is a
// failure of the cluster.
func (c *Cluster) run(name string, f func(context.Context) error) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := f(ctx)
		if ctx.Err() == nil {
			c.fail(fmt.Errorf("%s ended: %w", name, err))
		}
	}()
	return func(wait context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-wait.Done():
			return wait.Err()
		}
	}
}

func (c *Cluster) fail(err error) {
	c.log.Error("part failed", "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil && !c.stopping {
		c.failure = err
		close(c.failed)
	}
}

// Client reads and writes the cluster's objects from within the process.
func (c *Cluster) Client() client.Client { return c.client }

// Status tells how the cluster is. It costs one walk over the pods.
func (c *Cluster) Status() Status {
	c.mu.Lock()
	stops, ready := c.stops, c.ready
	c.mu.Unlock()
	s := Status{Version: version.Coracle, Kubernetes: version.Kubernetes, Server: c.url, Context: c.context,
		DataDir: c.cfg.DataDir, Nodes: c.cfg.Nodes.String(), Started: c.began, Ready: ready}
	for _, r := range stops {
		p := PartStatus{Name: r.name, Took: r.took}
		if r.problem != nil {
			if err := r.problem(); err != nil {
				p.Problem = err.Error()
			}
		}
		s.Parts = append(s.Parts, p)
	}
	c.measure(&s)
	if c.agent != nil {
		c.agentStatus(&s)
	}
	if c.store != nil {
		snap := c.store.Snapshot()
		s.Revision = int64(snap.Revision())
		for _, k := range c.registry.All() {
			if !k.Virtual && k.StoredAs == "" {
				s.Objects += snap.Count(k.Name(), "")
			}
		}
		for p := range client.Pods.List(snap, "") {
			s.Pods++
			if p.Status.Phase == "Running" {
				s.Running++
			}
		}
	}
	return s
}
