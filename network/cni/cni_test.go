package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/cni"
	_ "coracle.dev/coracle/network/cni/early" // this test's program is the plugin, too
	"coracle.dev/coracle/network/networktest"
)

// runtime is a container runtime as far as networks are concerned.
type runtime struct {
	t    *testing.T
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

// newRuntime has a network whose one plugin is configured so.
func newRuntime(t *testing.T, name string, plugin map[string]any) *runtime {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, cni.PluginType)); err != nil {
		t.Fatal(err)
	}
	plugin["type"] = cni.PluginType
	data, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": name, "plugins": []any{plugin}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	// Without one the library makes it at the first call, whoever else calls.
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	return &runtime{t: t, cni: libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), exec), list: list}
}

func container(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "net0"}
}

func (r *runtime) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *runtime) add(c *libcni.RuntimeConf) *types100.Result {
	r.t.Helper()
	out, err := r.cni.AddNetworkList(r.ctx(), r.list, c)
	if err != nil {
		r.t.Fatalf("ADD: %v", err)
	}
	result, err := types100.GetResult(out)
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

func (r *runtime) del(c *libcni.RuntimeConf) {
	r.t.Helper()
	if err := r.cni.DelNetworkList(r.ctx(), r.list, c); err != nil {
		r.t.Fatalf("DEL: %v", err)
	}
}

func code(t *testing.T, err error) uint {
	t.Helper()
	var coded *types.Error
	if !errors.As(err, &coded) {
		t.Fatalf("%v has no code", err)
	}
	return coded.Code
}

func netnsName(t *testing.T, n int) string {
	return networktest.Namespace(t, fmt.Sprintf("cni%d-%d", os.Getpid(), n))
}

// cycle is what every backend has to do.
func cycle(t *testing.T, r *runtime) {
	a, b := container("a", netnsName(t, 1)), container("b", netnsName(t, 2))
	if err := r.cni.GetStatusNetworkList(r.ctx(), r.list); err != nil {
		t.Fatalf("STATUS: %v", err)
	}
	first, second := r.add(a), r.add(b)
	t.Cleanup(func() { r.del(a); r.del(b) })
	if len(first.IPs) != 2 || len(second.IPs) != 2 || first.IPs[0].Address.IP.Equal(second.IPs[0].Address.IP) {
		t.Fatalf("addresses %v and %v", first.IPs, second.IPs)
	}
	inside := first.Interfaces[*first.IPs[0].Interface]
	if inside.Name != "net0" || inside.Sandbox != a.NetNS || inside.Mac == "" || len(first.Interfaces) != 2 || first.Interfaces[0].Sandbox != "" || len(first.Routes) != 2 {
		t.Fatalf("result %+v", first)
	}
	// Packets between both, of each family.
	for i, ip := range second.IPs {
		if err := talk(t, a.NetNS, b.NetNS, ip.Address.IP); err != nil {
			t.Fatalf("family %d: %v", i, err)
		}
	}
	if err := r.cni.CheckNetworkList(r.ctx(), r.list, a); err != nil {
		t.Fatalf("CHECK: %v", err)
	}
	// Twice is a mistake of the runtime, and takes nothing away.
	if _, err := r.cni.AddNetworkList(r.ctx(), r.list, a); err == nil || code(t, err) != types.ErrInvalidEnvironmentVariables {
		t.Fatalf("a second ADD: %v", err)
	}
	if _, err := r.cni.AddNetworkList(r.ctx(), r.list, container("c", "/run/netns/none")); err == nil {
		t.Fatal("ADD in a namespace that is not there succeeds")
	}
	// What is broken is found.
	networktest.Inside(t, a.NetNS, func() {
		if out, err := exec.Command("ip", "route", "del", "default").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if err := r.cni.CheckNetworkList(r.ctx(), r.list, a); err == nil || code(t, err) != 100 || !strings.Contains(err.Error(), "default route") {
		t.Fatalf("CHECK without a route: %v", err)
	}
	// GC takes what is not valid, and nothing else.
	if err := r.cni.GCNetworkList(r.ctx(), r.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "b", IfName: "net0"}}}); err != nil {
		t.Fatalf("GC: %v", err)
	}
	if _, there, _ := link.Inspect(a.NetNS, "net0"); there {
		t.Error("GC left a link")
	}
	if err := talk(t, "", b.NetNS, second.IPs[0].Address.IP); err != nil {
		t.Errorf("GC took a valid one: %v", err)
	}
	r.del(a)
	r.del(b)
	r.del(b) // again
	r.del(container("never", ""))
	if _, there, _ := link.Inspect(b.NetNS, "net0"); there {
		t.Error("DEL left a link")
	}
}

