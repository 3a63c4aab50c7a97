package policy

import (
	"context"
	"errors"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	evaluate "coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/store"
)

// params reads the parameters of a policy. Nil stands for a policy without.
type params struct {
	gvk     schema.GroupVersionKind
	kind    *api.Kind
	version *api.Version
}

// paramKind finds the kind of the parameters; k may be nil.
func (p *Policies) paramKind(k *admissionregistrationv1.ParamKind) (*params, error) {
	if k == nil {
		return nil, nil
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("failed to parse paramKind APIVersion: %w", err)
	}
	out := &params{gvk: gv.WithKind(k.Kind)}
	if out.kind = p.cfg.Registry.ByKind(out.gvk.GroupKind()); out.kind != nil && !out.kind.Virtual {
		out.version = out.kind.Version(gv.Version)
	}
	if out.version == nil || out.version.NotServed {
		return nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", out.gvk)
	}
	return out, nil
}

// collect gives the parameters that a binding refers to, with their TypeMeta: one nil for a policy or binding without parameters, and nothing
// if there are none and that is allowed. The words are upstream's.
func (p *params) collect(ctx context.Context, r *admission.Request, ref *admissionregistrationv1.ParamRef) ([]runtime.Object, error) {
	if p == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	namespace, err := p.namespace(r, ref)
	if err != nil {
		return nil, err
	}
	var entries []*store.Entry
	switch {
	case ref.Name != "" && ref.Selector != nil:
		return nil, errors.New("paramRef.name and paramRef.selector are mutually exclusive")
	case ref.Name != "":
		if e := r.Snapshot.Get(store.Key{Resource: p.stored(), Namespace: namespace, Name: ref.Name}); e != nil {
			entries = append(entries, e)
		}
	case ref.Selector != nil:
		if entries, err = p.selected(r.Snapshot, namespace, ref.Selector); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("one of name or selector must be provided")
	}
	if len(entries) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionregistrationv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	out := make([]runtime.Object, len(entries))
	for i, e := range entries {
		obj, err := wire.FromHub(ctx, p.version, e.Object.(api.Object))
		if err != nil {
			return nil, fmt.Errorf("failed to convert param: %w", err)
		}
		out[i] = evaluate.Typed(obj, p.gvk)
	}
	return out, nil
}

// namespace is where the parameters are, "" for cluster-scoped ones.
func (p *params) namespace(r *admission.Request, ref *admissionregistrationv1.ParamRef) (string, error) {
	if !p.kind.Namespaced {
		if ref.Namespace != "" {
			return "", errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
		}
		return "", nil
	}
	if ref.Namespace != "" {
		return ref.Namespace, nil
	}
	if ns := r.ObjectNamespace(); ns != "" {
		return ns, nil
	}
	return "", errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
}

func (p *params) stored() string {
	if p.kind.StoredAs != "" {
		return p.kind.StoredAs
	}
	return p.kind.Name()
}

func (p *params) selected(snap store.Snapshot, namespace string, s *metav1.LabelSelector) ([]*store.Entry, error) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, err
	}
	var out []*store.Entry
	for e := range snap.List(p.stored(), namespace, nil) {
		if selector.Matches(labels.Set(e.Object.(api.Object).GetLabels())) {
			out = append(out, e)
		}
	}
	return out, nil
}
