package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// hello is what the first bytes of a connection say.
type hello struct {
	secure     bool
	serverName string
}

// maxHello bounds a ClientHello with the records that it comes in.
const maxHello = 64 << 10

var errHello = errors.New("the ClientHello is read")

// readHello looks at the first bytes of a connection without taking them. A connection that does not begin with a TLS handshake is not secure.
func readHello(in *buffered) (hello, error) {
	for {
		have := in.buf[in.r:in.w]
		if len(have) > 0 && have[0] != 22 {
			return hello{}, nil
		}
		if complete(have) {
			break
		}
		if len(have) > maxHello {
			return hello{}, errHead
		}
		if err := in.fill(); err != nil {
			return hello{}, err
		}
	}
	h := hello{secure: true}
	t := tls.Server(&peeked{Reader: bytes.NewReader(in.buf[in.r:in.w])}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h.serverName = strings.ToLower(strings.TrimSuffix(info.ServerName, "."))
			return nil, errHello
		}})
	if err := t.Handshake(); !errors.Is(err, errHello) {
		return h, err
	}
	return h, nil
}

// complete says that the records at the beginning hold a whole handshake message.
func complete(b []byte) bool {
	need, got := -1, 0
	for len(b) >= 5 && b[0] == 22 {
		size := int(b[3])<<8 | int(b[4])
		if len(b) < 5+size {
			return false
		}
		part := b[5 : 5+size]
		if need < 0 {
			if size < 4 {
				return false
			}
			need = 4 + (int(part[1])<<16 | int(part[2])<<8 | int(part[3]))
		}
		got += size
		if got >= need {
			return true
		}
		b = b[5+size:]
	}
	return len(b) > 0 && b[0] != 22
}

// peeked is a connection that only has what was read already.
type peeked struct{ io.Reader }

func (*peeked) Write(p []byte) (int, error)      { return len(p), nil }
func (*peeked) Close() error                     { return nil }
func (*peeked) LocalAddr() net.Addr              { return nil }
func (*peeked) RemoteAddr() net.Addr             { return nil }
func (*peeked) SetDeadline(time.Time) error      { return nil }
func (*peeked) SetReadDeadline(time.Time) error  { return nil }
func (*peeked) SetWriteDeadline(time.Time) error { return nil }
