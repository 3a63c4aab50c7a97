package authz

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/rbac"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func newStore(t testing.TB) store.Store {
	t.Helper()
	s := memory.New(client.StoreOptions(api.NewRegistry(append(rbac.Kinds(), core.Kinds()...)...), 0))
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t testing.TB, s store.Store, resource string, obj api.Object) {
	t.Helper()
	op := store.Op{Key: store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}, Object: obj, Expect: store.ExpectAny}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, s store.Store, resource, namespace, name string) {
	t.Helper()
	op := store.Op{Key: store.Key{Resource: resource, Namespace: namespace, Name: name}, Delete: true, Expect: store.ExpectAny}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

// model decides as the documentation says, from the objects and nothing else: it expands every rule into the
// single permissions that it stands for, over the small world of the test, and looks the request up.
type model struct {
	clusterRoles, roles       map[string][]rbacv1.PolicyRule // "name", "namespace/name"
	clusterBindings, bindings map[string]rbacv1.RoleBinding  // without a namespace for those of the cluster
}

// The world of the test.
var (
	worldVerbs      = []string{"get", "list", "create", "impersonate"}
	worldGroups     = []string{"", "apps", "example.com"}
	worldResources  = []string{"pods", "pods/log", "pods/exec", "deployments", "deployments/scale", "secrets"}
	worldNames      = []string{"", "a", "b"}
	worldNamespaces = []string{"", "red", "blue"}
	worldPaths      = []string{"/", "/metrics", "/healthz", "/healthz/ping", "/apis/apps", "/logs/a/b"}
	worldUsers      = []client.User{
		{Name: "ann", Groups: []string{"devs", client.GroupAuthenticated}},
		{Name: "bob", Groups: []string{client.GroupAuthenticated}},
		{Name: "devs", Groups: []string{client.GroupAuthenticated}}, // named as a group is
		client.ServiceAccountUser("red", "robot", ""),
		client.ServiceAccountUser("blue", "robot", ""),
		{Name: client.UserAnonymous, Groups: []string{client.GroupUnauthenticated}},
	}
)

// permission is one thing that can be allowed.
type permission struct{ verb, group, resource, name, path string }

// expand lists the permissions of the world that a rule stands for.
func expand(rule rbacv1.PolicyRule) map[permission]bool {
	out := map[permission]bool{}
	matches := func(pattern, value string) bool { return pattern == "*" || pattern == value }
	for _, verb := range worldVerbs {
		if !slices.ContainsFunc(rule.Verbs, func(p string) bool { return matches(p, verb) }) {
			continue
		}
		for _, path := range worldPaths {
			for _, p := range rule.NonResourceURLs {
				if p == path || p == "*" || len(p) > 1 && p[len(p)-1] == '*' && len(path) >= len(p)-1 && path[:len(p)-1] == p[:len(p)-1] {
					out[permission{verb: verb, path: path}] = true
				}
			}
		}
		for _, group := range worldGroups {
			if !slices.ContainsFunc(rule.APIGroups, func(p string) bool { return matches(p, group) }) {
				continue
			}
			for _, resource := range worldResources {
				_, sub, _ := strings.Cut(resource, "/")
				for _, p := range rule.Resources {
					if matches(p, resource) || sub != "" && p == "*/"+sub {
						for _, name := range worldNames {
							if len(rule.ResourceNames) == 0 || name != "" && slices.Contains(rule.ResourceNames, name) {
								out[permission{verb, group, resource, name, ""}] = true
							}
						}
					}
				}
			}
		}
	}
	return out
}

// means tells whether a subject is a user, in words of users and groups only.
func means(s rbacv1.Subject, u client.User, namespace string) bool {
	switch s.Kind {
	case "User":
		return u.Name == s.Name
	case "Group":
		return slices.Contains(u.Groups, s.Name)
	}
	ns := s.Namespace
	if ns == "" {
		ns = namespace
	}
	return ns != "" && u.Name == fmt.Sprintf("system:serviceaccount:%s:%s", ns, s.Name)
}

func (m *model) allows(u client.User, namespace string, p permission) bool {
	given := func(b rbacv1.RoleBinding) bool {
		if !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return means(s, u, b.Namespace) }) {
			return false
		}
		rules := m.clusterRoles[b.RoleRef.Name]
		if b.RoleRef.Kind == "Role" {
			rules = m.roles[b.Namespace+"/"+b.RoleRef.Name]
		}
		return slices.ContainsFunc(rules, func(r rbacv1.PolicyRule) bool { return expand(r)[p] })
	}
	for _, b := range m.clusterBindings {
		if given(b) {
			return true
		}
	}
	for _, b := range m.bindings {
		if p.path == "" && b.Namespace == namespace && given(b) {
			return true
		}
	}
	return false
}

