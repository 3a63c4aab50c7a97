// Package networktest makes network namespaces for the tests of package network and those below it. It
// owns nothing after the test that asked.
package networktest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
)

// Namespace makes a named network namespace for the test and returns its path. It fails the test without root.
func Namespace(t *testing.T, name string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	ns.Close()
	if err := netns.Set(old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("delete network namespace: %v", err)
		}
	})
	return "/run/netns/" + name
}

// Inside runs f on a thread that is in the namespace.
func Inside(t *testing.T, path string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Space is a network namespace without a name. It goes with the last that holds it open.
type Space struct{ ns netns.NsHandle }

// Unnamed makes a network namespace without a name, which the caller closes.
func Unnamed(t *testing.T) *Space {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	if err := netns.Set(old); err != nil {
		t.Fatal(err)
	}
	return &Space{ns}
}

// Path holds the namespace open while the process runs.
func (s *Space) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)) }

// Close lets go of the namespace. Closing it again does nothing.
func (s *Space) Close() {
	if s.ns.IsOpen() {
		s.ns.Close()
	}
}
