package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded"
	"coracle.dev/coracle/container/image"
	"coracle.dev/coracle/internal/version"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/node"
	"coracle.dev/coracle/node/cdi"
	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/devices"
	"coracle.dev/coracle/node/kubelet"
	"coracle.dev/coracle/node/plugins"
	"coracle.dev/coracle/node/podresources"
	"coracle.dev/coracle/node/simulated"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/volume"
)

// Time limits of starting and ending a node.
const (
	nodeReadyTimeout = 30 * time.Second
	haltGrace        = 30 * time.Second
)

// tableName and cgroupName are what an instance calls its own in the kernel.
func tableName(id string) string  { return "coracle_" + id }
func cgroupName(id string) string { return "/coracle-" + id }

func runtimeOptions(dataDir, id string) embedded.Options {
	return embedded.Options{Dir: filepath.Join(dataDir, "containers"), CgroupRoot: cgroupName(id)}
}

func (c *Cluster) startRuntime(ctx context.Context) (func(context.Context) error, string, error) {
	options := runtimeOptions(c.cfg.DataDir, c.state.identity.ID)
	options.Log = c.log
	mirrors, err := image.ParseMirrors(c.cfg.RegistryMirrors)
	if err != nil {
		return nil, "", err
	}
	options.Images.Mirrors = mirrors
	r, err := embedded.Open(ctx, options)
	if err != nil {
		return nil, "", err
	}
	c.runtime = r
	detail := ""
	if n := len(r.Containers("")); n > 0 {
		detail = fmt.Sprintf("%d containers found", n)
	}
	return func(ctx context.Context) error {
		var err error
		if !c.Asked().Keep {
			err = r.Shutdown(ctx)
		}
		return errors.Join(err, r.Close())
	}, detail, nil
}

func (c *Cluster) runtimeProblem() error {
	if s := c.runtime.Status(); !s.Ready {
		return errors.New(s.Message)
	}
	return nil
}

