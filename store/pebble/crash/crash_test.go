package crash_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/pebble"
	"coracle.dev/coracle/store/pebble/crash"
)

const (
	// childEnv names the directory that a child works in.
	childEnv = "CORACLE_CRASH_CHILD"
	// roundsEnv is how often the child is killed, 20 if it is not set. The long form is 1,000.
	roundsEnv = "CORACLE_CRASH_ROUNDS"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child runs the load and writes a line for each acknowledgement to stdout until
// it is killed.
func child(dir string) {
	s, err := pebble.Open(dir, crash.Options(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	// One write system call for each line: what the pipe has survives the child.
	fmt.Fprintln(os.Stdout, "open")
	err = crash.Load(context.Background(), s, func(a crash.Ack) {
		line, _ := json.Marshal(a)
		os.Stdout.Write(append(line, '\n'))
	})
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(1)
}

// TestKill kills a process that writes, at random moments, and checks what it
// leaves behind. The same directory is used in all rounds.
func TestKill(t *testing.T) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv(roundsEnv)); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	tally := &crash.Tally{}
	for i := range rounds {
		// Some die while they open the store, most under load.
		wait := time.Duration(rand.IntN(60_000)) * time.Microsecond
		run(t, dir, tally, i%5 != 4, wait)
		s, err := pebble.Open(dir, crash.Options(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := crash.Check(s.Snapshot(), tally); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		// The revision that this opening showed counts as seen.
		tally.Add(crash.Ack{Revision: s.Snapshot().Revision(), Relaxed: true})
		if i%2 == 0 {
			if err := s.Close(); err != nil {
				t.Fatalf("round %d: close: %v", i, err)
			}
		} else {
			closeDirty(t, s)
		}
	}
	if tally.Steps() < rounds {
		t.Errorf("only %d steps in %d rounds: the load did not run", tally.Steps(), rounds)
	}
	t.Logf("%d rounds, %d durable transactions acknowledged", rounds, tally.Steps())
}

// TestInUse opens a directory that a living process has open, and again when that is dead.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	cmd, out := start(t, dir)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_, err := pebble.Open(dir, crash.Options(), slog.New(slog.DiscardHandler))
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("got %v", err)
	}
	cmd.Process.Kill()
	io.Copy(io.Discard, out)
	cmd.Wait()
	s, err := pebble.Open(dir, crash.Options(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// start starts a child.
func start(t *testing.T, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// closeDirty commits relaxed before it closes, so that the next child opens a store that
// has been closed in order with relaxed writes in it.
func closeDirty(t *testing.T, s store.Store) {
	t.Helper()
	_, _, err := s.Commit(t.Context(), store.Txn{Relaxed: true, Ops: []store.Op{{
		Key: store.Key{Resource: "other", Name: "x"}, Object: &crash.Object{}, Expect: store.ExpectAny}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// run starts a child and kills it, after wait under load or, if load is false, at
// some time from its start on.
func run(t *testing.T, dir string, tally *crash.Tally, load bool, wait time.Duration) {
	t.Helper()
	cmd, out := start(t, dir)
	kill := func() { cmd.Process.Kill() }
	var timer *time.Timer
	if !load {
		timer = time.AfterFunc(wait, kill)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF { // a line without its end is no acknowledgement
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(line) == "open\n" {
			if load {
				timer = time.AfterFunc(wait, kill)
			}
			continue
		}
		var a crash.Ack
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		tally.Add(a)
	}
	err := cmd.Wait()
	if timer == nil || timer.Stop() {
		t.Fatalf("the child ended by itself: %v", err)
	}
}
