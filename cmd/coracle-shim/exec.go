//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/process"
)

// exec runs a further process in a container. Its streams are the client's own files, so
// that no byte of them passes through here.
func (c *client) exec(m *protocol.Message) {
	var r protocol.Exec
	var spec specs.Process
	err := m.Decode(&r)
	if err == nil {
		err = json.Unmarshal(r.Process, &spec)
	}
	if err == nil && len(spec.Args) == 0 {
		err = startError(errors.New("no command given"))
	}
	var handle *process.Handle
	var master *os.File
	if err == nil {
		handle, master, err = c.startExec(m, r, &spec)
	}
	m.CloseFiles()
	if err != nil {
		c.endExec(m.ID)
		c.reply(m, nil, err)
		return
	}
	pid := handle.PID()
	if master != nil {
		c.reply(m, protocol.Started{PID: pid, Time: time.Now()}, nil, master)
		master.Close()
	} else {
		c.reply(m, protocol.Started{PID: pid, Time: time.Now()}, nil)
	}
	status := c.s.wait(handle)
	c.endExec(m.ID)
	state := protocol.State{ID: r.ID, PID: pid, Exited: true, Finished: time.Now()}
	state.Code, state.Signal = exitCode(status)
	c.reply(m, state, nil)
}

// endExec forgets an exec: signals to it find nothing.
func (c *client) endExec(id uint64) {
	c.mu.Lock()
	delete(c.execs, id)
	delete(c.early, id)
	c.mu.Unlock()
}

// startExec starts the process and registers it, so that the end of the connection kills it.
func (c *client) startExec(m *protocol.Message, r protocol.Exec, spec *specs.Process) (*process.Handle, *os.File, error) {
	ct, err := c.s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	p, err := newProcess(spec)
	if err != nil {
		return nil, nil, startError(err)
	}
	var console *os.File
	if spec.Terminal {
		if console, p.ConsoleSocket, err = socketPair(); err != nil {
			return nil, nil, err
		}
		defer console.Close()
		defer p.ConsoleSocket.Close()
	} else if err := assignFiles(p, r, m.Files); err != nil {
		return nil, nil, err
	}
	end := c.s.begin()
	defer end()
	loaded, err := libcontainer.Load(ct.req.Root, ct.req.ID)
	if err != nil {
		return nil, nil, startError(err)
	}
	if err := loaded.Start(p); err != nil {
		return nil, nil, startError(err)
	}
	pid, err := p.Pid()
	if err != nil {
		return nil, nil, err
	}
	c.s.know(pid)
	handle, err := process.Open(pid)
	if err != nil {
		return nil, nil, err
	}
	var master *os.File
	if console != nil {
		if master, err = receiveFile(console); err != nil {
			_ = handle.Signal(unix.SIGKILL)
			go c.s.wait(handle)
			return nil, nil, err
		}
	}
	c.mu.Lock()
	c.execs[m.ID] = handle
	early, signalled := c.early[m.ID]
	c.mu.Unlock()
	if signalled {
		_ = handle.Signal(unix.Signal(early))
	}
	if c.ctx.Err() != nil {
		_ = handle.Signal(unix.SIGKILL)
	}
	return handle, master, nil
}

func assignFiles(p *libcontainer.Process, r protocol.Exec, files []*os.File) error {
	next := func(want bool) *os.File {
		if !want || len(files) == 0 {
			return nil
		}
		f := files[0]
		files = files[1:]
		return f
	}
	if in := next(r.Stdin); in != nil {
		p.Stdin = in
	} else if r.Stdin {
		return errors.New("exec: stdin is missing")
	}
	if out := next(r.Stdout); out != nil {
		p.Stdout = out
	} else if r.Stdout {
		return errors.New("exec: stdout is missing")
	}
	if errs := next(r.Stderr); errs != nil {
		p.Stderr = errs
	} else if r.Stderr {
		return errors.New("exec: stderr is missing")
	}
	return nil
}

// socketPair makes the pair over which libcontainer's init hands out a terminal.
func socketPair() (here, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console"), nil
}

