package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/conntrack"
	"coracle.dev/coracle/linux/nft/filter"
	"coracle.dev/coracle/store"
)

// Config says what an Enforcer works with.
type Config struct {
	// Client is where policies, pods, namespaces and nodes are read.
	Client client.Reader
	// NodeName is the node whose pods are protected.
	NodeName string
	// Table is the name of the nftables table (family inet), which is the Enforcer's alone.
	Table string
	// DNS are the addresses of the cluster's DNS, which the node bears: see DNSStandIn.
	DNS []netip.Addr
	// LogDenied has the kernel log refused packets, at most 10 a second for each refusal.
	LogDenied bool
	Log       *slog.Logger
}

// Enforcer keeps the node's packets as the policies want them. Its table stays when it stops: a restart takes it over in one
// transaction, and what was denied stays denied. It is safe for concurrent use.
type Enforcer struct {
	cfg    Config
	filter *filter.Table
	flows  *conntrack.Table

	mu     sync.Mutex // guards what follows; held during netlink calls, which are short
	plan   *plan      // nil: what is in the kernel is not known, and everything is to be made anew
	cursor store.Cursor
	// connected are the sandboxes that are connected here, with their pods as they were.
	connected map[string]Local
	// labels of refusals, also of those that are gone, for the counters.
	refusals map[string]refusal
}

// Local is a sandbox of this node that is connected, or is about to be.
type Local struct {
	// Sandbox is the sandbox's ID, for Release.
	Sandbox string
	Pod     *corev1.Pod
	Addrs   []netip.Addr
}

// Start takes over or makes the node's table, as policies and pods are now, in one transaction. locals are the sandboxes that are
// connected already. Run has to follow.
func Start(cfg Config, locals ...Local) (*Enforcer, error) {
	filter, err := filter.New(cfg.Table, cfg.LogDenied)
	if err != nil {
		return nil, err
	}
	flows, err := conntrack.Open()
	if err != nil {
		return nil, err
	}
	e := &Enforcer{cfg: cfg, filter: filter, flows: flows, connected: map[string]Local{}, refusals: map[string]refusal{}}
	for _, l := range locals {
		e.connected[l.Sandbox] = l
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.sync(); err != nil {
		return nil, errors.Join(err, flows.Close())
	}
	return e, nil
}

// retryFirst and retryMost bound the pause after the kernel refused a change.
const (
	retryFirst = 50 * time.Millisecond
	retryMost  = 10 * time.Second
)

// Run follows the store until ctx ends, and then leaves the table as it is.
func (e *Enforcer) Run(ctx context.Context) error {
	defer e.flows.Close()
	pause := retryFirst
	for {
		e.mu.Lock()
		err := e.sync()
		var ready <-chan struct{}
		if err == nil {
			ready = e.cursor.Ready()
		}
		e.mu.Unlock()
		if errors.Is(err, store.ErrClosed) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			e.cfg.Log.Error("network policies are not up to date", "error", err)
			again := time.NewTimer(pause)
			pause = min(2*pause, retryMost)
			select {
			case <-ctx.Done():
			case <-again.C:
			}
			again.Stop()
			continue
		}
		pause = retryFirst
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
	}
}

// Admit installs a pod's verdicts, as every policy that is in the store by now has them. When it returns nil, they are in the
// kernel: the sandbox's link may come up. It is idempotent.
func (e *Enforcer) Admit(l Local) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.connected[l.Sandbox] = l
	if e.plan != nil {
		if err := e.gather(); err == nil {
			e.plan.admit(e.plan.latest(l.Pod), l.Addrs)
			if err = e.commit(false); err == nil {
				return nil
			}
		}
		e.plan = nil
	}
	if err := e.sync(); err != nil {
		delete(e.connected, l.Sandbox)
		return fmt.Errorf("network policies of pod %s/%s: %w", l.Pod.Namespace, l.Pod.Name, err)
	}
	return nil
}

// Release takes a sandbox's addresses back once its link is gone, with all that the kernel remembers of its connections. It is
// idempotent.
func (e *Enforcer) Release(sandbox string, addrs []netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.connected, sandbox)
	var filters []conntrack.Filter
	for _, a := range addrs {
		filters = append(filters, conntrack.Filter{Original: conntrack.Tuple{Src: a}}, conntrack.Filter{Reply: conntrack.Tuple{Src: a}})
	}
	if _, err := e.flows.DeleteMatching(nil, filters...); err != nil {
		e.cfg.Log.Warn("forget the connections of a pod", "sandbox", sandbox, "error", err)
	}
	if e.plan == nil {
		return e.sync()
	}
	e.plan.release(addrs)
	return e.commit(false)
}

// Denied is what was refused for the same reason.
type Denied struct {
	Direction Direction
	// Policies are a ClusterNetworkPolicy one of whose rules denied, or the NetworkPolicies that isolate and none of whose rules
	// matched.
	Policies       []Ref
	Packets, Bytes uint64
}

// Denied reads the counters of refused packets. They count from when the reason first applied on this node, or from the start.
func (e *Enforcer) Denied() ([]Denied, error) {
	counts, err := e.filter.Counts()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Denied
	for name, n := range counts {
		if r, ok := e.refusals[name]; ok {
			out = append(out, Denied{r.direction, r.policies, n.Packets, n.Bytes})
		}
	}
	return out, nil
}

// resources are what the Enforcer reads.
var resources = []string{client.Pods.Name, client.Namespaces.Name, client.Nodes.Name, client.NetworkPolicies.Name, ClusterPolicies}

