// Package memory gives memory of this process back to the kernel. It owns nothing and
// keeps no state.
package memory

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ReturnProgramPages unmaps the pages of the program's own file that are mapped read-only: code and constants
// that only the start needed, several times what runs afterwards. The pages stay in the page
// cache, and what is used again is mapped again by a minor fault of about a microsecond for 64 KiB.
// It returns how many bytes of address space it went over.
//
// A part that was written before it became read-only is left alone, since the file does not have what was written: a
// dynamic linker does that to the addresses that it fills in (RELRO).
func ReturnProgramPages() (int64, error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("program pages: %w", err)
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("program pages: %w", err)
	}
	defer maps.Close()
	parts, err := cleanParts(maps, program)
	if err != nil {
		return 0, fmt.Errorf("program pages: %w", err)
	}
	var total int64
	for _, p := range parts {
		// By address: this is not memory that the Go run time manages.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, p.start, uintptr(p.length), unix.MADV_DONTNEED); errno != 0 {
			return total, fmt.Errorf("program pages: %w", errno)
		}
		total += int64(p.length)
	}
	return total, nil
}

// part is a range of addresses.
type part struct {
	start  uintptr
	length int
}

// cleanParts reads /proc/self/smaps: the parts of a file that are mapped without the right to write and of which no page is the
// process's own.
func cleanParts(maps io.Reader, file string) ([]part, error) {
	var parts []part
	mine := false // the last line of a mapping was about one of parts
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok || strings.Contains(name, " ") {
			// The first line of a mapping: addresses, rights, offset, device ("fe:00"), inode, file.
			var p part
			if p, mine = readOnlyPart(lines.Text(), file); mine {
				parts = append(parts, p)
			}
			continue
		}
		if mine && name == "Anonymous" && strings.TrimSpace(value) != "0 kB" {
			parts, mine = parts[:len(parts)-1], false
		}
	}
	return parts, lines.Err()
}

// readOnlyPart reads the first line of a mapping: part of a file that is mapped without the right to write.
func readOnlyPart(line, file string) (part, bool) {
	var start, end uintptr
	var rights string
	if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &rights); err != nil {
		return part{}, false
	}
	return part{start, int(end - start)}, end > start && len(rights) == 4 && rights[1] == '-' && strings.HasSuffix(line, " "+file)
}
