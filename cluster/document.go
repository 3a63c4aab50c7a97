package cluster

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
)

// document is the OpenAPI document (v3, as JSON) of a group version, as clients get it.
func (c *Cluster) document(group, version string) ([]byte, error) {
	path := "/openapi/v3/apis/" + group + "/" + version
	if group == "" {
		path = "/openapi/v3/api/" + version
	}
	w := &memoryResponse{header: http.Header{}, status: http.StatusOK}
	c.documents.V3().ServeHTTP(w, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Header: http.Header{"Accept": {"application/json"}}})
	if w.status != http.StatusOK {
		return nil, fmt.Errorf("the OpenAPI document %s: %s", path, http.StatusText(w.status))
	}
	return w.body.Bytes(), nil
}

// memoryResponse takes a response as bytes.
type memoryResponse struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *memoryResponse) Header() http.Header                  { return w.header }
func (w *memoryResponse) WriteHeader(status int)               { w.status = status }
func (w *memoryResponse) Write(data []byte) (n int, err error) { return w.body.Write(data) }
