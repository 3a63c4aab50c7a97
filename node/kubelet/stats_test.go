package kubelet

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/machine"
	"coracle.dev/coracle/linux/podfs"
	"coracle.dev/coracle/volume"
)

// serveUsage is serve with all sources of figures; cpu is what the node has used.
func serveUsage(t *testing.T, at *time.Time, cpu *uint64) *httptest.Server {
	t.Helper()
	_, base := serve(t, newFake(), "")
	cfg := base.cfg
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Node = func() (NodeUsage, error) {
		return NodeUsage{
			Usage: machine.Usage{Time: *at, Booted: t0, CPUNanos: *cpu, MemoryBytes: 100 << 20, AvailableBytes: 60 << 20,
				MaxPID: 1000, Tasks: 10},
			Root:       podfs.FS{CapacityBytes: 1000, AvailableBytes: 400, UsedBytes: 600},
			Interfaces: []machine.Interface{{Name: "eth0", RxBytes: 7}},
		}, nil
	}
	cfg.Volumes = func(context.Context, types.UID) ([]volume.Usage, error) {
		return []volume.Usage{
			{Volume: "scratch", UsedBytes: 8192, Inodes: 3, LocalStorage: true},
			{Volume: "data", Claim: "data-0", UsedBytes: 100},
		}, nil
	}
	cfg.Network = func(container.SandboxStatus) ([]machine.Interface, error) {
		return []machine.Interface{{Name: "eth0", RxBytes: 11, TxBytes: 12}}, nil
	}
	srv := httptest.NewServer(Handler(cfg))
	t.Cleanup(srv.Close)
	return srv
}

func TestStatsSummary(t *testing.T) {
	now, cpu := t0.Add(time.Minute), uint64(60e9)
	srv := serveUsage(t, &now, &cpu)
	read := func(query string) stats.Summary {
		t.Helper()
		code, body := get(t, srv.URL+"/stats/summary"+query)
		var out stats.Summary
		if err := json.Unmarshal([]byte(body), &out); err != nil || code != 200 {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		return out
	}
	s := read("")
	if s.Node.NodeName != "node-a" || s.Node.CPU.UsageNanoCores != nil || *s.Node.Memory.WorkingSetBytes != 40<<20 {
		t.Fatalf("node %+v", s.Node)
	}
	if len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 {
		t.Fatalf("pods %+v", s.Pods)
	}
	p := s.Pods[0]
	c := p.Containers[0]
	switch {
	case p.PodRef.Name != "web" || *p.CPU.UsageCoreNanoSeconds != 5e9 || *p.ProcessStats.ProcessCount != 3:
		t.Errorf("pod %+v", p)
	case c.Name != "app" || *c.Memory.AvailableBytes != 6<<20 || *c.Rootfs.UsedBytes != 4096:
		t.Errorf("container %+v", c)
	case *p.EphemeralStorage.UsedBytes != 4096+8192 || *p.EphemeralStorage.InodesUsed != 5:
		t.Errorf("ephemeral storage %+v", p.EphemeralStorage)
	case len(p.VolumeStats) != 2 || p.VolumeStats[1].PVCRef.Name != "data-0":
		t.Errorf("volumes %+v", p.VolumeStats)
	case *p.Network.RxBytes != 11 || p.Network.Interfaces[0].Name != "eth0":
		t.Errorf("network %+v", p.Network)
	}
	now, cpu = now.Add(10*time.Second), cpu+5e9
	s = read("?only_cpu_and_memory=true")
	if s.Node.CPU.UsageNanoCores == nil || *s.Node.CPU.UsageNanoCores != 5e8 {
		t.Fatalf("rate %v", s.Node.CPU.UsageNanoCores)
	}
	if s.Pods[0].EphemeralStorage != nil || s.Node.Fs != nil {
		t.Fatal("more than cpu and memory")
	}
}

func TestMetrics(t *testing.T) {
	now, cpu := t0.Add(time.Minute), uint64(60e9)
	srv := serveUsage(t, &now, &cpu)
	for path, lines := range map[string][]string{
		"/metrics/resource": {
			"# TYPE container_cpu_usage_seconds_total counter",
			`container_cpu_usage_seconds_total{container="app",namespace="default",pod="web"} 3 1772366460000`,
			`container_memory_working_set_bytes{container="app",namespace="default",pod="web"} 4.194304e+06 1772366460000`,
			`container_start_time_seconds{container="app",namespace="default",pod="web"} 1.7723664e+09`,
			`node_cpu_usage_seconds_total 60 1772366460000`,
			`node_memory_working_set_bytes 4.194304e+07 1772366460000`,
			`pod_cpu_usage_seconds_total{namespace="default",pod="web"} 5 1772366460000`,
			`resource_scrape_error 0`,
		},
		"/metrics": {
			`kubelet_running_pods 1`,
			`kubelet_running_containers{container_state="running"} 1`,
		},
		"/metrics/cadvisor": {
			`container_cpu_usage_seconds_total{container="",id="/kubepods/s1",image="",name="",namespace="default",pod="web",cpu="total"} 5 1772366460000`,
			`container_spec_memory_limit_bytes{container="app",id="/",image="busybox",name="c1",namespace="default",pod="web"} 1.048576e+07 1772366460000`,
			`container_network_receive_bytes_total{container="",id="/kubepods/s1",image="",name="",namespace="default",pod="web",interface="eth0"} 11 1772366460000`,
			`machine_memory_bytes 1.048576e+08`,
		},
	} {
		code, body := get(t, srv.URL+path)
		for _, want := range lines {
			if !strings.Contains("\n"+body, "\n"+want+"\n") {
				t.Errorf("%s: %d lacks %s", path, code, want)
			}
		}
		if t.Failed() {
			t.Log(body)
		}
	}
}

func TestPodsAndHealth(t *testing.T) {
	srv, _ := serve(t, newFake(), "")
	code, body := get(t, srv.URL+"/pods")
	var list corev1.PodList
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 || len(list.Items) != 1 || list.Kind != "PodList" {
		t.Fatalf("%d %s", code, body)
	}
	if code, body := get(t, srv.URL+"/healthz"); code != 200 || body != "ok" {
		t.Fatalf("%d %s", code, body)
	}
	resp, err := http.Post(srv.URL+"/healthz", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Fatalf("POST gives %d", resp.StatusCode)
	}
}

// TestRealNode reads this machine.
func TestRealNode(t *testing.T) {
	srv, s := serve(t, newFake(), "")
	code, body := get(t, srv.URL+"/stats/summary")
	var out stats.Summary
	if err := json.Unmarshal([]byte(body), &out); err != nil || code != 200 || *out.Node.Memory.WorkingSetBytes == 0 || *out.Node.CPU.UsageCoreNanoSeconds == 0 {
		t.Fatalf("%d %s", code, body)
	}
	sample, err := s.Sample(map[string]string{"a": "b"})
	if err != nil || sample.Node != "node-a" || sample.CPUNanos == 0 || len(sample.Pods) != 1 || sample.Pods[0].Containers[0].CPUNanos != 3e9 {
		t.Fatalf("%+v %v", sample, err)
	}
}
