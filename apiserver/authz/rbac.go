package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// RBAC allows what roles and bindings in the store allow
// (https://kubernetes.io/docs/reference/access-authn-authz/rbac/). It follows the store's history: a change costs what
// changed, and every answer includes each change that was acknowledged before the question. It is safe for concurrent use.
type RBAC struct {
	Store client.Reader

	stale atomic.Pointer[<-chan struct{}] // closed when there may be news
	mu    sync.RWMutex                    // guards index and cursor
	index *index
	// cursor stands where index does.
	cursor store.Cursor
}

// index finds the bindings of a subject, and their roles.
type index struct {
	bindings map[subject][]*binding
	roles    map[roleKey]*role
}

// subject is a user (group false) or a group.
type subject struct {
	group bool
	name  string
}

// binding gives a role in a namespace, "" for the whole cluster.
type binding struct {
	namespace, name string
	subject         rbacv1.Subject
	ref             rbacv1.RoleRef
	role            *role
	reason          atomic.Pointer[string] // why a request is allowed, made when first asked for
}

// roleKey names a role, or with namespace "" a cluster role. Kinds of roles that do not exist have keys of their own.
type roleKey struct{ kind, namespace, name string }

// role is a role that exists, or one that bindings wait for.
type role struct {
	exists bool
	rules  []rbacv1.PolicyRule // shared with the store
	bound  int                 // how many bindings name it
}

var rbacResources = []string{client.ClusterRoles.Name, client.ClusterRoleBindings.Name, client.Roles.Name, client.RoleBindings.Name}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a *Attributes) (Decision, string, error) {
	unlock, err := r.read()
	if err != nil {
		return NoOpinion, "", err
	}
	defer unlock()
	if why := r.index.allows(subject{false, a.User.Name}, a); why != "" {
		return Allowed, why, nil
	}
	for _, g := range a.User.Groups {
		if why := r.index.allows(subject{true, g}, a); why != "" {
			return Allowed, why, nil
		}
	}
	return NoOpinion, r.index.missing(a), nil
}

// allows says why a subject may do what is asked, "" if it may not.
func (ix *index) allows(s subject, a *Attributes) string {
	for _, b := range ix.bindings[s] {
		if b.concerns(a) {
			for i := range b.role.rules {
				if Covers(&b.role.rules[i], a) {
					return b.why()
				}
			}
		}
	}
	return ""
}

func (b *binding) concerns(a *Attributes) bool {
	return b.namespace == "" || a.IsResource && b.namespace == a.Namespace
}

// missing names the roles that the user is bound to and that do not exist.
func (ix *index) missing(a *Attributes) string {
	var names []string
	ix.visit(&a.User, func(b *binding) {
		if b.concerns(a) && !b.role.exists {
			names = append(names, b.absent().Error())
		}
	})
	slices.Sort(names)
	switch names = slices.Compact(names); len(names) {
	case 0:
		return ""
	case 1:
		return "RBAC: " + names[0]
	}
	return "RBAC: [" + strings.Join(names, ", ") + "]"
}

// absent is what is said of a role that does not exist.
func (b *binding) absent() error {
	switch b.ref.Kind {
	case "Role", "ClusterRole":
		return fmt.Errorf("%s.rbac.authorization.k8s.io %q not found", strings.ToLower(b.ref.Kind), b.ref.Name)
	}
	return fmt.Errorf("unsupported role reference kind: %q", b.ref.Kind)
}

// visit walks the bindings of a user.
func (ix *index) visit(u *client.User, f func(*binding)) {
	for _, b := range ix.bindings[subject{false, u.Name}] {
		f(b)
	}
	for _, g := range u.Groups {
		for _, b := range ix.bindings[subject{true, g}] {
			f(b)
		}
	}
}

