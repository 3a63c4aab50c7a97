// Package protocol is how coracle and its shim talk: messages over a unix socket, each a
// length and JSON, with open files passed along. It owns the wire format
// and nothing else; both ends import it, so that it stays small.
//
// A connection is symmetric in framing. The client sends requests (ID > 0), the shim
// answers each with the same ID, in any order, and sends events (ID 0).
// Unknown fields are ignored and unknown operations refused, so that a newer
// coracle can talk to an older shim that still holds containers.
package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Version of the protocol. The shim tells its own in Hello; a client refuses a major change.
const Version = 1

// What the shim is told in its environment: which program it is, and the cgroup that it is to make and enter.
const (
	BuildEnv  = "CORACLE_SHIM_BUILD"
	CgroupEnv = "CORACLE_SHIM_CGROUP"
)

const (
	maxMessage = 8 << 20
	maxFiles   = 8
)

// Op names an operation or an event.
type Op string

// The operations and the events.
const (
	OpHello     Op = "hello"
	OpStart     Op = "start"
	OpSignal    Op = "signal"
	OpExec      Op = "exec"
	OpAttach    Op = "attach"
	OpResize    Op = "resize"
	OpForget    Op = "forget"
	OpList      Op = "list"
	OpReaper    Op = "reaper"
	OpReopenLog Op = "reopenlog"
	OpShutdown  Op = "shutdown"
	// OpWarm says that a start will be asked for within some milliseconds. It has no answer.
	OpWarm Op = "warm"

	EventStarted    Op = "started"
	EventExit       Op = "exit"
	EventReaperExit Op = "reaperexit"
	EventWarning    Op = "warning"
)

