package proxy

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"coracle.dev/coracle/mesh/table"
)

// outgoing makes the request that a backend gets.
func (c *call) outgoing(to *table.Weighted) *outgoing {
	r := &c.req
	m := &outgoing{method: r.method, authority: r.authority, upgrade: r.upgrade}
	f := r.fields.strip().remove("host").remove("content-length").remove("expect")
	f = c.forwarded(f)
	f = edit(f, c.rule.Request, &m.authority)
	f = edit(f, to.Request, &m.authority)
	m.fields, r.fields = f, f
	path := r.path
	rewrite := c.rule.Rewrite
	if to.Rewrite != nil {
		rewrite = to.Rewrite
	}
	if rewrite != nil {
		if rewrite.Host != "" {
			m.authority = rewrite.Host
		}
		if rewrite.Path != nil {
			path = rewritten(path, &c.route.Match.Path, rewrite.Path)
		}
	}
	m.target = path
	if r.query != "" {
		m.target = path + "?" + r.query
	}
	return m
}

// clean says that what a route made of the request is still one: its author writes paths and hosts, and has no say over requests of
// others that go over the same connection to the backend.
func (m *outgoing) clean() bool { return cleanTarget(m.target) && cleanHost(m.authority) }

// forwarded says who asked, by which way. What clients say of themselves is only kept where the listener trusts them.
func (c *call) forwarded(f fields) fields {
	client := c.req.client.Addr().String()
	if c.listener.TrustForwarded {
		if before, ok := f.get("x-forwarded-for"); ok {
			client = before + ", " + client
		}
		if _, ok := f.get("x-forwarded-proto"); !ok {
			f = append(f, field{"X-Forwarded-Proto", c.req.scheme})
		}
		if _, ok := f.get("x-forwarded-host"); !ok {
			f = append(f, field{"X-Forwarded-Host", c.req.authority})
		}
		return f.set("X-Forwarded-For", client)
	}
	f = f.remove("forwarded").set("X-Forwarded-For", client)
	return f.set("X-Forwarded-Proto", c.req.scheme).set("X-Forwarded-Host", c.req.authority)
}

// edit changes headers. host, if given, is what a set Host goes to.
func edit(f fields, e *table.HeaderEdit, host *string) fields {
	if e == nil {
		return f
	}
	for _, h := range e.Set {
		if is(h.Name, "host") {
			if host != nil {
				*host = h.Value
			}
			continue
		}
		if clean(h) {
			f = f.set(h.Name, h.Value)
		}
	}
	for _, h := range e.Add {
		if clean(h) {
			f = append(f, field{h.Name, h.Value})
		}
	}
	for _, name := range e.Remove {
		f = f.remove(name)
	}
	return f
}

// clean says that a configured header is one, and does not touch the framing.
func clean(h table.Header) bool {
	return isToken(h.Name) && cleanValue(h.Value) && !hop(h.Name) && !is(h.Name, "content-length")
}

// rewritten is the path that a rewrite makes.
func rewritten(path string, match *table.PathMatch, r *table.PathRewrite) string {
	if r.Full != "" {
		return rooted(r.Full)
	}
	matched := path
	if match.Kind == table.PathPrefix || match.Kind == table.PathString {
		matched = match.Value
	}
	if match.Kind == table.PathString {
		if len(path) < len(matched) {
			return path
		}
		return rooted(r.Prefix + path[len(matched):])
	}
	matched = strings.TrimRight(matched, "/")
	if len(path) < len(matched) {
		return path
	}
	return rooted(strings.TrimRight(r.Prefix, "/") + path[len(matched):])
}

func rooted(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "/" + path
	}
	return path
}

func redirectCode(r *table.Redirect) int {
	if r.Code == 0 {
		return 302
	}
	return r.Code
}

// location is where a redirect goes, "" if the route's author did not write an address.
func (c *call) location(r *table.Redirect) string {
	scheme, host, port := c.req.scheme, r.Host, r.Port
	if r.Scheme != "" {
		scheme = strings.ToLower(r.Scheme)
	}
	if host == "" {
		host = table.Hostname(c.req.authority)
	}
	if host == "" { // HTTP/1.0 need not say which
		if host = c.req.local.Addr().String(); c.req.local.Addr().Is6() {
			host = "[" + host + "]"
		}
	}
	if port == 0 && r.Scheme == "" {
		port = listenerPort(c.listener, c.req.local)
	}
	if port != 0 && !(scheme == "http" && port == 80) && !(scheme == "https" && port == 443) {
		host = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port)))
	}
	path := c.req.path
	if r.Path != nil {
		path = rewritten(path, &c.route.Match.Path, r.Path)
	}
	if c.req.query != "" {
		path += "?" + c.req.query
	}
	if to := scheme + "://" + host + path; cleanTarget(to) {
		return to
	}
	return ""
}

