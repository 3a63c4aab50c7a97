package apiserver

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/apiserver/audit"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/discovery"
	"coracle.dev/coracle/apiserver/fairness"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, server: s, began: s.cfg.Now()}
	defer x.end(r)
	id := auditID(r)
	header := x.Header()
	header.Set("Audit-Id", id)
	header.Set("Cache-Control", "no-cache, private")
	info := route.Parse(r.Method, r.URL)
	user, err := s.who(r, &info)
	if err != nil {
		x.strangers(r, &info, id)
		s.fail(x, r, err)
		return
	}
	x.long = longRunning(&info, r)
	if s.cfg.Audit != nil {
		if err := x.record(r, &info, &user, id); err != nil {
			s.fail(x, r, err)
			return
		}
	}
	if wanted, ok := impersonated(r.Header); ok {
		if user, err = s.impersonate(r, user, wanted); err != nil {
			s.fail(x, r, err)
			return
		}
		x.audit.Impersonate(user)
	}
	if !x.long || info.Verb == "watch" {
		if err := x.enter(r.Context(), r, &info, &user); err != nil {
			if fairness.Left(err) {
				s.fail(x, r, apierrors.NewTimeoutError("the client left while the request waited for its turn", 0))
				return
			}
			header.Set("Retry-After", "1")
			http.Error(x, "Too many requests, please try again later.", http.StatusTooManyRequests)
			return
		}
	}
	if err := s.may(r, &info, &user, x.audit); err != nil {
		s.fail(x, r, err)
		return
	}
	if h := s.delegated(&info); h != nil {
		x.counted(&info, r)
		handOver(x, r, h, user, x.long)
		return
	}
	if !info.IsResource {
		x.countedPath(&info)
		s.servePath(x, r, &info)
		return
	}
	if err := s.serveResource(x, r, info, user, x.long); err != nil {
		s.fail(x, r, err)
	}
}

