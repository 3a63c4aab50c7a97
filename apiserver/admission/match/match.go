// Package match decides which requests a webhook or an admission policy concerns, and in which version it is
// shown them.
//
// It owns rules, selectors and the equivalence of versions
// (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules). It
// calls nobody, keeps no object and changes none. A request that does not match costs no allocation.
package match

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/client"
)

// Criteria say which requests are meant, as the API objects hold them.
type Criteria struct {
	// Rules: a request matches if one of them does. No rules match every request.
	Rules []admissionv1.NamedRuleWithOperations
	// Exclude: a request that one of them matches is left out.
	Exclude []admissionv1.NamedRuleWithOperations
	// NamespaceSelector looks at the labels of a namespaced object's namespace, or of the namespace that the request
	// is about. Other requests pass it. Nil selects everything.
	NamespaceSelector *metav1.LabelSelector
	// ObjectSelector looks at the labels of the new and the old object, of which one is enough. Nil selects everything.
	ObjectSelector *metav1.LabelSelector
	// Policy Equivalent takes requests in other versions of the same resource too; empty is Exact.
	Policy admissionv1.MatchPolicyType
}

// Rules gives the rules of a webhook the form that Criteria take.
func Rules(rules []admissionv1.RuleWithOperations) []admissionv1.NamedRuleWithOperations {
	out := make([]admissionv1.NamedRuleWithOperations, len(rules))
	for i := range rules {
		out[i].RuleWithOperations = rules[i]
	}
	return out
}

// Matcher is compiled Criteria. It is immutable to its users and safe for concurrent use.
type Matcher struct {
	rules, exclude     []rule
	namespaces, labels labels.Selector // nil selects everything
	equivalent         bool
	shared             atomic.Pointer[sharing]
}

// Match is how a request is shown to whom it matches. The zero Match shows nothing.
type Match struct {
	// Kind is the type of the object as it is shown: of the resource in the matched version, of the subresource
	// (autoscaling/v1 Scale), or of the options of a CONNECT (v1 PodExecOptions).
	Kind schema.GroupVersionKind
	// Resource is the matched resource; Subresource is "" for the resource itself.
	Resource    schema.GroupVersionResource
	Subresource string

	version *api.Version // converts; nil where the object is shown as it is
}

// Compile prepares criteria. An error says which selector does not parse.
func Compile(c Criteria) (*Matcher, error) {
	m := &Matcher{equivalent: c.Policy == admissionv1.Equivalent}
	m.rules, m.exclude = compileRules(c.Rules), compileRules(c.Exclude)
	var err error
	if m.namespaces, err = selector(c.NamespaceSelector); err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	if m.labels, err = selector(c.ObjectSelector); err != nil {
		return nil, fmt.Errorf("objectSelector: %w", err)
	}
	return m, nil
}

// selector compiles a label selector; nil selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return nil, nil
	}
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || out.Empty() {
		return nil, err
	}
	return out, nil
}

// operations is a set of operations as bits.
type operations uint8

func bit(op admission.Operation) operations {
	switch op {
	case admission.Create:
		return 1
	case admission.Update:
		return 2
	case admission.Delete:
		return 4
	case admission.Connect:
		return 8
	}
	return 0
}

// rule is one compiled rule.
type rule struct {
	operations       operations
	groups, versions []string // nil for all
	resources        []resource
	names            []string // nil for all
	scope            admissionv1.ScopeType
}

type resource struct{ name, sub string }

func compileRules(list []admissionv1.NamedRuleWithOperations) []rule {
	out := make([]rule, len(list))
	for i := range list {
		in, r := &list[i], &out[i]
		for _, op := range in.Operations {
			if op == admissionv1.OperationAll {
				r.operations = ^operations(0)
			}
			r.operations |= bit(admission.Operation(op))
		}
		r.groups, r.versions = wildcard(in.APIGroups), wildcard(in.APIVersions)
		for _, full := range in.Resources {
			name, sub, _ := strings.Cut(full, "/")
			r.resources = append(r.resources, resource{name, sub})
		}
		r.names = in.ResourceNames
		r.scope = admissionv1.AllScopes
		if in.Scope != nil {
			r.scope = *in.Scope
		}
	}
	return out
}

// wildcard is nil for a list with "*" in it. A list without entries matches nothing.
func wildcard(list []string) []string {
	if slices.Contains(list, "*") {
		return nil
	}
	if list == nil {
		return []string{}
	}
	return list
}

func has(list []string, s string) bool { return list == nil || slices.Contains(list, s) }

// matches tells whether a rule takes a request, seen as one for a resource of a group and version.
func (r *rule) matches(q *admission.Request, group, version, resource string) bool {
	return r.operations&bit(q.Operation) != 0 && r.inScope(q) &&
		has(r.groups, group) && has(r.versions, version) && r.takes(resource, q.Subresource) &&
		(len(r.names) == 0 || slices.Contains(r.names, q.ObjectName()))
}

