// Package discovery tells clients which groups, versions and resources there are,
// in the old form (one document a group version) and the aggregated one
// (https://kubernetes.io/docs/concepts/overview/kubernetes-api/#aggregated-discovery).
//
// The documents are derived from the registry alone and kept until it changes.
package discovery

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
)

// Handler answers the discovery paths. It is safe for concurrent use.
type Handler struct {
	Registry *api.Registry
	// Foreign are kinds that others answer for; they are shown beside those of the registry.
	Foreign []*api.Kind
	// Priority orders groups: the greatest comes first, and equal ones by name. Nil: by name.
	Priority func(group string) int32

	docs atomic.Pointer[documents]
}

// documents is everything, for one generation of the registry.
type documents struct {
	generation int64
	core, rest aggregated
	groups     metav1.APIGroupList
	resources  map[schema.GroupVersion]*metav1.APIResourceList
}

// aggregated is one aggregated document with its hash.
type aggregated struct {
	list apidiscoveryv2.APIGroupDiscoveryList
	etag string
}

// Serves tells whether a path is one of discovery: /api, /api/v1, /apis, /apis/group and
// /apis/group/version, with or without a slash at the end.
func Serves(path string) bool {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch parts[0] {
	case "api":
		return len(parts) <= 2
	case "apis":
		return len(parts) <= 3
	}
	return false
}

// ServeHTTP answers a path for which Serves is true.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d := h.current()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) == 1 && parts[0] == "api":
		h.root(w, r, &d.core, &metav1.APIVersions{
			TypeMeta:                   metav1.TypeMeta{Kind: "APIVersions"},
			Versions:                   d.coreVersions(),
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}},
		}, "APIVersions")
	case len(parts) == 1:
		h.root(w, r, &d.rest, &d.groups, "APIGroupList")
	case parts[0] == "apis" && len(parts) == 2:
		for i := range d.groups.Groups {
			if d.groups.Groups[i].Name == parts[1] {
				respond(w, r, &d.groups.Groups[i], "APIGroup")
				return
			}
		}
		NotFound(w)
	default:
		gv := schema.GroupVersion{Version: parts[len(parts)-1]}
		if parts[0] == "apis" {
			gv.Group = parts[1]
		}
		if list := d.resources[gv]; list != nil && (parts[0] == "api") == (gv.Group == "") {
			respond(w, r, list, "APIResourceList")
			return
		}
		NotFound(w)
	}
}

// NotFound answers a path that does not exist, as upstream's router does.
func NotFound(w http.ResponseWriter) {
	http.Error(w, "404 page not found", http.StatusNotFound)
}

const aggregatedKind = "APIGroupDiscoveryList"

// root answers /api and /apis in the form asked for.
func (h *Handler) root(w http.ResponseWriter, r *http.Request, doc *aggregated, old runtime.Object, kind string) {
	accept, err := wire.Negotiate(r, wire.Offer{Other: func(as schema.GroupVersionKind) bool {
		return as == apidiscoveryv2.SchemeGroupVersion.WithKind(aggregatedKind)
	}})
	if err != nil {
		fail(w, r, err)
		return
	}
	if accept.As == nil {
		w.Header().Set("Vary", "Accept")
		respond(w, r, old, kind)
		return
	}
	header := w.Header()
	header.Set("ETag", doc.etag)
	header.Set("Vary", "Accept")
	header.Set("Cache-Control", "public")
	if r.Header.Get("If-None-Match") == doc.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body, err := wire.Object(accept.Media, &doc.list, *accept.As)
	if err != nil {
		fail(w, r, err)
		return
	}
	contentType := fmt.Sprintf("%s;g=%s;v=%s;as=%s", accept.Media, accept.As.Group, accept.As.Version, accept.As.Kind)
	_ = wire.Respond(w, r, http.StatusOK, accept, contentType, body)
}

func respond(w http.ResponseWriter, r *http.Request, obj runtime.Object, kind string) {
	accept, err := wire.Negotiate(r, wire.Offer{})
	if err != nil {
		fail(w, r, err)
		return
	}
	gvk := schema.GroupVersionKind{Version: "v1", Kind: kind}
	body, err := wire.Object(accept.Media, obj, gvk)
	if err != nil {
		fail(w, r, err)
		return
	}
	_ = wire.Respond(w, r, http.StatusOK, accept, accept.Media.String(), body)
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := wire.StatusOf(err)
	body, err := wire.Object(wire.JSON, status, schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	if err == nil {
		_ = wire.Respond(w, r, int(status.Code), wire.Accept{}, wire.TypeJSON, body)
	}
}

// current returns the documents of the registry as it is.
func (h *Handler) current() *documents {
	generation := h.Registry.Generation()
	if d := h.docs.Load(); d != nil && d.generation == generation {
		return d
	}
	d := h.build(slices.Concat(h.Registry.All(), h.Foreign), generation)
	h.docs.Store(d)
	return d
}

// build makes all documents.
func (h *Handler) build(kinds []*api.Kind, generation int64) *documents {
	d := &documents{generation: generation, resources: map[schema.GroupVersion]*metav1.APIResourceList{}}
	for _, k := range kinds {
		for i := range k.Versions {
			if v := &k.Versions[i]; !v.NotServed {
				d.addResource(k, v)
			}
		}
	}
	for _, group := range h.groups(d) {
		versions := d.versions(group)
		doc := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: group}}
		g := metav1.APIGroup{Name: group}
		for _, v := range versions {
			gv := schema.GroupVersion{Group: group, Version: v}
			g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v})
			doc.Versions = append(doc.Versions, apidiscoveryv2.APIVersionDiscovery{
				Version: v, Resources: aggregate(kinds, gv), Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
			})
		}
		if group == "" {
			d.core.list.Items = append(d.core.list.Items, doc)
			continue
		}
		g.PreferredVersion = g.Versions[0]
		d.groups.Groups = append(d.groups.Groups, g)
		d.rest.list.Items = append(d.rest.list.Items, doc)
	}
	d.core.seal()
	d.rest.seal()
	return d
}

