package scripts

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// loaded runs a command while requests are sent to a URL, so many a second, one half over connections that are kept and one over new
// ones, and fails if one of them fails: loaded FILE RATE COMMAND ARG..., where the URL stands in the file
func loaded(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: loaded FILE RATE COMMAND ARG...")
	}
	var rate int
	if _, err := fmt.Sscan(args[1], &rate); err != nil || rate < 2 {
		ts.Fatalf("rate: %q", args[1])
	}
	url := ts.ReadFile(args[0])
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var sent, failed atomic.Int64
	var first atomic.Value
	kept := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	fresh := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var load sync.WaitGroup
	const senders = 16
	for i := range senders {
		c := kept
		if i%2 == 1 {
			c = fresh
		}
		load.Go(func() {
			pace := time.NewTicker(time.Second * senders / time.Duration(rate))
			defer pace.Stop()
			for ctx.Err() == nil {
				resp, err := c.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %s", resp.Status)
					}
				}
				sent.Add(1)
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		})
	}
	began := time.Now()
	cmd := exec.Command("sh", append([]string{"-c", `exec "$@"`, "sh"}, args[2:]...)...)
	cmd.Env, cmd.Dir = append(cmd.Environ(), "PATH="+ts.Getenv("PATH"), "HOME="+ts.Getenv("HOME"), "KUBECONFIG="+ts.Getenv("KUBECONFIG"), "CORACLE_DATA_DIR="+ts.Getenv("CORACLE_DATA_DIR"), "CORACLE_KUBECONFIG="+ts.Getenv("CORACLE_KUBECONFIG")), ts.Getenv("WORK")
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	cancel()
	load.Wait()
	kept.CloseIdleConnections()
	if err != nil {
		ts.Fatalf("%v: %v\n%s", args[2:], err, out)
	}
	ts.Logf("%d requests in %s, %d failed", sent.Load(), took.Round(time.Millisecond), failed.Load())
	if failed.Load() > 0 || sent.Load() == 0 {
		ts.Fatalf("%d of %d requests failed, the first: %v", failed.Load(), sent.Load(), first.Load())
	}
}
