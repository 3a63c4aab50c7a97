package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc, USER_HZ, which is 100 on every Linux.
const clockTick = time.Second / 100

// measure fills in what the process and the containers' parent use.
func (c *Cluster) measure(s *Status) {
	s.PID = os.Getpid()
	s.Resident, s.CPU = usage(s.PID)
	if c.runtime != nil {
		if pid := c.runtime.Status().SupervisorPID; pid > 0 {
			resident, cpu := usage(pid)
			s.Shim, s.CPU = resident, s.CPU+cpu
		}
	}
}

// usage reads resident bytes and CPU time of a process, zero if it is gone.
func usage(pid int) (resident int64, cpu time.Duration) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name, in parentheses, may hold anything: fields are counted behind it.
	_, rest, ok := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 22 {
		return 0, 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	pages, _ := strconv.ParseInt(fields[21], 10, 64)
	return pages * int64(os.Getpagesize()), time.Duration(user+system) * clockTick
}
