package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"coracle.dev/coracle/mesh/table"
)

// echo is a gRPC server by hand: Unary answers what it is asked, with a trailer, or fails for "fail", or never answers for "hang"; Both echoes.
var echo = &grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &wrapperspb.StringValue{}
		if err := read(in); err != nil {
			return nil, err
		}
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "end"))
		switch in.Value {
		case "fail":
			return nil, status.Error(codes.FailedPrecondition, "not now")
		case "hang":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return in, nil
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Both", ClientStreams: true, ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			in := &wrapperspb.StringValue{}
			if err := s.RecvMsg(in); err == io.EOF {
				s.SetTrailer(metadata.Pairs("x-trailer", "both"))
				return nil
			} else if err != nil {
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	}}}}

// TestGRPC goes through the proxy with grpc-go on both sides, in clear text and over TLS.
func TestGRPC(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	s := grpc.NewServer()
	s.RegisterService(echo, struct{}{})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	b := backend("b", l.Addr().String())
	b.Protocol = table.HTTP2
	h := hosts(&table.Route{Match: table.Match{Path: table.PathMatch{Kind: table.PathGRPC, Service: "test.Echo"}}, Rule: to("b")})
	certificate, roots := certificate("grpc.example.com")
	w := newWorld(t)
	w.apply([]*table.Listener{web(h), must(table.NewListener(table.Listener{ID: "tls", Address: loopback, Chains: []*table.Chain{
		{Hosts: h, TLS: must(table.MakeTLS([]tls.Certificate{certificate}, nil, 0, nil))}}}))}, b)
	for listener, secret := range map[string]credentials.TransportCredentials{"web": insecure.NewCredentials(),
		"tls": credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "grpc.example.com"})} {
		t.Run(listener, func(t *testing.T) {
			c := must(grpc.NewClient("passthrough:///"+w.address(listener), grpc.WithTransportCredentials(secret)))
			defer c.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			call := func(ctx context.Context, text string) (string, metadata.MD, error) {
				out, trailer := &wrapperspb.StringValue{}, metadata.MD{}
				err := c.Invoke(ctx, "/test.Echo/Unary", wrapperspb.String(text), out, grpc.Trailer(&trailer))
				return out.Value, trailer, err
			}
			for _, text := range []string{"", "hello", strings.Repeat("x", 2<<20)} {
				if got, trailer, err := call(ctx, text); err != nil || got != text || len(trailer["x-trailer"]) != 1 {
					t.Fatalf("%d bytes: %d came back, %v %v", len(text), len(got), trailer, err)
				}
			}
			if _, trailer, err := call(ctx, "fail"); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not now" || len(trailer["x-trailer"]) != 1 {
				t.Errorf("%v %v", trailer, err)
			}
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			if _, _, err := call(short, "hang"); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("a deadline ends in %v", err)
			}
			if err := c.Invoke(ctx, "/other.Service/Unary", wrapperspb.String(""), &wrapperspb.StringValue{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("a service without a route answers %v", err)
			}
			stream, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Both")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				out := &wrapperspb.StringValue{}
				if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
				if err := stream.RecvMsg(out); err != nil || out.Value != fmt.Sprint(i) {
					t.Fatal(out, err)
				}
			}
			_ = stream.CloseSend()
			if err := stream.RecvMsg(&wrapperspb.StringValue{}); err != io.EOF || len(stream.Trailer()["x-trailer"]) != 1 {
				t.Errorf("%v %v", err, stream.Trailer())
			}
		})
	}
}

// TestWebSocket echoes through gorilla's client and server, frames of a megabyte too, and ends by the closing handshake.
func TestWebSocket(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := (&websocket.Upgrader{EnableCompression: true}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, b, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, b) != nil {
				return
			}
		}
	})
	w := newWorld(t)
	w.serve(to("b"), backend("b", at))
	c, _, err := (&websocket.Dialer{EnableCompression: true}).Dial("ws://"+w.address("web")+"/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	for _, n := range []int{0, 1, 125, 126, 1 << 16, 1 << 20} {
		sent := bytes.Repeat([]byte{7}, n)
		if err := c.WriteMessage(websocket.BinaryMessage, sent); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.ReadMessage(); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d of %d bytes: %v", len(got), n, err)
		}
	}
	_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "bye"))
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("closed with %v", err)
	}
}

// zeros is a body of a length that is nowhere in memory.
func zeros(n int64) io.Reader { return io.LimitReader(zero{}, n) }

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLarge moves 64 MB both ways at once; the answer begins before the request ends, so neither side can have been kept whole.
func TestLarge(t *testing.T) {
	const size = 64 << 20
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	w := newWorld(t)
	url := w.serve(to("b"), backend("b", at))
	r, err := two(t, w.address("web")).Post(url, "application/octet-stream", zeros(size))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if n, err := io.Copy(io.Discard, r.Body); err != nil || n != size {
		t.Errorf("%d bytes came back: %v", n, err)
	}
}

// TestTooMuch holds the bounds on heads over HTTP/2.
func TestTooMuch(t *testing.T) {
	at := server(t, func(http.ResponseWriter, *http.Request) {})
	w := newWorld(t)
	url := w.serve(to("b"), backend("b", at))
	q := must(http.NewRequest("GET", url, nil))
	for i := range 200 {
		q.Header.Set(fmt.Sprint("X-", i), "1")
	}
	r, err := two(t, w.address("web")).Do(q)
	if err != nil || r.StatusCode != 431 {
		t.Fatal(r, err)
	}
	r.Body.Close()
}
