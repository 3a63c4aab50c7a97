//go:build cgo

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/process"
)

const (
	// sendTimeout bounds how long a client that does not read holds up an answer.
	sendTimeout = 10 * time.Second
	// maxStarts is how many containers and execs are brought up at once.
	maxStarts = 8
	// eventQueue is how many events wait for a slow client before it is disconnected (it lists anew
	// when it comes back, so that none is lost).
	eventQueue = 1024
	// idleTrim is how long after the last start freed memory goes back to the kernel.
	idleTrim = 2 * time.Second
)

// server is the shim's whole state. Lock order: starting before mu.
type server struct {
	// starting is read-held while libcontainer may have children that nobody
	// here knows yet, and held while unknown children are reaped.
	starting sync.RWMutex
	slots    chan struct{}

	mu         sync.Mutex // guards what follows
	containers map[string]*container
	reapers    map[string]*reaper
	known      map[int]bool // children that someone waits for
	clients    map[*client]bool
	closing    bool
	listener   *net.UnixListener
	trim       *time.Timer
	reap       chan os.Signal
	bootID     string
	warned     map[string]bool

	warm chan struct{} // asks warmUp for one round
}

func newServer() *server {
	boot, _ := process.BootID()
	return &server{
		slots:      make(chan struct{}, maxStarts),
		containers: map[string]*container{},
		reapers:    map[string]*reaper{},
		known:      map[int]bool{},
		clients:    map[*client]bool{},
		warned:     map[string]bool{},
		reap:       make(chan os.Signal, 1),
		warm:       make(chan struct{}, 1),
		bootID:     boot,
	}
}

// serve accepts clients until shutdown.
func (s *server) serve(l *net.UnixListener) error {
	s.listener = l
	s.trim = time.AfterFunc(time.Hour, debug.FreeOSMemory)
	// Taken and dropped, not ignored: what a process ignores its children ignore too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	signal.Notify(s.reap, unix.SIGCHLD)
	go s.reapStrangers()
	go s.warmUp()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return nil
			}
			return err
		}
		c := newClient(s, protocol.NewConn(conn))
		s.mu.Lock()
		s.clients[c] = true
		s.mu.Unlock()
		go c.run()
	}
}

// begin waits for a free slot to start something; the returned function gives it back.
func (s *server) begin() func() {
	s.slots <- struct{}{}
	s.starting.RLock()
	return func() {
		s.starting.RUnlock()
		<-s.slots
		s.wakeReaper()
		s.trim.Reset(idleTrim)
	}
}

// warmSoon asks for quick cgroup moves.
func (s *server) warmSoon() {
	select {
	case s.warm <- struct{}{}:
	default:
	}
}

// warmUp makes the kernel ready for cgroup moves when a start is near. It runs as long as the shim.
func (s *server) warmUp() {
	for range s.warm {
		sys, err := cgroup.Detect()
		if err != nil {
			continue
		}
		if self, err := sys.Self(); err == nil && self.Path() != "/" {
			_ = self.Warm(os.Getpid())
		}
	}
}

// wakeReaper asks for a look at unknown children.
func (s *server) wakeReaper() {
	select {
	case s.reap <- unix.SIGCHLD:
	default:
	}
}

// reapStrangers takes the status of children that were adopted (their parents in
// containers without a PID namespace of their own died). It runs as long as the shim.
func (s *server) reapStrangers() {
	for range s.reap {
		if !s.starting.TryLock() {
			continue // begin's end asks again
		}
		for {
			pid, err := process.NextZombie()
			if err != nil || pid == 0 {
				break
			}
			s.mu.Lock()
			known := s.known[pid]
			s.mu.Unlock()
			if known {
				break // its waiter asks again
			}
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		s.starting.Unlock()
	}
}

// know registers a child that this program waits for itself.
func (s *server) know(pid int) {
	s.mu.Lock()
	s.known[pid] = true
	s.mu.Unlock()
}

// wait waits for a known child.
func (s *server) wait(h *process.Handle) unix.WaitStatus {
	status, err := h.Wait()
	if err != nil {
		logrus.WithError(err).Error("waiting for a child")
		status = unix.WaitStatus(255 << 8)
	}
	s.mu.Lock()
	delete(s.known, h.PID())
	s.mu.Unlock()
	s.wakeReaper()
	h.Close()
	return status
}

// broadcast sends an event to every client.
func (s *server) broadcast(op protocol.Op, body any) {
	m := protocol.NewMessage(0, op, body)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		select {
		case c.events <- m:
		default:
			c.cancel() // too slow
		}
	}
}

// warnOnce logs and tells clients something about this machine, once.
func (s *server) warnOnce(message string) {
	s.mu.Lock()
	done := s.warned[message]
	s.warned[message] = true
	s.mu.Unlock()
	if !done {
		logrus.Warn(message)
		s.broadcast(protocol.EventWarning, protocol.Warning{Message: message})
	}
}

func (s *server) list() protocol.List {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l protocol.List
	for _, c := range s.containers {
		if c.started {
			l.Containers = append(l.Containers, c.state)
		}
	}
	for _, r := range s.reapers {
		if r.state.PID != 0 {
			l.Reapers = append(l.Reapers, r.state)
		}
	}
	return l
}

func (s *server) stateOf(c *container) protocol.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.state
}

