package node

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/reconcile"
)

// How often a node says that it lives, as upstream does.
const (
	leaseSeconds  = 40
	leaseEvery    = leaseSeconds / 4 * time.Second
	statusEvery   = 5 * time.Minute
	registerTry   = time.Second
	nodeTimeout   = 10 * time.Second
	maxNodeImages = 50
)

// When a node runs short (upstream's hard eviction thresholds).
const (
	minMemory = 100 << 20
	minDisk   = 0.10
	minInodes = 0.05
	minPids   = 0.0
)

// register makes the Node object, or takes over one that is there.
func (a *Agent) register(ctx context.Context) error {
	now := a.cfg.Now()
	fresh := a.newNode(now)
	var node *corev1.Node
	for {
		created, err := a.cfg.Client.Create(ctx, client.Nodes.Name, fresh.DeepCopy(), client.WriteOptions{})
		if err == nil {
			node = created.(*corev1.Node)
			defer a.conditionEvents(&corev1.NodeStatus{}, &fresh.Status)
			break
		}
		if apierrors.IsAlreadyExists(err) {
			if node, err = a.reregister(ctx, fresh); err == nil {
				break
			}
		}
		if ctx.Err() != nil || apierrors.IsInvalid(err) || apierrors.IsForbidden(err) {
			return err
		}
		a.cfg.Log.Warn("register node", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(registerTry):
		}
	}
	a.nodeChanged(node)
	if err := a.writeStatus(ctx, true); err != nil {
		return err
	}
	a.eventNode("Starting", "Starting kubelet.")
	if err := a.renewLease(ctx); err != nil {
		a.cfg.Log.Warn("node lease", "err", err) // the heartbeat makes it
	}
	return nil
}

// reregister brings the labels that are the node's own up to date.
func (a *Agent) reregister(ctx context.Context, fresh *corev1.Node) (*corev1.Node, error) {
	return client.Mutate(ctx, a.cfg.Client, client.Nodes, "", a.cfg.NodeName, "", func(n *corev1.Node) bool {
		old := n.DeepCopy()
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		maps.Copy(n.Labels, fresh.Labels)
		if n.Spec.PodCIDR == "" {
			n.Spec.PodCIDR, n.Spec.PodCIDRs = fresh.Spec.PodCIDR, fresh.Spec.PodCIDRs
		}
		return !equality.Semantic.DeepEqual(old, n)
	})
}

// newNode is the Node object as it is first registered.
func (a *Agent) newNode(now time.Time) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: a.cfg.NodeName, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
	maps.Copy(labels, a.cfg.Labels)
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: a.cfg.NodeName, Labels: labels,
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
		Spec: corev1.NodeSpec{Taints: slices.Clone(a.cfg.Taints)},
	}
	for _, p := range a.cfg.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	a.fillStatus(&n.Status, now)
	return n
}

// fillStatus sets all of a node's status that is the agent's.
func (a *Agent) fillStatus(st *corev1.NodeStatus, now time.Time) {
	capacity := maps.Clone(a.machine.capacity)
	if a.cfg.Capacity != nil {
		capacity = maps.Clone(a.cfg.Capacity)
	}
	if _, ok := capacity[corev1.ResourcePods]; !ok {
		capacity[corev1.ResourcePods] = *resource.NewQuantity(int64(a.cfg.MaxPods), resource.DecimalSI)
	}
	st.Capacity = keepExtended(st.Capacity, capacity)
	allocatable := maps.Clone(capacity)
	for name, q := range a.cfg.Reserved {
		if have, ok := allocatable[name]; ok {
			have.Sub(q)
			if have.Sign() < 0 {
				have = resource.Quantity{}
			}
			allocatable[name] = have
		}
	}
	st.Allocatable = keepExtended(st.Allocatable, allocatable)
	if a.cfg.Devices != nil {
		have, healthy := a.cfg.Devices.Capacity()
		maps.Copy(st.Capacity, have)
		maps.Copy(st.Allocatable, healthy)
	}
	st.Addresses = nil
	for _, addr := range a.hostIPs {
		st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr})
	}
	st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: a.cfg.NodeName})
	st.DaemonEndpoints.KubeletEndpoint.Port = a.cfg.Port
	st.NodeInfo = a.machine.info
	rt := a.cfg.Runtime.Status()
	st.NodeInfo.ContainerRuntimeVersion = IDScheme + rt.Version
	st.NodeInfo.KubeletVersion, st.NodeInfo.KubeProxyVersion = a.cfg.Version, ""
	st.RuntimeHandlers = []corev1.NodeRuntimeHandler{{Name: "", Features: &corev1.NodeRuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: ptr(true), UserNamespaces: ptr(false)}}}
	st.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: ptr(true)}
	st.DeclaredFeatures = slices.Clone(declaredFeatures)
	st.Images = nodeImages(a)
	a.setNodeConditions(st, now)
}

