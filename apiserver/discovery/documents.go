package discovery

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"coracle.dev/coracle/api"
)

// documents is everything, for one generation of the registry and one state of the APIServices. It is immutable.
type documents struct {
	generation int64
	aggregated *Aggregated
	byName     map[string]*group
	core, rest []*group // in order
}

// group is one group with its item of the aggregated form.
type group struct {
	name     string
	kinds    []*api.Kind // by resource
	remote   map[string]*apidiscoveryv2.APIVersionDiscovery
	priority int32
	versions []string // served ones, the preferred one first
	item     []byte   // of the aggregated form, as JSON
	hash     [sha256.Size]byte
}

// current returns the documents as things are.
func (h *Handler) current() *documents {
	if d := h.docs.Load(); h.fresh(d) {
		return d
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.docs.Load()
	if h.fresh(old) {
		return old
	}
	d := h.build(old)
	h.docs.Store(d)
	return d
}

func (h *Handler) fresh(d *documents) bool {
	return d != nil && d.generation == h.Registry.Generation() && d.aggregated == h.aggregated()
}

func (h *Handler) aggregated() *Aggregated {
	if h.Aggregated == nil {
		return nil
	}
	return h.Aggregated()
}

// build makes all documents; what did not change is taken from old, which may be nil.
func (h *Handler) build(old *documents) *documents {
	// The generation is read first, so that a change in between is seen at the next request.
	d := &documents{generation: h.Registry.Generation(), aggregated: h.aggregated(), byName: map[string]*group{}}
	for _, k := range slices.Concat(h.Registry.All(), h.Foreign) {
		d.group(k.Group).kinds = append(d.group(k.Group).kinds, k)
	}
	if d.aggregated != nil {
		for gv, remote := range d.aggregated.Remote {
			g := d.group(gv.Group)
			if g.remote == nil {
				g.remote = map[string]*apidiscoveryv2.APIVersionDiscovery{}
			}
			g.remote[gv.Version] = remote
		}
	}
	for name, g := range d.byName {
		h.order(g, d.aggregated)
		if len(g.versions) == 0 {
			delete(d.byName, name)
			continue
		}
		if old != nil && g.same(old.byName[name]) {
			d.byName[name] = old.byName[name]
			continue
		}
		g.item, _ = json.Marshal(h.aggregate(g)) // the types are plain
		g.hash = sha256.Sum256(g.item)
	}
	for _, name := range slices.SortedFunc(maps.Keys(d.byName), d.compare) {
		if name == "" {
			d.core = append(d.core, d.byName[name])
		} else {
			d.rest = append(d.rest, d.byName[name])
		}
	}
	return d
}

// group returns the group of a name, a new one if it is not there yet.
func (d *documents) group(name string) *group {
	g := d.byName[name]
	if g == nil {
		g = &group{name: name}
		d.byName[name] = g
	}
	return g
}

// same tells whether a group is as it was.
func (g *group) same(old *group) bool {
	return old != nil && g.priority == old.priority && slices.Equal(g.kinds, old.kinds) &&
		slices.Equal(g.versions, old.versions) && maps.Equal(g.remote, old.remote)
}

// order finds the group's versions and sets their order and that of the group.
func (h *Handler) order(g *group, a *Aggregated) {
	for _, k := range g.kinds {
		for i := range k.Versions {
			if v := &k.Versions[i]; !v.NotServed && !slices.Contains(g.versions, v.Name) {
				g.versions = append(g.versions, v.Name)
			}
		}
	}
	for v := range g.remote {
		if !slices.Contains(g.versions, v) {
			g.versions = append(g.versions, v)
		}
	}
	priorities := make(map[string]int32, len(g.versions))
	for _, v := range g.versions {
		p := h.priority(schema.GroupVersion{Group: g.name, Version: v}, a)
		priorities[v], g.priority = p.Version, max(g.priority, p.Group)
	}
	slices.SortFunc(g.versions, func(a, b string) int {
		if p, q := priorities[a], priorities[b]; p != q {
			return int(q - p)
		}
		return version.CompareKubeAwareVersionStrings(b, a)
	})
}

// priority is where a group version stands: what its APIService says, or what is built in.
func (h *Handler) priority(gv schema.GroupVersion, a *Aggregated) Priority {
	if a != nil {
		if p, ok := a.Priorities[gv]; ok {
			return p
		}
	}
	var p Priority
	if h.Priority != nil {
		p.Group = h.Priority(gv.Group)
	}
	if h.VersionPriority != nil {
		p.Version = h.VersionPriority(gv.Group, gv.Version)
	}
	return p
}

// compare orders groups.
func (d *documents) compare(a, b string) int {
	if p, q := d.byName[a].priority, d.byName[b].priority; p != q {
		return int(q - p)
	}
	return strings.Compare(a, b)
}

func (d *documents) coreVersions() []string {
	if g := d.byName[""]; g != nil {
		return g.versions
	}
	return nil
}

// groupList is the old form of /apis.
func (d *documents) groupList() *metav1.APIGroupList {
	list := &metav1.APIGroupList{Groups: []metav1.APIGroup{}}
	for _, g := range d.rest {
		list.Groups = append(list.Groups, *g.summary())
	}
	return list
}

// summary is the old form of /apis/group.
func (g *group) summary() *metav1.APIGroup {
	out := &metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		gv := schema.GroupVersion{Group: g.name, Version: v}
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

// tag names the content of a list of groups.
func tag(groups []*group) string {
	h := sha512.New()
	for _, g := range groups {
		h.Write(g.hash[:])
	}
	return strconv.Quote(fmt.Sprintf("%X", h.Sum(nil)))
}

// document puts the groups' items together.
func document(groups []*group, gv schema.GroupVersion) []byte {
	var buf bytes.Buffer
	size := 128
	for _, g := range groups {
		size += len(g.item) + 1
	}
	buf.Grow(size)
	fmt.Fprintf(&buf, `{"kind":%q,"apiVersion":%q,"metadata":{},"items":[`, aggregatedKind, gv.String())
	for i, g := range groups {
		if i > 0 {
			buf.WriteByte(',')
		}
		buf.Write(g.item)
	}
	buf.WriteString("]}")
	return buf.Bytes()
}

// aggregate describes a group in the aggregated form.
func (h *Handler) aggregate(g *group) apidiscoveryv2.APIGroupDiscovery {
	out := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		if remote := g.remote[v]; remote != nil {
			out.Versions = append(out.Versions, *remote)
			continue
		}
		doc := apidiscoveryv2.APIVersionDiscovery{Version: v, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, k := range g.kinds {
			if kv := k.Version(v); kv != nil && !kv.NotServed {
				doc.Resources = append(doc.Resources, aggregateKind(k, v))
			}
		}
		out.Versions = append(out.Versions, doc)
	}
	return out
}

// aggregateKind describes a kind in a version.
func aggregateKind(k *api.Kind, v string) apidiscoveryv2.APIResourceDiscovery {
	r := apidiscoveryv2.APIResourceDiscovery{
		Resource: k.Resource, SingularResource: k.Singular, Scope: apidiscoveryv2.ScopeCluster,
		ResponseKind: &metav1.GroupVersionKind{Group: k.Group, Version: v, Kind: k.Kind},
		Verbs:        verbs(k), ShortNames: k.ShortNames, Categories: k.Categories,
	}
	if k.Namespaced {
		r.Scope = apidiscoveryv2.ScopeNamespace
	}
	for s := range subresources(k, v) {
		kind := metav1.GroupVersionKind(responseKind(k, v, s))
		r.Subresources = append(r.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: s.Name, ResponseKind: &kind, Verbs: sorted(s.Verbs),
		})
	}
	slices.SortFunc(r.Subresources, func(a, b apidiscoveryv2.APISubresourceDiscovery) int {
		return strings.Compare(a.Subresource, b.Subresource)
	})
	return r
}

// subresources are those that a kind has in a version.
func subresources(k *api.Kind, v string) func(func(*api.Subresource) bool) {
	return func(yield func(*api.Subresource) bool) {
		for i := range k.Subresources {
			s := &k.Subresources[i]
			if (s.Versions == nil || slices.Contains(s.Versions, v)) && !yield(s) {
				return
			}
		}
	}
}

// resources is the old form of a group version, nil if it is not served here.
func (h *Handler) resources(g *group, v string) *metav1.APIResourceList {
	gv := schema.GroupVersion{Group: g.name, Version: v}
	var list *metav1.APIResourceList
	for _, k := range g.kinds {
		kv := k.Version(v)
		if kv == nil || kv.NotServed {
			continue
		}
		if list == nil {
			list = &metav1.APIResourceList{GroupVersion: gv.String()}
		}
		r := metav1.APIResource{
			Name: k.Resource, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Kind,
			Verbs: verbs(k), ShortNames: k.ShortNames, Categories: k.Categories,
		}
		if !k.Virtual {
			r.StorageVersionHash = h.storageVersionHash(k)
		}
		list.APIResources = append(list.APIResources, r)
		for s := range subresources(k, v) {
			kind := responseKind(k, v, s)
			sub := metav1.APIResource{Name: k.Resource + "/" + s.Name, Namespaced: k.Namespaced, Kind: kind.Kind, Verbs: sorted(s.Verbs)}
			if kind.GroupVersion() != gv {
				sub.Group, sub.Version = kind.Group, kind.Version
			}
			list.APIResources = append(list.APIResources, sub)
		}
	}
	if list != nil {
		slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
	}
	return list
}

var allVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func verbs(k *api.Kind) metav1.Verbs {
	if k.Verbs == nil {
		return allVerbs
	}
	return sorted(k.Verbs)
}

func sorted(s []string) []string {
	out := slices.Clone(s)
	slices.Sort(out)
	return out
}

// responseKind is the type that a subresource speaks.
func responseKind(k *api.Kind, v string, s *api.Subresource) schema.GroupVersionKind {
	if s.Type.Empty() {
		return schema.GroupVersionKind{Group: k.Group, Version: v, Kind: k.Kind}
	}
	return s.Type
}

// storageVersionHash names the version in which objects are stored, as upstream hashes it.
func (h *Handler) storageVersionHash(k *api.Kind) string {
	group, stored := k.Group, k.Hub().Name
	if stored == runtime.APIVersionInternal {
		group, stored = "", "v1" // stored as the core kind
	}
	if h.StorageVersion != nil {
		if v := h.StorageVersion(k); v != "" {
			stored = v
		}
	}
	sum := sha256.Sum256([]byte(group + "/" + stored + "/" + k.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}
