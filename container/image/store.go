// Package image keeps images: it pulls them from registries, imports them from tars,
// unpacks their layers, gives containers root filesystems made of them, and
// collects what nobody uses. It owns its directory, one process at a time. It never runs
// anything and knows no containers but by who tells it which images are in use.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/mount"
)

// Options say how a store works.
type Options struct {
	// Dir is the store's directory, made if missing.
	Dir string
	Log *slog.Logger
	Now func() time.Time
	// InUse tells whether a container needs an image (by ID). Nil: none does.
	InUse func(id string) bool
	// Limits bound layers, DefaultLimits if zero.
	Limits Limits
	// Mirrors are tried before the registry they stand for ("docker.io", or Everywhere), in order:
	// "https://mirror:5000", "http://127.0.0.1:5000/prefix".
	Mirrors map[string][]string
	// PlainHTTP lists registries ("host:port") that are spoken to without TLS, beside those on
	// this machine's loopback.
	PlainHTTP []string
	// NoOverlay copies layers even where overlays work.
	NoOverlay bool
}

// Store implements container.Images. It is safe for concurrent use.
type Store struct {
	dir      string
	log      *slog.Logger
	now      func() time.Time
	inUse    func(string) bool
	limits   Limits
	mirrors  map[string][]string
	plain    map[string]bool
	overlays mount.Overlays

	mu     sync.Mutex // guards what follows
	images map[string]*record
	layers map[string]*layer // by chain ID
	pulls  map[string]*pull
	// holds counts who is about to use an image that no container shows yet.
	holds map[string]int
	trash int // numbers what is being removed
}

// record is one image on disk.
type record struct {
	ID      string                `json:"id"`
	Names   []string              `json:"names,omitempty"`
	Digests []string              `json:"digests,omitempty"`
	Layers  []layerInfo           `json:"layers"`
	Pinned  bool                  `json:"pinned,omitempty"`
	Created time.Time             `json:"created"`
	Pulled  time.Time             `json:"pulled"`
	Used    time.Time             `json:"used"`
	Config  container.ImageConfig `json:"config"`
}

func (r *record) chains() []string {
	out := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		out[i] = l.Chain
	}
	return out
}

// Open opens or makes a store. What an interrupted pull left is removed.
func Open(o Options) (*Store, error) {
	s := &Store{
		dir: o.Dir, log: o.Log, now: o.Now, inUse: o.InUse, limits: o.Limits, mirrors: o.Mirrors,
		plain: map[string]bool{}, images: map[string]*record{}, layers: map[string]*layer{}, pulls: map[string]*pull{}, holds: map[string]int{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.inUse == nil {
		s.inUse = func(string) bool { return false }
	}
	if s.limits == (Limits{}) {
		s.limits = DefaultLimits
	}
	for _, host := range o.PlainHTTP {
		s.plain[host] = true
	}
	for _, name := range []string{"layers", "images", "empty", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o711); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(s.dir, "empty"), 0o755); err != nil { // the root of images without layers
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.probe(o.NoOverlay); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, s.sweep()
}

// probe finds out what overlays can do here, and remembers it in the store, as the form of
// its layers depends on it.
func (s *Store) probe(none bool) error {
	marker := filepath.Join(s.dir, "layout")
	have, err := os.ReadFile(marker)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("image store: %w", err)
	}
	if !none && string(have) != "copied" {
		if s.overlays, err = mount.ProbeOverlay(filepath.Join(s.dir, "tmp")); err != nil {
			s.log.Warn("overlay filesystems do not work here: every container gets a copy of its image", "error", err)
		}
	}
	layout := "overlay"
	if s.overlays == mount.OverlaysNone {
		layout = "copied"
	}
	if string(have) == layout {
		return nil
	}
	if len(have) > 0 {
		return fmt.Errorf("image store: %s was made with %s layers, which do not work here any more: remove the directory", s.dir, have)
	}
	return os.WriteFile(marker, []byte(layout), 0o644)
}

func (s *Store) load() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "images", e.Name())
		if !strings.HasSuffix(e.Name(), ".json") {
			_ = os.Remove(path)
			continue
		}
		r := &record{}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, r)
		}
		if err == nil {
			err = s.complete(r)
		}
		if err != nil {
			s.log.Warn("dropping a damaged image", "file", path, "error", err)
			_ = os.Remove(path)
			continue
		}
		s.images[r.ID] = r
		for _, l := range r.Layers {
			s.retain(l)
		}
	}
	return nil
}

