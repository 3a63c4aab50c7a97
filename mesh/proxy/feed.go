package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// feed hands a streamed request body to the tries of a request over HTTP/2. Up to maxReplay of it is kept until there is an answer, so that
// a try that the backend did not process can be followed by another, and a reader of a try that ended lets go of the client at once.
type feed struct {
	c        *call
	trailers http.Header // of the client, filled at the end of the body

	mu   sync.Mutex // guards what follows
	wake *sync.Cond
	// kept is what was read of the body: all of it while whole, else what no reader had yet.
	kept  []byte
	whole bool
	err   error
	// busy says that somebody reads the client's body.
	busy bool
}

func newFeed(c *call) *feed {
	f := &feed{c: c, trailers: c.req.trailer2, whole: true}
	f.wake = sync.NewCond(&f.mu)
	return f
}

// replayable says that a new reader gets the body from its beginning.
func (f *feed) replayable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole
}

// answered says that there will not be another try.
func (f *feed) answered() {
	f.mu.Lock()
	f.whole = false
	f.mu.Unlock()
}

// stop makes a read of the client's body end, and waits for that.
func (f *feed) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.whole = false
	if f.busy {
		f.mu.Unlock()
		f.c.out.stopBody()
		f.mu.Lock()
	}
	for f.busy {
		f.wake.Wait()
	}
}

// fill reads once from the client while the reader of a try waits.
func (f *feed) fill() {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	n, err := f.c.req.body.Read(*buffer)
	f.mu.Lock()
	f.kept = append(f.kept, (*buffer)[:n]...)
	f.end(n, err)
	f.mu.Unlock()
}

// end is after a read; mu is held.
func (f *feed) end(n int, err error) {
	if n > 0 {
		f.c.moved()
	}
	f.busy, f.err = false, err
	f.wake.Broadcast()
}

// supply is the body of one try.
type supply struct {
	*feed
	at      int
	closed  bool // guarded by feed.mu
	trailer http.Header
}

// reader returns the body for the next try. The reader before it must have been closed.
func (f *feed) reader() *supply {
	s := &supply{feed: f}
	if len(f.trailers) > 0 {
		s.trailer = make(http.Header, len(f.trailers))
		f.mu.Lock()
		for name := range f.trailers { // the names are known from the start, the values are not
			s.trailer[name] = nil
		}
		f.mu.Unlock()
	}
	return s
}

var errClosed = errors.New("the body was closed")

func (s *supply) Read(p []byte) (int, error) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, errClosed
		case s.at < len(f.kept):
			n := copy(p, f.kept[s.at:])
			s.at += n
			if f.whole && len(f.kept) > maxReplay {
				f.whole = false
			}
			if !f.whole && s.at == len(f.kept) {
				f.kept, s.at = nil, 0
			}
			return n, nil
		case f.busy:
			f.wake.Wait()
		case f.err == io.EOF:
			for name := range s.trailer {
				s.trailer[name] = f.trailers[name]
			}
			return 0, io.EOF
		case f.err != nil:
			return 0, f.err
		case f.whole:
			f.busy = true
			go f.fill()
		default: // nobody will need it again
			f.kept, s.at, f.busy = nil, 0, true
			f.mu.Unlock()
			n, err := f.c.req.body.Read(p)
			f.mu.Lock()
			f.end(n, err)
			if n > 0 {
				return n, nil
			}
		}
	}
}

// Close lets go of the body: a Read that waits for the client returns.
func (s *supply) Close() error {
	s.mu.Lock()
	s.closed = true
	s.wake.Broadcast()
	s.mu.Unlock()
	return nil
}
