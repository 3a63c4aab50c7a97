// Package container says what a container runtime is to the node agent:
// sandboxes, containers, their streams, and images. It knows OCI and Linux,
// never Kubernetes: names such as pods, probes or pull policies do not occur.
//
// It owns the contract alone. container/embedded is the default
// implementation (libcontainer behind one small supervising process),
// container/image keeps images, container/logfile reads and writes the logs.
//
// What holds for every implementation: IDs are chosen by the caller and unique
// in the runtime; configurations, labels and states live on disk, so that
// after a crash of the caller everything is found again; containers outlive their
// caller; nothing polls; every method is safe for concurrent use.
package container

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"coracle.dev/coracle/linux/cgroup"
)

// Runtime runs sandboxes and containers.
type Runtime interface {
	// Images is the image store that containers are made from.
	Images() Images

	// CreateSandbox makes the namespaces, the cgroup and the files (hostname,
	// resolv.conf, shared memory) of a sandbox. It undoes all of it when it
	// fails. ErrExists if the ID is taken.
	CreateSandbox(ctx context.Context, config SandboxConfig) (SandboxStatus, error)
	// RemoveSandbox kills and removes the containers of a sandbox and then the sandbox
	// itself. It is idempotent: an unknown ID is no error.
	RemoveSandbox(ctx context.Context, id string) error
	// Sandbox returns one sandbox, ErrNotFound if there is none.
	Sandbox(id string) (SandboxStatus, error)
	// Sandboxes returns all, in order of creation.
	Sandboxes() []SandboxStatus
	// UpdateSandbox changes the limits of a sandbox's cgroup.
	UpdateSandbox(ctx context.Context, id string, res cgroup.Resources) error
	// Dial connects to a TCP port on the sandbox's loopback (127.0.0.1, then
	// ::1), for port forwarding.
	Dial(ctx context.Context, sandboxID string, port int) (net.Conn, error)

	// CreateContainer prepares a root filesystem and records the configuration. No
	// process runs yet. ErrExists, ErrNotFound (sandbox), ErrImageNotFound.
	CreateContainer(ctx context.Context, config ContainerConfig) (ContainerStatus, error)
	// Start runs the container's process and returns when it has been executed. An
	// error says why not (*StartError), and the container is then exited with code 128.
	Start(ctx context.Context, id string) error
	// Stop sends the signal (empty: the container's StopSignal, then
	// SIGTERM) and after grace SIGKILL to all that is left. It returns when the container
	// exited. A done ctx leaves the container as it is then. No error if it does
	// not run. With grace 0 only SIGKILL is sent.
	Stop(ctx context.Context, id string, signal string, grace time.Duration) error
	// Signal sends one signal to the container's first process.
	Signal(ctx context.Context, id string, signal string) error
	// Remove kills the container if needed and removes all of it but its logs. It is
	// idempotent: an unknown ID is no error.
	Remove(ctx context.Context, id string) error
	// Container returns one container, ErrNotFound if there is none.
	Container(id string) (ContainerStatus, error)
	// Containers returns those of a sandbox, all for "", in order of creation.
	Containers(sandboxID string) []ContainerStatus
	// UpdateContainer changes the limits of a container, running or not. What is zero
	// in res stays as it is. The new limits are recorded.
	UpdateContainer(ctx context.Context, id string, res cgroup.Resources) error

	// Exec runs a process in a running container and returns when it has exited and
	// its output was delivered. A done ctx kills it and is the error then.
	// A process that could not be executed gives *StartError.
	Exec(ctx context.Context, id string, config ExecConfig, streams Streams) (ExitStatus, error)
	// Attach connects to the streams of a container's first process, until it exits, ctx is
	// done, or all streams ended. Output from before the call is not replayed (it is in the log).
	Attach(ctx context.Context, id string, streams Streams) error

	// Stats reads a container's usage. Stats of a container that does not run are
	// ErrNotRunning.
	Stats(id string) (Stats, error)
	// SandboxStats reads the usage of a sandbox as a whole.
	SandboxStats(id string) (Stats, error)
	// DiskUsage walks the container's own files (those not of the image). It costs
	// time in proportion to their number.
	DiskUsage(ctx context.Context, id string) (DiskUsage, error)
	// ReopenLog makes the container's log file anew, after the caller moved the old one.
	ReopenLog(ctx context.Context, id string) error

	// Subscribe calls fn for every event from now on, in order and from one
	// goroutine; fn must not block. Events are hints: the state is in Container.
	// The returned function ends the subscription; fn is not called after it returned.
	Subscribe(fn func(Event)) (cancel func())
	// Status says whether the runtime works, and why not.
	Status() RuntimeStatus
	// Close disconnects. Containers run on.
	Close() error
	// Shutdown removes nothing, but ends the supervising process if no container
	// runs; ErrBusy otherwise.
	Shutdown(ctx context.Context) error
}

