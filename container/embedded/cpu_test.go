package embedded

import (
	"testing"

	"coracle.dev/coracle/container"
)

// BenchmarkInitCPU measures the CPU time that a container costs before its program runs, by what is switched on.
func BenchmarkInitCPU(b *testing.B) {
	for name, change := range map[string]func(*container.ContainerConfig){
		"seccomp":    func(c *container.ContainerConfig) {},
		"unconfined": func(c *container.ContainerConfig) { c.Seccomp = container.Seccomp{} },
		"unmasked":   func(c *container.ContainerConfig) { c.Seccomp, c.UnmaskedProc = container.Seccomp{}, true },
	} {
		b.Run(name, func(b *testing.B) {
			f := newFixture(b)
			sb := f.sandbox(nil)
			var total, user uint64
			for b.Loop() {
				id := f.start(sb, "sleep 1000", change)
				eventually(b, "one process", func() bool { s, err := f.Stats(id); return err == nil && s.Pids == 1 })
				s, err := f.Stats(id)
				if err != nil {
					b.Fatal(err)
				}
				total += s.CPUNanos
				user += s.UserNanos
				if err := f.Remove(f.ctx(), id); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(total)/float64(b.N)/1e6, "cpu-ms")
			b.ReportMetric(float64(user)/float64(b.N)/1e6, "user-ms")
		})
	}
}
