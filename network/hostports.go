package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"coracle.dev/coracle/linux/nft"
)

// HostPort is a port of the machine that leads to a pod.
type HostPort struct {
	// Front is where connections come in; its address is zero for every address of the machine.
	Front nft.Front
	// Backend is the pod's address and port.
	Backend netip.AddrPort
}

// Balancer is what host ports are carried out by; *nft.Balancer is one.
type Balancer interface {
	Set(id string, fronts []nft.Front, backends []netip.AddrPort, sticky time.Duration) error
	Remove(id string) error
}

// Node is the network of a node's pods as its agent uses it: links, addresses, and host ports that go with
// them. It is safe for concurrent use.
type Node struct {
	*Pods
	balancer Balancer

	mu     sync.Mutex          // guards mapped
	mapped map[string][]string // rules by sandbox
}

// NewNode joins pods with the rules that lead host ports to them.
func NewNode(pods *Pods, b Balancer) *Node {
	return &Node{Pods: pods, balancer: b, mapped: map[string][]string{}}
}

// Map leads ports of the machine to a sandbox: all that it is to have. What it had before goes.
func (n *Node) Map(sandboxID string, ports []HostPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.unmap(sandboxID); err != nil {
		return err
	}
	for i, p := range ports {
		id := fmt.Sprintf("hostport/%s/%d", sandboxID, i)
		if err := n.balancer.Set(id, []nft.Front{p.Front}, []netip.AddrPort{p.Backend}, 0); err != nil {
			return errors.Join(fmt.Errorf("host port %d: %w", p.Front.Port, err), n.unmap(sandboxID))
		}
		n.mapped[sandboxID] = append(n.mapped[sandboxID], id)
	}
	return nil
}

func (n *Node) unmap(sandboxID string) error {
	var errs []error
	for _, id := range n.mapped[sandboxID] {
		errs = append(errs, n.balancer.Remove(id))
	}
	delete(n.mapped, sandboxID)
	return errors.Join(errs...)
}

// Detach takes a sandbox's host ports and its link away. It is idempotent.
func (n *Node) Detach(ctx context.Context, sandboxID, netnsPath string) error {
	n.mu.Lock()
	err := n.unmap(sandboxID)
	n.mu.Unlock()
	return errors.Join(err, n.Pods.Detach(ctx, sandboxID, netnsPath))
}
