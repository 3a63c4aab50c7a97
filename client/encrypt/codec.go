package encrypt

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"coracle.dev/coracle/store"
)

// ErrKey says that something on disk cannot be read with the keys that there are. What it wraps says which resource and what to do.
var ErrKey = errors.New("encrypted data cannot be read")

// marker is how every encrypted value begins.
var marker = []byte("k8s:enc:")

// Codec encrypts behind another codec. It is safe for concurrent use.
type Codec struct {
	store.Codec
	now   atomic.Pointer[table]
	stale sync.Map // resource -> struct{}: something of it was read that was in another form than would be written
}

// table is one configuration. It is immutable but for what it remembers.
type table struct {
	config *Config
	before *table   // for what was written until then; nil for the first one
	chosen sync.Map // resource -> []transformer
}

// Wrap returns a codec whose stored form is encrypted as the configuration says. With a nil Config it encrypts nothing, and
// says so when it meets data that is.
func Wrap(inner store.Codec, c *Config) *Codec {
	out := &Codec{Codec: inner}
	out.now.Store(&table{config: c})
	return out
}

// Reload has everything that is written from now on encrypted as another configuration says. What is stored is not touched: it is
// Stale where the first provider of its resource differs from before.
func (c *Codec) Reload(next *Config) {
	old := c.now.Load()
	for old.before != nil && sameFirst(old.before.config, old.config) {
		old = old.before // a chain is as long as there were changes of writers
	}
	c.now.Store(&table{config: next, before: old})
}

// sameFirst tells whether two configurations write alike, as far as can be told without asking for each resource.
func sameFirst(a, b *Config) bool {
	if a == nil || b == nil || len(a.rules) != len(b.rules) {
		return a == b
	}
	for i := range a.rules {
		if !slices.Equal(a.rules[i].resources, b.rules[i].resources) || firstOf(a.rules[i].providers) != firstOf(b.rules[i].providers) {
			return false
		}
	}
	return true
}

// firstOf names what writes.
func firstOf(list []transformer) string {
	if len(list) == 0 {
		return ""
	}
	return cmp.Or(list[0].id, list[0].prefix)
}

// Check is that of the configuration in use.
func (c *Codec) Check() error {
	if cfg := c.now.Load().config; cfg != nil {
		return cfg.Check()
	}
	return nil
}

// Stale tells whether what was read of a key, or written before a Reload, may be in another form than would be written today: with
// another key, or in plain text. It is remembered for a resource as a whole, so that it takes no room for each object. Once the
// object was written since, the answer means nothing: the caller knows at which revision it began to read or reloaded.
func (c *Codec) Stale(key store.Key) bool {
	if _, ok := c.stale.Load(key.Resource); ok {
		return true
	}
	t := c.now.Load()
	first := firstOf(t.providers(key.Resource))
	for b := t.before; b != nil; b = b.before {
		if firstOf(b.providers(key.Resource)) != first {
			return true
		}
	}
	return false
}

// providers are those of a resource, nil if it is not to be encrypted.
func (c *Codec) providers(resource string) []transformer { return c.now.Load().providers(resource) }

func (t *table) providers(resource string) []transformer {
	if t.config == nil {
		return nil
	}
	if p, ok := t.chosen.Load(resource); ok {
		return p.([]transformer)
	}
	p := t.config.providers(resource)
	t.chosen.Store(resource, p)
	return p
}

func (c *Config) providers(resource string) []transformer {
	// Rules are looked at from the most to the least particular name, as upstream does.
	for _, fits := range []func(string) bool{
		func(p string) bool { return p == resource },
		func(p string) bool { return strings.HasPrefix(p, "*") && p != "*.*" && covers(p, resource) },
		func(p string) bool { return p == "*.*" },
	} {
		for _, r := range c.rules {
			for _, p := range r.resources {
				if fits(p) {
					return r.providers
				}
			}
		}
	}
	return nil
}

// Encode implements store.Codec.
func (c *Codec) Encode(key store.Key, obj any) ([]byte, error) {
	data, err := c.Codec.Encode(key, obj)
	if err != nil {
		return nil, err
	}
	providers := c.providers(key.Resource)
	if len(providers) == 0 || providers[0].prefix == "" {
		return data, nil
	}
	sealed, err := providers[0].seal(data, path(key))
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", key, err)
	}
	return append([]byte(providers[0].prefix), sealed...), nil
}

// EncodePlain gives what Encode encrypts, which is the same for the same object.
func (c *Codec) EncodePlain(key store.Key, obj any) ([]byte, error) { return c.Codec.Encode(key, obj) }

