package announce

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	ethernet = 14 // length of the header

	arpRequest = 1
	arpReply   = 2

	solicitation = 135
	advertised   = 136

	flagSolicited = 0x40
	flagOverride  = 0x20
)

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
)

func header(to, from net.HardwareAddr, protocol uint16) []byte {
	frame := append(append(make([]byte, 0, 128), to...), from...)
	return binary.BigEndian.AppendUint16(frame, protocol)
}

// arp is an ARP frame for IPv4 over Ethernet.
func arp(op uint16, from net.HardwareAddr, sender netip.Addr, asker net.HardwareAddr, target netip.Addr, to net.HardwareAddr) []byte {
	frame := header(to, from, unix.ETH_P_ARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4)
	frame = binary.BigEndian.AppendUint16(frame, op)
	frame = append(append(frame, from...), sender.AsSlice()...)
	return append(append(frame, asker...), target.AsSlice()...)
}

// advertisement is a neighbour advertisement of an address.
func advertisement(from net.HardwareAddr, addr, dst netip.Addr, to net.HardwareAddr, solicited bool) []byte {
	flags := byte(flagOverride)
	if solicited {
		flags |= flagSolicited
	}
	body := append([]byte{advertised, 0, 0, 0, flags, 0, 0, 0}, addr.AsSlice()...)
	body = append(append(body, 2, 1), from...) // option: target link-layer address, of eight bytes
	binary.BigEndian.PutUint16(body[2:], checksum(addr, dst, body))
	frame := header(to, from, unix.ETH_P_IPV6)
	frame = append(frame, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	frame = append(append(frame, addr.AsSlice()...), dst.AsSlice()...)
	return append(frame, body...)
}

// checksum is that of ICMPv6, over the pseudo-header too (RFC 8200, 8.1).
func checksum(src, dst netip.Addr, body []byte) uint16 {
	data := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	data = append(data, 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	data = append(data, body...)
	sum := uint32(0)
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
