package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coracle.dev/coracle/container"
)

func u32(n uint32) *uint32 { return &n }

func TestUsers(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	for _, test := range []struct {
		user container.User
		want string
		home string
	}{
		{container.User{}, "0 0 0", "/root"},
		{container.User{Name: "www-data"}, "33 33 33 4", "/var/www"},
		{container.User{Name: "www-data:users"}, "33 100 100 4", "/var/www"},
		{container.User{Name: "1234"}, "1234 0 0", "/"},
		{container.User{UID: u32(33)}, "33 33 33 4", "/var/www"},
		{container.User{UID: u32(33), StrictGroups: true, Groups: []uint32{77}}, "33 33 33 77", "/var/www"},
		{container.User{UID: u32(33), GID: u32(50), Groups: []uint32{77}}, "33 50 50 4 77", "/var/www"},
		{container.User{UID: u32(5000)}, "5000 0 0", "/"},
	} {
		s, out, errs := f.run(sb, `echo $(id -u) $(id -g) $(id -G); echo $HOME`, func(c *container.ContainerConfig) { c.User = test.user })
		if out != test.want+"\n"+test.home+"\n" {
			t.Errorf("%+v: %q %q, want %q %q", test.user, out, errs, test.want, test.home)
		}
		if fmt.Sprint(s.User.UID) != strings.Fields(test.want)[0] {
			t.Errorf("%+v resolved to %+v", test.user, s.User)
		}
	}
	_, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "who", SandboxID: sb, Image: "busybox", User: container.User{Name: "stranger"}})
	if err == nil || !strings.Contains(err.Error(), "unable to find user stranger") {
		t.Errorf("unknown user: %v", err)
	}
}

// status reads lines of /proc/self/status in a container.
func (f *fixture) procStatus(sb string, change func(*container.ContainerConfig)) map[string]string {
	f.t.Helper()
	_, out, errs := f.run(sb, "cat /proc/self/status", change)
	found := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, ":")
		found[key] = strings.TrimSpace(value)
	}
	if len(found) == 0 {
		f.t.Fatalf("no status: %q %q", out, errs)
	}
	return found
}

func TestCapabilities(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	own := f.procStatus(sb, func(c *container.ContainerConfig) { c.Privileged = true })["CapEff"]
	host, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(host), "CapBnd:\t"+own) {
		t.Errorf("privileged has %s", own)
	}
	for _, test := range []struct {
		name   string
		change container.Capabilities
		want   string
	}{
		{"default", container.Capabilities{}, "00000000a80425fb"},
		{"drop all", container.Capabilities{Drop: []string{"ALL"}}, "0000000000000000"},
		{"drop all but one", container.Capabilities{Drop: []string{"all"}, Add: []string{"NET_BIND_SERVICE"}}, "0000000000000400"},
		{"add", container.Capabilities{Add: []string{"CAP_NET_ADMIN"}}, "00000000a80435fb"},
		{"drop one", container.Capabilities{Drop: []string{"chown"}}, "00000000a80425fa"},
	} {
		got := f.procStatus(sb, func(c *container.ContainerConfig) { c.Capabilities = test.change })
		if got["CapEff"] != test.want || got["CapBnd"] != test.want || got["CapInh"] != "0000000000000000" {
			t.Errorf("%s: effective %s, bounding %s, inheritable %s; want %s", test.name, got["CapEff"], got["CapBnd"], got["CapInh"], test.want)
		}
	}
	got := f.procStatus(sb, func(c *container.ContainerConfig) {
		c.User.UID = u32(1000)
		c.Capabilities = container.Capabilities{Drop: []string{"ALL"}, Add: []string{"NET_BIND_SERVICE"}}
	})
	if got["CapEff"] != "0000000000000000" || got["CapBnd"] != "0000000000000400" {
		t.Errorf("a user other than root: %v", got)
	}
	got = f.procStatus(sb, func(c *container.ContainerConfig) {
		c.User.UID, c.Ambient = u32(1000), true
		c.Capabilities = container.Capabilities{Drop: []string{"ALL"}, Add: []string{"NET_BIND_SERVICE"}}
	})
	if got["CapEff"] != "0000000000000400" {
		t.Errorf("ambient: %v", got["CapEff"])
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "c", SandboxID: sb, Image: "busybox",
		Capabilities: container.Capabilities{Add: []string{"FLY"}}}); err == nil || !strings.Contains(err.Error(), `unknown capability "FLY"`) {
		t.Errorf("unknown capability: %v", err)
	}
}

