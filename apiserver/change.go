package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/patch"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/store"
)

// writeOptions are the query parameters of create, update and patch.
type writeOptions struct {
	dryRun  bool
	manager string
	// fieldValidation is Strict, Warn or Ignore.
	fieldValidation string
}

func (o *writeOptions) check() bool  { return o.fieldValidation != metav1.FieldValidationIgnore }
func (o *writeOptions) strict() bool { return o.fieldValidation == metav1.FieldValidationStrict }

// options reads them; kind names their type in errors.
func (c *call) options(kind string) (writeOptions, error) {
	manager := c.query.Get("fieldManager")
	o := writeOptions{
		dryRun: len(c.query["dryRun"]) > 0, manager: manager, fieldValidation: c.query.Get("fieldValidation"),
	}
	var errs field.ErrorList
	if o.dryRun {
		errs = append(errs, validation.ValidateDryRun(field.NewPath("dryRun"), c.query["dryRun"])...)
	}
	errs = append(errs, validation.ValidateFieldManager(manager, field.NewPath("fieldManager"))...)
	errs = append(errs, validation.ValidateFieldValidation(field.NewPath("fieldValidation"), o.fieldValidation)...)
	if len(errs) > 0 {
		return o, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
	}
	if o.fieldValidation == "" {
		o.fieldValidation = metav1.FieldValidationWarn
	}
	if o.manager == "" {
		o.manager = managerOf(c.r.UserAgent())
	}
	return o, nil
}

