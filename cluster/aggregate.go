package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/aggregate"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/discovery"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/apiservice"
	"coracle.dev/coracle/controllers/namespace"
	"coracle.dev/coracle/reconcile"
)

// newAggregator makes the table of APIServices and fills it from the store.
func (c *Cluster) newAggregator(pool *backend.Pool) *aggregate.Aggregator {
	pool.Certificate = (&frontProxy{authority: &c.keys.frontProxy, now: c.now}).certificate
	a := &aggregate.Aggregator{Pool: pool, Log: c.log, Default: func(gv schema.GroupVersion) discovery.Priority {
		return discovery.Priority{Group: groupPriority(gv.Group), Version: versionPriority(gv.Group, gv.Version)}
	}}
	for s := range apiservice.APIServices.List(c.store.Snapshot(), "") {
		a.Set(s)
	}
	return a
}

// frontProxyName is the name in the certificate with which we speak for users.
const frontProxyName = "front-proxy-client"

// frontProxy keeps that certificate, which is made when the first aggregated server asks for it, and again when less than a third of
// its life is left. It is safe for concurrent use.
type frontProxy struct {
	authority *authority
	now       func() time.Time

	mu   sync.Mutex       // guards kept, and is held while one is made
	kept *tls.Certificate // nil until the first was made
}

// certificate returns one that is good. If a new one cannot be made, that is tried again at the next call, and the old one serves until
// it has expired.
func (f *frontProxy) certificate() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if f.kept != nil && !outlived(f.kept.Leaf, now) {
		return f.kept, nil
	}
	made, err := f.issue(now)
	switch {
	case err == nil:
		f.kept = made
	case f.kept == nil || now.After(f.kept.Leaf.NotAfter):
		return nil, err
	}
	return f.kept, nil
}

func (f *frontProxy) issue(now time.Time) (*tls.Certificate, error) {
	cert, key, err := f.authority.issue(leaf{name: frontProxyName, cn: frontProxyName}, now)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pair.Leaf, err = parseCert(cert)
	return &pair, err
}

// authenticationData tells extension API servers whom to believe.
func (c *Cluster) authenticationData() map[string]string {
	list := func(s string) string {
		data, _ := json.Marshal([]string{s}) // of a string
		return string(data)
	}
	return map[string]string{
		"client-ca-file":                     string(c.keys.caPEM),
		"requestheader-client-ca-file":       string(c.keys.frontProxy.caPEM),
		"requestheader-allowed-names":        list(frontProxyName),
		"requestheader-username-headers":     list("X-Remote-User"),
		"requestheader-uid-headers":          list("X-Remote-Uid"),
		"requestheader-group-headers":        list("X-Remote-Group"),
		"requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
	}
}

// groupPriority orders groups: those of custom resources have their place behind the built-in ones.
func groupPriority(group string) int32 {
	if p, ok := builtin.GroupPriority[group]; ok {
		return p
	}
	return apiservice.CustomGroupPriority
}

func versionPriority(group, version string) int32 {
	if _, ok := builtin.GroupPriority[group]; ok {
		return builtin.VersionPriority(group, version)
	}
	return apiservice.CustomVersionPriority
}

// storageVersion is the version in which a definition has its objects stored, "" for other kinds.
func (c *Cluster) storageVersion(k *api.Kind) string {
	d, ok := definitions.Get(c.store.Snapshot(), "", k.Name())
	if !ok {
		return ""
	}
	for i := range d.Spec.Versions {
		if d.Spec.Versions[i].Storage {
			return d.Spec.Versions[i].Name
		}
	}
	return ""
}

var definitions = client.Resource[*apiextensionsv1.CustomResourceDefinition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

// elsewhere is what the deletion of namespaces sees of aggregated servers.
func (c *Cluster) elsewhere() *namespace.Elsewhere {
	as := client.ServiceAccountUser("kube-system", "namespace-controller", "")
	return &namespace.Elsewhere{
		Any: c.aggregator.Any, Failing: c.aggregator.Unavailable,
		Empty: func(ctx context.Context, name string) (namespace.Left, error) {
			left, err := c.aggregator.Empty(ctx, as, name)
			return namespace.Left(left), err
		},
	}
}

// apiServices is what the loops of APIServices are told.
func (c *Cluster) apiServices() apiservice.Config {
	cfg := apiservice.Config{
		Route: c.aggregator.Set, Forget: c.aggregator.Remove,
		Probe: c.aggregator.Probe, Look: c.aggregator.Look, Fresh: c.aggregator.Fresh,
	}
	seen := map[schema.GroupVersion]bool{}
	for _, k := range c.registry.All() {
		for i := range k.Versions {
			gv := schema.GroupVersion{Group: k.Group, Version: k.Versions[i].Name}
			if seen[gv] || k.Versions[i].NotServed || k.Versions[i].Schema != nil || k.Group == "apiregistration.k8s.io" {
				continue // of a definition; and there is no APIService for the group of APIServices
			}
			seen[gv] = true
			cfg.BuiltIn = append(cfg.BuiltIn, apiservice.Local{Group: gv.Group, Version: gv.Version,
				GroupPriority: groupPriority(gv.Group), VersionPriority: versionPriority(gv.Group, gv.Version)})
		}
	}
	return cfg
}

// startAggregation runs the loops that call aggregated servers. They have an engine of their own: nobody waits for what a server
// elsewhere does, and its failures are not ours.
func (c *Cluster) startAggregation(context.Context) (func(context.Context) error, string, error) {
	engine := reconcile.NewEngine(c.client, c.log, c.now)
	engine.Add(apiservice.RemoteLoops(c.apiServices())...)
	return c.run("aggregation", engine.Run), "", nil
}
