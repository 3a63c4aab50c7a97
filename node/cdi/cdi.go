// Package cdi gives containers the devices of specifications of the CNCF Container Device Interface.
//
// It owns how such specifications are read, and what they change in the description of a container.
package cdi

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/container"
)

// Dirs are where CDI specifications are, those of later ones win (CNCF Container Device Interface).
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// spec is a CDI specification, as far as containers here can follow it.
type spec struct {
	Kind           string `json:"kind"`
	ContainerEdits edits  `json:"containerEdits"`
	Devices        []struct {
		Name           string `json:"name"`
		ContainerEdits edits  `json:"containerEdits"`
	} `json:"devices"`
}

// hooks are the moments at which a specification may have programs run.
var hooks = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

type edits struct {
	Env         []string `json:"env"`
	DeviceNodes []struct {
		Path        string `json:"path"`
		HostPath    string `json:"hostPath"`
		Permissions string `json:"permissions"`
		// FileMode is a number, of which the permission bits count.
		FileMode *uint32 `json:"fileMode"`
		UID      *uint32 `json:"uid"`
		GID      *uint32 `json:"gid"`
	} `json:"deviceNodes"`
	Mounts []struct {
		HostPath      string   `json:"hostPath"`
		ContainerPath string   `json:"containerPath"`
		Options       []string `json:"options"`
	} `json:"mounts"`
	Hooks []struct {
		HookName string   `json:"hookName"`
		Path     string   `json:"path"`
		Args     []string `json:"args"`
		Env      []string `json:"env"`
		Timeout  int      `json:"timeout"`
	} `json:"hooks"`
	AdditionalGIDs []uint32 `json:"additionalGids"`
}

// Inject adds CDI devices ("vendor.com/class=name") to the description of a container. It reads the specifications of dirs anew.
// An error names the devices that no specification has.
func Inject(cfg *container.ContainerConfig, ids []string, dirs []string) error {
	if len(ids) == 0 {
		return nil
	}
	specs, err := readSpecs(dirs)
	if err != nil {
		return err
	}
	done := map[*spec]bool{}
	var missing []string
	for _, id := range ids {
		s, one := find(specs, id)
		if s == nil {
			missing = append(missing, id)
			continue
		}
		if !done[s] {
			done[s] = true
			if err := s.ContainerEdits.apply(cfg, id); err != nil {
				return err
			}
		}
		if err := one.apply(cfg, id); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("CDI device injection failed: unresolvable CDI devices %s", strings.Join(missing, ", "))
	}
	return nil
}

// readSpecs reads all specifications, those that win last.
func readSpecs(dirs []string) ([]*spec, error) {
	var all []*spec
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // there need not be any
		}
		for _, f := range files {
			if ext := filepath.Ext(f.Name()); ext != ".json" && ext != ".yaml" {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				continue // it was removed meanwhile
			}
			s := &spec{}
			if err := yaml.Unmarshal(data, s); err != nil {
				return nil, fmt.Errorf("CDI specification %s: %w", filepath.Join(dir, f.Name()), err)
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// find gives the specification of a device, the last that has it, and the device's own edits.
func find(specs []*spec, id string) (*spec, *edits) {
	kind, name, ok := strings.Cut(id, "=")
	if !ok {
		return nil, nil
	}
	for _, s := range slices.Backward(specs) {
		for i := range s.Devices {
			if s.Kind == kind && s.Devices[i].Name == name {
				return s, &s.Devices[i].ContainerEdits
			}
		}
	}
	return nil, nil
}

func (e *edits) apply(cfg *container.ContainerConfig, id string) error {
	for _, h := range e.Hooks {
		if !slices.Contains(hooks, h.HookName) {
			return fmt.Errorf("CDI device injection failed: %s: invalid hook name %q", id, h.HookName)
		}
		if !filepath.IsAbs(h.Path) {
			return fmt.Errorf("CDI device injection failed: %s: invalid hook, path %q is not absolute", id, h.Path)
		}
		cfg.Hooks = append(cfg.Hooks, container.Hook{Name: h.HookName, Path: h.Path, Args: h.Args, Env: h.Env, Timeout: max(h.Timeout, 0)})
	}
	cfg.Env = append(cfg.Env, e.Env...)
	for _, d := range e.DeviceNodes {
		host := d.HostPath
		if host == "" {
			host = d.Path
		}
		cfg.Devices = append(cfg.Devices, container.Device{HostPath: host, ContainerPath: d.Path, Permissions: d.Permissions,
			UID: d.UID, GID: d.GID, Mode: d.FileMode})
	}
	for _, m := range e.Mounts {
		mount := container.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath}
		for _, o := range m.Options {
			switch o {
			case "ro":
				mount.ReadOnly = true
			case "noexec", "nosuid", "nodev":
				mount.Options = append(mount.Options, o)
			}
		}
		cfg.Mounts = append(cfg.Mounts, mount)
	}
	cfg.User.Groups = append(cfg.User.Groups, e.AdditionalGIDs...)
	return nil
}
