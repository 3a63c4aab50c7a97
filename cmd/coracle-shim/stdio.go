//go:build cgo

package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/container/logfile"
)

const (
	// drainTime is how long output may come after the exit, from what a process left in a
	// pipe that someone else holds open.
	drainTime = 2 * time.Second
	// attachStall is how long a client that does not read may hold up a container's output
	// before it is detached.
	attachStall = 10 * time.Second
	copyBuffer  = 32 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// stdio is the shim's side of a container's streams: it copies output to the log and to who is attached.
type stdio struct {
	req     protocol.Start
	child   []*os.File // the container's ends, until it has them
	console *os.File   // where the terminal comes from
	log     *logfile.Writer
	in      *os.File // the container's input, nil if none; a terminal's master is both
	outs    []*output
	pumps   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	inClosed bool
	ended    bool
}

// output is one stream of a container.
type output struct {
	from *os.File
	log  *logfile.StreamWriter

	mu    sync.Mutex // held while a piece of output goes out
	sinks []*sink
	ended bool
}

// sink is where an attached client gets a stream.
type sink struct {
	file *os.File
	done chan struct{} // closed when it is detached
}

// openStdio makes the streams that r asks for and gives p its ends.
func openStdio(r protocol.Start, p *libcontainer.Process) (*stdio, error) {
	s := &stdio{req: r}
	if err := s.open(p); err != nil {
		s.abandon()
		return nil, err
	}
	return s, nil
}

func (s *stdio) open(p *libcontainer.Process) error {
	if s.req.Log.Path != "" {
		log, err := logfile.Open(s.req.Log.Path, s.req.Log.MaxSize, s.req.Log.MaxFiles, time.Now)
		if err != nil {
			return err
		}
		s.log = log
	}
	if s.req.TTY {
		here, there, err := socketPair()
		if err != nil {
			return err
		}
		s.console, p.ConsoleSocket = here, there
		s.child = append(s.child, there)
		return nil
	}
	if s.req.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.child, s.in = append(s.child, r), w
		p.Stdin = r
	}
	for _, stream := range []logfile.Stream{logfile.Stdout, logfile.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.child = append(s.child, w)
		s.addOutput(r, stream)
		if stream == logfile.Stdout {
			p.Stdout = w
		} else {
			p.Stderr = w
		}
	}
	return nil
}

func (s *stdio) addOutput(from *os.File, stream logfile.Stream) {
	o := &output{from: from}
	if s.log != nil {
		o.log = s.log.Stream(stream)
	}
	s.outs = append(s.outs, o)
}

// closeChild gives up the container's ends.
func (s *stdio) closeChild() {
	for _, f := range s.child {
		f.Close()
	}
	s.child = nil
}

// begin starts to copy, when the container's init is up.
func (s *stdio) begin() error {
	if s.console != nil {
		master, err := receiveFile(s.console)
		if err != nil {
			return err
		}
		s.console.Close()
		s.console = nil
		s.addOutput(master, logfile.Stdout)
		s.in = master
	}
	for _, o := range s.outs {
		s.pumps.Add(1)
		go func() {
			defer s.pumps.Done()
			o.pump()
		}()
	}
	return nil
}

// abandon releases everything of a container that never ran.
func (s *stdio) abandon() {
	s.closeChild()
	if s.console != nil {
		s.console.Close()
	}
	if s.in != nil {
		s.in.Close()
	}
	for _, o := range s.outs {
		o.from.Close()
	}
	s.pumps.Wait()
	if s.log != nil {
		s.log.Close()
	}
}

// drain waits for the last output after the exit and closes everything.
func (s *stdio) drain() {
	deadline := time.Now().Add(drainTime)
	for _, o := range s.outs {
		_ = o.from.SetReadDeadline(deadline)
	}
	s.pumps.Wait()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.closeInput()
	for _, o := range s.outs {
		o.from.Close()
	}
	if s.log != nil {
		if lost, err := s.log.Err(); lost > 0 {
			logrus.WithError(err).Warnf("container %s: %d log lines could not be written", s.req.ID, lost)
		}
		s.log.Close()
	}
}

func (s *stdio) closeInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil && !s.inClosed {
		s.inClosed = true
		if !s.req.TTY { // the terminal is closed with the output
			s.in.Close()
		}
	}
}

func (s *stdio) resize(width, height uint16) error {
	if !s.req.TTY || s.in == nil {
		return errors.New("the container has no terminal")
	}
	conn, err := s.in.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = conn.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err == nil {
		err = ierr
	}
	return err
}

func (s *stdio) reopenLog() error {
	if s.log == nil {
		return nil
	}
	return s.log.Reopen()
}

