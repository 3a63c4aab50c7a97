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

func median(list []time.Duration) time.Duration {
	sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
	return list[len(list)/2]
}

// BenchmarkStart measures each step of bringing up and removing one container, and the shim's memory.
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
		step("exec", func() error {
			_, err := f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"true"}}, container.Streams{})
			return err
		})
		step("remove", func() error { return f.RemoveSandbox(f.ctx(), sb) })
	}
	for name, list := range steps {
		b.ReportMetric(float64(median(list).Microseconds())/1000, name+"-p50-ms")
	}
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
