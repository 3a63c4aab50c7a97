// Package namespace makes Linux namespaces that live without a process, pinned as
// files, and runs functions inside them. It owns the files that it pins until Unpin.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/mount"
)

// Type is a kind of namespace, named as in /proc/self/ns.
type Type string

// The types that can be pinned.
const (
	Net Type = "net"
	IPC Type = "ipc"
	UTS Type = "uts"
	PID Type = "pid"
)

var flags = map[Type]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS, PID: unix.CLONE_NEWPID}

// Pin makes new namespaces of the given types (not PID), runs setup inside them, and
// binds each to a file dir/<type>. The loopback link of a new network
// namespace is up. After an error nothing is left.
func Pin(dir string, types []Type, setup func() error) error {
	if len(types) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	unshare := 0
	for _, t := range types {
		if t == PID {
			return errors.New("namespace: a PID namespace needs a process, see PinOf")
		}
		unshare |= flags[t]
	}
	err := onThread(func() error {
		if err := unix.Unshare(unshare); err != nil {
			return &os.SyscallError{Syscall: "unshare", Err: err}
		}
		if unshare&unix.CLONE_NEWNET != 0 {
			if err := linkUp("lo"); err != nil {
				return err
			}
		}
		if setup != nil {
			if err := setup(); err != nil {
				return err
			}
		}
		for _, t := range types {
			if err := bind(fmt.Sprintf("/proc/thread-self/ns/%s", t), filepath.Join(dir, string(t))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for _, t := range types {
			_ = Unpin(filepath.Join(dir, string(t)))
		}
	}
	return err
}

// PinOf binds a namespace of a running process to a file.
func PinOf(pid int, t Type, path string) error {
	return bind(fmt.Sprintf("/proc/%d/ns/%s", pid, t), path)
}

func bind(source, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return &os.LinkError{Op: "pin", Old: source, New: path, Err: err}
	}
	return nil
}

// Unpin removes a pinned namespace, which ends with its last process. A path that is not
// there is no error.
func Unpin(path string) error {
	if err := mount.Unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("namespace: %w", err)
	}
	return nil
}

// Pinned says whether path is a pinned namespace, and not the empty file that a reboot leaves.
func Pinned(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// Do runs fn on a thread inside the namespaces at paths, whose types are found out. fn must not start goroutines
// that count on being there too. The thread ends afterwards.
func Do(fn func() error, paths ...string) error {
	return onThread(func() error {
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: path, Err: err}
			}
			err = unix.Setns(fd, 0)
			unix.Close(fd)
			if err != nil {
				return &os.PathError{Op: "setns", Path: path, Err: err}
			}
		}
		return fn()
	})
}

// onThread runs fn on a thread of its own, which is never used again. That cannot be the
// process's first thread: it never ends, and stands for the process in /proc.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(fn) // on another one, as this goroutine holds the first
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("namespace: panic: %v", p)
			}
		}()
		done <- fn()
	}()
	return <-done
}

// linkUp raises a link of the thread's network namespace.
func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return &os.SyscallError{Syscall: "socket", Err: err}
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if err := ioctl(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return ioctl(fd, unix.SIOCSIFFLAGS, req)
}

func ioctl(fd int, op uintptr, req *unix.Ifreq) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(unsafe.Pointer(req))); errno != 0 {
		return fmt.Errorf("namespace: link %s: %w", req.Name(), errno)
	}
	return nil
}

// SysctlType says which namespace a sysctl belongs to, and false if it is one of the host as a whole.
func SysctlType(name string) (Type, bool) {
	name = strings.ReplaceAll(name, "/", ".")
	switch {
	case strings.HasPrefix(name, "net."):
		return Net, true
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
		return IPC, true
	case name == "kernel.hostname", name == "kernel.domainname":
		return UTS, true
	}
	return "", false
}

// Sysctl sets a kernel parameter of the calling thread's namespaces ("net.core.somaxconn"). In names with
// slashes dots are part of the name.
func Sysctl(name, value string) error {
	path := name
	if !strings.Contains(name, "/") {
		path = strings.ReplaceAll(name, ".", "/")
	}
	if clean := filepath.Clean("/" + path); clean != "/"+path {
		return fmt.Errorf("namespace: invalid sysctl %q", name)
	}
	f, err := os.OpenFile("/proc/sys/"+path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("namespace: sysctl %s: %w", name, err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("namespace: sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// SetHostname names the calling thread's UTS namespace.
func SetHostname(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return &os.SyscallError{Syscall: "sethostname", Err: err}
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return &os.SyscallError{Syscall: "setdomainname", Err: err}
		}
	}
	return nil
}
