package policy

import (
	"context"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/store"
)

// access asks whether who writes a policy or a binding may read the parameters that it names: through messages and decisions the
// policy tells what is in them. Parts of this program are not asked.
func (p *Policies) access(ctx context.Context, r *admission.Request) error {
	if r.Local || r.Subresource != "" || r.Operation != admission.Create && r.Operation != admission.Update {
		return nil
	}
	var err error
	path := field.NewPath("spec", "paramRef")
	switch o := r.Object.(type) {
	case *admissionregistrationv1.ValidatingAdmissionPolicy:
		old, _ := r.Old.(*admissionregistrationv1.ValidatingAdmissionPolicy)
		if kind := o.Spec.ParamKind; kind != nil && (old == nil || !equality.Semantic.DeepEqual(old.Spec.ParamKind, kind)) {
			path, err = field.NewPath("spec", "paramKind"), p.accessKind(ctx, r, kind)
		}
	case *admissionregistrationv1.MutatingAdmissionPolicy:
		old, _ := r.Old.(*admissionregistrationv1.MutatingAdmissionPolicy)
		if kind := o.Spec.ParamKind; kind != nil && (old == nil || !equality.Semantic.DeepEqual(old.Spec.ParamKind, kind)) {
			path, err = field.NewPath("spec", "paramKind"), p.accessKind(ctx, r, kind)
		}
	case *admissionregistrationv1.ValidatingAdmissionPolicyBinding:
		old, _ := r.Old.(*admissionregistrationv1.ValidatingAdmissionPolicyBinding)
		if ref := o.Spec.ParamRef; ref != nil && (old == nil || old.Spec.PolicyName != o.Spec.PolicyName || !equality.Semantic.DeepEqual(old.Spec.ParamRef, ref)) {
			err = p.accessRef(ctx, r, o.Spec.PolicyName, ref)
		}
	case *admissionregistrationv1.MutatingAdmissionPolicyBinding:
		old, _ := r.Old.(*admissionregistrationv1.MutatingAdmissionPolicyBinding)
		if ref := o.Spec.ParamRef; ref != nil && (old == nil || old.Spec.PolicyName != o.Spec.PolicyName || !equality.Semantic.DeepEqual(old.Spec.ParamRef, ref)) {
			err = p.accessRef(ctx, r, o.Spec.PolicyName, ref)
		}
	}
	if err == nil {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: r.Kind.Group, Kind: r.Kind.Kind}, r.ObjectName(), field.ErrorList{field.Forbidden(path, err.Error())})
}

// anything stands for all groups, versions and resources, for want of knowing which are meant.
func anything(r *admission.Request, verb string) *authz.Attributes {
	return &authz.Attributes{User: r.User, Verb: verb, IsResource: true, Group: "*", Version: "*", Resource: "*"}
}

// narrow limits a question to the resource of a kind, as far as that is known.
func (p *Policies) narrow(a *authz.Attributes, kind *admissionregistrationv1.ParamKind) (parse, resolve error) {
	gv, err := schema.ParseGroupVersion(kind.APIVersion)
	if err != nil {
		return err, nil
	}
	a.Group, a.Version = gv.Group, gv.Version
	k := p.cfg.Registry.ByKind(gv.WithKind(kind.Kind).GroupKind())
	if k == nil || k.Version(gv.Version) == nil {
		return nil, fmt.Errorf("no matches for kind %q in version %q", kind.Kind, kind.APIVersion)
	}
	a.Resource = k.Resource
	return nil, nil
}

func (p *Policies) accessKind(ctx context.Context, r *admission.Request, kind *admissionregistrationv1.ParamKind) error {
	a := anything(r, "get")
	a.Name, a.Namespace = "*", "*"
	_, _ = p.narrow(a, kind) // what is not known is asked for in all its forms
	d, _, err := p.cfg.Authorizer.Authorize(ctx, a)
	if err == nil && d != authz.Allowed {
		err = fmt.Errorf(`user %v must have "get" permission on all objects of the referenced paramKind (kind=%s, apiVersion=%s)`, &r.User, kind.Kind, kind.APIVersion)
	}
	return err
}

func (p *Policies) accessRef(ctx context.Context, r *admission.Request, policy string, ref *admissionregistrationv1.ParamRef) error {
	verb := "get"
	if ref.Name == "" {
		verb = "list"
	}
	a := anything(r, verb)
	a.Name, a.Namespace = ref.Name, ref.Namespace
	kind, found := p.paramKindOf(r, policy)
	var parse, resolve error
	if kind != nil {
		parse, resolve = p.narrow(a, kind)
	}
	d, _, err := p.cfg.Authorizer.Authorize(ctx, a)
	if err != nil {
		return fmt.Errorf("failed to authorize request: %w", err)
	}
	if d == authz.Allowed {
		return nil
	}
	why := ""
	switch {
	case !found:
		why = "get policy " + policy
	case parse != nil:
		why = fmt.Sprintf("parse paramKind %v", kind)
	case resolve != nil:
		why = fmt.Sprintf("resolve paramKind %v", kind)
	default:
		return fmt.Errorf(`user %v does not have "%v" permission on the object referenced by paramRef`, &r.User, verb)
	}
	return fmt.Errorf(`unable to %s to determine minimum required permissions and user %v does not have "%v" permission for all groups, versions and resources`, why, &r.User, verb)
}

// paramKindOf is the paramKind of the policy that a binding of r's kind names, and whether there is that policy.
func (p *Policies) paramKindOf(r *admission.Request, name string) (*admissionregistrationv1.ParamKind, bool) {
	resource := p.validating.policies.Name
	if r.Kind.Name() == p.mutating.bindings.Name {
		resource = p.mutating.policies.Name
	}
	e := r.Snapshot.Get(store.Key{Resource: resource, Name: name})
	if e == nil {
		return nil, false
	}
	switch o := e.Object.(api.Object).(type) {
	case *admissionregistrationv1.ValidatingAdmissionPolicy:
		return o.Spec.ParamKind, true
	case *admissionregistrationv1.MutatingAdmissionPolicy:
		return o.Spec.ParamKind, true
	}
	return nil, true
}
