package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/container/seccomp"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/namespace"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Paths of /proc and /sys that containers must not see or change, as containerd has them.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// builder turns a container's configuration into an OCI one. It reads the host and the
// root filesystem and changes neither.
type builder struct {
	r       *Runtime
	sandbox *sandbox
	ctr     *ctr
	rec     *containerRecord // User and StopSignal are filled in
	image   container.Image
	rootfs  string
}

func (b *builder) spec() (*specs.Spec, error) {
	c := b.rec.Config
	args := c.Args
	if len(args) == 0 {
		args = b.image.Config.Command(nil, nil)
	}
	if len(args) == 0 {
		return nil, errors.New("no command specified")
	}
	b.rec.StopSignal = c.StopSignal
	if b.rec.StopSignal == "" {
		b.rec.StopSignal = b.image.Config.StopSignal
	}
	user, home, err := b.user(c.User)
	if err != nil {
		return nil, err
	}
	b.rec.User = user
	caps, err := capabilitySet(c.Capabilities, c.Privileged)
	if err != nil {
		return nil, err
	}
	process := &specs.Process{
		Terminal: c.TTY, Args: args, Env: b.env(home), Cwd: b.cwd(),
		User:            specs.User{UID: user.UID, GID: user.GID, AdditionalGids: user.Groups},
		Capabilities:    ociCapabilities(caps, c),
		NoNewPrivileges: c.NoNewPrivileges, ApparmorProfile: c.AppArmor,
		OOMScoreAdj: &c.OOMScoreAdj,
	}
	for _, l := range c.Rlimits {
		process.Rlimits = append(process.Rlimits, specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	linux, err := b.linux(caps)
	if err != nil {
		return nil, err
	}
	mounts, propagation, err := b.mounts()
	if err != nil {
		return nil, err
	}
	linux.RootfsPropagation = propagation
	hooks, err := ociHooks(c.Hooks)
	if err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version: specs.Version, Process: process, Mounts: mounts, Linux: linux, Hooks: hooks,
		Root: &specs.Root{Path: b.rootfs, Readonly: c.ReadonlyRootfs},
	}, nil
}

// ociHooks are hooks in the form of the specification, nil for none.
func ociHooks(list []container.Hook) (*specs.Hooks, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := &specs.Hooks{}
	for _, h := range list {
		to := map[string]*[]specs.Hook{"prestart": &out.Prestart, "createRuntime": &out.CreateRuntime, "createContainer": &out.CreateContainer, //nolint:staticcheck // prestart is used still
			"startContainer": &out.StartContainer, "poststart": &out.Poststart, "poststop": &out.Poststop}[h.Name]
		if to == nil {
			return nil, fmt.Errorf("unknown hook %q", h.Name)
		}
		one := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout > 0 {
			one.Timeout = &h.Timeout
		}
		*to = append(*to, one)
	}
	return out, nil
}

func (b *builder) cwd() string {
	for _, dir := range []string{b.rec.Config.Cwd, b.image.Config.WorkingDir} {
		if dir != "" {
			return filepath.Clean("/" + dir)
		}
	}
	return "/"
}

// env lays the container's environment over the image's over the defaults.
func (b *builder) env(home string) []string {
	host, err := os.ReadFile(b.sandbox.file("hostname"))
	base := []string{defaultPath}
	if err == nil {
		base = append(base, "HOSTNAME="+strings.TrimSpace(string(host)))
	}
	if b.rec.Config.TTY {
		base = append(base, "TERM=xterm")
	}
	if home != "" {
		base = append(base, "HOME="+home)
	}
	return overlayEnv(overlayEnv(base, b.image.Config.Env), b.rec.Config.Env)
}

// overlayEnv replaces and appends variables, keeping places.
func overlayEnv(base, over []string) []string {
	out := slices.Clone(base)
	at := map[string]int{}
	for i, kv := range out {
		name, _, _ := strings.Cut(kv, "=")
		at[name] = i
	}
	for _, kv := range over {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue
		}
		if i, have := at[name]; have {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

func (b *builder) linux(caps []string) (*specs.Linux, error) {
	c := b.rec.Config
	devices, rules, err := b.devices()
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{
		CgroupsPath: filepath.Join(b.r.cgroupRoot, b.rec.Cgroup),
		Resources:   b.r.ociResources(b.r.sandboxGroup(b.sandbox), c.Resources),
		Devices:     devices,
		Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}},
	}
	l.Resources.Devices = rules
	if err := b.namespaces(l); err != nil {
		return nil, err
	}
	if !c.Privileged {
		if !c.UnmaskedProc {
			l.MaskedPaths, l.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
		}
		switch c.Seccomp.Mode {
		case container.SeccompDefault:
			l.Seccomp = seccomp.Default(caps, b.compat())
		case container.SeccompCustom:
			l.Seccomp = c.Seccomp.Profile
		case container.SeccompUnconfined:
		default:
			return nil, fmt.Errorf("unknown seccomp mode %q", c.Seccomp.Mode)
		}
	}
	l.MaskedPaths = append(l.MaskedPaths, c.MaskedPaths...)
	l.ReadonlyPaths = append(l.ReadonlyPaths, c.ReadonlyPaths...)
	return l, nil
}

// compat says whether the image holds 32-bit programs for this machine: by its own word, by their
// dynamic loaders, or because what is to be run is one.
func (b *builder) compat() bool {
	switch b.image.Config.Architecture {
	case "386", "arm":
		return true
	}
	for _, loader := range []string{"/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1", "/lib/ld-linux-armhf.so.3", "/lib/ld-musl-armhf.so.1"} {
		if f, err := openInside(b.rootfs, loader, unix.O_PATH); err == nil {
			f.Close()
			return true
		}
	}
	args := b.rec.Config.Args
	if len(args) == 0 {
		args = b.image.Config.Command(nil, nil)
	}
	f, err := openInside(b.rootfs, args[0], unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return false // found by way of PATH, or not at all
	}
	defer f.Close()
	head := make([]byte, 5)
	n, _ := f.Read(head)
	return n == 5 && string(head) == "\x7fELF\x01"
}

func (b *builder) namespaces(l *specs.Linux) error {
	ns := b.sandbox.rec.Config.Namespaces
	add := func(t specs.LinuxNamespaceType, path string) {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	if ns.Net != container.NamespaceHost {
		add(specs.NetworkNamespace, b.sandbox.ns(namespace.Net))
	}
	if ns.IPC != container.NamespaceHost {
		add(specs.IPCNamespace, b.sandbox.ns(namespace.IPC))
	}
	if ns.UTS != container.NamespaceHost {
		add(specs.UTSNamespace, b.sandbox.ns(namespace.UTS))
	}
	switch {
	case b.rec.Config.TargetPID != "":
		target, err := b.r.Container(b.rec.Config.TargetPID)
		if err != nil {
			return err
		}
		if target.State != container.StateRunning || target.Config.SandboxID != b.sandbox.id {
			return fmt.Errorf("target container %s: %w", target.Config.ID, container.ErrNotRunning)
		}
		add(specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", target.PID))
	case ns.PID == container.NamespaceSandbox:
		add(specs.PIDNamespace, b.sandbox.ns(namespace.PID))
	case ns.PID == container.NamespaceContainer:
		add(specs.PIDNamespace, "")
	}
	if b.r.cgroups.Version == 2 && !b.rec.Config.Privileged {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

// ociResources translates limits for a group below parent. What a version of cgroups lacks is left out.
func (r *Runtime) ociResources(parent *cgroup.Group, res cgroup.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: res.CPUs, Mems: res.MemNodes}}
	if res.CPUShares != 0 {
		out.CPU.Shares = &res.CPUShares
	}
	if res.CPUQuota != 0 {
		quota, period := res.CPUQuota, res.CPUPeriod
		if period == 0 {
			period = cgroup.DefaultPeriod
		}
		out.CPU.Quota, out.CPU.Period = &quota, &period
	}
	if res.Memory != 0 {
		memory, swap := res.Memory, res.MemorySwap
		if swap == 0 {
			swap = memory
		}
		out.Memory = &specs.LinuxMemory{Limit: &memory}
		if parent.LimitsSwap() {
			out.Memory.Swap = &swap
		}
	}
	if res.Pids != 0 {
		pids := res.Pids
		out.Pids = &specs.LinuxPids{Limit: &pids}
	}
	for size, limit := range res.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	sort.Slice(out.HugepageLimits, func(i, j int) bool { return out.HugepageLimits[i].Pagesize < out.HugepageLimits[j].Pagesize })
	if r.cgroups.Version == 2 {
		out.Unified = map[string]string{}
		for k, v := range res.Unified {
			out.Unified[k] = v
		}
		if res.OOMGroup {
			out.Unified["memory.oom.group"] = "1"
		}
	}
	return out
}

// rewriteResources changes the limits that a container which was not started yet will get.
func (r *Runtime) rewriteResources(c *ctr, res cgroup.Resources) error {
	var spec specs.Spec
	if err := readJSON(c.file(protocol.ConfigFile), &spec); err != nil {
		return err
	}
	devices := spec.Linux.Resources.Devices
	spec.Linux.Resources = r.ociResources(r.cgroups.Group(filepath.Dir(r.containerGroup(c).Path())), res)
	spec.Linux.Resources.Devices = devices
	return writeJSON(c.file(protocol.ConfigFile), spec)
}

// mounts lists what is mounted, the defaults first, then the container's own by depth. One of
// the container's own replaces a default at the same place.
func (b *builder) mounts() ([]specs.Mount, string, error) {
	c := b.rec.Config
	taken := map[string]bool{}
	for _, m := range c.Mounts {
		taken[filepath.Clean(m.ContainerPath)] = true
	}
	var out []specs.Mount
	for _, m := range b.defaultMounts() {
		if !taken[m.Destination] {
			out = append(out, m)
		}
	}
	for i, path := range b.image.Config.Volumes {
		if !b.ctr.mounted(path) {
			out = append(out, specs.Mount{Destination: filepath.Clean("/" + path), Type: "bind", Source: b.ctr.volume(i), Options: []string{"rbind", "rprivate", "rw"}})
		}
	}
	type own struct {
		i int
		m container.Mount
	}
	var list []own
	for i, m := range c.Mounts {
		list = append(list, own{i, m})
	}
	depth := func(m container.Mount) int { return strings.Count(filepath.Clean(m.ContainerPath), "/") }
	sort.SliceStable(list, func(i, j int) bool { return depth(list[i].m) < depth(list[j].m) })
	propagation := ""
	for _, o := range list {
		m, err := b.ownMount(o.i, o.m)
		if err != nil {
			return nil, "", err
		}
		out = append(out, m)
		switch {
		case o.m.Propagation == container.PropagationBidirectional:
			propagation = "rshared"
		case o.m.Propagation == container.PropagationHostToContainer && propagation == "":
			propagation = "rslave"
		}
	}
	return out, propagation, nil
}

func (b *builder) defaultMounts() []specs.Mount {
	c := b.rec.Config
	ro := "ro"
	if c.Privileged {
		ro = "rw"
	}
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}},
	}
	shm := "/dev/shm"
	if b.sandbox.rec.Config.Namespaces.IPC != container.NamespaceHost {
		shm = b.sandbox.file("shm")
	}
	bind := func(from, to string, options ...string) {
		out = append(out, specs.Mount{Destination: to, Type: "bind", Source: from, Options: append([]string{"rbind", "rprivate"}, options...)})
	}
	bind(shm, "/dev/shm", "rw", "nosuid", "nodev", "noexec")
	access := "rw"
	if c.ReadonlyRootfs {
		access = "ro"
	}
	bind(b.sandbox.file("hostname"), "/etc/hostname", access)
	bind(b.sandbox.file("resolv.conf"), "/etc/resolv.conf", access)
	return out
}