// receiveFile takes the one file that was sent over a socket. The sender is done by now.
func receiveFile(socket *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("no terminal came back from the container's init")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no terminal came back from the container's init")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// reaper is the init of a shared PID namespace.
type reaper struct {
	state  protocol.State // guarded by server.mu
	handle *process.Handle
	begun  chan struct{} // closed when it runs, or does not because of err
	err    error
	gone   chan struct{} // closed when it has exited
}

// startReaper starts the init of a new PID namespace and returns when it is ready, or answers as it was if it was started before.
func (s *server) startReaper(r protocol.Reaper) (*protocol.Started, error) {
	rp := &reaper{begun: make(chan struct{}), gone: make(chan struct{})}
	rp.state = protocol.State{ID: r.ID, ShimPID: os.Getpid(), BootID: s.bootID}
	s.mu.Lock()
	before, closing := s.reapers[r.ID], s.closing
	if before == nil && !closing {
		s.reapers[r.ID] = rp
	}
	s.mu.Unlock()
	switch {
	case closing:
		return nil, errors.New("the shim is shutting down")
	case before != nil:
		<-before.begun
		rp = before
	default:
		rp.err = s.runReaper(rp)
		if rp.err != nil {
			s.mu.Lock()
			delete(s.reapers, r.ID)
			s.mu.Unlock()
		}
		close(rp.begun)
	}
	if rp.err != nil {
		return nil, rp.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &protocol.Started{PID: rp.state.PID, Time: rp.state.Started}, nil
}

func (s *server) runReaper(rp *reaper) error {
	end := s.begin()
	defer end()
	ready, child, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd, done, err := reaperCommand()
	if err != nil {
		child.Close()
		return err
	}
	defer done()
	cmd.Stderr = child
	err = cmd.Start()
	child.Close()
	if err != nil {
		return fmt.Errorf("starting a sandbox init: %w", err)
	}
	pid := cmd.Process.Pid
	s.know(pid)
	if rp.handle, err = process.Open(pid); err != nil {
		return err
	}
	// It closes its end when it is ready, or writes why it is not.
	_ = ready.SetReadDeadline(time.Now().Add(10 * time.Second))
	complaint := make([]byte, 512)
	if n, err := ready.Read(complaint); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		_ = rp.handle.Signal(unix.SIGKILL)
		go s.wait(rp.handle)
		return fmt.Errorf("sandbox init: %s", complaint[:n])
	}
	ticks, _ := process.StartTime(pid)
	s.mu.Lock()
	rp.state.PID, rp.state.StartTicks, rp.state.Started = pid, ticks, time.Now().UTC()
	s.mu.Unlock()
	go s.superviseReaper(rp)
	return nil
}

// forgetReaper kills the init of a sandbox and drops it when it is gone.
func (s *server) forgetReaper(ctx context.Context, r *reaper) error {
	if err := await(ctx, r.begun); err != nil || r.err != nil {
		return err
	}
	if err := r.handle.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := await(ctx, r.gone); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reapers[r.state.ID] == r {
		delete(s.reapers, r.state.ID)
	}
	return nil
}

func (s *server) superviseReaper(r *reaper) {
	status := s.wait(r.handle)
	s.mu.Lock()
	r.state.Exited, r.state.Finished = true, time.Now().UTC()
	r.state.Code, r.state.Signal = exitCode(status)
	state := r.state
	s.mu.Unlock()
	s.broadcast(protocol.EventReaperExit, state)
	close(r.gone)
}

// reaperCommand runs this program in a way that lets nobody in its namespace change the program.
func reaperCommand() (*exec.Cmd, func(), error) {
	exe, done := "/proc/self/exe", func() {}
	var extra []*os.File
	if !exeseal.IsSelfExeCloned() {
		f, err := exeseal.CloneSelfExe(os.TempDir())
		if err != nil {
			return nil, nil, err
		}
		exe, done, extra = "/proc/self/fd/3", func() { f.Close() }, []*os.File{f}
	}
	return &exec.Cmd{
		Path: exe, Args: []string{"coracle-shim", "reap"}, Env: []string{}, Dir: "/", ExtraFiles: extra,
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID},
	}, done, nil
}
