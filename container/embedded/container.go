package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/container/image"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/process"
)

const (
	containerFile = "container.json"
	// startErrorCode is the exit code of what never ran, as containerd has it.
	startErrorCode = 128
	// lostCode is the exit code where nobody knows it.
	lostCode = 255
	// killTime bounds the wait for an exit after SIGKILL.
	killTime = 30 * time.Second
)

// containerRecord is what is on disk of a container.
type containerRecord struct {
	Config  container.ContainerConfig `json:"config"`
	Created time.Time                 `json:"created"`
	BootID  string                    `json:"bootId"`
	// Ready is false while it is being made: what is found so is removed.
	Ready    bool   `json:"ready"`
	ImageID  string `json:"imageId"`
	ImageRef string `json:"imageRef,omitempty"`
	// VolumeImages are images mounted into the container.
	VolumeImages []string               `json:"volumeImages,omitempty"`
	LogPath      string                 `json:"logPath,omitempty"`
	User         container.ResolvedUser `json:"user"`
	// Cgroup is the path below the root cgroup.
	Cgroup     string `json:"cgroup"`
	StopSignal string `json:"stopSignal,omitempty"`
}

func (c containerRecord) uses(image string) bool {
	return c.ImageID == image || slices.Contains(c.VolumeImages, image)
}

// ctr is one container. rec, state and reason are guarded by Runtime.mu.
type ctr struct {
	id  string
	dir string
	seq uint64
	// op is held during Start, Remove, UpdateContainer.
	op sync.Mutex

	rec     containerRecord
	status  container.State
	state   protocol.State
	message string
	gone    bool
	// exited is closed when it has exited.
	exited chan struct{}
}

func (c *ctr) file(name string) string { return filepath.Join(c.dir, name) }

// CreateContainer implements container.Runtime.
func (r *Runtime) CreateContainer(ctx context.Context, config container.ContainerConfig) (container.ContainerStatus, error) {
	if err := checkID(config.ID); err != nil {
		return container.ContainerStatus{}, err
	}
	s, err := r.sandbox(config.SandboxID)
	if err != nil {
		return container.ContainerStatus{}, err
	}
	s.op.Lock()
	if s.gone || s.lost != "" {
		s.op.Unlock()
		return container.ContainerStatus{}, fmt.Errorf("sandbox %s is not ready: %w", s.id, container.ErrNotFound)
	}
	r.shim.warm()
	c := &ctr{id: config.ID, dir: filepath.Join(r.dir, "containers", config.ID), status: container.StateCreated, exited: make(chan struct{})}
	c.rec = containerRecord{Config: config, Created: time.Now().UTC(), BootID: r.bootID}
	c.op.Lock()
	defer c.op.Unlock()
	err = r.register(c)
	s.op.Unlock()
	if err != nil {
		return container.ContainerStatus{}, err
	}
	if err := r.buildContainer(ctx, s, c); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if uerr := r.clearContainer(undo, c); uerr != nil {
			r.log.Error("undoing a container that could not be made", "container", c.id, "error", uerr)
		}
		return container.ContainerStatus{}, fmt.Errorf("container %s: %w", c.id, err)
	}
	return r.containerStatus(c), nil
}

func (r *Runtime) register(c *ctr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("container: the runtime is closed")
	}
	if r.containers[c.id] != nil {
		return fmt.Errorf("container %s: %w", c.id, container.ErrExists)
	}
	r.seq++
	c.seq = r.seq
	r.containers[c.id] = c
	return nil
}

// buildContainer makes the parts of a container. clearContainer undoes any number of them.
func (r *Runtime) buildContainer(_ context.Context, s *sandbox, c *ctr) error {
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	img, release, err := r.images.Hold(c.rec.Config.Image)
	if err != nil {
		return err
	}
	defer release()
	rec := c.rec
	rec.ImageID = img.ID
	if len(img.Digests) > 0 {
		rec.ImageRef = img.Digests[0]
	}
	rec.Cgroup = filepath.Join(s.rec.Config.Cgroup, c.id)
	if rec.LogPath, err = logPath(s.rec.Config.LogDir, rec.Config.Log.Path); err != nil {
		return err
	}
	if err := r.record(c, rec); err != nil {
		return err
	}
	rootfs, err := r.images.Prepare(img.ID, c.dir)
	if err != nil {
		return err
	}
	if rec.VolumeImages, err = r.mountImages(c); err != nil {
		return err
	}
	if err := c.makeVolumes(rootfs, img.Config.Volumes); err != nil {
		return err
	}
	b := &builder{r: r, sandbox: s, ctr: c, rec: &rec, image: img, rootfs: rootfs}
	spec, err := b.spec()
	if err != nil {
		return err
	}
	if err := writeJSON(c.file(protocol.ConfigFile), spec); err != nil {
		return err
	}
	rec.Ready = true
	return r.record(c, rec)
}

