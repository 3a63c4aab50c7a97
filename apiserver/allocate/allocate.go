// Package allocate chooses what services need of scarce numbers: cluster IPs, node
// ports and health check node ports.
//
// What is in use is read from the services themselves, by following their history; nothing
// is stored beside them. A number that was chosen is held until its service is committed, so that
// two requests at once never get the same. It waits for nothing while it holds its lock.
package allocate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Allocator chooses addresses and ports. It is safe for concurrent use.
type Allocator struct {
	store    client.Reader
	ranges   []ipRange
	portsMin int
	portsMax int

	mu      sync.Mutex // guards all below
	cursor  store.Cursor
	ips     map[netip.Addr]int // services that use an address
	ports   map[int]int        // uses of a port
	heldIPs map[netip.Addr]bool
	heldPts map[int]bool
}

// ipRange is a range of one family.
type ipRange struct {
	family corev1.IPFamily
	prefix netip.Prefix
	first  netip.Addr
	size   uint64 // usable addresses from first on
	band   uint64 // how many at the start are given out last
}

var (
	errIPTaken   = errors.New("provided IP is already allocated")
	errNoRange   = errors.New("the provided network does not match the current range")
	errFull      = errors.New("range is full")
	errPortTaken = errors.New("provided port is already allocated")
)

// New makes an Allocator over ranges (one a family, the preferred first) and node ports, both ends included.
func New(reader client.Reader, ranges []netip.Prefix, ports [2]int) (*Allocator, error) {
	a := &Allocator{store: reader, portsMin: ports[0], portsMax: ports[1]}
	for _, p := range ranges {
		r := newRange(p.Masked())
		for _, have := range a.ranges {
			if have.family == r.family {
				return nil, fmt.Errorf("two service ranges of the family %s", r.family)
			}
		}
		a.ranges = append(a.ranges, r)
	}
	return a, nil
}

// maxRange bounds the addresses of a range that are used.
const maxRange = 1 << 32

func newRange(p netip.Prefix) ipRange {
	r := ipRange{family: corev1.IPv4Protocol, prefix: p, first: p.Addr().Next()}
	bits := p.Addr().BitLen() - p.Bits()
	if p.Addr().Is6() {
		r.family = corev1.IPv6Protocol
	}
	r.size = maxRange
	if bits < 32 {
		r.size = 1 << bits
	}
	r.size-- // the network itself
	if r.family == corev1.IPv4Protocol && r.size > 0 {
		r.size-- // broadcast
	}
	// Addresses that people choose by hand come from the start (KEP-3070).
	r.band = min(max(16, r.size/16), 256)
	if r.size <= 16 {
		r.band = 0
	}
	return r
}

// at is the address at an offset from the first.
func (r *ipRange) at(offset uint64) netip.Addr {
	b := r.first.As16()
	for i := 15; i >= 0 && offset > 0; i-- {
		offset += uint64(b[i])
		b[i] = byte(offset)
		offset >>= 8
	}
	addr := netip.AddrFrom16(b)
	if r.family == corev1.IPv4Protocol {
		return addr.Unmap()
	}
	return addr
}

