package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b *Conn, raw *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return NewConn(conns[0]), NewConn(conns[1]), conns[0]
}

// TestFiles: files arrive with the message they were sent with, also among many others of all sizes.
func TestFiles(t *testing.T) {
	a, b, _ := pair(t)
	const n = 200
	var group sync.WaitGroup
	for i := range n {
		group.Add(1)
		go func() {
			defer group.Done()
			m := NewMessage(uint64(i+1), OpExec, map[string]any{"n": i, "filler": strings.Repeat("x", i*i*10)})
			if i%3 == 0 {
				r, w, err := os.Pipe()
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Close()
				defer w.Close()
				w.Write([]byte{byte(i)})
				m.Files = []*os.File{r, os.Stderr}
			}
			if err := a.Send(m, 20*time.Second); err != nil {
				t.Error(err)
			}
		}()
	}
	for range n {
		m, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		i := int(m.ID) - 1
		var body struct {
			N      int    `json:"n"`
			Filler string `json:"filler"`
		}
		if err := m.Decode(&body); err != nil || body.N != i || len(body.Filler) != i*i*10 || m.Op != OpExec {
			t.Fatalf("message %d: %d %d %v", i, body.N, len(body.Filler), err)
		}
		want := 0
		if i%3 == 0 {
			want = 2
		}
		if len(m.Files) != want {
			t.Fatalf("message %d came with %d files", i, len(m.Files))
		}
		if want > 0 {
			buf := make([]byte, 1)
			if _, err := m.Files[0].Read(buf); err != nil || buf[0] != byte(i) {
				t.Errorf("the file of message %d gives %d %v", i, buf[0], err)
			}
			for _, f := range m.Files {
				if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("a received file would be inherited (%v)", err)
				}
			}
		}
		m.CloseFiles()
	}
	group.Wait()
}

func TestErrors(t *testing.T) {
	a, b, _ := pair(t)
	if err := a.Send(Refuse(3, OpStart, &Error{Kind: ErrBusy, Message: "no"}), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(Refuse(4, OpStart, errors.New("plain")), time.Second); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Error{{ErrBusy, "no"}, {ErrInternal, "plain"}} {
		m, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var got *Error
		if err := m.Decode(nil); !errors.As(err, &got) || *got != want {
			t.Errorf("%v, want %v", err, want)
		}
	}
	a.Close()
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestDamage(t *testing.T) {
	for name, data := range map[string][]byte{
		"too large": binary.BigEndian.AppendUint32(nil, maxMessage+1),
		"no JSON":   append(binary.BigEndian.AppendUint32(nil, 3), "{{{"...),
		"cut off":   append(binary.BigEndian.AppendUint32(nil, 100), bytes.Repeat([]byte("x"), 50)...),
		"half head": {0, 0},
	} {
		_, b, raw := pair(t)
		if _, err := raw.Write(data); err != nil {
			t.Fatal(err)
		}
		raw.Close()
		if m, err := b.Receive(); err == nil {
			t.Errorf("%s gave %+v", name, m)
		}
	}
}

// TestStuckPeer: a peer that does not read costs no more than the timeout.
func TestStuckPeer(t *testing.T) {
	a, _, _ := pair(t)
	m := NewMessage(1, OpList, strings.Repeat("x", 4<<20))
	if err := a.Send(m, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := a.Send(NewMessage(2, OpList, nil), time.Second); err == nil {
		t.Error("a message after half of one")
	}
	if err := a.Send(NewMessage(3, OpList, strings.Repeat("x", maxMessage)), time.Second); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
}
