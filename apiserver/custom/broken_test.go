package custom_test

import (
	"fmt"
	"strings"
	"testing"
)

// unresolved is the definition of c, but for a webhook whose service is not there.
func (c *converter) unresolved() string {
	text := c.definition()
	from := strings.Index(text, "clientConfig: {")
	to := from + strings.Index(text[from:], "}}}\n")
	return text[:from] + "clientConfig: {service: {namespace: default, name: absent}" + text[to:]
}

// broken is a world with three objects, stored as v1, that cannot be shown as v2.
func broken(t *testing.T) *world {
	w := newWorld(t)
	w.define(newConverter(t).unresolved())
	for i := range 3 {
		w.want(201, "POST", peerPath("v1"), fmt.Sprintf("\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: p%d}, spec: {host: x, port: '1'}}", i))
	}
	return w
}

// What a resolver says of a webhook's service is not said of the object.
func TestBrokenConversionIsNotNotFound(t *testing.T) {
	w := broken(t)
	const failed = "conversion webhook for example.com/v1, Kind="
	for _, path := range []string{"/p0", "", "?limit=1"} {
		w.want(500, "GET", peerPath("v2")+path, "", failed, `!"reason":"NotFound"`, `"reason":"InternalError"`)
	}
	w.want(500, "PATCH", peerPath("v2")+"/p0", `{"spec":{"address":"z:3"}}`, failed)
}

// A selector over fields that cannot be read fails, and does not select nothing.
func TestBrokenConversionWithFieldSelector(t *testing.T) {
	w := broken(t)
	const failed, field = "conversion webhook for example.com/v1, Kind=", "fieldSelector=spec.address%3Dx:1"
	w.want(500, "GET", peerPath("v2")+"?"+field, "", failed)
	w.want(500, "GET", peerPath("v2")+"?limit=1&"+field, "", failed)
	w.want(500, "GET", peerPath("v2")+"?fieldSelector=spec.address!%3Dx:1", "", failed)
	w.want(500, "DELETE", peerPath("v2")+"?"+field, "", failed)
	w.want(200, "GET", peerPath("v1"), "", `"name":"p0"`, `"name":"p2"`)
	// A watch is broken off, and says why.
	w.want(200, "GET", peerPath("v2")+"?watch=1&timeoutSeconds=5&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&"+field, "",
		`"type":"ERROR"`, failed, "!BOOKMARK")
	w.want(200, "GET", peerPath("v2")+"?watch=1&timeoutSeconds=5&resourceVersion=1&"+field, "", `"type":"ERROR"`, failed)
	// What is ruled out by its name is not asked about.
	w.want(200, "GET", peerPath("v2")+"?fieldSelector=metadata.name%3Dabsent,spec.address%3Dx:1", "", `"items":[]`)
}

// A list with a field selector asks the webhook once for all objects.
func TestFieldSelectorIsBatched(t *testing.T) {
	w, c := newWorld(t), newConverter(t)
	w.define(c.definition())
	for i := range 20 {
		w.want(201, "POST", peerPath("v1"), fmt.Sprintf("\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: p%d}, spec: {host: x, port: '%d'}}", i, i))
	}
	for range 2 {
		w.want(200, "GET", peerPath("v2")+"?fieldSelector=spec.address%3Dy:1", "", `"items":[]`)
	}
	if calls, objects := c.calls.Load(), c.objects.Load(); calls != 1 || objects != 20 {
		t.Errorf("%d objects in %d calls, want 20 in 1", objects, calls)
	}
}
