package overlay

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Peer is another node as the network sees it.
type Peer struct {
	Name string
	// Addr is the node's address in the underlay.
	Addr netip.Addr
	// Other is its address of the other family, if it has one.
	Other netip.Addr
	// Pods are the node's ranges of pod addresses.
	Pods []netip.Prefix
	// Gateways are the ranges of gateways' addresses, if the node serves them.
	Gateways []netip.Prefix
}

// GatewayBlock is the block at the end of a cluster's range of pod addresses from which gateways get theirs, not valid if the range is
// too small for one. Nodes get their blocks from the front: the two meet in a cluster of 255 nodes. The node that serves gateways is the server's, which has the first
// block of the range.
func GatewayBlock(r netip.Prefix) netip.Prefix {
	bits := 120
	if r.Addr().Is4() {
		bits = 24
	}
	if r.Bits() >= bits {
		return netip.Prefix{}
	}
	a := r.Masked().Addr().AsSlice()
	for bit := r.Bits(); bit < bits; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(last, bits)
}

// gatewaysOf are the blocks of gateways that a node with these ranges serves.
func gatewaysOf(ranges, inside []netip.Prefix) (blocks []netip.Prefix) {
	for _, c := range inside {
		b := GatewayBlock(c)
		if b.IsValid() && slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Addr() == c.Masked().Addr() && !r.Overlaps(b) }) {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// Passed is a node, or a range of one, to which there is no way.
type Passed struct {
	Node, Why string
}

// Peers lists the other nodes to which ways are made, by name. self is the name of this node, inside are the cluster's pod ranges and
// v4 says whether the underlay is IPv4. A range that is not in the cluster's, or that an older node has already, gets no way: a node
// cannot draw others' packets to it by what it says of itself. Nodes whose ranges are elsewhere altogether (simulated ones) are passed
// in silence.
func Peers(nodes []*corev1.Node, self string, inside []netip.Prefix, v4 bool) ([]Peer, []Passed) {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	var peers []Peer
	var passed []Passed
	var taken []netip.Prefix
	for _, n := range nodes {
		ranges, why := nodeRanges(n, inside, taken)
		taken = append(taken, ranges...)
		if why != "" {
			passed = append(passed, Passed{n.Name, why})
		}
		if n.Name == self || len(ranges) == 0 {
			continue
		}
		addr := underlay(n, v4)
		if !addr.IsValid() {
			passed = append(passed, Passed{n.Name, "it has no InternalIP of the family that this node has"})
			continue
		}
		if i := slices.IndexFunc(peers, func(p Peer) bool { return p.Addr == addr }); i >= 0 {
			passed = append(passed, Passed{n.Name, "its InternalIP is that of node " + peers[i].Name})
			continue
		}
		peers = append(peers, Peer{Name: n.Name, Addr: addr, Other: underlay(n, !v4), Pods: ranges, Gateways: gatewaysOf(ranges, inside)})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return peers, passed
}

// nodeRanges are the ranges of a node that packets may be sent to, and why another of them is not.
func nodeRanges(n *corev1.Node, inside, taken []netip.Prefix) (ranges []netip.Prefix, why string) {
	for _, text := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			continue // validation keeps those out
		}
		p = p.Masked()
		if !slices.ContainsFunc(inside, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Overlaps(p) }) {
			continue
		}
		if slices.ContainsFunc(taken, p.Overlaps) {
			why = "its range " + text + " overlaps with that of an older node"
			continue
		}
		ranges = append(ranges, p)
	}
	return ranges, why
}

// underlay is the first InternalIP of a family.
func underlay(n *corev1.Node, v4 bool) netip.Addr {
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err == nil && addr.Unmap().Is4() == v4 && addr.Unmap().IsGlobalUnicast() {
			return addr.Unmap()
		}
	}
	return netip.Addr{}
}

// State is all that a node has in its kernel for the ways to others.
type State struct {
	// Tunnel is nil if no way needs it.
	Tunnel *Tunnel
	// Direct are the routes by way of the underlay.
	Direct []Route
}

// Tunnel is a VXLAN link (RFC 7348) with what is on it.
type Tunnel struct {
	Local netip.Addr // in the underlay
	MAC   net.HardwareAddr
	VNI   int
	Port  int
	MTU   int
	// Addrs are this node's own addresses on the link, from which its own processes speak to other nodes' pods.
	Addrs []netip.Addr
	// Forward says behind which node of the underlay a link address is.
	Forward []Forward
	// Neighbours say which link address has the gateway of a node.
	Neighbours []Neighbour
	Routes     []Route
}

// Forward is an entry of the tunnel's forwarding database.
type Forward struct {
	MAC string
	To  netip.Addr
}

// Neighbour is a permanent entry, so that no ARP or neighbour discovery is ever needed.
type Neighbour struct {
	Addr netip.Addr
	MAC  string
}

// Route is a way to a node's pods.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Host is what the kernel says of this node's place in the underlay.
type Host struct {
	// Addr is this node's address.
	Addr netip.Addr
	// Index is that of the link with that address.
	Index int
	// Subnets are those that the link with that address is in, of every family.
	Subnets []netip.Prefix
	// MTU of that link.
	MTU int
}

