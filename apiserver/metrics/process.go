package metrics

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

// clockTicks is the unit of times in /proc, which Linux fixes for programs.
const clockTicks = 100

// WriteProcess writes what the process, the Go runtime and the build are: process_*, go_* and kubernetes_build_info.
func WriteProcess(w io.Writer, v version.Info) {
	Head(w, "kubernetes_build_info", "gauge", "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.")
	fmt.Fprintf(w, "kubernetes_build_info{build_date=%q,compiler=%q,git_commit=%q,git_tree_state=%q,git_version=%q,go_version=%q,major=%q,minor=%q,platform=%q} 1\n",
		v.BuildDate, v.Compiler, v.GitCommit, v.GitTreeState, v.GitVersion, v.GoVersion, v.Major, v.Minor, v.Platform)
	writeProc(w)
	writeGo(w)
}

func writeProc(w io.Writer) {
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return // no /proc, no numbers
	}
	// The name in parentheses may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const utime, stime, start, virtual, resident = 11, 12, 19, 20, 21
	if len(fields) <= resident {
		return
	}
	number := func(i int) float64 { n, _ := strconv.ParseFloat(fields[i], 64); return n }
	One(w, "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", (number(utime)+number(stime))/clockTicks)
	One(w, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", int64(number(resident))*int64(os.Getpagesize()))
	One(w, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", int64(number(virtual)))
	if boot, ok := bootTime(); ok {
		One(w, "process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", strconv.FormatFloat(boot+number(start)/clockTicks, 'f', 2, 64))
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		One(w, "process_open_fds", "gauge", "Number of open file descriptors.", len(open))
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		One(w, "process_max_fds", "gauge", "Maximum number of open file descriptors.", limit.Cur)
	}
}

func bootTime() (float64, bool) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	_, rest, ok := strings.Cut(string(data), "\nbtime ")
	if !ok {
		return 0, false
	}
	line, _, _ := strings.Cut(rest, "\n")
	t, err := strconv.ParseFloat(line, 64)
	return t, err == nil
}

func writeGo(w io.Writer) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	gc := debug.GCStats{PauseQuantiles: make([]time.Duration, 5)}
	debug.ReadGCStats(&gc)
	Head(w, "go_gc_duration_seconds", "summary", "A summary of the wall-time pause (stop-the-world) duration in garbage collection cycles.")
	for i, q := range []string{"0", "0.25", "0.5", "0.75", "1"} {
		fmt.Fprintf(w, "go_gc_duration_seconds{quantile=%q} %v\n", q, gc.PauseQuantiles[i].Seconds())
	}
	fmt.Fprintf(w, "go_gc_duration_seconds_sum %v\ngo_gc_duration_seconds_count %d\n", gc.PauseTotal.Seconds(), gc.NumGC)
	One(w, "go_goroutines", "gauge", "Number of goroutines that currently exist.", runtime.NumGoroutine())
	Head(w, "go_info", "gauge", "Information about the Go environment.")
	fmt.Fprintf(w, "go_info{version=%q} 1\n", runtime.Version())
	One(w, "go_sched_gomaxprocs_threads", "gauge", "The current runtime.GOMAXPROCS setting, or the number of operating system threads that can execute user-level Go code simultaneously.", runtime.GOMAXPROCS(0))
	for _, s := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"alloc_bytes", "gauge", "Number of bytes allocated in heap and currently in use.", m.Alloc},
		{"alloc_bytes_total", "counter", "Total number of bytes allocated in heap until now, even if released already.", m.TotalAlloc},
		{"sys_bytes", "gauge", "Number of bytes obtained from system.", m.Sys},
		{"mallocs_total", "counter", "Total number of heap objects allocated, both live and gc-ed.", m.Mallocs},
		{"frees_total", "counter", "Total number of heap objects frees.", m.Frees},
		{"heap_alloc_bytes", "gauge", "Number of heap bytes allocated and currently in use.", m.HeapAlloc},
		{"heap_sys_bytes", "gauge", "Number of heap bytes obtained from system.", m.HeapSys},
		{"heap_idle_bytes", "gauge", "Number of heap bytes waiting to be used.", m.HeapIdle},
		{"heap_inuse_bytes", "gauge", "Number of heap bytes that are in use.", m.HeapInuse},
		{"heap_released_bytes", "gauge", "Number of heap bytes released to OS.", m.HeapReleased},
		{"heap_objects", "gauge", "Number of currently allocated objects.", m.HeapObjects},
		{"stack_inuse_bytes", "gauge", "Number of bytes obtained from system for stack allocator in non-CGO environments.", m.StackInuse},
		{"stack_sys_bytes", "gauge", "Number of bytes obtained from system for stack allocator.", m.StackSys},
		{"gc_sys_bytes", "gauge", "Number of bytes used for garbage collection system metadata.", m.GCSys},
		{"next_gc_bytes", "gauge", "Number of heap bytes when next garbage collection will take place.", m.NextGC},
	} {
		One(w, "go_memstats_"+s.name, s.kind, s.help, s.value)
	}
	One(w, "go_memstats_last_gc_time_seconds", "gauge", "Number of seconds since 1970 of last garbage collection.", float64(m.LastGC)/1e9)
	if threads, err := os.ReadDir("/proc/self/task"); err == nil {
		One(w, "go_threads", "gauge", "Number of OS threads created.", len(threads))
	}
}