// declaredFeatures are the optional features that this agent has, sorted (KEP-5328). Upstream knows more, which it has not:
// resizing volumes in memory, mount options of binds, user namespaces with the host's network, and those of dynamic
// resource allocation.
var declaredFeatures = []string{
	"ExtendWebSocketsToKubelet",               // exec, attach and port-forward take WebSockets
	"InPlacePodLevelResourcesVerticalScaling", // KEP-5419
	"InPlacePodVerticalScalingInitContainers", // while an init container runs, and before
	"RestartAllContainersOnContainerExits",    // KEP-5532
}

func ptr[T any](v T) *T { return &v }

// keepExtended takes over the resources that others have put into the status.
func keepExtended(old, own corev1.ResourceList) corev1.ResourceList {
	for name, q := range old {
		if _, ok := own[name]; !ok && !plainResource(name) && name != corev1.ResourcePods {
			own[name] = q
		}
	}
	return own
}

// nodeImages lists the largest images, as upstream does.
func nodeImages(a *Agent) []corev1.ContainerImage {
	list := a.cfg.Runtime.Images().List()
	sort.SliceStable(list, func(i, j int) bool { return list[i].Size > list[j].Size })
	list = list[:min(len(list), maxNodeImages)]
	out := make([]corev1.ContainerImage, 0, len(list))
	for _, img := range list {
		names := append(append([]string{}, img.Digests...), img.Names...)
		if len(names) == 0 {
			names = []string{img.ID}
		}
		out = append(out, corev1.ContainerImage{Names: names, SizeBytes: img.Size})
	}
	return out
}

// setNodeConditions says how the node is.
func (a *Agent) setNodeConditions(st *corev1.NodeStatus, now time.Time) {
	p := a.machine.squeeze()
	set := func(t corev1.NodeConditionType, bad bool, good, evil [2]string) {
		c := corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: good[0], Message: good[1]}
		if bad {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, evil[0], evil[1]
		}
		a.setNodeCondition(st, c, now)
	}
	set(corev1.NodeMemoryPressure, p.measurable && p.memory < minMemory,
		[2]string{"KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
		[2]string{"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"})
	set(corev1.NodeDiskPressure, p.measurable && (p.disk < minDisk || p.inodes < minInodes),
		[2]string{"KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
		[2]string{"KubeletHasDiskPressure", "kubelet has disk pressure"})
	set(corev1.NodePIDPressure, p.measurable && p.maxPids > 0 && float64(p.freePids) <= minPids*float64(p.maxPids),
		[2]string{"KubeletHasSufficientPID", "kubelet has sufficient PID available"},
		[2]string{"KubeletHasInsufficientPID", "kubelet has insufficient PID available"})
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if rt := a.cfg.Runtime.Status(); !rt.Ready {
		ready.Status, ready.Reason = corev1.ConditionFalse, "KubeletNotReady"
		ready.Message = "container runtime is down: " + rt.Message
	}
	if a.shutting.Load() {
		ready = shutdownCondition(ready)
	}
	a.setNodeCondition(st, ready, now)
}

func (a *Agent) setNodeCondition(st *corev1.NodeStatus, c corev1.NodeCondition, now time.Time) {
	t := stamp(now)
	c.LastHeartbeatTime, c.LastTransitionTime = t, t
	for i := range st.Conditions {
		old := &st.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	st.Conditions = append(st.Conditions, c)
}

// writeStatus brings the Node object's status up to date. Without force it is written only if it says something
// new.
func (a *Agent) writeStatus(ctx context.Context, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	var was, is corev1.NodeStatus
	node, err := client.Mutate(ctx, a.cfg.Client, client.Nodes, "", a.cfg.NodeName, "status", func(n *corev1.Node) bool {
		was = *n.Status.DeepCopy()
		a.fillStatus(&n.Status, a.cfg.Now())
		is = n.Status
		return force || !sameNodeStatus(&was, &n.Status)
	})
	if err != nil {
		return err
	}
	a.conditionEvents(&was, &is)
	a.nodeChanged(node)
	return nil
}

// sameNodeStatus compares without the times of heartbeats.
func sameNodeStatus(a, b *corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, st := range []*corev1.NodeStatus{x, y} {
		for i := range st.Conditions {
			st.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(x, y)
}

// conditionEvents records the changes of conditions as upstream names them.
func (a *Agent) conditionEvents(was, is *corev1.NodeStatus) {
	status := func(st *corev1.NodeStatus, t corev1.NodeConditionType) corev1.ConditionStatus {
		for _, c := range st.Conditions {
			if c.Type == t {
				return c.Status
			}
		}
		return corev1.ConditionUnknown
	}
	for _, c := range is.Conditions {
		old := status(was, c.Type)
		if old == c.Status {
			continue
		}
		reason := c.Reason
		if c.Type == corev1.NodeReady {
			reason = "KubeletReady"
			if c.Status != corev1.ConditionTrue {
				reason = "KubeletNotReady"
			}
		}
		reason = "Node" + strings.TrimPrefix(reason, "Kubelet")
		a.eventNode(reason, fmt.Sprintf("Node %s status is now: %s", a.cfg.NodeName, reason))
	}
	if old := was.NodeInfo.BootID; old != "" && old != is.NodeInfo.BootID {
		a.eventNodeWarning("Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", a.cfg.NodeName, is.NodeInfo.BootID))
	}
}

func (a *Agent) eventNode(reason, message string) {
	a.eventAbout(corev1.EventTypeNormal, reason, message)
}

func (a *Agent) eventNodeWarning(reason, message string) {
	a.eventAbout(corev1.EventTypeWarning, reason, message)
}

// eventAbout records an event about the node. As upstream does, the node's name stands for its UID.
func (a *Agent) eventAbout(kind, reason, message string) {
	a.cfg.Events(reconcile.Event{
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: a.cfg.NodeName, UID: types.UID(a.cfg.NodeName)},
		Type:      kind, Reason: reason, Message: message,
	})
}

// nodeChanged takes note of a version of the node's object.
func (a *Agent) nodeChanged(n *corev1.Node) {
	old := a.node.Swap(n)
	if a.cfg.OnPodCIDRs == nil || len(n.Spec.PodCIDRs) == 0 || old != nil && slices.Equal(old.Spec.PodCIDRs, n.Spec.PodCIDRs) {
		return
	}
	var ranges []netip.Prefix
	for _, s := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(s); err == nil {
			ranges = append(ranges, p)
		}
	}
	a.cfg.OnPodCIDRs(ranges)
}

// allocatable is what the node offers to pods.
func (a *Agent) allocatable() corev1.ResourceList {
	if n := a.node.Load(); n != nil {
		return n.Status.Allocatable
	}
	return a.machine.capacity
}

func (a *Agent) machineMemory() int64 {
	q := a.machine.capacity[corev1.ResourceMemory]
	return q.Value()
}

// refreshNode asks for the node's status to be looked at now. It does not block.
func (a *Agent) refreshNode() {
	select {
	case a.renew <- struct{}{}:
	default:
	}
}

// heartbeat renews the lease, and writes the node's status when it changed or has not been
// written for long.
func (a *Agent) heartbeat(ctx context.Context) {
	lease := time.NewTimer(leaseEvery)
	defer lease.Stop()
	written := a.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lease.C:
			if err := a.renewLease(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("renew node lease", "err", err)
			}
			lease.Reset(leaseEvery)
		case <-a.renew:
		}
		a.collectImages(ctx)
		force := a.cfg.Now().Sub(written) >= statusEvery
		if err := a.writeStatus(ctx, force); err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.Warn("write node status", "err", err)
			}
		} else if force {
			written = a.cfg.Now()
		}
	}
}