// publicPaths may be read without credentials.
func publicPath(path string) bool {
	for _, p := range []string{"/healthz", "/livez", "/readyz", "/version"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// who finds the user that a request comes from.
func (s *Server) who(r *http.Request, info *route.Info) (client.User, error) {
	user, found, err := s.authn.Authenticate(r)
	if err != nil { // bad credentials are not none: they are refused everywhere
		s.cfg.Log.Debug("unable to authenticate the request", "error", err)
		return user, apierrors.NewUnauthorized("Unauthorized")
	}
	if !found {
		if !s.cfg.Anonymous(info.Path) {
			return user, apierrors.NewUnauthorized("Unauthorized")
		}
		return authn.Anonymous(), nil
	}
	// Credentials end here: nobody behind this server gets to see them.
	r.Header.Del("Authorization")
	return user, nil
}

// longRunning tells which requests stream and count neither as in flight nor against the timeout.
func longRunning(info *route.Info, r *http.Request) bool {
	if !info.IsResource {
		return strings.HasPrefix(info.Path, "/debug/pprof/")
	}
	switch info.Verb {
	case "watch", "proxy":
		return true
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy":
		return true
	case "log":
		return strings.Contains(r.URL.RawQuery, "follow")
	}
	return false
}

// may asks the authorizer.
func (s *Server) may(r *http.Request, info *route.Info, user *client.User, event *audit.Event) error {
	if !info.IsResource && publicPath(info.Path) {
		event.Decide(true, "")
		return nil
	}
	a := requested(info, user, r.URL.RawQuery)
	if err := s.permit(r.Context(), a, event); err != nil || info.Verb == "create" || !streams(info.Subresource) || !info.IsResource || info.Resource != "pods" {
		return err
	}
	// A WebSocket begins with GET, and yet runs commands in the pod.
	a.Verb = "create"
	return s.permit(r.Context(), a, event)
}

// requested are the attributes of a request as it came, its selectors among them.
func requested(info *route.Info, user *client.User, query string) *authz.Attributes {
	a := attributes(info, user)
	if info.IsResource && !info.WatchPrefix && (info.Verb == "list" || info.Verb == "watch" || info.Verb == "deletecollection") {
		a.Select(query)
	}
	return a
}

// permit is nil if the authorizer allows, else what the client is told.
func (s *Server) permit(ctx context.Context, a *authz.Attributes, event *audit.Event) error {
	d, reason, err := s.authz.Authorize(ctx, a)
	event.Decide(d == authz.Allowed, reason)
	switch {
	case d == authz.Allowed:
		return nil
	case err != nil:
		return apierrors.NewInternalError(err)
	}
	return authz.Forbidden(a, reason)
}

func attributes(info *route.Info, user *client.User) *authz.Attributes {
	return &authz.Attributes{
		User: *user, Verb: info.Verb, IsResource: info.IsResource, Path: info.Path,
		Group: info.Group, Version: info.Version, Resource: info.Resource, Subresource: info.Subresource,
		Namespace: info.Namespace, Name: info.Name,
	}
}

// servePath answers what is not about objects.
func (s *Server) servePath(w http.ResponseWriter, r *http.Request, info *route.Info) {
	path := strings.TrimSuffix(info.Path, "/")
	head, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch {
	case discovery.Serves(info.Path):
		s.discovery.ServeHTTP(w, r)
	case head == "healthz" || head == "livez" || head == "readyz":
		s.health(w, r, head)
	case path == "/version":
		s.version(w, r)
	case path == "/metrics":
		s.serveMetrics(w)
	case path == "/metrics/slis":
		s.serveSLIs(w)
	case strings.HasPrefix(path, fairness.DebugPath):
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if !s.gate.Dump(w, strings.TrimPrefix(path, fairness.DebugPath)) {
			discovery.NotFound(w)
		}
	case path == "/openapi/v2" && s.cfg.OpenAPIV2 != nil:
		s.cfg.OpenAPIV2.ServeHTTP(w, r)
	case strings.HasPrefix(path, "/openapi/v3") && s.cfg.OpenAPIV3 != nil:
		s.cfg.OpenAPIV3.ServeHTTP(w, r)
	case path == "/openid/v1/jwks" && s.tokens != nil:
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(s.tokens.KeySet())
	case path == "/.well-known/openid-configuration" && s.tokens != nil:
		s.openID(w)
	case path == "":
		s.index(w, r)
	default:
		discovery.NotFound(w)
	}
}

// serveResource finds the kind and hands the request to the verb.
func (s *Server) serveResource(x *exchange, r *http.Request, info route.Info, user client.User, long bool) error {
	gvr := schema.GroupVersionResource{Group: info.Group, Version: info.Version, Resource: info.Resource}
	kind := s.cfg.Registry.ByResource(gvr)
	c := &call{Server: s, x: x, w: x, r: r, info: info, user: user, kind: kind}
	if kind != nil {
		c.version = kind.Version(info.Version)
	}
	if !c.exists() {
		c.absent()
		discovery.NotFound(x)
		return nil
	}
	x.counted(&info, r)
	if r.URL.RawQuery != "" {
		c.query, _ = url.ParseQuery(r.URL.RawQuery)
	}
	if c.version.Deprecated != "" {
		c.warn(c.version.Deprecated)
		x.audit.Annotate(audit.DeprecatedAnnotation, "true")
	}
	if !c.allowed() {
		return apierrors.NewMethodNotSupported(kind.GroupResource(), info.Verb)
	}
	if !long {
		ctx, cancel, err := c.deadline()
		if err != nil {
			return err
		}
		defer cancel()
		defer boundIO(x, r)()
		c.r = r.WithContext(ctx)
	}
	if c.sub != nil && c.sub.Strategy == nil {
		return c.special()
	}
	return c.hinted(c.verb())
}

// boundIO keeps a client that sends or reads slowly from holding a slot for ever. The function that it
// returns lifts the bound, since the connection lives on.
func boundIO(w http.ResponseWriter, r *http.Request) func() {
	rc := http.NewResponseController(w)
	end := time.Now().Add(requestTimeout)
	if r.ContentLength != 0 {
		_ = rc.SetReadDeadline(end) // not every writer can
	}
	if r.Method != http.MethodGet {
		return func() {}
	}
	_ = rc.SetWriteDeadline(end.Add(requestTimeout))
	return func() { _ = rc.SetWriteDeadline(time.Time{}) }
}

// exists checks that the path names an endpoint, and finds its subresource.
func (c *call) exists() bool {
	if c.kind == nil || c.version == nil || c.version.NotServed || (c.info.Prefix == "api") != (c.kind.Group == "") {
		return false
	}
	named, namespace := c.info.Name != "", c.info.Namespace != ""
	if !c.kind.Namespaced && namespace && (c.kind.Name() != "namespaces" || !named) {
		return false
	}
	if c.kind.Namespaced && named && !namespace {
		return false
	}
	if c.info.Subresource == "" {
		return true
	}
	c.sub = c.kind.Subresource(c.info.Subresource)
	if c.sub == nil || c.sub.Versions != nil && !slices.Contains(c.sub.Versions, c.version.Name) {
		return false
	}
	return c.info.Rest == "" || c.info.Subresource == "proxy"
}

// allowed tells whether the endpoint has the verb.
func (c *call) allowed() bool {
	verb := c.info.Verb
	if c.sub != nil {
		if c.info.Subresource == "proxy" {
			return true
		}
		return slices.Contains(c.sub.Verbs, verb) || verb == "get" && streams(c.info.Subresource)
	}
	if c.info.Verb == "create" && c.kind.Namespaced && c.info.Namespace == "" {
		// Reviews of a namespace and the like are created inside one.
		return false
	}
	if collection := verb == "create" || verb == "list" || verb == "deletecollection"; verb != "watch" && collection == (c.info.Name != "") {
		return false
	}
	return c.kind.Verbs == nil || slices.Contains(c.kind.Verbs, verb)
}

// streams tells which subresources are opened by GET (WebSocket) though discovery may list create alone.
func streams(sub string) bool { return sub == "exec" || sub == "attach" || sub == "portforward" }

// verb answers a request for the stored object itself, or a view of it.
func (c *call) verb() error {
	if c.kind.Virtual {
		return c.virtual()
	}
	switch c.info.Verb {
	case "get":
		return c.get()
	case "list":
		return c.list()
	case "watch":
		return c.watch()
	case "create":
		return c.create()
	case "update":
		return c.update()
	case "patch":
		return c.patch()
	case "delete":
		return c.delete()
	case "deletecollection":
		return c.deleteCollection()
	}
	return apierrors.NewMethodNotSupported(c.kind.GroupResource(), c.info.Verb)
}