// NamespaceMode says whose namespace a container is in.
type NamespaceMode string

const (
	// NamespaceSandbox is shared by the containers of a sandbox. The zero value
	// means this one, but for PID, where it means NamespaceContainer.
	NamespaceSandbox NamespaceMode = "sandbox"
	// NamespaceContainer gives each container its own (PID only).
	NamespaceContainer NamespaceMode = "container"
	// NamespaceHost is the host's own.
	NamespaceHost NamespaceMode = "host"
)

// Namespaces says which namespaces a sandbox has.
type Namespaces struct {
	// Net: sandbox or host.
	Net NamespaceMode `json:"net,omitempty"`
	// IPC: sandbox or host. It decides about /dev/shm too.
	IPC NamespaceMode `json:"ipc,omitempty"`
	// PID: container (default), sandbox (a tiny init reaps for all) or host.
	PID NamespaceMode `json:"pid,omitempty"`
	// UTS: sandbox or host. Empty follows Net, as a host name goes with its addresses.
	UTS NamespaceMode `json:"uts,omitempty"`
}

// IDMap maps a range of user or group IDs of a sandbox to the host's.
type IDMap struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Size      uint32 `json:"size"`
}

// DNS is what resolv.conf says. If all is empty the host's file is copied.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// SandboxConfig describes a sandbox. It is recorded.
type SandboxConfig struct {
	// ID is unique in the runtime: letters, digits, "_", "-", ".", at most 128.
	ID string `json:"id"`
	// Hostname is set where the UTS namespace is the sandbox's own.
	Hostname   string `json:"hostname,omitempty"`
	Domainname string `json:"domainname,omitempty"`
	// DNS becomes /etc/resolv.conf of the containers.
	DNS        DNS        `json:"dns"`
	Namespaces Namespaces `json:"namespaces"`
	// UIDs and GIDs, if not empty, give the sandbox a user namespace.
	UIDs []IDMap `json:"uids,omitempty"`
	GIDs []IDMap `json:"gids,omitempty"`
	// Sysctls are set in the sandbox's own namespaces; one that is not namespaced, or
	// whose namespace is the host's, is an error.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Cgroup is the sandbox's cgroup, relative to the runtime's root cgroup
	// ("kubepods/burstable/pod123"), "sandboxes/<ID>" if empty. Missing parents are made;
	// on removal parents stay.
	Cgroup string `json:"cgroup,omitempty"`
	// Resources are the limits of that cgroup.
	Resources cgroup.Resources `json:"resources"`
	// ShmSize is the size of /dev/shm in bytes, 0 for 64 MiB.
	ShmSize int64 `json:"shmSize,omitempty"`
	// LogDir is where relative log paths of containers begin. It is made if missing.
	LogDir string `json:"logDir,omitempty"`
	// Labels and Annotations are recorded and returned, nothing else.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// SandboxState says whether a sandbox can hold containers.
type SandboxState string

const (
	// SandboxReady has all its namespaces.
	SandboxReady SandboxState = "ready"
	// SandboxNotReady lost them (a reboot, the death of its init); it can only be removed.
	SandboxNotReady SandboxState = "notready"
)

// SandboxStatus is what is known of a sandbox.
type SandboxStatus struct {
	Config  SandboxConfig
	State   SandboxState
	Created time.Time
	// NetNS is the path of the pinned network namespace, "" for the host's.
	NetNS string
	// Cgroup is the whole path below the cgroup mounts.
	Cgroup string
	// ResolvConf and HostnameFile are the files that the containers see.
	ResolvConf, HostnameFile string
	// Message says why it is not ready.
	Message string
}

// Propagation says how mounts made later pass between host and container.
type Propagation string

// The propagation modes of a bind mount.
const (
	PropagationPrivate         Propagation = ""
	PropagationHostToContainer Propagation = "rslave"
	PropagationBidirectional   Propagation = "rshared"
)

// Mount makes something of the host visible in a container.
type Mount struct {
	// HostPath is bound to ContainerPath. It must exist.
	HostPath string `json:"hostPath,omitempty"`
	// Image, instead of HostPath, mounts the files of an image (ID or
	// reference present in the store), always read-only; ImageSubPath picks a directory.
	Image        string `json:"image,omitempty"`
	ImageSubPath string `json:"imageSubPath,omitempty"`
	// ContainerPath is absolute, and made if missing.
	ContainerPath string `json:"containerPath"`
	ReadOnly      bool   `json:"readOnly,omitempty"`
	// RecursiveReadOnly makes the mounts below HostPath read-only too (needs ReadOnly).
	RecursiveReadOnly bool        `json:"recursiveReadOnly,omitempty"`
	Propagation       Propagation `json:"propagation,omitempty"`
	// Options are further mount options (noexec, nosuid, nodev).
	Options []string `json:"options,omitempty"`
}

// Device gives a container a device node of the host.
type Device struct {
	HostPath      string `json:"hostPath"`
	ContainerPath string `json:"containerPath"`
	// Permissions is a subset of "rwm", all if empty.
	Permissions string `json:"permissions,omitempty"`
	// UID, GID and Mode (permission bits) are those of the node in the container, the host's where nil.
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	Mode *uint32 `json:"mode,omitempty"`
}

// Hook is a program of the host that the runtime runs at a moment in the life of a container; it gets the container's state as JSON (OCI runtime
// specification, "POSIX-platform Hooks"). One that fails before the container runs keeps it from running.
type Hook struct {
	// Name is the moment: prestart, createRuntime, createContainer, startContainer, poststart or poststop.
	Name string `json:"name"`
	// Path is absolute, Args include the program's name, as for execve.
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"`
	// Timeout in seconds ends it, 0 for none.
	Timeout int `json:"timeout,omitempty"`
}

// User says who a process runs as.
type User struct {
	// UID and GID win over Name. A UID without GID gets the primary group
	// that the image's /etc/passwd gives it, otherwise 0.
	UID *uint32 `json:"uid,omitempty"`
	GID *uint32 `json:"gid,omitempty"`
	// Name is as in an image: "user", "uid", "user:group", "uid:gid". If UID and
	// Name are empty, the image's user is taken.
	Name string `json:"name,omitempty"`
	// Groups are supplementary groups beside those that the image's /etc/group lists for the user.
	Groups []uint32 `json:"groups,omitempty"`
	// StrictGroups leaves out those of /etc/group (KEP-3619).
	StrictGroups bool `json:"strictGroups,omitempty"`
}

// Capabilities are changes to the default set, names without or with "CAP_", "ALL" for all.
type Capabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

// SeccompMode says which system calls are filtered.
type SeccompMode string

const (
	// SeccompUnconfined filters none.
	SeccompUnconfined SeccompMode = ""
	// SeccompDefault is the runtime's own profile.
	SeccompDefault SeccompMode = "default"
	// SeccompCustom is the one given.
	SeccompCustom SeccompMode = "custom"
)

// Seccomp is the system call filter of a container.
type Seccomp struct {
	Mode SeccompMode `json:"mode,omitempty"`
	// Profile for SeccompCustom. Package seccomp reads one from the usual JSON.
	Profile *specs.LinuxSeccomp `json:"profile,omitempty"`
}

// Rlimit is a process limit, Type as in "RLIMIT_NOFILE".
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// ContainerConfig describes a container. It is recorded.
type ContainerConfig struct {
	// ID is unique in the runtime, in the same form as a sandbox's.
	ID        string `json:"id"`
	SandboxID string `json:"sandboxId"`
	// Image is a reference or an ID that is in the store.
	Image string `json:"image"`
	// Args is the whole command line. If empty, the image's entrypoint and cmd.
	Args []string `json:"args,omitempty"`
	// Env is laid over the image's environment, "NAME=value". HOME is set from
	// /etc/passwd, HOSTNAME from the sandbox and PATH to the usual one if neither has it.
	Env []string `json:"env,omitempty"`
	// Cwd is the working directory, made if missing; the image's, then "/", if empty.
	Cwd    string  `json:"cwd,omitempty"`
	Mounts []Mount `json:"mounts,omitempty"`
	User   User    `json:"user"`

	// Privileged gives all capabilities and devices, and no filter, masks, or read-only /sys.
	Privileged   bool         `json:"privileged,omitempty"`
	Capabilities Capabilities `json:"capabilities"`
	// Ambient makes added capabilities reach programs of users other than root.
	Ambient         bool    `json:"ambient,omitempty"`
	Seccomp         Seccomp `json:"seccomp"`
	AppArmor        string  `json:"appArmor,omitempty"`
	NoNewPrivileges bool    `json:"noNewPrivileges,omitempty"`
	ReadonlyRootfs  bool    `json:"readonlyRootfs,omitempty"`
	// UnmaskedProc leaves out the default masked and read-only paths of /proc and /sys.
	UnmaskedProc bool `json:"unmaskedProc,omitempty"`
	// MaskedPaths and ReadonlyPaths are in addition to the defaults.
	MaskedPaths   []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string `json:"readonlyPaths,omitempty"`
	Devices       []Device `json:"devices,omitempty"`
	Hooks         []Hook   `json:"hooks,omitempty"`
	Rlimits       []Rlimit `json:"rlimits,omitempty"`
	// Sysctls set for this container alone are those of namespaces of its own (none at present but
	// PID); those of a sandbox belong to SandboxConfig.
	// OOMScoreAdj is -1000..1000. Where it cannot be lowered it stays, with one warning.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
	// Resources are the limits of the container's cgroup, "<sandbox's>/<ID>".
	Resources cgroup.Resources `json:"resources"`
	// TargetPID joins the PID namespace of that running container (of the same sandbox)
	// instead of what the sandbox says.
	TargetPID string `json:"targetPid,omitempty"`

	// Stdin keeps the first process's input open for Attach; otherwise it is /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce closes it for good when the first attached client's input ends.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// TTY gives it a terminal, stdout and stderr then being one.
	TTY bool `json:"tty,omitempty"`
	// Log says where output goes.
	Log LogConfig `json:"log"`
	// StopSignal is used by Stop; the image's, then SIGTERM, if empty.
	StopSignal string `json:"stopSignal,omitempty"`

	// Labels and Annotations are recorded and returned, nothing else.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// LogConfig says where the output of a container goes: lines of
// "<RFC 3339 time with nanoseconds> stdout|stderr F|P <text>".
type LogConfig struct {
	// Path is absolute, or relative to the sandbox's LogDir. "" keeps no log.
	Path string `json:"path,omitempty"`
	// MaxSize in bytes is when a file is moved to "<path>.<time>", 0 for 10 MiB, negative for never.
	MaxSize int64 `json:"maxSize,omitempty"`
	// MaxFiles is how many are kept with the present one, 0 for 5.
	MaxFiles int `json:"maxFiles,omitempty"`
}

// State is where in its life a container is: created -> running -> exited.
type State string

// The states of a container.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
)

// Reasons of an exit, as ContainerStatus.Reason has them.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	// ReasonLost: the supervising process or the machine went down; the exit code is not known.
	ReasonLost = "ContainerStatusUnknown"
)

