package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
)

func newDialer() func(context.Context, string, string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext
}

// openWatch opens a watch in protobuf and returns its body.
func openWatch(ctx context.Context, web *http.Client, url string) (io.Reader, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf;stream=watch")
	resp, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil // ends with ctx
}

// countFrames counts the frames of a protobuf watch: a length of four bytes and that many
// bytes. It does not decode them, so that the clients do not take the machine from the server.
func countFrames(body io.Reader, seen *atomic.Int64) {
	r := bufio.NewReader(body)
	for {
		var length [4]byte
		_, err := io.ReadFull(r, length[:])
		if err == nil {
			_, err = r.Discard(int(binary.BigEndian.Uint32(length[:])))
		}
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				fmt.Fprintln(os.Stderr, "bench: a watch ended:", err)
			}
			return
		}
		seen.Add(1)
	}
}
