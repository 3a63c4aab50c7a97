package aggregate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/transport"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
)

// Left is what aggregated servers still hold in a namespace.
type Left struct {
	// Resources counts objects by "resource.group", Finalizers those that each finalizer holds.
	Resources, Finalizers map[string]int
}

// acceptMetadata asks for no more of objects than what tells their end, and for whole ones of a server that cannot do that.
const acceptMetadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

// Any tells whether there is any aggregated server. It costs one atomic load.
func (a *Aggregator) Any() bool {
	t := a.table.Load()
	return t != nil && len(t.remote) > 0
}

// Empty deletes what the aggregated servers that are available hold in a namespace, on behalf of a user, and tells what is left. It
// asks one server after the other, each for at most askTimeout a request; errors of some keep nothing from being asked of others.
func (a *Aggregator) Empty(ctx context.Context, as client.User, namespace string) (Left, error) {
	left := Left{Resources: map[string]int{}, Finalizers: map[string]int{}}
	var errs []error
	for _, c := range a.collections() {
		if err := c.empty(ctx, as, namespace, &left); err != nil {
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}

// collection is a resource of an aggregated server whose objects live in namespaces and can be deleted.
type collection struct {
	*service
	resource string
	verbs    []string
}

// collections are those of the servers that can be asked, each resource in the version that goes before others.
func (a *Aggregator) collections() []collection {
	t := a.table.Load()
	if t == nil {
		return nil
	}
	var services []*service
	for _, s := range t.remote {
		if s.shown().Freshness == apidiscoveryv2.DiscoveryFreshnessCurrent {
			services = append(services, s)
		}
	}
	slices.SortFunc(services, func(x, y *service) int {
		return cmp.Or(cmp.Compare(x.gv.Group, y.gv.Group), cmp.Compare(y.priority.Version, x.priority.Version),
			version.CompareKubeAwareVersionStrings(y.gv.Version, x.gv.Version))
	})
	seen := map[schema.GroupResource]bool{}
	var out []collection
	for _, s := range services {
		for i := range s.found.discovery.Resources {
			r := &s.found.discovery.Resources[i]
			gr := schema.GroupResource{Group: s.gv.Group, Resource: r.Resource}
			if r.Scope != apidiscoveryv2.ScopeNamespace || !slices.Contains(r.Verbs, "delete") || seen[gr] {
				continue
			}
			seen[gr] = true
			out = append(out, collection{s, r.Resource, r.Verbs})
		}
	}
	return out
}

func (c *collection) empty(ctx context.Context, as client.User, namespace string, left *Left) error {
	path := discoveryPath(c.gv) + "/namespaces/" + namespace + "/" + c.resource
	whole := slices.Contains(c.verbs, "deletecollection")
	if whole {
		if err := c.remove(ctx, as, path); err != nil {
			return err
		}
	}
	if !slices.Contains(c.verbs, "list") {
		return nil // as upstream: what cannot be seen holds nothing up
	}
	list, err := c.list(ctx, as, path)
	if err != nil {
		return err
	}
	if !whole && len(list.Items) > 0 {
		for i := range list.Items {
			if o := &list.Items[i]; o.DeletionTimestamp == nil {
				if err := c.remove(ctx, as, path+"/"+url.PathEscape(o.Name)); err != nil {
					return err
				}
			}
		}
		if list, err = c.list(ctx, as, path); err != nil {
			return err
		}
	}
	if n := len(list.Items); n > 0 {
		left.Resources[c.resource+"."+c.gv.Group] = n
	}
	for i := range list.Items {
		for _, f := range list.Items[i].Finalizers {
			left.Finalizers[f]++
		}
	}
	return nil
}

// remove deletes what a path names; nothing being there is fine.
func (c *collection) remove(ctx context.Context, as client.User, path string) error {
	background := metav1.DeletePropagationBackground
	body, err := json.Marshal(&metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"}, PropagationPolicy: &background})
	if err != nil {
		return err
	}
	_, err = c.do(ctx, as, http.MethodDelete, path, "application/json", body)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *collection) list(ctx context.Context, as client.User, path string) (*metav1.PartialObjectMetadataList, error) {
	list := &metav1.PartialObjectMetadataList{}
	data, err := c.do(ctx, as, http.MethodGet, path, acceptMetadata, nil)
	if apierrors.IsNotFound(err) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, list); err != nil {
		return nil, fmt.Errorf("list of %s in %s: %w", c.resource, c.gv, err)
	}
	return list, nil
}

// do sends a request; an answer that is no success is an error, in the server's words where it has some.
func (c *collection) do(ctx context.Context, as client.User, method, path, accept string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, u, err := c.owner.Pool.Client(*c.target)
	if err != nil {
		return nil, err
	}
	u.Path = path
	r, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", accept)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	transport.SetAuthProxyHeaders(r, as.Name, as.UID, as.Groups, as.Extra)
	answer, data, err := backend.Do(conn, r, maxAnswer)
	switch {
	case err != nil:
		return nil, err
	case answer.StatusCode >= 200 && answer.StatusCode < 300:
		return data, nil
	}
	status := metav1.Status{}
	if json.Unmarshal(data, &status) == nil && status.Status == metav1.StatusFailure {
		return nil, &apierrors.StatusError{ErrStatus: status}
	}
	return nil, apierrors.NewGenericServerResponse(answer.StatusCode, strings.ToLower(method), schema.GroupResource{Group: c.gv.Group, Resource: c.resource},
		"", strings.TrimSpace(string(data[:min(len(data), 1024)])), 0, true)
}
