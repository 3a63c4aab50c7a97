// Command registry serves the images of `docker save` archives (those that tools/e2e-images makes) as a registry that can
// only be read, for tests of pulling: `registry *.tar` prints the URL at which it listens and serves until its standard
// input ends. The name of an image is that of its tags without the registry they name.
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen at")
	flag.Parse()
	if err := run(*listen, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(listen string, archives []string) error {
	r := &registry{blobs: map[string]blob{}, tags: map[string]string{}}
	for _, a := range archives {
		if err := r.add(a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin) // whoever started it holds the other end
		l.Close()
	}()
	if err := http.Serve(l, r); err != nil && !strings.Contains(err.Error(), "closed") {
		return err
	}
	return nil
}

// blob is a part of an archive, or text made here.
type blob struct {
	file         *os.File
	offset, size int64
	text         []byte
	media        string
}

func (b blob) open() io.ReadSeeker {
	if b.file == nil {
		return strings.NewReader(string(b.text))
	}
	return io.NewSectionReader(b.file, b.offset, b.size)
}

// registry holds blobs and manifests by digest, and digests of manifests by name:tag. It is filled before it serves.
type registry struct {
	blobs map[string]blob
	tags  map[string]string
}

const (
	manifestMedia = "application/vnd.oci.image.manifest.v1+json"
	configMedia   = "application/vnd.oci.image.config.v1+json"
	layerMedia    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	Media  string `json:"mediaType"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// add reads the table of an archive; the layers stay in the file.
func (r *registry) add(archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	members := map[string]blob{}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		members[h.Name] = blob{file: f, offset: at, size: h.Size}
	}
	var images []struct {
		Config           string
		Layers, RepoTags []string
	}
	if err := json.NewDecoder(members["manifest.json"].open()).Decode(&images); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	for _, i := range images {
		if err := r.image(members, i.Config, i.Layers, i.RepoTags); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) image(members map[string]blob, configName string, layers, tags []string) error {
	text, err := io.ReadAll(members[configName].open())
	if err != nil {
		return err
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(layers) {
		return fmt.Errorf("%s names %d layers, the archive %d", configName, len(config.RootFS.DiffIDs), len(layers))
	}
	manifest := struct {
		Version int          `json:"schemaVersion"`
		Media   string       `json:"mediaType"`
		Config  descriptor   `json:"config"`
		Layers  []descriptor `json:"layers"`
	}{Version: 2, Media: manifestMedia, Config: descriptor{configMedia, r.put(text, configMedia), int64(len(text))}}
	for i, digest := range config.RootFS.DiffIDs {
		b, ok := members[layers[i]]
		if !ok {
			return fmt.Errorf("layer %s is missing", layers[i])
		}
		b.media = layerMedia
		r.blobs[digest] = b
		manifest.Layers = append(manifest.Layers, descriptor{layerMedia, digest, b.size})
	}
	if text, err = json.Marshal(manifest); err != nil {
		return err
	}
	digest := r.put(text, manifestMedia)
	for _, t := range tags {
		if _, name, ok := strings.Cut(t, "/"); ok {
			r.tags[name] = digest
		}
	}
	return nil
}

func (r *registry) put(text []byte, media string) string {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(text))
	r.blobs[digest] = blob{text: text, size: int64(len(text)), media: media}
	return digest
}

// ServeHTTP answers what a pull asks (https://github.com/opencontainers/distribution-spec).
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		http.Error(w, "this registry can only be read", http.StatusMethodNotAllowed)
		return
	}
	rest, ok := strings.CutPrefix(q.URL.Path, "/v2/")
	if ok && rest == "" {
		return
	}
	dir, ref := path.Split(rest)
	name, kind := path.Split(strings.TrimSuffix(dir, "/"))
	digest := ref
	if kind == "manifests" && !strings.HasPrefix(ref, "sha256:") {
		digest = r.tags[strings.TrimSuffix(name, "/")+":"+ref]
	}
	b, ok := r.blobs[digest]
	if !ok || kind != "manifests" && kind != "blobs" {
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", b.media)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", strconv.FormatInt(b.size, 10))
	if q.Method == http.MethodGet {
		io.Copy(w, b.open())
	}
}
