package main

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/common"

	"coracle.dev/coracle/api"
)

// container is one group and version; it implements common.RouteContainer.
type container struct {
	path   string
	routes []common.Route
}

func (c *container) RootPath() string                   { return "/" + c.path }
func (c *container) PathParameters() []common.Parameter { return nil }
func (c *container) Routes() []common.Route             { return c.routes }

// route implements common.Route.
type route struct {
	method, path, id, about string
	params                  []common.Parameter
	consumes, produces      []string
	meta                    map[string]any
	in, out                 any
	codes                   []common.StatusCodeResponse
}

func (r *route) Method() string                                   { return r.method }
func (r *route) Path() string                                     { return r.path }
func (r *route) OperationName() string                            { return r.id }
func (r *route) Parameters() []common.Parameter                   { return r.params }
func (r *route) Description() string                              { return r.about }
func (r *route) Consumes() []string                               { return r.consumes }
func (r *route) Produces() []string                               { return r.produces }
func (r *route) Metadata() map[string]any                         { return r.meta }
func (r *route) RequestPayloadSample() any                        { return r.in }
func (r *route) ResponsePayloadSample() any                       { return r.out }
func (r *route) StatusCodeResponses() []common.StatusCodeResponse { return r.codes }

type response struct {
	code  int
	text  string
	model any
}

func (r response) Code() int       { return r.code }
func (r response) Message() string { return r.text }
func (r response) Model() any      { return r.model }

type parameter struct {
	name, about, kind string
	where             common.ParameterKind
	required          bool
}

func (p parameter) Name() string               { return p.name }
func (p parameter) Description() string        { return p.about }
func (p parameter) Required() bool             { return p.required }
func (p parameter) Kind() common.ParameterKind { return p.where }
func (p parameter) DataType() string           { return p.kind }
func (p parameter) AllowMultiple() bool        { return false }

func query(kind, name, about string) common.Parameter {
	return parameter{name: name, about: about, kind: kind, where: common.QueryParameterKind}
}

func path(name, about string) common.Parameter {
	return parameter{name: name, about: about, kind: "string", where: common.PathParameterKind, required: true}
}

func body(required bool) common.Parameter {
	return parameter{name: "body", kind: "string", where: common.BodyParameterKind, required: required}
}

var (
	pretty  = query("string", "pretty", "Whether the answer is indented for people.")
	writing = []common.Parameter{pretty,
		query("string", "dryRun", "All: carry the request out, but store nothing."),
		query("string", "fieldManager", "A name for whoever makes the change; at most 128 printable characters."),
		query("string", "fieldValidation", "What becomes of unknown and duplicate fields: Ignore, Warn (the default) or Strict.")}
	selecting = []common.Parameter{pretty,
		query("boolean", "allowWatchBookmarks", "Ask for BOOKMARK events in a watch."),
		query("string", "continue", "The token that the page before ended with."),
		query("string", "fieldSelector", "Only objects with these field values."),
		query("string", "labelSelector", "Only objects with these labels."),
		query("integer", "limit", "The most objects to return at once."),
		query("string", "resourceVersion", "The version that the answer should be based on."),
		query("string", "resourceVersionMatch", "How resourceVersion is meant: Exact or NotOlderThan."),
		query("boolean", "sendInitialEvents", "Begin a watch with the objects that there are, and a bookmark."),
		query("integer", "timeoutSeconds", "The longest time that the call may take."),
		query("boolean", "watch", "Send changes as they happen instead of a list.")}
	deleting = []common.Parameter{pretty,
		query("string", "dryRun", "All: carry the request out, but store nothing."),
		query("integer", "gracePeriodSeconds", "How long the object may take to end; 0 removes it at once."),
		query("boolean", "ignoreStoreReadErrorWithClusterBreakingPotential", "Remove an object that cannot be read, without any of the usual steps."),
		query("boolean", "orphanDependents", "Deprecated: use propagationPolicy."),
		query("string", "propagationPolicy", "What becomes of dependents: Orphan, Background or Foreground.")}
	force = query("boolean", "force", "Take over fields that others manage; for apply patches.")

	wireForms  = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	watchForms = append(slices.Clone(wireForms), "application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch")
	patchForms = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
)

var allVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// containers lists the endpoints of all kinds by the path of their group and version.
func containers(kinds []*api.Kind, types *runtime.Scheme) map[string]*container {
	groups := map[string]*container{}
	for _, k := range kinds {
		for i := range k.Versions {
			v := &k.Versions[i]
			if v.NotServed {
				continue
			}
			gv := schema.GroupVersion{Group: k.Group, Version: v.Name}
			name := groupPath(gv)
			if groups[name] == nil {
				groups[name] = &container{path: name}
			}
			e := endpoints{kind: k, version: v, gv: gv, types: types}
			groups[name].routes = append(groups[name].routes, e.all()...)
		}
	}
	return groups
}

// endpoints makes the routes of one kind in one version.
type endpoints struct {
	kind    *api.Kind
	version *api.Version
	gv      schema.GroupVersion
	types   *runtime.Scheme
	routes  []common.Route
}