// pump copies until the stream ends. A buffer is held only while there is something to copy.
func (o *output) pump() {
	defer o.end()
	conn, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n int
		var rerr error
		var buf *[]byte
		err := conn.Read(func(fd uintptr) bool {
			buf = buffers.Get().(*[]byte)
			for {
				n, rerr = unix.Read(int(fd), *buf)
				if !errors.Is(rerr, unix.EINTR) {
					break
				}
			}
			if errors.Is(rerr, unix.EAGAIN) {
				buffers.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if buf != nil {
			if n > 0 {
				o.write((*buf)[:n])
			}
			buffers.Put(buf)
		}
		// A terminal whose other side is closed reads as EIO.
		if err != nil || rerr != nil || n <= 0 {
			return
		}
	}
}

func (o *output) write(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log != nil {
		_, _ = o.log.Write(p)
	}
	kept := o.sinks[:0]
	for _, s := range o.sinks {
		_ = s.file.SetWriteDeadline(time.Now().Add(attachStall))
		if _, err := s.file.Write(p); err != nil {
			s.close()
			continue
		}
		kept = append(kept, s)
	}
	o.sinks = kept
}

// end flushes the log and lets go of who is attached.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	if o.log != nil {
		_ = o.log.Close()
	}
	for _, s := range o.sinks {
		s.close()
	}
	o.sinks = nil
}

func (s *sink) close() {
	s.file.Close()
	close(s.done)
}

// attach adds a sink; it is closed at once if the stream has ended.
func (o *output) attach(f *os.File) *sink {
	s := &sink{file: f, done: make(chan struct{})}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		s.close()
		return s
	}
	o.sinks = append(o.sinks, s)
	return s
}

func (o *output) detach(s *sink) {
	// A write under way to this very sink may hold the lock: its deadline ends it.
	_ = s.file.SetWriteDeadline(time.Now())
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, have := range o.sinks {
		if have == s {
			o.sinks = append(o.sinks[:i], o.sinks[i+1:]...)
			s.close()
			return
		}
	}
}

// pollable makes a received file one that Go waits for without a thread.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	f.Close()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "attached"), nil
}

// attach connects a client's files to a container's streams until they end.
func (c *client) attach(m *protocol.Message) {
	var r protocol.Attach
	err := m.Decode(&r)
	var ct *container
	if err == nil {
		ct, err = c.s.find(r.ID)
	}
	var in, out, errs *os.File
	if err == nil {
		in, out, errs, err = attachFiles(r, m.Files)
	} else {
		m.CloseFiles()
	}
	if err != nil {
		c.reply(m, nil, err)
		return
	}
	c.reply(m, nil, ct.io.attach(c, m.ID, in, out, errs))
}

func attachFiles(r protocol.Attach, files []*os.File) (in, out, errs *os.File, err error) {
	next := func(want bool) (f *os.File) {
		if !want || err != nil {
			return nil
		}
		if len(files) == 0 {
			err = errors.New("attach: a file is missing")
			return nil
		}
		f, err = pollable(files[0])
		files = files[1:]
		return f
	}
	in, out, errs = next(r.Stdin), next(r.Stdout), next(r.Stderr)
	for _, f := range files {
		f.Close()
	}
	return in, out, errs, err
}

func (s *stdio) attach(c *client, id uint64, in, out, errs *os.File) error {
	var sinks []*sink
	var from []*output
	for i, f := range []*os.File{out, errs} {
		switch {
		case f == nil:
		case i >= len(s.outs):
			f.Close()
		default:
			sinks, from = append(sinks, s.outs[i].attach(f)), append(from, s.outs[i])
		}
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			if in != nil {
				in.Close()
			}
			for i, k := range sinks {
				from[i].detach(k)
			}
		})
	}
	c.mu.Lock()
	c.stops[id] = stop
	c.mu.Unlock()
	if c.ctx.Err() != nil {
		stop()
	}
	inDone := make(chan struct{})
	go func() {
		defer close(inDone)
		s.feed(in)
	}()
	for _, k := range sinks {
		<-k.done
	}
	if len(sinks) == 0 {
		<-inDone
	}
	stop()
	<-inDone
	c.mu.Lock()
	delete(c.stops, id)
	c.mu.Unlock()
	return nil
}

// feed copies a client's input to the container until it ends.
func (s *stdio) feed(in *os.File) {
	if in == nil {
		return
	}
	s.mu.Lock()
	to, closed := s.in, s.inClosed
	s.mu.Unlock()
	if to == nil || closed {
		return
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := in.Read(*buf)
		if n > 0 {
			if _, werr := to.Write((*buf)[:n]); werr != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			if s.req.StdinOnce {
				s.closeInput()
			}
			return
		}
		if err != nil {
			return
		}
	}
}
