package scripts

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// explainTime is what each question to a cluster in trouble may take.
const explainTime = 20 * time.Second

// explain shows beside a failure how the cluster stands: its pods, its last events, what its node's goroutines are at, and the end of its log. It is
// short, as records of long runs are cut.
func explain(ts *testscript.TestScript) {
	for _, question := range []string{"get pods -A -o wide --no-headers", "get events -A --no-headers --sort-by=.lastTimestamp"} {
		ctx, cancel := context.WithTimeout(context.Background(), explainTime)
		c := exec.CommandContext(ctx, lookPath(ts, "coracle"), append([]string{"kubectl"}, strings.Fields(question)...)...)
		c.Dir, c.Env = ts.MkAbs("."), environment(ts)
		out, err := c.CombinedOutput()
		cancel()
		ts.Logf("%s (%v):\n%s", question, err, lastLines(out, 25))
	}
	data := ts.Getenv("CORACLE_DATA_DIR")
	stacks, err := goroutines(filepath.Join(data, "control.sock"))
	ts.Logf("goroutines of containers and node (%v):\n%s", err, stacks)
	if log, err := os.ReadFile(filepath.Join(data, "coracle.log")); err == nil {
		ts.Logf("the cluster's log ends:\n%s", lastLines(log, 25))
	}
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// goroutines asks a running coracle what its goroutines are at: a line each of those that touch pods and containers.
func goroutines(socket string) (string, error) {
	h := http.Client{Timeout: explainTime, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := h.Get("http://coracle/debug/pprof/goroutine?debug=2")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	var out strings.Builder
	for stack := range strings.SplitSeq(string(all), "\n\n") {
		if !strings.Contains(stack, "coracle.dev/coracle/node.") && !strings.Contains(stack, "coracle.dev/coracle/container.") || out.Len() > 6000 {
			continue
		}
		lines := strings.Split(stack, "\n")
		var calls []string
		for i := 1; i+1 < len(lines) && len(calls) < 9; i += 2 {
			call, _, _ := strings.Cut(lines[i][strings.LastIndex(lines[i], "/")+1:], "(0x")
			calls = append(calls, call)
		}
		fmt.Fprintf(&out, "%s %s\n", lines[0], strings.Join(calls, " < "))
	}
	return out.String(), err
}
