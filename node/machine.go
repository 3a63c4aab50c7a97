package node

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	hostmachine "coracle.dev/coracle/linux/machine"
	"coracle.dev/coracle/linux/podfs"
)

// machine is what does not change of the machine while the program runs.
type machine struct {
	capacity corev1.ResourceList
	info     corev1.NodeSystemInfo
	dataDir  string
}

// pressure is how much is left of what a node runs short of.
type pressure struct {
	memory     uint64 // bytes available
	disk       float64
	inodes     float64 // share that is free
	freePids   int64
	maxPids    int64
	measurable bool
}

// inspect measures the machine. dataDir is on the filesystem whose space pods use.
func inspect(dataDir string) (machine, error) {
	m := machine{dataDir: dataDir}
	usage, err := hostmachine.Read()
	if err != nil {
		return m, err
	}
	m.capacity = corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(int64(usage.MemoryBytes), resource.BinarySI),
	}
	if err := os.MkdirAll(dataDir, 0o711); err != nil {
		return m, err
	}
	fs, err := podfs.StatFS(dataDir)
	if err != nil {
		return m, fmt.Errorf("measure %s: %w", dataDir, err)
	}
	m.capacity[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.CapacityBytes), resource.BinarySI)
	for name, q := range hugepageCapacity() {
		m.capacity[name] = q
	}
	m.info = corev1.NodeSystemInfo{
		MachineID:       firstOf("/etc/machine-id", "/var/lib/dbus/machine-id"),
		SystemUUID:      firstOf("/sys/class/dmi/id/product_uuid", "/sys/hypervisor/uuid", "/etc/machine-id"),
		BootID:          firstOf("/proc/sys/kernel/random/boot_id"),
		KernelVersion:   firstOf("/proc/sys/kernel/osrelease"),
		OSImage:         osImage(),
		OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	if swap := int64(usage.SwapBytes); swap > 0 {
		m.info.Swap = &corev1.NodeSwapStatus{Capacity: &swap}
	}
	return m, nil
}

// firstOf is the first line of the first file that has one.
func firstOf(files ...string) string {
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil {
			if line := strings.TrimSpace(string(data)); line != "" {
				return line
			}
		}
	}
	return ""
}

func osImage() string {
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(data), "\n") {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

func hugepageCapacity() corev1.ResourceList {
	out := corev1.ResourceList{}
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, dir := range dirs {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		count, _ := strconv.ParseInt(firstOf(filepath.Join(dir, "nr_hugepages")), 10, 64)
		size := resource.NewQuantity(kib*1024, resource.BinarySI)
		out[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size.String())] = *resource.NewQuantity(count*kib*1024, resource.BinarySI)
	}
	return out
}

// squeeze measures what is left at present.
func (m *machine) squeeze() pressure {
	usage, err := hostmachine.Read()
	if err != nil {
		return pressure{}
	}
	fs, err := podfs.StatFS(m.dataDir)
	if err != nil || fs.CapacityBytes == 0 {
		return pressure{}
	}
	p := pressure{
		memory: usage.AvailableBytes, disk: float64(fs.AvailableBytes) / float64(fs.CapacityBytes), inodes: 1,
		maxPids: usage.MaxPID, freePids: usage.MaxPID - usage.Tasks, measurable: true,
	}
	if fs.Inodes > 0 {
		p.inodes = float64(fs.InodesFree) / float64(fs.Inodes)
	}
	return p
}
