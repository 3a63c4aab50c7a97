package scripts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
)

// instance is what a cluster is called in the kernel.
type instance struct {
	data    string // its data directory
	ID      string
	PodCIDR netip.Prefix
}

// traces lists what the machine has of an instance: mounts (also those that pin namespaces),
// processes, links, routes to pods, cgroups, packet rules, and directories of pods.
func (in instance) traces(ts *testscript.TestScript) []string {
	var found []string
	add := func(kind, what string) { found = append(found, kind+" "+what) }

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	ts.Check(err)
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], in.data) {
			add("mount", f[4])
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	ts.Check(err)
	for _, dir := range processes {
		cmdline, err1 := os.ReadFile(dir + "/cmdline")
		groups, err2 := os.ReadFile(dir + "/cgroup")
		if err1 == nil && err2 == nil && (bytes.Contains(cmdline, []byte(in.data)) || bytes.Contains(groups, []byte("coracle-"+in.ID))) {
			add("process", filepath.Base(dir)+" "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	links, err := whole(netlink.LinkList)
	ts.Check(err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "co"+in.ID[:4]) {
			add("link", l.Attrs().Name)
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	ts.Check(err)
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && in.PodCIDR.Contains(a.Unmap()) {
			add("route", r.Dst.String())
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + in.ID + "*", "/sys/fs/cgroup/*/*" + in.ID + "*"} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					add("cgroup", path)
				}
				return nil
			})
		}
	}
	if rules, err := exec.Command("nft", "-s", "list", "ruleset").Output(); err == nil {
		for _, table := range strings.Split(string(rules), "\n}") {
			if strings.Contains(table, in.ID) {
				for _, line := range strings.Split(table, "\n") {
					add("rule", strings.TrimSpace(line))
				}
			}
		}
	}
	for _, dir := range []string{"pods", "logs", "containers/containers", "containers/sandboxes", "containers/oci"} {
		entries, _ := os.ReadDir(filepath.Join(in.data, dir))
		for _, e := range entries {
			add("directory", filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(found)
	return found
}

// whole lists again if the list changed while it was read.
func whole[T any](list func() ([]T, error)) (found []T, err error) {
	for range 100 {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}

// current reads the running cluster's identity and keeps it for when its directory is gone.
func current(ts *testscript.TestScript) instance {
	data := ts.Getenv("CORACLE_DATA_DIR")
	in := instance{data: data}
	text := ts.Getenv("INSTANCE")
	if raw, err := os.ReadFile(filepath.Join(data, "instance.json")); err == nil {
		text = string(raw)
		ts.Setenv("INSTANCE", text)
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil || in.ID == "" {
		ts.Fatalf("there was no cluster: %v", err)
	}
	return in
}

// traces FILE writes what the machine has of this script's cluster to the file.
func traces(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: traces FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(current(ts).traces(ts), "\n")), 0o644))
}

// settles TIME FILE waits until the machine has no more of this script's cluster than the file says.
func settles(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: settles TIME FILE")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	in, before := current(ts), strings.Split(ts.ReadFile(args[1]), "\n")
	for end := time.Now().Add(limit); ; {
		more := slices.DeleteFunc(in.traces(ts), func(t string) bool { return slices.Contains(before, t) })
		if len(more) == 0 {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("after %s there are still\n%s", limit, strings.Join(more, "\n"))
		}
		time.Sleep(100 * time.Millisecond) // between two looks
	}
}

// left fails if the machine has anything of this script's cluster. Run "traces" while it is there, and
// this after its reset.
func left(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: left")
	}
	in := current(ts)
	found := in.traces(ts)
	if _, err := os.Stat(in.data); err == nil {
		found = append(found, fmt.Sprint("directory ", in.data))
	}
	if len(found) > 0 {
		ts.Fatalf("left behind:\n%s", strings.Join(found, "\n"))
	}
}
