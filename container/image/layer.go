package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"coracle.dev/coracle/linux/mount"
)

// layerInfo is one unpacked layer as recorded.
type layerInfo struct {
	// Chain names the layer with all below it (the OCI image specification's ChainID).
	Chain   string `json:"chain"`
	Bytes   int64  `json:"bytes"`
	Entries int64  `json:"entries"`
}

// layer is a layer that is there or being made. It goes with its last reference.
type layer struct {
	chain string
	refs  int // images and those who are about to make one; guarded by Store.mu
	// token is held by who makes the layer; complete and info are its holder's.
	token    chan struct{}
	complete bool
	info     layerInfo
}

// retain adds a reference to a complete layer. It needs mu, or to be alone.
func (s *Store) retain(info layerInfo) {
	l := s.layers[info.Chain]
	if l == nil {
		l = &layer{chain: info.Chain, token: make(chan struct{}, 1), complete: true, info: info}
		s.layers[info.Chain] = l
	}
	l.refs++
}

// lockLayer references a layer and waits until nobody else makes it.
func (s *Store) lockLayer(ctx context.Context, chain string) (*layer, error) {
	s.mu.Lock()
	l := s.layers[chain]
	if l == nil {
		l = &layer{chain: chain, token: make(chan struct{}, 1)}
		s.layers[chain] = l
	}
	l.refs++
	s.mu.Unlock()
	select {
	case l.token <- struct{}{}:
		return l, nil
	case <-ctx.Done():
		s.giveBack([]string{chain})
		return nil, context.Cause(ctx)
	}
}

func (s *Store) unlockLayer(l *layer) { <-l.token }

// releaseLayers drops one reference each, and moves layers without any out of the way; the caller
// empties the returned directories without the lock. It needs mu.
func (s *Store) releaseLayers(chains []string) []string {
	var trash []string
	for i := len(chains) - 1; i >= 0; i-- {
		l := s.layers[chains[i]]
		if l == nil {
			continue
		}
		if l.refs--; l.refs > 0 {
			continue
		}
		delete(s.layers, l.chain)
		s.trash++
		to := filepath.Join(s.dir, "tmp", fmt.Sprintf("trash-%d", s.trash))
		if os.Rename(s.layerDir(l.chain), to) == nil {
			trash = append(trash, to)
		}
	}
	return trash
}

// has says whether a layer is complete.
func (s *Store) has(chain string) bool {
	s.mu.Lock()
	l := s.layers[chain]
	s.mu.Unlock()
	if l == nil {
		return false
	}
	select {
	case l.token <- struct{}{}:
		defer s.unlockLayer(l)
		return l.complete
	default:
		return false
	}
}

// chainIDs turns the digests of uncompressed layers into chain IDs.
func chainIDs(diffs []string) []string {
	out := make([]string, len(diffs))
	for i, d := range diffs {
		if i == 0 {
			out[i] = d
			continue
		}
		sum := sha256.Sum256([]byte(out[i-1] + " " + d))
		out[i] = "sha256:" + hex.EncodeToString(sum[:])
	}
	return out
}

func (s *Store) layerDir(chain string) string {
	return filepath.Join(s.dir, "layers", strings.TrimPrefix(chain, "sha256:"))
}

// layerFS is where a layer's own files are (all files, where there are no overlays).
func (s *Store) layerFS(chain string) string { return filepath.Join(s.layerDir(chain), "fs") }

// stack lists the directories of a chain, topmost first, as overlays want them.
func (s *Store) stack(chains []string) []string {
	if len(chains) == 0 {
		return []string{filepath.Join(s.dir, "empty")}
	}
	if s.overlays == mount.OverlaysNone {
		return []string{s.layerFS(chains[len(chains)-1])}
	}
	out := make([]string, 0, len(chains))
	for i := len(chains) - 1; i >= 0; i-- {
		out = append(out, s.layerFS(chains[i]))
	}
	return out
}

func (s *Store) mountOverlay(target string, layers []string, upper, work string) error {
	if s.overlays == mount.OverlaysNew {
		return mount.Overlay(target, layers, upper, work)
	}
	return mount.OverlayOld(target, layers, upper, work)
}

