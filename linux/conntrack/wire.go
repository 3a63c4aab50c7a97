package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What linux/netfilter/nfnetlink_conntrack.h names.
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	attrOriginal = 1 // CTA_TUPLE_ORIG
	attrReply    = 2
	attrTimeout  = 7
	attrMark     = 8
	attrID       = 12
	attrZone     = 18
	attrFilter   = 25

	tupleIP    = 1
	tupleProto = 2

	ipv4Src = 1
	ipv4Dst = 2
	ipv6Src = 3
	ipv6Dst = 4

	protoNumber = 1
	protoSrc    = 2
	protoDst    = 3

	filterOriginal = 1 // CTA_FILTER_ORIG_FLAGS
	filterReply    = 2

	flagSrc     = 1 << 0
	flagDst     = 1 << 1
	flagNumber  = 1 << 3
	flagSrcPort = 1 << 4
	flagDstPort = 1 << 5

	nested    = unix.NLA_F_NESTED
	headerLen = 4 // struct nfgenmsg
)

func messageType(kind netlink.HeaderType) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK)<<8 | kind
}

func header(family uint8) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

// errFamilies says that a filter cannot be met by any flow.
var errFamilies = errors.New("a filter with addresses of two families")

// family is that of the filter's addresses, unspecified if it has none.
func (f Filter) family() (uint8, error) {
	family := f.Family
	for _, a := range []netip.Addr{f.Original.Src, f.Original.Dst, f.Reply.Src, f.Reply.Dst} {
		if !a.IsValid() {
			continue
		}
		this := uint8(unix.AF_INET)
		if a.Is6() {
			this = unix.AF_INET6
		}
		if family != unix.AF_UNSPEC && family != this {
			return 0, errFamilies
		}
		family = this
	}
	return family, nil
}

// request is the message that asks for a filter's flows. Without addresses the family is not known, and the kernel
// refuses to look at ports; then all is asked for, and means sorts it out.
func (f Filter) request() (netlink.Message, error) {
	m := netlink.Message{Header: netlink.Header{Type: messageType(msgGet), Flags: netlink.Request | netlink.Dump}}
	family, err := f.family()
	if err != nil {
		return m, err
	}
	m.Data = header(family)
	if family == unix.AF_INET6 {
		// Kernels compare IPv6 addresses the wrong way around here (seen in 6.18): only protocol and ports are left to them.
		f.Original.Src, f.Original.Dst, f.Reply.Src, f.Reply.Dst = netip.Addr{}, netip.Addr{}, netip.Addr{}, netip.Addr{}
	}
	original, reply := f.Original.flags(), f.Reply.flags()
	if original|reply == 0 || family == unix.AF_UNSPEC {
		return m, nil
	}
	e := netlink.NewAttributeEncoder()
	e.Nested(attrFilter|nested, func(e *netlink.AttributeEncoder) error {
		e.Uint32(filterOriginal, original)
		e.Uint32(filterReply, reply)
		return nil
	})
	if original != 0 {
		e.Nested(attrOriginal|nested, f.Original.encode)
	}
	if reply != 0 {
		e.Nested(attrReply|nested, f.Reply.encode)
	}
	data, err := e.Encode()
	m.Data = append(m.Data, data...)
	return m, err
}

// flags says which parts of a tuple are to agree. Ports cannot be looked at without the protocol.
func (t Tuple) flags() uint32 {
	var flags uint32
	if t.Src.IsValid() {
		flags |= flagSrc
	}
	if t.Dst.IsValid() {
		flags |= flagDst
	}
	if t.Proto == 0 {
		return flags
	}
	flags |= flagNumber
	if t.SrcPort != 0 {
		flags |= flagSrcPort
	}
	if t.DstPort != 0 {
		flags |= flagDstPort
	}
	return flags
}

func (t Tuple) encode(e *netlink.AttributeEncoder) error {
	if t.Src.IsValid() || t.Dst.IsValid() {
		e.Nested(tupleIP|nested, func(e *netlink.AttributeEncoder) error {
			for i, a := range []netip.Addr{t.Src, t.Dst} {
				switch {
				case a.Is4():
					e.Bytes(uint16(ipv4Src+i), a.AsSlice())
				case a.Is6():
					e.Bytes(uint16(ipv6Src+i), a.AsSlice())
				}
			}
			return nil
		})
	}
	if t.Proto != 0 {
		e.Nested(tupleProto|nested, func(e *netlink.AttributeEncoder) error {
			e.Uint8(protoNumber, t.Proto)
			if t.SrcPort != 0 {
				e.Bytes(protoSrc, be16(t.SrcPort))
			}
			if t.DstPort != 0 {
				e.Bytes(protoDst, be16(t.DstPort))
			}
			return nil
		})
	}
	return nil
}

// deletion is the message that deletes a flow, and not a later one that has the same addresses.
func (f *Flow) deletion() (netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.Bytes(attrOriginal|nested, f.tuple)
	e.Bytes(attrID, binary.NativeEndian.AppendUint32(nil, f.id))
	if f.Zone != 0 {
		e.Bytes(attrZone, be16(f.Zone))
	}
	data, err := e.Encode()
	return netlink.Message{Header: netlink.Header{Type: messageType(msgDelete), Flags: netlink.Request | netlink.Acknowledge},
		Data: append(header(f.family), data...)}, err
}

// parse reads a flow as the kernel gives it.
func parse(data []byte) (Flow, error) {
	var f Flow
	if len(data) < headerLen {
		return f, errors.New("a message without its header")
	}
	f.family = data[0]
	d, err := netlink.NewAttributeDecoder(data[headerLen:])
	if err != nil {
		return f, err
	}
	for d.Next() {
		switch d.Type() {
		case attrOriginal:
			f.tuple = append([]byte(nil), d.Bytes()...)
			d.Nested(f.Original.decode)
		case attrReply:
			d.Nested(f.Reply.decode)
		case attrTimeout:
			f.Timeout = time.Duration(be(d.Bytes())) * time.Second
		case attrMark:
			f.Mark = be(d.Bytes())
		case attrZone:
			f.Zone = uint16(be(d.Bytes()))
		case attrID:
			if b := d.Bytes(); len(b) == 4 {
				f.id = binary.NativeEndian.Uint32(b)
			}
		}
	}
	return f, d.Err()
}

func (t *Tuple) decode(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case tupleIP:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					a, _ := netip.AddrFromSlice(d.Bytes())
					switch d.Type() {
					case ipv4Src, ipv6Src:
						t.Src = a
					case ipv4Dst, ipv6Dst:
						t.Dst = a
					}
				}
				return nil
			})
		case tupleProto:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					switch d.Type() {
					case protoNumber:
						t.Proto = uint8(be(d.Bytes()))
					case protoSrc:
						t.SrcPort = uint16(be(d.Bytes()))
					case protoDst:
						t.DstPort = uint16(be(d.Bytes()))
					}
				}
				return nil
			})
		}
	}
	return nil
}

// be is a number in network order of up to four bytes.
func be(b []byte) (n uint32) {
	for _, x := range b {
		n = n<<8 | uint32(x)
	}
	return n
}
