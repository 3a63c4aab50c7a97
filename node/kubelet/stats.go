package kubelet

import (
	"context"
	"net/http"
	"sort"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/machine"
	"coracle.dev/coracle/linux/podfs"
	"coracle.dev/coracle/node/metricsapi"
)

// NodeUsage is what the machine uses as a whole.
type NodeUsage struct {
	machine.Usage
	// Root is the file system of pods and logs, Images that of images and containers.
	Root, Images podfs.FS
	Interfaces   []machine.Interface
}

// readNode measures the machine, and the file systems that two directories lie on.
func readNode(rootDir, imageDir string) (NodeUsage, error) {
	u, err := machine.Read()
	if err != nil {
		return NodeUsage{}, err
	}
	out := NodeUsage{Usage: u}
	// A directory that does not exist yet has no figures, which is no failure.
	out.Root, _ = podfs.StatFS(rootDir)
	out.Images, _ = podfs.StatFS(imageDir)
	out.Interfaces, err = machine.Interfaces("")
	return out, err
}

// podUsage is what one pod uses.
type podUsage struct {
	pod        *corev1.Pod
	sandbox    container.SandboxStatus
	whole      container.Stats
	containers []containerUsage
}

type containerUsage struct {
	name   string
	status container.ContainerStatus
	container.Stats
}

// usage reads the counters of all running containers. Those that end meanwhile are left out.
func (s *Server) usage() []podUsage {
	var out []podUsage
	for _, pod := range s.cfg.Pods() {
		sandbox := s.cfg.Sandbox(pod.UID)
		if sandbox == "" {
			continue
		}
		u := podUsage{pod: pod}
		var err error
		if u.sandbox, err = s.cfg.Runtime.Sandbox(sandbox); err != nil {
			continue
		}
		if u.whole, err = s.cfg.Runtime.SandboxStats(sandbox); err != nil {
			continue
		}
		for _, name := range containerNames(pod) {
			id := s.cfg.Container(pod.UID, name, false)
			if id == "" {
				continue
			}
			st, err := s.cfg.Runtime.Container(id)
			if err != nil || st.State != container.StateRunning {
				continue
			}
			if cs, err := s.cfg.Runtime.Stats(id); err == nil {
				u.containers = append(u.containers, containerUsage{name: name, status: st, Stats: cs})
			}
		}
		out = append(out, u)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].pod, out[j].pod
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		return a.Name < b.Name
	})
	return out
}

func containerNames(pod *corev1.Pod) []string {
	var out []string
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			out = append(out, list[i].Name)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, pod.Spec.EphemeralContainers[i].Name)
	}
	return out
}

// Sample reads this node's usage for the resource metrics API. labels are the node's.
func (s *Server) Sample(labels map[string]string) (metricsapi.NodeSample, error) {
	out := metricsapi.NodeSample{Node: s.cfg.NodeName, Labels: labels}
	n, err := s.cfg.Node()
	if err != nil {
		return out, err
	}
	out.Usage = metricsapi.Usage{Time: n.Time, Started: n.Booted, CPUNanos: n.CPUNanos, WorkingSetBytes: n.workingSet()}
	for _, u := range s.usage() {
		p := metricsapi.PodSample{Namespace: u.pod.Namespace, Name: u.pod.Name, UID: u.pod.UID, Labels: u.pod.Labels}
		for _, c := range u.containers {
			p.Containers = append(p.Containers, metricsapi.ContainerSample{Name: c.name, ID: c.status.Config.ID, Usage: metricsapi.Usage{
				Time: c.Time, Started: c.status.Started, CPUNanos: c.CPUNanos, WorkingSetBytes: c.WorkingSetBytes,
			}})
		}
		out.Pods = append(out.Pods, p)
	}
	return out, nil
}

func (n NodeUsage) workingSet() uint64 {
	if n.AvailableBytes > n.MemoryBytes {
		return 0
	}
	return n.MemoryBytes - n.AvailableBytes
}

func (n NodeUsage) swapUsed() uint64 { return n.SwapBytes - min(n.SwapFreeBytes, n.SwapBytes) }

// cpuMemory remembers the CPU time seen last, so that the next summary can tell the rate since. The
// first summary has none, as nothing measures before anybody asks.
type cpuMemory struct {
	mu   sync.Mutex // guards last
	last map[string]cpuPoint
}

