package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/namespace"
)

const (
	sandboxFile = "sandbox.json"
	defaultShm  = 64 << 20
	// cleanupTime bounds the undoing of what failed, whose caller may be gone.
	cleanupTime = 20 * time.Second
)

// sandboxRecord is what is on disk of a sandbox.
type sandboxRecord struct {
	Config  container.SandboxConfig `json:"config"`
	Created time.Time               `json:"created"`
	BootID  string                  `json:"bootId"`
	// Ready is false while it is being made: what is found so is removed.
	Ready bool `json:"ready"`
	// ReaperPID is the init of a shared PID namespace.
	ReaperPID int `json:"reaperPid,omitempty"`
}

// sandbox is one sandbox. rec and lost are guarded by Runtime.mu.
type sandbox struct {
	id  string
	dir string
	seq uint64
	// op is held during an operation on the sandbox as a whole.
	op   sync.Mutex
	rec  sandboxRecord
	lost string
	gone bool
}

func (s *sandbox) file(name string) string { return filepath.Join(s.dir, name) }

func (s *sandbox) ns(t namespace.Type) string { return filepath.Join(s.dir, "ns", string(t)) }

// normalise fills in what a configuration leaves to defaults.
func normalise(c container.SandboxConfig) container.SandboxConfig {
	ns := &c.Namespaces
	if ns.Net == "" {
		ns.Net = container.NamespaceSandbox
	}
	if ns.IPC == "" {
		ns.IPC = container.NamespaceSandbox
	}
	if ns.PID == "" {
		ns.PID = container.NamespaceContainer
	}
	if ns.UTS == "" {
		ns.UTS = ns.Net
	}
	if c.Cgroup == "" {
		c.Cgroup = "sandboxes/" + c.ID
	}
	c.Cgroup = strings.Trim(filepath.Clean("/"+c.Cgroup), "/")
	if c.ShmSize == 0 {
		c.ShmSize = defaultShm
	}
	return c
}

func checkSandbox(c container.SandboxConfig) error {
	if err := checkID(c.ID); err != nil {
		return err
	}
	if len(c.UIDs) > 0 || len(c.GIDs) > 0 {
		return errors.New("container: user namespaces are not supported by this runtime yet")
	}
	if c.Cgroup == "" || c.Cgroup == "shim" || strings.HasPrefix(c.Cgroup, "shim/") {
		return fmt.Errorf("container: invalid cgroup %q", c.Cgroup)
	}
	for name := range c.Sysctls {
		t, ok := namespace.SysctlType(name)
		if !ok {
			return fmt.Errorf("container: sysctl %q is not separate for each sandbox", name)
		}
		mode := map[namespace.Type]container.NamespaceMode{
			namespace.Net: c.Namespaces.Net, namespace.IPC: c.Namespaces.IPC, namespace.UTS: c.Namespaces.UTS,
		}[t]
		if mode == container.NamespaceHost {
			return fmt.Errorf("container: sysctl %q cannot be set, as the sandbox uses the host's %s namespace", name, t)
		}
	}
	return nil
}

// CreateSandbox implements container.Runtime.
func (r *Runtime) CreateSandbox(ctx context.Context, config container.SandboxConfig) (container.SandboxStatus, error) {
	config = normalise(config)
	if err := checkSandbox(config); err != nil {
		return container.SandboxStatus{}, err
	}
	s := &sandbox{id: config.ID, dir: filepath.Join(r.dir, "sandboxes", config.ID)}
	s.rec = sandboxRecord{Config: config, Created: time.Now().UTC(), BootID: r.bootID}
	s.op.Lock()
	defer s.op.Unlock()
	r.mu.Lock()
	if r.sandboxes[s.id] != nil {
		r.mu.Unlock()
		return container.SandboxStatus{}, fmt.Errorf("sandbox %s: %w", s.id, container.ErrExists)
	}
	r.seq++
	s.seq = r.seq
	r.sandboxes[s.id] = s
	r.mu.Unlock()
	if err := r.buildSandbox(ctx, s); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if uerr := r.clearSandbox(undo, s); uerr != nil {
			r.log.Error("undoing a sandbox that could not be made", "sandbox", s.id, "error", uerr)
		}
		return container.SandboxStatus{}, fmt.Errorf("sandbox %s: %w", s.id, err)
	}
	r.shim.warm() // now, as it holds up the making of cgroups
	r.events.emit(container.Event{Type: container.EventSandboxCreated, SandboxID: s.id})
	return r.sandboxStatus(s), nil
}

