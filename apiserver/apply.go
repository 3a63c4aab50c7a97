package apiserver

import (
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/managed"
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
	obj, err := c.chain.Fields.Apply(t.Written(c.r.Context(), c.cfg.Now()), old, applied, c.force())
	if err != nil {
		return nil, err
	}
	return obj, p.CheckConfiguration()
}

// scaled is what is said of a write of a Scale.
func (c *call) scaled(manager string) *managed.Write {
	return &managed.Write{Ctx: c.r.Context(), Kind: managed.ScaleKind, Subresource: "scale", Manager: manager, Now: c.cfg.Now()}
}

// mergeScale applies a configuration to a Scale, which comes with managedFields.
func (c *call) mergeScale(p *patch.Patch, o *writeOptions, present *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	applied, err := p.Configuration()
	if err != nil {
		return nil, err
	}
	out, err := c.chain.Fields.Apply(c.scaled(o.manager), present, applied, c.force())
	if err != nil {
		return nil, err
	}
	return out.(*autoscalingv1.Scale), p.CheckConfiguration()
}

// rescaleBy is rescale with managedFields: those of the object are shown in the Scale, and what becomes of them there
// is taken back. An apply does that itself, all else changes the number for its manager.
func (c *call) rescaleBy(t *write.Target, old api.Object, change func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error)) (api.Object, error) {
	path := ""
	if c.sub != nil {
		path = c.sub.ReplicasPath
	}
	fields, err := managed.NewScaled(c.kind, c.version.Name, path, old.GetManagedFields())
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var entries []metav1.ManagedFieldsEntry
	merged := false
	obj, err := c.rescale(old, func(present *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
		if !c.applies() {
			return change(present)
		}
		present.ManagedFields = fields.Entries
		s, err := change(present)
		if err != nil {
			return nil, err
		}
		entries, merged = s.ManagedFields, true
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	w := c.scaled(t.Manager)
	if !merged {
		before, _, err := c.scaleOf(old)
		if err != nil {
			return nil, err
		}
		after, _, err := c.scaleOf(obj)
		if err != nil {
			return nil, err
		}
		before.ManagedFields = fields.Entries
		c.chain.Fields.Update(w, after, before)
		entries = after.ManagedFields
	}
	all, err := fields.Back(c.chain.Fields, entries, w)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	obj.SetManagedFields(all)
	return obj, nil
}

// applies tells an apply from all other requests.
func (c *call) applies() bool {
	media, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	return c.info.Verb == "patch" && media == string(types.ApplyYAMLPatchType)
}
