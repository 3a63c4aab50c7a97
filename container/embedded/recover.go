package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/namespace"
)

// recover finds sandboxes and containers again, removes what was half made, and
// compares with what the shim knows.
func (r *Runtime) recover(ctx context.Context) error {
	var halfMade []func(context.Context) error
	sandboxes, err := r.entries("sandboxes")
	if err != nil {
		return err
	}
	for _, id := range sandboxes {
		s := &sandbox{id: id, dir: filepath.Join(r.dir, "sandboxes", id)}
		err := readJSON(s.file(sandboxFile), &s.rec)
		if err != nil || s.rec.Config.ID != id {
			r.log.Warn("removing a sandbox without a record", "sandbox", id, "error", err)
			s.rec.Config.ID, s.rec.Ready = id, false
			s.rec.Config = normalise(s.rec.Config)
		}
		s.lost = r.sandboxLost(s)
		r.adoptSandbox(s)
		if !s.rec.Ready {
			halfMade = append(halfMade, func(ctx context.Context) error { return r.clearSandbox(ctx, s) })
		}
	}
	containers, err := r.entries("containers")
	if err != nil {
		return err
	}
	for _, id := range containers {
		c := &ctr{id: id, dir: filepath.Join(r.dir, "containers", id), status: container.StateCreated, exited: make(chan struct{})}
		err := readJSON(c.file(containerFile), &c.rec)
		if err != nil || c.rec.Config.ID != id {
			r.log.Warn("removing a container without a record", "container", id, "error", err)
			c.rec = containerRecord{Config: container.ContainerConfig{ID: id}}
		}
		if r.sandboxes[c.rec.Config.SandboxID] == nil {
			c.rec.Ready = false
		}
		r.adoptContainer(c)
		if !c.rec.Ready {
			halfMade = append([]func(context.Context) error{func(ctx context.Context) error { return r.discard(ctx, c) }}, halfMade...)
		}
	}
	if err := r.shim.reconnect(ctx); err != nil {
		return err
	}
	r.shim.renew(ctx)
	for _, undo := range halfMade {
		if err := undo(ctx); err != nil {
			return fmt.Errorf("container runtime: removing what was half made: %w", err)
		}
	}
	return nil
}

