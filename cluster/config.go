package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"coracle.dev/coracle/container/image"
	"coracle.dev/coracle/network/overlay"
)

// Config is everything that a user can choose. The zero value of a field means its
// default; Complete fills it in.
type Config struct {
	// DataDir holds all state. Two instances with different ones run side by side.
	DataDir string
	// Bind is the address that the API is served at, beside loopback. Empty: all.
	Bind string
	// Port of the API.
	Port int
	// Kubeconfig is the file into which the admin context is merged; "none" for none.
	Kubeconfig string
	// Nodes says which nodes there are.
	Nodes Nodes
	// Join makes of this instance a node of a control plane elsewhere, without one of its own; nil for a cluster.
	Join *Join
	// NodeName of the real node; the host name if empty.
	NodeName string
	// NodeIPs are the addresses of this machine that the real node has, at most one of each family. Empty: those that it
	// uses towards the outside.
	NodeIPs []string
	// PodCIDR and ServiceCIDR are the cluster's ranges. Empty: a pair that
	// nothing on this machine uses, chosen at the first start and kept. Each is one range, or one of each family with a
	// comma between, the preferred family first.
	PodCIDR, ServiceCIDR string
	// Overlay says how pods reach those of other nodes.
	Overlay overlay.Settings
	// Services says how Services are made reachable.
	Services Services
	// Domain is the DNS domain of the cluster.
	Domain string
	// SimulateStages is the file that says what happens to simulated nodes and their pods (simulated.ParseStages); "" for nothing.
	SimulateStages string
	// RegistryMirrors are tried before the registries that images name: see image.ParseMirrors.
	RegistryMirrors []string
	// LogDenied has the kernel log packets that network policies refuse, at most 10 a second for each reason.
	LogDenied bool
	// KubeletDir is where drivers of the real node look for what they expect of a kubelet (plugins_registry, plugins); below DataDir if empty.
	KubeletDir string
	// ShutdownGrace is how long the end of the real node's pods may take when the cluster is stopped, ShutdownGraceCritical the
	// last part of it, which is for critical pods (kubelet's shutdownGracePeriod and shutdownGracePeriodCriticalPods). Zero: pods
	// are not ended for good but start again with the cluster.
	ShutdownGrace, ShutdownGraceCritical time.Duration
	// LogLevel is debug, info, warn or error.
	LogLevel string
	// Access says whom the API lets in.
	Access Access
	// Audit says what is recorded of requests.
	Audit Audit
	// EncryptionConfig is the file that says which resources are encrypted at rest and how
	// (EncryptionConfiguration of apiserver.config.k8s.io/v1); "" encrypts nothing.
	EncryptionConfig string
	// SchedulerConfig is the file that says which profiles and extenders the scheduler has
	// (KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1); "" is upstream's default profile.
	SchedulerConfig string
	// EncryptionReload has that file taken over whenever it changes.
	EncryptionReload bool
}

// Defaults of Config.
const (
	DefaultDataDir = "/var/lib/coracle"
	DefaultPort    = 6443
	DefaultDomain  = "cluster.local"
)

// Nodes says which nodes a cluster has.
type Nodes struct {
	// Real asks for a node that runs containers on this machine. Needs root.
	Real bool
	// Simulated is how many nodes are only pretended: their pods are
	// reported as running, and no container is started.
	Simulated int
}

// String is the form that ParseNodes reads.
func (n Nodes) String() string {
	var parts []string
	if n.Real {
		parts = append(parts, "real")
	}
	if n.Simulated > 0 {
		parts = append(parts, fmt.Sprintf("simulated:%d", n.Simulated))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ",")
}

// ParseNodes reads "real", "simulated:N", "real,simulated:N" or "none".
func ParseNodes(s string) (Nodes, error) {
	var n Nodes
	if s == "none" {
		return n, nil
	}
	for _, part := range strings.Split(s, ",") {
		name, count, counted := strings.Cut(strings.TrimSpace(part), ":")
		switch {
		case name == "real" && !counted && !n.Real:
			n.Real = true
		case name == "simulated" && n.Simulated == 0:
			n.Simulated = 1
			if counted {
				c, err := strconv.Atoi(count)
				if err != nil || c < 1 || c > 100_000 {
					return n, fmt.Errorf("nodes: %q is not a number of simulated nodes from 1 to 100000", count)
				}
				n.Simulated = c
			}
		default:
			return n, fmt.Errorf(`nodes: cannot read %q; write "real", "simulated:N", "real,simulated:N" or "none"`, s)
		}
	}
	return n, nil
}

// maxShutdown is how long a stop may take at all, less what comes after the pods.
const maxShutdown = 100 * time.Second

func (c *Config) checkShutdown() error {
	switch {
	case c.ShutdownGrace < 0 || c.ShutdownGrace > 0 && c.ShutdownGrace < time.Second || c.ShutdownGrace > maxShutdown:
		return fmt.Errorf("shutdown-grace-period: %s is neither zero nor from 1s to %s", c.ShutdownGrace, maxShutdown)
	case c.ShutdownGraceCritical < 0 || c.ShutdownGraceCritical > 0 && c.ShutdownGraceCritical < time.Second:
		return fmt.Errorf("shutdown-grace-period-critical-pods: %s is neither zero nor 1s or more", c.ShutdownGraceCritical)
	case c.ShutdownGraceCritical > c.ShutdownGrace:
		return fmt.Errorf("shutdown-grace-period-critical-pods: %s is more than the shutdown-grace-period, %s", c.ShutdownGraceCritical, c.ShutdownGrace)
	}
	return nil
}

// Complete fills in defaults and says what is wrong, all of it at once.
func (c *Config) Complete() error {
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Domain == "" {
		c.Domain = DefaultDomain
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	var errs []error
	abs, err := filepath.Abs(c.DataDir)
	if err != nil {
		errs = append(errs, fmt.Errorf("data-dir: %w", err))
	}
	c.DataDir = abs
	if c.KubeletDir == "" {
		c.KubeletDir = filepath.Join(abs, "kubelet")
	}
	if c.Port < 1 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not from 1 to 65535", c.Port))
	}
	if _, err := parseNodeIPs(c.NodeIPs); err != nil {
		errs = append(errs, fmt.Errorf("node-ip: %w", err))
	}
	if c.Bind != "" {
		if _, err := netip.ParseAddr(c.Bind); err != nil {
			errs = append(errs, fmt.Errorf("bind: %q is not an IP address of this machine", c.Bind))
		}
	}
	errs = append(errs, checkRanges(c.PodCIDR, c.ServiceCIDR), c.Overlay.Check())
	if _, err := image.ParseMirrors(c.RegistryMirrors); err != nil {
		errs = append(errs, fmt.Errorf("registry-mirror: %w", err))
	}
	errs = append(errs, c.completeStages(), c.Services.check())
	errs = append(errs, c.Audit.complete(), c.Access.check())
	errs = append(errs, c.checkShutdown(), c.Join.complete())
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		errs = append(errs, fmt.Errorf("log-level: %q is not debug, info, warn or error", c.LogLevel))
	}
	if c.Nodes.Real && c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			errs = append(errs, fmt.Errorf("node-name: cannot tell the host name (%w): give one", err))
		}
		c.NodeName = strings.ToLower(host)
	}
	return errors.Join(errs...)
}