func (b *builder) ownMount(i int, m container.Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.ContainerPath) {
		return specs.Mount{}, fmt.Errorf("mount path %q is not absolute", m.ContainerPath)
	}
	source := m.HostPath
	if m.Image != "" {
		source = b.ctr.imageMount(i)
		if m.ImageSubPath != "" {
			sub, err := inside(source, m.ImageSubPath)
			if err != nil {
				return specs.Mount{}, err
			}
			source = sub
		}
		m.ReadOnly = true
	}
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount of %s: %w", source, err)
	}
	options := []string{"rbind"}
	switch m.Propagation {
	case container.PropagationPrivate:
		options = append(options, "rprivate")
	case container.PropagationHostToContainer, container.PropagationBidirectional:
		options = append(options, string(m.Propagation))
	default:
		return specs.Mount{}, fmt.Errorf("unknown mount propagation %q", m.Propagation)
	}
	switch {
	case m.RecursiveReadOnly && !m.ReadOnly:
		return specs.Mount{}, fmt.Errorf("mount of %s: recursive read-only needs read-only", source)
	case m.RecursiveReadOnly:
		options = append(options, "rro")
	case m.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{Destination: filepath.Clean(m.ContainerPath), Type: "bind", Source: real, Options: append(options, m.Options...)}, nil
}

