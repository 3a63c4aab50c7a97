package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// LogOptions are the flags --audit-log-*.
type LogOptions struct {
	// Path of the file, "-" for standard output.
	Path string
	// MaxSize in bytes at which a file is put aside; 100 MiB if zero.
	MaxSize int64
	// MaxBackups is how many old files are kept, 0 all of them. MaxAge is how long, 0 for ever.
	MaxBackups int
	MaxAge     time.Duration
	// Compress old files with gzip.
	Compress bool
	// Legacy writes lines of text rather than JSON.
	Legacy bool
	// Strict refuses requests whose first event cannot be written (--audit-log-mode=blocking-strict).
	Strict bool
	// Now is the clock.
	Now func() time.Time
}

const defaultLogSize = 100 << 20

// Log writes events to a file. Callers wait until the kernel has their event (upstream's mode "blocking"; nothing is
// synced to the disk); those who come while another writes share the next write, which one of them does. What waits is
// bounded by the requests in flight. It has no goroutine but the one that compresses a file put aside.
type Log struct {
	opts LogOptions

	mu      sync.Mutex // guards what follows, up to quiet
	next    *batch
	busy    bool
	closed  bool
	quiet   chan struct{} // closed when nobody is busy; nil unless Close waits
	file    *os.File      // used by whoever is busy
	size    int64
	tidying sync.WaitGroup
}

// batch is lines that are written together.
type batch struct {
	data    []byte
	waiters int           // whose lines these are
	turn    chan struct{} // is sent to the one of them that writes
	done    chan struct{}
	err     error
}

