package memory

import (
	"os"
	"strings"
	"testing"
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

func TestReadOnlyPart(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-00fd2000 r-xp 00000000 fe:00 1234 /opt/prog":  true,
		"00fd2000-019ab000 r--p 00bd2000 fe:00 1234 /opt/prog":  true,
		"019ab000-01a20000 rw-p 015ab000 fe:00 1234 /opt/prog":  false,
		"00400000-00fd2000 r-xp 00000000 fe:00 1234 /opt/other": false,
		"7ffd-8000 r-xp 00000000 00:00 0 [vdso]":                false,
		"nonsense":                                              false,
	} {
		if _, _, ok := readOnlyPart(line, "/opt/prog"); ok != want {
			t.Errorf("%s: %t, want %t", line, ok, want)
		}
	}
}