func (c *Cluster) startNode(ctx context.Context) (func(context.Context) error, string, error) {
	hosts, err := c.networkPlan().hosts()
	if err != nil {
		return nil, "", err
	}
	var agent *node.Agent
	net := network.NewNode(c.pods, c.balancer)
	volumes := volume.New(volume.Config{
		Root: c.state.path("pods"), Client: c.client, NodeName: c.cfg.NodeName, Log: c.log,
		Token: c.tokenSource(), Certificate: c.podCertificate,
		Wake: func(uid types.UID) { agent.WakeVolumes(uid) },
		Image: func(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (string, error) {
			return agent.VolumeImage(ctx, p, v)
		},
		Warn: func(p *corev1.Pod, reason, message string) {
			c.nodeEvent(reconcile.Event{Type: corev1.EventTypeWarning, Reason: reason, Message: message,
				Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}})
		},
	})
	claimer, err := claims.New(filepath.Join(c.cfg.DataDir, "claims"), c.client.Snapshot, cdi.Dirs, c.log)
	if err != nil {
		return nil, "", err
	}
	claimer.Notify(func(uid types.UID) { agent.WakeDevices(uid) })
	devicer, err := devices.New(devices.Config{Dir: filepath.Join(c.cfg.KubeletDir, "device-plugins"), Record: filepath.Join(c.cfg.DataDir, "claims", "devices.json"),
		CDIDirs: cdi.Dirs, Log: c.log,
		Changed: func() { agent.RefreshNode() }, PodChanged: func(uid types.UID) { agent.WakeDevices(uid) }})
	if err != nil {
		return nil, "", err
	}
	registry := plugins.New(filepath.Join(c.cfg.KubeletDir, "plugins_registry"), map[string]plugins.Handler{plugins.DRA: claimer, plugins.Device: devices.Sockets{Manager: devicer}}, c.log)
	agent = node.New(node.Config{
		Claims:   claimer,
		Devices:  devicer,
		NodeName: c.cfg.NodeName, Client: c.client, Runtime: c.runtime, Volumes: volumes, Network: net,
		Events: c.nodeEvent, DataDir: c.cfg.DataDir, Log: c.log, Version: version.Kubernetes,
		Addresses: hosts, PodCIDRs: c.nodeBlocks(),
		Port:       c.nodePort(),
		Shutdown:   node.ShutdownPeriods(c.cfg.ShutdownGrace, c.cfg.ShutdownGraceCritical),
		OnPodCIDRs: c.pods.SetRanges,
		MapPorts:   mapPorts(net),
		Leave:      c.leave,
		ClusterDNS: []netip.Addr{c.serviceIP(dnsIndex)}, ClusterDomain: c.cfg.Domain,
	})
	resources := podresources.New(podresources.Config{Pods: agent.Pods, Devices: devicer.Of, Allocatable: devicer.Allocatable, Claims: claimer.Of, Log: c.log})
	api := kubelet.Handler(kubelet.Config{
		NodeName: c.cfg.NodeName, Pods: agent.Pods, Pod: agent.Pod, Sandbox: agent.Sandbox, Container: agent.Container,
		Runtime: c.runtime, Volumes: volumes.Usages, RootDir: c.cfg.DataDir, ImageDir: c.cfg.DataDir, Log: c.log,
	})
	c.node.kubelet.Store(api)
	stopPlugins, stopDevices := c.run("plugins", registry.Run), c.run("devices", devicer.Run)
	stopResources := c.run("pod-resources", func(ctx context.Context) error {
		resources.Run(ctx, filepath.Join(c.cfg.KubeletDir, "pod-resources", "kubelet.sock"))
		return nil
	})
	stopVolumes := c.run("volumes", volumes.Run)
	stopAgent := c.run("node", agent.Run)
	stop := func(ctx context.Context) error {
		if how := c.Asked(); !how.Keep && !how.Now {
			agent.Shutdown(ctx)
		}
		err := errors.Join(stopAgent(ctx), stopVolumes(ctx), stopPlugins(ctx), stopDevices(ctx), stopResources(ctx), api.Close())
		claimer.Close()
		devicer.Close()
		if !c.Asked().Keep {
			grace := haltGrace
			if c.Asked().Now {
				grace = 0
			}
			err = errors.Join(err, agent.Halt(ctx, grace))
		}
		return err
	}
	if err := c.awaitNode(ctx); err != nil {
		return nil, "", errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return stop, c.cfg.NodeName + " is Ready", nil
}

// mapPorts leads host ports to a pod's addresses, each to the one of its own family.
func mapPorts(n *network.Node) func(context.Context, string, []netip.Addr, []node.PortMapping) error {
	return func(_ context.Context, sandboxID string, addrs []netip.Addr, ports []node.PortMapping) error {
		var all []network.HostPort
		for _, p := range ports {
			for _, addr := range addrs {
				if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() && p.HostIP.Is4() != addr.Is4() {
					continue
				}
				front := nft.Front{Proto: nft.Protocol(string(p.Protocol)), Port: p.HostPort}
				if !p.HostIP.IsUnspecified() {
					front.Addr = p.HostIP
				}
				all = append(all, network.HostPort{Front: front, Backend: netip.AddrPortFrom(addr, p.Port)})
			}
		}
		return n.Map(sandboxID, all)
	}
}

// podToken issues the token of a pod's service account, bound to the pod.
func (c *Cluster) podToken(_ context.Context, r volume.TokenRequest) (volume.Token, error) {
	account, ok := client.ServiceAccounts.Get(c.store.Snapshot(), r.Namespace, r.ServiceAccount)
	if !ok {
		return volume.Token{}, fmt.Errorf("serviceaccounts %q not found", r.ServiceAccount)
	}
	grant := authn.Grant{ServiceAccount: account, Expiry: time.Duration(r.ExpirationSeconds) * time.Second,
		Pod: &authn.Ref{Name: r.PodName, UID: r.PodUID}}
	if n, ok := client.Nodes.Get(c.store.Snapshot(), "", c.cfg.NodeName); ok {
		grant.Node = &authn.Ref{Name: n.Name, UID: n.UID}
	}
	if r.Audience != "" {
		grant.Audiences = []string{r.Audience}
	}
	token, expires, err := c.tokens().Issue(grant)
	return volume.Token{Value: token, Expires: expires}, err
}

// warn records a warning of the API server's about an object.
func (c *Cluster) warn(about corev1.ObjectReference, reason, message string) {
	if c.engine == nil {
		return // it is being made: the next one is told
	}
	c.engine.Recorder().Record(client.User{Name: "system:apiserver", Groups: []string{client.GroupMasters}}, corev1.EventSource{Component: "apiserver"},
		reconcile.Event{Regarding: about, Type: corev1.EventTypeWarning, Reason: reason, Message: message})
}

// nodeEvent records an event as the node's agent.
func (c *Cluster) nodeEvent(ev reconcile.Event) {
	user := client.User{Name: "system:node:" + c.cfg.NodeName, Groups: []string{client.GroupNodes, client.GroupAuthenticated}}
	c.engine.Recorder().Record(user, corev1.EventSource{Component: "kubelet", Host: c.cfg.NodeName}, ev)
}

// awaitNode waits until the Node object says that it is Ready.
func (c *Cluster) awaitNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodeReadyTimeout)
	defer cancel()
	snap := c.client.Snapshot()
	cursor, err := c.client.Cursor(snap.Revision(), client.Nodes.Name)
	if err != nil {
		return err
	}
	for c.nodeReady() != nil {
		if _, err := cursor.Next(ctx); err != nil {
			if failed := c.Err(); failed != nil {
				return failed
			}
			return fmt.Errorf("node %s did not become Ready: %w", c.cfg.NodeName, c.nodeReady())
		}
	}
	return nil
}

