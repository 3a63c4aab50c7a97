// Package datagram receives and sends UDP datagrams many at a time (recvmmsg(2), sendmmsg(2)), with several sockets on one
// address (SO_REUSEPORT) so that each reader has a queue of its own.
//
// It owns sockets and buffers. It knows nothing of what is in a datagram, and allocates nothing for one.
package datagram

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a UDP socket. Receive and Send are for one goroutine at a time, WriteTo for any number.
type Conn struct {
	udp *net.UDPConn
	raw syscall.RawConn
}

// Listen opens a socket on an address that others of this process may have too.
func Listen(at netip.AddrPort) (*Conn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); err != nil {
			return err
		}
		return failed
	}}
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	p, err := config.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	udp := p.(*net.UDPConn)
	// A burst waits here while a batch is answered. What the kernel does not grant is not needed.
	_ = udp.SetReadBuffer(1 << 20)
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	return &Conn{udp, raw}, nil
}

// Close ends the socket; Receive then fails with net.ErrClosed.
func (c *Conn) Close() error { return c.udp.Close() }

// Addr is the address of the socket.
func (c *Conn) Addr() netip.AddrPort { return c.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Peer is where a datagram came from.
type Peer struct {
	raw [unix.SizeofSockaddrInet6]byte
	len uint32
}

// Addr is the peer's address, without a zone.
func (p *Peer) Addr() netip.Addr {
	if binary.NativeEndian.Uint16(p.raw[:]) == unix.AF_INET {
		return netip.AddrFrom4([4]byte(p.raw[4:8]))
	}
	return netip.AddrFrom16([16]byte(p.raw[8:24])).Unmap()
}

// AddrPort is Addr with the port.
func (p *Peer) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(p.Addr(), binary.BigEndian.Uint16(p.raw[2:]))
}

// header is struct mmsghdr.
type header struct {
	msg unix.Msghdr
	len uint32
	_   [4]byte
}

// Batch is room for datagrams that were received and the replies to them. It belongs to one goroutine.
type Batch struct {
	in, out       []header
	inVec, outVec []unix.Iovec
	buffers       [][]byte
	peers         []Peer
	replies       int
	// n and errno are the outcome of the last call, and received and sent the calls, made once so that they cost no allocation.
	n              int
	errno          syscall.Errno
	received, sent func(fd uintptr) bool
	from           int
}

// NewBatch makes room for n datagrams of size bytes each. A longer one is cut.
func NewBatch(n, size int) *Batch {
	b := &Batch{in: make([]header, n), out: make([]header, n), inVec: make([]unix.Iovec, n), outVec: make([]unix.Iovec, n),
		buffers: make([][]byte, n), peers: make([]Peer, n)}
	all := make([]byte, n*size)
	for i := range n {
		b.buffers[i] = all[i*size : (i+1)*size : (i+1)*size]
		b.inVec[i].Base = &b.buffers[i][0]
		b.inVec[i].SetLen(size)
		b.in[i].msg = unix.Msghdr{Name: &b.peers[i].raw[0], Iov: &b.inVec[i]}
		b.in[i].msg.SetIovlen(1)
		b.out[i].msg.Iov = &b.outVec[i]
		b.out[i].msg.SetIovlen(1)
	}
	b.received = func(fd uintptr) bool { return b.call(unix.SYS_RECVMMSG, fd, b.in, unix.MSG_DONTWAIT) }
	b.sent = func(fd uintptr) bool { return b.call(unix.SYS_SENDMMSG, fd, b.out[b.from:b.replies], 0) }
	return b
}

// call makes one system call; false if it has to wait.
func (b *Batch) call(number, fd uintptr, list []header, flags uintptr) bool {
	n, _, errno := unix.Syscall6(number, fd, uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)), flags, 0, 0)
	b.n, b.errno = int(n), errno
	return errno != unix.EAGAIN && errno != unix.EINTR
}

// Receive waits for datagrams and takes as many as there are, at least one.
func (c *Conn) Receive(b *Batch) (int, error) {
	for i := range b.in {
		b.in[i].msg.Namelen = unix.SizeofSockaddrInet6
	}
	b.replies = 0
	if err := c.raw.Read(b.received); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, fmt.Errorf("recvmmsg: %w", b.errno)
	}
	for i := range b.n {
		b.peers[i].len = b.in[i].msg.Namelen
	}
	return b.n, nil
}

// Data is the i-th datagram received. It is valid until the next Receive.
func (b *Batch) Data(i int) []byte { return b.buffers[i][:b.in[i].len] }

// Peer is where the i-th came from. It is valid until the next Receive.
func (b *Batch) Peer(i int) *Peer { return &b.peers[i] }

// Reply puts data, which must stay as it is until Send, on its way to where the i-th datagram came from. There is at most one
// reply to each.
func (b *Batch) Reply(i int, data []byte) {
	h := &b.out[b.replies]
	b.outVec[b.replies].Base = &data[0]
	b.outVec[b.replies].SetLen(len(data))
	h.msg.Name, h.msg.Namelen = &b.peers[i].raw[0], b.peers[i].len
	b.replies++
}

// Send sends all replies. One that cannot be sent is lost, as any datagram can be.
func (c *Conn) Send(b *Batch) error {
	for b.from = 0; b.from < b.replies; {
		if err := c.raw.Write(b.sent); err != nil {
			return err
		}
		if b.errno != 0 {
			b.n = 1 // the first could not be sent: go on behind it
		}
		b.from += b.n
	}
	b.replies = 0
	return nil
}

// WriteTo sends one datagram.
func (c *Conn) WriteTo(data []byte, to *Peer) error {
	_, err := c.udp.WriteToUDPAddrPort(data, to.AddrPort())
	return err
}