// complete checks that all layers of an image are there.
func (s *Store) complete(r *record) error {
	if id, ok := idOf(r.ID); !ok || id != r.ID || len(r.ID) != 71 {
		return fmt.Errorf("invalid ID %q", r.ID)
	}
	for _, l := range r.Layers {
		if _, err := os.Stat(s.layerFS(l.Chain)); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what an interrupted process left: layers that no image has, and temporary files.
func (s *Store) sweep() error {
	needed := map[string]bool{}
	for chain := range s.layers {
		needed[filepath.Base(s.layerDir(chain))] = true
	}
	tmp := filepath.Join(s.dir, "tmp")
	if err := mount.UnmountBelow(tmp); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Join(s.dir, "layers"), tmp} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		for _, e := range entries {
			if dir != tmp && needed[e.Name()] {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("image store: %w", err)
			}
		}
	}
	return nil
}

// save writes a record for good. With sync the layers reach the disk first.
func (s *Store) save(r *record, sync bool) error {
	path := filepath.Join(s.dir, "images", strings.TrimPrefix(r.ID, "sha256:")+".json")
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	_, err = f.Write(data)
	if err == nil && sync {
		err = unix.Syncfs(int(f.Fd()))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}

func (r *record) image() container.Image {
	img := container.Image{
		ID: r.ID, Names: slices.Clone(r.Names), Digests: slices.Clone(r.Digests), Pinned: r.Pinned,
		Created: r.Created, Pulled: r.Pulled, Used: r.Used, Config: r.Config,
	}
	for _, l := range r.Layers {
		img.Size += l.Bytes
	}
	return img
}

// Resolve implements container.Images.
func (s *Store) Resolve(ref string) (container.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(ref)
	if err != nil {
		return container.Image{}, err
	}
	return r.image(), nil
}

// find needs mu.
func (s *Store) find(ref string) (*record, error) {
	if id, ok := idOf(ref); ok {
		var found *record
		for have, r := range s.images {
			if strings.HasPrefix(have, id) {
				if found != nil {
					return nil, fmt.Errorf("%w: %q is ambiguous", container.ErrImageNotFound, ref)
				}
				found = r
			}
		}
		if found != nil {
			return found, nil
		}
		if strings.HasPrefix(ref, "sha256:") {
			return nil, fmt.Errorf("%w: %s", container.ErrImageNotFound, ref)
		}
	}
	name, err := ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", container.ErrImageNotFound, err)
	}
	full := name.String()
	for _, r := range s.images {
		if slices.Contains(r.Names, full) || slices.Contains(r.Digests, full) {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", container.ErrImageNotFound, full)
}

// Hold resolves an image and keeps it from being removed until the returned function is called.
func (s *Store) Hold(ref string) (container.Image, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(ref)
	if err != nil {
		return container.Image{}, nil, err
	}
	s.holds[r.ID]++
	r.Used = s.now()
	if err := s.save(r, false); err != nil {
		s.log.Warn("recording the use of an image", "image", r.ID, "error", err)
	}
	id := r.ID
	release := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.holds[id]--; s.holds[id] == 0 {
			delete(s.holds, id)
		}
	})
	return r.image(), release, nil
}