// ExitStatus is how a process ended.
type ExitStatus struct {
	// Code is the exit code, 128+n for death by signal n, 255 if lost.
	Code int `json:"code"`
	// Signal is n for death by signal n.
	Signal int `json:"signal,omitempty"`
	// OOMKilled says that the kernel killed a process of the container for lack of memory.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Time of the exit.
	Time time.Time `json:"time"`
}

// ContainerStatus is what is known of a container.
type ContainerStatus struct {
	Config ContainerConfig
	State  State
	// ImageID is the digest of the image's configuration, ImageRef that of its manifest where known.
	ImageID, ImageRef string
	// PID on the host while running.
	PID     int
	Created time.Time
	// Started is zero unless it ran.
	Started time.Time
	// Exit is set when exited.
	Exit ExitStatus
	// Reason and Message explain an exit.
	Reason, Message string
	// LogPath is absolute.
	LogPath string
	// User is who the process runs as, as resolved.
	User ResolvedUser
	// Rootfs is the root directory on the host while it is mounted.
	Rootfs string
	// Cgroup is the whole path below the cgroup mounts.
	Cgroup string
}

// ResolvedUser is a User with names resolved.
type ResolvedUser struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// ExecConfig describes a further process of a container. What is empty is as the
// container's first process has it.
type ExecConfig struct {
	Args []string
	// Env is laid over the container's.
	Env []string
	Cwd string
	// User nil is the container's.
	User       *User
	TTY        bool
	Privileged bool
}

