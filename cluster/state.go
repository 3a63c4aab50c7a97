package cluster

import (
	"crypto/rand"
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

// layoutVersion is the newest layout of the state directory that this program
// knows. It grows by one with each change that an older program could not read.
const layoutVersion = 1

// state is an open state directory.
type state struct {
	dir string
	// identity is what was chosen at the first start and must not change after.
	identity identity
	lock     *os.File
}

// identity is kept as <data-dir>/instance.json.
type identity struct {
	Layout int `json:"layout"`
	// ID is a random hexadecimal name that tells what this instance made in the
	// kernel from what others did.
	ID string `json:"id"`
	// PodCIDR and ServiceCIDR are in the form of parseRanges.
	PodCIDR     string `json:"podCIDR"`
	ServiceCIDR string `json:"serviceCIDR"`
}

// Errors of opening a state directory.
var (
	// ErrRunning says that another process has the state directory open.
	ErrRunning = errors.New("another coracle is running on this data directory")
	// ErrNewer says that a newer program has written the state directory.
	ErrNewer = errors.New("the data directory was written by a newer coracle")
	// ErrDamaged says that a state file cannot be read.
	ErrDamaged = errors.New("the data directory is damaged")
)

func (s *state) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// openState locks the state directory and reads or makes its identity. choose gives
// the ranges of a new instance.
func openState(dir string, choose func() (pods, services []netip.Prefix, err error)) (_ *state, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("data directory: %w: choose another with --data-dir", err)
	}
	s := &state{dir: dir}
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("data directory: %w: choose another with --data-dir", err)
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s: %w: stop it with `coracle down --data-dir %s`, or choose another --data-dir", dir, ErrRunning, dir)
	}
	if s.identity, err = readIdentity(dir); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	return s, s.create(choose)
}

// readIdentity reads what an instance is, without locking it.
func readIdentity(dir string) (identity, error) {
	var id identity
	path := filepath.Join(dir, "instance.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	err = json.Unmarshal(data, &id)
	switch {
	case err == nil && id.Layout > layoutVersion: // what else it says is for that program to read
		return id, fmt.Errorf("%s: %w (layout %d, this program knows %d): use that program, or choose another --data-dir", dir, ErrNewer, id.Layout, layoutVersion)
	case err != nil || id.ID == "" || len(id.podRanges()) == 0 || len(id.serviceRanges()) == 0:
		return id, fmt.Errorf("%w: %s cannot be read: restore it from a backup, or run `coracle reset --data-dir %s`", ErrDamaged, path, dir)
	}
	return id, nil
}

func (s *state) create(choose func() (pods, services []netip.Prefix, err error)) error {
	pods, services, err := choose()
	if err != nil {
		return err
	}
	var random [4]byte
	_, _ = rand.Read(random[:])
	s.identity = identity{Layout: layoutVersion, ID: hex.EncodeToString(random[:]),
		PodCIDR: formatRanges(pods), ServiceCIDR: formatRanges(services)}
	data, err := json.MarshalIndent(s.identity, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.path("instance.json"), append(data, '\n'), 0o644)
}

// close gives the directory free for another process.
func (s *state) close() { s.lock.Close() }

// lockMachine keeps other instances on this machine from choosing something at the same time. It
// waits for them; each holds the lock for milliseconds.
func lockMachine() (unlock func(), err error) {
	path := "/run/coracle.lock" // whatever TMPDIR is
	if os.Getuid() != 0 {
		path = filepath.Join(os.TempDir(), fmt.Sprintf("coracle-%d.lock", os.Getuid()))
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