// pick returns up to n of a list.
func pick(r *rand.Rand, n int, from ...string) []string {
	var out []string
	for range 1 + r.IntN(n) {
		out = append(out, from[r.IntN(len(from))])
	}
	return out
}

func randomRules(r *rand.Rand, namespaced bool) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for range r.IntN(3) {
		rule := rbacv1.PolicyRule{Verbs: pick(r, 2, append(worldVerbs, "*")...)}
		if !namespaced && r.IntN(3) == 0 {
			rule.NonResourceURLs = pick(r, 2, append(worldPaths, "*", "/healthz*", "/apis/*", "/logs/*")...)
		} else {
			rule.APIGroups = pick(r, 2, append(worldGroups, "*")...)
			rule.Resources = pick(r, 3, append(worldResources, "*", "*/scale", "*/log", "pods/*")...)
			if r.IntN(3) == 0 {
				rule.ResourceNames = pick(r, 2, "a", "b")
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func randomSubjects(r *rand.Rand) []rbacv1.Subject {
	all := []rbacv1.Subject{
		{Kind: "User", Name: "ann"}, {Kind: "User", Name: "devs"}, {Kind: "User", Name: "system:serviceaccount:red:robot"},
		{Kind: "Group", Name: "devs"}, {Kind: "Group", Name: client.GroupAuthenticated}, {Kind: "Group", Name: "system:serviceaccounts:blue"},
		{Kind: "Group", Name: client.GroupUnauthenticated}, {Kind: "Group", Name: "bob"},
		{Kind: "ServiceAccount", Namespace: "red", Name: "robot"}, {Kind: "ServiceAccount", Namespace: "blue", Name: "robot"},
		{Kind: "ServiceAccount", Name: "robot"},
	}
	var out []rbacv1.Subject
	for range 1 + r.IntN(3) {
		out = append(out, all[r.IntN(len(all))])
	}
	return out
}

// change makes one random change in the store and in the model.
func (m *model) change(t *testing.T, r *rand.Rand, s store.Store) {
	name, ns := pick(r, 1, "x", "y", "z")[0], worldNamespaces[1+r.IntN(2)]
	gone := r.IntN(4) == 0
	switch r.IntN(4) {
	case 0:
		delete(m.clusterRoles, name)
		if gone {
			remove(t, s, client.ClusterRoles.Name, "", name)
			return
		}
		m.clusterRoles[name] = randomRules(r, false)
		put(t, s, client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: m.clusterRoles[name]})
	case 1:
		delete(m.roles, ns+"/"+name)
		if gone {
			remove(t, s, client.Roles.Name, ns, name)
			return
		}
		m.roles[ns+"/"+name] = randomRules(r, true)
		put(t, s, client.Roles.Name, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: m.roles[ns+"/"+name]})
	case 2:
		delete(m.clusterBindings, name)
		if gone {
			remove(t, s, client.ClusterRoleBindings.Name, "", name)
			return
		}
		b := rbacv1.RoleBinding{Subjects: randomSubjects(r), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: pick(r, 1, "x", "y", "z")[0]}}
		m.clusterBindings[name] = b
		put(t, s, client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: b.Subjects, RoleRef: b.RoleRef})
	default:
		delete(m.bindings, ns+"/"+name)
		if gone {
			remove(t, s, client.RoleBindings.Name, ns, name)
			return
		}
		b := rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Subjects: randomSubjects(r),
			RoleRef: rbacv1.RoleRef{Kind: pick(r, 1, "Role", "ClusterRole")[0], Name: pick(r, 1, "x", "y", "z")[0]}}
		m.bindings[ns+"/"+name] = b
		put(t, s, client.RoleBindings.Name, b.DeepCopy())
	}
}

