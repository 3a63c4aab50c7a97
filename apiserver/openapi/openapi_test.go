package openapi

import (
	"compress/gzip"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"coracle.dev/coracle/api/builtin"
)

// TestEveryKindIsDescribed holds the documents to the registry: run tools/openapi/generate.sh when it fails.
func TestEveryKindIsDescribed(t *testing.T) {
	for _, k := range builtin.Kinds() {
		for _, v := range k.Versions {
			if v.NotServed {
				continue
			}
			where := "apis/" + k.Group + "/" + v.Name
			if k.Group == "" {
				where = "api/" + v.Name
			}
			doc := get(t, "/openapi/v3/"+where)
			var parsed struct {
				Paths      map[string]any
				Components struct {
					Schemas map[string]struct {
						GVKs []struct{ Kind string } `json:"x-kubernetes-group-version-kind"`
					}
				}
			}
			if err := json.Unmarshal(doc, &parsed); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			path := "/" + where + "/" + k.Resource
			if k.Namespaced {
				path = "/" + where + "/namespaces/{namespace}/" + k.Resource
			}
			if parsed.Paths[path] == nil {
				t.Errorf("%s does not describe %s", where, path)
			}
			found := false
			for _, s := range parsed.Components.Schemas {
				for _, gvk := range s.GVKs {
					found = found || gvk.Kind == k.Kind
				}
			}
			if !found {
				t.Errorf("%s has no schema of kind %s", where, k.Kind)
			}
		}
	}
}

func get(t *testing.T, path string) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	V3().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != 200 {
		t.Fatalf("%s: %d", path, w.Code)
	}
	return w.Body.Bytes()
}

func TestForms(t *testing.T) {
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(get(t, "/openapi/v3"), &index); err != nil {
		t.Fatal(err)
	}
	url := index.Paths["apis/apps/v1"].ServerRelativeURL
	r := httptest.NewRequest("GET", url, nil)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	V3().ServeHTTP(w, r)
	if w.Header().Get("Content-Encoding") != "gzip" || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %v", url, w.Header())
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.NewDecoder(z).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	r = httptest.NewRequest("GET", "/openapi/v2", nil)
	r.Header.Set("Accept", protobufV2+",application/json")
	w = httptest.NewRecorder()
	V2().ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); got != protobufV2 {
		t.Errorf("asked for protobuf, got %s", got)
	}
	etag := w.Header().Get("ETag")
	r.Header.Set("If-None-Match", etag)
	w = httptest.NewRecorder()
	if V2().ServeHTTP(w, r); w.Code != 304 {
		t.Errorf("asked again with the same tag: %d", w.Code)
	}
}