func logPath(dir, path string) (string, error) {
	if path == "" || filepath.IsAbs(path) {
		return path, nil
	}
	if dir == "" {
		return "", fmt.Errorf("the log path %q is relative and the sandbox has no log directory", path)
	}
	return filepath.Join(dir, path), nil
}

// record puts a container's record into memory and on disk.
func (r *Runtime) record(c *ctr, rec containerRecord) error {
	r.mu.Lock()
	c.rec = rec
	r.mu.Unlock()
	return writeJSON(c.file(containerFile), rec)
}

// mountImages mounts the images that the container wants as volumes and returns their IDs.
func (r *Runtime) mountImages(c *ctr) ([]string, error) {
	var ids []string
	for i, m := range c.rec.Config.Mounts {
		if m.Image == "" {
			continue
		}
		img, release, err := r.images.Hold(m.Image)
		if err != nil {
			return nil, err
		}
		target := c.imageMount(i)
		err = os.MkdirAll(target, 0o755)
		if err == nil {
			err = r.images.MountReadOnly(img.ID, target)
		}
		release()
		if err != nil {
			return nil, err
		}
		ids = append(ids, img.ID)
	}
	return ids, nil
}

// makeVolumes copies what the image has at the places that it declares as volumes, unless something is mounted there:
// they are writable even if the root filesystem is not.
func (c *ctr) makeVolumes(rootfs string, volumes []string) error {
	for i, path := range volumes {
		if c.mounted(path) {
			continue
		}
		dir := c.volume(i)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		from, err := inside(rootfs, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := image.CopyTree(from, dir); err != nil {
			return err
		}
	}
	return nil
}

// mounted says whether the container mounts something of its own at path.
func (c *ctr) mounted(path string) bool {
	return slices.ContainsFunc(c.rec.Config.Mounts, func(m container.Mount) bool {
		return filepath.Clean(m.ContainerPath) == filepath.Clean("/"+path)
	})
}

func (c *ctr) volume(i int) string { return c.file(fmt.Sprintf("volumes/%d", i)) }

func (c *ctr) imageMount(i int) string { return c.file(fmt.Sprintf("images/%d", i)) }

// Start implements container.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r.mu.Lock()
	status, rec, s := c.status, c.rec, r.sandboxes[c.rec.Config.SandboxID]
	lost := s == nil || s.lost != ""
	r.mu.Unlock()
	if status != container.StateCreated || c.gone {
		return fmt.Errorf("container %s is %s and cannot be started", id, status)
	}
	if lost {
		return fmt.Errorf("container %s: its sandbox is not ready", id)
	}
	req := protocol.Start{
		ID: id, Dir: c.dir, Root: filepath.Join(r.dir, "oci"),
		Stdin: rec.Config.Stdin, StdinOnce: rec.Config.StdinOnce, TTY: rec.Config.TTY,
		Log: protocol.Log{Path: rec.LogPath, MaxSize: rec.Config.Log.MaxSize, MaxFiles: rec.Config.Log.MaxFiles},
	}
	var started protocol.Started
	// Once asked for, a start has an outcome that must be known.
	err = r.shim.call(context.WithoutCancel(ctx), protocol.OpStart, req, &started)
	if err != nil {
		return r.startFailed(ctx, c, err)
	}
	r.started(c, protocol.State{ID: id, PID: started.PID, Started: started.Time})
	return nil
}

// started takes in a start, once.
func (r *Runtime) started(c *ctr, state protocol.State) {
	r.mu.Lock()
	if c.status != container.StateCreated {
		r.mu.Unlock()
		return
	}
	c.status, c.state = container.StateRunning, state
	sandbox := c.rec.Config.SandboxID
	r.mu.Unlock()
	r.events.emit(container.Event{Type: container.EventContainerStarted, SandboxID: sandbox, ContainerID: c.id, Time: state.Started})
}

// startFailed turns a refusal of the program into an exit, and leaves other failures to be tried again.
func (r *Runtime) startFailed(ctx context.Context, c *ctr, err error) error {
	var perr *protocol.Error
	if !errors.As(err, &perr) || perr.Kind != protocol.ErrStart {
		if errors.Is(err, container.ErrLost) {
			// The shim may have got anywhere with it.
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
			err = errors.Join(err, r.containerGroup(c).Remove(undo))
		}
		return fmt.Errorf("starting container %s: %w", c.id, err)
	}
	now := time.Now().UTC()
	state := protocol.State{ID: c.id, BootID: r.bootID, Exited: true, Code: startErrorCode, Finished: now, StartError: perr.Message}
	if werr := writeJSON(c.file(protocol.StateFile), state); werr != nil {
		r.log.Error("recording a failed start", "container", c.id, "error", werr)
	}
	r.exited(c, state, perr.Message)
	return startErrorOf(perr.Message)
}

