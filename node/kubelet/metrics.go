package kubelet

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/logfile"
	"coracle.dev/coracle/linux/machine"
)

// exposition writes Prometheus' text format. Families are written in the order they are begun.
type exposition struct{ bytes.Buffer }

// family begins one.
func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value; labels are pairs of name and value. A zero time is left out.
func (e *exposition) sample(name string, value float64, at time.Time, labels ...string) {
	e.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		e.WriteByte(sep)
		e.WriteString(labels[i])
		e.WriteString(`="`)
		e.WriteString(labelEscaper.Replace(labels[i+1]))
		e.WriteByte('"')
	}
	if len(labels) > 1 {
		e.WriteByte('}')
	}
	e.WriteByte(' ')
	e.Write(strconv.AppendFloat(nil, value, 'g', -1, 64))
	if !at.IsZero() {
		e.WriteByte(' ')
		e.Write(strconv.AppendInt(nil, at.UnixMilli(), 10))
	}
	e.WriteByte('\n')
}

var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (e *exposition) send(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(e.Bytes())
}

func seconds(nanos uint64) float64 { return float64(nanos) / 1e9 }

func unixSeconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// metricsOwn answers /metrics: what the agent itself counts, under the kubelet's names.
func (s *Server) metricsOwn(w http.ResponseWriter, _ *http.Request) {
	e := &exposition{}
	running, containers := 0, map[container.State]int{}
	for _, pod := range s.cfg.Pods() {
		if s.cfg.Sandbox(pod.UID) == "" {
			continue
		}
		running++
		for _, name := range containerNames(pod) {
			if id := s.cfg.Container(pod.UID, name, false); id != "" {
				if st, err := s.cfg.Runtime.Container(id); err == nil {
					containers[st.State]++
				}
			}
		}
	}
	e.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.")
	e.sample("kubelet_node_name", 1, time.Time{}, "node", s.cfg.NodeName)
	e.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox")
	e.sample("kubelet_running_pods", float64(running), time.Time{})
	e.family("kubelet_running_containers", "gauge", "Number of containers currently running")
	for _, state := range []container.State{container.StateCreated, container.StateRunning, container.StateExited} {
		e.sample("kubelet_running_containers", float64(containers[state]), time.Time{}, "container_state", string(state))
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	e.family("go_goroutines", "gauge", "Number of goroutines that currently exist.")
	e.sample("go_goroutines", float64(runtime.NumGoroutine()), time.Time{})
	e.family("go_memstats_heap_alloc_bytes", "gauge", "Number of heap bytes allocated and currently in use.")
	e.sample("go_memstats_heap_alloc_bytes", float64(mem.HeapAlloc), time.Time{})
	e.send(w)
}

// resourceMetric is one figure of a container or of a pod as a whole.
type resourceMetric struct {
	name, kind, help string
	value            func(container.Stats) float64
}

var resourceMetrics = []resourceMetric{
	{"cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the %s in core-seconds",
		func(s container.Stats) float64 { return seconds(s.CPUNanos) }},
	{"memory_working_set_bytes", "gauge", "Current working set of the %s in bytes",
		func(s container.Stats) float64 { return float64(s.WorkingSetBytes) }},
	{"swap_usage_bytes", "gauge", "Current amount of the %s swap usage in bytes",
		func(s container.Stats) float64 { return float64(s.SwapBytes) }},
}

// metricsResource answers /metrics/resource.
func (s *Server) metricsResource(w http.ResponseWriter, _ *http.Request) {
	e := &exposition{}
	usages := s.usage()
	for _, m := range resourceMetrics {
		name := "container_" + m.name
		e.family(name, m.kind, fmt.Sprintf(m.help, "container"))
		for _, u := range usages {
			for _, c := range u.containers {
				e.sample(name, m.value(c.Stats), c.Time, "container", c.name, "namespace", u.pod.Namespace, "pod", u.pod.Name)
			}
		}
	}
	e.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds")
	for _, u := range usages {
		for _, c := range u.containers {
			e.sample("container_start_time_seconds", unixSeconds(c.status.Started), time.Time{},
				"container", c.name, "namespace", u.pod.Namespace, "pod", u.pod.Name)
		}
	}
	failed := 0.0
	if n, err := s.cfg.Node(); err != nil {
		failed = 1
	} else {
		e.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
		e.sample("node_cpu_usage_seconds_total", seconds(n.CPUNanos), n.Time)
		e.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
		e.sample("node_memory_working_set_bytes", float64(n.workingSet()), n.Time)
		e.family("node_swap_usage_bytes", "gauge", "Current swap usage of the node in bytes")
		e.sample("node_swap_usage_bytes", float64(n.swapUsed()), n.Time)
	}
	for _, m := range resourceMetrics {
		name := "pod_" + m.name
		e.family(name, m.kind, fmt.Sprintf(m.help, "pod"))
		for _, u := range usages {
			e.sample(name, m.value(u.whole), u.whole.Time, "namespace", u.pod.Namespace, "pod", u.pod.Name)
		}
	}
	e.family("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	e.sample("resource_scrape_error", failed, time.Time{})
	e.send(w)
}

var cadvisorMetrics = []resourceMetric{
	{"container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.",
		func(s container.Stats) float64 { return seconds(s.CPUNanos) }},
	{"container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.",
		func(s container.Stats) float64 { return seconds(s.UserNanos) }},
	{"container_cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed in seconds.",
		func(s container.Stats) float64 { return seconds(s.SystemNanos) }},
	{"container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.",
		func(s container.Stats) float64 { return float64(s.Periods) }},
	{"container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.",
		func(s container.Stats) float64 { return float64(s.ThrottledPeriods) }},
	{"container_cpu_cfs_throttled_seconds_total", "counter", "Total time duration the container has been throttled.",
		func(s container.Stats) float64 { return seconds(s.ThrottledNanos) }},
	{"container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed",
		func(s container.Stats) float64 { return float64(s.MemoryBytes) }},
	{"container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes",
		func(s container.Stats) float64 { return float64(s.PeakBytes) }},
	{"container_memory_working_set_bytes", "gauge", "Current working set in bytes.",
		func(s container.Stats) float64 { return float64(s.WorkingSetBytes) }},
	{"container_memory_rss", "gauge", "Size of RSS in bytes.",
		func(s container.Stats) float64 { return float64(s.RSSBytes) }},
	{"container_memory_swap", "gauge", "Container swap usage in bytes.",
		func(s container.Stats) float64 { return float64(s.SwapBytes) }},
	{"container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.",
		func(s container.Stats) float64 { return float64(s.MemoryLimit) }},
	{"container_processes", "gauge", "Number of processes running inside the container.",
		func(s container.Stats) float64 { return float64(s.Pids) }},
	{"container_oom_events_total", "counter", "Count of out of memory events observed for the container",
		func(s container.Stats) float64 { return float64(s.OOMKills) }},
}

// metricsCadvisor answers /metrics/cadvisor with the figures that dashboards use most.
func (s *Server) metricsCadvisor(w http.ResponseWriter, _ *http.Request) {
	e := &exposition{}
	usages := s.usage()
	for _, m := range cadvisorMetrics {
		e.family(m.name, m.kind, m.help)
		for _, u := range usages {
			s.cadvisorSamples(e, m, u)
		}
	}
	e.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.")
	for _, u := range usages {
		for _, c := range u.containers {
			e.sample("container_start_time_seconds", unixSeconds(c.status.Started), time.Time{}, cadvisorLabels(u, &c)...)
		}
	}
	s.cadvisorNetwork(e, usages)
	if n, err := s.cfg.Node(); err == nil {
		e.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.")
		e.sample("machine_memory_bytes", float64(n.MemoryBytes), time.Time{})
	}
	e.send(w)
}

func (s *Server) cadvisorSamples(e *exposition, m resourceMetric, u podUsage) {
	add := func(st container.Stats, c *containerUsage) {
		labels := cadvisorLabels(u, c)
		if m.name == "container_cpu_usage_seconds_total" {
			labels = append(labels, "cpu", "total")
		}
		e.sample(m.name, m.value(st), st.Time, labels...)
	}
	add(u.whole, nil)
	for i := range u.containers {
		add(u.containers[i].Stats, &u.containers[i])
	}
}

// cadvisorLabels are those of a container, or with nil of the pod as a whole.
func cadvisorLabels(u podUsage, c *containerUsage) []string {
	if c == nil {
		return []string{"container", "", "id", "/" + strings.TrimPrefix(u.sandbox.Cgroup, "/"), "image", "", "name", "",
			"namespace", u.pod.Namespace, "pod", u.pod.Name}
	}
	return []string{"container", c.name, "id", "/" + strings.TrimPrefix(c.status.Cgroup, "/"), "image", c.status.Config.Image,
		"name", c.status.Config.ID, "namespace", u.pod.Namespace, "pod", u.pod.Name}
}

func (s *Server) cadvisorNetwork(e *exposition, usages []podUsage) {
	type traffic struct {
		u   podUsage
		ifs []machine.Interface
	}
	var all []traffic
	for _, u := range usages {
		if u.sandbox.NetNS == "" {
			continue
		}
		if ifs, err := s.cfg.Network(u.sandbox); err == nil {
			all = append(all, traffic{u, ifs})
		}
	}
	for _, m := range []struct {
		name, help string
		value      func(machine.Interface) uint64
	}{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", func(i machine.Interface) uint64 { return i.RxBytes }},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", func(i machine.Interface) uint64 { return i.RxErrors }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", func(i machine.Interface) uint64 { return i.TxBytes }},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", func(i machine.Interface) uint64 { return i.TxErrors }},
	} {
		e.family(m.name, "counter", m.help)
		for _, t := range all {
			for _, i := range t.ifs {
				e.sample(m.name, float64(m.value(i)), t.u.whole.Time, append(cadvisorLabels(t.u, nil), "interface", i.Name)...)
			}
		}
	}
}

// logBytes is what a container's log files take up.
func logBytes(path string) (uint64, bool) {
	if path == "" {
		return 0, false
	}
	var sum uint64
	found := false
	for _, name := range append(logfile.Rotated(path), path) {
		if info, err := os.Stat(name); err == nil {
			sum += uint64(info.Size())
			found = true
		}
	}
	return sum, found
}