func (a *aggregated) seal() {
	data, _ := json.Marshal(a.list)
	a.etag = strconv.Quote(fmt.Sprintf("%X", sha512.Sum512(data)))
}

// groups are all groups, in order.
func (h *Handler) groups(d *documents) []string {
	seen := map[string]bool{}
	var out []string
	for gv := range d.resources {
		if !seen[gv.Group] {
			seen[gv.Group] = true
			out = append(out, gv.Group)
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		if h.Priority != nil {
			if p, q := h.Priority(a), h.Priority(b); p != q {
				return int(q - p)
			}
		}
		return strings.Compare(a, b)
	})
	return out
}

// versions are those of a group, the preferred one first.
func (d *documents) versions(group string) []string {
	var out []string
	for gv := range d.resources {
		if gv.Group == group {
			out = append(out, gv.Version)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
	return out
}

func (d *documents) coreVersions() []string { return d.versions("") }

// addResource enters a kind and its subresources in the old form.
func (d *documents) addResource(k *api.Kind, v *api.Version) {
	gv := schema.GroupVersion{Group: k.Group, Version: v.Name}
	list := d.resources[gv]
	if list == nil {
		list = &metav1.APIResourceList{GroupVersion: gv.String()}
		d.resources[gv] = list
	}
	r := metav1.APIResource{
		Name: k.Resource, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Kind,
		Verbs: verbs(k), ShortNames: k.ShortNames, Categories: k.Categories,
	}
	if !k.Virtual {
		r.StorageVersionHash = storageVersionHash(k)
	}
	list.APIResources = append(list.APIResources, r)
	for i := range k.Subresources {
		s := &k.Subresources[i]
		if s.Versions != nil && !slices.Contains(s.Versions, v.Name) {
			continue
		}
		kind := responseKind(k, v, s)
		sub := metav1.APIResource{Name: k.Resource + "/" + s.Name, Namespaced: k.Namespaced, Kind: kind.Kind, Verbs: sorted(s.Verbs)}
		if kind.GroupVersion() != gv {
			sub.Group, sub.Version = kind.Group, kind.Version
		}
		list.APIResources = append(list.APIResources, sub)
	}
	slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
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
func responseKind(k *api.Kind, v *api.Version, s *api.Subresource) schema.GroupVersionKind {
	if s.Type.Empty() {
		return schema.GroupVersionKind{Group: k.Group, Version: v.Name, Kind: k.Kind}
	}
	return s.Type
}

// storageVersionHash names the version in which objects are stored, as upstream hashes it.
func storageVersionHash(k *api.Kind) string {
	hub := k.Hub().Name
	group := k.Group
	if hub == runtime.APIVersionInternal {
		group, hub = "", "v1" // stored as the core kind
	}
	sum := sha256.Sum256([]byte(group + "/" + hub + "/" + k.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// aggregate describes the resources of a group version in the aggregated form.
func aggregate(kinds []*api.Kind, gv schema.GroupVersion) []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	for _, k := range kinds {
		v := k.Version(gv.Version)
		if k.Group != gv.Group || v == nil || v.NotServed {
			continue
		}
		r := apidiscoveryv2.APIResourceDiscovery{
			Resource: k.Resource, SingularResource: k.Singular, Scope: apidiscoveryv2.ScopeCluster,
			ResponseKind: &metav1.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: k.Kind},
			Verbs:        verbs(k), ShortNames: k.ShortNames, Categories: k.Categories,
		}
		if k.Namespaced {
			r.Scope = apidiscoveryv2.ScopeNamespace
		}
		for i := range k.Subresources {
			s := &k.Subresources[i]
			if s.Versions != nil && !slices.Contains(s.Versions, v.Name) {
				continue
			}
			kind := metav1.GroupVersionKind(responseKind(k, v, s))
			r.Subresources = append(r.Subresources, apidiscoveryv2.APISubresourceDiscovery{
				Subresource: s.Name, ResponseKind: &kind, Verbs: sorted(s.Verbs),
			})
		}
		slices.SortFunc(r.Subresources, func(a, b apidiscoveryv2.APISubresourceDiscovery) int {
			return strings.Compare(a.Subresource, b.Subresource)
		})
		out = append(out, r)
	}
	return out
}