// When unused images are removed, as upstream does it.
const (
	imageHigh    = 85 // percent of the disk used
	imageLow     = 80
	imageMinAge  = 2 * time.Minute
	imageEvery   = 5 * time.Minute
	imageTimeout = 5 * time.Minute
)

// collectImages removes unused images, beside the caller, if the disk is full enough and it was not
// done shortly before. It is called from one goroutine.
func (a *Agent) collectImages(ctx context.Context) {
	p, now := a.machine.squeeze(), a.cfg.Now()
	if !p.measurable || 100*(1-p.disk) < imageHigh || now.Sub(a.collected) < imageEvery {
		return
	}
	a.collected = now
	a.ended.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, imageTimeout)
		defer cancel()
		res, err := a.cfg.Runtime.Images().GC(ctx, container.GCPolicy{HighPercent: imageHigh, LowPercent: imageLow, MinAge: imageMinAge, Now: now})
		switch {
		case err != nil && ctx.Err() == nil:
			a.eventNodeWarning("ImageGCFailed", err.Error())
		case res.Short > 0:
			a.eventNodeWarning("FreeDiskSpaceFailed", fmt.Sprintf(
				"Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", res.Freed+res.Short, res.Freed))
		}
		if len(res.Removed) > 0 {
			a.cfg.Log.Info("removed unused images", "count", len(res.Removed), "bytes", res.Freed)
		}
	})
}

// renewLease makes or renews the node's lease.
func (a *Agent) renewLease(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	now := metav1.NewMicroTime(a.cfg.Now())
	ns := corev1.NamespaceNodeLease
	if _, ok := client.Leases.Get(a.cfg.Client.Snapshot(), ns, a.cfg.NodeName); ok {
		_, err := client.Mutate(ctx, a.cfg.Client, client.Leases, ns, a.cfg.NodeName, "", func(l *coordinationv1.Lease) bool {
			l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &a.cfg.NodeName, ptr(int32(leaseSeconds)), &now
			return true
		})
		return err
	}
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: a.cfg.NodeName},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &a.cfg.NodeName, LeaseDurationSeconds: ptr(int32(leaseSeconds)), RenewTime: &now},
	}
	if n := a.node.Load(); n != nil {
		lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	_, err := a.cfg.Client.Create(ctx, client.Leases.Name, lease, client.WriteOptions{})
	return err
}