func startErrorOf(message string) *container.StartError {
	return &container.StartError{
		Message:  message,
		NotFound: strings.Contains(message, "executable file not found") || strings.Contains(message, "no such file or directory"),
	}
}

// exited takes in an exit, once.
func (r *Runtime) exited(c *ctr, state protocol.State, message string) {
	r.mu.Lock()
	if c.status == container.StateExited {
		r.mu.Unlock()
		return
	}
	c.status, c.state, c.message = container.StateExited, state, message
	close(c.exited)
	sandbox := c.rec.Config.SandboxID
	r.mu.Unlock()
	r.events.emit(container.Event{Type: container.EventContainerExited, SandboxID: sandbox, ContainerID: c.id, Time: state.Finished})
}

// Stop implements container.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string, signal string, grace time.Duration) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if !r.running(c) {
		return nil
	}
	if grace > 0 {
		sig, err := r.stopSignal(c, signal)
		if err != nil {
			return err
		}
		err = r.shim.call(ctx, protocol.OpSignal, protocol.Signal{ID: id, Signal: int(sig)}, nil)
		if err != nil && !ending(err) {
			return fmt.Errorf("stopping container %s: %w", id, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return r.kill(ctx, c)
}

func (r *Runtime) stopSignal(c *ctr, signal string) (unix.Signal, error) {
	if signal == "" {
		signal = c.rec.StopSignal
	}
	if signal == "" {
		return unix.SIGTERM, nil
	}
	return process.ParseSignal(signal)
}

// kill kills all of a container and waits for its exit.
func (r *Runtime) kill(ctx context.Context, c *ctr) error {
	err := r.shim.call(ctx, protocol.OpSignal, protocol.Signal{ID: c.id, Signal: int(unix.SIGKILL), All: true}, nil)
	if err != nil && !ending(err) {
		return fmt.Errorf("killing container %s: %w", c.id, err)
	}
	timer := time.NewTimer(killTime)
	defer timer.Stop()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("container %s does not die", c.id)
	}
}

// Signal implements container.Runtime.
func (r *Runtime) Signal(ctx context.Context, id string, signal string) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	sig, err := process.ParseSignal(signal)
	if err != nil {
		return err
	}
	if !r.running(c) {
		return fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	return translate(r.shim.call(ctx, protocol.OpSignal, protocol.Signal{ID: id, Signal: int(sig)}, nil))
}

// Remove implements container.Runtime.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	r.mu.Lock()
	c := r.containers[id]
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.gone {
		return nil
	}
	if r.running(c) {
		if err := r.kill(ctx, c); err != nil {
			return err
		}
	}
	sandbox := c.rec.Config.SandboxID
	if err := r.clearContainer(ctx, c); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	r.events.emit(container.Event{Type: container.EventContainerRemoved, SandboxID: sandbox, ContainerID: id})
	return nil
}

// clearContainer removes whatever there is of a container that does not run. It is idempotent. c.op is held.
func (r *Runtime) clearContainer(ctx context.Context, c *ctr) error {
	if c.rec.Ready {
		// From here on it is not whole, whatever happens to this process. A full disk must not keep it from going.
		rec := c.rec
		rec.Ready = false
		if err := writeJSON(c.file(containerFile), rec); err != nil {
			r.log.Warn("recording a removal", "error", err)
		}
	}
	if err := r.shim.forget(ctx, c.id); err != nil {
		return err
	}
	if c.rec.Cgroup != "" {
		if err := r.containerGroup(c).Remove(ctx); err != nil {
			return err
		}
	}
	for i, m := range c.rec.Config.Mounts {
		if m.Image != "" {
			if err := mount.Unmount(c.imageMount(i)); err != nil {
				return err
			}
		}
	}
	if err := r.images.Release(c.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "oci", c.id)); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c.gone = true
	delete(r.containers, c.id)
	return nil
}

func (r *Runtime) containerGroup(c *ctr) *cgroup.Group {
	return r.cgroups.Group(filepath.Join(r.cgroupRoot, c.rec.Cgroup))
}

func (r *Runtime) find(id string) (*ctr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil || !c.rec.Ready {
		return nil, fmt.Errorf("container %s: %w", id, container.ErrNotFound)
	}
	return c, nil
}

func (r *Runtime) running(c *ctr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.status == container.StateRunning
}

// Container implements container.Runtime.
func (r *Runtime) Container(id string) (container.ContainerStatus, error) {
	c, err := r.find(id)
	if err != nil {
		return container.ContainerStatus{}, err
	}
	return r.containerStatus(c), nil
}

