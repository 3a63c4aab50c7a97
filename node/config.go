// Package node is the agent of one machine: pods bound to it become containers, and what
// becomes of them becomes the pods' status.
//
// It owns the Node object, its lease, and the status of the pods bound to it. One worker
// (worker.go) holds what is known of one pod and is the only one to change it; decide
// (plan.go) is a pure function from that to the next actions; the actions
// (deeds.go) are carried out beside the worker and come back to it as results. Workers are woken
// by the store's history, by the runtime's events, by results, probes and deadlines; nothing polls.
//
// It never talks to another part but container, volume and network, never changes what a user asked
// for, and keeps nothing on disk: after a restart it finds its pods in the store, and what it made in the
// runtime's labels (package record) and in the kernel.
//
// Locks: Agent.mu guards the table of workers and is not held while a worker's own mutex is taken
// by anyone who may wait; worker.mu guards a worker's inbox alone.
package node

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/volume"
)

// Volumes makes the volumes of pods; volume.Manager is the implementation.
type Volumes interface {
	// Prepare makes all volumes of a pod ready and returns them by name. Idempotent.
	Prepare(ctx context.Context, pod *corev1.Pod) (map[string]volume.Mount, error)
	// SubPath makes one subPath of a volume safe to mount.
	SubPath(ctx context.Context, uid types.UID, m volume.Mount, volumeName, container string, index int, subPath string) (string, error)
	// Unprepare undoes all and removes the pod's directory. Idempotent.
	Unprepare(ctx context.Context, uid types.UID) error
	// Orphans unprepares all pods but those to keep.
	Orphans(ctx context.Context, keep func(types.UID) bool) ([]types.UID, error)
	// Usages measures the volumes of a prepared pod.
	Usages(ctx context.Context, uid types.UID) ([]volume.Usage, error)
	// PodDir is the directory of a pod; what the agent puts there goes with Unprepare.
	PodDir(uid types.UID) string
}

// Claims makes the devices of ResourceClaims ready; it is claims.Manager.
type Claims interface {
	// Prepare makes all claims of a pod ready. Idempotent.
	Prepare(ctx context.Context, pod *corev1.Pod) error
	// Inject adds the devices of a container's claims to its description.
	Inject(pod *corev1.Pod, c *corev1.Container, cfg *container.ContainerConfig) error
	// Health says how the devices of a container's claims are.
	Health(pod *corev1.Pod, c *corev1.Container) []corev1.ResourceStatus
	// Unprepare undoes what was prepared for a pod. Idempotent.
	Unprepare(ctx context.Context, uid types.UID) error
	// Orphans unprepares for all pods but those to keep.
	Orphans(ctx context.Context, keep func(types.UID) bool) error
}

// Devices gives containers what device plugins offer; it is devices.Manager.
type Devices interface {
	// Capacity is what the node has of the resources of plugins, and how much of that is healthy.
	Capacity() (capacity, allocatable corev1.ResourceList)
	// Uses tells whether a pod asks for such resources, or has some.
	Uses(pod *corev1.Pod) bool
	// Allocate gives the containers of a pod their devices. Idempotent. counts tells which pods are to keep theirs.
	Allocate(ctx context.Context, pod *corev1.Pod, counts func(types.UID) bool) error
	// Inject adds the devices of a container that is about to start to its description.
	Inject(ctx context.Context, pod *corev1.Pod, c *corev1.Container, cfg *container.ContainerConfig) error
	// Health says how the devices of a pod's container are.
	Health(pod types.UID, container string) []corev1.ResourceStatus
	// Release takes the devices of a pod back. Idempotent.
	Release(uid types.UID) error
	// Orphans releases the devices of all pods but those to keep.
	Orphans(keep func(types.UID) bool) error
}

// Network connects sandboxes.
type Network interface {
	// Attach connects a sandbox and returns its addresses, the primary one first. Idempotent: a
	// connected sandbox keeps what it has.
	Attach(ctx context.Context, sandboxID, netnsPath, hostname string) ([]netip.Addr, error)
	// Detach undoes Attach. Idempotent.
	Detach(ctx context.Context, sandboxID, netnsPath string) error
}

// PortMapping is a port of the machine that leads to a port of a sandbox.
type PortMapping struct {
	// HostIP is the machine's address, zero for all.
	HostIP   netip.Addr
	HostPort uint16
	Port     uint16
	Protocol corev1.Protocol
}

