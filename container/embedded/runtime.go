// Package embedded is the default container runtime: libcontainer, behind one
// small supervising process (the shim) for each data directory.
//
// It owns the directories of sandboxes and containers, their namespaces, mounts
// and cgroups below one root cgroup, and the connection to the shim. It never waits for
// processes itself: containers are the shim's children, so that they, their
// logs and their exit codes survive this process.
//
// What is on disk: sandboxes/<id>/sandbox.json and containers/<id>/container.json are written here,
// containers/<id>/state.json by the shim. Both are enough to find everything again.
//
// Lock order: item.op (one operation at a time on a sandbox or container), then Runtime.mu.
package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/container/embedded/shim"
	"coracle.dev/coracle/container/image"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/process"
)

// Options say how a runtime works.
type Options struct {
	// Dir holds sandboxes, containers and the shim's socket. One process at a time uses it. Made if missing.
	Dir string
	// CgroupRoot is the cgroup below which everything runs, "/coracle-<hash of Dir>" if empty.
	CgroupRoot string
	Log        *slog.Logger
	// Images are the options of the image store; Dir there defaults to "images" beside Dir. InUse is set here.
	Images image.Options
	// Shim returns the supervising program, shim.Program if nil.
	Shim func() ([]byte, error)
}

// Runtime implements container.Runtime.
type Runtime struct {
	dir        string
	cgroupRoot string
	log        *slog.Logger
	cgroups    *cgroup.System
	images     *image.Store
	shim       *supervisor
	bootID     string
	events     *events

	mu         sync.Mutex // guards what follows
	sandboxes  map[string]*sandbox
	containers map[string]*ctr
	seq        uint64
	closed     bool
}

var _ container.Runtime = (*Runtime)(nil)

// Open opens a runtime and finds again what a former process left: running containers of a living shim run on.
func Open(ctx context.Context, o Options) (*Runtime, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("containers need root: run coracle as root")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if dir, err = makeDir(dir); err != nil {
		return nil, err
	}
	if strings.Contains(dir, ",") {
		// libcontainer joins the paths of namespaces with commas.
		return nil, fmt.Errorf("container runtime: the path of a data directory must not have a comma: %s", dir)
	}
	r := &Runtime{dir: dir, cgroupRoot: o.CgroupRoot, log: o.Log, sandboxes: map[string]*sandbox{}, containers: map[string]*ctr{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.cgroups, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	if r.cgroupRoot == "" {
		r.cgroupRoot = defaultRoot(dir)
	}
	r.cgroupRoot = filepath.Clean("/" + r.cgroupRoot)
	if r.bootID, err = process.BootID(); err != nil {
		return nil, err
	}
	if err := r.openImages(o.Images); err != nil {
		return nil, err
	}
	r.events = newEvents()
	program := o.Shim
	if program == nil {
		program = shim.Program
	}
	r.shim = newSupervisor(r, program)
	if err := r.recover(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// defaultRoot is the root cgroup where none is given.
func defaultRoot(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "/coracle-" + hex.EncodeToString(sum[:4])
}

// makeDir makes the runtime's directory and returns its real path, as mounts show it.
func makeDir(dir string) (string, error) {
	for _, sub := range []string{"sandboxes", "containers", "oci"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o711); err != nil {
			return "", fmt.Errorf("container runtime: %w", err)
		}
	}
	return filepath.EvalSymlinks(dir)
}

func (r *Runtime) openImages(o image.Options) error {
	if o.Dir == "" {
		o.Dir = filepath.Join(filepath.Dir(r.dir), "images")
	}
	if o.Log == nil {
		o.Log = r.log
	}
	o.InUse = r.imageInUse
	var err error
	r.images, err = image.Open(o)
	return err
}

func (r *Runtime) imageInUse(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.rec.uses(id) {
			return true
		}
	}
	return false
}

// Images implements container.Runtime.
func (r *Runtime) Images() container.Images { return r.images }

// Status implements container.Runtime.
func (r *Runtime) Status() container.RuntimeStatus {
	pid, err := r.shim.status()
	s := container.RuntimeStatus{
		Name: "coracle", Version: fmt.Sprint(protocol.Version), Ready: err == nil,
		SupervisorPID: pid, CgroupVersion: r.cgroups.Version,
	}
	if err != nil {
		s.Message = err.Error()
	}
	return s
}

// Subscribe implements container.Runtime.
func (r *Runtime) Subscribe(fn func(container.Event)) (cancel func()) { return r.events.subscribe(fn) }

// Close implements container.Runtime.
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.shim.close()
	r.events.close()
	return nil
}

// Shutdown implements container.Runtime.
func (r *Runtime) Shutdown(ctx context.Context) error {
	if err := r.shim.shutdown(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	left := len(r.sandboxes)
	r.mu.Unlock()
	if left > 0 {
		return r.cgroups.Group(filepath.Join(r.cgroupRoot, "shim")).Remove(ctx)
	}
	return r.cgroups.Group(r.cgroupRoot).Remove(ctx)
}

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func checkID(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("container: invalid ID %q", id)
	}
	return nil
}

// writeJSON writes a record at once or not at all.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// events hands events to subscribers from one goroutine. The queue is bounded by what it
// merges: an event that already waits for a subscriber is not queued again, as events are hints.
type events struct {
	mu     sync.Mutex
	subs   map[*subscriber]bool
	closed bool
}

type subscriber struct {
	fn     func(container.Event)
	mu     sync.Mutex
	queue  []container.Event
	queued map[eventKey]bool
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{}
}

type eventKey struct {
	typ                container.EventType
	sandbox, container string
}

func newEvents() *events { return &events{subs: map[*subscriber]bool{}} }

func (e *events) subscribe(fn func(container.Event)) func() {
	s := &subscriber{
		fn: fn, queued: map[eventKey]bool{}, wake: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return func() {}
	}
	e.subs[s] = true
	go s.run()
	return sync.OnceFunc(func() {
		e.mu.Lock()
		delete(e.subs, s)
		e.mu.Unlock()
		close(s.stop)
		<-s.done
	})
}

func (e *events) close() {
	e.mu.Lock()
	subs := e.subs
	e.subs, e.closed = map[*subscriber]bool{}, true
	e.mu.Unlock()
	for s := range subs {
		close(s.stop)
		<-s.done
	}
}

func (e *events) emit(ev container.Event) {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.subs {
		s.push(ev)
	}
}

func (s *subscriber) push(ev container.Event) {
	key := eventKey{ev.Type, ev.SandboxID, ev.ContainerID}
	s.mu.Lock()
	if !s.queued[key] {
		s.queued[key] = true
		s.queue = append(s.queue, ev)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) run() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		queue := s.queue
		s.queue, s.queued = nil, map[eventKey]bool{}
		s.mu.Unlock()
		for _, ev := range queue {
			select {
			case <-s.stop:
				return
			default:
			}
			s.fn(ev)
		}
	}
}

// inOrder sorts statuses by when their things were made.
func inOrder[T any](list []T, created func(T) (time.Time, uint64)) {
	sort.Slice(list, func(i, j int) bool {
		ti, si := created(list[i])
		tj, sj := created(list[j])
		if !ti.Equal(tj) {
			return ti.Before(tj)
		}
		return si < sj
	})
}
