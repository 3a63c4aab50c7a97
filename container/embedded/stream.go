package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
)

// drainTime is how long output of an exec may still come after its exit, from what it left running with its output open.
const drainTime = 100 * time.Millisecond

// Exec implements container.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, config container.ExecConfig, streams container.Streams) (container.ExitStatus, error) {
	c, err := r.find(id)
	if err != nil {
		return container.ExitStatus{}, err
	}
	if !r.running(c) {
		return container.ExitStatus{}, fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	p, err := r.execProcess(c, config)
	if err != nil {
		return container.ExitStatus{}, err
	}
	e := &execution{ctx: ctx, streams: streams, tty: config.TTY}
	if config.TTY {
		p.ConsoleSize = e.firstSize()
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return container.ExitStatus{}, err
	}
	e.req = protocol.Exec{ID: id, Root: r.ociRoot(), Process: raw}
	if e.link, err = r.shim.ensure(ctx); err != nil {
		return container.ExitStatus{}, err
	}
	return e.run()
}

func (r *Runtime) ociRoot() string { return r.dir + "/oci" }

// execution is one exec under way.
type execution struct {
	ctx     context.Context
	link    *link
	req     protocol.Exec
	streams container.Streams
	tty     bool

	theirs  []*os.File // the process's ends
	in      *os.File   // ours
	out     *os.File
	errs    *os.File
	master  *os.File
	outputs sync.WaitGroup
}

func (e *execution) run() (container.ExitStatus, error) {
	defer e.close()
	if err := e.open(); err != nil {
		return container.ExitStatus{}, err
	}
	id, replies, err := e.link.send(protocol.OpExec, e.req, 2, e.theirs...)
	closeFiles(e.theirs)
	e.theirs = nil
	if err != nil {
		return container.ExitStatus{}, err
	}
	defer e.link.drop(id)
	m, err := e.link.wait(e.ctx, replies)
	if err != nil {
		e.kill(id)
		return container.ExitStatus{}, err
	}
	if m.Error != nil {
		return container.ExitStatus{}, translate(m.Error)
	}
	if err := e.connect(m); err != nil {
		e.kill(id)
		return container.ExitStatus{}, err
	}
	return e.wait(id, replies)
}

// open makes pipes for the streams that there are.
func (e *execution) open() error {
	if e.tty {
		return nil
	}
	if e.streams.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		e.theirs, e.in, e.req.Stdin = append(e.theirs, r), w, true
	}
	for _, o := range []struct {
		to   io.Writer
		flag *bool
		end  **os.File
	}{{e.streams.Stdout, &e.req.Stdout, &e.out}, {e.streams.Stderr, &e.req.Stderr, &e.errs}} {
		if o.to == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		e.theirs, *o.end, *o.flag = append(e.theirs, w), r, true
	}
	return nil
}

// connect starts to copy.
func (e *execution) connect(started *protocol.Message) error {
	if e.tty {
		if len(started.Files) != 1 {
			started.CloseFiles()
			return errors.New("the shim sent no terminal")
		}
		master, err := nonblocking(started.Files[0])
		if err != nil {
			return err
		}
		e.master = master
		if e.streams.Stdout != nil {
			e.copyOut(master, e.streams.Stdout)
		}
	} else {
		started.CloseFiles()
	}
	if e.out != nil {
		e.copyOut(e.out, e.streams.Stdout)
	}
	if e.errs != nil {
		e.copyOut(e.errs, e.streams.Stderr)
	}
	if e.streams.Stdin != nil {
		to := e.in
		if e.tty {
			to = e.master
		}
		go func() {
			// It ends when the caller's reader does; the file is closed with the exec.
			_, _ = io.Copy(to, e.streams.Stdin)
			if !e.tty {
				to.Close()
			}
		}()
	}
	return nil
}

func (e *execution) copyOut(from *os.File, to io.Writer) {
	e.outputs.Add(1)
	go func() {
		defer e.outputs.Done()
		copyOutput(to, from)
	}()
}

