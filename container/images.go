package container

import (
	"context"
	"io"
	"time"
)

// Images keeps images by name and digest. Names are normalised as Docker does
// ("busybox" is "docker.io/library/busybox:latest").
type Images interface {
	// Pull fetches an image for this machine's platform, verifies every digest and
	// unpacks its layers. Pulls of one image at one time are one. Errors are *PullError.
	Pull(ctx context.Context, ref string, opts PullOptions) (Image, error)
	// Import reads a tar made by "docker save" or of an OCI layout, plain, gzip or zstd, and
	// returns the images in it. Names in the tar are kept; opts.Name names one that has none.
	Import(ctx context.Context, r io.Reader, opts ImportOptions) ([]Image, error)
	// Resolve finds a present image by reference, "name@digest", ID, or a unique ID prefix of at least
	// 12 digits. ErrImageNotFound.
	Resolve(ref string) (Image, error)
	// List returns all images in order of ID.
	List() []Image
	// Remove removes a reference, or with an ID all of them; the image goes with the last one.
	// ErrImageInUse if a container needs it; an unknown reference is no error.
	Remove(ctx context.Context, ref string) error
	// Usage of the store on disk.
	Usage() ImageUsage
	// GC removes unused images, the least recently used first.
	GC(ctx context.Context, policy GCPolicy) (GCResult, error)
}

// Image is an image that is present.
type Image struct {
	// ID is the digest of the image's configuration ("sha256:...").
	ID string
	// Names are its tags ("docker.io/library/busybox:1.36").
	Names []string
	// Digests are "name@sha256:..." of the manifests (or indexes) that it was pulled by.
	Digests []string
	// Size is that of the unpacked layers in bytes.
	Size int64
	// Pinned images are never collected.
	Pinned bool
	// Created is when the image was built, Pulled when it came here, Used when a container was made last.
	Created, Pulled, Used time.Time
	Config                ImageConfig
}

// ImageConfig is what an image says about running it.
type ImageConfig struct {
	Architecture string            `json:"architecture,omitempty"`
	OS           string            `json:"os,omitempty"`
	User         string            `json:"user,omitempty"`
	Env          []string          `json:"env,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"`
}

// Command gives the command line of a container: command replaces the entrypoint and drops the
// image's cmd; args replace the cmd.
func (c ImageConfig) Command(command, args []string) []string {
	switch {
	case len(command) > 0:
		return append(append([]string{}, command...), args...)
	case len(args) > 0:
		return append(append([]string{}, c.Entrypoint...), args...)
	}
	return append(append([]string{}, c.Entrypoint...), c.Cmd...)
}

// PullOptions say how to pull.
type PullOptions struct {
	// Auths are tried in order, then none at all. They are never logged.
	Auths []Auth
	// Progress, if not nil, is called from one goroutine at a time and not more than some
	// ten times a second.
	Progress func(Progress)
}

// Auth is what a registry asks for.
type Auth struct {
	Username, Password string
	// Auth is base64 of "user:password", instead of both.
	Auth string
	// IdentityToken is exchanged for a registry token; RegistryToken is a bearer token as it is.
	IdentityToken, RegistryToken string
}

// Progress of a pull or an import.
type Progress struct {
	// Done and Total are compressed bytes; Total is 0 while not known.
	Done, Total int64
	// Layers and LayersDone count layers.
	Layers, LayersDone int
}

// ImportOptions say how to import.
type ImportOptions struct {
	// Name for an image that has none in the tar.
	Name string
	// Pinned protects the images from collection.
	Pinned   bool
	Progress func(Progress)
}

// ImageUsage is what the store takes on disk.
type ImageUsage struct {
	Time   time.Time
	Bytes  uint64
	Inodes uint64
	Images int
	// Path is the store's directory; FSCapacity, FSAvailable are those of its filesystem.
	Path                    string
	FSCapacity, FSAvailable uint64
}

// GCPolicy says when unused images go.
type GCPolicy struct {
	// HighPercent of the filesystem used starts a collection, which goes on until
	// LowPercent is reached. 0 and 0 remove all unused images.
	HighPercent, LowPercent int
	// MinAge protects images that came or were used less than this long ago.
	MinAge time.Duration
	// MaxAge, if not zero, removes images unused for longer, whatever the percentage.
	MaxAge time.Duration
	Now    time.Time
}

// GCResult says what a collection did.
type GCResult struct {
	Removed []string
	Freed   uint64
	// Short is how many bytes more should have been freed.
	Short uint64
}
