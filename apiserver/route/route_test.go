package route

import (
	"net/url"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		method, url string
		want        Info
	}{
		{"GET", "/healthz", Info{Verb: "get"}},
		{"GET", "/", Info{Verb: "get"}},
		{"GET", "/api", Info{Verb: "get"}},
		{"GET", "/api/v1", Info{Verb: "get"}},
		{"GET", "/apis/apps/v1", Info{Verb: "get"}},
		{"GET", "/apis/apps", Info{Verb: "get"}},
		{"GET", "/api/v1/pods", Info{IsResource: true, Verb: "list", Prefix: "api", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/pods?watch=true", Info{IsResource: true, Verb: "watch", Prefix: "api", Version: "v1", Resource: "pods"}},
		{"GET", "/api/v1/pods?watch=0", Info{IsResource: true, Verb: "list", Prefix: "api", Version: "v1", Resource: "pods"}},
		{"POST", "/api/v1/namespaces/a/pods", Info{IsResource: true, Verb: "create", Prefix: "api", Version: "v1", Namespace: "a", Resource: "pods"}},
		{"GET", "/api/v1/namespaces/a", Info{IsResource: true, Verb: "get", Prefix: "api", Version: "v1", Namespace: "a", Resource: "namespaces", Name: "a"}},
		{"PUT", "/api/v1/namespaces/a/finalize", Info{IsResource: true, Verb: "update", Prefix: "api", Version: "v1", Namespace: "a", Resource: "namespaces", Name: "a", Subresource: "finalize"}},
		{"DELETE", "/apis/apps/v1/namespaces/a/deployments", Info{IsResource: true, Verb: "deletecollection", Prefix: "apis", Group: "apps", Version: "v1", Namespace: "a", Resource: "deployments"}},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/d/status", Info{IsResource: true, Verb: "patch", Prefix: "apis", Group: "apps", Version: "v1", Namespace: "a", Resource: "deployments", Name: "d", Subresource: "status"}},
		{"GET", "/api/v1/namespaces/a/pods/p/proxy/x/y", Info{IsResource: true, Verb: "get", Prefix: "api", Version: "v1", Namespace: "a", Resource: "pods", Name: "p", Subresource: "proxy", Rest: "/x/y"}},
		{"GET", "/api/v1/namespaces/a/pods/p/proxy/", Info{IsResource: true, Verb: "get", Prefix: "api", Version: "v1", Namespace: "a", Resource: "pods", Name: "p", Subresource: "proxy", Rest: "/"}},
		{"GET", "/api/v1/watch/namespaces/a/pods/p", Info{IsResource: true, Verb: "watch", WatchPrefix: true, Prefix: "api", Version: "v1", Namespace: "a", Resource: "pods", Name: "p"}},
	} {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		test.want.Path = u.Path
		if got := Parse(test.method, u); got != test.want {
			t.Errorf("%s %s:\n got %+v\nwant %+v", test.method, test.url, got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("GET", "/api/v1/namespaces/a/pods/p/proxy/x/y")
	f.Add("DELETE", "/apis/apps//v1/namespaces//deployments")
	f.Add("GET", "//api/v1/watch/pods/../x?watch=%zz")
	f.Fuzz(func(t *testing.T, method, path string) {
		info := Parse(method, &url.URL{Path: path, RawQuery: "watch=1"})
		if strings.Contains(info.Name, "/") || strings.Contains(info.Namespace, "/") || strings.Contains(info.Resource, "/") {
			t.Fatalf("a segment holds a slash: %+v", info)
		}
		if info.IsResource && (info.Version == "" && info.Prefix == "" || info.Prefix == "apis" && info.Group == "") {
			t.Fatalf("a resource request without group or version: %+v", info)
		}
	})
}