func (e *endpoints) all() []common.Route {
	verbs := e.kind.Verbs
	if verbs == nil {
		verbs = allVerbs
	}
	scope, scopePath, scopeParams := "", "", []common.Parameter(nil)
	if e.kind.Namespaced {
		scope, scopePath = "Namespaced", "/namespaces/{namespace}"
		scopeParams = []common.Parameter{path("namespace", "The namespace of the object.")}
	}
	gvk := e.gv.WithKind(e.kind.Kind)
	collection := scopePath + "/" + e.kind.Resource
	one := collection + "/{name}"
	named := append(slices.Clone(scopeParams), path("name", "The name of the object."))
	model := func() any { return e.version.New() }
	var listModel any
	if e.version.NewList != nil {
		listModel = e.version.NewList()
	}
	name := scope + e.kind.Kind
	has := func(verb string) bool { return slices.Contains(verbs, verb) }
	if has("list") {
		e.add("GET", collection, "list"+camel(e.gv)+name, "list", "list or watch objects of kind "+e.kind.Kind, gvk, append(slices.Clone(scopeParams), selecting...), nil, watchForms, nil, listModel)
		if e.kind.Namespaced {
			e.add("GET", "/"+e.kind.Resource, "list"+camel(e.gv)+e.kind.Kind+"ForAllNamespaces", "list", "list or watch objects of kind "+e.kind.Kind, gvk, selecting, nil, watchForms, nil, listModel)
		}
	}
	if has("create") {
		e.add("POST", collection, "create"+camel(e.gv)+name, "post", e.article("create"), gvk, append(append(slices.Clone(scopeParams), writing...), body(true)), wireForms, wireForms, model(), model())
	}
	if has("deletecollection") {
		params := append(append(append(slices.Clone(scopeParams), deleting...), selecting[1:]...), body(false))
		e.add("DELETE", collection, "delete"+camel(e.gv)+"Collection"+name, "deletecollection", "delete collection of "+e.kind.Kind, gvk, params, wireForms, wireForms, &metav1.DeleteOptions{}, &metav1.Status{})
	}
	if has("get") {
		e.add("GET", one, "read"+camel(e.gv)+name, "get", "read the specified "+e.kind.Kind, gvk, append(slices.Clone(named), pretty), nil, wireForms, nil, model())
	}
	if has("update") {
		e.add("PUT", one, "replace"+camel(e.gv)+name, "put", "replace the specified "+e.kind.Kind, gvk, append(append(slices.Clone(named), writing...), body(true)), wireForms, wireForms, model(), model())
	}
	if has("delete") {
		e.add("DELETE", one, "delete"+camel(e.gv)+name, "delete", e.article("delete"), gvk, append(append(slices.Clone(named), deleting...), body(false)), wireForms, wireForms, &metav1.DeleteOptions{}, &metav1.Status{})
	}
	if has("patch") {
		e.add("PATCH", one, "patch"+camel(e.gv)+name, "patch", "partially update the specified "+e.kind.Kind, gvk, append(append(slices.Clone(named), writing...), force, body(true)), patchForms, wireForms, &metav1.Patch{}, model())
	}
	for i := range e.kind.Subresources {
		e.subresource(&e.kind.Subresources[i], one, name, named)
	}
	return e.routes
}

func (e *endpoints) article(verb string) string {
	if strings.ContainsAny(e.kind.Kind[:1], "AEIO") {
		return verb + " an " + e.kind.Kind
	}
	return verb + " a " + e.kind.Kind
}

func (e *endpoints) subresource(s *api.Subresource, one, name string, named []common.Parameter) {
	if s.Versions != nil && !slices.Contains(s.Versions, e.version.Name) {
		return
	}
	gvk, model := e.gv.WithKind(e.kind.Kind), any(e.version.New())
	if !s.Type.Empty() {
		object, err := e.types.New(s.Type)
		if err != nil {
			return // a stream, without a body of its own
		}
		gvk, model = s.Type, object
	}
	at, title := one+"/"+s.Name, name+strings.ToUpper(s.Name[:1])+s.Name[1:]
	for _, verb := range s.Verbs {
		switch verb {
		case "get":
			e.add("GET", at, "read"+camel(e.gv)+title, "get", "read "+s.Name+" of the specified "+e.kind.Kind, gvk, append(slices.Clone(named), pretty), nil, wireForms, nil, model)
		case "update":
			e.add("PUT", at, "replace"+camel(e.gv)+title, "put", "replace "+s.Name+" of the specified "+e.kind.Kind, gvk, append(append(slices.Clone(named), writing...), body(true)), wireForms, wireForms, model, model)
		case "create":
			e.add("POST", at, "create"+camel(e.gv)+title, "post", "create "+s.Name+" of a "+e.kind.Kind, gvk, append(append(slices.Clone(named), writing...), body(true)), wireForms, wireForms, model, model)
		case "patch":
			e.add("PATCH", at, "patch"+camel(e.gv)+title, "patch", "partially update "+s.Name+" of the specified "+e.kind.Kind, gvk, append(append(slices.Clone(named), writing...), force, body(true)), patchForms, wireForms, &metav1.Patch{}, model)
		}
	}
}

func (e *endpoints) add(method, at, id, action, about string, gvk schema.GroupVersionKind, params []common.Parameter, consumes, produces []string, in, out any) {
	if len(consumes) == 0 {
		consumes = []string{"*/*"}
	}
	codes := []common.StatusCodeResponse{response{200, "OK", out}}
	switch method {
	case "POST":
		codes = append(codes, response{201, "Created", out}, response{202, "Accepted", out})
	case "PUT", "PATCH":
		codes = append(codes, response{201, "Created", out})
	case "DELETE":
		codes = append(codes, response{202, "Accepted", out})
	}
	e.routes = append(e.routes, &route{method: method, path: "/" + groupPath(e.gv) + at, id: id, about: about, params: params,
		consumes: consumes, produces: produces, in: in, out: out, codes: codes,
		meta: map[string]any{
			"x-kubernetes-action":             action,
			"x-kubernetes-group-version-kind": metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind},
		}})
}