// refresh follows the services up to the present; a.mu is held.
func (a *Allocator) refresh() error {
	if a.cursor != nil {
		events, err := a.cursor.Poll()
		if err == nil {
			for i := range events {
				a.apply(&events[i])
			}
			return nil
		}
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	snap := a.store.Snapshot()
	cursor, err := a.store.Cursor(snap.Revision(), client.Services.Name)
	if err != nil {
		return err
	}
	a.cursor = cursor
	a.ips, a.ports = map[netip.Addr]int{}, map[int]int{}
	if a.heldIPs == nil {
		a.heldIPs, a.heldPts = map[netip.Addr]bool{}, map[int]bool{}
	}
	for svc := range client.Services.List(snap, "") {
		a.count(svc, 1)
	}
	return nil
}

func (a *Allocator) apply(ev *store.Event) {
	if ev.Prev != nil {
		a.count(ev.Prev.Object.(*corev1.Service), -1)
	}
	if !ev.Deleted {
		a.count(ev.Entry.Object.(*corev1.Service), 1)
	}
}

// count adds or removes what a service uses.
func (a *Allocator) count(svc *corev1.Service, n int) {
	for _, ip := range addresses(svc) {
		if a.ips[ip] += n; a.ips[ip] <= 0 {
			delete(a.ips, ip)
		}
	}
	for port := range portsOf(svc) {
		if a.ports[port] += n; a.ports[port] <= 0 {
			delete(a.ports, port)
		}
	}
}

// addresses are the cluster IPs of a service.
func addresses(svc *corev1.Service) []netip.Addr {
	list := svc.Spec.ClusterIPs
	if len(list) == 0 && svc.Spec.ClusterIP != "" {
		list = []string{svc.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, s := range list {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// portsOf is the set of node ports of a service.
func portsOf(svc *corev1.Service) map[int]bool {
	out := map[int]bool{}
	for i := range svc.Spec.Ports {
		if p := svc.Spec.Ports[i].NodePort; p != 0 {
			out[int(p)] = true
		}
	}
	if p := svc.Spec.HealthCheckNodePort; p != 0 {
		out[int(p)] = true
	}
	return out
}

// hold is what one request has chosen so far.
type hold struct {
	a     *Allocator
	snap  store.Snapshot
	ips   []netip.Addr
	ports []int
}

// release ends the hold; what was committed is in use from now on because its service says so.
func (h *hold) release() {
	h.a.mu.Lock()
	defer h.a.mu.Unlock()
	for _, ip := range h.ips {
		delete(h.a.heldIPs, ip)
	}
	for _, p := range h.ports {
		delete(h.a.heldPts, p)
	}
}

// rangeOf finds the range of a family, nil if there is none.
func (a *Allocator) rangeOf(f corev1.IPFamily) *ipRange {
	for i := range a.ranges {
		if a.ranges[i].family == f {
			return &a.ranges[i]
		}
	}
	return nil
}

func (h *hold) ipFree(ip netip.Addr) bool {
	return h.a.ips[ip] == 0 && !h.a.heldIPs[ip] && !h.reserved(ip)
}

// manager is the label of the IPAddresses that only show what services use; see controllers/ipaddress.
const manager = "ipallocator.k8s.io"

// reserved tells whether somebody keeps an address for something other than a service's allocation, by an IPAddress of theirs.
func (h *hold) reserved(ip netip.Addr) bool {
	e := h.snap.Get(store.Key{Resource: "ipaddresses.networking.k8s.io", Name: ip.String()})
	if e == nil {
		return false
	}
	o, ok := e.Object.(*networkingv1.IPAddress)
	return ok && o.Labels[networkingv1.LabelManagedBy] != manager
}

// rangesOf gives the ranges of a family: that of the cluster, and behind it those of ServiceCIDRs which are ready
// (https://kubernetes.io/docs/reference/networking/virtual-ips/#ip-address-objects).
func (h *hold) rangesOf(f corev1.IPFamily) []*ipRange {
	var out []*ipRange
	if r := h.a.rangeOf(f); r != nil {
		out = append(out, r)
	}
	for cidr := range serviceCIDRs.List(h.snap, "") {
		if cidr.Name == defaultCIDR || cidr.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(cidr.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
			continue
		}
		for _, text := range cidr.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				continue
			}
			if r := newRange(p.Masked()); r.family == f {
				out = append(out, &r)
			}
		}
	}
	return out
}

// defaultCIDR is the ServiceCIDR that shows the cluster's own ranges.
const defaultCIDR = "kubernetes"

var serviceCIDRs = client.Resource[*networkingv1.ServiceCIDR]{Name: "servicecidrs.networking.k8s.io"}

// contains tells whether an address can be given out.
func (r *ipRange) contains(ip netip.Addr) bool {
	return r.prefix.Contains(ip) && ip != r.prefix.Addr() && (r.family == corev1.IPv6Protocol || r.prefix.Bits() > 30 || ip != r.at(r.size))
}

// takeIP reserves an address that was asked for.
func (h *hold) takeIP(f corev1.IPFamily, s string) error {
	ip, err := netip.ParseAddr(s)
	if err != nil || !slices.ContainsFunc(h.rangesOf(f), func(r *ipRange) bool { return r.contains(ip) }) {
		return errNoRange
	}
	if !h.ipFree(ip) {
		return errIPTaken
	}
	h.a.heldIPs[ip] = true
	h.ips = append(h.ips, ip)
	return nil
}

// nextIP reserves any address of the first range that has one, from its upper part while there is one.
func (h *hold) nextIP(f corev1.IPFamily) (netip.Addr, error) {
	for _, r := range h.rangesOf(f) {
		for _, part := range [][2]uint64{{r.band, r.size}, {0, r.band}} {
			if ip, ok := h.scanIPs(r, part[0], part[1]); ok {
				h.a.heldIPs[ip] = true
				h.ips = append(h.ips, ip)
				return ip, nil
			}
		}
	}
	return netip.Addr{}, errFull
}

// scanIPs looks for a free address between two offsets, from a random one on.
func (h *hold) scanIPs(r *ipRange, from, to uint64) (netip.Addr, bool) {
	if to <= from {
		return netip.Addr{}, false
	}
	n := to - from
	start := rand.Uint64N(n)
	// No more than used, held and reserved addresses can be in the way.
	for i, most := uint64(0), uint64(len(h.a.ips)+len(h.a.heldIPs)+1); i < min(n, most); i++ {
		ip := r.at(from + (start+i)%n)
		if h.ipFree(ip) {
			return ip, true
		}
		if h.reserved(ip) {
			most++
		}
	}
	return netip.Addr{}, false
}

func (h *hold) portFree(p int) bool { return h.a.ports[p] == 0 && !h.a.heldPts[p] }

// takePort reserves a port that was asked for.
func (h *hold) takePort(p int) error {
	if p < h.a.portsMin || p > h.a.portsMax {
		return fmt.Errorf("provided port is not in the valid range. The range of valid ports is %d-%d", h.a.portsMin, h.a.portsMax)
	}
	if !h.portFree(p) {
		return errPortTaken
	}
	h.keepPort(p)
	return nil
}

func (h *hold) keepPort(p int) {
	h.a.heldPts[p] = true
	h.ports = append(h.ports, p)
}

// nextPort reserves any port, from the upper part of the range while there is one (KEP-3668).
func (h *hold) nextPort() (int, error) {
	size := h.a.portsMax - h.a.portsMin + 1
	band := min(max(16, size/32), 128)
	if size <= 16 {
		band = 0
	}
	for _, part := range [][2]int{{band, size}, {0, band}} {
		n := part[1] - part[0]
		if n <= 0 {
			continue
		}
		start := rand.IntN(n)
		for i := range n {
			if p := h.a.portsMin + part[0] + (start+i)%n; h.portFree(p) {
				h.keepPort(p)
				return p, nil
			}
		}
	}
	return 0, errFull
}
