package clustertest

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkStart starts and closes clusters one after the other.
func BenchmarkStart(b *testing.B) {
	var starts, closes []time.Duration
	for b.Loop() {
		began := time.Now()
		c, err := New(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		ready := time.Now()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		starts, closes = append(starts, ready.Sub(began)), append(closes, time.Since(ready))
	}
	b.ReportMetric(0, "ns/op")
	for name, all := range map[string][]time.Duration{"start": starts, "close": closes} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
}

// BenchmarkIdle measures what a hundred clusters need that nobody asks anything of.
func BenchmarkIdle(b *testing.B) {
	const count = 100
	warm, err := New(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	if err := warm.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		heap, routines := inUse(), runtime.NumGoroutine()
		began := time.Now()
		clusters := make([]*Cluster, count)
		var group sync.WaitGroup
		for i := range clusters {
			group.Go(func() {
				var err error
				if clusters[i], err = New(context.Background()); err != nil {
					b.Error(err)
				}
			})
		}
		group.Wait()
		took := time.Since(began)
		b.ReportMetric(float64(took.Milliseconds()), "ms-for-100")
		b.ReportMetric(float64(inUse()-heap)/count/1024, "KiB-heap/cluster")
		b.ReportMetric(float64(runtime.NumGoroutine()-routines)/count, "goroutines/cluster")
		b.ReportMetric(resident(b), "MiB-resident")
		for _, c := range clusters {
			if c != nil {
				group.Go(func() {
					if err := c.Close(); err != nil {
						b.Error(err)
					}
				})
			}
		}
		group.Wait()
	}
	b.ReportMetric(0, "ns/op")
}

// inUse is the heap and the stacks that are in use after a collection.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// resident is the greatest memory that the process ever had, in MiB.
func resident(b *testing.B) float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("no /proc")
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatal("no VmHWM in /proc/self/status")
	return 0
}
