package overlay

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what Loop needs to know.
type Config struct {
	// Instance is the hexadecimal name of this instance on the machine, Node that of this node.
	Instance, Node string
	// Inside are the cluster's pod ranges.
	Inside   []netip.Prefix
	Settings Settings
	Log      *slog.Logger
}

// everything is the loop's one key: all ways are made in one pass.
var everything = reconcile.Key{Name: "overlay"}

// want is what a pass of the loop has read.
type want struct {
	addr   netip.Addr
	own    []netip.Prefix
	peers  []Peer
	passed []Passed
}

// Loop keeps this node's ways to the pods of all others. It runs on every node, by the server and by joined ones, and reads nothing but
// nodes. As long as there is only this node, nothing is made and nothing asked of the kernel beyond once at the start.
func Loop(cfg Config) reconcile.Loop {
	cfg.Settings = cfg.Settings.complete(cfg.Inside)
	a := &applier{cfg: cfg}
	return reconcile.Loop{
		Name:   "overlay",
		Always: []reconcile.Key{everything},
		Inputs: []reconcile.Input{{Resource: client.Nodes.Name, Keys: changed}},
		Plan: func(s store.Snapshot, _ reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			w := read(s, cfg)
			p := reconcile.Plan{Effect: w}
			if len(w.peers) > 0 {
				p.After = resync
			}
			return p, nil
		},
		Apply: func(_ context.Context, _ reconcile.Key, effect any) error { return a.apply(effect.(want)) },
	}
}

// changed asks for a pass where something of a node changed that ways depend on; a heartbeat is none.
func changed(_ store.Snapshot, ev store.Event) []reconcile.Key {
	if !ev.Deleted && ev.Prev != nil {
		now, was := ev.Entry.Object.(*corev1.Node), ev.Prev.Object.(*corev1.Node)
		if slices.Equal(now.Spec.PodCIDRs, was.Spec.PodCIDRs) && slices.Equal(now.Status.Addresses, was.Status.Addresses) {
			return nil
		}
	}
	return []reconcile.Key{everything}
}

func read(s store.Snapshot, cfg Config) want {
	self, ok := client.Nodes.Get(s, "", cfg.Node)
	if !ok {
		return want{} // it has not registered
	}
	var w want
	w.own, _ = nodeRanges(self, cfg.Inside, nil)
	if w.addr = underlay(self, true); !w.addr.IsValid() || primary6(self) {
		if six := underlay(self, false); six.IsValid() {
			w.addr = six
		}
	}
	if !w.addr.IsValid() || len(w.own) == 0 {
		return w
	}
	var nodes []*corev1.Node
	for n := range client.Nodes.List(s, "") {
		nodes = append(nodes, n)
	}
	w.peers, w.passed = Peers(nodes, cfg.Node, cfg.Inside, w.addr.Is4())
	return w
}

// primary6 tells whether the first InternalIP of a node is of IPv6: the underlay is what the cluster prefers.
func primary6(n *corev1.Node) bool {
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			return addr.Unmap().Is6()
		}
	}
	return false
}

// applier remembers what it said and whether there is anything in the kernel.
type applier struct {
	cfg    Config
	clean  bool // nothing of ours is in the kernel
	passed []Passed
	state  State
}

// apply runs in one pass at a time.
func (a *applier) apply(w want) error {
	if !slices.Equal(w.passed, a.passed) {
		for _, p := range w.passed {
			a.cfg.Log.Warn("there is no way to pods of a node", "node", p.Node, "reason", p.Why)
		}
		a.passed = w.passed
	}
	if len(w.peers) == 0 && a.clean {
		return nil
	}
	k, err := Open(a.cfg.Instance, a.cfg.Inside)
	if err != nil {
		return err
	}
	defer k.Close()
	if len(w.peers) == 0 {
		if err := k.Remove(); err != nil {
			return err
		}
		a.clean, a.state = true, State{}
		return nil
	}
	h, err := k.Host(w.addr)
	if err != nil {
		return err
	}
	a.clean = false
	st := Decide(a.cfg.Node, w.own, w.peers, h, a.cfg.Settings)
	if err := k.Apply(st, h); err != nil {
		return err
	}
	if !reflect.DeepEqual(st, a.state) {
		a.cfg.Log.Info("ways to other nodes' pods", "nodes", len(w.peers), "direct", len(st.Direct))
		a.state = st
	}
	return nil
}
