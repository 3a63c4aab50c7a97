// Package machine reads what the machine as a whole uses: CPU time, memory, processes, traffic.
// It keeps nothing and measures only when called; rates are its callers' matter.
package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"coracle.dev/coracle/linux/namespace"
)

// Usage is what all processes together use.
type Usage struct {
	Time, Booted time.Time
	// CPUNanos is the time that the CPUs were not idle since boot, of user, system and interrupts.
	CPUNanos uint64
	// MemoryBytes is what there is, AvailableBytes what could be had without swapping, AnonBytes
	// what belongs to processes and to no file.
	MemoryBytes, AvailableBytes, AnonBytes uint64
	SwapBytes, SwapFreeBytes               uint64
	// Tasks is the number of processes and threads, MaxPID the most that there can be.
	Tasks, MaxPID int64
}

// tick is the unit of /proc/stat: USER_HZ is 100 on all architectures that Go runs on.
const tick = 10 * time.Millisecond

// Read reads the present figures.
func Read() (Usage, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Usage{}, err
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Usage{}, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Time: time.Now()}
	if err := errors.Join(u.cpu(stat), u.memory(memory), u.tasks(load)); err != nil {
		return Usage{}, err
	}
	if max, err := os.ReadFile("/proc/sys/kernel/pid_max"); err == nil {
		u.MaxPID, _ = strconv.ParseInt(strings.TrimSpace(string(max)), 10, 64)
	}
	return u, nil
}

// cpu reads the lines "cpu user nice system idle iowait irq softirq steal ..." and "btime seconds".
func (u *Usage) cpu(stat []byte) error {
	found := false
	for line := range bytes.Lines(stat) {
		f := strings.Fields(string(line))
		switch {
		case len(f) >= 8 && f[0] == "cpu":
			var ticks uint64
			for i, s := range f[1:min(len(f), 9)] {
				n, err := strconv.ParseUint(s, 10, 64)
				if err != nil {
					return fmt.Errorf("/proc/stat: %w", err)
				}
				if i != 3 && i != 4 { // idle, iowait
					ticks += n
				}
			}
			u.CPUNanos = ticks * uint64(tick)
			found = true
		case len(f) == 2 && f[0] == "btime":
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return fmt.Errorf("/proc/stat: %w", err)
			}
			u.Booted = time.Unix(n, 0)
		}
	}
	if !found {
		return errors.New("/proc/stat: there is no line for all CPUs")
	}
	return nil
}

func (u *Usage) memory(info []byte) error {
	to := map[string]*uint64{
		"MemTotal:": &u.MemoryBytes, "MemAvailable:": &u.AvailableBytes, "AnonPages:": &u.AnonBytes,
		"SwapTotal:": &u.SwapBytes, "SwapFree:": &u.SwapFreeBytes,
	}
	for line := range bytes.Lines(info) {
		f := strings.Fields(string(line))
		if len(f) < 2 || to[f[0]] == nil {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return fmt.Errorf("/proc/meminfo: %w", err)
		}
		*to[f[0]] = n << 10
	}
	if u.MemoryBytes == 0 {
		return errors.New("/proc/meminfo: there is no MemTotal")
	}
	return nil
}

// tasks reads "load1 load5 load15 running/all last".
func (u *Usage) tasks(load []byte) error {
	f := strings.Fields(string(load))
	if len(f) < 4 {
		return fmt.Errorf("/proc/loadavg: %q", load)
	}
	_, all, _ := strings.Cut(f[3], "/")
	n, err := strconv.ParseInt(all, 10, 64)
	u.Tasks = n
	return err
}

// Interface is the traffic of a network interface since it was made.
type Interface struct {
	Name                                 string
	RxBytes, RxErrors, TxBytes, TxErrors uint64
}

// Interfaces reads the interfaces of a network namespace ("": the caller's own), without the
// loopback.
func Interfaces(netns string) ([]Interface, error) {
	var data []byte
	read := func() (err error) {
		data, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	}
	var err error
	if netns == "" {
		err = read()
	} else {
		err = namespace.Do(read, netns)
	}
	if err != nil {
		return nil, err
	}
	return interfaces(data)
}

// interfaces reads "name: rxbytes packets errs drop fifo frame compressed multicast txbytes packets errs ...".
func interfaces(data []byte) ([]Interface, error) {
	var out []Interface
	for line := range bytes.Lines(data) {
		name, rest, ok := strings.Cut(string(line), ":")
		name = strings.TrimSpace(name)
		if !ok || name == "lo" {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 11 {
			continue
		}
		i := Interface{Name: name}
		for at, to := range map[int]*uint64{0: &i.RxBytes, 2: &i.RxErrors, 8: &i.TxBytes, 10: &i.TxErrors} {
			n, err := strconv.ParseUint(f[at], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("net/dev: %w", err)
			}
			*to = n
		}
		out = append(out, i)
	}
	return out, nil
}