// List implements container.Images.
func (s *Store) List() []container.Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]container.Image, 0, len(s.images))
	for _, r := range s.images {
		out = append(out, r.image())
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Remove implements container.Images.
func (s *Store) Remove(ctx context.Context, ref string) error {
	s.mu.Lock()
	r, err := s.find(ref)
	if err != nil {
		s.mu.Unlock()
		if errors.Is(err, container.ErrImageNotFound) {
			return nil
		}
		return err
	}
	var trash []string
	if left, ok := s.without(r, ref); ok {
		s.images[r.ID] = left
		err = s.save(left, false)
	} else {
		trash, err = s.drop(r)
	}
	s.mu.Unlock()
	return errors.Join(err, emptyTrash(trash))
}

// emptyTrash removes directories that nothing refers to any more.
func emptyTrash(trash []string) error {
	var errs []error
	for _, dir := range trash {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// without is a record that lost one of several names; false if the image itself is meant, or was its last name.
func (s *Store) without(r *record, ref string) (*record, bool) {
	if id, ok := idOf(ref); ok && strings.HasPrefix(r.ID, id) {
		return nil, false
	}
	name, err := ParseReference(ref)
	if err != nil {
		return nil, false
	}
	left := *r
	left.Names = slices.DeleteFunc(slices.Clone(r.Names), func(n string) bool { return n == name.String() })
	left.Digests = slices.DeleteFunc(slices.Clone(r.Digests), func(n string) bool { return n == name.String() })
	if name.Digest == "" && !slices.ContainsFunc(left.Names, func(n string) bool { return strings.HasPrefix(n, name.Name+":") }) {
		// The digests of a repository go with its last tag.
		left.Digests = slices.DeleteFunc(left.Digests, func(n string) bool { return strings.HasPrefix(n, name.Name+"@") })
	}
	return &left, len(left.Names)+len(left.Digests) > 0
}

// drop removes an image's record, and returns directories to empty outside of the lock. It needs mu.
func (s *Store) drop(r *record) ([]string, error) {
	if s.holds[r.ID] > 0 || s.inUse(r.ID) {
		return nil, fmt.Errorf("%w: %s", container.ErrImageInUse, r.ID)
	}
	path := filepath.Join(s.dir, "images", strings.TrimPrefix(r.ID, "sha256:")+".json")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("image store: %w", err)
	}
	delete(s.images, r.ID)
	return s.releaseLayers(r.chains()), nil
}

// Usage implements container.Images.
func (s *Store) Usage() container.ImageUsage {
	u := container.ImageUsage{Time: s.now(), Path: s.dir}
	s.mu.Lock()
	seen := map[string]bool{}
	for _, r := range s.images {
		for _, l := range r.Layers {
			if !seen[l.Chain] {
				seen[l.Chain] = true
				u.Bytes += uint64(l.Bytes)
				u.Inodes += uint64(l.Entries)
			}
		}
	}
	u.Images = len(s.images)
	s.mu.Unlock()
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err == nil {
		u.FSCapacity, u.FSAvailable = fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	}
	return u
}

// GC implements container.Images.
func (s *Store) GC(ctx context.Context, p container.GCPolicy) (container.GCResult, error) {
	var res container.GCResult
	now := p.Now
	if now.IsZero() {
		now = s.now()
	}
	all := p.HighPercent == 0 && p.MaxAge == 0
	full := p.HighPercent > 0 && s.above(p.HighPercent) > 0
	for _, img := range s.unused(now, p.MinAge) {
		if err := ctx.Err(); err != nil {
			return res, err
		}
		old := p.MaxAge > 0 && now.Sub(lastUse(img)) > p.MaxAge
		if !all && !old && !(full && s.above(p.LowPercent) > 0) {
			continue
		}
		before := s.Usage().Bytes
		if err := s.Remove(ctx, img.ID); err != nil {
			if errors.Is(err, container.ErrImageInUse) {
				continue
			}
			return res, err
		}
		res.Removed = append(res.Removed, img.ID)
		res.Freed += before - s.Usage().Bytes
	}
	if full {
		res.Short = s.above(p.LowPercent)
	}
	return res, nil
}

// above is by how many bytes the filesystem is fuller than a percentage.
func (s *Store) above(percent int) uint64 {
	u := s.Usage()
	used := u.FSCapacity - min(u.FSCapacity, u.FSAvailable)
	mark := u.FSCapacity / 100 * uint64(percent)
	if used <= mark {
		return 0
	}
	return used - mark
}

func lastUse(img container.Image) time.Time {
	if img.Used.After(img.Pulled) {
		return img.Used
	}
	return img.Pulled
}

// unused lists images that may go, the least recently used first.
func (s *Store) unused(now time.Time, minAge time.Duration) []container.Image {
	var out []container.Image
	for _, img := range s.List() {
		if img.Pinned || s.inUse(img.ID) || now.Sub(lastUse(img)) < minAge {
			continue
		}
		out = append(out, img)
	}
	sort.SliceStable(out, func(i, j int) bool { return lastUse(out[i]).Before(lastUse(out[j])) })
	return out
}
