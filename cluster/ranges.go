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
	"slices"
	"strings"

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
	// More are the ranges of the second family.
	More []netip.Prefix `json:"more,omitempty"`
}

func reservationPath(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join(rangesDir, hex.EncodeToString(sum[:8])+".json")
}

// reserve enters the ranges of an instance. lockMachine is held, so that two that start at the same time choose
// differently.
func reserve(dataDir string, pods, services []netip.Prefix) error {
	if err := os.MkdirAll(rangesDir, 0o755); err != nil {
		return fmt.Errorf("reserve address ranges: %w", err)
	}
	data, err := json.Marshal(reservation{dataDir, pods[0], services[0], slices.Concat(pods[1:], services[1:])})
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
		all = append(append(all, r.PodCIDR, r.ServiceCIDR), r.More...)
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

// parseRanges reads one range, or one of each family with a comma between; the first is of the family that the cluster prefers.
func parseRanges(text string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || p.Masked() != p || p.Addr().Is4In6() || p.Addr().Zone() != "" || p.Addr().BitLen()-p.Bits() < 4 {
			return nil, fmt.Errorf("%q is not a range such as 10.42.0.0/16 or fd42:0:0:0100::/56", part)
		}
		all = append(all, p)
	}
	if len(all) > 2 || len(all) == 2 && all[0].Addr().Is4() == all[1].Addr().Is4() {
		return nil, fmt.Errorf("%q: give one range, or one of IPv4 and one of IPv6", text)
	}
	return all, nil
}

// formatRanges is the form that parseRanges reads.
func formatRanges(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// checkRanges says what is wrong with the ranges that a user chose.
func checkRanges(podCIDR, serviceCIDR string) error {
	if podCIDR == "" && serviceCIDR == "" {
		return nil
	}
	if podCIDR == "" || serviceCIDR == "" {
		return errors.New("pod-cidr and service-cidr: give both or neither")
	}
	var errs []error
	pods, err := parseRanges(podCIDR)
	if err != nil {
		errs = append(errs, fmt.Errorf("pod-cidr: %w", err))
	}
	services, err := parseRanges(serviceCIDR)
	if err != nil {
		errs = append(errs, fmt.Errorf("service-cidr: %w", err))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for i, s := range services {
		if i >= len(pods) || pods[i].Addr().Is4() != s.Addr().Is4() {
			errs = append(errs, fmt.Errorf("service-cidr: pods have no address of the family of %s at that place: give the families of pod-cidr in the same order", s))
		}
		for _, p := range pods {
			if s.Overlaps(p) {
				errs = append(errs, fmt.Errorf("service-cidr: %s overlaps with the pods' range %s", s, p))
			}
		}
		if s.Addr().Is6() && s.Bits() < 64 {
			errs = append(errs, fmt.Errorf("service-cidr: %s is larger than a /64", s))
		}
	}
	return errors.Join(errs...)
}

// nodeBlockBits is the length of the prefix of a node's block: as upstream's controller manager has it (24 and 64), and less
// where the cluster's range is smaller than many such blocks.
func nodeBlockBits(r netip.Prefix) int {
	if r.Addr().Is4() {
		return max(nodeBits4, r.Bits())
	}
	if r.Bits() <= nodeBits6 {
		return nodeBits6
	}
	return min(r.Bits()+8, 124)
}

// podRanges are the cluster's ranges of pod addresses, that of the preferred family first.
func (c *Cluster) podRanges() []netip.Prefix { return c.state.identity.podRanges() }

// serviceRanges are the cluster's ranges of service addresses, that of the preferred family first. There are no more of them than
// there are of pods, and their families stand in the same order.
func (c *Cluster) serviceRanges() []netip.Prefix { return c.state.identity.serviceRanges() }

// podRanges is nil where the identity cannot be read.
func (id identity) podRanges() []netip.Prefix {
	all, err := parseRanges(id.PodCIDR)
	if err != nil {
		return nil
	}
	return all
}

// serviceRanges is nil where the identity cannot be read.
func (id identity) serviceRanges() []netip.Prefix {
	all, err := parseRanges(id.ServiceCIDR)
	if err != nil {
		return nil
	}
	return all
}

// serviceIPs are the n-th addresses of the service ranges: 1 is the API, dnsIndex the DNS.
func (c *Cluster) serviceIPs(n int) []netip.Addr {
	var all []netip.Addr
	for _, r := range c.serviceRanges() {
		all = append(all, nth(r, n))
	}
	return all
}
