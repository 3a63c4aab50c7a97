package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/client/encrypt"
	"coracle.dev/coracle/linux/notify"
	"coracle.dev/coracle/store"
)

// encryption is how objects are encrypted at rest, and the file that says so. Reloading is one goroutine's.
type encryption struct {
	codec *encrypt.Codec
	// until is the last revision that may have been written as a configuration says that is no more.
	until atomic.Int64
	// revision gives the present one; nil until the store is open.
	revision func() store.Revision
	watcher  notify.Watcher
	last     string               // the sum of the file that counts
	sub      *notify.Subscription // nil if the file is read once
}

// settled is how long after a reload a commit may arrive that was encrypted before it.
const settled = 10 * time.Second

// loadEncryption reads the file. What it gives is never nil.
func (c *Cluster) loadEncryption(inner store.Codec) (*encryption, error) {
	e := &encryption{}
	if c.cfg.EncryptionConfig == "" {
		e.codec = encrypt.Wrap(inner, nil)
		return e, nil
	}
	if c.cfg.EncryptionReload {
		var err error
		// First, so that no change is missed. Editors and kubelets replace files: the directory is what lasts.
		if e.sub, err = e.watcher.Watch(filepath.Dir(c.cfg.EncryptionConfig)); err != nil {
			return nil, err
		}
	}
	e.last, _ = encrypt.Sum(c.cfg.EncryptionConfig) // before, so that a change meanwhile is one; Load says what is wrong
	keys, err := encrypt.Load(c.cfg.EncryptionConfig)
	if err != nil {
		e.close()
		return nil, err
	}
	e.codec = encrypt.Wrap(inner, keys)
	return e, nil
}

func (e *encryption) close() {
	if e.sub != nil {
		e.sub.Close()
	}
}

// stale tells whether writing an entry again would change how it is stored.
func (e *encryption) stale(entry *store.Entry) bool {
	return int64(entry.Revision) <= e.until.Load() && e.codec.Stale(entry.Key)
}

// opened tells that all up to now was read.
func (e *encryption) opened(revision func() store.Revision) {
	e.revision = revision
	e.until.Store(int64(revision()))
}

// reload takes over the file whenever it changes, until ctx is done. A file that is wrong, or names a plugin that does not answer, changes
// nothing, as upstream.
func (c *Cluster) reloadEncryption(ctx context.Context) error {
	e := c.encryption
	var later <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-later:
			later = nil
			e.until.Store(int64(e.revision()))
			continue
		case <-e.sub.C:
		}
		now, err := encrypt.Sum(c.cfg.EncryptionConfig)
		if err == nil && now == e.last {
			continue
		}
		if err == nil {
			err = e.take(c.cfg.EncryptionConfig)
		}
		if err != nil {
			c.log.Error("the encryption provider config is not reloaded", "file", c.cfg.EncryptionConfig, "error", err)
			continue
		}
		e.last = now
		c.log.Info("encryption provider config reloaded", "file", c.cfg.EncryptionConfig)
		later = time.After(settled)
	}
}

func (e *encryption) take(file string) error {
	next, err := encrypt.Load(file)
	if err != nil {
		return err
	}
	if err := next.Check(); err != nil {
		next.Close()
		return errors.Join(errors.New("a KMS plugin is not healthy"), err)
	}
	e.codec.Reload(next)
	e.until.Store(int64(e.revision()))
	return nil
}

// encryptionChecks are what /readyz tells of KMS plugins.
func (c *Cluster) encryptionChecks() []apiserver.Check {
	if c.cfg.EncryptionConfig == "" || c.encryption == nil {
		return nil
	}
	return []apiserver.Check{{Name: "kms-providers", Err: c.encryption.codec.Check}}
}