// nodeReady is nil if the Node object is Ready, and otherwise says why it is not.
func (c *Cluster) nodeReady() error {
	n, ok := client.Nodes.Get(c.client.Snapshot(), "", c.cfg.NodeName)
	if !ok {
		return errors.New("it has not registered")
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("it has no Ready condition")
}

func (c *Cluster) nodeProblem() error { return c.nodeReady() }

// simulatedKey is the label of every simulated node and, beside a real one, the key of its taint: pods that are meant
// to run do not land where they are only reported as running.
const simulatedKey = "coracle.dev/simulated"

func (c *Cluster) startSimulated(context.Context) (func(context.Context) error, string, error) {
	cfg := simulated.Config{Client: c.client, Count: c.cfg.Nodes.Simulated, Version: version.Kubernetes, Log: c.log,
		Labels: map[string]string{simulatedKey: "true"}}
	if c.cfg.SimulateStages != "" {
		stages, err := readStages(c.cfg.SimulateStages)
		if err != nil {
			return nil, "", err
		}
		cfg.Stages = stages
	}
	if c.cfg.Nodes.Real {
		cfg.Taints = []corev1.Taint{{Key: simulatedKey, Value: "true", Effect: corev1.TaintEffectNoSchedule}}
	}
	agent := simulated.New(cfg)
	c.node.simulated.Store(agent)
	return c.run("simulated nodes", agent.Run), fmt.Sprintf("%d nodes", c.cfg.Nodes.Simulated), nil
}

// completeStages reads the stages of simulated nodes once, so that what is wrong is told before anything starts.
func (c *Config) completeStages() error {
	if c.SimulateStages == "" {
		return nil
	}
	abs, err := filepath.Abs(c.SimulateStages)
	if err != nil {
		return fmt.Errorf("simulate-stages: %w", err)
	}
	c.SimulateStages = abs
	if c.Nodes.Simulated == 0 {
		return errors.New("simulate-stages: there are no simulated nodes: give --nodes=simulated:N too")
	}
	_, err = readStages(abs)
	return err
}

func readStages(file string) (*simulated.Stages, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("simulate-stages: %w", err)
	}
	stages, err := simulated.ParseStages(file, data)
	if err != nil {
		return nil, fmt.Errorf("simulate-stages: %w", err)
	}
	return stages, nil
}

// removeContainers ends and removes every sandbox of a data directory that no process runs on, and returns
// how many containers there were.
func removeContainers(ctx context.Context, dataDir string, id identity) (int, error) {
	options := runtimeOptions(dataDir, id.ID)
	if _, err := os.Stat(options.Dir); err != nil {
		return 0, nil // it never had any
	}
	r, err := embedded.Open(ctx, options)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	count, errs := 0, []error{}
	for _, s := range r.Sandboxes() {
		for _, k := range r.Containers(s.Config.ID) {
			if k.State == container.StateRunning {
				count++
			}
		}
		errs = append(errs, r.RemoveSandbox(ctx, s.Config.ID))
	}
	errs = append(errs, r.Shutdown(ctx))
	return count, errors.Join(errs...)
}
