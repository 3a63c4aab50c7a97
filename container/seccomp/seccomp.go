// Package seccomp has the default system call filter of containers and reads others. It
// owns the list of what an ordinary program may ask of the kernel, and
// applies nothing itself.
package seccomp

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// harmless are calls that any container may make: they act on the caller itself, its files,
// sockets, memory and children, and the kernel checks permissions as always.
const harmless = `
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64
getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid
getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek
lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod
mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2
prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat
readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid
setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid
setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown
sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink
unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev`

// byCapability are calls that a capability opens, as the kernel then checks it anyway.
var byCapability = map[string]string{
	"CAP_DAC_READ_SEARCH": "open_by_handle_at",
	"CAP_SYS_ADMIN": `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
		lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd
		setdomainname sethostname setns syslog umount umount2 unshare`,
	"CAP_SYS_BOOT":       "reboot",
	"CAP_SYS_CHROOT":     "chroot",
	"CAP_SYS_MODULE":     "delete_module finit_module init_module",
	"CAP_SYS_PACCT":      "acct",
	"CAP_SYS_PTRACE":     "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
	"CAP_SYS_RAWIO":      "ioperm iopl",
	"CAP_SYS_TIME":       "clock_settime clock_settime64 settimeofday stime",
	"CAP_SYS_TTY_CONFIG": "vhangup",
	"CAP_SYS_NICE":       "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
	"CAP_SYSLOG":         "syslog",
	"CAP_BPF":            "bpf",
	"CAP_PERFMON":        "perf_event_open",
}

// newNamespaces are the flags of clone that need CAP_SYS_ADMIN, or a user namespace that gives it.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// Default is the filter for a container with the given capabilities ("CAP_..."): what is not
// listed fails with EPERM, and clone3 with ENOSYS, so that libraries fall back to clone, whose flags can be looked at.
//
// Programs for this machine's 32-bit sibling (386 on amd64, arm on arm64) are let through the same list
// only if compat is set, and killed otherwise: each further kind of calls makes the filter several times as
// costly to build, at each start of a container.
func Default(capabilities []string, compat bool) *specs.LinuxSeccomp {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	p := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: &eperm,
		Architectures: architectures(compat),
	}
	allow := func(names string, args ...specs.LinuxSeccompArg) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: strings.Fields(names), Action: specs.ActAllow, Args: args})
	}
	allow(harmless)
	// Sockets of every family but vsock, which reaches the hypervisor's host.
	allow("socket", specs.LinuxSeccompArg{Index: 0, Value: unix.AF_VSOCK, Op: specs.OpNotEqual})
	// The execution domains of old and ordinary programs.
	for _, persona := range []uint64{0x0, 0x0008, 0x20000, 0x20008, 0xffffffff} {
		allow("personality", specs.LinuxSeccompArg{Index: 0, Value: persona, Op: specs.OpEqualTo})
	}
	allow(archCalls[runtime.GOARCH])
	allow("process_vm_readv process_vm_writev ptrace pidfd_getfd") // between processes that may trace each other, safe since Linux 4.8
	admin := false
	for _, c := range capabilities {
		admin = admin || c == "CAP_SYS_ADMIN"
		if names, ok := byCapability[c]; ok {
			allow(names)
		}
	}
	if !admin {
		index := uint(0)
		if runtime.GOARCH == "s390x" {
			index = 1
		}
		allow("clone", specs.LinuxSeccompArg{Index: index, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual})
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys})
	}
	return p
}

// archCalls are calls that only some machines have.
var archCalls = map[string]string{
	"amd64":   "arch_prctl modify_ldt",
	"386":     "modify_ldt",
	"arm64":   "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
	"arm":     "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
	"ppc64le": "sync_file_range2 swapcontext",
	"s390x":   "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
	"riscv64": "riscv_flush_icache",
}

func architectures(compat bool) []specs.Arch {
	family := map[string][]specs.Arch{
		"amd64": {specs.ArchX86_64, specs.ArchX86},
		"arm64": {specs.ArchAARCH64, specs.ArchARM},
		"s390x": {specs.ArchS390X, specs.ArchS390},
	}[runtime.GOARCH]
	if !compat && len(family) > 1 {
		return family[:1]
	}
	return family
}

// Parse reads a profile: OCI's form, or Docker's, whose archMap and per-entry "name" are understood
// and whose capability conditions ("includes", "excludes") are decided by capabilities.
func Parse(data []byte, capabilities []string) (*specs.LinuxSeccomp, error) {
	var file struct {
		specs.LinuxSeccomp
		ArchMap []struct {
			Architecture     specs.Arch   `json:"architecture"`
			SubArchitectures []specs.Arch `json:"subArchitectures"`
		} `json:"archMap"`
		Syscalls []struct {
			specs.LinuxSyscall
			Name     string    `json:"name"`
			Includes condition `json:"includes"`
			Excludes condition `json:"excludes"`
		} `json:"syscalls"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if file.DefaultAction == "" {
		return nil, fmt.Errorf("seccomp profile: defaultAction is missing")
	}
	out := file.LinuxSeccomp
	out.Syscalls = nil
	native := architectures(false)
	for _, m := range file.ArchMap {
		for _, n := range native {
			if m.Architecture == n {
				out.Architectures = append(append(out.Architectures, m.Architecture), m.SubArchitectures...)
			}
		}
	}
	has := map[string]bool{}
	for _, c := range capabilities {
		has[c] = true
	}
	for _, s := range file.Syscalls {
		if !s.Includes.all(has) || s.Excludes.any(has) {
			continue
		}
		if s.Name != "" {
			s.Names = append(s.Names, s.Name)
		}
		out.Syscalls = append(out.Syscalls, s.LinuxSyscall)
	}
	return &out, nil
}

// condition is Docker's.
type condition struct {
	Caps   []string `json:"caps"`
	Arches []string `json:"arches"`
}

func (c condition) all(has map[string]bool) bool {
	for _, name := range c.Caps {
		if !has[name] {
			return false
		}
	}
	return len(c.Arches) == 0 || c.arch()
}

func (c condition) any(has map[string]bool) bool {
	for _, name := range c.Caps {
		if has[name] {
			return true
		}
	}
	return c.arch()
}

func (c condition) arch() bool {
	for _, a := range c.Arches {
		if a == runtime.GOARCH {
			return true
		}
	}
	return false
}
