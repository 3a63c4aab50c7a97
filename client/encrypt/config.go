// Package encrypt keeps chosen resources encrypted at rest: it wraps the codec of a store so that the bytes that reach the disk
// are those that upstream's API server would keep in etcd under an EncryptionConfiguration
// (https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/), with the same prefixes and, for aesgcm, bound to the
// same storage path.
//
// It owns keys and the choice of provider for a resource. It never touches what is in memory: objects are decoded once, at
// the start, and encrypted when they are committed. Keys and plain text stand in no error.
package encrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// The API of the file (apiserver.config.k8s.io/v1, EncryptionConfiguration).
type (
	configuration struct {
		APIVersion string     `json:"apiVersion"`
		Kind       string     `json:"kind"`
		Resources  []resource `json:"resources"`
	}
	resource struct {
		Resources []string   `json:"resources"`
		Providers []provider `json:"providers"`
	}
	provider struct {
		AESGCM    *keyed     `json:"aesgcm,omitempty"`
		AESCBC    *keyed     `json:"aescbc,omitempty"`
		Secretbox *keyed     `json:"secretbox,omitempty"`
		Identity  *struct{}  `json:"identity,omitempty"`
		KMS       *kmsConfig `json:"kms,omitempty"`
	}
	keyed struct {
		Keys []key `json:"keys"`
	}
	key struct {
		Name   string `json:"name"`
		Secret string `json:"secret"`
	}
	kmsConfig struct {
		APIVersion string  `json:"apiVersion,omitempty"`
		Name       string  `json:"name"`
		CacheSize  *int32  `json:"cachesize,omitempty"`
		Endpoint   string  `json:"endpoint"`
		Timeout    *string `json:"timeout,omitempty"`
	}
)

// transformer turns what is stored into another form and back. path is where the object would stand in etcd.
type transformer struct {
	// prefix is how its values begin; empty for identity.
	prefix string
	seal   func(plain []byte, path string) ([]byte, error)
	open   func(sealed []byte, path string) ([]byte, error)
	// id is the prefix with a hash of the key: two keys of one name differ in it.
	id string
	// outdated tells that a value it can open would be written otherwise today. Nil: none.
	outdated func(sealed []byte) bool
	// healthy asks what it depends on. Nil: on nothing.
	healthy func() error
	// close ends what it has. Nil: nothing.
	close func()
}

// Config says which resources are encrypted and how. It is immutable. Nil encrypts nothing.
type Config struct {
	rules []rule
	names []string // of KMS providers
}

// Check says what is wrong with the KMS plugins that the configuration names, nil for nothing. It asks each of them at most once in some
// seconds, for no longer than its timeout.
func (c *Config) Check() error {
	var errs []error
	for _, t := range c.providersAll() {
		if t.healthy != nil {
			errs = append(errs, t.healthy())
		}
	}
	return errors.Join(errs...)
}

// Close ends the connections to KMS plugins.
func (c *Config) Close() {
	for _, t := range c.providersAll() {
		if t.close != nil {
			t.close()
		}
	}
}

func (c *Config) providersAll() []transformer {
	var out []transformer
	for _, r := range c.rules {
		out = append(out, r.providers...)
	}
	return out
}

// rule is the providers of some resources: the first writes, all read.
type rule struct {
	resources []string
	providers []transformer
}

// Load reads an EncryptionConfiguration file, YAML or JSON, and says everything that is wrong with it.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("encryption provider config: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("encryption provider config %s: %w", path, err)
	}
	return c, nil
}

// Parse reads an EncryptionConfiguration.
func Parse(data []byte) (*Config, error) {
	var in configuration
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		// The parser's error may quote the line, and with it a key.
		return nil, errors.New("it cannot be read as an EncryptionConfiguration: check indentation and the names of the fields")
	}
	if in.APIVersion != "apiserver.config.k8s.io/v1" || in.Kind != "EncryptionConfiguration" {
		return nil, fmt.Errorf("it is of %q, kind %q: write apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration", in.APIVersion, in.Kind)
	}
	root := field.NewPath("resources")
	var errs field.ErrorList
	if len(in.Resources) == 0 {
		errs = append(errs, field.Required(root, "at least one resources entry is required"))
	}
	c := &Config{}
	for i := range in.Resources {
		path := root.Index(i)
		r := rule{resources: in.Resources[i].Resources}
		errs = append(errs, checkResources(r.resources, path.Child("resources"))...)
		if len(in.Resources[i].Providers) == 0 {
			errs = append(errs, field.Required(path.Child("providers"), "at least one provider is required"))
		}
		for j := range in.Resources[i].Providers {
			made, more := in.Resources[i].Providers[j].transformers(c, path.Child("providers").Index(j))
			r.providers = append(r.providers, made...)
			errs = append(errs, more...)
		}
		errs = append(errs, c.masked(r.resources, path.Child("resources"))...)
		c.rules = append(c.rules, r)
	}
	if err := errs.ToAggregate(); err != nil {
		return nil, err
	}
	return c, nil
}

