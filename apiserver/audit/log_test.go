package audit

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// slowLog is a log with a line in it, each further one of which waits in the middle for two values from the channel.
func slowLog(t *testing.T) (*Log, chan struct{}) {
	t.Helper()
	gate := make(chan struct{})
	log, err := OpenLog(LogOptions{Path: filepath.Join(t.TempDir(), "audit.log"), MaxSize: 1, Now: func() time.Time {
		<-gate // twice for each file that is put aside
		return time.Now()
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Write(&Record{JSON: []byte("first\n")}); err != nil {
		t.Fatal(err)
	}
	return log, gate
}

func over[T any](c <-chan T) bool {
	synctest.Wait()
	return len(c) > 0
}

// TestCloseWaits: the file is closed behind the one who writes, and not opened again by who comes later.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, gate := slowLog(t)
		wrote, waited, closed := make(chan error, 1), make(chan error, 1), make(chan error, 1)
		go func() { wrote <- log.Write(&Record{JSON: []byte("second\n")}) }()
		synctest.Wait()
		go func() { waited <- log.Write(&Record{JSON: []byte("third\n")}) }()
		synctest.Wait()
		go func() { closed <- log.Close(t.Context()) }()
		if over(closed) {
			t.Error("closed in the middle of a write")
		}
		close(gate)
		synctest.Wait()
		for what, c := range map[string]chan error{"the writer": wrote, "who waited": waited, "close": closed} {
			select {
			case err := <-c:
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			default:
				t.Errorf("%s is not done", what)
			}
		}
		if err := log.Write(&Record{JSON: []byte("late\n")}); err == nil || log.file != nil {
			t.Errorf("a closed log takes a line: %v", err)
		}
		if err := log.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestWritersTakeTurns: who has written its own line does not write those of all who come after.
func TestWritersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, gate := slowLog(t)
		const writers = 4
		done := make(chan int, writers)
		for i := range writers {
			go func() {
				if err := log.Write(&Record{JSON: []byte("line\n")}); err != nil {
					t.Error(err)
				}
				done <- i
			}()
			synctest.Wait()
			if i > 0 { // the one before is on its own way now, and this one waits for it
				gate <- struct{}{}
				gate <- struct{}{}
				if !over(done) || <-done != i-1 {
					t.Errorf("writer %d still writes, for others", i-1)
				}
			}
		}
		close(gate)
		if !over(done) {
			t.Error("the last is not done")
		}
	})
}