// TestRBACAgainstModel asks every question of a small world after each of many random changes.
func TestRBACAgainstModel(t *testing.T) {
	const rounds, changes = 20, 40
	allowed, denied := 0, 0
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		s := newStore(t)
		rb := &RBAC{Store: s}
		m := &model{map[string][]rbacv1.PolicyRule{}, map[string][]rbacv1.PolicyRule{}, map[string]rbacv1.RoleBinding{}, map[string]rbacv1.RoleBinding{}}
		for range changes {
			m.change(t, r, s)
			for range 60 {
				u := worldUsers[r.IntN(len(worldUsers))]
				ns := worldNamespaces[r.IntN(len(worldNamespaces))]
				p := permission{verb: pick(r, 1, worldVerbs...)[0]}
				a := Attributes{User: u, Verb: p.verb}
				if r.IntN(4) == 0 {
					p.path = pick(r, 1, worldPaths...)[0]
					a.Path, ns = p.path, ""
				} else {
					p.group, p.resource, p.name = pick(r, 1, worldGroups...)[0], pick(r, 1, worldResources...)[0], pick(r, 1, worldNames...)[0]
					a.IsResource, a.Group, a.Name, a.Namespace = true, p.group, p.name, ns
					a.Resource, a.Subresource, _ = strings.Cut(p.resource, "/")
				}
				d, why, err := rb.Authorize(context.Background(), &a)
				if err != nil {
					t.Fatal(err)
				}
				ok := d == Allowed
				if want := m.allows(u, ns, p); ok != want {
					t.Fatalf("seed %d: %+v: allowed %v (%s), the model says %v\n%+v", seed, a, ok, why, want, m)
				}
				if ok != strings.HasPrefix(why, "RBAC: allowed by ") {
					t.Fatalf("seed %d: %v with the reason %q", seed, ok, why)
				}
				if ok {
					allowed++
				} else {
					denied++
				}
			}
		}
		fresh := &RBAC{Store: s}
		if err := fresh.catchUp(); err != nil {
			t.Fatal(err)
		}
		if err := rb.catchUp(); err != nil {
			t.Fatal(err)
		}
		if a, b := describe(rb.index), describe(fresh.index); !slices.Equal(a, b) {
			t.Fatalf("seed %d: the index that followed the changes is not the one made anew:\n%s\n\n%s", seed, strings.Join(a, "\n"), strings.Join(b, "\n"))
		}
	}
	if allowed < 500*rounds/20 || denied < 500*rounds/20 {
		t.Errorf("the test says little: %d allowed, %d denied", allowed, denied)
	}
}

// describe writes an index as sorted lines.
func describe(ix *index) []string {
	var out []string
	for who, list := range ix.bindings {
		for _, b := range list {
			out = append(out, fmt.Sprintf("%v %s/%s %v", who, b.namespace, b.name, b.ref))
		}
	}
	for key, r := range ix.roles {
		out = append(out, fmt.Sprintf("%v %v %d %d", key, r.exists, len(r.rules), r.bound))
	}
	slices.Sort(out)
	return out
}

func TestRBACReasons(t *testing.T) {
	s := newStore(t)
	rb := &RBAC{Store: s}
	rule := []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
	put(t, s, client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "cr"}, Rules: rule})
	put(t, s, client.Roles.Name, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "r"}, Rules: rule})
	put(t, s, client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "crb"},
		Subjects: []rbacv1.Subject{{Kind: "Group", Name: "g"}}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "cr"}})
	put(t, s, client.RoleBindings.Name, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "rb"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "robot"}}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}})
	put(t, s, client.RoleBindings.Name, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "lost"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "none"}})
	for _, test := range []struct {
		user client.User
		want string
	}{
		{client.User{Name: "u", Groups: []string{"g"}}, `RBAC: allowed by ClusterRoleBinding "crb" of ClusterRole "cr" to Group "g"`},
		{client.ServiceAccountUser("red", "robot", ""), `RBAC: allowed by RoleBinding "rb/red" of Role "r" to ServiceAccount "robot/red"`},
		{client.User{Name: "ann"}, `RBAC: role.rbac.authorization.k8s.io "none" not found`},
		{client.User{Name: "bob"}, ""},
	} {
		_, why, err := rb.Authorize(context.Background(), &Attributes{User: test.user, Verb: "get", IsResource: true, Resource: "pods", Namespace: "red"})
		if err != nil || why != test.want {
			t.Errorf("%s: %q, %v", test.user.Name, why, err)
		}
	}
}

