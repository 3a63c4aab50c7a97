package expression

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/library"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// Input is one request as expressions see it. Values are made when an expression first looks at them and then kept, so that several
// webhooks and policies which see the request in the same version should share an Input. It is used by one goroutine, and
// what it points to does not change while it is.
type Input struct {
	// Object and Old are the new and the old object in the matched version with their TypeMeta (see Typed), nil if there is
	// none.
	Object, Old runtime.Object
	// Request is what expressions know of the request itself; the objects in it are not looked at.
	Request *admissionv1.AdmissionRequest
	// Params are the parameters of a policy with their TypeMeta, nil for none.
	Params runtime.Object
	// Namespace is that of the request, nil if it has none.
	Namespace *corev1.Namespace
	// Authorizer answers the authorizer's checks, of User if they name no service account. Nil: there is none.
	Authorizer authz.Authorizer
	User       client.User

	values values
}

type values struct {
	object, old, request, namespace, authorizer, resource ref.Val
	params                                                ref.Val
	answers                                               *answers
}

// NewInput makes the Input of a request that matched, all but Params. Requests without namespace have no Namespace, and those for
// namespaces neither. The context bounds conversion.
func NewInput(ctx context.Context, r *admission.Request, m *match.Match, a authz.Authorizer) (*Input, error) {
	in := &Input{Request: NewRequest(r, m), Authorizer: a, User: r.User}
	for _, one := range []struct {
		to   *runtime.Object
		from runtime.Object
	}{{&in.Object, match.Object(r)}, {&in.Old, match.Old(r)}} {
		if one.from == nil {
			continue
		}
		shown, err := m.Convert(ctx, one.from)
		if err != nil {
			return nil, err
		}
		*one.to = Typed(shown, m.Kind)
	}
	if r.Namespace != "" && r.Kind.Name() != client.Namespaces.Name {
		if ns, ok := client.Namespaces.Get(r.Snapshot, "", r.Namespace); ok {
			in.Namespace = ns
		}
	}
	return in, nil
}

// NewRequest describes a request as webhooks and expressions are told of it, without objects and without a UID.
func NewRequest(r *admission.Request, m *match.Match) *admissionv1.AdmissionRequest {
	own := match.Own(r)
	dryRun := r.DryRun
	kind, resource := metav1.GroupVersionKind(own.Kind), metav1.GroupVersionResource(own.Resource)
	return &admissionv1.AdmissionRequest{
		Kind: metav1.GroupVersionKind(m.Kind), Resource: metav1.GroupVersionResource(m.Resource), SubResource: m.Subresource,
		RequestKind: &kind, RequestResource: &resource, RequestSubResource: r.Subresource,
		Name: r.ObjectName(), Namespace: r.ObjectNamespace(), Operation: admissionv1.Operation(r.Operation),
		UserInfo: userInfo(&r.User), DryRun: &dryRun, Options: runtime.RawExtension{Object: r.OperationOptions()},
	}
}

func userInfo(u *client.User) authenticationv1.UserInfo {
	extra := make(map[string]authenticationv1.ExtraValue, len(u.Extra))
	for k, v := range u.Extra {
		extra[k] = v
	}
	return authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups, Extra: extra}
}

// Typed is an object with its TypeMeta set: the object itself if it says what it is, else a shallow copy that shares everything
// else.
func Typed(obj runtime.Object, kind schema.GroupVersionKind) runtime.Object {
	if obj == nil || obj.GetObjectKind().GroupVersionKind() == kind {
		return obj
	}
	v := reflect.ValueOf(obj)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return obj
	}
	if u, ok := obj.(interface{ UnstructuredContent() map[string]any }); ok {
		return untyped(u.UnstructuredContent(), kind)
	}
	copied := reflect.New(v.Type().Elem())
	copied.Elem().Set(v.Elem())
	out := copied.Interface().(runtime.Object)
	out.GetObjectKind().SetGroupVersionKind(kind)
	return out
}

// untyped is unstructured content with its type set, on a map of its own if it has to be changed.
func untyped(content map[string]any, kind schema.GroupVersionKind) *unstructured.Unstructured {
	own := maps.Clone(content)
	if own == nil {
		own = map[string]any{}
	}
	u := &unstructured.Unstructured{Object: own}
	u.SetGroupVersionKind(kind)
	return u
}

// share takes over what another Input of the same request has made.
func (in *Input) share(from *Input) {
	namespace := in.values.namespace
	in.values = from.values
	in.values.namespace = namespace
}

