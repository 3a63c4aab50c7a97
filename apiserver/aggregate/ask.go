package aggregate

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/openapi"
	"coracle.dev/coracle/client"
)

const (
	// askTimeout is how long a server may take to answer what we ask of our own accord.
	askTimeout = 5 * time.Second
	// maxAnswer is how many bytes of an answer are read.
	maxAnswer = 64 << 20
	// v2Life is how long a server's document in the second version is used before it is asked again.
	v2Life = time.Minute

	acceptAggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
)

// ourselves is who we are when we ask for ourselves. Members of system:masters are let in by every server.
var ourselves = client.User{Name: "system:kube-aggregator", Groups: []string{client.GroupMasters}}

// reader is who we are when we ask for documents, which everybody who is known may read.
var reader = client.User{Name: "system:aggregator", Groups: []string{client.GroupAuthenticated}}

// Probe asks the server of an APIService whether it is there, in a way that each has to answer.
// The error is worded as the APIService's condition tells it.
func (a *Aggregator) Probe(ctx context.Context, s *apiregistrationv1.APIService) error {
	t := target(&s.Spec)
	if _, err := backend.Resolve(a.Pool.Snapshot(), *t.Service); err != nil {
		return err
	}
	gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
	answer, u, err := a.ask(ctx, &ourselves, t, discoveryPath(gv), "")
	if err == nil && (answer.code < 200 || answer.code >= 300) {
		err = fmt.Errorf("bad status from %v: %d", u, answer.code)
	}
	if err != nil {
		if u == nil {
			return err
		}
		return fmt.Errorf("failing or missing response from %v: %w", u, err)
	}
	return nil
}

func discoveryPath(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.Group + "/" + gv.Version
}

// answer is what a server said.
type answer struct {
	code  int
	media string
	body  []byte
}

// ask gets a path of a server.
func (a *Aggregator) ask(ctx context.Context, as *client.User, t *backend.Target, path, accept string) (answer, *url.URL, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, u, err := a.Pool.Client(*t)
	if err != nil {
		return answer{}, nil, err
	}
	u.Path = path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return answer{}, u, err
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	transport.SetAuthProxyHeaders(r, as.Name, "", as.Groups, nil)
	response, body, err := backend.Do(c, r, maxAnswer)
	if err != nil {
		return answer{}, u, err
	}
	return answer{response.StatusCode, response.Header.Get("Content-Type"), body}, u, nil
}

// Look asks the server of an APIService for its kinds and documents. While it cannot be asked, what it said before stays,
// marked stale.
func (a *Aggregator) Look(ctx context.Context, s *apiregistrationv1.APIService) error {
	if s.Spec.Service == nil {
		return nil
	}
	t := target(&s.Spec)
	gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
	found, err := a.discover(ctx, t, gv)
	if err != nil {
		found = a.before(s.Name)
		if found == nil {
			found = &findings{discovery: apidiscoveryv2.APIVersionDiscovery{Version: gv.Version}}
		} else {
			found = &findings{discovery: found.discovery, hashV3: found.hashV3}
		}
		a.note(s.Name, t, found)
		return err
	}
	found.fresh = true
	found.hashV3 = a.hashV3(ctx, t, gv)
	a.note(s.Name, t, found)
	return nil
}

func (a *Aggregator) before(name string) *findings {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.services[name]; s != nil {
		return s.found
	}
	return nil
}

// discover asks for the aggregated form, and for the old one of a server that has no other.
func (a *Aggregator) discover(ctx context.Context, t *backend.Target, gv schema.GroupVersion) (*findings, error) {
	got, _, err := a.ask(ctx, &ourselves, t, "/apis", acceptAggregated)
	if err != nil {
		return nil, err
	}
	if got.code == http.StatusServiceUnavailable {
		return nil, fmt.Errorf("service %s/%s:%d returned non-success response code: %d", t.Service.Namespace, t.Service.Name, t.Service.Port, got.code)
	}
	if got.code == http.StatusOK && isAggregated(got.media) {
		return parseAggregated(got.body, gv)
	}
	path := discoveryPath(gv)
	if got, _, err = a.ask(ctx, &ourselves, t, path, "application/json"); err != nil {
		return nil, err
	}
	if got.code != http.StatusOK {
		return nil, fmt.Errorf("failed to download legacy discovery for %s: status %d", path, got.code)
	}
	return parseLegacy(got.body, gv)
}

func isAggregated(contentType string) bool {
	_, params, err := mime.ParseMediaType(contentType)
	return err == nil && params["g"] == apidiscoveryv2.GroupName && params["v"] == "v2" && params["as"] == "APIGroupDiscoveryList"
}