// Config says what node to be. Zero values mean the default that is named.
type Config struct {
	// NodeName is the name of the Node object.
	NodeName string
	Client   client.Client
	Runtime  container.Runtime
	Volumes  Volumes
	Network  Network
	// Claims may be nil: pods with ResourceClaims then do not start.
	Claims Claims
	// Devices may be nil: there are no device plugins then.
	Devices Devices
	// Events records an event as this node's kubelet (source component "kubelet"). It must not
	// block. Nil: events are dropped.
	Events func(reconcile.Event)
	// DataDir is where the agent's own files are: seccomp profiles ("seccomp"), logs ("logs").
	DataDir string
	// LogDir is where pod logs are, "<DataDir>/logs/pods" if empty.
	LogDir string
	Log    *slog.Logger
	// Now tells the time, time.Now if nil.
	Now func() time.Time

	// Addresses are the machine's, the primary one first.
	Addresses []netip.Addr
	// PodCIDRs, if not nil, are set in the Node object if it has none.
	PodCIDRs []netip.Prefix
	// OnPodCIDRs is called whenever the Node object's ranges are known or change. May be nil.
	OnPodCIDRs func([]netip.Prefix)
	// ClusterDNS and ClusterDomain ("cluster.local" if empty) go into pods' resolv.conf.
	ClusterDNS    []netip.Addr
	ClusterDomain string
	// ResolvConf is the file that pods with the host's DNS get, "/etc/resolv.conf" if empty.
	ResolvConf string
	// HostsFile is the machine's, "/etc/hosts" if empty.
	HostsFile string

	// Shutdown are the periods of a graceful shutdown (Agent.Shutdown), by priority. None: there is no such thing.
	Shutdown []ShutdownPeriod
	// MaxPods is the most pods at once, 110 if zero.
	MaxPods int
	// Labels and Taints are set when the node registers.
	Labels map[string]string
	Taints []corev1.Taint
	// Reserved is taken off the capacity to give what is allocatable.
	Reserved corev1.ResourceList
	// Capacity replaces what is measured, for tests. Nil: the machine's.
	Capacity corev1.ResourceList
	// Version is the kubelet version that the node reports ("v1.37.2").
	Version string
	// Port of the kubelet API, in status.daemonEndpoints; zero if nobody reaches it over the network.
	Port int32
	// AllowedUnsafeSysctls are names, or prefixes ending in "*".
	AllowedUnsafeSysctls []string
	// MapPorts forwards ports of the machine to a sandbox that is connected, all that it is to have;
	// Network.Detach undoes it. Idempotent. Nil: host ports are not forwarded.
	MapPorts func(ctx context.Context, sandboxID string, addrs []netip.Addr, ports []PortMapping) error
	// RuntimeHandlers are the names by which RuntimeClasses may ask for this node's runtime, "runc" and
	// "coracle" if nil.
	RuntimeHandlers []string
	// Parallel bounds how many sandboxes and containers are made at once; twice the number
	// of CPUs and at least 4 if zero. Pulls bounds image pulls, 4 if zero.
	Parallel, Pulls int
	// Leave, if not nil, returns once nobody is sent to a pod any more that was deleted: then its containers are told to end, and
	// every request that came to it is one that it can still answer. It runs beside the pre-stop hook, within the grace period, and
	// for no longer than leaveTimeout.
	Leave func(ctx context.Context, pod *corev1.Pod)
	// Settle is how long a status that nobody waits for (not a change of readiness, nor an end) may be held
	// back to be one write with the next; 50 ms if zero, negative for none.
	Settle time.Duration
}

func (c *Config) defaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Events == nil {
		c.Events = func(reconcile.Event) {}
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.HostsFile == "" {
		c.HostsFile = "/etc/hosts"
	}
	if c.LogDir == "" {
		c.LogDir = c.DataDir + "/logs/pods"
	}
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.Version == "" {
		c.Version = "v1.37.2"
	}
	if c.Parallel == 0 {
		c.Parallel = max(4, 2*runtime.NumCPU())
	}
	if c.Pulls == 0 {
		c.Pulls = 4
	}
	if c.RuntimeHandlers == nil {
		c.RuntimeHandlers = []string{"runc", "coracle"}
	}
	if c.Settle == 0 {
		c.Settle = 50 * time.Millisecond
	}
}
