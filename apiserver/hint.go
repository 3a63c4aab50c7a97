package apiserver

import (
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api/manifest"
)

// hinted passes on the end of a write. Where it was refused for what older versions of Kubernetes took, a warning names the
// fix; the refusal itself is upstream's.
func (c *call) hinted(err error) error {
	if err == nil || !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
		return err
	}
	switch c.info.Verb {
	case "create", "update", "patch":
		c.warn(manifest.Hint(c.kind.Kind, err.Error()))
	}
	return err
}

// absent warns a client that asks for an API version that is gone.
func (c *call) absent() {
	gv := schema.GroupVersion{Group: c.info.Group, Version: c.info.Version}
	c.warn(manifest.Removed(gv.String(), c.info.Resource))
}
