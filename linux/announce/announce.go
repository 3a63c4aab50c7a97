// Package announce answers for addresses on a link that no interface bears: ARP requests (RFC 826) and neighbour solicitations
// (RFC 4861), over packet sockets. When it comes to answer for an address it tells all neighbours, so that those that knew
// another link address forget it. It owns its sockets and nothing in the kernel besides: when the process ends, so does the answering.
// What happens to the packets that then come is not its business.
package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Announcer answers on one link. It is safe for concurrent use.
type Announcer struct {
	link *net.Interface
	log  *slog.Logger
	arp  *os.File
	ndp  *os.File

	mu    sync.Mutex // guards addrs and writes
	addrs map[netip.Addr]bool

	ended sync.WaitGroup
}

// Open begins to listen on the link that bears an address, in the network namespace of the calling thread. It needs CAP_NET_RAW.
func Open(bearing netip.Addr, log *slog.Logger) (*Announcer, error) {
	link, err := linkOf(bearing)
	if err != nil {
		return nil, fmt.Errorf("announce: %w", err)
	}
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("announce: link %s has no Ethernet address", link.Name)
	}
	a := &Announcer{link: link, log: log, addrs: map[netip.Addr]bool{}}
	if a.arp, err = listen(link, unix.ETH_P_ARP, nil); err != nil {
		return nil, fmt.Errorf("announce on %s: %w", link.Name, err)
	}
	// Of all IPv6 packets only neighbour solicitations: next header ICMPv6, type 135.
	solicitations, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 20, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 54, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: solicitation, SkipTrue: 1},
		bpf.RetConstant{Val: 2048}, bpf.RetConstant{Val: 0},
	})
	if err == nil {
		a.ndp, err = listen(link, unix.ETH_P_IPV6, solicitations)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("announce on %s: %w", link.Name, err), a.arp.Close())
	}
	a.ended.Go(func() { a.serve(a.arp, a.answerARP) })
	a.ended.Go(func() { a.serve(a.ndp, a.answerNDP) })
	return a, nil
}

// linkOf finds the link that bears an address.
func linkOf(addr netip.Addr) (*net.Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for i := range links {
		addrs, err := links[i].Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
				return &links[i], nil
			}
		}
	}
	return nil, fmt.Errorf("no link bears %s", addr)
}

func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func listen(link *net.Interface, protocol uint16, filter []bpf.RawInstruction) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // protocol 0: nothing until it is bound
	if err != nil {
		return nil, err
	}
	if len(filter) > 0 {
		program := make([]unix.SockFilter, len(filter))
		for i, f := range filter {
			program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(protocol), Ifindex: link.Index})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// Set replaces the addresses that are answered for, and tells the neighbours of those that are new.
func (a *Announcer) Set(addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	want := map[netip.Addr]bool{}
	for _, addr := range addrs {
		want[addr] = true
	}
	var errs []error
	for addr := range a.addrs {
		if !want[addr] {
			errs = append(errs, a.group(addr, unix.PACKET_DROP_MEMBERSHIP))
			delete(a.addrs, addr)
		}
	}
	for addr := range want {
		if a.addrs[addr] {
			continue
		}
		if err := a.group(addr, unix.PACKET_ADD_MEMBERSHIP); err != nil {
			errs = append(errs, err)
			continue
		}
		a.addrs[addr] = true
		errs = append(errs, a.tell(addr))
	}
	return errors.Join(errs...)
}

// group has the link take packets to an IPv6 address's solicited-node group, or not any more.
func (a *Announcer) group(addr netip.Addr, option int) error {
	if addr.Is4() {
		return nil
	}
	b := addr.As16()
	m := unix.PacketMreq{Ifindex: int32(a.link.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6,
		Address: [8]uint8{0x33, 0x33, 0xff, b[13], b[14], b[15]}}
	raw, err := a.ndp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &m) }); err != nil {
		return err
	}
	return failed
}

// tell announces an address to all: a gratuitous ARP request and reply, or an unsolicited neighbour advertisement.
func (a *Announcer) tell(addr netip.Addr) error {
	if addr.Is4() {
		_, err := a.arp.Write(arp(arpRequest, a.link.HardwareAddr, addr, make(net.HardwareAddr, 6), addr, broadcast))
		if err == nil {
			_, err = a.arp.Write(arp(arpReply, a.link.HardwareAddr, addr, broadcast, addr, broadcast))
		}
		return err
	}
	_, err := a.ndp.Write(advertisement(a.link.HardwareAddr, addr, allNodes, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, false))
	return err
}

// Close ends the answering.
func (a *Announcer) Close() error {
	err := errors.Join(a.arp.Close(), a.ndp.Close())
	a.ended.Wait()
	return err
}

// serve reads frames until the socket is closed. answer gives a frame to send, nil for none.
func (a *Announcer) serve(f *os.File, answer func(frame []byte) []byte) {
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EINTR) {
				continue // the link went down, which is told once
			}
			if !errors.Is(err, os.ErrClosed) {
				a.log.Error("load balancer addresses are not answered for any more", "link", a.link.Name, "error", err)
			}
			return
		}
		if reply := answer(buf[:n]); reply != nil {
			if _, err := f.Write(reply); err != nil {
				a.log.Debug("announce", "link", a.link.Name, "error", err)
			}
		}
	}
}

func (a *Announcer) has(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.addrs[addr]
}

func (a *Announcer) answerARP(frame []byte) []byte {
	if len(frame) < ethernet+28 || binary.BigEndian.Uint16(frame[ethernet+6:]) != arpRequest {
		return nil
	}
	p := frame[ethernet:]
	sender, _ := netip.AddrFromSlice(p[14:18])
	target, _ := netip.AddrFromSlice(p[24:28])
	if sender == target || !a.has(target) {
		return nil
	}
	asker := net.HardwareAddr(p[8:14])
	return arp(arpReply, a.link.HardwareAddr, target, asker, sender, asker)
}

func (a *Announcer) answerNDP(frame []byte) []byte {
	if len(frame) < ethernet+40+24 || frame[ethernet+40] != solicitation {
		return nil
	}
	source, _ := netip.AddrFromSlice(frame[ethernet+8 : ethernet+24])
	target, _ := netip.AddrFromSlice(frame[ethernet+48 : ethernet+64])
	if !a.has(target) {
		return nil
	}
	if source.IsUnspecified() { // somebody wants to bear the address itself
		return advertisement(a.link.HardwareAddr, target, allNodes, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, false)
	}
	return advertisement(a.link.HardwareAddr, target, source, net.HardwareAddr(frame[6:12]), true)
}