type cpuPoint struct {
	at    time.Time
	nanos uint64
}

// longestRate is how far back a rate may reach.
const longestRate = 5 * time.Minute

// rate gives the use in billionths of a core since the last call for the same key, nil if there was none.
func (m *cpuMemory) rate(next map[string]cpuPoint, key string, now cpuPoint) *uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	prev, ok := m.last[key]
	next[key] = now
	if !ok {
		return nil
	}
	elapsed := now.at.Sub(prev.at)
	if elapsed < time.Second {
		next[key] = prev // too short to say; the older point serves next time
	}
	if elapsed <= 0 || elapsed > longestRate || now.nanos < prev.nanos {
		return nil
	}
	n := uint64(float64(now.nanos-prev.nanos) * float64(time.Second) / float64(elapsed))
	return &n
}

func (m *cpuMemory) replace(next map[string]cpuPoint) {
	m.mu.Lock()
	m.last = next
	m.mu.Unlock()
}

// statsSummary answers /stats/summary. With only_cpu_and_memory=true nothing is walked on disk.
func (s *Server) statsSummary(w http.ResponseWriter, r *http.Request) {
	brief := boolParam(r, "only_cpu_and_memory")
	next := map[string]cpuPoint{}
	out := stats.Summary{Node: s.nodeStats(next, brief), Pods: []stats.PodStats{}}
	for _, u := range s.usage() {
		out.Pods = append(out.Pods, s.podStats(r.Context(), u, next, brief))
	}
	s.cpu.replace(next)
	writeJSON(w, &out)
}

func (s *Server) nodeStats(next map[string]cpuPoint, brief bool) stats.NodeStats {
	out := stats.NodeStats{NodeName: s.cfg.NodeName}
	n, err := s.cfg.Node()
	if err != nil {
		s.cfg.Log.Warn("node not measured", "err", err)
		return out
	}
	at := metav1.NewTime(n.Time)
	out.StartTime = metav1.NewTime(n.Booted)
	out.CPU = &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &n.CPUNanos,
		UsageNanoCores: s.cpu.rate(next, "node", cpuPoint{n.Time, n.CPUNanos})}
	set := n.workingSet()
	out.Memory = &stats.MemoryStats{Time: at, AvailableBytes: &n.AvailableBytes, UsageBytes: &set, WorkingSetBytes: &set, RSSBytes: &n.AnonBytes}
	if n.SwapBytes > 0 {
		used := n.swapUsed()
		out.Swap = &stats.SwapStats{Time: at, SwapUsageBytes: &used, SwapAvailableBytes: &n.SwapFreeBytes}
	}
	out.Rlimit = &stats.RlimitStats{Time: at, MaxPID: &n.MaxPID, NumOfRunningProcesses: &n.Tasks}
	if brief {
		return out
	}
	out.Network = networkStats(at, n.Interfaces)
	out.Fs = fsStats(at, n.Root)
	out.Runtime = &stats.RuntimeStats{ImageFs: fsStats(at, n.Images), ContainerFs: fsStats(at, n.Images)}
	return out
}

func (s *Server) podStats(ctx context.Context, u podUsage, next map[string]cpuPoint, brief bool) stats.PodStats {
	at := metav1.NewTime(u.whole.Time)
	out := stats.PodStats{
		PodRef:     stats.PodReference{Name: u.pod.Name, Namespace: u.pod.Namespace, UID: string(u.pod.UID)},
		StartTime:  metav1.NewTime(u.sandbox.Created),
		Containers: []stats.ContainerStats{},
		CPU:        s.cpuStats(next, "pod/"+string(u.pod.UID), u.whole),
		Memory:     memoryStats(u.whole),
	}
	if u.pod.Status.StartTime != nil {
		out.StartTime = *u.pod.Status.StartTime
	}
	pids := u.whole.Pids
	out.ProcessStats = &stats.ProcessStats{ProcessCount: &pids}
	var own, inodes uint64
	for _, c := range u.containers {
		cs := stats.ContainerStats{
			Name:      c.name,
			StartTime: metav1.NewTime(c.status.Started),
			CPU:       s.cpuStats(next, "container/"+c.status.Config.ID, c.Stats),
			Memory:    memoryStats(c.Stats),
		}
		if !brief {
			if du, err := s.cfg.Runtime.DiskUsage(ctx, c.status.Config.ID); err == nil {
				cs.Rootfs = &stats.FsStats{Time: metav1.NewTime(du.Time), UsedBytes: &du.Bytes, InodesUsed: &du.Inodes}
				own, inodes = own+du.Bytes, inodes+du.Inodes
			}
			if size, ok := logBytes(c.status.LogPath); ok {
				cs.Logs = &stats.FsStats{Time: metav1.NewTime(s.cfg.Now()), UsedBytes: &size}
				own += size
			}
		}
		out.Containers = append(out.Containers, cs)
	}
	if brief {
		return out
	}
	if u.sandbox.NetNS != "" {
		if ifs, err := s.cfg.Network(u.sandbox); err == nil {
			out.Network = networkStats(at, ifs)
		}
	}
	out.VolumeStats, own, inodes = s.volumeStats(ctx, u.pod, own, inodes)
	out.EphemeralStorage = &stats.FsStats{Time: at, UsedBytes: &own, InodesUsed: &inodes}
	return out
}

