package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"coracle.dev/coracle/container"
)

// errNoNode answers image calls of a cluster whose nodes are all simulated.
var errNoNode = errors.New("this cluster has no node that runs containers: start it with --nodes=real")

// images returns the image store of the real node.
func (c *Cluster) images(w http.ResponseWriter) container.Images {
	if c.runtime == nil {
		http.Error(w, errNoNode.Error(), http.StatusConflict)
		return nil
	}
	return c.runtime.Images()
}

func (c *Cluster) importImage(w http.ResponseWriter, r *http.Request) {
	store := c.images(w)
	if store == nil {
		return
	}
	images, err := store.Import(r.Context(), r.Body, container.ImportOptions{Name: r.URL.Query().Get("name")})
	answer(w, images, err)
}

func (c *Cluster) pullImage(w http.ResponseWriter, r *http.Request) {
	store := c.images(w)
	if store == nil {
		return
	}
	image, err := store.Pull(r.Context(), r.URL.Query().Get("ref"), container.PullOptions{})
	answer(w, []container.Image{image}, err)
}

func (c *Cluster) listImages(w http.ResponseWriter, _ *http.Request) {
	if store := c.images(w); store != nil {
		answer(w, store.List(), nil)
	}
}

func (c *Cluster) removeImage(w http.ResponseWriter, r *http.Request) {
	store := c.images(w)
	if store == nil {
		return
	}
	ref := r.URL.Query().Get("ref")
	if _, err := store.Resolve(ref); err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, []container.Image{}, store.Remove(r.Context(), ref))
}

func answer(w http.ResponseWriter, images []container.Image, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(images) // a client that went away
}

// ImportImage sends a tar ("docker save" or an OCI layout) to the node's image
// store. name is for an image that has none in the tar.
func (c *Control) ImportImage(ctx context.Context, tar io.Reader, name string) ([]container.Image, error) {
	var images []container.Image
	return images, c.do(ctx, "POST", "/images?name="+url.QueryEscape(name), tar, &images)
}

// PullImage fetches an image from its registry.
func (c *Control) PullImage(ctx context.Context, ref string) ([]container.Image, error) {
	var images []container.Image
	return images, c.do(ctx, "POST", "/images/pull?ref="+url.QueryEscape(ref), nil, &images)
}

// Images lists what the node's image store holds.
func (c *Control) Images(ctx context.Context) ([]container.Image, error) {
	var images []container.Image
	return images, c.do(ctx, "GET", "/images", nil, &images)
}

// RemoveImage removes a reference, or with an ID the whole image.
func (c *Control) RemoveImage(ctx context.Context, ref string) error {
	if strings.TrimSpace(ref) == "" {
		return fmt.Errorf("image: empty reference")
	}
	return c.do(ctx, "DELETE", "/images?ref="+url.QueryEscape(ref), nil, nil)
}
