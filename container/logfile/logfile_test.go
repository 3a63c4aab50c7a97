package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var epoch = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)

// clock is a time that moves on with each look.
func clock(step time.Duration) func() time.Time {
	var mu sync.Mutex
	now := epoch
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(step)
		return now
	}
}

func open(t *testing.T, path string, size int64, files int, now func() time.Time) *Writer {
	t.Helper()
	w, err := Open(path, size, files, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "0.log")
	w := open(t, path, 0, 0, func() time.Time { return epoch })
	out, errs := w.Stream(Stdout), w.Stream(Stderr)
	fmt.Fprint(out, "one\ntw")
	fmt.Fprint(errs, "\n")
	fmt.Fprint(out, "o\nthr")
	fmt.Fprint(out, "ee")
	out.Close()
	errs.Close()
	got, err := os.ReadFile(path)
	want := "2026-03-04T05:06:07.000000008Z stdout F one\n" +
		"2026-03-04T05:06:07.000000008Z stderr F \n" +
		"2026-03-04T05:06:07.000000008Z stdout F two\n" +
		"2026-03-04T05:06:07.000000008Z stdout P three\n"
	if err != nil || string(got) != want {
		t.Errorf("%q %v\nwant %q", got, err, want)
	}
}

// TestLongLines cuts input in all places, so that each branch sees each edge.
func TestLongLines(t *testing.T) {
	for _, length := range []int{MaxLine - 1, MaxLine, MaxLine + 1, 2 * MaxLine, 2*MaxLine + 1} {
		for _, piece := range []int{1000, MaxLine - 1, MaxLine, MaxLine + 1, 3 * MaxLine} {
			path := filepath.Join(t.TempDir(), "0.log")
			w := open(t, path, -1, 0, clock(time.Second))
			s := w.Stream(Stdout)
			input := []byte(strings.Repeat("x", length) + "\nnext\n")
			for rest := input; len(rest) > 0; {
				n := min(piece, len(rest))
				if m, err := s.Write(rest[:n]); m != n || err != nil {
					t.Fatal(m, err)
				}
				rest = rest[n:]
			}
			s.Close()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var back bytes.Buffer
			for raw := range bytes.Lines(data) {
				line, err := Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				if len(line.Text) > MaxLine || line.Partial && len(line.Text) != MaxLine {
					t.Errorf("%d in pieces of %d: a line of %d, partial %v", length, piece, len(line.Text), line.Partial)
				}
				back.Write(line.Text)
				if !line.Partial {
					back.WriteByte('\n')
				}
			}
			if !bytes.Equal(back.Bytes(), input) {
				t.Errorf("%d in pieces of %d: what came back differs", length, piece)
			}
		}
	}
}

func TestRotation(t *testing.T) {
	for name, now := range map[string]func() time.Time{
		"time stands still":  func() time.Time { return epoch },
		"time goes on":       clock(time.Second),
		"time goes backward": clock(-time.Second),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			for _, other := range []string{"0.log.txt", "0.log.20260101-000000x", "1.log.20260101-000000", "0.log.20261399-000000"} {
				if err := os.WriteFile(filepath.Join(filepath.Dir(path), other), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w := open(t, path, 500, 4, now)
			s := w.Stream(Stdout)
			for i := range 300 {
				fmt.Fprintf(s, "line %d\n", i)
			}
			files := append(Rotated(path), path)
			if len(files) != 4 {
				t.Fatalf("%v", files)
			}
			next := 300
			for i := len(files) - 1; i >= 0; i-- {
				data, err := os.ReadFile(files[i])
				if err != nil || len(data) > 500 || len(data) == 0 {
					t.Fatalf("%s: %d bytes %v", files[i], len(data), err)
				}
				lines := strings.Split(strings.TrimSpace(string(data)), "\n")
				for j := len(lines) - 1; j >= 0; j-- {
					next--
					if !strings.HasSuffix(lines[j], fmt.Sprintf(" line %d", next)) {
						t.Fatalf("%s: %q, want line %d", files[i], lines[j], next)
					}
				}
			}
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 8 {
				t.Errorf("%d files", len(entries))
			}
		})
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0, 0, clock(time.Second))
	s := w.Stream(Stdout)
	fmt.Fprintln(s, "one")
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(s, "two")
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(s, "three")
	old, _ := os.ReadFile(path + ".moved")
	now, _ := os.ReadFile(path)
	if !strings.Contains(string(old), "two") || !strings.Contains(string(now), "three") || strings.Contains(string(now), "two") {
		t.Errorf("%q %q", old, now)
	}
	// Opened again it goes on.
	w.Close()
	w = open(t, path, 0, 0, clock(time.Second))
	fmt.Fprintln(w.Stream(Stderr), "four")
	if now, _ := os.ReadFile(path); strings.Count(string(now), "\n") != 2 {
		t.Errorf("%q", now)
	}
}

