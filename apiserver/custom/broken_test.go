package custom_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
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

// A definition that is gone, or goes before it was established, is not served by who read it earlier.
func TestServeLooksAgain(t *testing.T) {
	w, c := newWorld(t), newConverter(t)
	const name = "peers.example.com"
	define := func() *apiextensionsv1.CustomResourceDefinition {
		w.want(201, "POST", definitions, c.definition())
		have, ok := custom.Definitions.Get(w.store.Snapshot(), "", name)
		if !ok {
			t.Fatal("no definition")
		}
		d := have.DeepCopy()
		d.Status.AcceptedNames = d.Spec.Names
		return d
	}
	refused := func(what string, d *apiextensionsv1.CustomResourceDefinition) {
		t.Helper()
		if err := w.registrar.Serve(t.Context(), d); err == nil || w.registry.ByName(name) != nil {
			t.Errorf("%s is served: %v", what, err)
		}
	}
	release := func() {
		t.Helper()
		_, err := client.Mutate(t.Context(), both{w.store, w.server.Writer()}, custom.Definitions, "", name, "status",
			func(d *apiextensionsv1.CustomResourceDefinition) bool { d.Finalizers = nil; return true })
		if err != nil {
			t.Fatal(err)
		}
	}
	first := define()
	w.want(200, "DELETE", definitions+"/"+name, "")
	refused("a definition that goes", first)
	release()
	w.until("the definition is gone", func() bool { _, ok := custom.Definitions.Get(w.store.Snapshot(), "", name); return !ok })
	refused("a definition that is gone", first)
	second := define()
	refused("a definition that another took the place of", first)
	if err := w.registrar.Serve(t.Context(), second); err != nil || w.registry.ByName(name) == nil {
		t.Errorf("not served: %v", err)
	}
	// It is served, but nothing is created until that is written down: nobody would delete it.
	body := "\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: a}}"
	w.want(404, "POST", peerPath("v1"), body)
	w.establish(name)
	w.want(201, "POST", peerPath("v1"), body)
	w.want(200, "DELETE", definitions+"/"+name, "")
	w.want(403, "POST", peerPath("v1"), "\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: b}}", "create not allowed while custom resource definition is terminating")
}

// Objects of a definition that goes can be deleted after a start too, though it was never established.
func TestLoadServesWhatGoesWithObjects(t *testing.T) {
	w := newWorld(t)
	w.define(newConverter(t).definition())
	const name = "peers.example.com"
	w.want(201, "POST", peerPath("v1"), "\n{apiVersion: example.com/v1, kind: Peer, metadata: {name: a}}")
	have, _ := custom.Definitions.Get(w.store.Snapshot(), "", name)
	d := have.DeepCopy()
	d.Status = apiextensionsv1.CustomResourceDefinitionStatus{}
	at := metav1.Now()
	d.DeletionTimestamp = &at
	if _, _, err := w.store.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: custom.Definitions.Name, Name: name}, Object: d, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
	again := worldOn(t, api.NewRegistry(builtin.Kinds()...), w.store)
	again.want(200, "DELETE", peerPath("v1")+"/a", "")
}

// A delete converts nothing, so that a broken conversion holds nobody up.
func TestDeleteConvertsNothing(t *testing.T) {
	w := broken(t)
	w.want(200, "DELETE", peerPath("v2")+"/p0", "")
	w.want(404, "GET", peerPath("v1")+"/p0", "")
	// The storage version moves on while nothing can be converted: the loops delete all the same, and finalizers hold.
	w.want(200, "PATCH", peerPath("v1")+"/p2", `{"metadata":{"finalizers":["example.com/mine"]}}`)
	w.redefine("peers.example.com", func(d *apiextensionsv1.CustomResourceDefinition) {
		d.Spec.Versions[0].Storage, d.Spec.Versions[1].Storage = false, true
	})
	for _, name := range []string{"p1", "p2"} {
		ref := client.Ref{Resource: "peers.example.com", Namespace: "default", Name: name}
		if err := w.server.Writer().Delete(t.Context(), ref, client.DeleteOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.want(404, "GET", peerPath("v1")+"/p1", "")
	w.want(200, "GET", peerPath("v1")+"/p2", "", "deletionTimestamp", `"host":"x"`)
}

// Who took up a request under a definition does not write under the one that took its place.
func TestKindOfAFormerDefinition(t *testing.T) {
	w := newWorld(t)
	w.define(newConverter(t).definition())
	const name = "peers.example.com"
	former := w.registry.ByName(name)
	have, _ := custom.Definitions.Get(w.store.Snapshot(), "", name)
	if former.Definition == "" || former.Definition != have.UID || former.In("v2").Definition != have.UID {
		t.Fatalf("the kind is of definition %q, want %q", former.Definition, have.UID)
	}
	d := have.DeepCopy()
	d.UID = "another"
	if _, _, err := w.store.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: custom.Definitions.Name, Name: name}, Object: d, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
	for _, op := range []admission.Operation{admission.Create, admission.Update} {
		for kind, refused := range map[*api.Kind]bool{former: true, newKind(t, d): false} {
			r := &admission.Request{Operation: op, Kind: kind, Namespace: "default", Name: "a", Snapshot: w.store.Snapshot()}
			if err := custom.Plugin(w.store).Mutate(t.Context(), r); apierrors.IsNotFound(err) != refused || err != nil != refused {
				t.Errorf("%v: %v", op, err)
			}
		}
	}
}

func newKind(t *testing.T, d *apiextensionsv1.CustomResourceDefinition) *api.Kind {
	t.Helper()
	k, err := custom.New(d, d.Spec.Names, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A create that comes in the moment between a kind's registration and the word that it is established waits for that word.
func TestCreateAwaitsEstablished(t *testing.T) {
	w := newWorld(t)
	w.define(newConverter(t).definition())
	const name = "peers.example.com"
	kind := w.registry.ByName(name)
	key := store.Key{Resource: custom.Definitions.Name, Name: name}
	established, _ := custom.Definitions.Get(w.store.Snapshot(), "", name)
	put := func(d *apiextensionsv1.CustomResourceDefinition) {
		if _, _, err := w.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: d.DeepCopy(), Expect: store.ExpectAny}}}); err != nil {
			t.Error(err)
		}
	}
	soon := established.DeepCopy()
	soon.Status.Conditions = nil
	put(soon)
	r := &admission.Request{Operation: admission.Create, Kind: kind, Namespace: "default", Name: "a", Snapshot: w.store.Snapshot()}
	answered := make(chan error)
	go func() { answered <- custom.Plugin(w.store).Mutate(t.Context(), r) }()
	put(soon) // any other change of it is not the word
	select {
	case err := <-answered:
		t.Fatalf("answered before: %v", err)
	default:
	}
	put(established)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	put(soon)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r.Snapshot = w.store.Snapshot()
	if err := custom.Plugin(w.store).Mutate(ended, r); !apierrors.IsNotFound(err) {
		t.Errorf("without the word: %v", err)
	}
}
