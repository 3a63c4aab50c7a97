package apiserver

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/patch"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/store"
)

// force reads whether an apply may take fields from others.
func (c *call) force() bool { return c.query.Get("force") == "true" || c.query.Get("force") == "1" }

// patchOptions are the options of a patch as admission is shown them.
func (c *call) patchOptions(p *patch.Patch) *metav1.PatchOptions {
	o := &metav1.PatchOptions{DryRun: c.query["dryRun"], FieldManager: c.query.Get("fieldManager"), FieldValidation: c.query.Get("fieldValidation")}
	if p.Type == types.ApplyYAMLPatchType && c.query.Has("force") {
		force := c.force()
		o.Force = &force
	}
	return o
}

// apply answers PATCH with an applied configuration (KEP-555): it creates the object if there is none, on the
// main endpoint.
func (c *call) apply(p *patch.Patch, o writeOptions) error {
	t := c.target()
	t.DryRun, t.Manager, t.Options = o.dryRun, o.manager, c.patchOptions(p)
	e, created, err := c.chain.Update(c.r.Context(), t, write.Update{
		Tracked:         true,
		MayCreate:       c.info.Subresource == "",
		AuthorizeCreate: c.mayCreate,
		Make: func(current *store.Entry) (api.Object, error) {
			var old api.Object
			if current != nil {
				old = current.Object.(api.Object)
			}
			obj, err := c.merge(&t, p, old)
			if err != nil {
				return nil, err
			}
			if uid := obj.GetUID(); old == nil && uid != "" {
				return nil, apierrors.NewConflict(c.kind.GroupResource(), c.info.Name,
					fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
			}
			return obj, c.matches(obj)
		},
	})
	return c.written(e, created, err)
}

// merge applies a configuration to an object of the target's kind, nil for none.
func (c *call) merge(t *write.Target, p *patch.Patch, old api.Object) (api.Object, error) {
	applied, err := p.Configuration()
	if err != nil {
		return nil, err
	}
	obj, err := c.chain.Fields.Apply(t.Written(c.cfg.Now()), old, applied, c.force())
	if err != nil {
		return nil, err
	}
	return obj, p.CheckConfiguration()
}
