package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Name is the scheduler that pods without another name get.
const Name = corev1.DefaultSchedulerName

// Config is what a Scheduler needs.
type Config struct {
	Client client.Client
	// Record takes events; it does not block. May be nil.
	Record func(reconcile.Event)
	// RecordAs, if not nil, takes events in the place of Record, with the name of the profile that they come from.
	RecordAs func(profile string, ev reconcile.Event)
	Log      *slog.Logger
	// Configuration says which profiles and extenders there are; nil for upstream's default profile and none.
	Configuration *Configuration
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Scheduler binds pods to nodes. One goroutine owns the Cluster and the queue; what takes
// time (bindings, conditions, removals) is done by a few workers, which report back to it.
type Scheduler struct {
	Config
	// profiles by name; never changed.
	profiles map[string]*Profile
	cluster  *Cluster
	queue    *queue
	// binding are the pods whose binding is under way: what the store says of them
	// is older than what we know.
	binding  map[types.UID]*item
	siblings map[string]*Siblings
	// awaiting are the pods of binding whose volumes are not there yet.
	awaiting map[types.UID]*awaited
	assumed  assumed
	devices  *devices
	// moved is set when a volume, a claim or a node has changed since awaiting was looked at.
	moved bool
	work  chan func(context.Context)
	done  chan func()
}

// The resources whose changes the scheduler follows.
var followed = []string{client.Pods.Name, client.Nodes.Name, client.Namespaces.Name,
	client.PersistentVolumeClaims.Name, client.PersistentVolumes.Name,
	client.StorageClasses.Name, client.CSINodes.Name, client.VolumeAttachments.Name, csiDrivers.Name, csiCapacities.Name,
	client.ResourceClaims.Name, client.ResourceSlices.Name, client.DeviceClasses.Name, client.DeviceTaintRules.Name}

const (
	workers     = 32               // side by side they share the store's commits
	workQueue   = 1024             // when it is full, scheduling waits
	workTimeout = 30 * time.Second // of one binding or removal
)

// New returns a Scheduler; Run starts it.
func New(c Config) *Scheduler {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Record == nil {
		c.Record = func(reconcile.Event) {}
	}
	if c.Configuration == nil {
		c.Configuration = &Configuration{Profiles: []*Profile{defaultProfile}, FirstBackoff: firstBackoff, MostBackoff: mostBackoff}
	}
	s := &Scheduler{Config: c, profiles: map[string]*Profile{}}
	for _, p := range c.Configuration.Profiles {
		s.profiles[p.Name] = p
	}
	return s
}

// Run schedules until ctx is done.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx = client.WithUser(ctx, client.User{Name: "system:kube-scheduler", Groups: []string{client.GroupAuthenticated}})
	s.work, s.done = make(chan func(context.Context), workQueue), make(chan func(), workQueue)
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range workers {
		group.Go(func() { s.serve(ctx) })
	}
	for {
		err := s.follow(ctx)
		if !errors.Is(err, store.ErrCompacted) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.Log.Warn("scheduler fell behind the history that is kept and reads everything again")
	}
}

// serve does the work that takes time.
func (s *Scheduler) serve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-s.work:
			bounded, cancel := context.WithTimeout(ctx, workTimeout)
			f(bounded)
			cancel()
		}
	}
}

// follow builds the totals from a snapshot and keeps them up with the history. Before each pass it takes first the
// workers' reports and then the history, so that what a worker saw done is known.
func (s *Scheduler) follow(ctx context.Context) error {
	snap := s.Client.Snapshot()
	cursor, err := s.Client.Cursor(snap.Revision(), followed...)
	if err != nil {
		return err
	}
	s.load(snap)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.settleDone()
		events, err := cursor.Poll()
		if err != nil {
			return err
		}
		for i := range events {
			s.observe(&events[i])
		}
		s.checkAwaited(ctx)
		worked, err := s.one(ctx)
		if err != nil {
			return err
		}
		if worked || len(events) > 0 {
			continue
		}
		var due <-chan time.Time
		next, ok := s.queue.next()
		if first, waits := s.nextAwaited(); waits && (!ok || first.Before(next)) {
			next, ok = first, true
		}
		if ok {
			timer.Reset(max(next.Sub(s.Now()), 0))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cursor.Ready():
		case f := <-s.done:
			f()
		case <-due:
		}
	}
}

func (s *Scheduler) settleDone() {
	for {
		select {
		case f := <-s.done:
			f()
		default:
			return
		}
	}
}

func (s *Scheduler) load(snap store.Snapshot) {
	s.cluster, s.queue, s.binding, s.siblings = NewCluster(), newQueue(), map[types.UID]*item{}, map[string]*Siblings{}
	s.queue.profiles, s.queue.firstBackoff, s.queue.mostBackoff = s.profiles, s.Configuration.FirstBackoff, s.Configuration.MostBackoff
	s.cluster.extenders = s.Configuration.Extenders
	s.awaiting, s.assumed, s.devices = map[types.UID]*awaited{}, newAssumed(), newDevices()
	s.devices.load(snap)
	s.cluster.hasClass = func(name corev1.ResourceName) bool { return s.devices.classOf(name) != nil }
	s.cluster.budgets = func() Budgets { return slices.Collect(client.PodDisruptionBudgets.List(s.Client.Snapshot(), "")) }
	for ns := range client.Namespaces.List(snap, "") {
		s.cluster.SetNamespace(ns.Name, ns)
	}
	for n := range client.Nodes.List(snap, "") {
		s.cluster.SetNode(n)
	}
	for p := range client.Pods.List(snap, "") {
		s.observePod(p, nil, false)
	}
}

// one makes one pass, for the most important pod that is ready. It returns false if there is none.
func (s *Scheduler) one(ctx context.Context) (bool, error) {
	it := s.queue.take(s.Now())
	if it == nil {
		return false, nil
	}
	about := s.circumstances(s.Client.Snapshot(), it.pod)
	d := s.cluster.schedule(it.pod, &about)
	if d.err != nil {
		s.failed(it, d.err)
		return true, nil
	}
	if d.Node == "" {
		return true, s.refuse(ctx, it, d)
	}
	s.cluster.assign(it.pod, d.Node)
	s.binding[it.pod.object.UID] = it
	if d.needs != nil {
		return true, s.bindClaims(ctx, it, d.needs, d.on, d.plan)
	}
	return true, s.bind(ctx, it, d.Node, d.plan)
}

// do hands something to a worker. While all are busy it goes on taking their reports, so
// that neither side waits for the other.
func (s *Scheduler) do(ctx context.Context, f func(context.Context)) error {
	for {
		select {
		case s.work <- f:
			return nil
		case g := <-s.done:
			g()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// report hands the outcome of some work to the goroutine that owns everything. ctx is that of the
// scheduler, not the work's own, which may have timed out.
func (s *Scheduler) report(ctx context.Context, f func()) {
	select {
	case s.done <- f:
	case <-ctx.Done():
	}
}
