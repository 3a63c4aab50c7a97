package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/nft/filter"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/cni"
	"coracle.dev/coracle/network/policy"
	"coracle.dev/coracle/node/record"
)

// policyTable is what an instance calls the packet filter of its network policies.
func policyTable(id string) string { return tableName(id) + "_policy" }

// removePolicies takes the packet filter of an instance out of the kernel.
func removePolicies(id string) error { return filter.Delete(policyTable(id)) }

// guard has a node's network policies in the kernel before the link of a pod comes up, and from then on. Sandboxes that are connected
// already are taken over with what the kernel denied before still denied. Whoever calls it runs the Enforcer.
func guard(cfg policy.Config, runtime container.Runtime, pods *network.Pods) (*policy.Enforcer, error) {
	var locals []policy.Local
	for sandbox, addrs := range pods.Connected() {
		if cni.Foreign(sandbox) {
			continue
		}
		p, err := podOf(cfg.Client, runtime, sandbox)
		if err != nil {
			// It is removed soon. Until then what is for its whole namespace holds: its labels went with its pod.
			if p = lost(runtime, sandbox, cfg.NodeName); p == nil {
				continue
			}
		}
		locals = append(locals, policy.Local{Sandbox: sandbox, Pod: p, Addrs: addrs})
	}
	e, err := policy.Start(cfg, locals...)
	if err != nil {
		return nil, err
	}
	pods.BeforeUp(func(_ context.Context, sandbox string, addrs []netip.Addr) error {
		if cni.Foreign(sandbox) {
			return nil // a container of another runtime is no pod of the cluster's, and no policy selects it
		}
		p, err := podOf(cfg.Client, runtime, sandbox)
		if err != nil {
			return err
		}
		return e.Admit(policy.Local{Sandbox: sandbox, Pod: p, Addrs: addrs})
	})
	pods.AfterDown(func(_ context.Context, sandbox string, addrs []netip.Addr) error { return e.Release(sandbox, addrs) })
	return e, nil
}

// lost is as much as a sandbox says of a pod that is gone, nil for a sandbox that was never a pod's.
func lost(runtime container.Runtime, sandbox, node string) *corev1.Pod {
	s, err := runtime.Sandbox(sandbox)
	if err != nil {
		return nil
	}
	id, ok := record.Of(s.Config.Labels)
	if !ok {
		return nil
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: node}}
	p.Namespace, p.Name, p.UID = id.Namespace, id.Pod, id.UID
	return p
}

// podOf finds the pod of a sandbox.
func podOf(r client.Reader, runtime container.Runtime, sandbox string) (*corev1.Pod, error) {
	s, err := runtime.Sandbox(sandbox)
	if err != nil {
		return nil, err
	}
	id, ok := record.Of(s.Config.Labels)
	if !ok {
		return nil, fmt.Errorf("sandbox %s is not of a pod", sandbox)
	}
	p, ok := client.Pods.Get(r.Snapshot(), id.Namespace, id.Pod)
	if !ok || p.UID != id.UID {
		return nil, fmt.Errorf("pod %s/%s is gone", id.Namespace, id.Pod)
	}
	return p, nil
}

func (c *Cluster) startPolicy(context.Context) (func(context.Context) error, string, error) {
	id := c.state.identity.ID
	e, err := guard(policy.Config{Client: c.client, NodeName: c.cfg.NodeName, Table: policyTable(id),
		DNS: c.serviceIPs(dnsIndex), LogDenied: c.cfg.LogDenied, Log: c.log}, c.runtime, c.pods)
	if err != nil {
		return nil, "", err
	}
	c.policies.Store(e)
	stop := c.run("network policies", e.Run)
	return func(ctx context.Context) error {
		err := stop(ctx)
		if c.Asked().Keep {
			return err
		}
		return errors.Join(err, removePolicies(id))
	}, policyTable(id), nil
}

// writeDenied tells /metrics what network policies refused on this node.
func (c *Cluster) writeDenied(w io.Writer) {
	e := c.policies.Load()
	if e == nil {
		return
	}
	denied, err := e.Denied()
	if err != nil || len(denied) == 0 {
		return
	}
	lines := make([][2]string, len(denied))
	for i, d := range denied {
		names := make([]string, len(d.Policies))
		for j, ref := range d.Policies {
			names[j] = ref.String()
		}
		labels := fmt.Sprintf(`{direction=%q,policies=%q}`, d.Direction.String(), strings.Join(names, ","))
		lines[i] = [2]string{fmt.Sprintf("coracle_policy_denied_packets_total%s %d\n", labels, d.Packets),
			fmt.Sprintf("coracle_policy_denied_bytes_total%s %d\n", labels, d.Bytes)}
	}
	slices.SortFunc(lines, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	for i, what := range []string{"packets", "bytes"} {
		fmt.Fprintf(w, "# HELP coracle_policy_denied_%s_total What network policies refused on the node, by the policies that did.\n", what)
		fmt.Fprintf(w, "# TYPE coracle_policy_denied_%s_total counter\n", what)
		for _, l := range lines {
			_, _ = io.WriteString(w, l[i])
		}
	}
}
