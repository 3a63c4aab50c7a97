package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/process"
)

const (
	socketName = "shim.sock"
	lockName   = "shim.lock"
	logName    = "shim.log"
	// callTime bounds every request to the shim that has no deadline of its own.
	callTime = 60 * time.Second
	sendTime = 10 * time.Second
	// maxShimLog is the size at which the shim's own log is begun anew.
	maxShimLog = 1 << 20
)

// supervisor is this side of the connection to the shim. It connects at need, starts
// the shim if none lives, and takes its death in.
type supervisor struct {
	r       *Runtime
	program func() ([]byte, error)
	// ctx ends with close, and with it attempts to connect that nobody waits for.
	ctx  context.Context
	stop context.CancelFunc

	// connecting is held while a connection is made, before mu.
	connecting sync.Mutex

	mu     sync.Mutex // guards what follows
	link   *link
	pid    int
	failed error
	closed bool
	child  *process.Handle // the shim, if this process started it
}

// link is one connection.
type link struct {
	conn *protocol.Conn
	done chan struct{} // closed when it is over

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan *protocol.Message
	over    bool
}

func newSupervisor(r *Runtime, program func() ([]byte, error)) *supervisor {
	s := &supervisor{r: r, program: program}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

func (s *supervisor) status() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid, s.failed
}

func (s *supervisor) current() *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// reconnect connects to a shim that lives, and starts none.
func (s *supervisor) reconnect(ctx context.Context) error {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if s.isClosed() {
		return nil
	}
	l, err := s.dial(ctx)
	if errors.Is(err, errNoShim) {
		s.r.reconcile(ctx, nil)
		return nil
	}
	if err != nil {
		return err
	}
	return s.adopt(ctx, l)
}

var errNoShim = errors.New("no shim is running")

// ensure returns a connection, starting the shim if there is none.
func (s *supervisor) ensure(ctx context.Context) (*link, error) {
	if l := s.current(); l != nil {
		return l, nil
	}
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if l := s.current(); l != nil {
		return l, nil
	}
	if s.isClosed() {
		return nil, errors.New("container: the runtime is closed")
	}
	l, err := s.dial(ctx)
	fresh := errors.Is(err, errNoShim)
	if fresh {
		s.r.reconcile(ctx, nil)
		l, err = s.spawn(ctx)
	}
	if err == nil {
		err = s.adopt(ctx, l)
	}
	if err != nil && fresh {
		if words := s.lastWords(); words != "" {
			err = fmt.Errorf("%w; it says: %s", err, words)
		}
	}
	s.mu.Lock()
	s.failed = err
	s.mu.Unlock()
	return l, err
}

func (s *supervisor) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// lastWords is the last line of the shim's log, where it is not long ago that it was written.
func (s *supervisor) lastWords() string {
	path := filepath.Join(s.r.dir, logName)
	info, err := os.Stat(path)
	if err != nil || time.Since(info.ModTime()) > callTime {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 1024)
	n, _ := f.ReadAt(buf, max(0, info.Size()-int64(len(buf))))
	text := strings.TrimSpace(string(buf[:n]))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// dial connects to a living shim, by way of the directory, as the path may be too long for a socket.
func (s *supervisor) dial(ctx context.Context) (*link, error) {
	dir, err := os.Open(s.r.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, errNoShim
		}
		return nil, fmt.Errorf("connecting to the shim: %w", err)
	}
	return s.begin(c.(*net.UnixConn)), nil
}

func (s *supervisor) begin(c *net.UnixConn) *link {
	l := &link{conn: protocol.NewConn(c), done: make(chan struct{}), pending: map[uint64]chan *protocol.Message{}}
	go s.read(l)
	return l
}

// adopt greets the shim and takes in what it knows. connecting is held.
func (s *supervisor) adopt(ctx context.Context, l *link) error {
	var hello protocol.Hello
	err := l.call(ctx, protocol.OpHello, struct{}{}, &hello)
	if err == nil && hello.Version != protocol.Version {
		err = fmt.Errorf("the shim that supervises the containers speaks version %d and this coracle speaks %d: stop the containers with the coracle that started them", hello.Version, protocol.Version)
	}
	var list protocol.List
	if err == nil {
		err = l.call(ctx, protocol.OpList, struct{}{}, &list)
	}
	if err != nil {
		l.conn.Close()
		return fmt.Errorf("greeting the shim: %w", err)
	}
	s.mu.Lock()
	s.link, s.pid, s.failed = l, hello.PID, nil
	s.mu.Unlock()
	s.r.reconcile(ctx, &list)
	return nil
}

