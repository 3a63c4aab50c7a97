package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// rangesDir remembers which ranges the instances of this machine have, running or not: one that is down
// has nothing in the kernel, and must find its ranges free when it comes up again.
const rangesDir = "/var/lib/coracle-ranges"

// reservation is one instance's entry in rangesDir.
type reservation struct {
	DataDir     string       `json:"dataDir"`
	PodCIDR     netip.Prefix `json:"podCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
}

func reservationPath(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join(rangesDir, hex.EncodeToString(sum[:8])+".json")
}

// reserve enters the ranges of an instance. lockMachine is held, so that two that start at the same time choose
// differently.
func reserve(dataDir string, pods, services netip.Prefix) error {
	if err := os.MkdirAll(rangesDir, 0o755); err != nil {
		return fmt.Errorf("reserve address ranges: %w", err)
	}
	data, err := json.Marshal(reservation{dataDir, pods, services})
	if err != nil {
		return err
	}
	return writeFile(reservationPath(dataDir), append(data, '\n'), 0o644)
}

// unreserve takes the entry of an instance out. It is idempotent.
func unreserve(dataDir string) error {
	if err := os.Remove(reservationPath(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(rangesDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// reserved lists the ranges of the other instances. Entries whose data directory is gone are taken out; one that cannot be
// read is passed over, since nothing says what it reserved.
func reserved(dataDir string) ([]netip.Prefix, error) {
	files, err := filepath.Glob(filepath.Join(rangesDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, file := range files {
		data, err := os.ReadFile(file)
		var r reservation
		if err != nil || json.Unmarshal(data, &r) != nil || r.DataDir == dataDir {
			continue
		}
		if _, err := os.Stat(r.DataDir); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(file); err != nil {
				return nil, err
			}
			continue
		}
		all = append(all, r.PodCIDR, r.ServiceCIDR)
	}
	return all, nil
}

// freeRanges chooses a pair of /16 ranges that overlap with nothing that is taken: 10.42 and 10.43, or the next
// pair.
func freeRanges(taken []netip.Prefix) (pods, services netip.Prefix, err error) {
	for second := 42; second < 254; second += 2 {
		pods = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(second), 0, 0}), 16)
		services = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(second + 1), 0, 0}), 16)
		free := true
		for _, t := range taken {
			free = free && !t.Overlaps(pods) && !t.Overlaps(services)
		}
		if free {
			return pods, services, nil
		}
	}
	return pods, services, errors.New("every range that could be chosen for pods and services is in use: give --pod-cidr and --service-cidr")
}
