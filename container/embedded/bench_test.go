package embedded

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
)

// rss is the resident memory of a process in KiB, and of it what is its own.
func rss(t testing.TB, pid int) (total, anonymous int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			total, _ = strconv.Atoi(f[1])
		case "RssAnon:":
			anonymous, _ = strconv.Atoi(f[1])
		}
	}
	return total, anonymous
}

// cpu is the CPU time of this process, and of the shim with all children that it waited for, in milliseconds.
func cpu(t testing.TB, shim int) (own, supervisor, children float64) {
	t.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", shim))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	tick := func(i int) float64 {
		n, _ := strconv.Atoi(f[i])
		return float64(n) * 10 // USER_HZ is 100
	}
	return float64(use.Utime.Nano()+use.Stime.Nano()) / 1e6, tick(11) + tick(12), tick(13) + tick(14)
}

func median(list []time.Duration) time.Duration {
	sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
	return list[len(list)/2]
}

// BenchmarkStart measures each step of bringing up and removing one container, and the CPU time of all three parts.
func BenchmarkStart(b *testing.B) {
	f := newFixture(b)
	steps := map[string][]time.Duration{}
	step := func(name string, fn func() error) {
		begin := time.Now()
		if err := fn(); err != nil {
			b.Fatal(err)
		}
		steps[name] = append(steps[name], time.Since(begin))
	}
	f.sandbox(nil)
	f.start("sandbox1", "sleep 1000", nil) // brings up the shim
	shim := f.Status().SupervisorPID
	own, supervisor, children := cpu(b, shim)
	for b.Loop() {
		time.Sleep(100 * time.Millisecond) // as pods come, one now and then: nothing in the kernel is warm
		f.n++
		sb, id := fmt.Sprintf("s%d", f.n), fmt.Sprintf("c%d", f.n)
		step("sandbox", func() error {
			_, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: sb})
			return err
		})
		step("create", func() error {
			_, err := f.CreateContainer(f.ctx(), container.ContainerConfig{
				ID: id, SandboxID: sb, Image: "busybox", Args: []string{"sleep", "1000"},
				Seccomp: container.Seccomp{Mode: container.SeccompDefault},
			})
			return err
		})
		step("start", func() error { return f.Start(f.ctx(), id) })
		step("remove", func() error { return f.RemoveSandbox(f.ctx(), sb) })
	}
	own2, supervisor2, children2 := cpu(b, shim)
	b.ReportMetric((own2-own)/float64(b.N), "own-cpu-ms")
	b.ReportMetric((supervisor2-supervisor)/float64(b.N), "shim-cpu-ms")
	b.ReportMetric((children2-children)/float64(b.N), "children-cpu-ms")
	for name, list := range steps {
		b.ReportMetric(float64(median(list).Microseconds())/1000, name+"-p50-ms")
	}
}

// BenchmarkExec measures an exec from the call to the exit code.
func BenchmarkExec(b *testing.B) {
	f := newFixture(b)
	id := f.start(f.sandbox(nil), "sleep 1000", nil)
	var list []time.Duration
	for b.Loop() {
		begin := time.Now()
		if _, err := f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"true"}}, container.Streams{}); err != nil {
			b.Fatal(err)
		}
		list = append(list, time.Since(begin))
	}
	b.ReportMetric(float64(median(list).Microseconds())/1000, "p50-ms")
}

// BenchmarkMany brings up 30 at once and reports the shim's memory with them.
func BenchmarkMany(b *testing.B) {
	f := newFixture(b)
	f.sandbox(nil)
	for b.Loop() {
		var group sync.WaitGroup
		for i := range 30 {
			group.Add(1)
			go func() {
				defer group.Done()
				sb := fmt.Sprintf("s%d", i)
				if _, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: sb}); err != nil {
					b.Error(err)
					return
				}
				_, err := f.CreateContainer(f.ctx(), container.ContainerConfig{
					ID: "c" + sb, SandboxID: sb, Image: "busybox", Args: []string{"sleep", "1000"},
					Seccomp: container.Seccomp{Mode: container.SeccompDefault},
				})
				if err == nil {
					err = f.Start(f.ctx(), "c"+sb)
				}
				if err != nil {
					b.Error(err)
				}
			}()
		}
		group.Wait()
		b.StopTimer()
		time.Sleep(3 * time.Second) // the shim gives memory back 2 s after the last start
		total, anonymous := rss(b, f.Status().SupervisorPID)
		b.ReportMetric(float64(total)/1024, "shim-RSS-MiB")
		b.ReportMetric(float64(anonymous)/1024, "shim-anonymous-MiB")
		for i := range 30 {
			if err := f.RemoveSandbox(f.ctx(), fmt.Sprintf("s%d", i)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
}
