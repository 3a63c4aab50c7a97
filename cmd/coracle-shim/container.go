//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/process"
)

// container is one container from start to forget. state and started are guarded by server.mu,
// the rest is fixed once started.
type container struct {
	req     protocol.Start
	state   protocol.State
	started bool
	handle  *process.Handle
	io      *stdio
	cgroup  string
	// ownPID: the kernel ends all its processes with the first one.
	ownPID bool
	// begun is closed when it runs, or does not because of err.
	begun chan struct{}
	err   error
	// cleaned is closed when nothing of it is left but the record.
	cleaned chan struct{}
}

func notFound(id string) error {
	return &protocol.Error{Kind: protocol.ErrNotFound, Message: "container " + id + " is not known to the shim"}
}

func startError(err error) error {
	return &protocol.Error{Kind: protocol.ErrStart, Message: err.Error()}
}

// start brings a container up to the execution of its program. Who finds that it was asked for before (by a coracle that
// died meanwhile) waits for what becomes of that, and is told that it is not the first.
func (s *server) start(r protocol.Start) (c *container, first bool, err error) {
	c = &container{req: r, begun: make(chan struct{}), cleaned: make(chan struct{})}
	c.state = protocol.State{ID: r.ID, ShimPID: os.Getpid(), BootID: s.bootID}
	s.mu.Lock()
	before, closing := s.containers[r.ID], s.closing
	if before == nil && !closing {
		s.containers[r.ID] = c
	}
	s.mu.Unlock()
	if closing {
		return nil, false, errors.New("the shim is shutting down")
	}
	if before != nil {
		<-before.begun
		return before, false, before.err
	}
	c.err = s.run(c)
	if c.err != nil {
		s.mu.Lock()
		delete(s.containers, r.ID)
		s.mu.Unlock()
	}
	close(c.begun)
	return c, true, c.err
}

func (s *server) run(c *container) error {
	spec, err := readSpec(filepath.Join(c.req.Dir, protocol.ConfigFile))
	if err != nil {
		return err
	}
	s.fitLimits(spec.Process)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: c.req.ID, Spec: spec})
	if err != nil {
		return startError(err)
	}
	for i, l := range config.Labels {
		if strings.HasPrefix(l, "bundle=") { // hooks look there for the configuration
			config.Labels[i] = "bundle=" + c.req.Dir
		}
	}
	config.Rlimits, err = rlimits(spec.Process.Rlimits)
	if err != nil {
		return startError(err)
	}
	c.ownPID = config.Namespaces.IsPrivate(configs.NEWPID)
	c.cgroup = spec.Linux.CgroupsPath

	end := s.begin()
	defer end()
	if err := os.RemoveAll(filepath.Join(c.req.Root, c.req.ID)); err != nil {
		return err
	}
	ct, err := libcontainer.Create(c.req.Root, c.req.ID, config)
	if err != nil {
		return startError(err)
	}
	p, err := newProcess(spec.Process)
	if err != nil {
		_ = ct.Destroy()
		return startError(err)
	}
	p.Init = true
	c.io, err = openStdio(c.req, p)
	if err != nil {
		_ = ct.Destroy()
		return err
	}
	if err := s.execute(c, ct, p); err != nil {
		c.io.abandon()
		_ = ct.Destroy()
		return startError(err)
	}
	return nil
}

// execute starts libcontainer's init, records it, and lets it execute the program.
func (s *server) execute(c *container, ct *libcontainer.Container, p *libcontainer.Process) error {
	err := ct.Start(p)
	c.io.closeChild()
	if err != nil {
		return err
	}
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	s.know(pid)
	fail := func(err error) error {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		s.mu.Lock()
		delete(s.known, pid)
		s.mu.Unlock()
		return err
	}
	if c.handle, err = process.Open(pid); err != nil {
		return fail(err)
	}
	if err := c.io.begin(); err != nil {
		return fail(err)
	}
	ticks, _ := process.StartTime(pid)
	s.mu.Lock()
	c.state.PID, c.state.StartTicks, c.state.Started = pid, ticks, time.Now().UTC()
	state := c.state
	s.mu.Unlock()
	if err := record(c.req.Dir, state); err != nil {
		return fail(err)
	}
	if err := ct.Exec(); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	c.started = true
	s.mu.Unlock()
	return nil
}

// supervise waits for a container's exit, records and tells it, and clears up.
func (s *server) supervise(c *container) {
	status := s.wait(c.handle)
	finished := time.Now().UTC()
	group := s.group(c.cgroup)
	if !c.ownPID && group != nil {
		if err := group.Kill(); err != nil {
			logrus.WithError(err).Warnf("killing the rest of container %s", c.req.ID)
		}
	}
	c.io.drain()
	s.mu.Lock()
	c.state.Exited, c.state.Finished = true, finished
	c.state.Code, c.state.Signal = exitCode(status)
	if group != nil {
		c.state.OOMKilled = group.OOMKills() > 0
	}
	state := c.state
	s.mu.Unlock()
	if err := record(c.req.Dir, state); err != nil && !errors.Is(err, os.ErrNotExist) {
		logrus.WithError(err).Errorf("recording the exit of container %s", c.req.ID)
	}
	s.broadcast(protocol.EventExit, state)
	if ct, err := libcontainer.Load(c.req.Root, c.req.ID); err != nil {
		logrus.WithError(err).Warnf("cannot load exited container %s", c.req.ID)
	} else if err := s.destroy(ct); err != nil {
		logrus.WithError(err).Warnf("clearing up container %s", c.req.ID)
	}
	close(c.cleaned)
	s.trim.Reset(idleTrim)
}