// why is the reason of a request that the binding allows, as audit logs and access reviews show it.
func (b *binding) why() string {
	if p := b.reason.Load(); p != nil {
		return *p
	}
	kind, name := "ClusterRoleBinding", b.name
	if b.namespace != "" {
		kind, name = "RoleBinding", b.name+"/"+b.namespace
	}
	who := b.subject.Name
	if b.subject.Kind == rbacv1.ServiceAccountKind {
		ns := b.subject.Namespace
		if ns == "" {
			ns = b.namespace
		}
		who += "/" + ns
	}
	text := fmt.Sprintf("RBAC: allowed by %s %q of %s %q to %s %q", kind, name, b.ref.Kind, b.ref.Name, b.subject.Kind, who)
	b.reason.Store(&text)
	return text
}

// read takes the lock for reading, with an index that includes every acknowledged change.
func (r *RBAC) read() (unlock func(), err error) {
	for {
		stale := r.stale.Load()
		if stale != nil {
			select {
			case <-*stale:
				stale = nil
			default:
			}
		}
		if stale != nil {
			r.mu.RLock()
			return r.mu.RUnlock, nil
		}
		if err := r.catchUp(); err != nil {
			return nil, err
		}
	}
}

// catchUp brings the index to the present.
func (r *RBAC) catchUp() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.cursor != nil {
		ready := r.cursor.Ready()
		events, err := r.cursor.Poll()
		if err != nil {
			break // too far behind: read everything
		}
		for i := range events {
			r.index.apply(&events[i])
		}
		if len(events) == 0 {
			r.stale.Store(&ready)
			return nil
		}
	}
	return r.rebuild()
}

// rebuild reads everything; r.mu is held.
func (r *RBAC) rebuild() error {
	snap := r.Store.Snapshot()
	cursor, err := r.Store.Cursor(snap.Revision(), rbacResources...)
	if err != nil {
		return err
	}
	ix := &index{bindings: map[subject][]*binding{}, roles: map[roleKey]*role{}}
	for _, resource := range rbacResources {
		for e := range snap.List(resource, "", nil) {
			ix.put(e, true)
		}
	}
	r.index, r.cursor = ix, cursor
	ready := cursor.Ready()
	r.stale.Store(&ready)
	return nil
}

// apply follows one change.
func (ix *index) apply(ev *store.Event) {
	if ev.Prev != nil {
		ix.put(ev.Prev, false)
	}
	if !ev.Deleted {
		ix.put(ev.Entry, true)
	}
}

// put adds an object or takes it away.
func (ix *index) put(e *store.Entry, add bool) {
	switch o := e.Object.(type) {
	case *rbacv1.ClusterRole:
		ix.define(roleKey{"ClusterRole", "", o.Name}, o.Rules, add)
	case *rbacv1.Role:
		ix.define(roleKey{"Role", o.Namespace, o.Name}, o.Rules, add)
	case *rbacv1.ClusterRoleBinding:
		ix.bind("", o.Name, o.RoleRef, o.Subjects, add)
	case *rbacv1.RoleBinding:
		ix.bind(o.Namespace, o.Name, o.RoleRef, o.Subjects, add)
	}
}

// role is the role of a key, whether it exists or not.
func (ix *index) role(key roleKey) *role {
	r := ix.roles[key]
	if r == nil {
		r = &role{}
		ix.roles[key] = r
	}
	return r
}

func (ix *index) define(key roleKey, rules []rbacv1.PolicyRule, exists bool) {
	r := ix.role(key)
	r.exists, r.rules = exists, nil
	if exists {
		r.rules = rules
	}
	ix.forget(key, r)
}

// forget drops a role that does not exist and that nothing names.
func (ix *index) forget(key roleKey, r *role) {
	if !r.exists && r.bound == 0 {
		delete(ix.roles, key)
	}
}

func keyOf(ref rbacv1.RoleRef, namespace string) roleKey {
	if ref.Kind != "Role" {
		namespace = ""
	}
	return roleKey{ref.Kind, namespace, ref.Name}
}

func (ix *index) bind(namespace, name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject, add bool) {
	key := keyOf(ref, namespace)
	r := ix.role(key)
	for _, s := range subjects {
		who, ok := subjectOf(&s, namespace)
		if !ok {
			continue
		}
		if add {
			ix.bindings[who] = append(ix.bindings[who], &binding{namespace: namespace, name: name, subject: s, ref: ref, role: r})
			r.bound++
			continue
		}
		left := slices.DeleteFunc(ix.bindings[who], func(b *binding) bool { return b.namespace == namespace && b.name == name })
		r.bound -= len(ix.bindings[who]) - len(left)
		if ix.bindings[who] = left; len(left) == 0 {
			delete(ix.bindings, who)
		}
	}
	ix.forget(key, r)
}

