package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// The names by which a volume is switched, the same as upstream's, so that programs that watch
// for them work.
const (
	dataLink    = "..data"
	dataLinkNew = "..data_tmp"
	stampLayout = "..2006_01_02_15_04_05."
)

// writeFiles brings a volume's directory to hold exactly a payload, in one step for whoever reads it:
//
//	dir/..2026_01_02_15_04_05.123/a/b   the files
//	dir/..data -> ..2026_01_02_15_04_05.123
//	dir/a -> ..data/a
//
// A new directory of files is written in full, own is called on it, and then ..data is replaced by
// rename. It reports whether anything changed. A crash at any point leaves either the
// old or the new content, and the next call removes what lies about.
func writeFiles(dir string, files payload, now time.Time, own func(path string) error) (bool, error) {
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil && holds(filepath.Join(dir, old), files) {
		// The links may be missing after a crash between the rename and their making.
		return false, errors.Join(link(dir, files), removeStale(dir, files, old))
	}
	fresh, err := os.MkdirTemp(dir, now.UTC().Format(stampLayout))
	if err != nil {
		return false, err
	}
	keep := false
	defer func() {
		if !keep {
			os.RemoveAll(fresh)
		}
	}()
	if err := fill(fresh, files); err != nil {
		return false, err
	}
	if own != nil {
		if err := own(fresh); err != nil {
			return false, err
		}
	}
	next := filepath.Join(dir, dataLinkNew)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return false, err
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	keep = true
	return true, errors.Join(link(dir, files), removeStale(dir, files, filepath.Base(fresh)))
}

// fill writes the files of a payload below dir.
func fill(dir string, files payload) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for p, f := range files {
		target := filepath.Join(dir, filepath.FromSlash(p))
		if err := mkdirAll(dir, path.Dir(p)); err != nil {
			return err
		}
		if err := os.WriteFile(target, f.data, 0o600); err != nil {
			return err
		}
		// Chmod beside the open, for the umask would take bits away; after Lchown, for
		// that may clear some.
		if f.user != nil {
			if err := os.Lchown(target, int(*f.user), -1); err != nil {
				return err
			}
		}
		if err := os.Chmod(target, fs.FileMode(f.mode)&fs.ModePerm|special(f.mode)); err != nil {
			return err
		}
	}
	return nil
}

// special translates the set-id and sticky bits.
func special(mode int32) fs.FileMode {
	var m fs.FileMode
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// mkdirAll makes the directories of a relative path with mode 0755 whatever the umask.
func mkdirAll(base, rel string) error {
	if rel == "." {
		return nil
	}
	if err := mkdirAll(base, path.Dir(rel)); err != nil {
		return err
	}
	full := filepath.Join(base, filepath.FromSlash(rel))
	err := os.Mkdir(full, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(full, 0o755)
}

// holds tells whether a directory has exactly the files of a payload. The group's bits
// are not compared, because ownership may have added to them.
func holds(dir string, files payload) bool {
	found := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		f, ok := files[filepath.ToSlash(rel)]
		if !ok || !d.Type().IsRegular() {
			return errDiffers
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		const compared = 0o707
		if info.Size() != int64(len(f.data)) || info.Mode().Perm()&compared != fs.FileMode(f.mode)&compared {
			return errDiffers
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if string(data) != string(f.data) {
			return errDiffers
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}

var errDiffers = errors.New("differs")

// tops gives the first elements of a payload's paths.
func tops(files payload) map[string]bool {
	out := map[string]bool{}
	for p := range files {
		top, _, _ := strings.Cut(p, "/")
		out[top] = true
	}
	return out
}

// link makes the names that consumers use.
func link(dir string, files payload) error {
	names := make([]string, 0, len(files))
	for top := range tops(files) {
		names = append(names, top)
	}
	sort.Strings(names)
	for _, top := range names {
		target := path.Join(dataLink, top)
		at := filepath.Join(dir, top)
		if have, err := os.Readlink(at); err == nil && have == target {
			continue
		}
		if err := os.Symlink(target, at); err != nil {
			return fmt.Errorf("link %s: %w", top, err)
		}
	}
	return nil
}

// removeStale takes away links to files that are no more, and directories of files that
// are not in use. It touches nothing that this package did not make.
func removeStale(dir string, files payload, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	wanted := tops(files)
	var errs []error
	for _, e := range entries {
		name := e.Name()
		at := filepath.Join(dir, name)
		switch {
		case name == dataLink || name == current || wanted[name]:
		case e.IsDir() && strings.HasPrefix(name, "..2"):
			errs = append(errs, os.RemoveAll(at))
		case e.Type()&fs.ModeSymlink != 0:
			if to, err := os.Readlink(at); err == nil && (name == dataLinkNew || strings.HasPrefix(to, dataLink+"/")) {
				errs = append(errs, os.Remove(at))
			}
		}
	}
	return errors.Join(errs...)
}
