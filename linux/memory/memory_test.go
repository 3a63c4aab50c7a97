package memory

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReturnProgramPages(t *testing.T) {
	text := strings.Repeat("constant", 1000)
	n, err := ReturnProgramPages()
	if err != nil || n < 1<<20 {
		t.Fatalf("went over %d bytes: %v", n, err)
	}
	// The program goes on as it was: code, constants and variables.
	if text != strings.Repeat("constant", 1000) || os.Getpid() == 0 {
		t.Fatal("memory changed")
	}
}

// TestWrittenPagesStay holds what a dynamic linker does: it writes into a mapping of the program and takes the right to write
// away afterwards.
func TestWrittenPagesStay(t *testing.T) {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	page, err := unix.Mmap(int(program.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page) //nolint:errcheck // the end of the test
	copy(page, "written")
	if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if _, err := ReturnProgramPages(); err != nil {
		t.Fatal(err)
	}
	if have := string(page[:7]); have != "written" {
		t.Errorf("what was written became %q", have)
	}
}

func TestCleanParts(t *testing.T) {
	const maps = `00400000-00fd2000 r-xp 00000000 fe:00 1234                           /opt/prog
Size:              12104 kB
Private_Dirty:        40 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00fd2000-019ab000 r--p 00bd2000 fe:00 1234                           /opt/prog
Private_Dirty:         4 kB
Anonymous:             4 kB
019ab000-01a20000 rw-p 015ab000 fe:00 1234                           /opt/prog
Private_Dirty:         0 kB
Anonymous:             0 kB
01b00000-01b20000 r--p 015ab000 fe:00 1235                           /opt/other
Anonymous:             0 kB
02000000-02001000 r--p 00000000 fe:00 1234                           /opt/prog
Anonymous:             0 kB
7ffd0000-7ffd2000 r-xp 00000000 00:00 0                              [vdso]
Anonymous:             0 kB
nonsense
`
	parts, err := cleanParts(strings.NewReader(maps), "/opt/prog")
	if err != nil {
		t.Fatal(err)
	}
	want := []part{{0x400000, 0xbd2000}, {0x2000000, 0x1000}}
	if len(parts) != 2 || parts[0] != want[0] || parts[1] != want[1] {
		t.Errorf("parts %x, want %x", parts, want)
	}
}
