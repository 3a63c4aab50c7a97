// Package discovery tells clients which groups, versions and resources there are,
// in the old form (one document a group version) and the aggregated one
// (https://kubernetes.io/docs/concepts/overview/kubernetes-api/#aggregated-discovery).
//
// The documents are derived from the registry and from what aggregated servers said of theirs, and kept group by group: a
// change costs what the changed group costs.
package discovery

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
)

// Handler answers the discovery paths. It is safe for concurrent use. The fields are set before the first request.
type Handler struct {
	Registry *api.Registry
	// Foreign are kinds that others answer for; they are shown beside those of the registry.
	Foreign []*api.Kind
	// Priority orders groups: the greatest comes first, and equal ones by name. Nil: by name.
	Priority func(group string) int32
	// VersionPriority orders the versions of a group: the greatest comes first, and equal ones by their names, as
	// Kubernetes ranks them (v2, v1, v1beta1). Nil: by name.
	VersionPriority func(group, version string) int32
	// StorageVersion names the version in which a kind is stored; nil, or "" from it, for the hub version.
	StorageVersion func(*api.Kind) string
	// Aggregated are the APIServices; nil for none. It is asked for each request, and gives the same pointer as long as nothing
	// changed.
	Aggregated func() *Aggregated

	mu   sync.Mutex // held while docs is made anew
	docs atomic.Pointer[documents]
}

// Aggregated is what APIServices add to discovery. It is immutable.
type Aggregated struct {
	// Priorities order groups and versions where APIServices say otherwise than Handler.Priority and VersionPriority.
	Priorities map[schema.GroupVersion]Priority
	// Remote are the group versions that other servers answer for. They stand in place of the same ones here.
	Remote map[schema.GroupVersion]*apidiscoveryv2.APIVersionDiscovery
}

// Priority is what one APIService says of the order (spec.groupPriorityMinimum and spec.versionPriority).
type Priority struct {
	Group, Version int32
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

// ServeHTTP answers a path for which Serves is true. The documents of single group versions of other servers are not here:
// such requests go to them.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d := h.current()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) == 1 && parts[0] == "api":
		h.root(w, r, d, d.core, &metav1.APIVersions{
			TypeMeta:                   metav1.TypeMeta{Kind: "APIVersions"},
			Versions:                   d.coreVersions(),
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}},
		}, "APIVersions")
	case len(parts) == 1:
		h.root(w, r, d, d.rest, d.groupList(), "APIGroupList")
	case parts[0] == "apis" && len(parts) == 2:
		if g := d.byName[parts[1]]; g != nil && parts[1] != "" {
			respond(w, r, g.summary(), "APIGroup")
			return
		}
		NotFound(w)
	default:
		gv := schema.GroupVersion{Version: parts[len(parts)-1]}
		if parts[0] == "apis" {
			gv.Group = parts[1]
		}
		g := d.byName[gv.Group]
		if g == nil || (parts[0] == "api") != (gv.Group == "") {
			NotFound(w)
			return
		}
		if list := h.resources(g, gv.Version); list != nil {
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

// aggregatedForm tells whether a client asks for the aggregated form, in one of its two versions; they look the same.
func aggregatedForm(as schema.GroupVersionKind) bool {
	return as.Group == apidiscoveryv2.GroupName && (as.Version == "v2" || as.Version == "v2beta1") && as.Kind == aggregatedKind
}

// root answers /api and /apis in the form asked for.
func (h *Handler) root(w http.ResponseWriter, r *http.Request, d *documents, groups []*group, old runtime.Object, kind string) {
	accept, err := wire.Negotiate(r, wire.Offer{Other: aggregatedForm})
	if err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set("Vary", "Accept")
	if accept.As == nil {
		respond(w, r, old, kind)
		return
	}
	header := w.Header()
	etag := tag(groups)
	header.Set("ETag", etag)
	header.Set("Cache-Control", "public")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body, err := h.aggregatedBody(groups, accept)
	if err != nil {
		fail(w, r, err)
		return
	}
	contentType := fmt.Sprintf("%s;g=%s;v=%s;as=%s", accept.Media, accept.As.Group, accept.As.Version, accept.As.Kind)
	_ = wire.Respond(w, r, http.StatusOK, accept, contentType, body)
}

// aggregatedBody is the list of groups in the aggregated form.
func (h *Handler) aggregatedBody(groups []*group, accept wire.Accept) (wire.Body, error) {
	if accept.Media != wire.Protobuf {
		return wire.Raw(document(groups, accept.As.GroupVersion())), nil
	}
	var list apidiscoveryv2.APIGroupDiscoveryList
	for _, g := range groups {
		list.Items = append(list.Items, h.aggregate(g))
	}
	return wire.Object(accept.Media, &list, *accept.As)
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