func checkResources(list []string, path *field.Path) (errs field.ErrorList) {
	if len(list) == 0 {
		return field.ErrorList{field.Required(path, "at least one resource is required")}
	}
	for i, r := range list {
		at := path.Index(i)
		group := groupOf(r)
		switch {
		case r == "*":
			errs = append(errs, field.Invalid(at, r, "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"))
		case strings.ToLower(r) != r:
			errs = append(errs, field.Invalid(at, r, "resource name should not contain capital letters"))
		case r == "apiserveripinfo" || r == "serviceipallocations" || r == "servicenodeportallocations":
			errs = append(errs, field.Invalid(at, r, "resources which do not have REST API/s cannot be encrypted"))
		case group == "events.k8s.io":
			errs = append(errs, field.Invalid(at, r, "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"))
		case group == "extensions":
			errs = append(errs, field.Invalid(at, r, "'extensions' group has been removed and cannot be used for encryption"))
		case slices.Contains(list[:i], r):
			errs = append(errs, field.Invalid(at, list, "the same resource cannot be specified multiple times"))
		case slices.ContainsFunc(list, func(o string) bool { return o != r && covers(o, r) }):
			errs = append(errs, field.Invalid(at, r, "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked"))
		}
	}
	return errs
}

// masked finds resources that an earlier rule takes whole.
func (c *Config) masked(list []string, path *field.Path) (errs field.ErrorList) {
	for i, r := range list {
		for _, earlier := range c.rules {
			for _, o := range earlier.resources {
				if strings.HasPrefix(o, "*") && covers(o, r) {
					errs = append(errs, field.Invalid(path.Index(i), r, fmt.Sprintf("resource %q is masked by earlier rule %q", r, o)))
				}
			}
		}
	}
	return errs
}

func groupOf(resource string) string { _, group, _ := strings.Cut(resource, "."); return group }

// covers tells whether a pattern ("secrets", "deployments.apps", "*.apps", "*." for the core group, "*.*") takes a canonical
// resource name, or another pattern.
func covers(pattern, resource string) bool {
	name, group, _ := strings.Cut(pattern, ".")
	have, haveGroup, _ := strings.Cut(resource, ".")
	switch {
	case pattern == "*.*":
		return true
	case name == "*":
		return group == haveGroup
	}
	return name == have && group == haveGroup
}

func (p *provider) transformers(c *Config, path *field.Path) ([]transformer, field.ErrorList) {
	var made []transformer
	var errs field.ErrorList
	count := 0
	add := func(k *keyed, name string, sizes []int, make func(secret []byte) transformer) {
		if k == nil {
			return
		}
		count++
		t, more := k.transformers(name, sizes, make, path.Child(name, "keys"))
		made, errs = append(made, t...), append(errs, more...)
	}
	aesSizes := []int{16, 24, 32}
	add(p.AESGCM, "aesgcm", aesSizes, func(s []byte) transformer { return gcm(block(s)) })
	add(p.AESCBC, "aescbc", aesSizes, func(s []byte) transformer { return cbc(block(s)) })
	add(p.Secretbox, "secretbox", []int{32}, func(s []byte) transformer { return box([32]byte(s)) })
	if p.Identity != nil {
		count++
		made = append(made, identity)
	}
	if p.KMS != nil {
		count++
		k, more := p.KMS.provider(path.Child("kms"))
		if slices.Contains(c.names, p.KMS.Name) {
			more = append(more, field.Invalid(path.Child("kms", "name"), p.KMS.Name, fmt.Sprintf("duplicate KMS provider name %s, names must be unique", p.KMS.Name)))
		}
		c.names = append(c.names, p.KMS.Name)
		if errs = append(errs, more...); len(more) == 0 {
			made = append(made, k.transformer())
		}
	}
	switch {
	case count == 0:
		errs = append(errs, field.Required(path, "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"))
	case count > 1:
		errs = append(errs, field.Invalid(path, "", "more than one provider specified in a single element, should split into different list elements"))
	}
	return made, errs
}

func (k *keyed) transformers(name string, sizes []int, make func([]byte) transformer, path *field.Path) (made []transformer, errs field.ErrorList) {
	if len(k.Keys) == 0 {
		return nil, field.ErrorList{field.Required(path, fmt.Sprintf("at least one key is required for %s", name))}
	}
	for i, one := range k.Keys {
		at := path.Index(i)
		secret, err := base64.StdEncoding.DecodeString(one.Secret)
		switch {
		case one.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "key.name is required"))
		case strings.ContainsAny(one.Name, ":"):
			errs = append(errs, field.Invalid(at.Child("name"), one.Name, "must not contain ':'"))
		case one.Secret == "":
			errs = append(errs, field.Required(at.Child("secret"), "key.secret is required"))
		case err != nil:
			errs = append(errs, field.Invalid(at.Child("secret"), "REDACTED", "secrets must be base64 encoded"))
		case !slices.Contains(sizes, len(secret)):
			errs = append(errs, field.Invalid(at.Child("secret"), "REDACTED", fmt.Sprintf("secret is not of the expected length, got %d, expected one of %v", len(secret), sizes)))
		default:
			t := make(secret)
			t.prefix = "k8s:enc:" + name + ":v1:" + one.Name + ":"
			sum := sha256.Sum256(secret)
			t.id = t.prefix + string(sum[:])
			made = append(made, t)
		}
	}
	return made, errs
}

// block is an AES cipher with a key of a length that was checked.
func block(secret []byte) cipher.Block {
	b, err := aes.NewCipher(secret)
	if err != nil {
		panic(err)
	}
	return b
}
