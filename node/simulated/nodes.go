package simulated

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

// LeaseNamespace is where the leases of nodes are.
const LeaseNamespace = corev1.NamespaceNodeLease

// leaseSlots is in how many portions all leases are renewed.
const leaseSlots = 4

// leaseSlot is the time between two portions.
func (a *Agent) leaseSlot() time.Duration { return a.cfg.LeaseEvery / leaseSlots }

// register creates what is missing of nodes and leases.
func (a *Agent) register(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(a.cfg.Writers)
	for _, n := range a.nodes {
		g.Go(func() error {
			if err := a.ensureNode(ctx, n); err != nil {
				return fmt.Errorf("node %s: %w", n.name, err)
			}
			if err := a.renewLease(ctx, n); err != nil {
				a.cfg.Log.Warn("simulated lease", "node", n.name, "err", err) // its next turn makes it
			}
			return nil
		})
	}
	return g.Wait()
}

// ensureNode creates the Node object, or brings the status of one from an earlier run up to date.
func (a *Agent) ensureNode(ctx context.Context, n *simNode) error {
	now := metav1.NewTime(a.cfg.Now().Truncate(time.Second))
	obj, err := a.cfg.Client.Create(ctx, client.Nodes.Name, a.node(n, now), client.WriteOptions{FieldManager: fieldManager})
	if err == nil {
		created := obj.(*corev1.Node)
		n.uid = created.UID
		a.adopt(n, created)
		if len(created.Status.Conditions) > 0 {
			return nil
		}
	} else if !apierrors.IsAlreadyExists(err) {
		return err
	}
	want := a.node(n, now).Status
	out, err := client.Mutate(ctx, a.cfg.Client, client.Nodes, "", n.name, "status", func(node *corev1.Node) bool {
		node.Status.Capacity, node.Status.Allocatable = want.Capacity, want.Allocatable
		node.Status.Conditions, node.Status.Addresses, node.Status.NodeInfo = want.Conditions, want.Addresses, want.NodeInfo
		return true
	})
	if err != nil {
		return err
	}
	n.uid = out.UID
	a.adopt(n, out)
	return a.strip(ctx, n)
}

// node is the Node object of a simulated node.
func (a *Agent) node(n *simNode, now metav1.Time) *corev1.Node {
	name, block := n.name, n.pool.block.String()
	labels := map[string]string{
		corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
		"type": "simulated",
	}
	maps.Copy(labels, a.cfg.Labels)
	healthy := func(t corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       corev1.NodeSpec{Taints: slices.Clone(a.cfg.Taints), PodCIDR: block, PodCIDRs: []string{block}},
		Status: corev1.NodeStatus{
			Capacity:    maps.Clone(a.cfg.Capacity),
			Allocatable: maps.Clone(a.cfg.Capacity),
			Conditions: []corev1.NodeCondition{
				healthy(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
				healthy(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
				healthy(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
				healthy(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"),
			},
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: hostIP},
				{Type: corev1.NodeHostName, Address: name},
			},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: "linux", Architecture: runtime.GOARCH, OSImage: "simulated", KernelVersion: "simulated",
				ContainerRuntimeVersion: "simulated://1", KubeletVersion: a.cfg.Version, BootID: n.bootID(),
			},
		},
	}
}

// renew renews one portion of the leases.
func (a *Agent) renew(ctx context.Context, slot int) {
	a.done.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, a.leaseSlot())
		defer cancel()
		g := new(errgroup.Group)
		g.SetLimit(a.cfg.Writers)
		for i := slot % leaseSlots; i < a.cfg.Count; i += leaseSlots {
			n := a.nodes[fmt.Sprintf("%s%d", a.cfg.Prefix, i)]
			if n.gone || a.mute(n.name) {
				continue
			}
			g.Go(func() error {
				if err := a.renewLease(ctx, n); err != nil && ctx.Err() == nil {
					a.cfg.Log.Warn("simulated lease", "node", n.name, "err", err)
				}
				return nil
			})
		}
		_ = g.Wait()
	})
}

// renewLease makes or renews one lease; a node whose object was deleted is left for dead.
func (a *Agent) renewLease(ctx context.Context, n *simNode) error {
	now := metav1.NewMicroTime(a.cfg.Now())
	snap := a.cfg.Client.Snapshot()
	if old, ok := client.Leases.Get(snap, LeaseNamespace, n.name); ok {
		lease := old.DeepCopy()
		lease.Spec.RenewTime = &now
		_, err := a.cfg.Client.Update(ctx, client.Leases.Name, lease, client.WriteOptions{FieldManager: fieldManager})
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			return nil // another turn comes
		}
		return err
	}
	if _, ok := client.Nodes.Get(snap, "", n.name); !ok && n.uid != "" {
		n.gone = true
		return nil
	}
	seconds := int32(40)
	_, err := a.cfg.Client.Create(ctx, client.Leases.Name, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: LeaseNamespace, Name: n.name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.name, UID: n.uid}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, client.WriteOptions{FieldManager: fieldManager})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