func TestConfinement(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	got := f.procStatus(sb, func(c *container.ContainerConfig) { c.NoNewPrivileges = true })
	if got["NoNewPrivs"] != "1" || got["Seccomp"] != "2" {
		t.Errorf("NoNewPrivs %s, Seccomp %s", got["NoNewPrivs"], got["Seccomp"])
	}
	got = f.procStatus(sb, func(c *container.ContainerConfig) { c.Seccomp = container.Seccomp{} })
	if got["NoNewPrivs"] != "0" || got["Seccomp"] != "0" {
		t.Errorf("unconfined: NoNewPrivs %s, Seccomp %s", got["NoNewPrivs"], got["Seccomp"])
	}
	for _, test := range []struct {
		name, script, out, errs string
		change                  func(*container.ContainerConfig)
	}{
		{"read-only root", "echo x > /x; echo y > /dev/shm/y && cat /dev/shm/y; echo z > /dev/null && echo fine", "y\nfine\n", "Read-only file system",
			func(c *container.ContainerConfig) { c.ReadonlyRootfs = true }},
		{"masked", "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/domainname", "0\n0\n", "Read-only file system", nil},
		{"mine masked", "cat /etc/shadow; echo x > /etc/passwd", "", "Read-only file system",
			func(c *container.ContainerConfig) {
				c.MaskedPaths, c.ReadonlyPaths = []string{"/etc/shadow"}, []string{"/etc/passwd"}
			}},
		{"no mount", "mount -t tmpfs none /tmp", "", "permission denied", nil},
		{"no new user namespace", "unshare -U true || ping6 -x", "", "", nil},
		{"sys is read-only", "mkdir /sys/fs/cgroup/memory/x", "", "Read-only file system", nil},
		{"no host devices", "ls /dev | grep -c loop; mknod /tmp/d b 252 0 && cat /tmp/d", "0\n", "Operation not permitted", nil},
		{"privileged", "mount -t tmpfs none /tmp && echo mounted; ls /dev/vda; echo $(cat /proc/sys/kernel/domainname | wc -l)", "mounted\n/dev/vda\n1\n", "",
			func(c *container.ContainerConfig) { c.Privileged = true }},
		{"a device", "ls /dev/mine; head -c 1 /dev/mine | wc -c", "/dev/mine\n1\n", "",
			func(c *container.ContainerConfig) {
				c.Devices = []container.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "r"}}
			}},
		{"rlimit", "ulimit -n; ulimit -Hn", "100\n200\n", "",
			func(c *container.ContainerConfig) {
				c.Rlimits = []container.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
			}},
		{"oom score", "cat /proc/self/oom_score_adj", "500\n", "", func(c *container.ContainerConfig) { c.OOMScoreAdj = 500 }},
	} {
		s, out, errs := f.run(sb, test.script, test.change)
		if out != test.out || !strings.Contains(errs, test.errs) {
			t.Errorf("%s: stdout %q, stderr %q, exit %d; want %q and %q", test.name, out, errs, s.Exit.Code, test.out, test.errs)
		}
	}
	// A lower score than ours is not given where that takes CAP_SYS_RESOURCE, and does not keep the container from running.
	if s, out, errs := f.run(sb, "cat /proc/self/oom_score_adj", func(c *container.ContainerConfig) { c.OOMScoreAdj = -998 }); s.Exit.Code != 0 || (out != "0\n" && out != "-998\n") {
		t.Errorf("a low score: %q %q", out, errs)
	}
	if s, out, errs := f.run(sb, "ulimit -Hn", func(c *container.ContainerConfig) {
		c.Rlimits = []container.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 20, Hard: 1 << 20}}
	}); s.Exit.Code != 0 {
		t.Errorf("a high limit: %q %q", out, errs)
	}
}

func TestSeccompDenies(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, "sleep 1000", func(c *container.ContainerConfig) { c.Capabilities.Add = []string{"SYS_TIME"} })
	// Allowed by capability, so that only the filter could deny.
	if s, _, errs := f.exec(id, "sh", "-c", "dmesg"); s.Code == 0 {
		t.Errorf("syslog was allowed: %s", errs)
	}
	free := f.start(sb, "sleep 1000", func(c *container.ContainerConfig) {
		c.Seccomp, c.Capabilities.Add = container.Seccomp{}, []string{"SYSLOG"}
	})
	if s, _, errs := f.exec(free, "sh", "-c", "dmesg > /dev/null"); s.Code != 0 {
		t.Errorf("an unconfined container with the capability: %s", errs)
	}
}

