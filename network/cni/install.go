package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Installation says where runtimes look for plugins and configurations.
type Installation struct {
	// Program is the path of this program, DataDir that of the instance.
	Program, DataDir string
	// BinDir gets a link to the program (/opt/cni/bin), ConfDir the configuration (/etc/cni/net.d).
	BinDir, ConfDir string
	// Network is its name.
	Network string
}

// Install makes a link to the program and a list of configurations with this plugin alone. What an earlier one wrote is replaced; a file that is
// not ours is not. It returns the paths of both.
func Install(in Installation) (program, conf string, err error) {
	program, conf = filepath.Join(in.BinDir, PluginType), filepath.Join(in.ConfDir, "10-"+in.Network+".conflist")
	if info, err := os.Lstat(program); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return "", "", fmt.Errorf("%s is there and no link: move it away, or choose another directory", program)
	}
	list := map[string]any{"cniVersion": "1.1.0", "name": in.Network,
		"plugins": []map[string]any{{"type": PluginType, "dataDir": in.DataDir}}}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return "", "", err
	}
	for _, dir := range []string{in.BinDir, in.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", "", err
		}
	}
	if err := os.Remove(program); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if err := os.Symlink(in.Program, program); err != nil {
		return "", "", err
	}
	temporary := conf + ".new"
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return "", "", err
	}
	return program, conf, os.Rename(temporary, conf)
}
