// Package cgroup makes, limits, measures and removes control groups, version 1 and 2
// alike. It owns the paths below a root cgroup that its caller names, and
// never touches others. It knows nothing of containers.
package cgroup

// Resources are limits of a cgroup. Zero values change nothing.
type Resources struct {
	// CPUShares is the relative weight in terms of version 1 (2..262144, 1024 a core).
	CPUShares uint64 `json:"cpuShares,omitempty"`
	// CPUQuota is microseconds of CPU time in each CPUPeriod, negative for no limit.
	CPUQuota int64 `json:"cpuQuota,omitempty"`
	// CPUPeriod in microseconds, 100,000 if zero and a quota is set.
	CPUPeriod uint64 `json:"cpuPeriod,omitempty"`
	// CPUs and MemNodes are lists such as "0-3,7".
	CPUs     string `json:"cpus,omitempty"`
	MemNodes string `json:"memNodes,omitempty"`
	// Memory is the limit in bytes, negative for none.
	Memory int64 `json:"memory,omitempty"`
	// MemorySwap is the limit of memory and swap together in bytes, negative for none, 0 for
	// the same as Memory (no swap).
	MemorySwap int64 `json:"memorySwap,omitempty"`
	// Pids is the most tasks, negative for no limit.
	Pids int64 `json:"pids,omitempty"`
	// Hugepages limits by page size ("2MB"), in bytes.
	Hugepages map[string]uint64 `json:"hugepages,omitempty"`
	// Unified are files of version 2 and what to write ("memory.min": "1048576").
	// They are passed over on version 1.
	Unified map[string]string `json:"unified,omitempty"`
	// OOMGroup kills all of the cgroup if one process runs out of memory (version 2).
	OOMGroup bool `json:"oomGroup,omitempty"`
}

// Stats is usage of a cgroup with all below it.
type Stats struct {
	// CPUNanos is CPU time used so far, UserNanos and SystemNanos its parts.
	CPUNanos, UserNanos, SystemNanos uint64
	// ThrottledPeriods of Periods ran into the quota, for ThrottledNanos.
	Periods, ThrottledPeriods, ThrottledNanos uint64
	// MemoryBytes is all memory charged, WorkingSetBytes without inactive file pages, RSSBytes
	// anonymous memory alone.
	MemoryBytes, WorkingSetBytes, RSSBytes uint64
	// MemoryLimit in bytes, 0 for none.
	MemoryLimit uint64
	// PeakBytes is the most ever charged, 0 if not known.
	PeakBytes uint64
	SwapBytes uint64
	// PageFaults and MajorPageFaults so far.
	PageFaults, MajorPageFaults uint64
	// Pids is the number of tasks, PidsLimit the most allowed (0: none).
	Pids, PidsLimit uint64
	// OOMKills is how many processes were killed for lack of memory.
	OOMKills uint64
}