// volumeStats adds what counts as ephemeral storage to the sums.
func (s *Server) volumeStats(ctx context.Context, pod *corev1.Pod, own, inodes uint64) ([]stats.VolumeStats, uint64, uint64) {
	if s.cfg.Volumes == nil {
		return nil, own, inodes
	}
	usages, err := s.cfg.Volumes(ctx, pod.UID)
	if err != nil {
		s.cfg.Log.Debug("volumes not measured", "pod", pod.Name, "err", err)
	}
	at := metav1.NewTime(s.cfg.Now())
	var out []stats.VolumeStats
	for _, v := range usages {
		vs := stats.VolumeStats{Name: v.Volume, FsStats: *fsStats(at, v.FS)}
		vs.UsedBytes, vs.InodesUsed = unsigned(v.UsedBytes), unsigned(v.Inodes)
		if v.Claim != "" {
			vs.PVCRef = &stats.PVCReference{Name: v.Claim, Namespace: pod.Namespace}
		}
		if v.LocalStorage {
			own += *vs.UsedBytes
			inodes += *vs.InodesUsed
		}
		out = append(out, vs)
	}
	return out, own, inodes
}

func (s *Server) cpuStats(next map[string]cpuPoint, key string, st container.Stats) *stats.CPUStats {
	nanos := st.CPUNanos
	return &stats.CPUStats{Time: metav1.NewTime(st.Time), UsageCoreNanoSeconds: &nanos,
		UsageNanoCores: s.cpu.rate(next, key, cpuPoint{st.Time, nanos})}
}

func memoryStats(st container.Stats) *stats.MemoryStats {
	out := &stats.MemoryStats{
		Time:            metav1.NewTime(st.Time),
		UsageBytes:      &st.MemoryBytes,
		WorkingSetBytes: &st.WorkingSetBytes,
		RSSBytes:        &st.RSSBytes,
		PageFaults:      &st.PageFaults,
		MajorPageFaults: &st.MajorPageFaults,
	}
	if st.MemoryLimit > st.WorkingSetBytes {
		free := st.MemoryLimit - st.WorkingSetBytes
		out.AvailableBytes = &free
	}
	return out
}

func networkStats(at metav1.Time, ifs []machine.Interface) *stats.NetworkStats {
	if len(ifs) == 0 {
		return nil
	}
	out := &stats.NetworkStats{Time: at}
	for i := range ifs {
		u := &ifs[i]
		out.Interfaces = append(out.Interfaces, stats.InterfaceStats{
			Name: u.Name, RxBytes: &u.RxBytes, RxErrors: &u.RxErrors, TxBytes: &u.TxBytes, TxErrors: &u.TxErrors,
		})
	}
	out.InterfaceStats = out.Interfaces[0]
	return out
}

func fsStats(at metav1.Time, fs podfs.FS) *stats.FsStats {
	return &stats.FsStats{
		Time:           at,
		AvailableBytes: unsigned(fs.AvailableBytes),
		CapacityBytes:  unsigned(fs.CapacityBytes),
		UsedBytes:      unsigned(fs.UsedBytes),
		InodesFree:     unsigned(fs.InodesFree),
		Inodes:         unsigned(fs.Inodes),
		InodesUsed:     unsigned(fs.InodesUsed),
	}
}

func unsigned(n int64) *uint64 {
	u := uint64(max(n, 0))
	return &u
}