// TerminalSize is in characters.
type TerminalSize struct {
	Width, Height uint16
}

// Streams are the caller's ends of a process's streams. Nil ones are not connected.
type Streams struct {
	// Stdin is read until its end. Exec and Attach do not wait for a pending Read,
	// so that its goroutine may outlive them: the caller makes the Read return by closing its end.
	Stdin io.Reader
	// Stdout and Stderr are written from one goroutine each. With a terminal all goes to Stdout.
	Stdout, Stderr io.Writer
	// Resize gives terminal sizes, the first being the initial one if it is there at once.
	Resize <-chan TerminalSize
}

// Stats is usage at one time.
type Stats struct {
	Time time.Time
	cgroup.Stats
}

// DiskUsage of files on the host.
type DiskUsage struct {
	Time   time.Time
	Bytes  uint64
	Inodes uint64
}

// EventType says what happened.
type EventType string

// The types of events.
const (
	EventContainerStarted EventType = "started"
	EventContainerExited  EventType = "exited"
	EventContainerRemoved EventType = "removed"
	EventSandboxCreated   EventType = "sandboxcreated"
	EventSandboxRemoved   EventType = "sandboxremoved"
	// EventSandboxLost: the sandbox became not ready.
	EventSandboxLost EventType = "sandboxlost"
	// EventRuntime: Status changed.
	EventRuntime EventType = "runtime"
)

// Event says that something changed.
type Event struct {
	Type        EventType
	SandboxID   string
	ContainerID string
	Time        time.Time
}

// RuntimeStatus says whether a runtime works.
type RuntimeStatus struct {
	Name, Version string
	Ready         bool
	// Message says why it is not ready.
	Message string
	// SupervisorPID is the process that containers are children of, 0 if none runs yet.
	SupervisorPID int
	// CgroupVersion is 1 or 2.
	CgroupVersion int
}