// renew ends a shim that is of another build than this coracle's and has nothing to do, so that the next container is
// started by the present one. A shim that is busy goes on as long as it is.
func (s *supervisor) renew(ctx context.Context) {
	l := s.current()
	if l == nil {
		return
	}
	program, err := s.program()
	if err != nil {
		return
	}
	var hello protocol.Hello
	if err := l.call(ctx, protocol.OpHello, struct{}{}, &hello); err != nil || hello.Build == buildOf(program) {
		return
	}
	if err := s.shutdown(ctx); err != nil && !errors.Is(err, container.ErrBusy) {
		s.r.log.Warn("ending the shim of another build", "error", err)
	}
}

// buildOf names a program.
func buildOf(program []byte) string {
	sum := sha256.Sum256(program)
	return hex.EncodeToString(sum[:8])
}

// read takes answers and events until the connection ends.
func (s *supervisor) read(l *link) {
	for {
		m, err := l.conn.Receive()
		if err != nil {
			break
		}
		if m.ID != 0 {
			l.deliver(m)
			continue
		}
		s.event(m)
	}
	l.conn.Close()
	l.end()
	s.lost(l)
}

func (s *supervisor) event(m *protocol.Message) {
	m.CloseFiles()
	switch m.Op {
	case protocol.EventStarted, protocol.EventExit, protocol.EventReaperExit:
		var state protocol.State
		if err := m.Decode(&state); err != nil {
			s.r.log.Error("reading an event of the shim", "error", err)
			return
		}
		switch m.Op {
		case protocol.EventStarted:
			s.r.startEvent(state)
		case protocol.EventExit:
			s.r.exitEvent(state)
		default:
			s.r.reaperEvent(state)
		}
	case protocol.EventWarning:
		var w protocol.Warning
		if m.Decode(&w) == nil {
			s.r.log.Warn(w.Message)
		}
	}
}

// lost takes in the end of a connection: if the shim lives it is connected to again, otherwise its containers are lost.
func (s *supervisor) lost(l *link) {
	s.mu.Lock()
	if s.link != l {
		s.mu.Unlock()
		return
	}
	s.link, s.pid = nil, 0
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	if err := s.reconnect(ctx); err != nil {
		s.r.log.Error("connecting to the shim again", "error", err)
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
	}
	s.r.events.emit(container.Event{Type: container.EventRuntime})
}

// spawn starts a shim. The lock that it inherits makes sure that there is one.
func (s *supervisor) spawn(ctx context.Context) (*link, error) {
	program, err := s.program()
	if err != nil {
		return nil, err
	}
	lock, err := s.takeLock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	socket, err := s.listen()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	exe, err := process.Sealed("coracle-shim", program)
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	log, err := s.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// What this process inherited without the mark (pipes of who started it) must not be kept open by the shim.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		s.r.log.Debug("marking inherited files", "error", err)
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/" + strconv.Itoa(int(exe.Fd())), Args: []string{"coracle-shim", "serve"},
		Env: []string{
			"PATH=" + os.Getenv("PATH"), "GOTRACEBACK=single", protocol.BuildEnv + "=" + buildOf(program),
			protocol.CgroupEnv + "=" + filepath.Join(s.r.cgroupRoot, "shim"),
		}, Dir: "/",
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{socket, lock},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the shim: %w", err)
	}
	if err := s.reap(cmd.Process.Pid); err != nil {
		return nil, err
	}
	return s.dial(ctx)
}

// reap takes the shim's status if it dies before this process does.
func (s *supervisor) reap(pid int) error {
	h, err := process.Open(pid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.child = h
	s.mu.Unlock()
	go func() {
		_, _ = h.Wait() // ends with close too
		h.Close()
	}()
	return nil
}

func (s *supervisor) takeLock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.r.dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("a shim holds %s but does not answer: %w", filepath.Join(s.r.dir, lockName), err)
	}
	return f, nil
}

