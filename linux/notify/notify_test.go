package notify

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func wait(t *testing.T, s *Subscription) {
	t.Helper()
	select {
	case <-s.C:
	case <-time.After(10 * time.Second):
		t.Fatal("no change was told")
	}
}

func TestWatch(t *testing.T) {
	var w Watcher
	dir := t.TempDir()
	a, err := w.Watch(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.Watch(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	wait(t, a)
	wait(t, b)
	a.Close()
	a.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	wait(t, b)
	b.Close()
	if w.file != nil {
		t.Fatal("the instance stays open with nobody watching")
	}
	c, err := w.Watch(dir) // a new instance
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := os.Remove(path + ".1"); err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	if _, err := w.Watch(filepath.Join(dir, "missing")); err == nil {
		t.Fatal("a missing directory was watched")
	}
}