// talk sends a byte over TCP, from the host if from is "".
func talk(t *testing.T, from, to string, ip net.IP) error {
	t.Helper()
	var l net.Listener
	var err error
	networktest.Inside(t, to, func() { l, err = net.Listen("tcp", net.JoinHostPort(ip.String(), "7000")) })
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("x"))
			c.Close()
		}
	}()
	dial := func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", l.Addr().String(), 30*time.Second); err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
	}
	if from == "" {
		dial()
	} else {
		networktest.Inside(t, from, dial)
	}
	return err
}

var ranges = []netip.Prefix{netip.MustParsePrefix("10.253.7.0/28"), netip.MustParsePrefix("fd42:c21::/64")}

func TestAlone(t *testing.T) {
	dir := t.TempDir()
	r := newRuntime(t, "alone", map[string]any{"ipam": map[string]any{"ranges": []string{"10.253.7.0/28", "fd42:c21::/64"}, "dataDir": dir}})
	cycle(t, r)
	left, err := filepath.Glob(filepath.Join(dir, "alone", "*[.:]*"))
	if err != nil || len(left) > 0 {
		t.Errorf("addresses left: %q, %v", left, err)
	}
}

// TestAloneAtOnce adds many containers at once: no two get the same address, and the one too many is told.
func TestAloneAtOnce(t *testing.T) {
	dir := t.TempDir()
	r := newRuntime(t, "many", map[string]any{"ipam": map[string]any{"ranges": []string{"10.253.7.16/29"}, "dataDir": dir}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	given := map[string]bool{}
	var refused []error
	var all []*libcni.RuntimeConf
	for i := range 6 {
		all = append(all, container(fmt.Sprint(i), netnsName(t, 10+i)))
	}
	for _, c := range all {
		wg.Go(func() {
			out, err := r.cni.AddNetworkList(r.ctx(), r.list, c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused = append(refused, err)
				return
			}
			result, _ := types100.GetResult(out)
			given[result.IPs[0].Address.String()] = true
		})
	}
	wg.Wait()
	if len(given) != 5 || len(refused) != 1 {
		t.Errorf("given %v, refused %v", given, refused)
	}
	err := r.cni.GetStatusNetworkList(r.ctx(), r.list)
	if err == nil || code(t, err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS of a full range: %v", err)
	}
	for _, c := range all {
		r.del(c)
	}
	if err := r.cni.GetStatusNetworkList(r.ctx(), r.list); err != nil {
		t.Errorf("STATUS of an empty range: %v", err)
	}
}

// TestInstance asks an instance, as it serves plugins on its control socket.
func TestInstance(t *testing.T) {
	const id = "c217e571"
	dir := t.TempDir()
	pods, err := network.NewPods(id, 1400)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.RemoveAll(id) })
	r := newRuntime(t, "instance", map[string]any{"dataDir": dir})
	c := container("early", netnsName(t, 30))
	if _, err := r.cni.AddNetworkList(r.ctx(), r.list, c); err == nil || code(t, err) != types.ErrTryAgainLater {
		t.Fatalf("ADD without an instance: %v", err)
	}
	if err := r.cni.GetStatusNetworkList(r.ctx(), r.list); err == nil || code(t, err) != types.ErrLimitedConnectivity {
		t.Fatalf("STATUS without an instance: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "instance.json"), []byte(`{"id":"`+id+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "run", "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	cni.Serve(mux, func() cni.Pods { return pods })
	server := &http.Server{Handler: mux}
	go server.Serve(l) //nolint:errcheck // ends with ErrServerClosed
	t.Cleanup(func() { server.Close() })

	if err := r.cni.GetStatusNetworkList(r.ctx(), r.list); err == nil || code(t, err) != types.ErrPluginNotAvailable {
		t.Fatalf("STATUS before the node has a range: %v", err)
	}
	pods.SetRanges(ranges)
	if _, err := link.EnableForwarding(ranges...); err != nil {
		t.Fatal(err)
	}
	cycle(t, r)
	if c := pods.Connected(); len(c) != 0 {
		t.Errorf("the instance still has %v", c)
	}
	// One of its own pods and one of another network are not of GC's concern.
	own, other := netnsName(t, 31), netnsName(t, 32)
	if _, err := pods.Attach(t.Context(), "pod", own, "pod"); err != nil {
		t.Fatal(err)
	}
	second := newRuntime(t, "second", map[string]any{"dataDir": dir})
	second.add(container("x", other))
	if err := r.cni.GCNetworkList(r.ctx(), r.list, &libcni.GCArgs{}); err != nil {
		t.Fatal(err)
	}
	if c := pods.Connected(); len(c) != 2 {
		t.Errorf("after GC of another network there is %v", c)
	}
	// DEL works when the instance is gone, and the next one finds the address free.
	server.Close()
	second.del(container("x", other))
	again, err := network.NewPods(id, 1400)
	if err != nil {
		t.Fatal(err)
	}
	if c := again.Connected(); len(c) != 1 || len(c["pod"]) != 2 {
		t.Errorf("after DEL without an instance there is %v", c)
	}
}

func TestConfigurationsThatAreWrong(t *testing.T) {
	for name, plugin := range map[string]map[string]any{
		"neither":  {},
		"both":     {"dataDir": "/x", "ipam": map[string]any{"ranges": []string{"10.0.0.0/24"}}},
		"relative": {"dataDir": "x"},
		"three":    {"ipam": map[string]any{"ranges": []string{"10.0.0.0/24", "fd00::/64", "10.1.0.0/24"}}},
		"host":     {"ipam": map[string]any{"ranges": []string{"10.0.0.1/24"}}},
	} {
		r := newRuntime(t, "wrong", plugin)
		if err := r.cni.GetStatusNetworkList(r.ctx(), r.list); err == nil || code(t, err) != types.ErrInvalidNetworkConfig {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := newRuntime(t, "version", map[string]any{"dataDir": "/x"})
	info, err := r.cni.GetVersionInfo(r.ctx(), cni.PluginType)
	if err != nil || !slices.Contains(info.SupportedVersions(), "1.1.0") || !slices.Contains(info.SupportedVersions(), "0.4.0") {
		t.Errorf("VERSION: %v, %v", info, err)
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	in := cni.Installation{Program: "/usr/bin/coracle", DataDir: "/var/lib/coracle", Network: "coracle",
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d")}
	for range 2 {
		program, conf, err := cni.Install(in)
		if err != nil {
			t.Fatal(err)
		}
		if to, err := os.Readlink(program); err != nil || to != in.Program {
			t.Errorf("link to %q, %v", to, err)
		}
		list, err := libcni.ConfListFromFile(conf)
		if err != nil || list.Name != "coracle" || list.Plugins[0].Network.Type != "coracle" {
			t.Errorf("list %+v, %v", list, err)
		}
	}
	program := filepath.Join(in.BinDir, "coracle")
	if err := errors.Join(os.Remove(program), os.WriteFile(program, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cni.Install(in); err == nil {
		t.Error("a program that is not ours was replaced")
	}
}