func TestSelect(t *testing.T) {
	for query, want := range map[string]string{
		"fieldSelector=metadata.name%3Dx":                             "x",
		"fieldSelector=metadata.name%3D%3Dx%2Cspec.nodeName%3Dn":      "x",
		"fieldSelector=metadata.name%21%3Dx":                          "",
		"labelSelector=a%3Db&fieldSelector=metadata.name%3D..%2Fx":    "",
		"fieldSelector=%3D%3D%3D&fieldSelector=metadata.name%3Dother": "",
	} {
		a := Attributes{Verb: "list"}
		if a.Select(query); a.Name != want {
			t.Errorf("%s: %q", query, a.Name)
		}
	}
	a := Attributes{Verb: "deletecollection"}
	if a.Select("fieldSelector=metadata.name%3Dx&labelSelector=a+in+%28b%2Cc%29"); a.Name != "" || len(a.Fields) != 1 || len(a.Labels) != 1 {
		t.Errorf("%+v", a)
	}
}

func FuzzSelect(f *testing.F) {
	f.Add("fieldSelector=metadata.name%3Dx&labelSelector=a")
	f.Fuzz(func(t *testing.T, query string) {
		a := Attributes{Verb: "list"}
		if a.Select(query); strings.Contains(a.Name, "/") {
			t.Errorf("%q", a.Name)
		}
	})
}

// defaults fills a store about as full of roles as a cluster is from its start.
func defaults(b *testing.B, s store.Store) {
	for i := range 70 {
		name := fmt.Sprintf("system:controller:c%d", i)
		put(b, s, client.ClusterRoles.Name, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
			{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"pods", "services"}},
			{Verbs: []string{"create", "update", "patch"}, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
		}})
		subject := rbacv1.Subject{Kind: "ServiceAccount", Namespace: "kube-system", Name: fmt.Sprintf("c%d", i)}
		if i < 4 {
			subject = rbacv1.Subject{Kind: "Group", Name: client.GroupAuthenticated}
		}
		put(b, s, client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: name}})
	}
}

func BenchmarkRBAC(b *testing.B) {
	s := newStore(b)
	defaults(b, s)
	rb := &RBAC{Store: s}
	for name, verb := range map[string]string{"allowed": "list", "denied": "delete"} {
		b.Run(name, func(b *testing.B) {
			u := client.ServiceAccountUser("kube-system", "c40", "")
			for b.Loop() {
				_, _, err := rb.Authorize(context.Background(), &Attributes{User: u, Verb: verb, IsResource: true, Resource: "services", Namespace: "red"})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNode asks for a secret that the last of a hundred pods of a node names.
func BenchmarkNode(b *testing.B) {
	s := newStore(b)
	for i := range 100 {
		put(b, s, "pods", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: fmt.Sprintf("p%02d", i)}, Spec: corev1.PodSpec{NodeName: "n",
			Containers: []corev1.Container{{Name: "c"}},
			Volumes:    []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: fmt.Sprintf("s%02d", i)}}}}}})
	}
	n := &Node{Store: s}
	a := &Attributes{User: client.User{Name: "system:node:n", Groups: []string{client.GroupNodes}}, Verb: "get", IsResource: true, Resource: "secrets", Namespace: "red", Name: "s99"}
	for b.Loop() {
		if d, why, _ := n.Authorize(context.Background(), a); d != Allowed {
			b.Fatal(why)
		}
	}
}