// Message is one frame.
type Message struct {
	ID    uint64          `json:"id,omitempty"`
	Op    Op              `json:"op,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	// Files are passed along. The receiver owns them.
	Files []*os.File `json:"-"`
}

// ErrorKind classes errors.
type ErrorKind string

// The kinds of errors.
const (
	ErrStart      ErrorKind = "start"
	ErrNotFound   ErrorKind = "notfound"
	ErrNotRunning ErrorKind = "notrunning"
	ErrBusy       ErrorKind = "busy"
	ErrInternal   ErrorKind = "internal"
)

// Error is a refusal.
type Error struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Hello is the answer to OpHello.
type Hello struct {
	Version int `json:"version"`
	PID     int `json:"pid"`
	// Build is a digest of the shim's program.
	Build string `json:"build"`
}

// Log says where output goes, see container.LogConfig.
type Log struct {
	Path     string `json:"path,omitempty"`
	MaxSize  int64  `json:"maxSize,omitempty"`
	MaxFiles int    `json:"maxFiles,omitempty"`
}

// Start runs a container. One that was started before, by whomever, is answered as it was then.
type Start struct {
	ID string `json:"id"`
	// Dir holds the OCI configuration (ConfigFile), and the shim writes StateFile there.
	Dir string `json:"dir"`
	// Root is where libcontainer keeps its state.
	Root      string `json:"root"`
	Stdin     bool   `json:"stdin,omitempty"`
	StdinOnce bool   `json:"stdinOnce,omitempty"`
	TTY       bool   `json:"tty,omitempty"`
	Log       Log    `json:"log"`
}

const (
	// ConfigFile is the OCI runtime configuration.
	ConfigFile = "config.json"
	// StateFile is what the shim records of a container, a State.
	StateFile = "state.json"
)

// Exec runs a further process. Files: stdin, stdout, stderr in this order, those that the flags
// name. With TTY none; the answer then carries the terminal's master side.
type Exec struct {
	ID   string `json:"id"`
	Root string `json:"root"`
	// Process is an OCI process.
	Process json.RawMessage `json:"process"`
	Stdin   bool            `json:"stdin,omitempty"`
	Stdout  bool            `json:"stdout,omitempty"`
	Stderr  bool            `json:"stderr,omitempty"`
}

// Exec is answered twice: with Started, and after the exit with State.

// Started is the answer to Start and the first one to Exec.
type Started struct {
	PID  int       `json:"pid"`
	Time time.Time `json:"time"`
}

// Signal sends a signal to a container's first process, to all (All, then always
// SIGKILL), or to an exec under way on this connection (Exec is its request's ID).
type Signal struct {
	ID     string `json:"id,omitempty"`
	Exec   uint64 `json:"exec,omitempty"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Attach connects files to a container's streams, those that the flags name, in
// this order. It is answered when the container has exited or all of them are closed.
type Attach struct {
	ID     string `json:"id"`
	Stdin  bool   `json:"stdin,omitempty"`
	Stdout bool   `json:"stdout,omitempty"`
	Stderr bool   `json:"stderr,omitempty"`
}

// Resize sets a container's terminal size.
type Resize struct {
	ID     string `json:"id"`
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Ref names a container (ReopenLog), or a container or the init of a sandbox that is to be killed, cleared up
// and forgotten (Forget), also while it is being started.
type Ref struct {
	ID string `json:"id"`
}

// Reaper starts the init of a shared PID namespace.
type Reaper struct {
	ID string `json:"id"`
}

// State is what the shim knows of a container or a reaper, and what it records on disk.
type State struct {
	ID         string    `json:"id"`
	PID        int       `json:"pid"`
	StartTicks uint64    `json:"startTicks"`
	ShimPID    int       `json:"shimPid,omitempty"`
	BootID     string    `json:"bootId,omitempty"`
	Started    time.Time `json:"started"`
	Exited     bool      `json:"exited,omitempty"`
	Code       int       `json:"code,omitempty"`
	Signal     int       `json:"signal,omitempty"`
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	Finished   time.Time `json:"finished,omitzero"`
	// Lost says that nobody saw the exit.
	Lost bool `json:"lost,omitempty"`
	// StartError says why it never ran.
	StartError string `json:"startError,omitempty"`
}

// List is the answer to OpList.
type List struct {
	Containers []State `json:"containers"`
	Reapers    []State `json:"reapers"`
}

// Warning is an event for the log.
type Warning struct {
	Message string `json:"message"`
}

// Conn sends and receives messages. Send is safe for concurrent use, Receive is for one goroutine.
type Conn struct {
	conn *net.UnixConn
	mu   sync.Mutex // held while a frame is written
}

// NewConn takes over a stream socket.
func NewConn(c *net.UnixConn) *Conn { return &Conn{conn: c} }

// Close ends the connection in both directions.
func (c *Conn) Close() error { return c.conn.Close() }

// Send writes one message. The caller keeps m.Files. timeout bounds the wait for a slow peer.
func (c *Conn) Send(m *Message, timeout time.Duration) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("protocol: message of %d bytes is too large", len(body))
	}
	frame := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	frame = append(frame, body...)
	var rights []byte
	if len(m.Files) > 0 {
		fds := make([]int, len(m.Files))
		for i, f := range m.Files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	// The rights go with the first bytes; the rest may need several writes.
	n, _, err := c.conn.WriteMsgUnix(frame, rights, nil)
	if err == nil && n < len(frame) {
		_, err = c.conn.Write(frame[n:])
	}
	if err != nil {
		// Half a frame may be out, so that nothing can follow it.
		c.conn.Close()
	}
	return err
}

// Receive reads the next message.
func (c *Conn) Receive() (*Message, error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("protocol: too many files in one message")
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && n < 4 {
		_, err = io.ReadFull(c.conn, head[n:])
	}
	var m *Message
	if err == nil {
		m, err = c.body(binary.BigEndian.Uint32(head))
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	m.Files = files
	return m, nil
}

func (c *Conn) body(size uint32) (*Message, error) {
	if size > maxMessage {
		return nil, fmt.Errorf("protocol: message of %d bytes is too large", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return nil, err
	}
	m := &Message{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("protocol: %w", err)
	}
	return m, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// CloseFiles closes the files of a message that nobody wants.
func (m *Message) CloseFiles() { closeAll(m.Files) }

// NewMessage packs a body.
func NewMessage(id uint64, op Op, body any, files ...*os.File) *Message {
	m := &Message{ID: id, Op: op, Files: files}
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			m.Error = &Error{Kind: ErrInternal, Message: err.Error()}
			return m
		}
		m.Body = data
	}
	return m
}

// Refuse packs an error.
func Refuse(id uint64, op Op, err error) *Message {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Kind: ErrInternal, Message: err.Error()}
	}
	return &Message{ID: id, Op: op, Error: e}
}

// Decode unpacks a body.
func (m *Message) Decode(to any) error {
	if m.Error != nil {
		return m.Error
	}
	if err := json.Unmarshal(m.Body, to); err != nil {
		return fmt.Errorf("protocol: %s: %w", m.Op, err)
	}
	return nil
}