// subjectOf is whom a subject of a binding means.
func subjectOf(s *rbacv1.Subject, namespace string) (subject, bool) {
	switch s.Kind {
	case rbacv1.UserKind:
		return subject{false, s.Name}, true
	case rbacv1.GroupKind:
		return subject{true, s.Name}, true
	case rbacv1.ServiceAccountKind:
		if s.Namespace != "" {
			namespace = s.Namespace
		}
		return subject{false, "system:serviceaccount:" + namespace + ":" + s.Name}, namespace != ""
	}
	return subject{}, false
}

// Covers tells whether a rule allows a request.
func Covers(rule *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(rule.Verbs, a.Verb) {
		return false
	}
	if !a.IsResource {
		return slices.ContainsFunc(rule.NonResourceURLs, func(u string) bool {
			return u == a.Path || strings.HasSuffix(u, "*") && strings.HasPrefix(a.Path, strings.TrimRight(u, "*"))
		})
	}
	return has(rule.APIGroups, a.Group) && coversResource(rule.Resources, a) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, a.Name))
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == "*" || s == want {
			return true
		}
	}
	return false
}

func coversResource(resources []string, a *Attributes) bool {
	for _, r := range resources {
		if r == "*" {
			return true
		}
		if a.Subresource == "" {
			if r == a.Resource {
				return true
			}
			continue
		}
		if name, sub, ok := strings.Cut(r, "/"); ok && sub == a.Subresource && (name == a.Resource || name == "*") {
			return true
		}
	}
	return false
}

// PolicyRules are the rules that bindings give to a user in a namespace, or in the whole cluster for "". An error names
// roles that do not exist; the rules of the others are there then, too.
func (r *RBAC) PolicyRules(user client.User, namespace string) ([]rbacv1.PolicyRule, error) {
	var all []rbacv1.PolicyRule
	var errs []error
	err := r.each(&user, namespace, func(b *binding) {
		all = append(all, b.role.rules...)
		if !b.role.exists {
			errs = append(errs, b.absent())
		}
	})
	if err != nil {
		return nil, err
	}
	return all, errors.Join(errs...)
}

// each walks the bindings that concern a user in a namespace, under the lock.
func (r *RBAC) each(user *client.User, namespace string, f func(*binding)) error {
	unlock, err := r.read()
	if err != nil {
		return err
	}
	defer unlock()
	r.index.visit(user, func(b *binding) {
		if b.namespace == "" || b.namespace == namespace {
			f(b)
		}
	})
	return nil
}

// RoleRules are the rules of the role that a binding in a namespace ("" for a ClusterRoleBinding) names. It is NotFound if there is
// no such role.
func (r *RBAC) RoleRules(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	unlock, err := r.read()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if found := r.index.roles[keyOf(ref, namespace)]; found != nil && found.exists {
		return found.rules, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: strings.ToLower(ref.Kind) + "s"}, ref.Name)
}

// Rules lists what a user may do in a namespace, for SelfSubjectRulesReview. An error says that the list may not be whole; incomplete, which
// this never is, that there are rights which cannot be listed.
func (r *RBAC) Rules(user client.User, namespace string) (_ []authorizationv1.ResourceRule, _ []authorizationv1.NonResourceRule, incomplete bool, _ error) {
	rules, err := r.PolicyRules(user, namespace)
	var resources []authorizationv1.ResourceRule
	var paths []authorizationv1.NonResourceRule
	for i := range rules {
		rule := &rules[i]
		if len(rule.Resources) > 0 {
			resources = append(resources, authorizationv1.ResourceRule{
				Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
			})
		}
		if len(rule.NonResourceURLs) > 0 {
			paths = append(paths, authorizationv1.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
		}
	}
	return resources, paths, false, err
}