// inside resolves a path below a directory, as if that were the root.
func inside(dir, sub string) (string, error) {
	f, err := openInside(dir, sub, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// openInside opens a path below a directory, as if that were the root.
func openInside(dir, name string, flags uint64) (*os.File, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// devices lists device nodes and the rules that open them.
func (b *builder) devices() ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	c := b.rec.Config
	rules := []specs.LinuxDeviceCgroup{{Allow: c.Privileged, Access: "rwm"}}
	var out []specs.LinuxDevice
	list := c.Devices
	if c.Privileged {
		host, err := hostDevices()
		if err != nil {
			return nil, nil, err
		}
		list = append(host, list...)
	}
	for _, d := range list {
		found, err := deviceNodes(d)
		if err != nil {
			return nil, nil, err
		}
		for _, dev := range found {
			out = append(out, dev)
			access := d.Permissions
			if access == "" {
				access = "rwm"
			}
			major, minor := dev.Major, dev.Minor
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &major, Minor: &minor, Access: access})
		}
	}
	return out, rules, nil
}

// deviceNodes is one device, or those in a directory of devices.
func deviceNodes(d container.Device) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(d.HostPath)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
	}
	to := d.ContainerPath
	if to == "" {
		to = d.HostPath
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(real, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		dev, ok, err := deviceOf(path)
		if err != nil || !ok {
			return err
		}
		rel, err := filepath.Rel(real, path)
		dev.Path = filepath.Join(to, rel)
		if d.UID != nil {
			dev.UID = d.UID
		}
		if d.GID != nil {
			dev.GID = d.GID
		}
		if d.Mode != nil {
			mode := os.FileMode(*d.Mode & 0o777)
			dev.FileMode = &mode
		}
		out = append(out, dev)
		return err
	})
	if err == nil && len(out) == 0 {
		err = errors.New("not a device node")
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
	}
	return out, nil
}

