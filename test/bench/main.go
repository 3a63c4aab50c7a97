// Command bench measures a built coracle from outside, as a user would meet it, and writes one
// table to docs/results/bench.md. Costs are CPU times of the server's process (user and system, the
// containers' parent included), so that they mean the same on a busy machine.
//
// It starts clusters of its own in temporary directories and removes them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// row is one line of the table.
type row struct {
	name, value, budget string
}

type bench struct {
	ctx  context.Context
	bin  string
	rows []row
}

func main() {
	if gatewayChild() {
		return
	}
	bin := flag.String("bin", "bin", "directory with coracle and busybox-image")
	out := flag.String("out", "docs/results/bench.md", "file to write the table to, empty for none")
	only := flag.String("only", "", "comma-separated sections to run: boot,idle,api,guarded,list,watch,definitions,pods,schedule,gateway,link,services,policy,dns,scale,rollout (default all but the last two)")
	idle := flag.Duration("idle", time.Minute, "how long to watch the idle cluster")
	flag.Parse()
	dir, err := filepath.Abs(*bin)
	if err != nil {
		fatal(err)
	}
	b := &bench{ctx: context.Background(), bin: dir}
	sections := []section{
		{"boot", b.boot},
		{"idle", func() error { return b.idle(*idle) }},
		{"api", b.api},
		{"guarded", b.guarded},
		{"list", b.list},
		{"watch", b.watch},
		{"definitions", b.definitions},
		{"pods", b.pods},
		{"schedule", b.schedule},
		{"gateway", b.gateway},
		{"link", b.links},
		{"services", b.services},
		{"policy", b.policies},
		{"dns", b.names},
	}
	if *only != "" { // these take minutes: docs/results/scale.md has their results
		sections = append(sections, []section{
			{"scale", func() error { return b.scale(*idle) }},
			{"rollout", b.rollout},
		}...)
	}
	for _, s := range sections {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		if err := s.run(); err != nil {
			fatal(fmt.Errorf("%s: %w", s.name, err))
		}
	}
	if *out != "" && *only == "" {
		if err := os.WriteFile(*out, []byte(b.document()), 0o644); err != nil {
			fatal(err)
		}
	}
}

// section is a part of the bench that can be run alone.
type section struct {
	name string
	run  func() error
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// add records a result and prints it at once.
func (b *bench) add(name, value, budget string) {
	b.rows = append(b.rows, row{name, value, budget})
	fmt.Printf("%-64s %16s   %s\n", name, value, budget)
}

func (b *bench) document() string {
	var s strings.Builder
	fmt.Fprintf(&s, "# Benchmarks\n\nMade by `make bench` on %s: %d cores, %s, %s, %s.\n", time.Now().UTC().Format("2006-01-02"),
		runtime.NumCPU(), memory(), kernel(), runtime.Version())
	s.WriteString("CPU is that of the server (user and system). Times are medians unless said otherwise.\n\n")
	s.WriteString("| what | measured | budget |\n|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Fprintf(&s, "| %s | %s | %s |\n", r.name, r.value, r.budget)
	}
	return s.String()
}

func kernel() string {
	out, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return "Linux"
	}
	return strings.TrimSpace(string(out))
}

func memory() string {
	data, _ := os.ReadFile("/proc/meminfo")
	var kb int
	_, _ = fmt.Sscanf(string(data), "MemTotal: %d kB", &kb)
	return fmt.Sprintf("%d GiB", (kb+1<<19)>>20)
}