func (r *Runtime) containerStatus(c *ctr) container.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := container.ContainerStatus{
		Config: c.rec.Config, State: c.status, ImageID: c.rec.ImageID, ImageRef: c.rec.ImageRef,
		Created: c.rec.Created, Started: c.state.Started, LogPath: c.rec.LogPath, User: c.rec.User,
		Rootfs: c.file("rootfs"), Cgroup: filepath.Join(r.cgroupRoot, c.rec.Cgroup),
	}
	switch c.status {
	case container.StateRunning:
		st.PID = c.state.PID
	case container.StateExited:
		st.Exit = container.ExitStatus{Code: c.state.Code, Signal: c.state.Signal, OOMKilled: c.state.OOMKilled, Time: c.state.Finished}
		st.Reason, st.Message = reason(c.state), c.message
	}
	return st
}

func reason(s protocol.State) string {
	switch {
	case s.StartError != "":
		return container.ReasonStartError
	case s.Lost:
		return container.ReasonLost
	case s.OOMKilled:
		return container.ReasonOOMKilled
	case s.Code == 0:
		return container.ReasonCompleted
	}
	return container.ReasonError
}

// Containers implements container.Runtime.
func (r *Runtime) Containers(sandboxID string) []container.ContainerStatus {
	r.mu.Lock()
	var list []*ctr
	for _, c := range r.containers {
		if c.rec.Ready && (sandboxID == "" || c.rec.Config.SandboxID == sandboxID) {
			list = append(list, c)
		}
	}
	r.mu.Unlock()
	inOrder(list, func(c *ctr) (time.Time, uint64) { return c.rec.Created, c.seq })
	out := make([]container.ContainerStatus, len(list))
	for i, c := range list {
		out[i] = r.containerStatus(c)
	}
	return out
}

// UpdateContainer implements container.Runtime.
func (r *Runtime) UpdateContainer(_ context.Context, id string, res cgroup.Resources) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.rec
	rec.Config.Resources = rec.Config.Resources.Merge(res)
	switch {
	case r.running(c):
		if err := r.containerGroup(c).Set(res); err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
	default:
		if err := r.rewriteResources(c, rec.Config.Resources); err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
	}
	return r.record(c, rec)
}

// Stats implements container.Runtime.
func (r *Runtime) Stats(id string) (container.Stats, error) {
	c, err := r.find(id)
	if err != nil {
		return container.Stats{}, err
	}
	if !r.running(c) {
		return container.Stats{}, fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	stats, err := r.containerGroup(c).Stats()
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	return container.Stats{Time: time.Now(), Stats: stats}, err
}

// DiskUsage implements container.Runtime.
func (r *Runtime) DiskUsage(ctx context.Context, id string) (container.DiskUsage, error) {
	c, err := r.find(id)
	if err != nil {
		return container.DiskUsage{}, err
	}
	return diskUsage(ctx, c.file("upper"), c.file("rootfs"))
}

// diskUsage counts the blocks of what is below upper, or below rootfs where the container has a copy of its image.
func diskUsage(ctx context.Context, upper, rootfs string) (container.DiskUsage, error) {
	dir := upper
	if on, err := mount.IsMountPoint(rootfs); err == nil && !on {
		dir = rootfs
	}
	u := container.DiskUsage{Time: time.Now()}
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it changes while we look
			}
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || seen[st.Ino] {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			seen[st.Ino] = true
		}
		u.Bytes += uint64(st.Blocks) * 512
		u.Inodes++
		return nil
	})
	return u, err
}

// ReopenLog implements container.Runtime.
func (r *Runtime) ReopenLog(ctx context.Context, id string) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if !r.running(c) {
		return fmt.Errorf("container %s: %w", id, container.ErrNotRunning)
	}
	return translate(r.shim.call(ctx, protocol.OpReopenLog, protocol.Ref{ID: id}, nil))
}

// ending says that a container which could not be reached is about to be known as exited.
func ending(err error) bool {
	return isKind(err, protocol.ErrNotRunning) || isKind(err, protocol.ErrNotFound) || errors.Is(err, container.ErrLost)
}

func isKind(err error, kind protocol.ErrorKind) bool {
	var perr *protocol.Error
	return errors.As(err, &perr) && perr.Kind == kind
}

// translate gives a refusal of the shim the contract's own error.
func translate(err error) error {
	var perr *protocol.Error
	if !errors.As(err, &perr) {
		return err
	}
	switch perr.Kind {
	case protocol.ErrStart:
		return startErrorOf(perr.Message)
	case protocol.ErrNotFound, protocol.ErrNotRunning:
		return fmt.Errorf("%w: %s", container.ErrNotRunning, perr.Message)
	case protocol.ErrBusy:
		return fmt.Errorf("%w: %s", container.ErrBusy, perr.Message)
	}
	return err
}
