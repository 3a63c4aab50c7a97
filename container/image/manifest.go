package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sort"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"coracle.dev/coracle/container"
)

// maxMetadata bounds manifests and configurations.
const maxMetadata = 4 << 20

// ociConfig is the part of an image's configuration that matters here. It covers Docker's form and
// OCI's, which differ in nothing of it but StopSignal's place, which both have.
type ociConfig struct {
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Created      time.Time `json:"created"`
	Config       struct {
		User         string              `json:"User"`
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		WorkingDir   string              `json:"WorkingDir"`
		StopSignal   string              `json:"StopSignal"`
		Labels       map[string]string   `json:"Labels"`
		Volumes      map[string]struct{} `json:"Volumes"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

func parseConfig(raw []byte) (*ociConfig, error) {
	c := &ociConfig{}
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	if c.OS != "" && c.OS != "linux" {
		return nil, fmt.Errorf("the image is for %s/%s", c.OS, c.Architecture)
	}
	for _, d := range c.RootFS.DiffIDs {
		if id, ok := idOf(d); !ok || id != d || len(d) != 71 {
			return nil, fmt.Errorf("image configuration: invalid layer digest %q", d)
		}
	}
	return c, nil
}

func (c *ociConfig) image() container.ImageConfig {
	keys := func(m map[string]struct{}) []string {
		var out []string
		for k := range m {
			out = append(out, k)
		}
		sort.Strings(out)
		return out
	}
	return container.ImageConfig{
		Architecture: c.Architecture, OS: c.OS, User: c.Config.User, Env: c.Config.Env,
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, WorkingDir: c.Config.WorkingDir,
		StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
		Volumes: keys(c.Config.Volumes), ExposedPorts: keys(c.Config.ExposedPorts),
	}
}

// pickPlatform chooses the manifest for this machine from an index.
func pickPlatform(manifests []v1.Descriptor) (v1.Descriptor, error) {
	best, score := v1.Descriptor{}, 0
	var seen []string
	for _, m := range manifests {
		p := m.Platform
		if p == nil {
			if len(manifests) == 1 {
				return m, nil
			}
			continue
		}
		seen = append(seen, p.OS+"/"+p.Architecture+p.Variant)
		if p.OS != "linux" || p.Architecture != runtime.GOARCH {
			continue
		}
		if s := variantScore(p.Architecture, p.Variant); s > score {
			best, score = m, s
		}
	}
	if score == 0 {
		return best, fmt.Errorf("no image for linux/%s among %v", runtime.GOARCH, seen)
	}
	return best, nil
}

// variantScore prefers the baseline of an architecture, which runs on every machine.
func variantScore(arch, variant string) int {
	switch {
	case variant == "", arch == "arm64" && variant == "v8":
		return 3
	case arch == "amd64" && variant == "v1":
		return 2
	case arch == "arm" && (variant == "v7" || variant == "v6"):
		return 2
	}
	return 1
}

// content is where an image comes from: its configuration, and its layers by position.
type content struct {
	config []byte
	// layer opens a layer, compressed or not.
	layer func(ctx context.Context, i int) (io.ReadCloser, error)
	// layers is how many there are.
	layers int
	// skipped is told of a layer that is here already.
	skipped func(i int)
	done    func(i int)
}

// add unpacks what is missing of an image and records it under the given names.
func (s *Store) add(ctx context.Context, c content, names, digests []string, pinned bool) (container.Image, error) {
	conf, err := parseConfig(c.config)
	if err != nil {
		return container.Image{}, err
	}
	diffs := conf.RootFS.DiffIDs
	if len(diffs) != c.layers {
		return container.Image{}, fmt.Errorf("image has %d layers, but its configuration says %d", c.layers, len(diffs))
	}
	chains := chainIDs(diffs)
	var layers []layerInfo
	for i := range chains {
		info, err := s.obtain(ctx, c, i, chains, diffs[i])
		if err != nil {
			s.giveBack(chains[:i])
			return container.Image{}, fmt.Errorf("layer %d (%s): %w", i, diffs[i], err)
		}
		layers = append(layers, info)
	}
	sum := sha256.Sum256(c.config)
	now := s.now()
	r := &record{
		ID: "sha256:" + hex.EncodeToString(sum[:]), Names: names, Digests: digests, Layers: layers,
		Pinned: pinned, Created: conf.Created, Pulled: now, Used: now, Config: conf.image(),
	}
	img, trash, err := s.install(r)
	if err != nil {
		s.giveBack(chains)
		return container.Image{}, err
	}
	if err := emptyTrash(trash); err != nil {
		s.log.Warn("removing old layers", "error", err)
	}
	return img, nil
}

// obtain makes sure that a layer is there, and retains it.
func (s *Store) obtain(ctx context.Context, c content, i int, chains []string, diff string) (layerInfo, error) {
	l, err := s.lockLayer(ctx, chains[i])
	if err != nil {
		return layerInfo{}, err
	}
	defer s.unlockLayer(l)
	report := c.skipped
	if !l.complete {
		report = c.done
		rc, err := c.layer(ctx, i)
		if err == nil {
			l.info, err = s.addLayer(ctx, chains[:i], chains[i], diff, rc)
			rc.Close()
		}
		if err != nil {
			s.giveBack(chains[i : i+1])
			return layerInfo{}, err
		}
		l.complete = true
	}
	if report != nil {
		report(i)
	}
	return l.info, nil
}

// giveBack undoes the retaining of layers.
func (s *Store) giveBack(chains []string) {
	s.mu.Lock()
	trash := s.releaseLayers(chains)
	s.mu.Unlock()
	if err := emptyTrash(trash); err != nil {
		s.log.Warn("removing layers", "error", err)
	}
}

// install records an image and takes its names from those that had them. An image that loses
// its last name so is dropped, unless it is in use: then it stays under its ID.
// The layers of r are retained already, and belong to it from then on.
func (s *Store) install(r *record) (img container.Image, trash []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.images[r.ID]
	if old != nil {
		r.Names, r.Digests = union(old.Names, r.Names), union(old.Digests, r.Digests)
		r.Pinned = r.Pinned || old.Pinned
	}
	if err := s.save(r, old == nil); err != nil {
		return container.Image{}, nil, err
	}
	if old != nil {
		trash = s.releaseLayers(old.chains())
	}
	s.images[r.ID] = r
	for _, other := range s.images {
		if other.ID == r.ID || !overlap(other.Names, r.Names) {
			continue
		}
		left := *other
		left.Names = slices.DeleteFunc(slices.Clone(other.Names), func(n string) bool { return slices.Contains(r.Names, n) })
		if len(left.Names) == 0 && len(left.Digests) == 0 && !left.Pinned {
			gone, err := s.drop(other)
			trash = append(trash, gone...)
			if !errors.Is(err, container.ErrImageInUse) {
				continue
			}
		}
		s.images[other.ID] = &left
		if err := s.save(&left, false); err != nil {
			s.log.Warn("recording that an image lost a name", "image", left.ID, "error", err)
		}
	}
	return r.image(), trash, nil
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(x string) bool { return slices.Contains(b, x) })
}
