package table

import (
	"cmp"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Request is what matching looks at.
type Request struct {
	// Method, Authority, Scheme, and Path without query, normalised by the caller.
	Method, Authority, Scheme, Path string
	// Query is the raw query.
	Query string
	// Header returns the value of a header, lines joined by commas; any case of name.
	Header func(name string) (string, bool)
}

// VirtualHost is an ordered list of routes for some hostnames, compiled. The first route that matches decides.
type VirtualHost struct {
	// Name for logs.
	Name string
	// Hostnames: "a.example.com", "*.example.com" or "*".
	Hostnames []string

	routes []compiled
	exact  map[string][]int32
	tree   node
	scan   []int32
}

// compiled is a route with its expressions.
type compiled struct {
	route   *Route
	path    *regexp.Regexp
	service *regexp.Regexp
	method  *regexp.Regexp
	headers []condition
	query   []condition
}

type condition struct {
	ValueMatch
	expression *regexp.Regexp
}

// NewVirtualHost compiles routes in the order in which they are to be tried; Precedence sorts them as Gateway API wants. The routes must not change
// afterwards. It fails on expressions that do not compile.
func NewVirtualHost(name string, hostnames []string, routes []*Route) (*VirtualHost, error) {
	v := &VirtualHost{Name: name, Hostnames: hostnames, routes: make([]compiled, len(routes)), exact: map[string][]int32{}}
	for i, r := range routes {
		if r.Rule == nil {
			return nil, fmt.Errorf("route %d of %q has no rule", i, name)
		}
		c, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Rule.Name, err)
		}
		v.routes[i] = c
		v.place(int32(i), r.Match.Path)
	}
	return v, nil
}

// Routes are the routes in order.
func (v *VirtualHost) Routes() []*Route {
	out := make([]*Route, len(v.routes))
	for i := range v.routes {
		out[i] = v.routes[i].route
	}
	return out
}

// place puts a route where its path is looked up.
func (v *VirtualHost) place(i int32, p PathMatch) {
	switch {
	case p.Fold || p.Kind == PathRegex || p.Kind == PathGRPCRegex || p.Kind == PathGRPC && p.Service == "":
		v.scan = append(v.scan, i)
	case p.Kind == PathExact:
		v.exact[p.Value] = append(v.exact[p.Value], i)
	case p.Kind == PathString:
		v.tree.insert(p.Value, i, false)
	case p.Kind == PathPrefix:
		if prefix := strings.TrimRight(p.Value, "/"); prefix == "" {
			v.tree.insert("", i, false)
		} else {
			v.tree.insert(prefix, i, true)
		}
	case p.Method == "":
		v.tree.insert("/"+p.Service+"/", i, false)
	default:
		path := "/" + p.Service + "/" + p.Method
		v.exact[path] = append(v.exact[path], i)
	}
}

func whole(expression string) (*regexp.Regexp, error) {
	return regexp.Compile("^(?:" + expression + ")$")
}

func compile(r *Route) (c compiled, err error) {
	c.route = r
	p := r.Match.Path
	if p.Kind == PathRegex {
		if c.path, err = whole(p.Value); err != nil {
			return c, err
		}
	}
	if p.Kind == PathGRPCRegex {
		if c.service, err = whole(or(p.Service, ".*")); err != nil {
			return c, err
		}
		if c.method, err = whole(or(p.Method, ".*")); err != nil {
			return c, err
		}
	}
	if c.headers, err = conditions(r.Match.Headers); err != nil {
		return c, err
	}
	c.query, err = conditions(r.Match.Query)
	return c, err
}

