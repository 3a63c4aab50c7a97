package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/linux/mount"
)

// Destroy kills and removes everything that a runtime with these options ever made, whatever
// state its records are in: processes, cgroups, mounts, namespaces, and the
// directories with all images. No process may have the runtime open. It is idempotent.
func Destroy(ctx context.Context, o Options) error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	images := o.Images.Dir
	if images == "" {
		images = filepath.Join(filepath.Dir(dir), "images")
	}
	root := o.CgroupRoot
	if root == "" {
		root = defaultRoot(dir)
	}
	sys, err := cgroup.Detect()
	if err != nil {
		return err
	}
	var errs []error
	// The shim is in there too. What it supervises goes first or with it: nothing outside remembers it.
	if err := sys.Group(root).Remove(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, d := range []string{dir, images} {
		if err := mount.UnmountBelow(d); err != nil {
			errs = append(errs, err)
			continue // what is still mounted must not be removed with it
		}
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the container runtime in %s: %w", dir, err)
	}
	return nil
}
