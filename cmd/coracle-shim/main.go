//go:build cgo

// Command coracle-shim is the small program that containers are children of.
// One runs for each data directory, for as long as containers do, whatever becomes of
// coracle itself: it starts containers with libcontainer, writes their logs,
// holds their streams, waits for their exits and records them. It is also the
// first program inside each container ("init", libcontainer's), and the init of
// shared PID namespaces ("reap").
//
// It decides nothing: images, file systems, names and policies are coracle's. It is
// started with a listening socket as file 3 and a locked file as file 4.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime/debug"

	_ "github.com/opencontainers/cgroups/devices" // device rules
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before Go starts
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container/embedded/protocol"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/process"
)

/*
// reaper.c
*/
import "C"

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // never returns
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "coracle-shim:", err)
		os.Exit(1)
	}
}

// settleIn enters a cgroup of the shim's own, so that it does not go with coracle's. It does so itself, as coracle may die at
// any moment.
func settleIn() error {
	sys, err := cgroup.Detect()
	if err != nil {
		return err
	}
	// It should be the last to be killed for lack of memory; where that is not allowed it is one of many.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-998"), 0)
	group := sys.Group(os.Getenv(protocol.CgroupEnv))
	if group.Path() == "/" {
		return fmt.Errorf("%s is not set", protocol.CgroupEnv)
	}
	if err := group.Create(cgroup.Resources{}); err != nil {
		return err
	}
	return group.Add(os.Getpid())
}

func run() error {
	if len(os.Args) != 2 || os.Args[1] != "serve" {
		return fmt.Errorf("usage: coracle starts this program itself")
	}
	unix.Umask(0o022)
	_ = os.WriteFile("/proc/self/comm", []byte("coracle-shim"), 0) // it was started by the number of a file
	if err := settleIn(); err != nil {
		return err
	}
	// A small heap matters more here than the time of collections.
	debug.SetGCPercent(25)
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	logrus.SetLevel(logrus.WarnLevel)

	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	socket := os.NewFile(3, "socket")
	l, err := net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("file 3 is not a listening socket: %w", err)
	}
	socket.Close()
	lock := os.NewFile(4, "lock") // held by being open
	defer lock.Close()
	if err := process.Adopt(); err != nil {
		return err
	}
	return newServer().serve(l.(*net.UnixListener))
}
