package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"coracle.dev/coracle/store"
)

// Format is the version of the directory that this program writes. A change of
// anything on disk that an older program would misread raises it, never lowers it;
// open then brings older directories up, one version at a time.
//
//	1  the first
const Format = 1

const formatText = "coracle store format %d\n"

// pebbleFormat is the oldest that checksums the footers of tables and, by marking in the
// log how far it was synced, tells a damaged log from one that was cut off.
const pebbleFormat = pebble.FormatTableFormatV6

// directory is the place on disk, locked.
type directory struct {
	path    string
	fs      vfs.FS
	log     *logFS // what the database sees of fs
	lock    *pebble.Lock
	durable vfs.File
	mark    [12]byte
	synced  bool // the mark was synced once since the directory was opened
}

// openDirectory makes the directory if it is absent, locks it and checks its format.
func openDirectory(path string, fsys vfs.FS) (*directory, error) {
	d := &directory{path: path, fs: fsys, log: &logFS{FS: fsys}}
	if err := fsys.MkdirAll(path, 0o700); err != nil {
		return nil, d.wrap(err)
	}
	lock, err := pebble.LockDirectory(path, fsys)
	if err != nil {
		return nil, d.lockError(err)
	}
	d.lock = lock
	if err := d.prepare(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *directory) prepare() error {
	format, err := d.readFormat()
	if err != nil {
		return err
	}
	switch {
	case format > Format:
		return fmt.Errorf("%w: %s has format %d, this program knows %d: use the version that wrote it, or a newer one",
			store.ErrNewer, d.path, format, Format)
	case format == 0:
		if err := d.writeFormat(); err != nil {
			return d.wrap(err)
		}
	}
	return d.openMark()
}

// readFormat returns 0 for a directory that is new.
func (d *directory) readFormat() (int, error) {
	data, err := d.read("FORMAT")
	if errors.Is(err, fs.ErrNotExist) {
		if desc, err := pebble.Peek(d.path, d.fs); err != nil {
			return 0, d.wrap(err)
		} else if desc.Exists {
			return 0, fmt.Errorf("%w: %s holds data but no file FORMAT", store.ErrDamaged, d.path)
		}
		return 0, nil
	}
	if err != nil {
		return 0, d.wrap(err)
	}
	var format int
	if n, err := fmt.Sscanf(string(data), formatText, &format); n != 1 || err != nil || format < 1 {
		return 0, fmt.Errorf("%w: %s: %q is not a format", store.ErrDamaged, d.fs.PathJoin(d.path, "FORMAT"), data)
	}
	return format, nil
}

func (d *directory) writeFormat() error {
	name := d.fs.PathJoin(d.path, "FORMAT")
	f, err := d.fs.Create(name+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, formatText, Format)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := d.fs.Rename(name+".tmp", name); err != nil {
		return err
	}
	return d.syncDir()
}

func (d *directory) syncDir() error {
	dir, err := d.fs.OpenDir(d.path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *directory) read(name string) ([]byte, error) {
	f, err := d.fs.Open(d.fs.PathJoin(d.path, name))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	return data, errors.Join(err, f.Close())
}

func (d *directory) openMark() error {
	f, err := d.fs.OpenReadWrite(d.fs.PathJoin(d.path, "DURABLE"), vfs.WriteCategoryUnspecified)
	if err != nil {
		return d.wrap(err)
	}
	d.durable = f
	return nil
}

// marked returns the revision that is known to have been synced, 0 if that is
// not known. The mark itself is rarely synced: it may be older than the log but
// never newer, and is what tells a log whose end was damaged from one whose end was never
// written.
func (d *directory) marked() store.Revision {
	data, err := d.read("DURABLE")
	if err != nil || len(data) < len(d.mark) {
		return 0
	}
	if crc32.Checksum(data[:8], castagnoli) != binary.LittleEndian.Uint32(data[8:]) {
		return 0
	}
	return store.Revision(binary.LittleEndian.Uint64(data))
}

// setMark records that everything through rev is on disk.
func (d *directory) setMark(rev store.Revision, sync bool) error {
	binary.LittleEndian.PutUint64(d.mark[:], uint64(rev))
	binary.LittleEndian.PutUint32(d.mark[8:], crc32.Checksum(d.mark[:8], castagnoli))
	if _, err := d.durable.WriteAt(d.mark[:], 0); err != nil {
		return err
	}
	if sync || !d.synced {
		d.synced = true
		return d.durable.SyncData()
	}
	return nil
}

// reserve is the free space below which commits are refused, so that what was
// accepted can still be written, flushed and compacted.
const reserve = 16 << 20

// space returns ErrFull if the disk has less than the reserve.
func (d *directory) space() error {
	usage, err := d.fs.GetDiskUsage(d.path)
	if err != nil || usage.AvailBytes >= reserve {
		return nil // a file system that does not tell is tried
	}
	return fmt.Errorf("%w: %d MiB left in %s, commits need %d MiB: free some space",
		store.ErrFull, usage.AvailBytes>>20, d.path, reserve>>20)
}

func (d *directory) close() error {
	var err error
	if d.durable != nil {
		err = d.durable.Close()
	}
	return errors.Join(err, d.lock.Close())
}

// wrap gives an error of the database or of the file system its type.
func (d *directory) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %s: %w", store.ErrFull, d.path, err)
	case pebble.IsCorruptionError(err), errors.Is(err, fs.ErrNotExist), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s: %w", store.ErrDamaged, d.path, err)
	case strings.Contains(err.Error(), "unknown format major version"):
		return fmt.Errorf("%w: %s: %w", store.ErrNewer, d.path, err)
	}
	return fmt.Errorf("store: %s: %w", d.path, err)
}

// wrapOpen is wrap for errors met while the database is opened: what the system
// does not refuse is refused for what stands in the files.
func (d *directory) wrapOpen(err error) error {
	wrapped := d.wrap(err)
	var refused syscall.Errno
	if err == nil || errors.As(err, &refused) || isTyped(wrapped) {
		return wrapped
	}
	return fmt.Errorf("%w: %s: %w", store.ErrDamaged, d.path, err)
}

func isTyped(err error) bool {
	for _, typed := range []error{store.ErrDamaged, store.ErrNewer, store.ErrInUse, store.ErrFull} {
		if errors.Is(err, typed) {
			return true
		}
	}
	return false
}

func (d *directory) lockError(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EROFS) {
		// EACCES from the open of LOCK, not from the lock: that gives EAGAIN on Linux.
		return d.wrap(err)
	}
	holder := ""
	if errors.Is(err, syscall.EAGAIN) && d.fs == vfs.Default {
		holder = lockHolder(d.fs.PathJoin(d.path, "LOCK"))
	}
	return fmt.Errorf("%w: %s%s", store.ErrInUse, d.path, holder)
}

// options are Pebble's. The database is written far more than it is read, small
// beside the memory that the objects take anyway, and mostly idle.
func (d *directory) options(events *pebble.EventListener, log pebble.Logger) *pebble.Options {
	o := &pebble.Options{
		FS:                 d.log,
		Lock:               d.lock,
		FormatMajorVersion: pebbleFormat,
		// Everything is read once, at the start, and not again.
		CacheSize:    1 << 20,
		MaxOpenFiles: 128,
		// Two of these are held. What is flushed is small, and is joined with
		// the rest only now and then.
		MemTableSize:                2 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               64 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		DisableTableStats:           true,
		EventListener:               events,
		Logger:                      log,
	}
	o.Experimental.CompactionScheduler = newScheduler()
	return o
}
