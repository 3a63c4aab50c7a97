package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// MaxLine is how many bytes of text a line holds; longer ones become partial lines.
	MaxLine = 16 << 10
	// DefaultMaxSize and DefaultMaxFiles are the rotation where none is given.
	DefaultMaxSize  = 10 << 20
	DefaultMaxFiles = 5
	// rotatedFormat is the time that a moved file's name ends in.
	rotatedFormat = "20060102-150405"
)

// Writer writes one container's log. It is safe for concurrent use. Write errors
// (a full disk) lose lines and never stop the container; Err tells the last one.
type Writer struct {
	path     string
	maxSize  int64
	maxFiles int
	now      func() time.Time

	mu   sync.Mutex // guards what follows
	file *os.File
	size int64
	buf  []byte
	err  error
	lost int
}

// Open opens or makes the log at path, making its directory. maxSize and maxFiles as in
// container.LogConfig.
func Open(path string, maxSize int64, maxFiles int, now func() time.Time) (*Writer, error) {
	if maxSize == 0 {
		maxSize = DefaultMaxSize
	}
	if maxFiles <= 0 {
		maxFiles = DefaultMaxFiles
	}
	w := &Writer{path: path, maxSize: maxSize, maxFiles: maxFiles, now: now}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("logfile: %w", err)
	}
	return w, w.open()
}

func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("logfile: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("logfile: %w", err)
	}
	w.file, w.size = f, info.Size()
	return nil
}

// Reopen makes the file anew, after it was moved.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
	return w.open()
}

// Close closes the file.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// Err is the last error and how many lines were lost so far.
func (w *Writer) Err() (lost int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost, w.err
}

// line writes one record.
func (w *Writer) line(stream Stream, partial bool, parts ...[]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = Line{Time: w.now(), Stream: stream, Partial: partial}.Append(w.buf[:0])
	w.buf = w.buf[:len(w.buf)-1]
	for _, p := range parts {
		w.buf = append(w.buf, p...)
	}
	w.buf = append(w.buf, '\n')
	if err := w.write(); err != nil {
		w.err = err
		w.lost++
	}
	if cap(w.buf) > 2<<10 {
		w.buf = nil
	}
}

func (w *Writer) write() error {
	if w.maxSize > 0 && w.size > 0 && w.size+int64(len(w.buf)) > w.maxSize {
		if err := w.rotate(); err != nil {
			w.err = err
		}
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	n, err := w.file.Write(w.buf)
	w.size += int64(n)
	return err
}

// rotate moves the present file to one named by the time and drops the oldest ones.
func (w *Writer) rotate() error {
	to := w.nextRotated()
	if err := os.Rename(w.path, to); err != nil {
		return fmt.Errorf("logfile: %w", err)
	}
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
	if err := w.open(); err != nil {
		return err
	}
	old := Rotated(w.path)
	for len(old) > w.maxFiles-1 {
		if err := os.Remove(old[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("logfile: %w", err)
		}
		old = old[1:]
	}
	return nil
}

// nextRotated is a name behind all that there are, also if several files are moved in one second or the
// clock was put back.
func (w *Writer) nextRotated() string {
	stamp, seq := w.now().UTC().Format(rotatedFormat), 0
	if old := listRotated(w.path); len(old) > 0 {
		if last := old[len(old)-1]; last.stamp >= stamp {
			stamp, seq = last.stamp, last.seq+1
		}
	}
	if seq == 0 {
		return w.path + "." + stamp
	}
	return fmt.Sprintf("%s.%s.%d", w.path, stamp, seq)
}

// Rotated lists the moved files of a log, the oldest first.
func Rotated(path string) []string {
	var out []string
	for _, f := range listRotated(path) {
		out = append(out, f.path)
	}
	return out
}

// rotated is one moved file.
type rotated struct {
	path  string
	stamp string
	seq   int
}

func listRotated(path string) []rotated {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	var found []rotated
	prefix := filepath.Base(path) + "."
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || len(rest) < len(rotatedFormat) {
			continue
		}
		stamp, seq := rest[:len(rotatedFormat)], 0
		if _, err := time.Parse(rotatedFormat, stamp); err != nil {
			continue
		}
		if tail := rest[len(rotatedFormat):]; tail != "" {
			if seq, err = strconv.Atoi(strings.TrimPrefix(tail, ".")); err != nil || tail[0] != '.' {
				continue
			}
		}
		found = append(found, rotated{filepath.Join(filepath.Dir(path), e.Name()), stamp, seq})
	}
	sort.Slice(found, func(i, j int) bool {
		if found[i].stamp != found[j].stamp {
			return found[i].stamp < found[j].stamp
		}
		return found[i].seq < found[j].seq
	})
	return found
}

// Stream returns a writer that cuts what is written into lines of one stream. Text
// without its newline is kept until that comes, MaxLine is reached, or Close. It is
// used by one goroutine.
func (w *Writer) Stream(stream Stream) *StreamWriter {
	return &StreamWriter{w: w, stream: stream}
}

// StreamWriter is one stream of a log.
type StreamWriter struct {
	w      *Writer
	stream Stream
	rest   []byte
}

// Write never fails.
func (s *StreamWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		room := MaxLine - len(s.rest)
		switch {
		case i >= 0 && i <= room:
			s.w.line(s.stream, false, s.rest, p[:i])
			p, s.rest = p[i+1:], s.rest[:0]
		case len(p) >= room:
			s.w.line(s.stream, true, s.rest, p[:room])
			p, s.rest = p[room:], s.rest[:0]
		default:
			s.rest = append(s.rest, p...)
			return n, nil
		}
	}
	if cap(s.rest) > 1<<10 {
		s.rest = nil
	}
	return n, nil
}

// Close writes what is left, as a partial line.
func (s *StreamWriter) Close() error {
	if len(s.rest) > 0 {
		s.w.line(s.stream, true, s.rest)
		s.rest = nil
	}
	return nil
}
