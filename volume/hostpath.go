package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
)

// checkHostPath holds a hostPath volume to its type, making what the type says shall be made. The messages
// are upstream's.
func checkHostPath(v *corev1.HostPathVolumeSource) error {
	if v.Type == nil || *v.Type == corev1.HostPathUnset {
		return nil
	}
	switch *v.Type {
	case corev1.HostPathDirectoryOrCreate:
		if err := os.MkdirAll(v.Path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return checkType(v.Path, "directory", fs.ModeDir)
	case corev1.HostPathFileOrCreate:
		if err := makeFile(v.Path); err != nil {
			return err
		}
		return checkType(v.Path, "file", 0)
	case corev1.HostPathDirectory:
		return checkType(v.Path, "directory", fs.ModeDir)
	case corev1.HostPathFile:
		return checkType(v.Path, "file", 0)
	case corev1.HostPathSocket:
		return checkType(v.Path, "socket file", fs.ModeSocket)
	case corev1.HostPathCharDev:
		return checkType(v.Path, "character device", fs.ModeDevice|fs.ModeCharDevice)
	case corev1.HostPathBlockDev:
		return checkType(v.Path, "block device", fs.ModeDevice)
	}
	return fmt.Errorf("%s is an invalid volume type", *v.Type)
}

// checkType follows links, as the mount will.
func checkType(path, what string, want fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Type() != want {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", path, what)
	}
	return nil
}

// makeFile makes an empty file that is absent, but no directories.
func makeFile(path string) error {
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