// copyOutput copies until the end, or after a read deadline what is there.
func copyOutput(to io.Writer, from *os.File) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			copyPending(to, from, buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// copyPending takes what is in a pipe without waiting.
func copyPending(to io.Writer, from *os.File, buf []byte) {
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		_ = conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
		if n <= 0 {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// wait waits for the exit, passing on terminal sizes, and then for the output.
func (e *execution) wait(id uint64, replies chan *protocol.Message) (container.ExitStatus, error) {
	stop := make(chan struct{})
	defer close(stop)
	if e.master != nil && e.streams.Resize != nil {
		go resizes(stop, e.streams.Resize, func(s container.TerminalSize) { setSize(e.master, s) })
	}
	m, err := e.link.wait(e.ctx, replies)
	if err != nil {
		e.kill(id)
		return container.ExitStatus{}, err
	}
	var state protocol.State
	if err := m.Decode(&state); err != nil {
		return container.ExitStatus{}, translate(err)
	}
	deadline := time.Now().Add(drainTime)
	for _, f := range []*os.File{e.out, e.errs, e.master} {
		if f != nil {
			_ = f.SetReadDeadline(deadline)
		}
	}
	done := make(chan struct{})
	go func() {
		e.outputs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-e.ctx.Done():
		return container.ExitStatus{}, context.Cause(e.ctx)
	}
	return container.ExitStatus{Code: state.Code, Signal: state.Signal, Time: state.Finished}, nil
}

// kill ends a process that nobody waits for any more.
func (e *execution) kill(id uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), sendTime)
	defer cancel()
	_ = e.link.call(ctx, protocol.OpSignal, protocol.Signal{Exec: id, Signal: int(unix.SIGKILL)}, nil)
}

func (e *execution) close() {
	closeFiles(e.theirs)
	closeFiles([]*os.File{e.in, e.out, e.errs, e.master})
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// nonblocking makes a received file one that Go waits for without a thread.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	f.Close()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

func setSize(master *os.File, s container.TerminalSize) {
	if conn, err := master.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
		})
	}
}

// resizes passes terminal sizes on until stop is closed or there are no more.
func resizes(stop <-chan struct{}, sizes <-chan container.TerminalSize, set func(container.TerminalSize)) {
	for {
		select {
		case <-stop:
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			set(s)
		}
	}
}

// Attach implements container.Runtime.
func (r *Runtime) Attach(ctx context.Context, id string, streams container.Streams) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if !r.running(c) {
		return fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	l, err := r.shim.ensure(ctx)
	if err != nil {
		return err
	}
	a := &attachment{r: r, ctr: c, link: l, streams: streams}
	return a.run(ctx)
}

// attachment is one attach under way.
type attachment struct {
	r       *Runtime
	ctr     *ctr
	link    *link
	streams container.Streams
	req     protocol.Attach
	ours    []*os.File
	theirs  []*os.File
	outputs sync.WaitGroup
}

func (a *attachment) run(ctx context.Context) error {
	defer func() {
		closeFiles(a.ours)
		closeFiles(a.theirs)
	}()
	a.req.ID = a.ctr.id
	in, err := a.pair(a.streams.Stdin != nil && a.ctr.rec.Config.Stdin, &a.req.Stdin)
	if err != nil {
		return err
	}
	out, err := a.pair(a.streams.Stdout != nil, &a.req.Stdout)
	if err != nil {
		return err
	}
	errs, err := a.pair(a.streams.Stderr != nil && !a.ctr.rec.Config.TTY, &a.req.Stderr)
	if err != nil {
		return err
	}
	id, replies, err := a.link.send(protocol.OpAttach, a.req, 1, a.theirs...)
	closeFiles(a.theirs)
	a.theirs = nil
	if err != nil {
		return err
	}
	defer a.link.drop(id)
	a.copy(in, out, errs)
	stop := make(chan struct{})
	defer close(stop)
	if a.streams.Resize != nil && a.ctr.rec.Config.TTY {
		go resizes(stop, a.streams.Resize, func(s container.TerminalSize) {
			_ = a.link.call(ctx, protocol.OpResize, protocol.Resize{ID: a.ctr.id, Width: s.Width, Height: s.Height}, nil)
		})
	}
	m, err := a.link.wait(ctx, replies)
	if err != nil {
		detach, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
		defer cancel()
		_ = a.link.call(detach, protocol.OpSignal, protocol.Signal{Exec: id}, nil)
		return err
	}
	if m.Error != nil {
		return translate(m.Error)
	}
	a.outputs.Wait()
	return nil
}

// pair makes a connection for one stream, of which the shim gets the other end.
func (a *attachment) pair(want bool, flag *bool) (*os.File, error) {
	if !want {
		return nil, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "attach")
	a.ours = append(a.ours, ours)
	a.theirs = append(a.theirs, os.NewFile(uintptr(fds[1]), "attach"))
	*flag = true
	return ours, nil
}

func (a *attachment) copy(in, out, errs *os.File) {
	if in != nil {
		go func() {
			_, _ = io.Copy(in, a.streams.Stdin)
			// Only the direction towards the container ends.
			if conn, err := in.SyscallConn(); err == nil {
				_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
			}
		}()
	}
	for _, o := range []struct {
		from *os.File
		to   io.Writer
	}{{out, a.streams.Stdout}, {errs, a.streams.Stderr}} {
		if o.from == nil {
			continue
		}
		a.outputs.Add(1)
		go func() {
			defer a.outputs.Done()
			copyOutput(o.to, o.from)
		}()
	}
}

// firstSize is the initial size of the terminal, if it is there at once.
func (e *execution) firstSize() *specs.Box {
	if e.streams.Resize == nil {
		return nil
	}
	select {
	case s, ok := <-e.streams.Resize:
		if ok {
			return &specs.Box{Width: uint(s.Width), Height: uint(s.Height)}
		}
	default:
	}
	return nil
}
