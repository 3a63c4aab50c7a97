package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
)

// errHead is a head or line that is longer than it may be.
var errHead = errors.New("head too long")

// buffered reads from a connection. It is used by one goroutine at a time.
type buffered struct {
	c    net.Conn
	buf  []byte
	r, w int
	// wait, if set, reads instead of c.Read; it watches what else may happen meanwhile.
	wait func([]byte) (int, error)
}

const firstBuffer = 4 << 10

// fill reads once, making room if there is none.
func (b *buffered) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	if b.w == len(b.buf) {
		if b.r > 0 {
			b.w = copy(b.buf, b.buf[b.r:b.w])
			b.r = 0
		} else {
			b.buf = append(b.buf, make([]byte, max(firstBuffer, len(b.buf)))...)
		}
	}
	n, err := b.read(b.buf[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (b *buffered) read(p []byte) (int, error) {
	if b.wait != nil {
		return b.wait(p)
	}
	return b.c.Read(p)
}

func (b *buffered) buffered() int { return b.w - b.r }

// until returns what comes up to the end of mark, as a string of its own, and takes it. started is called when the first byte is there.
func (b *buffered) until(mark []byte, limit int, started func()) (string, error) {
	scanned := 0
	for {
		if have := b.buf[b.r:b.w]; len(have) > scanned {
			if i := bytes.Index(have[max(0, scanned-len(mark)+1):], mark); i >= 0 {
				end := max(0, scanned-len(mark)+1) + i + len(mark)
				if end > limit {
					return "", errHead
				}
				s := string(have[:end])
				b.r += end
				return s, nil
			}
			scanned = len(have)
			if scanned >= limit {
				return "", errHead
			}
			if started != nil {
				started()
				started = nil
			}
		}
		if err := b.fill(); err != nil {
			return "", err
		}
	}
}

var (
	headEnd = []byte("\r\n\r\n")
	lineEnd = []byte("\r\n")
)

// Read gives what is buffered first.
func (b *buffered) Read(p []byte) (int, error) {
	if b.r < b.w {
		n := copy(p, b.buf[b.r:b.w])
		b.r += n
		return n, nil
	}
	return b.read(p)
}

// body is the body of an HTTP/1 message. Read returns io.EOF exactly at its end.
type body struct {
	in *buffered
	// left of the length, or of the chunk.
	left    int64
	chunked bool
	// toEnd says that the body goes on to the end of the connection.
	toEnd    bool
	began    bool
	done     bool
	err      error
	trailers fields
	limit    int
	// first is called before the first byte is read.
	first func() error
}

func (b *body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.next(p)
	if err == io.EOF && b.toEnd || err == nil && !b.chunked && !b.toEnd && b.left == 0 {
		b.done = true
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	if b.done {
		return n, io.EOF
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	return n, err
}

func (b *body) next(p []byte) (int, error) {
	if b.first != nil {
		first := b.first
		b.first = nil
		if err := first(); err != nil {
			return 0, err
		}
	}
	if b.toEnd {
		return b.in.Read(p)
	}
	if b.chunked && b.left == 0 {
		if err := b.chunk(); err != nil || b.done {
			return 0, err
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.in.Read(p)
	b.left -= int64(n)
	if n > 0 && b.chunked && b.left == 0 {
		err = b.chunkEnd()
	}
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

const maxLine = 4 << 10

// chunk reads the size of the next chunk, and after the last one the trailers.
func (b *body) chunk() error {
	line, err := b.in.until(lineEnd, maxLine, nil)
	if err != nil {
		return err
	}
	if b.left, err = chunkSize(line[:len(line)-2]); err != nil || b.left > 0 {
		return err
	}
	var text []byte
	for {
		line, err := b.in.until(lineEnd, maxLine, nil)
		if err != nil {
			return err
		}
		text = append(text, line...)
		if line == "\r\n" {
			break
		}
		if len(text) > b.limit {
			return refuse(431, "trailers too long")
		}
	}
	if len(text) > 2 {
		if b.trailers, err = parseLines(string(text), nil, 64); err != nil {
			return err
		}
		b.trailers = b.trailers.strip().remove("content-length").remove("host").remove("trailer")
	}
	b.done = true
	return nil
}

func (b *body) chunkEnd() error {
	end, err := b.in.until(lineEnd, 2, nil)
	if err != nil || end != "\r\n" {
		return refuse(400, "malformed end of chunk")
	}
	return nil
}

// buffers are what bodies and streams are copied through.
var buffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}