// buildSandbox makes the parts of a sandbox. clearSandbox undoes any number of them.
func (r *Runtime) buildSandbox(ctx context.Context, s *sandbox) error {
	if err := os.Mkdir(s.dir, 0o711); err != nil {
		return err
	}
	if err := writeJSON(s.file(sandboxFile), s.rec); err != nil {
		return err
	}
	c := s.rec.Config
	if c.LogDir != "" {
		if err := os.MkdirAll(c.LogDir, 0o755); err != nil {
			return err
		}
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	if c.Namespaces.IPC != container.NamespaceHost {
		if err := os.Mkdir(s.file("shm"), 0o755); err != nil {
			return err
		}
		if err := mount.Tmpfs(s.file("shm"), c.ShmSize, 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := r.sandboxGroup(s).Create(c.Resources); err != nil {
		return err
	}
	if err := s.pin(); err != nil {
		return err
	}
	rec := s.rec
	if c.Namespaces.PID == container.NamespaceSandbox {
		pid, err := r.startReaper(ctx, s)
		if err != nil {
			return err
		}
		rec.ReaperPID = pid
	}
	rec.Ready = true
	r.mu.Lock()
	s.rec = rec
	r.mu.Unlock()
	return writeJSON(s.file(sandboxFile), rec)
}

// pin makes the sandbox's own namespaces.
func (s *sandbox) pin() error {
	c := s.rec.Config
	var types []namespace.Type
	for t, mode := range map[namespace.Type]container.NamespaceMode{
		namespace.Net: c.Namespaces.Net, namespace.IPC: c.Namespaces.IPC, namespace.UTS: c.Namespaces.UTS,
	} {
		if mode != container.NamespaceHost {
			types = append(types, t)
		}
	}
	return namespace.Pin(s.file("ns"), types, func() error {
		if c.Namespaces.UTS != container.NamespaceHost {
			if err := namespace.SetHostname(c.Hostname, c.Domainname); err != nil {
				return err
			}
		}
		if c.Namespaces.Net != container.NamespaceHost {
			// As containerd 2 has it: any user may listen on low ports and ping, in a network of its own.
			_ = namespace.Sysctl("net.ipv4.ip_unprivileged_port_start", "0")
			_ = namespace.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
		}
		for name, value := range c.Sysctls {
			if err := namespace.Sysctl(name, value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *sandbox) writeFiles() error {
	c := s.rec.Config
	host := c.Hostname
	if c.Namespaces.UTS == container.NamespaceHost {
		var err error
		if host, err = os.Hostname(); err != nil {
			return err
		}
	}
	if err := writeReadable(s.file("hostname"), []byte(host+"\n")); err != nil {
		return err
	}
	resolv := resolvConf(c.DNS)
	if resolv == nil {
		var err error
		if resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return writeReadable(s.file("resolv.conf"), resolv)
}

// writeReadable writes a file that any user of a container can read, whatever this process's umask.
func writeReadable(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// resolvConf is the file for a DNS configuration, nil for an empty one.
func resolvConf(d container.DNS) []byte {
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	if b.Len() == 0 {
		return nil
	}
	return []byte(b.String())
}

// startReaper starts the init of a shared PID namespace and pins that.
func (r *Runtime) startReaper(ctx context.Context, s *sandbox) (int, error) {
	var started protocol.Started
	if err := r.shim.call(ctx, protocol.OpReaper, protocol.Reaper{ID: s.id}, &started); err != nil {
		return 0, err
	}
	group := r.cgroups.Group(filepath.Join(r.sandboxGroup(s).Path(), "init"))
	if err := group.Create(cgroup.Resources{}); err != nil {
		return 0, err
	}
	if err := group.Add(started.PID); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(s.file("ns"), 0o711); err != nil {
		return 0, err
	}
	return started.PID, namespace.PinOf(started.PID, namespace.PID, s.ns(namespace.PID))
}

func (r *Runtime) sandboxGroup(s *sandbox) *cgroup.Group {
	return r.cgroups.Group(filepath.Join(r.cgroupRoot, s.rec.Config.Cgroup))
}

// RemoveSandbox implements container.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	r.mu.Lock()
	s := r.sandboxes[id]
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	s.op.Lock() // from here on no container is made in it
	defer s.op.Unlock()
	if s.gone {
		return nil
	}
	for _, cid := range r.members(id) {
		if err := r.Remove(ctx, cid); err != nil {
			return err
		}
	}
	if err := r.clearSandbox(ctx, s); err != nil {
		return fmt.Errorf("sandbox %s: %w", id, err)
	}
	r.events.emit(container.Event{Type: container.EventSandboxRemoved, SandboxID: id})
	return nil
}

// members are all containers of a sandbox, also those that are being made.
func (r *Runtime) members(sandboxID string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for id, c := range r.containers {
		if c.rec.Config.SandboxID == sandboxID {
			out = append(out, id)
		}
	}
	return out
}

// clearSandbox removes whatever there is of a sandbox. It is idempotent. s.op is held.
func (r *Runtime) clearSandbox(ctx context.Context, s *sandbox) error {
	if s.rec.Ready {
		// From here on it is not whole, whatever happens to this process. A full disk must not keep it from going.
		rec := s.rec
		rec.Ready = false
		if err := writeJSON(s.file(sandboxFile), rec); err != nil {
			r.log.Warn("recording a removal", "error", err)
		}
	}
	if s.rec.Config.Namespaces.PID == container.NamespaceSandbox {
		if err := r.shim.forget(ctx, s.id); err != nil {
			return err
		}
	}
	if err := r.sandboxGroup(s).Remove(ctx); err != nil {
		return err
	}
	for _, t := range []namespace.Type{namespace.Net, namespace.IPC, namespace.UTS, namespace.PID} {
		if err := namespace.Unpin(s.ns(t)); err != nil {
			return err
		}
	}
	if err := mount.Unmount(s.file("shm")); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.gone = true
	delete(r.sandboxes, s.id)
	return nil
}

// Sandbox implements container.Runtime.
func (r *Runtime) Sandbox(id string) (container.SandboxStatus, error) {
	s, err := r.sandbox(id)
	if err != nil {
		return container.SandboxStatus{}, err
	}
	return r.sandboxStatus(s), nil
}

func (r *Runtime) sandbox(id string) (*sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil || !s.rec.Ready {
		return nil, fmt.Errorf("sandbox %s: %w", id, container.ErrNotFound)
	}
	return s, nil
}

func (r *Runtime) sandboxStatus(s *sandbox) container.SandboxStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := container.SandboxStatus{
		Config: s.rec.Config, State: container.SandboxReady, Created: s.rec.Created,
		Cgroup: r.sandboxGroup(s).Path(), ResolvConf: s.file("resolv.conf"), HostnameFile: s.file("hostname"),
	}
	if s.rec.Config.Namespaces.Net != container.NamespaceHost {
		st.NetNS = s.ns(namespace.Net)
	}
	if s.lost != "" {
		st.State, st.Message = container.SandboxNotReady, s.lost
	}
	return st
}

// Sandboxes implements container.Runtime.
func (r *Runtime) Sandboxes() []container.SandboxStatus {
	r.mu.Lock()
	var list []*sandbox
	for _, s := range r.sandboxes {
		if s.rec.Ready {
			list = append(list, s)
		}
	}
	r.mu.Unlock()
	inOrder(list, func(s *sandbox) (time.Time, uint64) { return s.rec.Created, s.seq })
	out := make([]container.SandboxStatus, len(list))
	for i, s := range list {
		out[i] = r.sandboxStatus(s)
	}
	return out
}

// UpdateSandbox implements container.Runtime.
func (r *Runtime) UpdateSandbox(_ context.Context, id string, res cgroup.Resources) error {
	s, err := r.sandbox(id)
	if err != nil {
		return err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.sandboxGroup(s).Set(res); err != nil {
		return fmt.Errorf("sandbox %s: %w", id, err)
	}
	r.mu.Lock()
	s.rec.Config.Resources = s.rec.Config.Resources.Merge(res)
	rec := s.rec
	r.mu.Unlock()
	return writeJSON(s.file(sandboxFile), rec)
}

// SandboxStats implements container.Runtime.
func (r *Runtime) SandboxStats(id string) (container.Stats, error) {
	s, err := r.sandbox(id)
	if err != nil {
		return container.Stats{}, err
	}
	stats, err := r.sandboxGroup(s).Stats()
	return container.Stats{Time: time.Now(), Stats: stats}, err
}

// Dial implements container.Runtime.
func (r *Runtime) Dial(ctx context.Context, sandboxID string, port int) (net.Conn, error) {
	s, err := r.sandbox(sandboxID)
	if err != nil {
		return nil, err
	}
	var paths []string
	if s.rec.Config.Namespaces.Net != container.NamespaceHost {
		paths = append(paths, s.ns(namespace.Net))
	}
	var conn net.Conn
	err = namespace.Do(func() error {
		var first error
		for _, host := range []string{"127.0.0.1", "::1"} {
			// The socket is made by the calling goroutine, as the address is a literal.
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err == nil {
				conn = c
				return nil
			}
			if first == nil {
				first = err
			}
		}
		return first
	}, paths...)
	return conn, err
}
