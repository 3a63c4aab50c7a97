package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// records are the addresses that the plugin gave out of a network: one file for each, named by the address, that holds whose it is. They
// are used under the lock only.
type records struct {
	dir  string
	lock *os.File
}

// openRecords waits for other calls to end.
func openRecords(dir, network string) (*records, error) {
	dir = filepath.Join(dir, network)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return &records{dir: dir, lock: lock}, nil
}

func (r *records) close() { r.lock.Close() }

// all are the addresses with their owners.
func (r *records) all() (map[netip.Addr]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	all := map[netip.Addr]string{}
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock and what was last given
		}
		owner, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all[addr] = strings.TrimSpace(string(owner))
	}
	return all, nil
}

var errFull = errors.New("every address of the range is in use")

// take gives an owner an address of each range, those that it has already if it has some.
func (r *records) take(owner string, ranges []netip.Prefix) ([]netip.Addr, error) {
	used, err := r.all()
	if err != nil {
		return nil, err
	}
	var given []netip.Addr
	for _, p := range ranges {
		addr, err := r.next(owner, p, used)
		if err == nil {
			err = r.write(addr.String(), owner)
		}
		if err != nil {
			return nil, errors.Join(err, r.free(func(o string) bool { return o == owner }))
		}
		given = append(given, addr)
	}
	return given, nil
}

// next is the address that is free for the longest time, as far as is known: the first behind the one that was given out last.
func (r *records) next(owner string, p netip.Prefix, used map[netip.Addr]string) (netip.Addr, error) {
	for addr, o := range used {
		if o == owner && p.Contains(addr) {
			return addr, nil
		}
	}
	first := p.Addr().Next().Next()
	usable := func(a netip.Addr) bool { // the last of an IPv4 range is for broadcasts
		return a.IsValid() && p.Contains(a) && (a.Is6() || p.Contains(a.Next()))
	}
	start := first
	if last, err := os.ReadFile(r.lastOf(p)); err == nil {
		if a, err := netip.ParseAddr(strings.TrimSpace(string(last))); err == nil && usable(a.Next()) {
			start = a.Next()
		}
	}
	for a := start; ; {
		if _, taken := used[a]; !taken && usable(a) {
			return a, r.write(filepath.Base(r.lastOf(p)), a.String())
		}
		if a = a.Next(); !usable(a) {
			a = first
		}
		if a == start {
			return a, fmt.Errorf("%s: %w", p, errFull)
		}
	}
}

func (r *records) lastOf(p netip.Prefix) string {
	if p.Addr().Is6() {
		return filepath.Join(r.dir, "last6")
	}
	return filepath.Join(r.dir, "last4")
}

// write makes a file whole or not at all.
func (r *records) write(name, text string) error {
	temporary := filepath.Join(r.dir, ".new")
	if err := os.WriteFile(temporary, []byte(text+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(r.dir, name))
}

// free gives back the addresses of owners.
func (r *records) free(of func(owner string) bool) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	var errs []error
	for addr, owner := range all {
		if !of(owner) {
			continue
		}
		if err := os.Remove(filepath.Join(r.dir, addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