// addLayer unpacks a layer on top of below, verifies that its uncompressed content is diff, and
// returns what it came to. A layer that is there already is not touched. One goroutine adds one chain at a time.
func (s *Store) addLayer(ctx context.Context, below []string, chain, diff string, compressed io.Reader) (layerInfo, error) {
	final := s.layerDir(chain)
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "layer-")
	if err != nil {
		return layerInfo{}, err
	}
	defer os.RemoveAll(tmp)
	for _, name := range []string{"fs", "work", "merged"} {
		if err := mkdir(filepath.Join(tmp, name)); err != nil {
			return layerInfo{}, err
		}
	}
	target, release, err := s.layerTarget(tmp, below)
	if err != nil {
		return layerInfo{}, err
	}
	got, err := unpackVerified(ctx, target, compressed, diff, s.limits)
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		return layerInfo{}, err
	}
	_ = os.RemoveAll(filepath.Join(tmp, "work"))
	_ = os.Remove(filepath.Join(tmp, "merged"))
	if err := os.Rename(tmp, final); err != nil {
		return layerInfo{}, err
	}
	return layerInfo{Chain: chain, Bytes: got.Bytes, Entries: got.Entries}, nil
}

// layerTarget gives the directory in which a new layer appears with all below it, so that whiteouts,
// links and missing parents mean what they meant when the layer was made.
func (s *Store) layerTarget(tmp string, below []string) (string, func() error, error) {
	fs := filepath.Join(tmp, "fs")
	none := func() error { return nil }
	if len(below) == 0 {
		return fs, none, nil
	}
	if s.overlays == mount.OverlaysNone {
		return fs, none, CopyTree(s.layerFS(below[len(below)-1]), fs)
	}
	merged := filepath.Join(tmp, "merged")
	if err := s.mountOverlay(merged, s.stack(below), fs, filepath.Join(tmp, "work")); err != nil {
		return "", nil, err
	}
	return merged, func() error { return mount.Unmount(merged) }, nil
}

// unpackVerified unpacks a compressed or plain tar and compares its digest.
func unpackVerified(ctx context.Context, dir string, compressed io.Reader, diff string, limits Limits) (unpacked, error) {
	plain, done, err := decompress(&contextReader{ctx, compressed})
	if err != nil {
		return unpacked{}, err
	}
	defer done()
	v := &digestReader{r: plain, hash: sha256.New()}
	got, err := unpack(dir, v, limits)
	if err != nil {
		return got, err
	}
	// A tar ends before its padding does.
	if _, err := io.Copy(io.Discard, io.LimitReader(v, 64<<20)); err != nil {
		return got, err
	}
	if sum := v.digest(); sum != diff {
		return got, fmt.Errorf("layer is damaged: its content is %s and should be %s", sum, diff)
	}
	return got, nil
}

// decompress finds out how r is compressed and undoes it.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		gz, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return gz, func() { gz.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X'}):
		return nil, nil, errors.New("bzip2 and xz are not supported: use gzip, zstd or none")
	}
	return br, func() {}, nil
}

type digestReader struct {
	r    io.Reader
	hash hash.Hash
}

func (d *digestReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	return n, err
}

func (d *digestReader) digest() string { return "sha256:" + hex.EncodeToString(d.hash.Sum(nil)) }

// contextReader ends reading when ctx is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// mkdir makes a directory of mode 0755, whatever this process's umask.
func mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// Prepare makes a root filesystem of an image in dir, which must exist and be empty, and returns its path.
// It is an overlay with the container's own files in dir/upper, or a copy where there are no overlays.
func (s *Store) Prepare(id, dir string) (string, error) {
	s.mu.Lock()
	rec := s.images[id]
	s.mu.Unlock()
	if rec == nil {
		return "", fmt.Errorf("image %s is gone", id)
	}
	rootfs, upper, work := filepath.Join(dir, "rootfs"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{rootfs, upper, work} {
		if err := mkdir(d); err != nil {
			return "", err
		}
	}
	layers := s.stack(rec.chains())
	if s.overlays == mount.OverlaysNone {
		return rootfs, CopyTree(layers[0], rootfs)
	}
	// The root directory of a container has the mode and owner that the image gives it.
	if err := copyAttributes(layers[0], upper); err != nil {
		return "", err
	}
	return rootfs, s.mountOverlay(rootfs, layers, upper, work)
}

// MountReadOnly shows an image's files at target, which must be an existing directory.
func (s *Store) MountReadOnly(id, target string) error {
	s.mu.Lock()
	rec := s.images[id]
	s.mu.Unlock()
	if rec == nil {
		return fmt.Errorf("image %s is gone", id)
	}
	layers := s.stack(rec.chains())
	if len(layers) == 1 {
		return mount.BindReadOnly(layers[0], target)
	}
	return s.mountOverlay(target, layers, "", "")
}

// Release undoes Prepare. dir itself stays.
func (s *Store) Release(dir string) error {
	rootfs := filepath.Join(dir, "rootfs")
	if err := mount.Unmount(rootfs); err != nil {
		return err
	}
	for _, name := range []string{"rootfs", "upper", "work"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
