package pebble

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lockHolder says who holds a lock file: " (process 123)", or nothing if that
// cannot be found out.
func lockHolder(name string) string {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l) != nil || l.Type == unix.F_UNLCK || l.Pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (process %d)", l.Pid)
}
