package main

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// TestLibrariesLogToTheInstance checks that every logger of the process ends in one place, and none on the terminal.
func TestLibrariesLogToTheInstance(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	terminal := os.Stderr
	os.Stderr = write
	t.Cleanup(func() {
		os.Stderr = terminal
		klog.ClearLogger()
		logrus.SetOutput(terminal)
		logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	})
	var out bytes.Buffer
	routeLibraries(slog.New(slog.NewTextHandler(&out, nil)))
	klog.ErrorS(io.ErrUnexpectedEOF, "from klog", "pod", "a/b")
	klog.V(2).Info("too much")
	logrus.WithField("id", 7).Warn("from logrus")
	log.Print("from log")
	slog.Info("from slog")
	klog.Flush()
	write.Close()
	if said, _ := io.ReadAll(read); len(said) > 0 {
		t.Errorf("on the terminal: %s", said)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{`level=ERROR msg="from klog" library=klog`, `level=WARN msg="from logrus" library=logrus id=7`, `level=INFO msg="from log"`, `level=INFO msg="from slog"`}
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), out.String())
	}
	for i, line := range lines {
		if !strings.Contains(line, want[i]) {
			t.Errorf("%s\nlacks %s", line, want[i])
		}
	}
}
