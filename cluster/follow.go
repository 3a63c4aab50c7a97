package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"coracle.dev/coracle/linux/notify"
)

// followed is a file of the administrator's that is taken over whenever it changes, without a restart.
type followed struct {
	// what the file is, in messages and in the names of metrics.
	what, path string
	// last is what was read last. What is wrong is not tried again until it changes.
	last []byte
	// take has what the file holds count. An error says what is wrong, and has changed nothing.
	take             func(data []byte) error
	succeeded, wrong atomic.Int64
	unread           string // why the file could not be read the last time
}

// follow begins to watch a file whose content at the start is known.
func (c *Cluster) follow(f *followed) (stop func(context.Context) error, err error) {
	var w notify.Watcher
	// Editors and kubelets replace files: the directory is what lasts.
	sub, err := w.Watch(filepath.Dir(f.path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.what, err)
	}
	stopped := c.run(f.what, func(ctx context.Context) error {
		for {
			f.look(c)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-sub.C:
			}
		}
	})
	return func(ctx context.Context) error {
		defer sub.Close()
		return stopped(ctx)
	}, nil
}

// followAll follows files until it is stopped.
func (c *Cluster) followAll(files []*followed) (stop func(context.Context) error, _ error) {
	var stops []func(context.Context) error
	stop = func(ctx context.Context) error {
		var errs []error
		for _, s := range stops {
			errs = append(errs, s(ctx))
		}
		return errors.Join(errs...)
	}
	for _, f := range files {
		one, err := c.follow(f)
		if err != nil {
			return nil, errors.Join(err, stop(context.Background()))
		}
		stops = append(stops, one)
	}
	return stop, nil
}

// look takes the file over if it holds something else than before.
func (f *followed) look(c *Cluster) {
	data, err := os.ReadFile(f.path)
	switch {
	case err == nil:
		f.unread = ""
	case err.Error() == f.unread: // other files of the directory changed
		return
	default:
		f.unread = err.Error()
	}
	if err == nil {
		if bytes.Equal(data, f.last) {
			return
		}
		f.last = data
		err = f.take(data)
	}
	if err != nil {
		f.wrong.Add(1)
		c.log.Error(f.what+" is not reloaded", "file", f.path, "error", err)
		return
	}
	f.succeeded.Add(1)
	c.log.Info(f.what+" reloaded", "file", f.path)
}

// write writes how often the file was taken over, by upstream's name for that.
func (f *followed) write(w io.Writer, subsystem string) {
	name := "apiserver_" + subsystem + "_config_controller_automatic_reloads_total"
	fmt.Fprintf(w, "# HELP %s [BETA] Total number of automatic reloads of %s split by status and apiserver identity.\n# TYPE %s counter\n", name, f.what, name)
	fmt.Fprintf(w, "%s{status=\"failure\"} %d\n%s{status=\"success\"} %d\n", name, f.wrong.Load(), name, f.succeeded.Load())
}
