// Package route reads what a request is about out of its method and URL:
// verb, group, version, resource, namespace, name and subresource, by the rules of the
// Kubernetes API paths. It is pure, knows no kinds, and never refuses a path: what does
// not exist is for the server to say.
package route

import (
	"net/http"
	"net/url"
	"strings"
)

// Info is what a request is about.
type Info struct {
	// Path is the path as it was requested.
	Path string
	// IsResource tells a request for objects (/api/v1/pods) from all others (/healthz, /apis).
	// Only then do the fields below Verb have a meaning.
	IsResource bool
	// Verb is get, list, watch, create, update, patch, delete, deletecollection or proxy
	// for resources, else the method in lower case.
	Verb string
	// Prefix is "api" or "apis".
	Prefix                    string
	Group, Version            string
	Namespace, Resource, Name string
	Subresource               string
	// Rest is what stands behind the subresource, with its leading slash, for proxies; else empty.
	Rest string
	// WatchPrefix is set for the deprecated form /api/v1/watch/..., which always watches.
	WatchPrefix bool
}

// Parse reads a request. The empty string is an unknown value of any field.
func Parse(method string, u *url.URL) Info {
	info := Info{Path: u.Path, Verb: strings.ToLower(method)}
	rest := strings.Trim(u.Path, "/")
	part, rest := cut(rest)
	switch part {
	case "api":
	case "apis":
		info.Group, rest = cut(rest)
	default:
		return info
	}
	info.Prefix = part
	info.Version, rest = cut(rest)
	if rest == "" || (part == "apis" && info.Group == "") {
		return Info{Path: u.Path, Verb: info.Verb}
	}
	info.Verb = verbOf(method)
	info.IsResource = true
	if head, tail := cut(rest); (head == "watch" || head == "proxy") && tail != "" {
		info.Verb, rest = head, tail
		info.WatchPrefix = head == "watch"
	}
	info.split(rest)
	if strings.HasSuffix(u.Path, "/") && info.Subresource == "proxy" {
		info.Rest += "/"
	}
	info.refine(u)
	return info
}

// split reads namespace, resource, name and subresource.
func (info *Info) split(rest string) {
	info.Resource, rest = cut(rest)
	info.Name, rest = cut(rest)
	if info.Resource == "namespaces" && info.Name != "" {
		info.Namespace = info.Name
		if sub, tail := cut(rest); sub != "" && sub != "status" && sub != "finalize" {
			info.Resource = sub
			info.Name, rest = cut(tail)
		}
	}
	if info.Verb == "proxy" {
		return
	}
	info.Subresource, rest = cut(rest)
	if rest != "" {
		info.Rest = "/" + rest
	}
}

// refine turns the verbs of a named object into those of a collection.
func (info *Info) refine(u *url.URL) {
	if info.Name != "" {
		return
	}
	switch info.Verb {
	case "delete":
		info.Verb = "deletecollection"
	case "get":
		info.Verb = "list"
		if !strings.Contains(u.RawQuery, "watch") {
			return
		}
		if values := u.Query()["watch"]; len(values) > 0 && isTrue(values[0]) {
			info.Verb = "watch"
		}
	}
}

// isTrue reads a boolean query parameter as upstream does: everything but "false" and "0".
func isTrue(v string) bool {
	switch strings.ToLower(v) {
	case "false", "0":
		return false
	}
	return true
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return ""
}

// cut takes the first segment off a path without leading slash.
func cut(path string) (head, tail string) {
	head, tail, _ = strings.Cut(path, "/")
	return head, tail
}
