package encrypt

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/pebble"
)

const (
	killDir, killSocket = "CORACLE_ENCRYPT_KILL_DIR", "CORACLE_ENCRYPT_KILL_SOCKET"
	killEnough          = 200
)

func openKilled(t *testing.T, dir, socket string) *pebble.Store {
	t.Helper()
	s, err := pebble.Open(dir, store.Options{Codec: Wrap(texts{}, (&plugin{socket: socket}).config(t)), Stamp: func(any, store.Revision) {}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestKilled: what a process acknowledged that encrypts by a KMS plugin is read after kill -9, as often as that happens, and with the plugin's
// key changed meanwhile.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killDir); dir != "" {
		writeUntilKilled(t, dir, os.Getenv(killSocket))
		return
	}
	p, dir := startPlugin(t), t.TempDir()
	written := map[string]bool{}
	for round := range 3 {
		p.set(func() { p.key = byte(round + 1) })
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		child.Env = append(os.Environ(), killDir+"="+dir, killSocket+"="+p.socket)
		child.WaitDelay = time.Second
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "wrote "); ok {
				written[name] = true
				if n++; n == killEnough {
					_ = child.Process.Kill() // SIGKILL, in the middle of writes; what it had said before still comes
				}
			}
		}
		_ = child.Wait() // it was killed
		if len(written) < (round+1)*killEnough {
			t.Fatalf("round %d: %d writes in all", round, len(written))
		}
		s := openKilled(t, dir, p.socket)
		for name := range written {
			e := s.Snapshot().Get(store.Key{Resource: "secrets", Namespace: "default", Name: name})
			if e == nil || e.Object.(string) != "secret of "+name {
				t.Fatalf("round %d: %s is lost", round, name)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func writeUntilKilled(t *testing.T, dir, socket string) {
	s := openKilled(t, dir, socket)
	for i := 0; ; i++ {
		name := fmt.Sprintf("s-%d-%d", os.Getpid(), i)
		_, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "secrets", Namespace: "default", Name: name}, Object: "secret of " + name}}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("wrote " + name)
	}
}