// OpenLog opens the file, which is created with the mode 0600. It fails if it cannot be written.
func OpenLog(opts LogOptions) (*Log, error) {
	if opts.MaxSize == 0 {
		opts.MaxSize = defaultLogSize
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &Log{opts: opts, next: newBatch()}
	if opts.Path == "-" {
		l.file = os.Stdout
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(opts.Path), 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return l, nil
}

func newBatch() *batch { return &batch{turn: make(chan struct{}, 1), done: make(chan struct{})} }

var errClosed = errors.New("the audit log is closed")

func (l *Log) open() error {
	f, err := os.OpenFile(l.opts.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Strict implements Sink.
func (l *Log) Strict() bool { return l.opts.Strict }

// Write implements Sink.
func (l *Log) Write(r *Record) error {
	line := r.JSON
	if l.opts.Legacy {
		line = r.Legacy()
	}
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return errClosed
	case !l.busy:
		l.busy = true
		l.mu.Unlock()
		err := l.put(line)
		l.handOver()
		return err
	}
	mine := l.next
	mine.data = append(mine.data, line...)
	mine.waiters++
	l.mu.Unlock()
	select {
	case <-mine.done:
	case <-mine.turn:
		l.mu.Lock()
		l.next = newBatch()
		l.mu.Unlock()
		mine.err = l.put(mine.data)
		close(mine.done)
		l.handOver()
	}
	return mine.err
}

// handOver ends the turn of the one who is busy. One of those who wait is busy then, so that nobody writes the lines of others
// for longer than one batch.
func (l *Log) handOver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.waiters > 0 {
		l.next.turn <- struct{}{}
		return
	}
	l.busy = false
	if l.quiet != nil {
		close(l.quiet)
		l.quiet = nil
	}
}

// put writes to the file. A file that could not be opened or written is tried anew with the next batch.
func (l *Log) put(data []byte) error {
	if l.file != os.Stdout && l.size > 0 && l.size+int64(len(data)) > l.opts.MaxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(data)
	l.size += int64(n)
	return err
}

const backupTime = "2006-01-02T15-04-05.000"

// rotate puts the file aside under the time ("audit-2026-01-02T15-04-05.000.log") and begins another.
func (l *Log) rotate() error {
	if l.file != nil {
		err := l.file.Close()
		l.file, l.size = nil, 0
		if err != nil {
			return err
		}
	}
	stem, ext := l.parts()
	old := stem + "-" + l.opts.Now().UTC().Format(backupTime) + ext
	if err := os.Rename(l.opts.Path, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l.tidying.Wait() // the one before is long over
	now := l.opts.Now()
	l.tidying.Go(func() { l.tidy(now) })
	return l.open()
}

func (l *Log) parts() (stem, ext string) {
	ext = filepath.Ext(l.opts.Path)
	return strings.TrimSuffix(l.opts.Path, ext), ext
}

// tidy compresses what was put aside and removes what is too old or too much.
func (l *Log) tidy(now time.Time) {
	stem, ext := l.parts()
	found, err := filepath.Glob(stem + "-*" + ext + "*")
	if err != nil {
		return
	}
	type backup struct {
		path string
		at   time.Time
	}
	var backups []backup
	for _, path := range found {
		stamp := strings.TrimSuffix(strings.TrimPrefix(path, stem+"-"), ".gz")
		if at, err := time.Parse(backupTime, strings.TrimSuffix(stamp, ext)); err == nil {
			backups = append(backups, backup{path, at})
		}
	}
	slices.SortFunc(backups, func(a, b backup) int { return b.at.Compare(a.at) })
	for i, b := range backups {
		switch {
		case l.opts.MaxBackups > 0 && i >= l.opts.MaxBackups, l.opts.MaxAge > 0 && now.Sub(b.at) > l.opts.MaxAge:
			_ = os.Remove(b.path) // tried again at the next rotation
		case l.opts.Compress && !strings.HasSuffix(b.path, ".gz"):
			_ = compress(b.path) // likewise
		}
	}
}

// compress replaces a file by its gzip form.
func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+".gz", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	gz := gzip.NewWriter(out)
	_, err = io.Copy(gz, in)
	if err = errors.Join(err, gz.Close(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".gz"))
	}
	return os.Remove(path)
}

// Close implements Sink. It waits until ctx ends for those who write; who comes later is refused.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	if l.busy {
		if l.quiet == nil {
			l.quiet = make(chan struct{})
		}
		quiet := l.quiet
		l.mu.Unlock()
		select {
		case <-quiet:
		case <-ctx.Done():
			return fmt.Errorf("audit log: %w", ctx.Err())
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	// Nobody is busy, and nobody will be.
	l.tidying.Wait()
	if l.file == nil || l.file == os.Stdout {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// legacy is the one-line form of the event.
func (e *Event) legacy(s Stage, now time.Time) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	quote := func(v, none string) string {
		if v == "" {
			return none
		}
		return strconv.Quote(v)
	}
	groups := "<none>"
	if len(e.user.Groups) > 0 {
		quoted := make([]string, len(e.user.Groups))
		for i, g := range e.user.Groups {
			quoted[i] = strconv.Quote(g)
		}
		groups = strings.Join(quoted, ",")
	}
	asUser, asGroups := "<self>", "<lookup>"
	if e.impersonated != nil {
		asUser = strconv.Quote(e.impersonated.Name)
		if len(e.impersonated.Groups) > 0 {
			asGroups = strconv.Quote(strings.Join(e.impersonated.Groups, ","))
		}
	}
	namespace := "<none>"
	if e.attrs.Namespace != "" {
		namespace = e.attrs.Namespace
	}
	response := "<deferred>"
	if e.code != 0 && s != RequestReceived {
		response = strconv.Itoa(e.code)
	}
	ip := "<unknown>"
	if len(e.sources) > 0 {
		ip = e.sources[0].String()
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s AUDIT: id=%q stage=%q ip=%q method=%q user=%s groups=%s as=%s asgroups=%s user-agent=%s namespace=%q uri=%q response=\"%s\"\n",
		now.UTC().Format("2006-01-02T15:04:05.000000000Z07:00"), e.id, s.String(), ip, e.attrs.Verb, quote(e.user.Name, "<none>"), groups, asUser, asGroups,
		quote(e.agent, "<none>"), namespace, e.uri, response)
	return b.Bytes()
}
