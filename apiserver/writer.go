package apiserver

import (
	"context"
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/write"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// writer is the Server as the parts of this program see it.
type writer Server

var (
	_ client.Writer  = (*writer)(nil)
	_ client.Batcher = (*writer)(nil)
)

// target says where a write goes.
func (w *writer) target(ctx context.Context, resource, subresource, namespace, name string) (write.Target, error) {
	k := w.cfg.Registry.ByName(resource)
	if k == nil {
		return write.Target{}, apierrors.NewInternalError(fmt.Errorf("no resource %q is registered", resource))
	}
	if subresource != "" {
		if s := k.Subresource(subresource); s == nil || s.Strategy == nil && subresource != "scale" {
			return write.Target{}, apierrors.NewInternalError(fmt.Errorf("%s has no subresource %q that can be written in-process", resource, subresource))
		}
	}
	user, ok := client.UserFrom(ctx)
	if !ok {
		user = client.User{Name: client.UserServer, Groups: []string{client.GroupMasters, client.GroupAuthenticated}}
	}
	return write.Target{Kind: k, Subresource: subresource, Namespace: namespace, Name: name, User: user, Local: true, Manager: managerOfUser(user.Name)}, nil
}

// managerOfUser is the field manager that the component of upstream would be whose work a user in this process does.
func managerOfUser(name string) string {
	switch {
	case name == "system:kube-scheduler":
		return "kube-scheduler"
	case strings.HasPrefix(name, "system:node:"):
		return "kubelet"
	case strings.HasPrefix(name, "system:serviceaccount:kube-system:"), name == "system:kube-controller-manager":
		return "kube-controller-manager"
	}
	return "kube-apiserver"
}

// Create implements client.Writer.
func (w *writer) Create(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	t, err := w.target(ctx, resource, "", obj.GetNamespace(), "")
	if err != nil {
		return nil, err
	}
	if opts.FieldManager != "" {
		t.Manager = opts.FieldManager
	}
	e, err := w.chain.Create(ctx, t, obj)
	if err != nil {
		return nil, err
	}
	return e.Object.(api.Object), nil
}

// CreateAll implements client.Batcher.
func (w *writer) CreateAll(ctx context.Context, objs []client.New) error {
	targets := make([]write.Target, len(objs))
	all := make([]api.Object, len(objs))
	for i, o := range objs {
		t, err := w.target(ctx, o.Resource, "", o.Object.GetNamespace(), "")
		if err != nil {
			return err
		}
		targets[i], all[i] = t, o.Object
	}
	return w.chain.CreateAll(ctx, targets, all)
}

// Update implements client.Writer. Through the subresource "scale" goes the scaled object itself, of which
// nothing but the number of replicas may differ; admission sees it as a Scale.
func (w *writer) Update(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error) {
	t, err := w.target(ctx, resource, opts.Subresource, obj.GetNamespace(), obj.GetName())
	if err != nil {
		return nil, err
	}
	if opts.FieldManager != "" {
		t.Manager = opts.FieldManager
	}
	rv := obj.GetResourceVersion()
	if rv == "" || rv == "0" {
		return nil, apierrors.NewBadRequest("an update in-process names the resourceVersion that it was made from")
	}
	u := write.Update{
		UID:  obj.GetUID(),
		Make: func(*store.Entry) (api.Object, error) { return obj, nil },
	}
	if opts.Subresource == "scale" {
		u.View, u.Merge = viewScale(t.Kind)
	}
	e, _, err := w.chain.Update(ctx, t, u)
	if err != nil {
		return nil, err
	}
	return e.Object.(api.Object), nil
}

// viewScale gives the functions that show an object of a kind as a Scale, and bring a changed Scale back into it.
func viewScale(k *api.Kind) (view func(api.Object) api.Object, merge func(obj, view api.Object) (api.Object, error)) {
	sub := k.Subresource("scale")
	view = func(obj api.Object) api.Object {
		show := scaleOf
		if sub.Scale != nil {
			show = func(obj api.Object) (*autoscalingv1.Scale, error) { s, _, err := sub.Scale(obj); return s, err }
		}
		s, err := show(obj)
		if err != nil {
			return &autoscalingv1.Scale{}
		}
		return s
	}
	merge = func(obj, view api.Object) (api.Object, error) {
		replicas := view.(*autoscalingv1.Scale).Spec.Replicas
		out := obj.DeepCopyObject().(api.Object)
		if sub.Rescale != nil {
			return out, sub.Rescale(out, replicas)
		}
		*replicasOf(out) = &replicas
		return out, nil
	}
	return view, merge
}

// Delete implements client.Writer.
func (w *writer) Delete(ctx context.Context, ref client.Ref, opts client.DeleteOptions) error {
	t, err := w.target(ctx, ref.Resource, "", ref.Namespace, ref.Name)
	if err != nil {
		return err
	}
	o := &metav1.DeleteOptions{GracePeriodSeconds: opts.GraceSeconds}
	if opts.Propagation != "" {
		o.PropagationPolicy = &opts.Propagation
	}
	if opts.UID != "" || opts.ResourceVersion != "" {
		o.Preconditions = &metav1.Preconditions{}
		if opts.UID != "" {
			o.Preconditions.UID = &opts.UID
		}
		if opts.ResourceVersion != "" {
			o.Preconditions.ResourceVersion = &opts.ResourceVersion
		}
	}
	_, err = w.chain.Delete(ctx, t, o)
	return err
}

// Bind implements client.Writer.
func (w *writer) Bind(ctx context.Context, namespace, pod string, uid types.UID, node string) error {
	t, err := w.target(ctx, client.Pods.Name, "", namespace, pod)
	if err != nil {
		return err
	}
	t.Subresource = "binding"
	return (*Server)(w).bind(ctx, t, binding{uid: uid, node: node})
}
