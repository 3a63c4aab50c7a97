package discovery

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
)

const accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

func custom(group string, versions ...string) *api.Kind {
	k := &api.Kind{Group: group, Kind: "Widget", Resource: "widgets", Singular: "widget", Namespaced: true,
		Subresources: []api.Subresource{{Name: "status", Verbs: []string{"get", "patch", "update"}, Versions: versions[:1]}}}
	for i, v := range versions {
		k.Versions = append(k.Versions, api.Version{Name: v, Hub: i == 0})
	}
	return k
}

func handler() *Handler {
	return &Handler{
		Registry: api.NewRegistry(builtin.Kinds()...),
		Priority: func(g string) int32 {
			if p, ok := builtin.GroupPriority[g]; ok {
				return p
			}
			return 1000
		},
		VersionPriority: func(g, v string) int32 {
			if _, ok := builtin.GroupPriority[g]; ok {
				return builtin.VersionPriority(g, v)
			}
			return 100
		},
	}
}

func get(t testing.TB, h *Handler, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func groups(t *testing.T, h *Handler, form string) (apidiscoveryv2.APIGroupDiscoveryList, string) {
	t.Helper()
	w := get(t, h, "/apis", "Accept", form)
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	return list, w.Header().Get("ETag")
}

func names(list apidiscoveryv2.APIGroupDiscoveryList) []string {
	var out []string
	for _, g := range list.Items {
		for _, v := range g.Versions {
			out = append(out, g.Name+"/"+v.Version)
		}
	}
	return out
}

// others are the group versions without those built-in ones that stand where definitions would, as they do elsewhere.
func others(list apidiscoveryv2.APIGroupDiscoveryList) []string {
	return slices.DeleteFunc(names(list), func(n string) bool {
		return strings.HasPrefix(n, "gateway.networking.k8s.io/") || strings.HasPrefix(n, "policy.networking.k8s.io/")
	})
}

func TestOrder(t *testing.T) {
	h := handler()
	if err := h.Registry.Add(custom("b.example.com", "v1beta1", "v2", "v1", "foo1", "v10"), custom("a.example.com", "v1")); err != nil {
		t.Fatal(err)
	}
	list, tag := groups(t, h, accept)
	got := others(list)
	want := []string{"a.example.com/v1", "b.example.com/v10", "b.example.com/v2", "b.example.com/v1", "b.example.com/v1beta1", "b.example.com/foo1"}
	if !slices.Equal(got[len(got)-6:], want) || got[0] != "apiregistration.k8s.io/v1" || got[1] != "apps/v1" {
		t.Errorf("order: %v", got)
	}
	if i := slices.Index(got, "autoscaling/v2"); got[i+1] != "autoscaling/v1" {
		t.Errorf("order: %v", got)
	}
	h.Aggregated = func() *Aggregated { return nil }
	a := &Aggregated{
		Priorities: map[schema.GroupVersion]Priority{
			{Group: "b.example.com", Version: "v1"}:       {2000, 500},
			{Group: "wardle.example.com", Version: "v1"}:  {2000, 200},
			{Group: "wardle.example.com", Version: "v2"}:  {1, 100},
			{Group: "metrics.example.com", Version: "v1"}: {100, 100},
		},
		Remote: map[schema.GroupVersion]*apidiscoveryv2.APIVersionDiscovery{
			{Group: "wardle.example.com", Version: "v1"}: {Version: "v1", Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
				Resources: []apidiscoveryv2.APIResourceDiscovery{{Resource: "flunders"}}},
			{Group: "wardle.example.com", Version: "v2"}:  {Version: "v2", Freshness: apidiscoveryv2.DiscoveryFreshnessStale},
			{Group: "metrics.example.com", Version: "v1"}: {Version: "v1"},
			{Group: "a.example.com", Version: "v1"}:       {Version: "v1", Resources: []apidiscoveryv2.APIResourceDiscovery{{Resource: "others"}}},
		},
	}
	h.Aggregated = func() *Aggregated { return a }
	list, tag2 := groups(t, h, accept)
	got = others(list)
	want = []string{"b.example.com/v1", "b.example.com/v10", "b.example.com/v2", "b.example.com/v1beta1", "b.example.com/foo1",
		"wardle.example.com/v1", "wardle.example.com/v2", "a.example.com/v1", "metrics.example.com/v1"}
	if !slices.Equal(got[len(got)-len(want):], want) {
		t.Errorf("order: %v", got[len(got)-len(want):])
	}
	if tag == tag2 {
		t.Error("the tag is that of other content")
	}
	for _, g := range list.Items {
		switch g.Name {
		case "a.example.com":
			if g.Versions[0].Resources[0].Resource != "others" {
				t.Error("a remote group version does not stand in place of our own")
			}
		case "wardle.example.com":
			if g.Versions[1].Freshness != apidiscoveryv2.DiscoveryFreshnessStale {
				t.Errorf("%+v", g.Versions)
			}
		}
	}
	var old metav1.APIGroupList
	if err := json.Unmarshal(get(t, h, "/apis").Body.Bytes(), &old); err != nil || len(old.Groups) != len(list.Items) ||
		old.Groups[len(old.Groups)-1].PreferredVersion.GroupVersion != "metrics.example.com/v1" {
		t.Errorf("the old form: %v %+v", err, old)
	}
	if w := get(t, h, "/apis/wardle.example.com/"); w.Code != 200 || !strings.Contains(w.Body.String(), `"preferredVersion":{"groupVersion":"wardle.example.com/v1"`) {
		t.Errorf("group: %d %s", w.Code, w.Body)
	}
}

func TestKindsComeAndGoAtOnce(t *testing.T) {
	h := handler()
	_, before := groups(t, h, accept)
	if w := get(t, h, "/apis", "Accept", accept, "If-None-Match", before); w.Code != 304 {
		t.Errorf("the same again: %d", w.Code)
	}
	k := custom("a.example.com", "v1", "v2")
	h.StorageVersion = func(*api.Kind) string { return "v2" }
	if err := h.Registry.Add(k); err != nil {
		t.Fatal(err)
	}
	list, after := groups(t, h, accept)
	if after == before || !slices.Contains(names(list), "a.example.com/v2") {
		t.Errorf("not there: %v", names(list))
	}
	if beta, _ := groups(t, h, strings.Replace(accept, "v=v2", "v=v2beta1", 1)); len(beta.Items) != len(list.Items) || beta.APIVersion != "apidiscovery.k8s.io/v2beta1" {
		t.Errorf("the beta form: %d groups, %s", len(beta.Items), beta.APIVersion)
	}
	w := get(t, h, "/apis", "Accept", strings.Replace(accept, "json", "vnd.kubernetes.protobuf", 1))
	var decoded apidiscoveryv2.APIGroupDiscoveryList
	_, raw, _ := strings.Cut(w.Body.String(), "APIGroupDiscoveryList\x12")
	if n := strings.IndexByte(raw, 0x0a); n < 0 || decoded.Unmarshal([]byte(strings.TrimSuffix(raw[n:], "\x1a\x00\x22\x00"))) != nil || len(decoded.Items) != len(list.Items) {
		t.Errorf("protobuf: %d groups", len(decoded.Items))
	}
	var resources metav1.APIResourceList
	if err := json.Unmarshal(get(t, h, "/apis/a.example.com/v1").Body.Bytes(), &resources); err != nil || len(resources.APIResources) != 2 ||
		resources.APIResources[0].StorageVersionHash == "" || resources.APIResources[1].Name != "widgets/status" {
		t.Errorf("%v %+v", err, resources)
	}
	if err := json.Unmarshal(get(t, h, "/apis/a.example.com/v2").Body.Bytes(), &resources); err != nil || len(resources.APIResources) != 1 {
		t.Errorf("%v %+v", err, resources)
	}
	h.Registry.Remove(k.Name())
	if _, again := groups(t, h, accept); again != before {
		t.Error("not as before")
	}
	for _, path := range []string{"/apis/a.example.com", "/apis/a.example.com/v1", "/api/v2", "/apis/apps/v2", "/apis/v1"} {
		if w := get(t, h, path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// BenchmarkNewKind is what discovery costs after each of 500 kinds comes.
func BenchmarkNewKind(b *testing.B) {
	h := handler()
	for i := range 500 {
		if err := h.Registry.Add(custom(fmt.Sprintf("g%d.example.com", i), "v1", "v1beta1")); err != nil {
			b.Fatal(err)
		}
	}
	get(b, h, "/apis", "Accept", accept)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		name := fmt.Sprintf("new%d.example.com", i)
		if err := h.Registry.Add(custom(name, "v1")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		h.current()
		b.StopTimer()
		h.Registry.Remove("widgets." + name)
		h.current()
		b.StartTimer()
	}
}

func BenchmarkAggregated500(b *testing.B) {
	h := handler()
	for i := range 500 {
		if err := h.Registry.Add(custom(fmt.Sprintf("g%d.example.com", i), "v1", "v1beta1")); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		get(b, h, "/apis", "Accept", accept)
	}
}