// destroy clears up after a container. While its hooks run, their ends are left to who waits for them.
func (s *server) destroy(ct *libcontainer.Container) error {
	config := ct.Config()
	if config.HasHook(configs.Poststop) {
		s.starting.RLock()
		defer s.wakeReaper()
		defer s.starting.RUnlock()
	}
	return ct.Destroy()
}

func (s *server) group(path string) *cgroup.Group {
	sys, err := cgroup.Detect()
	if err != nil || path == "" {
		return nil
	}
	return sys.Group(path)
}

func exitCode(status unix.WaitStatus) (code, signal int) {
	if status.Signaled() {
		return 128 + int(status.Signal()), int(status.Signal())
	}
	return status.ExitStatus(), 0
}

// find returns a started container.
func (s *server) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || !c.started {
		return nil, notFound(id)
	}
	if c.state.Exited {
		return c, &protocol.Error{Kind: protocol.ErrNotRunning, Message: "container " + id + " is not running"}
	}
	return c, nil
}

func (s *server) signal(r protocol.Signal) error {
	c, err := s.find(r.ID)
	if err != nil {
		return err
	}
	if r.All {
		err = s.kill(c)
	} else {
		err = c.handle.Signal(unix.Signal(r.Signal))
	}
	if errors.Is(err, os.ErrProcessDone) {
		return &protocol.Error{Kind: protocol.ErrNotRunning, Message: "container " + r.ID + " is not running"}
	}
	return err
}

// kill kills all of a container.
func (s *server) kill(c *container) error {
	if !c.ownPID {
		if group := s.group(c.cgroup); group != nil {
			return group.Kill()
		}
	}
	return c.handle.Signal(unix.SIGKILL)
}

// forget kills a container, or the init of a sandbox, waits until all of it is cleared up, and drops it. An
// unknown one is no error.
func (s *server) forget(ctx context.Context, id string) error {
	s.mu.Lock()
	c, r := s.containers[id], s.reapers[id]
	s.mu.Unlock()
	if r != nil {
		if err := s.forgetReaper(ctx, r); err != nil {
			return err
		}
	}
	if c == nil {
		return nil
	}
	if err := await(ctx, c.begun); err != nil || c.err != nil {
		return err
	}
	if err := s.kill(c); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := await(ctx, c.cleaned); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[id] == c {
		delete(s.containers, id)
	}
	return nil
}

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *server) resize(r protocol.Resize) error {
	c, err := s.find(r.ID)
	if err != nil {
		return err
	}
	return c.io.resize(r.Width, r.Height)
}

func (s *server) reopenLog(id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	return c.io.reopenLog()
}

// fitLimits lowers what this machine refuses: CAP_SYS_RESOURCE may be missing.
func (s *server) fitLimits(p *specs.Process) {
	if p.OOMScoreAdj != nil {
		got, clamped := process.ClampOOMScoreAdj(*p.OOMScoreAdj)
		if clamped {
			s.warnOnce("oom_score_adj cannot be lowered here (CAP_SYS_RESOURCE is missing): containers keep the score of coracle")
		}
		p.OOMScoreAdj = &got
	}
	for i, r := range p.Rlimits {
		resource, ok := process.Rlimits[r.Type]
		if !ok {
			continue
		}
		var clamped bool
		p.Rlimits[i].Soft, p.Rlimits[i].Hard, clamped = process.ClampRlimit(resource, r.Soft, r.Hard)
		if clamped {
			s.warnOnce(r.Type + " cannot be raised here (CAP_SYS_RESOURCE is missing): containers keep the limit of coracle")
		}
	}
}

func readSpec(path string) (*specs.Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if spec.Process == nil || spec.Linux == nil || spec.Root == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("%s: incomplete", path)
	}
	return spec, nil
}

// record writes a state beside the configuration, at once or not at all.
func record(dir string, state protocol.State) error {
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, protocol.StateFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// newProcess translates an OCI process.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	out := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Label:           p.SelinuxLabel,
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	if p.ConsoleSize != nil {
		out.ConsoleWidth, out.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	var err error
	out.Rlimits, err = rlimits(p.Rlimits)
	return out, err
}

func rlimits(in []specs.POSIXRlimit) ([]configs.Rlimit, error) {
	var out []configs.Rlimit
	for _, r := range in {
		resource, ok := process.Rlimits[strings.ToUpper(r.Type)]
		if !ok {
			return nil, fmt.Errorf("unknown rlimit %q", r.Type)
		}
		out = append(out, configs.Rlimit{Type: resource, Soft: r.Soft, Hard: r.Hard})
	}
	return out, nil
}
