package datagram

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestEcho sends datagrams of both families and gets each back from where it went.
func TestEcho(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, err := Listen(netip.MustParseAddrPort(at))
		if err != nil {
			if at[0] == '[' {
				t.Skip(err)
			}
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- echo(c) }()
		client, err := net.Dial("udp", c.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			for n := range 3 {
				if _, err := client.Write(bytes.Repeat([]byte{byte(n + 1)}, 10)); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 3 {
				buf := make([]byte, 100)
				got, err := client.Read(buf)
				if err != nil || got != 10 || buf[0] != byte(n+1) {
					t.Fatalf("%d of %v: %v", got, buf[:got], err)
				}
			}
		}
		c.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}

func echo(c *Conn) error {
	b := NewBatch(8, 512)
	for {
		n, err := c.Receive(b)
		if err != nil {
			return err
		}
		for i := range n {
			if !b.Peer(i).Addr().IsLoopback() {
				return errors.New(b.Peer(i).AddrPort().String())
			}
			b.Reply(i, b.Data(i))
		}
		if err := c.Send(b); err != nil {
			return err
		}
	}
}