func (r *Runtime) entries(name string) ([]string, error) {
	list, err := os.ReadDir(filepath.Join(r.dir, name))
	if err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	var out []string
	for _, e := range list {
		if e.IsDir() && checkID(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// sandboxLost says why a sandbox cannot hold containers any more, "" if it can.
func (r *Runtime) sandboxLost(s *sandbox) string {
	if s.rec.BootID != r.bootID {
		return "the machine was restarted"
	}
	ns := s.rec.Config.Namespaces
	for t, mode := range map[namespace.Type]container.NamespaceMode{namespace.Net: ns.Net, namespace.IPC: ns.IPC, namespace.UTS: ns.UTS} {
		if mode != container.NamespaceHost && !namespace.Pinned(s.ns(t)) {
			return fmt.Sprintf("its %s namespace is gone", t)
		}
	}
	if ns.PID == container.NamespaceSandbox && !namespace.Pinned(s.ns(namespace.PID)) {
		return "its PID namespace is gone"
	}
	if on, err := mount.IsMountPoint(s.file("shm")); ns.IPC != container.NamespaceHost && (err != nil || !on) {
		return "its shared memory is gone"
	}
	return ""
}

func (r *Runtime) adoptSandbox(s *sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	s.seq = r.seq
	r.sandboxes[s.id] = s
}

// adoptContainer takes a container in as its files describe it. One that ran is settled by reconcile.
func (r *Runtime) adoptContainer(c *ctr) {
	var state protocol.State
	err := readJSON(c.file(protocol.StateFile), &state)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	c.seq = r.seq
	r.containers[c.id] = c
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		c.status, c.state = container.StateRunning, protocol.State{ID: c.id}
	case state.Exited:
		c.status, c.state, c.message = container.StateExited, state, message(state)
		close(c.exited)
	default:
		c.status, c.state = container.StateRunning, state
	}
}

func message(s protocol.State) string {
	switch {
	case s.StartError != "":
		return s.StartError
	case s.Lost:
		return "The exit code of the container is not known, as the process that supervised it, or the machine, went down"
	}
	return ""
}

// reconcile compares with what a shim (nil: none lives) knows, after connecting to it.
func (r *Runtime) reconcile(ctx context.Context, list *protocol.List) {
	known := map[string]protocol.State{}
	reapers := map[string]protocol.State{}
	why := "the shim, which supervised it, is gone (its last words are in " + filepath.Join(r.dir, logName) + ")"
	if list != nil {
		why = "the shim that supervises containers now does not know it: the one before is gone"
		for _, s := range list.Containers {
			known[s.ID] = s
		}
		for _, s := range list.Reapers {
			reapers[s.ID] = s
		}
	}
	r.mu.Lock()
	var running []*ctr
	strangers := map[string]bool{}
	for id := range known {
		strangers[id] = r.containers[id] == nil
	}
	for _, c := range r.containers {
		if c.status == container.StateRunning || (c.status == container.StateCreated && known[c.id].PID != 0) {
			running = append(running, c)
		}
	}
	var shared []*sandbox
	for _, s := range r.sandboxes {
		if s.rec.Ready && s.lost == "" && s.rec.Config.Namespaces.PID == container.NamespaceSandbox {
			shared = append(shared, s)
		}
	}
	r.mu.Unlock()
	for _, c := range running {
		r.settle(ctx, c, known, why)
	}
	for _, s := range shared {
		if st, ok := reapers[s.id]; !ok || st.Exited {
			r.loseSandbox(s, "the init of its PID namespace is gone")
		}
	}
	for id, stranger := range strangers {
		if stranger {
			r.log.Warn("removing a container that has no record", "container", id)
			go r.shim.discard(id)
		}
	}
}

// settle brings a container that ran up to date.
func (r *Runtime) settle(ctx context.Context, c *ctr, known map[string]protocol.State, why string) {
	state, ok := known[c.id]
	switch {
	case ok && state.Exited:
		r.exited(c, state, "")
	case ok:
		r.mu.Lock()
		c.status, c.state = container.StateRunning, state
		r.mu.Unlock()
	default:
		// It may have exited and been recorded before the shim went.
		if readJSON(c.file(protocol.StateFile), &state) == nil && state.Exited {
			r.exited(c, state, message(state))
			return
		}
		r.lose(ctx, c, why)
	}
}

// lose ends a container whose supervisor is gone: what is left of it is killed, as nobody
// could tell how it ends, nor take its output.
func (r *Runtime) lose(ctx context.Context, c *ctr, why string) {
	if c.rec.Cgroup != "" && c.rec.BootID == r.bootID {
		if err := r.containerGroup(c).Remove(ctx); err != nil {
			r.log.Error("killing a container without a supervisor", "container", c.id, "error", err)
		}
	}
	r.mu.Lock()
	state := c.state
	r.mu.Unlock()
	state.Exited, state.Lost, state.Code, state.Signal = true, true, lostCode, 0
	state.Finished = time.Now().UTC()
	if err := writeJSON(c.file(protocol.StateFile), state); err != nil {
		r.log.Error("recording a lost container", "container", c.id, "error", err)
	}
	if c.rec.BootID != r.bootID {
		why = "the machine was restarted"
	}
	r.log.Warn("a container was lost", "container", c.id, "reason", why)
	r.exited(c, state, fmt.Sprintf("The exit code is not known: %s", why))
}

// loseSandbox makes a sandbox not ready.
func (r *Runtime) loseSandbox(s *sandbox, why string) {
	r.mu.Lock()
	already := s.lost != ""
	if !already {
		s.lost = why
	}
	r.mu.Unlock()
	if !already {
		r.events.emit(container.Event{Type: container.EventSandboxLost, SandboxID: s.id})
	}
}

// discard removes a half-made container, running or not.
func (r *Runtime) discard(ctx context.Context, c *ctr) error {
	c.op.Lock()
	defer c.op.Unlock()
	if r.running(c) {
		if err := r.kill(ctx, c); err != nil {
			return err
		}
	}
	return r.clearContainer(ctx, c)
}

// startEvent is told by the shim, also of what a coracle that died had asked for.
func (r *Runtime) startEvent(state protocol.State) {
	r.mu.Lock()
	c := r.containers[state.ID]
	r.mu.Unlock()
	if c != nil {
		r.started(c, state)
	}
}

// exitEvent is told by the shim.
func (r *Runtime) exitEvent(state protocol.State) {
	r.mu.Lock()
	c := r.containers[state.ID]
	r.mu.Unlock()
	if c != nil {
		r.exited(c, state, "")
	}
}

// reaperEvent is told by the shim.
func (r *Runtime) reaperEvent(state protocol.State) {
	r.mu.Lock()
	s := r.sandboxes[state.ID]
	r.mu.Unlock()
	if s != nil {
		r.loseSandbox(s, fmt.Sprintf("the init of its PID namespace exited (code %d, signal %s)", state.Code, unix.Signal(state.Signal)))
	}
}
