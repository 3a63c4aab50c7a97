package pebble

import (
	"path"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// logFS keeps errors of the write-ahead log from the database and for the store. Meeting one while it changes from one log file to the
// next, the database ends the whole process with a lock in a bad state. So the first error is kept, the log takes
// nothing more from then on, as if the power had gone at that moment, and the store acknowledges nothing once there
// is an error: it asks after each write to the log.
type logFS struct {
	vfs.FS
	err atomic.Pointer[error]
}

// failure is the first error of the log, nil for none.
func (f *logFS) failure() error {
	if p := f.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *logFS) fail(err error) { f.err.CompareAndSwap(nil, &err) }

func (f *logFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil || path.Ext(name) != ".log" {
		return file, err
	}
	return &logFile{file, f}, nil
}

// Create implements vfs.FS.
func (f *logFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

// ReuseForWrite implements vfs.FS.
func (f *logFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(old, name, c)
	return f.wrap(name, file, err)
}

// logFile is a file of the log that never fails.
type logFile struct {
	vfs.File
	fs *logFS
}

// Write implements vfs.File.
func (f *logFile) Write(b []byte) (int, error) {
	n := len(b)
	if f.fs.failure() == nil {
		if _, err := f.File.Write(b); err != nil {
			f.fs.fail(err)
		}
	}
	return n, nil
}

// Sync implements vfs.File.
func (f *logFile) Sync() error { return f.try(f.File.Sync) }

// SyncData implements vfs.File.
func (f *logFile) SyncData() error { return f.try(f.File.SyncData) }

// SyncTo implements vfs.File.
func (f *logFile) SyncTo(n int64) (full bool, err error) {
	err = f.try(func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// Close implements vfs.File.
func (f *logFile) Close() error {
	if err := f.File.Close(); err != nil {
		f.fs.fail(err)
	}
	return nil
}

// try does something to the file, unless the log has failed.
func (f *logFile) try(do func() error) error {
	if f.fs.failure() == nil {
		if err := do(); err != nil {
			f.fs.fail(err)
		}
	}
	return nil
}