// overhead of a VXLAN packet: the outer IP header, UDP, VXLAN and the inner Ethernet header, in bytes.
func overhead(underlay netip.Addr) int {
	if underlay.Is6() {
		return 40 + 8 + 8 + 14
	}
	return 20 + 8 + 8 + 14
}

// minMTU is the least that IPv6 works with (RFC 8200).
const minMTU = 1280

// PodMTU is that of pods' links over an underlay: what a tunnel leaves, so that it does not matter over which way a packet goes and pods
// keep theirs when the second node comes. With direct routes alone nothing is lost.
func PodMTU(underlay netip.Addr, mtu int, s Settings) int {
	switch {
	case s.PodMTU > 0:
		return s.PodMTU
	case s.Direct:
		return mtu
	}
	return max(mtu-overhead(underlay), minMTU)
}

// Settings are what a user can choose; all nodes of a cluster need the same VNI and port.
type Settings struct {
	// VNI is the tunnel's network identifier, from 1 to 16777215. 0: one that follows from the cluster's pod ranges, so that two
	// clusters on one machine are not in each other's way.
	VNI int
	// Port is the UDP port of the tunnel, DefaultPort if 0.
	Port int
	// Direct uses routes without a tunnel between nodes that are in one subnet.
	Direct bool
	// PodMTU is that of pods' links, 0 for what fits.
	PodMTU int
}

// DefaultPort is the port that IANA assigned to VXLAN.
const DefaultPort = 4789

// Check says what is wrong with settings.
func (s Settings) Check() error {
	switch {
	case s.VNI < 0 || s.VNI >= 1<<24:
		return fmt.Errorf("vxlan-vni: %d is not from 1 to 16777215", s.VNI)
	case s.Port < 0 || s.Port > 65535:
		return fmt.Errorf("vxlan-port: %d is not from 1 to 65535", s.Port)
	case s.PodMTU != 0 && (s.PodMTU < 576 || s.PodMTU > 65535):
		return fmt.Errorf("pod-mtu: %d is not from 576 to 65535", s.PodMTU)
	}
	return nil
}

// complete fills in what follows from the cluster's pod ranges.
func (s Settings) complete(inside []netip.Prefix) Settings {
	if s.Port == 0 {
		s.Port = DefaultPort
	}
	if s.VNI == 0 {
		hash := sha256.New()
		for _, p := range inside {
			fmt.Fprintln(hash, p)
		}
		s.VNI = 1 + int(binary.BigEndian.Uint64(hash.Sum(nil))%(1<<24-1))
	}
	return s
}

// Decide says what this node needs in its kernel. own are its ranges of pod addresses.
func Decide(self string, own []netip.Prefix, peers []Peer, h Host, s Settings) State {
	var st State
	var tunnelled []Peer
	for _, p := range peers {
		// what is left of some of its ranges when those that need no tunnel have their ways.
		rest := func(ranges []netip.Prefix) (rest []netip.Prefix) {
			for _, r := range ranges {
				// A next hop is of the family of what is routed.
				via := p.Addr
				if via.Is4() != r.Addr().Is4() {
					via = p.Other
				}
				if s.Direct && via.IsValid() && slices.ContainsFunc(h.Subnets, func(n netip.Prefix) bool { return n.Contains(via) }) {
					st.Direct = append(st.Direct, Route{To: r, Via: via})
				} else {
					rest = append(rest, r)
				}
			}
			return rest
		}
		p.Pods, p.Gateways = rest(p.Pods), rest(p.Gateways)
		if len(p.Pods) > 0 {
			tunnelled = append(tunnelled, p)
		}
	}
	if len(tunnelled) == 0 {
		return st
	}
	t := &Tunnel{Local: h.Addr, MAC: linkAddress(self), VNI: s.VNI, Port: s.Port, MTU: max(h.MTU-overhead(h.Addr), minMTU)}
	for _, r := range own {
		t.Addrs = append(t.Addrs, gateway(r))
	}
	for _, p := range tunnelled {
		mac := linkAddress(p.Name).String()
		t.Forward = append(t.Forward, Forward{MAC: mac, To: p.Addr})
		for _, r := range p.Pods {
			via := nextHop(p.Name, r)
			t.Neighbours = append(t.Neighbours, Neighbour{Addr: via, MAC: mac})
			t.Routes = append(t.Routes, Route{To: r, Via: via})
			for _, g := range p.Gateways {
				if g.Addr().Is4() == r.Addr().Is4() {
					t.Routes = append(t.Routes, Route{To: g, Via: via})
				}
			}
		}
	}
	st.Tunnel = t
	return st
}

// gateway is the address of a node in its own range, which no pod gets.
func gateway(r netip.Prefix) netip.Addr { return r.Masked().Addr().Next() }

// nextHop is the address by which packets to a node's range go through the tunnel. For IPv6 it is a link-local one: the kernel refuses
// others that are routed elsewhere at the moment, even if that is about to change.
func nextHop(node string, r netip.Prefix) netip.Addr {
	if r.Addr().Is4() {
		return gateway(r)
	}
	mac := linkAddress(node)
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// linkAddress is that of a node's end of the tunnel. It follows from the node's name, so that nobody needs to be told: a locally
// administered unicast address.
func linkAddress(node string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("coracle overlay " + node))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// resync is how often what is in the kernel is compared with what should be while there is more than one node: nothing tells of what
// another program changed there.
const resync = 5 * time.Minute
