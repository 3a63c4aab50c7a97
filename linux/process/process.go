// Package process watches, signals and limits processes by handles that cannot
// mean another process later. It owns no process: who starts one, waits for it.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Handle is a pidfd: it means one process for ever, even after its ID went to another. It is safe for
// concurrent use.
type Handle struct {
	file *os.File
	pid  int
}

// Open returns a handle of a process that the caller knows to be the right one: a child
// not waited for, or one whose StartTime is compared afterwards.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	return &Handle{file: os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), pid: pid}, nil
}

// PID is the process ID.
func (h *Handle) PID() int { return h.pid }

// Close releases the handle. A Done under way returns.
func (h *Handle) Close() error { return h.file.Close() }

// Done waits, without occupying a thread, until the process has exited.
func (h *Handle) Done() error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			perr = err
			return err != nil || n > 0
		}
	})
	if err != nil {
		return err
	}
	return perr
}

// Wait waits for a child to exit and takes its status. It occupies no thread.
func (h *Handle) Wait() (unix.WaitStatus, error) {
	if err := h.Done(); err != nil {
		return 0, err
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(h.pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", h.pid, os.NewSyscallError("wait4", err))
		}
		return status, nil
	}
}

// Signal sends a signal. A process that is gone gives os.ErrProcessDone.
func (h *Handle) Signal(sig unix.Signal) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return os.ErrProcessDone
	}
	var serr error
	err = conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if err != nil || errors.Is(serr, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}

// StartTime is when a process started, in clock ticks since boot. With the process ID it names a
// process for as long as the machine is up.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	// The command name is in parentheses and may hold anything.
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("process %d: cannot read its stat", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// BootID names the machine's present boot.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// ParseSignal reads "SIGTERM", "TERM", "term", "15", "SIGRTMIN+3" or "RTMIN+3".
func ParseSignal(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("invalid signal %q", name)
		}
		return unix.Signal(n), nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(full, prefix)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || (rest[0] != '+' && rest[0] != '-') {
				return 0, fmt.Errorf("invalid signal %q", name)
			}
		}
		if base+n < 34 || base+n > 64 {
			return 0, fmt.Errorf("invalid signal %q", name)
		}
		return unix.Signal(base + n), nil
	}
	if sig := unix.SignalNum(full); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("invalid signal %q", name)
}

// HasCapability says whether this process may use a capability (unix.CAP_SYS_RESOURCE).
func HasCapability(c int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}

// OOMScoreAdj is that of this process.
func OOMScoreAdj() (int, error) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// ClampOOMScoreAdj returns what a child can be given of the wanted score: without CAP_SYS_RESOURCE none
// below this process's own.
func ClampOOMScoreAdj(want int) (got int, clamped bool) {
	if HasCapability(unix.CAP_SYS_RESOURCE) {
		return want, false
	}
	own, err := OOMScoreAdj()
	if err != nil || want >= own {
		return want, false
	}
	return own, true
}

// ClampRlimit returns what a child can be given of a limit: without CAP_SYS_RESOURCE no hard limit above this
// process's own.
func ClampRlimit(resource int, soft, hard uint64) (s, h uint64, clamped bool) {
	if HasCapability(unix.CAP_SYS_RESOURCE) {
		return soft, hard, false
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err != nil || hard <= own.Max {
		return soft, hard, false
	}
	return min(soft, own.Max), own.Max, true
}

// Sealed copies a program into a file in memory that can be run and never be changed, and
// returns it open. name is for the eyes of who lists processes.
func Sealed(name string, program []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(program); err != nil {
		f.Close()
		return nil, err
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}

// Adopt makes orphaned descendants of this process its children.
func Adopt() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// siginfo is the part of siginfo_t that waitid fills for children.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	_                  [108]byte
}

// NextZombie returns a child that exited and was not waited for, 0 if there is none. The child remains.
func NextZombie() (int, error) {
	var info siginfo
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		switch errno {
		case 0:
			return int(info.pid), nil
		case unix.EINTR:
			continue
		case unix.ECHILD:
			return 0, nil
		default:
			return 0, os.NewSyscallError("waitid", errno)
		}
	}
}

// Gone waits until a process that is no child has exited, or until timeout; it reports whether it has.
func (h *Handle) Gone(timeout time.Duration) bool {
	if err := h.file.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return false
	}
	return h.Done() == nil
}

// Rlimits are the limits' numbers by name.
var Rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}
