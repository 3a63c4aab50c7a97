package image

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference is a name in full: "docker.io/library/busybox:1.36", with a digest if it was
// asked for by one.
type Reference struct {
	// Name is registry and repository, "docker.io/library/busybox".
	Name string
	// Tag is "" if there is a digest.
	Tag string
	// Digest is "sha256:..." or "".
	Digest string
}

// ParseReference reads a reference as Docker does: the registry defaults to docker.io, a single name
// to its library, the tag to latest. With a digest the tag does not count.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, fmt.Errorf("couldn't parse image name %q: %w", s, err)
	}
	r := Reference{Name: named.Name()}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest().String()
		if d.Digest().Algorithm() != digest.SHA256 {
			return Reference{}, fmt.Errorf("couldn't parse image name %q: only sha256 digests are supported", s)
		}
		return r, nil
	}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	return r, nil
}

// String is the reference in full.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name + "@" + r.Digest
	}
	return r.Name + ":" + r.Tag
}

// Registry is the host, with port, that serves the name.
func (r Reference) Registry() string {
	host, _, _ := strings.Cut(r.Name, "/")
	return host
}

// Repository is the name without the registry.
func (r Reference) Repository() string {
	_, repo, _ := strings.Cut(r.Name, "/")
	return repo
}

// idOf returns the ID that s may be or begin: 12 to 64 hex digits, "sha256:" before them allowed.
func idOf(s string) (string, bool) {
	hex := strings.TrimPrefix(s, "sha256:")
	if len(hex) < 12 || len(hex) > 64 {
		return "", false
	}
	for _, c := range hex {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", false
		}
	}
	return "sha256:" + hex, true
}