func conditions(all []ValueMatch) ([]condition, error) {
	var out []condition
	for _, m := range all {
		c := condition{ValueMatch: m}
		if m.Kind == ValueRegex {
			var err error
			if c.expression, err = whole(m.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// Match returns the first route whose conditions hold, or nil. For exact paths and prefixes the cost is that of the path's length and of the routes on the
// very prefixes of this path, however many others there are; expressions are tried in order.
func (v *VirtualHost) Match(r *Request) *Route {
	best := int32(math.MaxInt32)
	best = v.first(v.exact[r.Path], r, best)
	v.tree.walk(r.Path, func(list []int32) { best = v.first(list, r, best) })
	for _, i := range v.scan {
		if i >= best {
			break
		}
		if v.routes[i].path1(r.Path) && v.routes[i].rest(r) {
			best = i
			break
		}
	}
	if best == math.MaxInt32 {
		return nil
	}
	return v.routes[best].route
}

// first is the first of list that matches beside its path, if it comes before best.
func (v *VirtualHost) first(list []int32, r *Request, best int32) int32 {
	for _, i := range list {
		if i >= best {
			return best
		}
		if v.routes[i].rest(r) {
			return i
		}
	}
	return best
}

// path1 is the condition on the path for the routes that are not looked up.
func (c *compiled) path1(path string) bool {
	p := c.route.Match.Path
	switch p.Kind {
	case PathRegex:
		return c.path.MatchString(path)
	case PathGRPC, PathGRPCRegex:
		service, method, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if !ok || !strings.HasPrefix(path, "/") {
			return false
		}
		if p.Kind == PathGRPCRegex {
			return c.service.MatchString(service) && c.method.MatchString(method)
		}
		return same(p.Service, service, p.Fold) && same(p.Method, method, p.Fold)
	case PathExact:
		return len(path) == len(p.Value) && strings.EqualFold(path, p.Value)
	case PathString:
		return len(path) >= len(p.Value) && strings.EqualFold(path[:len(p.Value)], p.Value)
	}
	prefix := strings.TrimRight(p.Value, "/")
	return len(path) >= len(prefix) && strings.EqualFold(path[:len(prefix)], prefix) && (len(path) == len(prefix) || prefix == "" || path[len(prefix)] == '/')
}

func same(want, got string, fold bool) bool {
	return want == "" || want == got || fold && strings.EqualFold(want, got)
}

// rest is every condition except the path.
func (c *compiled) rest(r *Request) bool {
	if m := c.route.Match.Method; m != "" && m != r.Method {
		return false
	}
	for i := range c.headers {
		value, ok := r.header(c.headers[i].Name)
		if c.headers[i].holds(value, ok) == c.headers[i].Not {
			return false
		}
	}
	for i := range c.query {
		value, ok := QueryValue(r.Query, c.query[i].Name)
		if c.query[i].holds(value, ok) == c.query[i].Not {
			return false
		}
	}
	return true
}

func (r *Request) header(name string) (string, bool) {
	switch name {
	case ":authority":
		return r.Authority, true
	case ":method":
		return r.Method, true
	case ":scheme":
		return r.Scheme, true
	}
	if r.Header == nil {
		return "", false
	}
	return r.Header(name)
}

func (c *condition) holds(value string, present bool) bool {
	if !present {
		return false
	}
	switch c.Kind {
	case ValuePresent:
		return true
	case ValuePrefix:
		return strings.HasPrefix(value, c.Value)
	case ValueRegex:
		return c.expression.MatchString(value)
	}
	return value == c.Value
}

// QueryValue is the first value of a parameter in a raw query, unescaped.
func QueryValue(query, name string) (string, bool) {
	for query != "" {
		var part string
		part, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(part, "=")
		if strings.ContainsAny(key, "%+") {
			unescaped, err := url.QueryUnescape(key)
			if err != nil {
				continue
			}
			key = unescaped
		}
		if key != name {
			continue
		}
		if unescaped, err := url.QueryUnescape(value); err == nil {
			value = unescaped
		}
		return value, true
	}
	return "", false
}

// Precedence sorts routes as Gateway API wants them tried: exact paths, then regular expressions (whose place the specification leaves open), then
// prefixes, longer ones first; then routes with a method; then those with more header conditions; then more query conditions. For gRPC more characters of
// the service, then of the method. What is equal stays in the order in which it was: the caller has put older objects and earlier rules first.
func Precedence(routes []*Route) {
	slices.SortStableFunc(routes, func(a, b *Route) int { return compare(&a.Match, &b.Match) })
}

func compare(a, b *Match) int {
	if c := cmp.Compare(rank(a.Path.Kind), rank(b.Path.Kind)); c != 0 {
		return c
	}
	if a.Path.Kind == PathGRPC || a.Path.Kind == PathGRPCRegex {
		if c := cmp.Or(cmp.Compare(len(b.Path.Service), len(a.Path.Service)), cmp.Compare(len(b.Path.Method), len(a.Path.Method))); c != 0 {
			return c
		}
	}
	// What an exact path matches has one length; that of a prefix is counted without the slash that does not count.
	if c := cmp.Compare(length(b.Path), length(a.Path)); c != 0 {
		return c
	}
	return cmp.Or(
		cmp.Compare(given(b.Method), given(a.Method)),
		cmp.Compare(len(b.Headers), len(a.Headers)),
		cmp.Compare(len(b.Query), len(a.Query)),
	)
}

func length(p PathMatch) int {
	if p.Kind == PathPrefix {
		return len(strings.TrimRight(p.Value, "/"))
	}
	return len(p.Value)
}

func given(s string) int {
	if s == "" {
		return 0
	}
	return 1
}

func rank(k PathKind) int {
	switch k {
	case PathExact:
		return 0
	case PathGRPC:
		return 1
	case PathRegex, PathGRPCRegex:
		return 2
	}
	return 3
}
