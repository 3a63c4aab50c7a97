package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"coracle.dev/coracle/container"
)

// maxArchiveEntries bounds how many members an archive may have.
const maxArchiveEntries = 100_000

// Annotations that name an image in an OCI layout: containerd's full name, and the image specification's tag.
const (
	annotationName = "io.containerd.image.name"
	annotationTag  = "org.opencontainers.image.ref.name"
)

// Import implements container.Images.
func (s *Store) Import(ctx context.Context, r io.Reader, o container.ImportOptions) ([]container.Image, error) {
	a, err := s.openArchive(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("importing an image: %w", err)
	}
	defer a.Close()
	found, err := a.images()
	if err != nil {
		return nil, fmt.Errorf("importing an image: %w", err)
	}
	var out []container.Image
	for _, f := range found {
		if len(f.names) == 0 && o.Name != "" {
			ref, err := ParseReference(o.Name)
			if err != nil {
				return out, err
			}
			f.names = []string{ref.String()}
		}
		f.content.done, f.content.skipped = progress(o.Progress, f.content.layers)
		img, err := s.add(ctx, f.content, f.names, nil, o.Pinned)
		if err != nil {
			return out, fmt.Errorf("importing an image: %w", err)
		}
		out = append(out, img)
	}
	return out, nil
}

func progress(report func(container.Progress), layers int) (done, skipped func(int)) {
	if report == nil {
		return nil, nil
	}
	n := 0
	step := func(int) {
		n++
		report(container.Progress{Layers: layers, LayersDone: n})
	}
	return step, step
}

// archive is a tar laid down uncompressed in a file without a name, so that its members can be read in any order.
type archive struct {
	file    *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string
}

// found is one image of an archive.
type found struct {
	content content
	names   []string
}

func (a *archive) Close() error { return a.file.Close() }

func (s *Store) openArchive(ctx context.Context, r io.Reader) (*archive, error) {
	plain, done, err := decompress(&contextReader{ctx, r})
	if err != nil {
		return nil, err
	}
	defer done()
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "import-")
	if err != nil {
		return nil, err
	}
	a := &archive{file: f, members: map[string]member{}}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, io.LimitReader(plain, s.limits.Bytes))
	}
	if err == nil {
		err = a.index()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return a, nil
}

// countingReader knows how far it has read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (a *archive) index() error {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	c := &countingReader{r: a.file}
	tr := tar.NewReader(c)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not an image archive: %w", err)
		}
		if len(a.members) >= maxArchiveEntries {
			return errors.New("the archive has too many members")
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeRegA: //nolint:staticcheck // old tars have it
			a.members[name] = member{offset: c.n, size: h.Size}
		case tar.TypeSymlink:
			a.members[name] = member{link: strings.TrimPrefix(path.Join("/", path.Dir(name), h.Linkname), "/")}
		case tar.TypeLink:
			a.members[name] = member{link: strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")}
		}
	}
}

// open returns a member's content, by way of links.
func (a *archive) open(name string) (*io.SectionReader, error) {
	m, ok := a.members[strings.TrimPrefix(path.Clean("/"+name), "/")]
	for range 8 {
		if !ok || m.link == "" {
			break
		}
		m, ok = a.members[m.link]
	}
	if !ok || m.link != "" {
		return nil, fmt.Errorf("the archive has no %s", name)
	}
	return io.NewSectionReader(a.file, m.offset, m.size), nil
}

// read returns a small member's content.
func (a *archive) read(name string) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxMetadata {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxMetadata)
	}
	return io.ReadAll(r)
}

// images finds the images of an archive, in Docker's form first, as archives that have both are Docker's.
func (a *archive) images() ([]found, error) {
	if _, ok := a.members["manifest.json"]; ok {
		return a.docker()
	}
	if _, ok := a.members["index.json"]; ok {
		return a.oci()
	}
	return nil, errors.New("neither a docker archive (manifest.json) nor an OCI layout (index.json)")
}

func (a *archive) docker() ([]found, error) {
	raw, err := a.read("manifest.json")
	if err != nil {
		return nil, err
	}
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &manifests); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	var out []found
	for _, m := range manifests {
		config, err := a.read(m.Config)
		if err != nil {
			return nil, err
		}
		f := found{content: content{config: config, layers: len(m.Layers)}}
		f.content.layer = func(_ context.Context, i int) (io.ReadCloser, error) {
			r, err := a.open(m.Layers[i])
			if err != nil {
				return nil, err
			}
			return io.NopCloser(r), nil
		}
		for _, tag := range m.RepoTags {
			ref, err := ParseReference(tag)
			if err != nil {
				return nil, err
			}
			f.names = append(f.names, ref.String())
		}
		out = append(out, f)
	}
	return out, nil
}

func (a *archive) oci() ([]found, error) {
	raw, err := a.read("index.json")
	if err != nil {
		return nil, err
	}
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var out []found
	for _, d := range index.Manifests {
		f, err := a.ociImage(d, 0)
		if err != nil {
			return nil, err
		}
		if name := annotatedName(d.Annotations); name != "" {
			ref, err := ParseReference(name)
			if err != nil {
				return nil, err
			}
			f.names = []string{ref.String()}
		}
		out = append(out, f)
	}
	return out, nil
}

// annotatedName is the full name of an image in a layout. A mere tag names nothing.
func annotatedName(annotations map[string]string) string {
	if name := annotations[annotationName]; name != "" {
		return name
	}
	if name := annotations[annotationTag]; strings.ContainsAny(name, "/:") {
		return name
	}
	return ""
}

func (a *archive) ociImage(d v1.Descriptor, depth int) (found, error) {
	raw, err := a.blob(d)
	if err != nil {
		return found{}, err
	}
	switch d.MediaType {
	case v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
		var index v1.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return found{}, err
		}
		if depth > 4 {
			return found{}, errors.New("indexes are nested too deeply")
		}
		chosen, err := pickPlatform(index.Manifests)
		if err != nil {
			return found{}, err
		}
		return a.ociImage(chosen, depth+1)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return found{}, err
	}
	config, err := a.blob(m.Config)
	if err != nil {
		return found{}, err
	}
	f := found{content: content{config: config, layers: len(m.Layers)}}
	f.content.layer = func(_ context.Context, i int) (io.ReadCloser, error) {
		r, err := a.open(blobPath(m.Layers[i].Digest.String()))
		if err != nil {
			return nil, err
		}
		return io.NopCloser(r), nil
	}
	return f, nil
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// blob reads a small blob and verifies its digest.
func (a *archive) blob(d v1.Descriptor) ([]byte, error) {
	raw, err := a.read(blobPath(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != d.Digest.String() {
		return nil, fmt.Errorf("blob %s is damaged: its content is %s", d.Digest, got)
	}
	return raw, nil
}
