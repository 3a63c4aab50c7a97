package kubelet

import (
	"io"
	"sync"
)

// inputBuffer is how much input waits for a process that does not read it. All streams of a WebSocket come one
// behind the other, so that without it one byte that nobody reads would hold up terminal
// sizes and the news that the client has gone. What is beyond it does hold them up: the client then stops sending.
const inputBuffer = 256 << 10

// input is the reading end of a stream of input, with a bounded buffer before it.
type input struct {
	mu   sync.Mutex // guards what follows
	cond sync.Cond
	buf  []byte
	err  error // of the source, once buf is empty
	shut bool
}

// bufferInput reads src until its end or until Close.
func bufferInput(src io.Reader) *input {
	in := &input{}
	in.cond.L = &in.mu
	go in.fill(src)
	return in
}

func (in *input) fill(src io.Reader) {
	chunk := make([]byte, 32<<10)
	for {
		n, err := src.Read(chunk)
		in.mu.Lock()
		for len(in.buf) > 0 && len(in.buf)+n > inputBuffer && !in.shut {
			in.cond.Wait()
		}
		if !in.shut {
			in.buf = append(in.buf, chunk[:n]...)
		}
		in.err = err
		over := in.shut || err != nil
		in.cond.Broadcast()
		in.mu.Unlock()
		if over {
			return
		}
	}
}

// Read waits for input.
func (in *input) Read(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.buf) == 0 && in.err == nil && !in.shut {
		in.cond.Wait()
	}
	if in.shut {
		return 0, io.EOF
	}
	if len(in.buf) == 0 {
		return 0, in.err
	}
	n := copy(p, in.buf)
	in.buf = in.buf[n:]
	if len(in.buf) == 0 {
		in.buf = nil
	}
	in.cond.Broadcast()
	return n, nil
}

// Close makes Read return, now and for ever.
func (in *input) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.shut = true
	in.buf = nil
	in.cond.Broadcast()
	return nil
}