// managerOf derives a field manager from a user agent.
func managerOf(agent string) string {
	agent, _, _ = strings.Cut(agent, "/")
	var b strings.Builder
	for _, r := range agent {
		if !unicode.IsPrint(r) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > validation.FieldManagerMaxLength {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// decode reads the body into an object of a type.
func (c *call) decode(into runtime.Object, want schema.GroupVersionKind, o *writeOptions) error {
	media, err := wire.ContentType(c.r, !wire.HasProtobuf(into))
	if err != nil {
		return err
	}
	body, err := wire.ReadBody(c.r)
	if err != nil {
		return err
	}
	strict, err := wire.Decode(media, body, want, into, o.check(), c.known)
	if err != nil {
		return err
	}
	c.x.recordObject(into, want)
	if _, loose := into.(runtime.Unstructured); loose {
		found, err := wire.Settle(c.version, into, o.check(), want)
		if err != nil {
			return err
		}
		strict = append(strict, found...)
	}
	if len(strict) == 0 {
		return nil
	}
	if o.strict() {
		return wire.StrictError(strict, want)
	}
	c.warnStrict(strict)
	return nil
}

// decodeHub reads the body into a new hub object of the endpoint's kind.
func (c *call) decodeHub(o *writeOptions) (api.Object, error) {
	obj := c.version.New()
	if err := c.decode(obj, c.gvk(), o); err != nil {
		return nil, err
	}
	hub, err := wire.ToHub(c.r.Context(), c.kind, c.version, obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return hub, nil
}

// create answers POST to a collection.
func (c *call) create() error {
	o, err := c.options("CreateOptions")
	if err != nil {
		return err
	}
	obj, err := c.decodeHub(&o)
	if err != nil {
		return err
	}
	t := c.target()
	t.DryRun, t.Manager = o.dryRun, o.manager
	t.Options = &metav1.CreateOptions{DryRun: c.query["dryRun"], FieldManager: c.query.Get("fieldManager"), FieldValidation: c.query.Get("fieldValidation")}
	e, err := c.chain.Create(c.r.Context(), t, obj)
	if err != nil {
		return err
	}
	return c.answer(http.StatusCreated, e)
}

// update answers PUT.
func (c *call) update() error {
	o, err := c.options("UpdateOptions")
	if err != nil {
		return err
	}
	obj, err := c.decodeHub(&o)
	if err != nil {
		return err
	}
	if err := c.matches(obj); err != nil {
		return err
	}
	t := c.target()
	t.DryRun, t.Manager = o.dryRun, o.manager
	t.Options = &metav1.UpdateOptions{DryRun: c.query["dryRun"], FieldManager: c.query.Get("fieldManager"), FieldValidation: c.query.Get("fieldValidation")}
	again := false
	e, created, err := c.chain.Update(c.r.Context(), t, write.Update{
		UID: obj.GetUID(),
		Make: func(*store.Entry) (api.Object, error) {
			// What is not conditioned on a revision may run again.
			if rv := obj.GetResourceVersion(); rv == "" || rv == "0" || again {
				return obj.DeepCopyObject().(api.Object), nil
			}
			again = true
			return obj, nil
		},
		AuthorizeCreate: c.mayCreate,
	})
	return c.written(e, created, err)
}

// written answers a change.
func (c *call) written(e *store.Entry, created bool, err error) error {
	if err != nil {
		return err
	}
	code := http.StatusOK
	if created {
		code = http.StatusCreated
	}
	return c.answer(code, e)
}

// mayCreate asks whether the user may create the object that an update would create.
func (c *call) mayCreate() error {
	a := attributes(&c.info, &c.user)
	a.Verb = "create"
	d, reason, err := c.authz.Authorize(c.r.Context(), a)
	if d == authz.Allowed {
		return nil
	}
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return authz.Forbidden(a, reason)
}

// matches checks that an object is the one that the URL names.
func (c *call) matches(obj api.Object) error {
	name, namespace := c.info.Name, c.info.Namespace
	switch {
	case obj.GetName() == "":
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", name))
	case obj.GetName() != name:
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), name))
	case c.kind.Namespaced && obj.GetNamespace() != "" && obj.GetNamespace() != namespace:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// patch answers PATCH.
func (c *call) patch() error {
	p, o, err := c.readPatch(c.gvk(), c.version.New)
	if err != nil {
		return err
	}
	if p.Type == types.ApplyYAMLPatchType {
		return c.apply(p, o)
	}
	t := c.target()
	t.DryRun, t.Manager, t.Options = o.dryRun, o.manager, c.patchOptions(p)
	view := c.view(c.kind, c.version)
	e, created, err := c.chain.Update(c.r.Context(), t, write.Update{
		Make: func(current *store.Entry) (api.Object, error) {
			if current == nil {
				return nil, apierrors.NewNotFound(c.kind.GroupResource(), c.info.Name)
			}
			versioned, err := view.Object(current.Object.(api.Object))
			if err != nil {
				return nil, err
			}
			spared, back := p.SpareFields(versioned)
			out, err := p.Apply(spared, func() ([]byte, error) {
				if spared == versioned {
					return view.Entry(wire.JSON, current)
				}
				body, err := wire.Object(wire.JSON, spared, view.GVK)
				return body.Bytes(), err
			})
			if err != nil {
				return nil, err
			}
			back(out)
			hub, err := wire.ToHub(c.r.Context(), c.kind, c.version, out)
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			return hub, c.matches(hub)
		},
	})
	return c.written(e, created, err)
}

// readPatch reads the patch of a request for objects of a type.
func (c *call) readPatch(gvk schema.GroupVersionKind, empty func() runtime.Object) (*patch.Patch, writeOptions, error) {
	_, loose := empty().(runtime.Unstructured)
	patchType, err := patch.ParseType(c.r.Header.Get("Content-Type"), loose)
	if err != nil {
		return nil, writeOptions{}, err
	}
	data, err := wire.ReadBody(c.r)
	if err != nil {
		return nil, writeOptions{}, err
	}
	c.x.recordPatch(patchType, data)
	o, err := c.options("PatchOptions")
	if err != nil {
		return nil, o, err
	}
	applies := patchType == types.ApplyYAMLPatchType
	switch {
	case applies && !c.query.Has("fieldManager"):
		err = field.Required(field.NewPath("fieldManager"), "is required for apply patch")
	case !applies && c.query.Has("force"):
		err = field.Forbidden(field.NewPath("force"), "may not be specified for non-apply patch")
	}
	if err != nil {
		return nil, o, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", field.ErrorList{err.(*field.Error)})
	}
	p := &patch.Patch{Type: patchType, Data: data, GVK: gvk, New: empty, Check: o.check(), Strict: o.strict(), Warn: c.warnStrict}
	if loose {
		p.Settle = c.version.Settle
	}
	return p, o, p.Validate()
}

// deleteOptions reads them from the body or, without one, from the query.
func (c *call) deleteOptions() (*metav1.DeleteOptions, error) {
	opts := &metav1.DeleteOptions{}
	body, err := wire.ReadBody(c.r)
	if err != nil {
		return nil, err
	}
	if len(body) > 0 {
		media, err := wire.ContentType(c.r, false)
		if err != nil {
			return nil, err
		}
		if err := wire.DecodeDeleteOptions(media, body, opts); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		c.x.recordObject(opts, schema.GroupVersionKind{Group: c.kind.Group, Version: c.version.Name, Kind: "DeleteOptions"})
	} else if len(c.query) > 0 {
		if err := metav1.Convert_url_Values_To_v1_DeleteOptions(&c.query, opts, nil); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	opts.TypeMeta = metav1.TypeMeta{}
	return opts, nil
}

// delete answers DELETE of a named object.
func (c *call) delete() error {
	opts, err := c.deleteOptions()
	if err != nil {
		return err
	}
	t := c.target()
	t.DryRun = len(opts.DryRun) > 0
	orphan := opts.OrphanDependents //nolint:staticcheck // clients still send it
	out, err := c.chain.Delete(c.r.Context(), t, opts)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !out.Gone && orphan != nil && !*orphan {
		code = http.StatusAccepted
	}
	if out.Status != nil {
		return c.answerObject(code, out.Status, statusKind)
	}
	return c.answer(code, out.Entry)
}

// deleteWorkers is how many objects of a collection are deleted at once, so that they share commits.
const deleteWorkers = 16

// deleteCollection answers DELETE of a collection with the objects as they were.
func (c *call) deleteCollection() error {
	accept, err := wire.Negotiate(c.r, c.offer())
	if err != nil {
		return err
	}
	opts, err := c.deleteOptions()
	if err != nil {
		return err
	}
	page, err := c.page(c.r.Context())
	if err != nil {
		return err
	}
	if err := c.deleteAll(page.Entries, opts); err != nil {
		return err
	}
	return c.answerPage(accept, page)
}

// deleteAll deletes entries side by side, and returns the first error.
func (c *call) deleteAll(entries []*store.Entry, opts *metav1.DeleteOptions) error {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	defer cancel(nil)
	t := c.target()
	t.DryRun = len(opts.DryRun) > 0
	var mu sync.Mutex
	t.Warn = func(text string) {
		mu.Lock()
		defer mu.Unlock()
		c.warn(text)
	}
	work := make(chan *store.Entry)
	var workers sync.WaitGroup
	for range min(deleteWorkers, len(entries)) {
		workers.Go(func() {
			for e := range work {
				t := t
				t.Namespace, t.Name = e.Namespace, e.Name
				if _, err := c.chain.Delete(ctx, t, opts.DeepCopy()); err != nil && !apierrors.IsNotFound(err) {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, e := range entries {
		select {
		case work <- e:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	workers.Wait()
	return context.Cause(ctx)
}