func parseAggregated(data []byte, gv schema.GroupVersion) (*findings, error) {
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	found := &findings{discovery: apidiscoveryv2.APIVersionDiscovery{Version: gv.Version}}
	for _, g := range list.Items {
		for _, v := range g.Versions {
			if g.Name == gv.Group && v.Version == gv.Version {
				found.discovery = v
			}
		}
	}
	for i := range found.discovery.Resources {
		r := &found.discovery.Resources[i]
		// Old clients do not expect that there is none.
		if r.ResponseKind == nil {
			r.ResponseKind = &metav1.GroupVersionKind{}
		}
		for j := range r.Subresources {
			if r.Subresources[j].ResponseKind == nil {
				r.Subresources[j].ResponseKind = &metav1.GroupVersionKind{}
			}
		}
	}
	return found, nil
}

// parseLegacy turns the old form into the aggregated one.
func parseLegacy(data []byte, gv schema.GroupVersion) (*findings, error) {
	var list metav1.APIResourceList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	out := apidiscoveryv2.APIVersionDiscovery{Version: gv.Version}
	kind := func(r *metav1.APIResource) *metav1.GroupVersionKind {
		k := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		if k.Group == "" && k.Version == "" {
			k.Group, k.Version = gv.Group, gv.Version
		}
		return k
	}
	for i := range list.APIResources {
		r := &list.APIResources[i]
		if strings.Contains(r.Name, "/") {
			continue
		}
		d := apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Name, SingularResource: r.SingularName, Scope: apidiscoveryv2.ScopeCluster, ResponseKind: kind(r),
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		}
		if r.Namespaced {
			d.Scope = apidiscoveryv2.ScopeNamespace
		}
		out.Resources = append(out.Resources, d)
	}
	for i := range list.APIResources {
		r := &list.APIResources[i]
		parent, sub, ok := strings.Cut(r.Name, "/")
		if !ok {
			continue
		}
		at := slices.IndexFunc(out.Resources, func(d apidiscoveryv2.APIResourceDiscovery) bool { return d.Resource == parent })
		if at < 0 {
			scope := apidiscoveryv2.ScopeCluster
			if r.Namespaced {
				scope = apidiscoveryv2.ScopeNamespace
			}
			out.Resources = append(out.Resources, apidiscoveryv2.APIResourceDiscovery{
				Resource: parent, Scope: scope, ResponseKind: &metav1.GroupVersionKind{}, Verbs: metav1.Verbs{}})
			at = len(out.Resources) - 1
		}
		out.Resources[at].Subresources = append(out.Resources[at].Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: sub, ResponseKind: kind(r), Verbs: r.Verbs})
	}
	return &findings{discovery: out}, nil
}

// hashV3 finds the group version in the server's index of documents; "" if it is not there.
func (a *Aggregator) hashV3(ctx context.Context, t *backend.Target, gv schema.GroupVersion) string {
	got, _, err := a.ask(ctx, &reader, t, "/openapi/v3", "application/json")
	if err != nil || got.code != http.StatusOK {
		return ""
	}
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if json.Unmarshal(got.body, &index) != nil {
		return ""
	}
	u, err := url.Parse(index.Paths[strings.TrimPrefix(discoveryPath(gv), "/")].ServerRelativeURL)
	if err != nil {
		return ""
	}
	return u.Query().Get("hash")
}

// document describes the server's documents of the group version.
func (s *service) document() openapi.Remote {
	return openapi.Remote{
		Group: s.gv.Group, Version: s.gv.Version, Hash: s.found.hashV3,
		Handler: http.HandlerFunc(s.serveDocument),
		V2:      s.fetchV2,
	}
}

// serveDocument hands on the server's document in the third version. Everybody may ask for it, and we ask in our own name: nothing
// of the client's request goes on but how it takes the document.
func (s *service) serveDocument(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
		return
	}
	u := url.URL{Path: "/openapi/v3" + discoveryPath(s.gv)}
	if hash := s.found.hashV3; hash != "" && r.URL.Query().Get("hash") == hash {
		u.RawQuery = url.Values{"hash": {hash}}.Encode() // may be kept for good
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, u.String(), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, name := range []string{"Accept", "Accept-Encoding", "If-None-Match"} {
		if values := r.Header[name]; len(values) > 0 {
			out.Header[name] = values
		}
	}
	s.ServeHTTP(w, out.WithContext(client.WithUser(out.Context(), reader)))
}

var errNoDocument = errors.New("the server has no such document")

// fetchV2 gets the server's document in the second version, at most once in v2Life whether it succeeds or not.
func (s *service) fetchV2() ([]byte, error) {
	f := s.found
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := s.owner.now(); f.v2At.IsZero() || now.Sub(f.v2At) >= v2Life {
		f.v2At = now
		got, _, err := s.owner.ask(context.Background(), &reader, s.target, "/openapi/v2", "application/json")
		if err == nil && got.code == http.StatusOK {
			f.v2 = zip(got.body)
		}
	}
	if f.v2 == nil {
		return nil, errNoDocument
	}
	return unzip(f.v2)
}

func zip(data []byte) []byte {
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // the level is one that there is
	_, _ = z.Write(data)                              // a buffer takes everything
	_ = z.Close()
	return bytes.Clone(buf.Bytes())
}

func unzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