// Decode implements store.Codec.
func (c *Codec) Decode(key store.Key, data []byte) (any, error) {
	plain, err := c.plain(key, data)
	if err != nil {
		return nil, err
	}
	// What identity would write has no prefix, and so must the data.
	if p := c.providers(key.Resource); len(p) > 0 && (!bytes.HasPrefix(data, []byte(p[0].prefix)) || p[0].prefix == "" && bytes.HasPrefix(data, marker) ||
		p[0].outdated != nil && p[0].outdated(data[len(p[0].prefix):])) {
		if _, ok := c.stale.Load(key.Resource); !ok {
			c.stale.Store(key.Resource, struct{}{})
		}
	}
	return c.Codec.Decode(key, plain)
}

func (c *Codec) plain(key store.Key, data []byte) ([]byte, error) {
	encrypted := bytes.HasPrefix(data, marker)
	providers := c.providers(key.Resource)
	if !encrypted {
		for _, p := range providers {
			if p.prefix == "" {
				return data, nil
			}
		}
		if len(providers) == 0 {
			return data, nil
		}
		return nil, fmt.Errorf("%w: %s is stored in plain text and its providers do not include identity: add `identity: {}` as the last provider of %q, "+
			"start, write all of them again (kubectl get %s -A -o json | kubectl replace -f -), and take it out again",
			ErrKey, key, key.Resource, key.Resource)
	}
	var cause error
	for _, p := range providers {
		if p.prefix == "" || !bytes.HasPrefix(data, []byte(p.prefix)) {
			continue
		}
		plain, err := p.open(data[len(p.prefix):], path(key))
		if err == nil {
			return plain, nil
		}
		// Two keys may bear the same name.
		cause = err
	}
	name := prefixOf(data)
	switch {
	case c.now.Load().config == nil:
		return nil, fmt.Errorf("%w: %s was encrypted by %s: start with the --encryption-provider-config that it was written with", ErrKey, key, name)
	case cause != nil:
		return nil, fmt.Errorf("%w: %s was encrypted by %s, and the key of that name in --encryption-provider-config does not open it (%w): "+
			"put the key back that it was written with", ErrKey, key, name, cause)
	}
	return nil, fmt.Errorf("%w: %s was encrypted by %s, which is not among the providers of %q in --encryption-provider-config: "+
		"add it behind the first provider", ErrKey, key, name, key.Resource)
}

// prefixOf names provider and key of an encrypted value ("aesgcm, key key1").
func prefixOf(data []byte) string {
	parts := strings.SplitN(string(data[:min(len(data), 300)]), ":", 6)
	if len(parts) < 6 {
		return "an unknown provider"
	}
	return fmt.Sprintf("%s, key %q", parts[2], parts[4])
}

// special are the resources whose place in etcd does not have their own name.
var special = map[string]string{
	"replicationcontrollers":             "controllers",
	"endpoints":                          "services/endpoints",
	"services":                           "services/specs",
	"nodes":                              "minions",
	"ingresses.networking.k8s.io":        "ingress",
	"apiservices.apiregistration.k8s.io": "apiregistration.k8s.io/apiservices",
	"customresourcedefinitions.apiextensions.k8s.io": "apiextensions.k8s.io/customresourcedefinitions",
}

// builtIn are the groups whose resources stand in etcd without the name of the group.
var builtIn = map[string]bool{
	"": true, "apps": true, "batch": true, "autoscaling": true, "policy": true,
	"admissionregistration.k8s.io": true, "authentication.k8s.io": true, "authorization.k8s.io": true, "certificates.k8s.io": true,
	"coordination.k8s.io": true, "discovery.k8s.io": true, "events.k8s.io": true, "flowcontrol.apiserver.k8s.io": true,
	"internal.apiserver.k8s.io": true, "networking.k8s.io": true, "node.k8s.io": true, "rbac.authorization.k8s.io": true,
	"resource.k8s.io": true, "scheduling.k8s.io": true, "storage.k8s.io": true, "storagemigration.k8s.io": true,
}

// path is where upstream keeps the object in etcd, which authenticates it.
func path(key store.Key) string {
	name, group, _ := strings.Cut(key.Resource, ".")
	at, ok := special[key.Resource]
	switch {
	case ok:
	case builtIn[group]:
		at = name
	default:
		at = group + "/" + name
	}
	p := "/registry/" + at + "/"
	if key.Namespace != "" {
		p += key.Namespace + "/"
	}
	return p + key.Name
}

// Sum tells one state of a file from another.
func Sum(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return string(sum[:]), nil
}
