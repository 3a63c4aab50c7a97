package encrypt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// service calls a KMS plugin (k8s.io/kms/apis/v2, KEP-3299): unary gRPC over HTTP/2 on a Unix socket, which takes a frame of five
// bytes and a trailer, and no library. Safe for concurrent use.
type service struct {
	client  *http.Client
	timeout time.Duration
}

// maxReply bounds an answer: keys, identifiers and annotations have limits of their own, far below.
const maxReply = 1 << 20

func newService(socket string, timeout time.Duration) *service {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	return &service{timeout: timeout, client: &http.Client{Transport: &http.Transport{
		Protocols: &protocols, DisableCompression: true, IdleConnTimeout: 5 * time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// call sends one message and gives the one that comes back.
func (s *service) call(method string, message []byte) (fields, error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))) // not compressed
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://kms/v2.KeyManagementService/"+method, bytes.NewReader(append(body, message...)))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("call %s of the KMS plugin: %w", method, errors.Unwrap(err))
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxReply))
	if err != nil {
		return nil, fmt.Errorf("call %s of the KMS plugin: %w", method, err)
	}
	status := answer.Trailer
	if status.Get("Grpc-Status") == "" {
		status = answer.Header // an answer without message has no trailer
	}
	if code := status.Get("Grpc-Status"); code != "0" || answer.StatusCode != http.StatusOK {
		text, err := url.PathUnescape(status.Get("Grpc-Message"))
		if err != nil {
			text = status.Get("Grpc-Message")
		}
		return nil, fmt.Errorf("call %s of the KMS plugin: code %s (HTTP %d): %s", method, code, answer.StatusCode, text)
	}
	if len(data) < 5 || data[0] != 0 || int(binary.BigEndian.Uint32(data[1:5])) != len(data)-5 {
		return nil, fmt.Errorf("call %s of the KMS plugin: the answer is no gRPC message", method)
	}
	return parse(data[5:])
}

func (s *service) close() { s.client.CloseIdleConnections() }

// fields are those of a protobuf message: bytes by number, the last one where there are several; entries of maps gather in
// annotations. Numbers of varint type stand as their value in front of no bytes.
type fields map[protowire.Number]value

type value struct {
	bytes  []byte
	number uint64
	all    [][]byte
}

var errMessage = errors.New("this is no protobuf message")

func parse(data []byte) (fields, error) {
	out := fields{}
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil, errMessage
		}
		data = data[n:]
		v := out[number]
		switch kind {
		case protowire.BytesType:
			b, n := protowire.ConsumeBytes(data)
			if n < 0 {
				return nil, errMessage
			}
			v.bytes, v.all, data = b, append(v.all, b), data[n:]
		case protowire.VarintType:
			x, n := protowire.ConsumeVarint(data)
			if n < 0 {
				return nil, errMessage
			}
			v.number, data = x, data[n:]
		default:
			n := protowire.ConsumeFieldValue(number, kind, data)
			if n < 0 {
				return nil, errMessage
			}
			data = data[n:]
		}
		out[number] = v
	}
	return out, nil
}

// annotations reads a map of bytes by string.
func (v value) annotations() (map[string][]byte, error) {
	if len(v.all) == 0 {
		return nil, nil
	}
	out := map[string][]byte{}
	for _, entry := range v.all {
		f, err := parse(entry)
		if err != nil {
			return nil, err
		}
		out[string(f[1].bytes)] = f[2].bytes
	}
	return out, nil
}

func appendBytes(to []byte, number protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return to
	}
	return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), b)
}
