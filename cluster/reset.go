package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/container/embedded"
	"coracle.dev/coracle/volume"
)

// StopContainers ends the containers that a crashed instance left on a data directory, and removes
// its network. It returns how many ran. A directory without an instance has none.
func StopContainers(ctx context.Context, dataDir string) (int, error) {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return 0, err
	}
	id, err := readIdentity(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s, err := openState(dataDir, nil)
	if err != nil {
		return 0, err
	}
	defer s.close()
	count, err := removeContainers(ctx, dataDir, id)
	if os.Getuid() != 0 {
		return count, err
	}
	return count, errors.Join(err, removePolicies(id.ID), removeNetwork(id))
}

// destroy removes what an instance has outside of its directory, or mounted in it, whatever state its records are in.
func destroy(ctx context.Context, dataDir string, id identity) error {
	s, err := openState(dataDir, nil)
	if err != nil {
		return err
	}
	defer s.close()
	if os.Getuid() != 0 {
		return nil // without root it has made nothing but files
	}
	return errors.Join(embedded.Destroy(ctx, runtimeOptions(dataDir, id.ID)), removeVolumes(ctx, dataDir), removePolicies(id.ID), removeNetwork(id))
}

// removeVolumes unmounts and removes what the pods' volumes left on a data directory.
func removeVolumes(ctx context.Context, dataDir string) error {
	volumes := volume.New(volume.Config{Root: filepath.Join(dataDir, "pods"), Log: slog.New(slog.DiscardHandler)})
	_, err := volumes.Orphans(ctx, func(types.UID) bool { return false })
	return err
}

// Reset removes everything that an instance made: containers, mounts, links, rules, cgroups, its entry
// in the kubeconfig, and the data directory. No process may run on it. kubeconfig names the
// file if it is not the one that Start merged into.
func Reset(ctx context.Context, dataDir, kubeconfig string) error {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dataDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := belongsToUs(dataDir); err != nil {
		return err
	}
	id, err := readIdentity(dataDir)
	switch {
	case err == nil:
		if err := destroy(ctx, dataDir, id); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged):
		return err
	}
	if os.Getuid() == 0 {
		if err := unreserve(dataDir); err != nil {
			return err
		}
	}
	if err := forgetKubeconfig(dataDir, id.ID, kubeconfig); err != nil {
		return err
	}
	return os.RemoveAll(dataDir)
}

// belongsToUs refuses to remove a directory that holds something else.
func belongsToUs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" || e.Name() == "instance.json" {
			return nil
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return fmt.Errorf("%s is not a data directory of coracle: nothing was removed", dir)
}

func forgetKubeconfig(dataDir, id, path string) error {
	if path == "" {
		data, err := os.ReadFile(filepath.Join(dataDir, "kubeconfig.path"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		path = strings.TrimSpace(string(data))
	}
	return removeKubeconfig(path, contextName(dataDir, id))
}
