package openapi

import (
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// framework is what documents of custom resources have in common with those of built-in kinds: the schemas of metadata and the
// parameters of each verb. It is read from an embedded document.
type framework struct {
	info       json.RawMessage
	schemas    map[string]any // of metadata, options and statuses
	apiVersion string         // what the fields of every object are for
	kind       string
	shared     map[string]parameter   // those that stand once for a path: name, namespace, pretty
	params     map[string][]parameter // by action, "get", "list", ...
}

// parameter is one parameter in the third version.
type parameter struct {
	Name        string `json:"name"`
	In          string `json:"in"`
	Description string `json:"description,omitempty"`
	Required    bool   `json:"required,omitempty"`
	Schema      struct {
		Type        string `json:"type,omitempty"`
		UniqueItems bool   `json:"uniqueItems,omitempty"`
	} `json:"schema"`
}

// v2 is the parameter in the second version.
func (p *parameter) v2() map[string]any {
	out := map[string]any{"name": p.Name, "in": p.In, "type": p.Schema.Type}
	if p.Schema.UniqueItems {
		out["uniqueItems"] = true
	}
	if p.Description != "" {
		out["description"] = p.Description
	}
	if p.Required {
		out["required"] = true
	}
	return out
}

// model is a namespaced built-in resource with all verbs.
const modelPath = "apis/coordination.k8s.io/v1"

// frames holds the framework while it is in use.
var frames atomic.Pointer[framework]

// frameLife is how long the framework stays in memory; making it takes some milliseconds.
const frameLife = 30 * time.Second

// frame returns the framework, shared and not to be changed.
func frame() *framework {
	if f := frames.Load(); f != nil {
		return f
	}
	f := readFramework()
	if frames.CompareAndSwap(nil, f) {
		time.AfterFunc(frameLife, func() { frames.CompareAndSwap(f, nil) })
	}
	return f
}

func readFramework() *framework {
	var doc struct {
		Info  json.RawMessage
		Paths map[string]struct {
			Get, Post, Put, Patch, Delete *struct {
				Parameters []parameter
				Action     string `json:"x-kubernetes-action"`
			}
			Parameters []parameter
		}
		Components struct{ Schemas map[string]json.RawMessage }
	}
	mustRead(v3File(modelPath), &doc)
	f := &framework{info: doc.Info, schemas: map[string]any{}, shared: map[string]parameter{}, params: map[string][]parameter{}}
	for name, s := range doc.Components.Schemas {
		if strings.HasPrefix(name, metaPrefix) && !strings.HasSuffix(name, ".MicroTime") {
			f.schemas[name] = s
		}
	}
	for path, item := range doc.Paths {
		if !strings.Contains(path, "{namespace}") {
			continue // the list of all namespaces has its parameters elsewhere
		}
		for _, p := range item.Parameters {
			f.shared[p.Name] = p
		}
		for _, op := range []*struct {
			Parameters []parameter
			Action     string `json:"x-kubernetes-action"`
		}{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				f.params[op.Action] = op.Parameters
			}
		}
	}
	var lease struct {
		Properties map[string]struct{ Description string }
	}
	mustDecode(doc.Components.Schemas["io.k8s.api.coordination.v1.Lease"], &lease)
	f.apiVersion, f.kind = lease.Properties["apiVersion"].Description, lease.Properties["kind"].Description
	return f
}

// scaleSchemas are those of the subresource scale.
func scaleSchemas() map[string]any {
	var doc struct {
		Components struct{ Schemas map[string]json.RawMessage }
	}
	mustRead(v3File("apis/apps/v1"), &doc)
	out := map[string]any{}
	for name, s := range doc.Components.Schemas {
		if strings.HasPrefix(name, scaleModel) {
			out[name] = s
		}
	}
	return out
}

// mustRead decodes an embedded document.
func mustRead(file string, into any) {
	data, err := decompress(embedded(file))
	if err != nil {
		panic(err) // the files are part of the program
	}
	mustDecode(data, into)
}

func mustDecode(data []byte, into any) {
	if err := json.Unmarshal(data, into); err != nil {
		panic(err) // the files are part of the program
	}
}

// sharedBy are the parameters that stand once for a path.
func (f *framework) sharedBy(names ...string) []parameter {
	slices.Sort(names)
	var out []parameter
	for _, n := range names {
		if p, ok := f.shared[n]; ok {
			out = append(out, p)
		}
	}
	return out
}