// inScope: namespaces are cluster-scoped themselves.
func (r *rule) inScope(q *admission.Request) bool {
	switch r.scope {
	case admissionv1.AllScopes:
		return true
	case admissionv1.NamespacedScope:
		return q.Kind.Namespaced
	case admissionv1.ClusterScope:
		return !q.Kind.Namespaced
	}
	return false
}

func (r *rule) takes(name, sub string) bool {
	for i := range r.resources {
		if p := &r.resources[i]; (p.name == "*" || p.name == name) && (p.sub == "*" || p.sub == sub) {
			return true
		}
	}
	return false
}

// Match tells whether a request matches, and how it is to be shown. Where several versions could be shown, that of the request
// comes first, then the order of the rules decides. An error is a status for the client: the request would match, but what the
// namespace selector has to look at is not there.
func (m *Matcher) Match(reg *api.Registry, r *admission.Request) (Match, bool, error) {
	var found Match
	if len(m.rules) > 0 {
		var ok bool
		if found, ok = m.find(m.rules, reg, r); !ok {
			return Match{}, false, nil
		}
	}
	if m.labels != nil && !m.selects(r) {
		return Match{}, false, nil
	}
	if len(m.exclude) > 0 {
		if _, ok := m.find(m.exclude, reg, r); ok {
			return Match{}, false, nil
		}
	}
	if m.namespaces != nil {
		if ok, err := m.inNamespace(r); !ok || err != nil {
			return Match{}, false, err
		}
	}
	if len(m.rules) == 0 {
		found = Own(r)
	}
	return found, true, nil
}

// find looks for a rule that takes the request as it is, then for one that takes it in an equivalent form.
func (m *Matcher) find(rules []rule, reg *api.Registry, r *admission.Request) (Match, bool) {
	version := versionOf(r)
	for i := range rules {
		if rules[i].matches(r, r.Kind.Group, version, r.Kind.Resource) {
			return Own(r), true
		}
	}
	if !m.equivalent {
		return Match{}, false
	}
	siblings := m.siblings(reg, r.Kind)
	if len(r.Kind.Versions) == 1 && len(siblings) == 0 {
		return Match{}, false
	}
	for i := range rules {
		if rules[i].operations&bit(r.Operation) == 0 {
			continue
		}
		if v := equivalent(&rules[i], r, r.Kind, version); v != nil {
			return in(r, r.Kind, v), true
		}
		for _, k := range siblings {
			if v := equivalent(&rules[i], r, k, ""); v != nil {
				return in(r, k, v), true
			}
		}
	}
	return Match{}, false
}

// equivalent finds the first served version of a kind, but for one, in which a rule takes the request.
func equivalent(rule *rule, r *admission.Request, k *api.Kind, except string) *api.Version {
	var sub *api.Subresource
	if r.Subresource != "" {
		if sub = k.Subresource(r.Subresource); sub == nil {
			return nil
		}
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.NotServed || v.Name == except || sub != nil && sub.Versions != nil && !slices.Contains(sub.Versions, v.Name) {
			continue
		}
		if rule.matches(r, k.Group, v.Name, k.Resource) {
			return v
		}
	}
	return nil
}

// sharing says which kinds show the same objects as others, for one generation of a registry.
type sharing struct {
	generation int64
	kinds      map[string][]*api.Kind // by the name of where the objects are stored
}

// siblings are the other kinds that show the same objects (events of two groups).
func (m *Matcher) siblings(reg *api.Registry, k *api.Kind) []*api.Kind {
	s := m.shared.Load()
	if s == nil || s.generation != reg.Generation() {
		s = share(reg)
		m.shared.Store(s)
	}
	if len(s.kinds) == 0 {
		return nil
	}
	name := k.StoredAs
	if name == "" {
		name = k.Name()
	}
	all := s.kinds[name]
	for i := range all {
		if all[i] == k {
			return slices.Concat(all[:i], all[i+1:])
		}
	}
	return all
}

func share(reg *api.Registry) *sharing {
	s := &sharing{generation: reg.Generation()}
	for _, k := range reg.All() {
		if k.StoredAs == "" {
			continue
		}
		if s.kinds == nil {
			s.kinds = map[string][]*api.Kind{}
		}
		if base := reg.ByName(k.StoredAs); base != nil && len(s.kinds[k.StoredAs]) == 0 {
			s.kinds[k.StoredAs] = append(s.kinds[k.StoredAs], base)
		}
		s.kinds[k.StoredAs] = append(s.kinds[k.StoredAs], k)
	}
	return s
}

// selects looks at the labels of the new and the old object.
func (m *Matcher) selects(r *admission.Request) bool {
	return r.Object != nil && m.labels.Matches(labels.Set(r.Object.GetLabels())) ||
		r.Old != nil && m.labels.Matches(labels.Set(r.Old.GetLabels()))
}

const namespaces = "namespaces"

