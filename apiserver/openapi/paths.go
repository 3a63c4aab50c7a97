package openapi

import (
	"strings"
	"unicode"
)

// operation is one verb of one path, in neither version.
type operation struct {
	method, action string
	id, tag        string
	description    string
	params         []parameter
	body           string // model of the body, "" for none
	bodyTypes      []string
	optionalBody   bool
	response       string // model of what comes back
	codes          map[string]string
	gvk            map[string]any
}

// pathItem is one path.
type pathItem struct {
	shared     []parameter
	operations []operation
}

var (
	mediaTypes = []string{"application/json", "application/yaml"}
	patchTypes = []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
)

// paths are all paths of the resource.
func (r *resource) paths(f *framework) map[string]*pathItem {
	root := "/apis/" + r.group + "/" + r.version + "/"
	names := []string{"pretty"}
	out := map[string]*pathItem{}
	object, list, status := r.model(r.kind), r.model(r.listKind), metaPrefix+"Status"
	if r.namespaced {
		all := r.operation(f, "GET", "list", "list", "", list)
		all.id += "ForAllNamespaces"
		all.id = strings.Replace(all.id, "Namespaced", "", 1)
		out[root+r.plural] = &pathItem{shared: f.sharedBy("pretty"), operations: []operation{all}}
		root += "namespaces/{namespace}/"
		names = append(names, "namespace")
	}
	out[root+r.plural] = &pathItem{shared: f.sharedBy(names...), operations: []operation{
		r.operation(f, "GET", "list", "list", "", list),
		r.operation(f, "POST", "post", "create", "", object),
		r.operation(f, "DELETE", "deletecollection", "deletecollection", "", status),
	}}
	item := func(sub, model string, more ...operation) *pathItem {
		return &pathItem{shared: f.sharedBy(append([]string{"name"}, names...)...), operations: append([]operation{
			r.operation(f, "GET", "get", "read", sub, model),
			r.operation(f, "PUT", "put", "replace", sub, model),
			r.operation(f, "PATCH", "patch", "patch", sub, model),
		}, more...)}
	}
	at := root + r.plural + "/{name}"
	out[at] = item("", object, r.operation(f, "DELETE", "delete", "delete", "", status))
	if r.status {
		out[at+"/status"] = item("status", object)
	}
	if r.scale {
		out[at+"/scale"] = item("scale", scaleModel)
	}
	return out
}

// operation describes one verb.
func (r *resource) operation(f *framework, method, action, verb, sub, model string) operation {
	op := operation{
		method: strings.ToLower(method), action: action, params: f.params[action], response: model,
		description: describe(verb, sub, r.kind), codes: map[string]string{"200": "OK", "401": "Unauthorized"},
		gvk: map[string]any{"group": r.group, "version": r.version, "kind": r.kind},
	}
	group := identifier(strings.TrimSuffix(r.group, ".k8s.io"))
	op.tag = uncapitalized(group) + "_" + r.version
	op.id = operationID(verb, group+identifier(r.version), r, sub)
	switch action {
	case "post":
		op.body, op.bodyTypes = model, mediaTypes
		op.codes["201"], op.codes["202"] = "Created", "Accepted"
	case "put":
		op.body, op.bodyTypes = model, mediaTypes
		op.codes["201"] = "Created"
	case "patch":
		op.body, op.bodyTypes = metaPrefix+"Patch", patchTypes
	case "delete":
		op.body, op.bodyTypes, op.optionalBody = metaPrefix+"DeleteOptions", mediaTypes, true
		op.codes["202"] = "Accepted"
	}
	return op
}

func operationID(verb, group string, r *resource, sub string) string {
	scope := ""
	if r.namespaced {
		scope = "Namespaced"
	}
	if verb == "deletecollection" {
		return "delete" + group + "Collection" + scope + r.kind
	}
	return verb + group + scope + r.kind + identifier(sub)
}

// describe says what a verb does.
func describe(verb, sub, kind string) string {
	of := ""
	if sub != "" {
		of = " " + sub + " of"
	}
	switch verb {
	case "list":
		return "list" + of + " objects of kind " + kind
	case "patch":
		return "partially update" + of + " the specified " + kind
	case "read", "replace":
		return verb + of + " the specified " + kind
	case "deletecollection":
		return "delete collection of " + kind
	}
	article := " a "
	if strings.ContainsAny(kind[:1], "AEIOUaeiou") {
		article = " an "
	}
	return verb + of + article + kind
}

// identifier joins the words of a name, each with a capital.
func identifier(s string) string {
	var b strings.Builder
	upper := true
	for _, c := range s {
		if !unicode.IsLetter(c) && !unicode.IsDigit(c) {
			upper = true
			continue
		}
		if upper {
			c = unicode.ToUpper(c)
		}
		upper = false
		b.WriteRune(c)
	}
	return b.String()
}

func uncapitalized(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// v3 is the path as the third version writes it.
func (p *pathItem) v3() map[string]any {
	out := map[string]any{"parameters": p.shared}
	for i := range p.operations {
		op := &p.operations[i]
		o := op.common()
		if len(op.params) > 0 {
			o["parameters"] = op.params
		}
		if op.body != "" {
			body := map[string]any{"content": op.content(op.body, op.bodyTypes)}
			if !op.optionalBody {
				body["required"] = true
			}
			o["requestBody"] = body
		}
		responses := map[string]any{}
		for code, text := range op.codes {
			response := map[string]any{"description": text}
			if code != "401" {
				response["content"] = op.content(op.response, mediaTypes)
			}
			responses[code] = response
		}
		o["responses"] = responses
		out[op.method] = o
	}
	return out
}

func (op *operation) content(model string, types []string) map[string]any {
	out := map[string]any{}
	for _, t := range types {
		out[t] = map[string]any{"schema": map[string]any{"$ref": "#/components/schemas/" + model}}
	}
	return out
}

// common is what both versions write alike.
func (op *operation) common() map[string]any {
	return map[string]any{
		"description": op.description, "operationId": op.id, "tags": []string{op.tag},
		"x-kubernetes-action": op.action, "x-kubernetes-group-version-kind": op.gvk,
	}
}

// v2 is the path as the second version writes it.
func (p *pathItem) v2() map[string]any {
	out := map[string]any{"parameters": parametersV2(nil, p.shared)}
	for i := range p.operations {
		op := &p.operations[i]
		o := op.common()
		var params []any
		if op.body != "" {
			body := map[string]any{"name": "body", "in": "body", "schema": map[string]any{"$ref": "#/definitions/" + op.body}}
			if !op.optionalBody {
				body["required"] = true
			}
			params = append(params, body)
		}
		if params = parametersV2(params, op.params); len(params) > 0 {
			o["parameters"] = params
		}
		consumes := op.bodyTypes
		if consumes == nil {
			consumes = mediaTypes
		}
		o["consumes"], o["produces"], o["schemes"] = consumes, mediaTypes, []string{"https"}
		responses := map[string]any{}
		for code, text := range op.codes {
			response := map[string]any{"description": text}
			if code != "401" {
				response["schema"] = map[string]any{"$ref": "#/definitions/" + op.response}
			}
			responses[code] = response
		}
		o["responses"] = responses
		out[op.method] = o
	}
	return out
}

func parametersV2(out []any, params []parameter) []any {
	for i := range params {
		out = append(out, params[i].v2())
	}
	return out
}
