package proxy

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// pulse is when something last moved in a call, in either direction.
type pulse struct{ last atomic.Int64 }

// moved says that bytes of a request or of its answer moved.
func (c *call) moved() {
	if c.pulse != nil {
		c.pulse.last.Store(time.Now().UnixNano())
	}
}

// stood says that nothing has moved for as long as a stream may stand still.
func (c *call) stood() bool {
	return time.Since(time.Unix(0, c.pulse.last.Load())) >= c.listener.Limits.StreamTimeout
}

// waitsForClient says that bytes of an HTTP/2 request's body are waited for.
func (c *call) waitsForClient() bool {
	b, ok := c.req.body.(*body2)
	return ok && b.reading.Load()
}

// still acts when nothing has moved in a call for a time. HTTP/1 has deadlines on its sockets for this; streams of HTTP/2 share one.
type still struct {
	pulse *pulse
	limit time.Duration
	act   func()

	mu    sync.Mutex // guards what follows; held while act runs, so that nothing is done after end
	timer *time.Timer
	ended bool
}

// whenStill calls act every time that nothing has moved for the listener's StreamTimeout, until end.
func (c *call) whenStill(act func()) *still {
	if c.pulse == nil {
		c.pulse = &pulse{}
	}
	c.moved()
	s := &still{pulse: c.pulse, limit: c.listener.Limits.StreamTimeout, act: act}
	s.mu.Lock()
	s.timer = time.AfterFunc(s.limit, s.look)
	s.mu.Unlock()
	return s
}

func (s *still) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	rest := s.limit - time.Since(time.Unix(0, s.pulse.last.Load()))
	if rest <= 0 {
		s.act()
		rest = s.limit
	}
	s.timer.Reset(rest)
}

// end stops it. When it returns, act does not run and will not.
func (s *still) end() {
	s.mu.Lock()
	s.ended = true
	s.timer.Stop()
	s.mu.Unlock()
}

// body2 is the body of an HTTP/2 request; it knows whether the client is being waited for.
type body2 struct {
	io.Reader
	c       *call
	reading atomic.Bool
}

func (b *body2) Read(p []byte) (int, error) {
	b.reading.Store(true)
	n, err := b.Reader.Read(p)
	b.reading.Store(false)
	if n > 0 {
		b.c.moved()
	}
	return n, err
}

// starve gives up a call whose client does not send the body that it announced.
func (c *call) starve() {
	c.starved.Store(true)
	c.out.stopBody()
	c.mu.Lock()
	stop := c.stop
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}
