package embedded

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"coracle.dev/coracle/container"
)

// capabilityNames are all capabilities by number (capabilities(7)).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// defaultCapabilities are those of a container that asks for nothing, as containerd has them.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// ownCapabilities are those that this process could hand on.
var ownCapabilities = sync.OnceValue(func() []string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(status)) {
		hex, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return nil
		}
		var out []string
		for i, name := range capabilityNames {
			if mask&(1<<i) != 0 {
				out = append(out, "CAP_"+name)
			}
		}
		return out
	}
	return nil
})

// capabilitySet is what a container gets: the defaults, or all; without what is dropped; with what is added.
// What this process does not have itself nobody can get.
func capabilitySet(change container.Capabilities, privileged bool) ([]string, error) {
	set := map[string]bool{}
	put := func(names []string, on bool) {
		for _, name := range names {
			set[name] = on
		}
	}
	if privileged {
		return ownCapabilities(), nil
	}
	put(defaultCapabilities, true)
	drop, err := capabilityList(change.Drop)
	if err != nil {
		return nil, err
	}
	add, err := capabilityList(change.Add)
	if err != nil {
		return nil, err
	}
	// "ALL" in one list gives way to names in the other (KEP-less, but as CRI runtimes do).
	if hasAll(change.Add) {
		put(add, true)
		if !hasAll(change.Drop) {
			put(drop, false)
		}
	} else {
		put(drop, false)
		put(add, true)
	}
	var out []string
	for _, name := range ownCapabilities() {
		if set[name] {
			out = append(out, name)
		}
	}
	return out, nil
}

func hasAll(list []string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, "ALL") })
}

// capabilityList gives names their full form.
func capabilityList(list []string) ([]string, error) {
	if hasAll(list) {
		out := make([]string, len(capabilityNames))
		for i, name := range capabilityNames {
			out[i] = "CAP_" + name
		}
		return out, nil
	}
	var out []string
	for _, name := range list {
		bare := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if !slices.Contains(capabilityNames, bare) {
			return nil, fmt.Errorf("unknown capability %q", name)
		}
		out = append(out, "CAP_"+bare)
	}
	return out, nil
}

// ociCapabilities spreads a set over the kernel's five. None is inheritable (CVE-2022-24769) unless ambient.
func ociCapabilities(caps []string, c container.ContainerConfig) *specs.LinuxCapabilities {
	out := &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if c.Ambient {
		if add, err := capabilityList(c.Capabilities.Add); err == nil {
			for _, name := range add {
				if slices.Contains(caps, name) {
					out.Ambient = append(out.Ambient, name)
				}
			}
			out.Inheritable = out.Ambient
		}
	}
	return out
}