func preflight(r *incoming) bool {
	if r.method != "OPTIONS" {
		return false
	}
	_, origin := r.fields.get("origin")
	_, asked := r.fields.get("access-control-request-method")
	return origin && asked
}

// origin says what to answer to the request's origin: "" if it is not allowed.
func origin(c *table.CORS, r *incoming) string {
	from, ok := r.fields.get("origin")
	if !ok {
		return ""
	}
	for _, allowed := range c.Origins {
		before, after, wild := strings.Cut(allowed, "*")
		switch {
		case allowed == "*" && !c.Credentials:
			return "*"
		case allowed == "*", strings.EqualFold(allowed, from):
			return from
		case wild && len(from) > len(before)+len(after) && strings.HasPrefix(strings.ToLower(from), strings.ToLower(before)) &&
			strings.HasSuffix(strings.ToLower(from), strings.ToLower(after)):
			return from
		}
	}
	return ""
}

func preflightFields(c *table.CORS, r *incoming) fields {
	f := corsFields(nil, c, r)
	if f.value("access-control-allow-origin") == "" {
		return f
	}
	f = list(f, "Access-Control-Allow-Methods", c.Methods, r.fields.value("access-control-request-method"), c.Credentials)
	f = list(f, "Access-Control-Allow-Headers", c.Headers, r.fields.value("access-control-request-headers"), c.Credentials)
	if c.MaxAge > 0 {
		f = append(f, field{"Access-Control-Max-Age", strconv.Itoa(int(c.MaxAge.Seconds()))})
	}
	return f
}

func list(f fields, name string, values []string, asked string, credentials bool) fields {
	if len(values) == 0 {
		return f
	}
	value := strings.Join(values, ", ")
	if values[0] == "*" && credentials && asked != "" {
		value = asked
	}
	return append(f, field{name, value})
}

// corsFields sets the headers of a cross-origin answer. Who may read it is the rule's to say: what the backend says of it is taken out, so
// that one that lets everybody in does not undo the rule.
func corsFields(f fields, c *table.CORS, r *incoming) fields {
	if (c.Credentials || !slices.Contains(c.Origins, "*")) && !token(f.value("vary"), "origin") {
		f = append(f, field{"Vary", "Origin"}) // caches must know, whoever asked
	}
	if _, ok := r.fields.get("origin"); !ok {
		return f
	}
	for _, name := range []string{"access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers"} {
		f = f.remove(name)
	}
	from := origin(c, r)
	if from == "" {
		return f
	}
	f = f.set("Access-Control-Allow-Origin", from)
	if c.Credentials {
		f = f.set("Access-Control-Allow-Credentials", "true")
	}
	if len(c.Expose) > 0 {
		f = f.set("Access-Control-Expose-Headers", strings.Join(c.Expose, ", "))
	}
	return f
}

// cookie is the value of a cookie.
func cookie(f fields, name string) (string, bool) {
	for i := range f {
		if !is(f[i].name, "cookie") {
			continue
		}
		rest := f[i].value
		for rest != "" {
			var one string
			one, rest, _ = strings.Cut(rest, ";")
			if key, value, ok := strings.Cut(trim(one), "="); ok && key == name {
				return strings.Trim(value, `"`), true
			}
		}
	}
	return "", false
}

// sessionOf is the token of the session that a request belongs to.
func sessionOf(s *table.Session, f fields) string {
	if s.Cookie != "" {
		v, _ := cookie(f, s.Cookie)
		return v
	}
	return f.value(s.Header)
}

// sessionField hands a session's token to the client.
func sessionField(s *table.Session, token string) field {
	if s.Cookie == "" {
		return field{s.Header, token}
	}
	path := s.Path
	if path == "" {
		path = "/"
	}
	value := s.Cookie + "=" + token + "; Path=" + path + "; HttpOnly"
	if s.Lifetime > 0 {
		value += "; Max-Age=" + strconv.Itoa(int(s.Lifetime.Seconds()))
	}
	return field{"Set-Cookie", value}
}

// void is where answers to mirrored requests go.
type void struct{}

func (void) inform(int, fields) error { return nil }
func (void) respond(r *response) error {
	if r.body == nil {
		return nil
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for n := 0; n < 1<<20; {
		k, err := r.body.Read(*buffer)
		n += k
		if err != nil {
			return nil
		}
	}
	return errClient
}
func (void) switchProtocols(*call, *response) error { return errClient }
func (void) watch(func()) func()                    { return nothing }
func (void) stopBody()                              {}
func (void) started() bool                          { return false }