func TestNamespaces(t *testing.T) {
	f := newFixture(t)
	link := func(name string) string {
		target, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	names := []string{"net", "ipc", "uts", "pid"}
	script := "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done"
	host := f.sandbox(func(c *container.SandboxConfig) {
		c.Namespaces = container.Namespaces{Net: container.NamespaceHost, IPC: container.NamespaceHost, PID: container.NamespaceHost}
	})
	_, out, _ := f.run(host, script, nil)
	for i, got := range strings.Fields(out) {
		if got != link(names[i]) {
			t.Errorf("%s is %s and the host's is %s", names[i], got, link(names[i]))
		}
	}
	own := f.sandbox(nil)
	// Both at once, as the kernel gives the numbers of namespaces that ended to new ones.
	one, two := f.start(own, "sleep 1000", nil), f.start(own, "sleep 1000", nil)
	_, first, _ := f.exec(one, "sh", "-c", script)
	_, second, _ := f.exec(two, "sh", "-c", script)
	a, b := strings.Fields(first), strings.Fields(second)
	if len(a) != 4 || len(b) != 4 {
		t.Fatalf("%q %q", first, second)
	}
	for i, name := range names {
		if a[i] == link(name) {
			t.Errorf("%s is the host's", name)
		}
		if (a[i] == b[i]) != (name != "pid") {
			t.Errorf("%s: %s and %s", name, a[i], b[i])
		}
	}
	st, err := f.Sandbox(own)
	if err != nil || st.NetNS == "" || st.State != container.SandboxReady {
		t.Errorf("%+v %v", st, err)
	}
	if _, out, _ := f.run(own, "ip link show lo", nil); !strings.Contains(out, "UP") {
		t.Errorf("the loopback link: %s", out)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(func(c *container.SandboxConfig) { c.Namespaces.PID = container.NamespaceSandbox })
	first := f.start(sb, "sleep 111", nil)
	second := f.start(sb, `(sleep 222 &) ; (usleep 1 &) ; sleep 333`, func(c *container.ContainerConfig) { c.Privileged = true })
	eventually(t, "the processes", func() bool {
		_, out, _ := f.exec(first, "ps", "-o", "pid,user,args")
		return strings.Contains(out, "sleep 111") && strings.Contains(out, "sleep 222") && strings.Contains(out, "sleep 333")
	})
	_, out, _ := f.exec(first, "cat", "/proc/1/comm")
	if out != "coracle-reaper\n" {
		t.Errorf("the first process is %q", out)
	}
	if _, out, _ := f.exec(first, "sh", "-c", "cat /proc/1/status | grep -E '^(Uid|CapEff|CapBnd|VmRSS):'"); !strings.Contains(out, "65535") || strings.Count(out, "0000000000000000") != 2 {
		t.Errorf("the init has privileges: %s", out)
	}
	// Not even a privileged container finds the host's files through the init.
	if _, out, _ := f.exec(second, "ls", "/proc/1/root/"); out != "" {
		t.Errorf("the root of the init holds %q", out)
	}
	// Zombies of orphans are reaped.
	eventually(t, "the zombies", func() bool {
		_, out, _ := f.exec(first, "ps", "-o", "stat,args")
		return !strings.Contains(out, "Z")
	})
	// What a container leaves behind goes with it, and nothing else.
	if err := f.Stop(f.ctx(), second, "", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the rest", func() bool {
		_, out, _ := f.exec(first, "ps")
		return !strings.Contains(out, "sleep 222") && strings.Contains(out, "sleep 111")
	})
	// Without its init a sandbox is not ready.
	pid := f.Runtime.sandboxes[sb].rec.ReaperPID
	if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
		t.Fatal("cannot kill the init")
	}
	f.wait(first)
	eventually(t, "not ready", func() bool { s, _ := f.Sandbox(sb); return s.State == container.SandboxNotReady })
}

func TestTargetPID(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	target := f.start(sb, "sleep 777", nil)
	s, out, errs := f.run(sb, "ps; cat /proc/1/cmdline", func(c *container.ContainerConfig) { c.TargetPID = target })
	if s.Exit.Code != 0 || !strings.Contains(out, "sleep 777") {
		t.Errorf("%q %q", out, errs)
	}
	if err := f.Stop(f.ctx(), target, "", 0); err != nil {
		t.Fatal(err)
	}
}

func TestSysctls(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(func(c *container.SandboxConfig) {
		c.Sysctls = map[string]string{"net.core.somaxconn": "321", "kernel.shm_rmid_forced": "1"}
	})
	if _, out, _ := f.run(sb, "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start", nil); out != "321\n1\n0\n" {
		t.Errorf("%q", out)
	}
	for name, mode := range map[string]container.NamespaceMode{"vm.swappiness": container.NamespaceSandbox, "net.core.somaxconn": container.NamespaceHost} {
		_, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: "no", Sysctls: map[string]string{name: "1"}, Namespaces: container.Namespaces{Net: mode}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: "no", Sysctls: map[string]string{"net.nothing.there": "1"}})
	if err == nil {
		t.Error("an unknown sysctl was taken")
	}
	if _, err := os.Stat(filepath.Join(f.dir, "runtime", "sandboxes", "no")); !os.IsNotExist(err) {
		t.Errorf("a failed sandbox left its directory: %v", err)
	}
}

func TestSharedMemory(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(func(c *container.SandboxConfig) { c.ShmSize = 1 << 20 })
	id := f.start(sb, "echo shared > /dev/shm/x; sleep 1000", nil)
	eventually(t, "the file", func() bool { _, out, _ := f.exec(id, "ls", "/dev/shm"); return out == "x\n" })
	if _, out, errs := f.run(sb, "cat /dev/shm/x; dd if=/dev/zero of=/dev/shm/big bs=4096 count=1000", nil); out != "shared\n" || !strings.Contains(errs, "No space left") {
		t.Errorf("%q %q", out, errs)
	}
}