// WithParams is the same request with other parameters.
func (in *Input) WithParams(params runtime.Object) *Input {
	out := *in
	out.Params, out.values.params = params, nil
	return &out
}

// WithObject is the same request with another new object.
func (in *Input) WithObject(obj runtime.Object) *Input {
	out := *in
	out.Object, out.values.object = obj, nil
	return &out
}

func value(obj any) ref.Val {
	if u, ok := obj.(interface{ UnstructuredContent() map[string]any }); ok {
		return celtypes.DefaultTypeAdapter.NativeToValue(u.UnstructuredContent())
	}
	return common.SchemalessTypedToVal(obj)
}

func once(v *ref.Val, obj any) ref.Val {
	if *v == nil {
		*v = value(obj)
	}
	return *v
}

func (in *Input) object() ref.Val    { return once(&in.values.object, in.Object) }
func (in *Input) oldObject() ref.Val { return once(&in.values.old, in.Old) }
func (in *Input) params() ref.Val    { return once(&in.values.params, in.Params) }
func (in *Input) request() ref.Val   { return once(&in.values.request, in.Request) }
func (in *Input) namespace() ref.Val { return once(&in.values.namespace, in.Namespace) }

func (in *Input) checks() (user.Info, *answers) {
	if in.values.answers == nil {
		in.values.answers = &answers{authorizer: in.Authorizer}
	}
	return userOf{&in.User}, in.values.answers
}

func (in *Input) authorizerValue() ref.Val {
	if in.values.authorizer == nil {
		who, answers := in.checks()
		in.values.authorizer = library.NewAuthorizerVal(who, answers)
	}
	return in.values.authorizer
}

func (in *Input) requestResource() ref.Val {
	if in.values.resource == nil {
		who, answers := in.checks()
		in.values.resource = library.NewResourceAuthorizerVal(who, answers, resourceOf{in.Request})
	}
	return in.values.resource
}

// resourceOf is what a request is about, as the authorizer library asks for it.
type resourceOf struct{ r *admissionv1.AdmissionRequest }

func (o resourceOf) GetName() string        { return o.r.Name }
func (o resourceOf) GetNamespace() string   { return o.r.Namespace }
func (o resourceOf) GetSubresource() string { return o.r.RequestSubResource }
func (o resourceOf) GetResource() schema.GroupVersionResource {
	return schema.GroupVersionResource(*o.r.RequestResource)
}

// userOf is a user as the authorizer library asks for it.
type userOf struct{ u *client.User }

func (o userOf) GetName() string               { return o.u.Name }
func (o userOf) GetUID() string                { return o.u.UID }
func (o userOf) GetGroups() []string           { return o.u.Groups }
func (o userOf) GetExtra() map[string][]string { return o.u.Extra }

// answers asks the authorizer, each question once for a request.
type answers struct {
	authorizer authz.Authorizer
	known      map[string]answer
}

type answer struct {
	decision authorizer.Decision
	reason   string
	err      error
}

// Authorize answers one question.
func (s *answers) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	u := a.GetUser()
	q := authz.Attributes{
		User: client.User{Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: u.GetExtra()},
		Verb: a.GetVerb(), IsResource: a.IsResourceRequest(), Path: a.GetPath(),
		Group: a.GetAPIGroup(), Version: a.GetAPIVersion(), Resource: a.GetResource(), Subresource: a.GetSubresource(),
		Namespace: a.GetNamespace(), Name: a.GetName(),
	}
	// As upstream: selectors that cannot be read are none, which asks for more.
	q.Fields, _ = a.GetFieldSelector()
	q.Labels, _ = a.GetLabelSelector()
	key := strings.Join([]string{q.User.Name, q.Verb, q.Path, q.Group, q.Version, q.Resource, q.Subresource, q.Namespace, q.Name,
		fmt.Sprintf("%q %q", q.Fields, q.Labels)}, "\x00")
	if known, ok := s.known[key]; ok {
		return known.decision, known.reason, known.err
	}
	d, reason, err := s.authorizer.Authorize(ctx, &q)
	out := answer{authorizer.DecisionNoOpinion, reason, err}
	switch d {
	case authz.Allowed:
		out.decision = authorizer.DecisionAllow
	case authz.Denied:
		out.decision = authorizer.DecisionDeny
	}
	if s.known == nil {
		s.known = map[string]answer{}
	}
	s.known[key] = out
	return out.decision, out.reason, out.err
}