// inNamespace looks at the labels of the namespace. One that is being written counts as it will be.
func (m *Matcher) inNamespace(r *admission.Request) (bool, error) {
	name := r.Namespace
	if r.Kind.Name() == namespaces {
		if r.Subresource == "" && (r.Operation == admission.Create || r.Operation == admission.Update) {
			return m.namespaces.Matches(labels.Set(r.Object.GetLabels())), nil
		}
		name = r.Name
	} else if !r.Kind.Namespaced {
		return true, nil
	}
	ns, ok := client.Namespaces.Get(r.Snapshot, "", name)
	if !ok {
		return false, apierrors.NewNotFound(schema.GroupResource{Resource: namespaces}, name)
	}
	return m.namespaces.Matches(labels.Set(ns.Labels)), nil
}

// versionOf is the version of a request. Writers in this process speak the hub.
func versionOf(r *admission.Request) string {
	if r.Version != "" {
		return r.Version
	}
	return r.Kind.Hub().Name
}

// Own is the request as it was made: its own kind and resource.
func Own(r *admission.Request) Match {
	v := r.Kind.Version(r.Version)
	if v == nil {
		v = r.Kind.Hub()
	}
	return in(r, r.Kind, v)
}

// in is the request seen in a version of a kind.
func in(r *admission.Request, k *api.Kind, v *api.Version) Match {
	m := Match{
		Kind:        schema.GroupVersionKind{Group: k.Group, Version: v.Name, Kind: k.Kind},
		Resource:    schema.GroupVersionResource{Group: k.Group, Version: v.Name, Resource: k.Resource},
		Subresource: r.Subresource,
		version:     v,
	}
	if r.Subresource != "" {
		if s := k.Subresource(r.Subresource); s != nil && !s.Type.Empty() {
			m.Kind, m.version = s.Type, nil
		}
	}
	return m
}

// Object is the new object of a request in whatever form it has: nil on Delete, the options on Connect.
func Object(r *admission.Request) runtime.Object {
	switch {
	case r.Operation == admission.Connect:
		return r.Options
	case r.Object == nil:
		return nil
	}
	return r.Object
}

// Old is the old object of a request, nil if there is none.
func Old(r *admission.Request) runtime.Object {
	if r.Old == nil {
		return nil
	}
	return r.Old
}

// Convert gives an object of the request (Object or Old) in the matched version. It may be the same object, never to be
// changed; its TypeMeta may be empty, Kind says what it is. Nil stays nil.
func (m *Match) Convert(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
	hub, ok := obj.(api.Object)
	if m.version == nil || !ok {
		return obj, nil
	}
	switch {
	case m.version.Convert != nil:
		out, err := m.version.Convert(ctx, []api.Object{hub})
		if err != nil {
			return nil, err
		}
		return out[0], nil
	case m.version.FromHub != nil:
		return m.version.FromHub(hub)
	}
	return obj, nil
}

// New is an empty object of the matched version, to decode what came back into. like is the object that was shown.
func (m *Match) New(like runtime.Object) runtime.Object {
	if m.version != nil {
		return m.version.New()
	}
	return empty(like)
}

// Restore turns an object of the matched version, as it was decoded from what came back, into what Request.Object is: what the version
// does not know is taken out, and what it lacks has its defaults. The object belongs to the result.
func (m *Match) Restore(ctx context.Context, r *admission.Request, obj runtime.Object) (api.Object, error) {
	out, ok := obj.(api.Object)
	if !ok {
		return nil, fmt.Errorf("%T has no metadata", obj)
	}
	if m.version == nil {
		return out, nil
	}
	if m.version.Settle != nil {
		if _, err := m.version.Settle(out, false); err != nil {
			return nil, err
		}
	}
	hub, err := m.toHub(ctx, r.Kind, out)
	if err != nil {
		return nil, err
	}
	if r.Kind.Default != nil {
		r.Kind.Default(hub)
	}
	return hub, nil
}

func (m *Match) toHub(ctx context.Context, k *api.Kind, obj api.Object) (api.Object, error) {
	if m.version.ToHub != nil {
		return m.version.ToHub(obj)
	}
	if hub := k.Hub(); hub.Convert != nil && hub.Name != m.version.Name {
		out, err := hub.Convert(ctx, []api.Object{obj})
		if err != nil {
			return nil, err
		}
		return out[0], nil
	}
	return obj, nil
}

// Exempt tells the requests that no webhook and no policy is asked about: those for the configurations of webhooks and policies
// themselves, so that a bad one can always be taken away.
func Exempt(r *admission.Request) bool {
	return r.Kind.Group == admissionv1.GroupName
}

// Virtual tells the requests that no policy is asked about: reviews of who a user is and what they may do, on which the cluster
// itself depends.
func Virtual(r *admission.Request) bool {
	return r.Kind.Virtual && (r.Kind.Group == "authentication.k8s.io" || r.Kind.Group == "authorization.k8s.io")
}