// shutdown ends the shim if nothing runs.
func (s *server) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if !c.state.Exited {
			return &protocol.Error{Kind: protocol.ErrBusy, Message: "container " + c.state.ID + " is running"}
		}
	}
	for _, r := range s.reapers {
		if !r.state.Exited {
			return &protocol.Error{Kind: protocol.ErrBusy, Message: "the init of sandbox " + r.state.ID + " is running"}
		}
	}
	s.closing = true
	return nil
}

// client is one connection.
type client struct {
	s      *server
	conn   *protocol.Conn
	ctx    context.Context
	cancel context.CancelFunc
	events chan *protocol.Message

	mu    sync.Mutex
	execs map[uint64]*process.Handle // by request, nil while it is being started
	early map[uint64]int             // signals to execs that are being started
	stops map[uint64]func()          // attaches by request
}

func newClient(s *server, conn *protocol.Conn) *client {
	c := &client{
		s: s, conn: conn, events: make(chan *protocol.Message, eventQueue),
		execs: map[uint64]*process.Handle{}, early: map[uint64]int{}, stops: map[uint64]func(){},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// run serves a connection until it ends, and then what hung on it: execs are
// killed, as nobody can learn of their end, attaches are detached.
func (c *client) run() {
	go func() {
		<-c.ctx.Done()
		c.conn.Close()
	}()
	go c.sendEvents()
	for {
		m, err := c.conn.Receive()
		if err != nil {
			break
		}
		if m.Op == protocol.OpExec {
			// From here on, in the order of the connection, it can be signalled.
			c.mu.Lock()
			c.execs[m.ID] = nil
			c.mu.Unlock()
		}
		go c.handle(m)
	}
	c.s.mu.Lock()
	delete(c.s.clients, c)
	c.s.mu.Unlock()
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.execs {
		if h != nil { // one that is being started looks at ctx
			_ = h.Signal(unix.SIGKILL)
		}
	}
	for _, stop := range c.stops {
		stop()
	}
}

func (c *client) sendEvents() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case m := <-c.events:
			if c.conn.Send(m, sendTimeout) != nil {
				c.cancel()
				return
			}
		}
	}
}

// reply answers a request; a client that cannot be answered is cut off.
func (c *client) reply(m *protocol.Message, body any, err error, files ...*os.File) {
	out := protocol.NewMessage(m.ID, m.Op, body, files...)
	if err != nil {
		out = protocol.Refuse(m.ID, m.Op, err)
	}
	if c.conn.Send(out, sendTimeout) != nil {
		c.cancel()
	}
}

func (c *client) handle(m *protocol.Message) {
	switch m.Op {
	case protocol.OpWarm:
		c.s.warmSoon()
	case protocol.OpHello:
		c.reply(m, protocol.Hello{Version: protocol.Version, PID: os.Getpid(), Build: build()}, nil)
	case protocol.OpList:
		c.reply(m, c.s.list(), nil)
	case protocol.OpStart:
		c.s.warmSoon()
		answer(c, m, func(r protocol.Start) (any, error) {
			ct, first, err := c.s.start(r)
			if err != nil {
				return nil, err
			}
			state := c.s.stateOf(ct)
			if first {
				// The exit is waited for only after everybody knows of the start.
				c.s.broadcast(protocol.EventStarted, state)
				defer func() { go c.s.supervise(ct) }()
			}
			return protocol.Started{PID: state.PID, Time: state.Started}, nil
		})
	case protocol.OpSignal:
		answer(c, m, func(r protocol.Signal) (any, error) { return nil, c.signal(r) })
	case protocol.OpResize:
		answer(c, m, func(r protocol.Resize) (any, error) { return nil, c.s.resize(r) })
	case protocol.OpForget:
		answer(c, m, func(r protocol.Ref) (any, error) { return nil, c.s.forget(c.ctx, r.ID) })
	case protocol.OpReopenLog:
		answer(c, m, func(r protocol.Ref) (any, error) { return nil, c.s.reopenLog(r.ID) })
	case protocol.OpReaper:
		answer(c, m, func(r protocol.Reaper) (any, error) { return c.s.startReaper(r) })
	case protocol.OpExec:
		c.s.warmSoon()
		c.exec(m)
		return // it owns the files
	case protocol.OpAttach:
		c.attach(m)
		return
	case protocol.OpShutdown:
		err := c.s.shutdown()
		c.reply(m, nil, err)
		if err == nil {
			c.s.listener.Close()
		}
	default:
		c.reply(m, nil, errors.New("unknown operation "+string(m.Op)))
	}
	m.CloseFiles()
}

// answer decodes a request, does it and replies.
func answer[R any](c *client, m *protocol.Message, do func(R) (any, error)) {
	var r R
	err := m.Decode(&r)
	var body any
	if err == nil {
		body, err = do(r)
	}
	c.reply(m, body, err)
}

// signal reaches a container or an exec of this connection. Signal 0 for an attach detaches it.
func (c *client) signal(r protocol.Signal) error {
	if r.Exec == 0 {
		return c.s.signal(r)
	}
	c.mu.Lock()
	h, starting := c.execs[r.Exec]
	stop := c.stops[r.Exec]
	if starting && h == nil {
		c.early[r.Exec] = r.Signal
	}
	c.mu.Unlock()
	switch {
	case h != nil:
		return h.Signal(unix.Signal(r.Signal))
	case stop != nil:
		stop()
	}
	return nil
}

// build names this program: who starts it says how.
func build() string { return os.Getenv(protocol.BuildEnv) }