// TestFullDisk: what cannot be written is lost and counted, and later lines are written again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("this test needs root to mount a small disk: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "0.log")
	w := open(t, path, -1, 0, clock(time.Second))
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 56<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := w.Stream(Stdout)
	for range 20 {
		fmt.Fprintln(s, strings.Repeat("x", 1000))
	}
	lost, err := w.Err()
	if lost == 0 || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("lost %d: %v", lost, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(s, "room again")
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(string(data), " stdout F room again\n") {
		t.Errorf("%v", err)
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "\n", "x", "2026-03-04T05:06:07Z", "2026-03-04T05:06:07Z stdout", "2026-03-04T05:06:07Z stdout F",
		"2026-03-04T05:06:07Z other F x", "yesterday stdout F x", "2026-13-04T05:06:07Z stdout F x"} {
		if line, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, line)
		}
	}
	for in, want := range map[string]Line{
		"2026-03-04T05:06:07.000000008Z stdout F a b ":      {epoch, Stdout, false, []byte("a b ")},
		"2026-03-04T05:06:07.000000008Z stderr P \n":        {epoch, Stderr, true, nil},
		"2026-03-04T05:06:07.000000008Z stdout P:more:t x":  {epoch, Stdout, true, []byte("x")},
		"2026-03-04T06:06:07.000000008+01:00 stdout F:x  y": {epoch, Stdout, false, []byte(" y")},
	} {
		got, err := Parse([]byte(in))
		if err != nil || !got.Time.Equal(want.Time) || got.Stream != want.Stream || got.Partial != want.Partial || string(got.Text) != string(want.Text) {
			t.Errorf("%q: %+v %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-03-04T05:06:07.000000008Z stdout F text\n"))
	f.Add([]byte("2026-03-04T05:06:07Z stderr P:x \n"))
	f.Add([]byte("  "))
	f.Fuzz(func(t *testing.T, raw []byte) {
		line, err := Parse(raw)
		if err != nil || bytes.IndexByte(line.Text, '\n') >= 0 || line.Time.Year() < 0 || line.Time.Year() > 9999 {
			return
		}
		again, err := Parse(line.Append(nil))
		if err != nil || !again.Time.Equal(line.Time) || again.Stream != line.Stream || again.Partial != line.Partial || !bytes.Equal(again.Text, line.Text) {
			t.Errorf("%q gives %+v, which gives %+v (%v)", raw, line, again, err)
		}
	})
}

// FuzzWriter: whatever is written in whatever pieces comes back.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("one\ntwo"), 3)
	f.Add([]byte("\n\n"), 1)
	f.Fuzz(func(t *testing.T, input []byte, piece int) {
		if piece < 1 || len(input) > 1<<20 {
			return
		}
		path := filepath.Join(t.TempDir(), "0.log")
		w, err := Open(path, -1, 0, func() time.Time { return epoch })
		if err != nil {
			t.Fatal(err)
		}
		s := w.Stream(Stderr)
		for rest := input; len(rest) > 0; {
			n := min(piece, len(rest))
			s.Write(rest[:n])
			rest = rest[n:]
		}
		s.Close()
		w.Close()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var back []byte
		for raw := range bytes.Lines(data) {
			line, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if back = append(back, line.Text...); !line.Partial {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, input) {
			t.Errorf("%q came back as %q", input, back)
		}
	})
}
