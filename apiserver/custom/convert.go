package custom

import (
	"context"
	"fmt"
	"net/http"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
)

// webhook is how a definition's objects are converted, nil if only their apiVersion changes.
func (d *definition) webhook() *apiextensionsv1.WebhookConversion {
	if c := d.crd.Spec.Conversion; c != nil && c.Strategy == apiextensionsv1.WebhookConverter {
		return c.Webhook
	}
	return nil
}

// convert is api.Version.Convert to a version: what is in another is brought into it, what is in it already gets the
// defaults of today. That it fails is always a failure of the server (500), in upstream's words: what its cause says of
// itself (that the service of a webhook is not found) is not true of the objects, and ends here.
func (d *definition) convert(ctx context.Context, to string, objs []api.Object) ([]api.Object, error) {
	out, err := d.convertObjects(ctx, to, objs)
	if err != nil {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError, Message: err.Error(),
		}}
	}
	return out, nil
}

func (d *definition) convertObjects(ctx context.Context, to string, objs []api.Object) ([]api.Object, error) {
	want := d.crd.Spec.Group + "/" + to
	target := d.schemas[to]
	if target == nil {
		return nil, fmt.Errorf("request to convert CR to an invalid group/version: %s", want)
	}
	out := make([]api.Object, len(objs))
	var others []int
	for i, o := range objs {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("input type %T is not valid for unstructured conversion", o)
		}
		if u.GetAPIVersion() != want {
			others = append(others, i)
			continue
		}
		read, err := target.read(u)
		if err != nil {
			return nil, err
		}
		out[i] = read
	}
	if len(others) == 0 {
		return out, nil
	}
	in := make([]*unstructured.Unstructured, len(others))
	for n, i := range others {
		var err error
		if in[n], err = d.source(objs[i].(*unstructured.Unstructured)); err != nil {
			return nil, err
		}
	}
	converted, err := d.convertAll(ctx, want, in)
	if err != nil {
		return nil, err
	}
	for n, i := range others {
		if _, err := target.coerce(converted[n].Object, false, false); err != nil {
			return nil, err
		}
		out[i] = converted[n]
	}
	return out, nil
}

// source is an object as its own version shows it, before it is converted.
func (d *definition) source(u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if len(u.Object) <= len(bare) && u.GetName() == "" { // a bookmark has a type and a revision
		return u, nil
	}
	gv := u.GroupVersionKind().GroupVersion()
	r := d.schemas[gv.Version]
	if gv.Group != d.crd.Spec.Group || r == nil {
		return nil, fmt.Errorf("request to convert CR from an invalid group/version: %s", gv)
	}
	return r.read(u)
}

// bare are the fields of an object that has nothing of its own.
var bare = []string{"apiVersion", "kind", "metadata"}

// convertAll converts objects that are all in other versions. The result belongs to the caller.
func (d *definition) convertAll(ctx context.Context, want string, in []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	if w := d.webhook(); w != nil {
		return d.ask(ctx, w, want, in)
	}
	out := make([]*unstructured.Unstructured, len(in))
	for i, u := range in {
		out[i] = restamp(u, want)
	}
	return out, nil
}

// restamp is a copy of an object under another apiVersion.
func restamp(u *unstructured.Unstructured, apiVersion string) *unstructured.Unstructured {
	c := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(u.Object)}
	c.SetAPIVersion(apiVersion)
	return c
}