// listen makes the shim's socket, so that it can be connected to before the shim is up.
func (s *supervisor) listen() (*os.File, error) {
	dir, err := os.Open(s.r.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(filepath.Join(s.r.dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	addr := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		return nil, fmt.Errorf("the shim's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(filepath.Join(s.r.dir, socketName), 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func (s *supervisor) openLog() (*os.File, error) {
	path := filepath.Join(s.r.dir, logName)
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(path); err == nil && info.Size() > maxShimLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// close disconnects.
func (s *supervisor) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.connecting.Lock() // no attempt is under way, and none begins
	defer s.connecting.Unlock()
	s.mu.Lock()
	l, child := s.link, s.child
	s.mu.Unlock()
	if child != nil {
		child.Close()
	}
	if l != nil {
		l.conn.Close()
		<-l.done
	}
}

// shutdown ends the shim, if one lives and nothing runs.
func (s *supervisor) shutdown(ctx context.Context) error {
	s.connecting.Lock() // it may just be coming up
	defer s.connecting.Unlock()
	l := s.current()
	if l == nil {
		return nil
	}
	s.mu.Lock()
	pid := s.pid
	s.mu.Unlock()
	h, err := process.Open(pid)
	if err != nil {
		return err
	}
	defer h.Close()
	s.mu.Lock()
	s.link, s.pid = nil, 0 // its end is wanted
	s.mu.Unlock()
	if err := l.call(ctx, protocol.OpShutdown, struct{}{}, nil); err != nil && !errors.Is(err, container.ErrLost) {
		s.mu.Lock()
		s.link, s.pid = l, pid
		s.mu.Unlock()
		return translate(err)
	}
	l.conn.Close()
	if !h.Gone(killTime) {
		return errors.New("the shim does not end")
	}
	return os.Remove(filepath.Join(s.r.dir, socketName))
}

// call sends a request and waits for its answer.
func (s *supervisor) call(ctx context.Context, op protocol.Op, body, answer any) error {
	l, err := s.ensure(ctx)
	if err != nil {
		return err
	}
	return l.call(ctx, op, body, answer)
}

// warm starts the shim if there is none, and tells it that a container will be started soon. It returns at once.
func (s *supervisor) warm() {
	if l := s.current(); l != nil {
		_ = l.conn.Send(protocol.NewMessage(l.number(), protocol.OpWarm, nil), sendTime)
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(s.ctx, callTime)
		defer cancel()
		if l, err := s.ensure(ctx); err == nil { // an error comes again, to who starts the container
			_ = l.conn.Send(protocol.NewMessage(l.number(), protocol.OpWarm, nil), sendTime)
		}
	}()
}

// forget has a living shim kill, clear up and drop a container or the init of a sandbox.
func (s *supervisor) forget(ctx context.Context, id string) error {
	l := s.current()
	if l == nil {
		return nil
	}
	err := l.call(ctx, protocol.OpForget, protocol.Ref{ID: id}, nil)
	if errors.Is(err, container.ErrLost) {
		return nil
	}
	return err
}

// discard removes what the shim has and nobody wants.
func (s *supervisor) discard(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := s.forget(ctx, id); err != nil {
		s.r.log.Error("removing a container that has no record", "container", id, "error", err)
	}
}

// call is one request with one answer.
func (l *link) call(ctx context.Context, op protocol.Op, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	id, replies, err := l.send(op, body, 1)
	if err != nil {
		return err
	}
	defer l.drop(id)
	m, err := l.wait(ctx, replies)
	if err != nil {
		return err
	}
	m.CloseFiles()
	if m.Error != nil {
		return m.Error
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(m.Body, answer)
}

// number is the ID of a request that is not answered.
func (l *link) number() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next
}

// send sends a request that is answered up to n times.
func (l *link) send(op protocol.Op, body any, n int, files ...*os.File) (uint64, chan *protocol.Message, error) {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return 0, nil, container.ErrLost
	}
	l.next++
	id := l.next
	replies := make(chan *protocol.Message, n)
	l.pending[id] = replies
	l.mu.Unlock()
	if err := l.conn.Send(protocol.NewMessage(id, op, body, files...), sendTime); err != nil {
		l.drop(id)
		return 0, nil, fmt.Errorf("%w: %w", container.ErrLost, err)
	}
	return id, replies, nil
}

func (l *link) wait(ctx context.Context, replies chan *protocol.Message) (*protocol.Message, error) {
	select {
	case m := <-replies:
		return m, nil
	default:
	}
	select {
	case m := <-replies:
		return m, nil
	case <-l.done:
		select {
		case m := <-replies:
			return m, nil
		default:
			return nil, container.ErrLost
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *link) deliver(m *protocol.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.pending[m.ID] <- m:
	default:
		m.CloseFiles() // nobody waits any more
	}
}

// drop forgets a request; what was answered and not taken is closed.
func (l *link) drop(id uint64) {
	l.mu.Lock()
	replies := l.pending[id]
	delete(l.pending, id)
	l.mu.Unlock()
	for {
		select {
		case m := <-replies:
			m.CloseFiles()
		default:
			return
		}
	}
}

func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	close(l.done)
}
