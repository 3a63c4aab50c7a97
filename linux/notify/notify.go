// Package notify tells when the files of a directory change, through inotify.
//
// One Watcher holds one inotify instance (the kernel allows few per user) and serves any number of
// subscribers; it owns one goroutine while it has subscribers, and none otherwise. It
// tells that something changed and never what: whoever is woken looks for itself.
package notify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// mask is what counts as a change of a directory's files.
const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watcher watches directories. The zero value is ready to use. Safe for concurrent use.
type Watcher struct {
	mu   sync.Mutex // guards what follows
	file *os.File   // nil while nobody watches
	// dirs are the watched directories by watch descriptor.
	dirs map[int32]*directory
}

type directory struct {
	subs map[*Subscription]struct{}
}

// Subscription is one interest in one directory.
type Subscription struct {
	// C receives after changes; several in a row may be told as one.
	C <-chan struct{}

	c  chan struct{}
	w  *Watcher
	wd int32
}

// Watch subscribes to the changes of the files in dir, which exists. Changes that happen after
// it returned are told.
func (w *Watcher) Watch(dir string) (*Subscription, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.open(); err != nil {
		return nil, err
	}
	wd, err := w.add(dir)
	if err != nil {
		w.closeIfIdle()
		return nil, err
	}
	d := w.dirs[wd]
	if d == nil {
		d = &directory{subs: map[*Subscription]struct{}{}}
		w.dirs[wd] = d
	}
	c := make(chan struct{}, 1)
	s := &Subscription{C: c, c: c, w: w, wd: wd}
	d.subs[s] = struct{}{}
	return s, nil
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirs[s.wd]
	if d == nil {
		return
	}
	if _, ok := d.subs[s]; !ok {
		return
	}
	delete(d.subs, s)
	if len(d.subs) > 0 {
		return
	}
	delete(w.dirs, s.wd)
	w.control(func(fd int) { unix.InotifyRmWatch(fd, uint32(s.wd)) }) // gone already if the directory is
	w.closeIfIdle()
}

func (w *Watcher) open() error {
	if w.file != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	w.file = os.NewFile(uintptr(fd), "inotify") // non-blocking: the runtime's poller waits
	w.dirs = map[int32]*directory{}
	go w.read(w.file)
	return nil
}

func (w *Watcher) add(dir string) (wd int32, err error) {
	w.control(func(fd int) {
		var n int
		n, err = unix.InotifyAddWatch(fd, dir, mask)
		wd = int32(n)
	})
	if err != nil {
		return 0, fmt.Errorf("watch %s: %w", dir, err)
	}
	return wd, nil
}

// control runs f on the descriptor, which stays valid meanwhile.
func (w *Watcher) control(f func(fd int)) {
	raw, err := w.file.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}

func (w *Watcher) closeIfIdle() {
	if len(w.dirs) == 0 && w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

// read passes events on until file is closed.
func (w *Watcher) read(file *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := file.Read(buf)
		if errors.Is(err, os.ErrClosed) || n < unix.SizeofInotifyEvent {
			return
		}
		if err != nil {
			return
		}
		w.dispatch(file, buf[:n])
	}
}

func (w *Watcher) dispatch(file *os.File, events []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != file {
		return
	}
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		bits := binary.NativeEndian.Uint32(events[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(size, len(events)):]
		if bits&unix.IN_Q_OVERFLOW != 0 { // some were lost: everybody looks
			for _, d := range w.dirs {
				d.wake()
			}
			continue
		}
		if d := w.dirs[wd]; d != nil {
			d.wake()
		}
	}
}

func (d *directory) wake() {
	for s := range d.subs {
		select {
		case s.c <- struct{}{}:
		default:
		}
	}
}
