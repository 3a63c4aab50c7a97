package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"coracle.dev/coracle/network"
)

// links measures how long it takes to connect pods and to disconnect them, by the same calls as the node's. The namespaces are there
// before: those of sandboxes are made by another part.
func (b *bench) links() error {
	if os.Getuid() != 0 {
		return errors.New("needs root")
	}
	const count = 200
	instance := fmt.Sprintf("%04x", os.Getpid()&0xffff)
	pods, err := network.NewPods(instance, 1450)
	if err != nil {
		return err
	}
	for _, test := range []struct {
		name   string
		ranges []netip.Prefix
	}{
		{"one family", []netip.Prefix{netip.MustParsePrefix("10.254.0.0/16")}},
		{"two families", []netip.Prefix{netip.MustParsePrefix("10.254.0.0/16"), netip.MustParsePrefix("fd42:be2c::/64")}},
	} {
		pods.SetRanges(test.ranges)
		up, down, cpu, err := b.attachAll(pods, count)
		if err = errors.Join(err, network.RemoveAll(instance)); err != nil {
			return err
		}
		b.add("pod link set-up, "+test.name+", p50 / p99", round(at(up, 50))+" / "+round(at(up, 99)), "<= 5 ms")
		b.add("pod link removal, "+test.name+", p50 / p99", round(at(down, 50))+" / "+round(at(down, 99)), "")
		b.add("CPU of a pod's link, set up and removed, "+test.name, (cpu / count).Round(time.Microsecond).String(), "")
	}
	return nil
}

func at(sorted []time.Duration, percent int) time.Duration {
	return sorted[(len(sorted)-1)*percent/100]
}

func (b *bench) attachAll(pods *network.Pods, count int) (up, down []time.Duration, cpu time.Duration, err error) {
	var names []string
	defer func() {
		for _, name := range names {
			err = errors.Join(err, netns.DeleteNamed(name))
		}
	}()
	for i := range count {
		name := fmt.Sprintf("coracle-bench-%d-%d", os.Getpid(), i)
		if err := makeNamespace(name); err != nil {
			return nil, nil, 0, err
		}
		names = append(names, name)
	}
	before := ownCPU()
	for _, name := range names {
		began := time.Now()
		if _, err := pods.Attach(b.ctx, name, "/run/netns/"+name, name); err != nil {
			return nil, nil, 0, err
		}
		up = append(up, time.Since(began))
	}
	for _, name := range names {
		began := time.Now()
		if err := pods.Detach(context.WithoutCancel(b.ctx), name, "/run/netns/"+name); err != nil {
			return nil, nil, 0, err
		}
		down = append(down, time.Since(began))
	}
	cpu = ownCPU() - before
	slices.Sort(up)
	slices.Sort(down)
	return up, down, cpu, nil
}

// makeNamespace makes a network namespace by name and stays in the present one.
func makeNamespace(name string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := netns.Get()
	if err != nil {
		return err
	}
	defer old.Close()
	ns, err := netns.NewNamed(name)
	if err != nil {
		return err
	}
	return errors.Join(ns.Close(), netns.Set(old))
}

// ownCPU is the time that this process has used, user and system.
func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
