package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/networktest"
	"coracle.dev/coracle/network/overlay"
)

// inside are the cluster's ranges.
var inside = []netip.Prefix{netip.MustParsePrefix("10.242.0.0/16"), netip.MustParsePrefix("fd42:7e57::/56")}

// member is a node of the test with one pod.
type member struct {
	networktest.Machine
	name   string
	ranges []netip.Prefix
	kernel *overlay.Kernel
	pod    string
	addrs  []netip.Addr
	before []string // routes
}

func join(t *testing.T, m networktest.Machine, i int, mtu int) *member {
	t.Helper()
	n := &member{Machine: m, name: fmt.Sprintf("node-%d", i), ranges: []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.242.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd42:7e57:0:%x::/64", i))}}
	n.pod = networktest.Namespace(t, strings.TrimPrefix(m.Path, "/run/netns/")+"-pod")
	var err error
	networktest.Inside(t, m.Path, func() {
		if _, err = link.EnableForwarding(inside...); err != nil {
			return
		}
		for _, p := range inside {
			if err = link.Blackhole(p); err != nil {
				return
			}
		}
		var pods *network.Pods
		if pods, err = network.NewPods("7e57", mtu); err != nil {
			return
		}
		n.before = networktest.Routes(t, m.Path)
		pods.SetRanges(n.ranges)
		if n.addrs, err = pods.Attach(context.Background(), "pod", n.pod, "pod"); err != nil {
			return
		}
		n.kernel, err = overlay.Open("7e570001", inside)
	})
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	t.Cleanup(n.kernel.Close)
	return n
}

func (n *member) peer(v4 bool) overlay.Peer {
	p := overlay.Peer{Name: n.name, Addr: n.V4, Other: n.V6, Pods: n.ranges}
	if !v4 {
		p.Addr, p.Other = n.V6, n.V4
	}
	return p
}

// apply makes the ways of every member to all the others.
func apply(t *testing.T, members []*member, v4 bool, s overlay.Settings) {
	t.Helper()
	for _, n := range members {
		var peers []overlay.Peer
		for _, o := range members {
			if o != n {
				peers = append(peers, o.peer(v4))
			}
		}
		var err error
		networktest.Inside(t, n.Path, func() {
			var h overlay.Host
			if h, err = n.kernel.Host(n.peer(v4).Addr); err == nil {
				err = n.kernel.Apply(overlay.Decide(n.name, n.ranges, peers, h, s), h)
			}
		})
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
	}
}

// exchange sends a stream and datagrams from a namespace to a pod and returns the source address that the pod saw.
func exchange(t *testing.T, from string, to *member, addr netip.Addr, mtu int, patience time.Duration) (string, error) {
	t.Helper()
	family, header := "4", 20
	if addr.Is6() {
		family, header = "6", 40
	}
	var l net.Listener
	var u net.PacketConn
	var err error
	networktest.Inside(t, to.pod, func() {
		l, err = net.Listen("tcp"+family, netip.AddrPortFrom(addr, 8080).String())
		if err == nil {
			u, err = net.ListenPacket("udp"+family, netip.AddrPortFrom(addr, 8080).String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer u.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%d %s", n, c.RemoteAddr().(*net.TCPAddr).IP)
	}()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	}()
	var seen string
	networktest.Inside(t, from, func() { seen, err = send(family, header, netip.AddrPortFrom(addr, 8080).String(), mtu, patience) })
	return seen, err
}

func send(family string, header int, to string, mtu int, patience time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp"+family, to, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	const stream = 1 << 20
	if _, err := c.Write(make([]byte, stream)); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	var n int
	var seen string
	if _, err := fmt.Sscan(string(answer), &n, &seen); err != nil || n != stream {
		return "", fmt.Errorf("stream: %q, %v", answer, err)
	}
	u, err := net.Dial("udp"+family, to)
	if err != nil {
		return "", err
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(20 * time.Second))
	raw, err := u.(syscall.Conn).SyscallConn()
	if err != nil {
		return "", err
	}
	if err := raw.Control(func(fd uintptr) {
		if family == "4" {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
	}); err != nil {
		return "", err
	}
	full := make([]byte, mtu-header-8)
	if _, err := u.Write(full); err != nil {
		return "", fmt.Errorf("a datagram as large as the link takes: %w", err)
	}
	if n, err := u.Read(make([]byte, 65536)); err != nil || n != len(full) {
		return "", fmt.Errorf("datagram of %d came back with %d: %w", len(full), n, err)
	}
	if _, err := u.Write(append(full, 0)); !errors.Is(err, unix.EMSGSIZE) {
		return "", fmt.Errorf("a datagram that is too large: %v", err)
	}
	return seen, nil
}

// patience is for what is to succeed, on a loaded machine too.
const patience = 30 * time.Second

// check sends from every pod, and from every machine, to every other pod.
func check(t *testing.T, members []*member, mtu int) {
	t.Helper()
	for _, from := range members {
		for _, to := range members {
			for i, addr := range to.addrs {
				if from == to {
					continue
				}
				seen, err := exchange(t, from.pod, to, addr, mtu, patience)
				if err != nil || seen != from.addrs[i].String() {
					t.Fatalf("pod of %s to %s: seen as %q, %v; want %s", from.name, addr, seen, err, from.addrs[i])
				}
				if _, err := exchange(t, from.Path, to, addr, mtu, patience); err != nil {
					t.Fatalf("%s to %s: %v", from.name, addr, err)
				}
			}
		}
	}
}

func TestPodsReachEachOtherOverATunnel(t *testing.T) {
	for _, underlay := range []string{"IPv4", "IPv6"} {
		t.Run(underlay, func(t *testing.T) {
			v4 := underlay == "IPv4"
			machines := networktest.Underlay(t, 3)
			s := overlay.Settings{VNI: 77, Port: 4789}
			mtu := overlay.PodMTU(machines[0].V6, 1500, s)
			if v4 {
				mtu = overlay.PodMTU(machines[0].V4, 1500, s)
			}
			var all []*member
			for i, m := range machines {
				all = append(all, join(t, m, i, mtu))
			}
			// Two nodes, a third joins, the first leaves.
			apply(t, all[:2], v4, s)
			check(t, all[:2], mtu)
			apply(t, all, v4, s)
			apply(t, all, v4, s) // changes nothing
			check(t, all, mtu)
			routes := networktest.Routes(t, all[2].Path)
			apply(t, all[1:], v4, s)
			check(t, all[1:], mtu)
			if _, err := exchange(t, all[1].pod, all[0], all[0].addrs[0], mtu, time.Second); err == nil {
				t.Error("there is still a way to a node that left")
			}
			if now := networktest.Routes(t, all[2].Path); len(now) != len(routes)-2 {
				t.Errorf("routes after a node of two families left:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(routes, "\n"))
			}
			// Back, and nothing is left of anything at the end.
			apply(t, all, v4, s)
			check(t, all, mtu)
			for _, n := range all {
				var err error
				networktest.Inside(t, n.Path, func() { err = errors.Join(overlay.Remove("7e570001", inside), network.RemoveAll("7e57")) })
				if err != nil {
					t.Fatal(err)
				}
				if links := networktest.Links(t, n.Path); !slices.Equal(links, []string{"lo", "eth0"}) {
					t.Errorf("links left: %q", links)
				}
				if now := networktest.Routes(t, n.Path); !slices.Equal(now, n.before) {
					t.Errorf("routes left:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(n.before, "\n"))
				}
			}
		})
	}
}

func TestDirectRoutes(t *testing.T) {
	machines := networktest.Underlay(t, 2)
	s := overlay.Settings{VNI: 77, Port: 4789, Direct: true}
	var all []*member
	for i, m := range machines {
		all = append(all, join(t, m, i, 1500))
	}
	apply(t, all, true, s)
	check(t, all, 1500)
	for _, n := range all {
		for _, name := range networktest.Links(t, n.Path) {
			if strings.HasPrefix(name, "covx") {
				t.Errorf("%s has the tunnel %s", n.name, name)
			}
		}
	}
	// From direct routes to a tunnel and back, and away.
	s.Direct = false
	apply(t, all, true, s)
	for _, n := range all {
		if !slices.Contains(networktest.Links(t, n.Path), "covx7e570001") {
			t.Errorf("%s has no tunnel", n.name)
		}
		s.Direct = true
	}
	apply(t, all, true, s)
	check(t, all, 1500)
	for _, n := range all {
		var err error
		networktest.Inside(t, n.Path, func() { err = n.kernel.Remove() })
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range networktest.Routes(t, n.Path) {
			if strings.Contains(r, n.peer(true).Pods[0].String()) || strings.Contains(r, "Protocol: 99") {
				t.Errorf("route left: %s", r)
			}
		}
	}
}