// sync brings the kernel to the present of the store.
func (e *Enforcer) sync() error {
	if e.plan != nil {
		if err := e.gather(); err == nil {
			if err := e.commit(false); err == nil {
				return nil
			}
		} else if errors.Is(err, store.ErrClosed) {
			return err
		}
		e.plan = nil
	}
	snapshot := e.cfg.Client.Snapshot()
	cursor, err := e.cfg.Client.Cursor(snapshot.Revision(), resources...)
	if err != nil {
		return err
	}
	e.cursor, e.plan = cursor, e.fresh(snapshot)
	if err := e.commit(true); err != nil {
		e.plan = nil
		return err
	}
	return nil
}

// fresh is the plan of a snapshot.
func (e *Enforcer) fresh(s store.Snapshot) *plan {
	p := newPlan(e.cfg.NodeName, e.cfg.DNS)
	for _, resource := range []string{client.Namespaces.Name, client.Nodes.Name, client.Pods.Name} {
		for entry := range s.List(resource, "", nil) {
			p.put(entry)
		}
	}
	for _, l := range e.connected {
		key := podKey{l.Pod.Namespace, l.Pod.Name}
		gone := p.pods[key] == nil
		p.admit(p.latest(l.Pod), l.Addrs)
		if gone {
			p.held[key] = true
		}
	}
	for _, resource := range []string{client.NetworkPolicies.Name, ClusterPolicies} {
		for entry := range s.List(resource, "", nil) {
			p.put(entry)
		}
	}
	clear(p.quiet)
	return p
}

// latest is what the store says of a pod, which may be newer than what its sandbox was made from; that only if the store has none.
func (p *plan) latest(made *corev1.Pod) *pod {
	key := podKey{made.Namespace, made.Name}
	if stored := p.pods[key]; stored != nil && !p.held[key] {
		return stored
	}
	return readPod(made, p.spaces)
}

// gather takes in what has happened since.
func (e *Enforcer) gather() error {
	for {
		events, err := e.cursor.Poll()
		if err != nil || len(events) == 0 {
			return err
		}
		for i := range events {
			if events[i].Deleted {
				e.plan.drop(events[i].Entry)
			} else {
				e.plan.put(events[i].Entry)
			}
		}
	}
}

// put takes in an object as it is now.
func (p *plan) put(entry *store.Entry) {
	switch o := entry.Object.(type) {
	case *corev1.Pod:
		if onNetwork(o) {
			p.setPod(podKey{o.Namespace, o.Name}, readPod(o, p.spaces))
		} else {
			p.setPod(podKey{o.Namespace, o.Name}, nil)
		}
	case *corev1.Namespace:
		p.setSpace(o.Name, o.Labels, true)
	case *corev1.Node:
		p.setNode(o.Name, readNode(o))
	case *networkingv1.NetworkPolicy:
		r := readPolicy(o)
		p.setPolicy(r.ref, r)
	case *policyv1alpha2.ClusterNetworkPolicy:
		r := readClusterPolicy(o)
		p.setPolicy(r.ref, r)
	}
}

// drop takes in that an object is gone.
func (p *plan) drop(entry *store.Entry) {
	switch entry.Resource {
	case client.Pods.Name:
		p.setPod(podKey{entry.Namespace, entry.Name}, nil)
	case client.Namespaces.Name:
		p.setSpace(entry.Name, nil, false)
	case client.Nodes.Name:
		p.setNode(entry.Name, nil)
	case client.NetworkPolicies.Name:
		p.setPolicy(Ref{Namespace: entry.Namespace, Name: entry.Name}, nil)
	case ClusterPolicies:
		p.setPolicy(Ref{Cluster: true, Name: entry.Name}, nil)
	}
}

// commit carries out what was gathered, and cuts what is no longer allowed. After an error nothing is known of the kernel.
func (e *Enforcer) commit(replace bool) error {
	change, suspects := e.plan.take(replace)
	for _, c := range e.plan.chains {
		for i := range c.refusals {
			e.refusals[c.refusals[i].name()] = c.refusals[i]
		}
	}
	for _, name := range change.RemoveRefusals {
		delete(e.refusals, name)
	}
	if err := e.filter.Commit(change); err != nil {
		e.plan = nil
		return err
	}
	if len(suspects) == 0 {
		return nil
	}
	return e.cut(suspects)
}

// listAll is from how many addresses on all connections are listed at once, and not those of each address.
const listAll = 4

// cut ends the connections with the suspects that are no longer allowed: their entries go, so that the next packet is judged as one
// that opens a connection.
func (e *Enforcer) cut(suspects map[netip.Addr]bool) error {
	filters := []conntrack.Filter{{}}
	if len(suspects) < listAll {
		filters = filters[:0]
		for a := range suspects {
			filters = append(filters, conntrack.Filter{Original: conntrack.Tuple{Src: a}}, conntrack.Filter{Reply: conntrack.Tuple{Src: a}})
		}
	}
	var doomed []conntrack.Flow
	var closing []filter.Flow
	programs := map[place]*program{}
	for _, f := range filters {
		flows, err := e.flows.List(f)
		if err != nil {
			return err
		}
		for i := range flows {
			from, to := flows[i].Original, flows[i].Reply
			if !suspects[from.Src] && !suspects[to.Src] || e.plan.allowed(from.Src, to.Src, from.Proto, to.SrcPort, programs) {
				continue
			}
			doomed = append(doomed, flows[i])
			if from.Proto == protoUDP { // an answer that is on its way would open the connection again, the other way round
				closing = append(closing, filter.Flow{Proto: from.Proto,
					Src: netip.AddrPortFrom(to.Src, to.SrcPort), Dst: netip.AddrPortFrom(from.Src, from.SrcPort)})
			}
		}
	}
	if len(doomed) == 0 {
		return nil
	}
	if err := e.filter.Commit(&filter.Change{Cut: closing}); err != nil {
		e.plan = nil
		return err
	}
	_, err := e.flows.Delete(doomed...)
	return err
}