func deviceOf(path string) (specs.LinuxDevice, bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false, err
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, false, nil
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, true, nil
}

// hostDevices are all of /dev but what a container has of its own.
func hostDevices() ([]container.Device, error) {
	skip := map[string]bool{}
	for _, name := range []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty"} {
		skip["/dev/"+name] = true
	}
	var out []container.Device
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			return err
		case skip[path] && e.IsDir():
			return fs.SkipDir
		case skip[path] || e.IsDir() || e.Type()&fs.ModeSymlink != 0:
			return nil
		}
		if _, ok, err := deviceOf(path); err == nil && ok {
			out = append(out, container.Device{HostPath: path, ContainerPath: path})
		}
		return nil
	})
	return out, err
}

// execProcess is an OCI process for ExecConfig, on the base of the container's own.
func (r *Runtime) execProcess(c *ctr, config container.ExecConfig) (*specs.Process, error) {
	var spec specs.Spec
	if err := readJSON(c.file(protocol.ConfigFile), &spec); err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal, p.Env = config.Args, config.TTY, overlayEnv(p.Env, config.Env)
	if config.Cwd != "" {
		p.Cwd = filepath.Clean("/" + config.Cwd)
	}
	if config.TTY {
		p.Env = overlayEnv([]string{"TERM=xterm"}, p.Env)
	}
	if config.Privileged {
		caps, err := capabilitySet(container.Capabilities{}, true)
		if err != nil {
			return nil, err
		}
		p.Capabilities = ociCapabilities(caps, c.rec.Config)
	}
	if config.User != nil {
		user, home, err := resolveUser(c.file("rootfs"), *config.User, "")
		if err != nil {
			return nil, err
		}
		p.User = specs.User{UID: user.UID, GID: user.GID, AdditionalGids: user.Groups}
		if home != "" {
			p.Env = overlayEnv(p.Env, []string{"HOME=" + home})
		}
	}
	p.OOMScoreAdj = nil
	return p, nil
}

func (b *builder) user(u container.User) (container.ResolvedUser, string, error) {
	return resolveUser(b.rootfs, u, b.image.Config.User)
}

// parseID reads a numeric user or group ID.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}
