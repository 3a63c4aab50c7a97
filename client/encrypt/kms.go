package encrypt

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	kmsTimeout = 3 * time.Second
	// kmsFresh is how long the plugin's word on its key is used before it is asked again, behind the back of who encrypts; after
	// kmsLife without an answer nothing is encrypted any more (upstream's intervals).
	kmsFresh, kmsLife = time.Minute, 3 * time.Minute
	// kmsHealthy and kmsSick are how long an answer about the plugin's health is repeated.
	kmsHealthy, kmsSick = 20 * time.Second, 3 * time.Second

	maxKeyID, maxSource, maxAnnotations = 1 << 10, 1 << 10, 32 << 10
	// maxKeys bounds the data keys that are remembered. There is one for each start and each key of the plugin that wrote what is stored.
	maxKeys = 1000

	seedSize = 32
)

// How the key of an envelope follows from what the plugin decrypts.
const (
	sourceKey  = 0 // it is the AES-GCM key
	sourceSeed = 1 // it is a seed, from which each value has a key of its own
)

// kms keeps data keys in the form that a plugin encrypted (KMS v2, KEP-3299). What it stores is what upstream's API server
// stores, so that data can move either way. Safe for concurrent use.
type kms struct {
	name    string
	service *service
	now     func() time.Time

	asking sync.Mutex // held while the plugin is asked for its key; before mu
	mu     sync.Mutex // guards all below
	write  *envelope  // nil until the plugin was reached once
	asked  time.Time  // when the plugin last said that the key of write is its own
	behind bool       // somebody asks just now, behind the back of who encrypts
	keys   map[[sha256.Size]byte]transformer
	health struct {
		at  time.Time
		err error
	}
	work sync.WaitGroup
}

// envelope is a data key with the form in which it is stored beside what it encrypts.
type envelope struct {
	keyID string
	inner transformer
	tail  []byte // the fields of an EncryptedObject after its data
}

// transformer gives the provider of a configuration. Nothing is asked before the first use.
func (k *kms) transformer() transformer {
	return transformer{prefix: "k8s:enc:kms:v2:" + k.name + ":", seal: k.seal, open: k.open, outdated: k.outdated, healthy: k.healthy, close: k.close}
}

func (k *kms) close() {
	k.work.Wait()
	k.service.close()
}

func (k *kms) seal(plain []byte, path string) ([]byte, error) {
	w, err := k.writer()
	if err != nil {
		return nil, err
	}
	data, err := w.inner.seal(plain, path)
	if err != nil {
		return nil, err
	}
	return append(appendBytes(make([]byte, 0, len(data)+len(w.tail)+8), 1, data), w.tail...), nil
}

// writer gives the key to write with. It waits for the plugin if what that said is too old.
func (k *kms) writer() (*envelope, error) {
	k.mu.Lock()
	w, age := k.write, k.now().Sub(k.asked)
	ask := w != nil && age >= kmsFresh && age < kmsLife && !k.behind
	if ask {
		k.behind = true
		k.work.Go(func() {
			_ = k.refresh() // who finds it too old asks again, and hears why not
			k.mu.Lock()
			defer k.mu.Unlock()
			k.behind = false
		})
	}
	k.mu.Unlock()
	if w != nil && age < kmsLife {
		return w, nil
	}
	if err := k.refresh(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.write, nil
}

// refresh asks the plugin for its key, and makes a new data key if that is another than before.
func (k *kms) refresh() error {
	k.asking.Lock()
	defer k.asking.Unlock()
	at := k.now()
	k.mu.Lock()
	w, asked := k.write, k.asked
	k.mu.Unlock()
	if w != nil && at.Sub(asked) < kmsFresh {
		return nil // somebody else did
	}
	id, err := k.status()
	if err != nil {
		return err
	}
	if w == nil || w.keyID != id {
		if w, err = k.generate(); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.write, k.asked = w, at
	return nil
}

// status asks for the plugin's health, and for the key that it encrypts with.
func (k *kms) status() (string, error) {
	got, err := k.service.call("Status", nil)
	if err != nil {
		return "", err
	}
	if v := string(got[1].bytes); v != "v2" && v != "v2beta1" {
		return "", fmt.Errorf("KMS provider %s: unsupported KMS API version %q, want v2", k.name, v)
	}
	if h := string(got[2].bytes); h != "ok" {
		return "", fmt.Errorf("KMS provider %s: got unexpected healthz status: %s", k.name, h)
	}
	id := string(got[3].bytes)
	return id, k.checkID(id)
}

func (k *kms) checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("KMS provider %s: keyID is empty", k.name)
	case len(id) > maxKeyID:
		return fmt.Errorf("KMS provider %s: keyID is %d bytes, which exceeds the max size of %d", k.name, len(id), maxKeyID)
	}
	return nil
}

// generate makes a new seed and has the plugin encrypt it.
func (k *kms) generate() (*envelope, error) {
	seed := nonce(seedSize, 0)
	got, err := k.service.call("Encrypt", appendBytes(appendBytes(nil, 1, seed), 2, []byte(rand.Text())))
	if err != nil {
		return nil, err
	}
	w := &envelope{keyID: string(got[2].bytes), inner: derived(seed)}
	if err := k.checkID(w.keyID); err != nil {
		return nil, err
	}
	source := got[1].bytes
	if len(source) == 0 || len(source) > maxSource {
		return nil, fmt.Errorf("KMS provider %s: encrypted DEK source is %d bytes, not between 1 and %d", k.name, len(source), maxSource)
	}
	notes, err := got[3].annotations()
	if err != nil {
		return nil, err
	}
	if err := checkAnnotations(notes); err != nil {
		return nil, fmt.Errorf("KMS provider %s: %w", k.name, err)
	}
	w.tail = appendBytes(appendBytes(nil, 2, []byte(w.keyID)), 3, source)
	for _, name := range slices.Sorted(maps.Keys(notes)) {
		w.tail = appendBytes(w.tail, 4, appendBytes(appendBytes(nil, 1, []byte(name)), 2, notes[name]))
	}
	w.tail = protowire.AppendVarint(protowire.AppendTag(w.tail, 5, protowire.VarintType), sourceSeed)
	k.remember(sourceOf(sourceSeed, source, w.keyID, notes), w.inner)
	return w, nil
}

func checkAnnotations(notes map[string][]byte) error {
	size := 0
	for name, v := range notes {
		if text := validation.IsDNS1123Subdomain(name); len(text) > 0 || !strings.Contains(name, ".") {
			return fmt.Errorf("annotation %q: should be a domain with at least two segments separated by dots", name)
		}
		size += len(name) + len(v)
	}
	if size > maxAnnotations {
		return fmt.Errorf("total size of annotations is %d, which exceeds the max size of %d", size, maxAnnotations)
	}
	return nil
}

// sourceOf names a data key by all that the plugin needs to decrypt it.
func sourceOf(kind uint64, source []byte, id string, notes map[string][]byte) [sha256.Size]byte {
	b := protowire.AppendVarint(nil, kind)
	b = protowire.AppendBytes(protowire.AppendString(protowire.AppendBytes(b, source), id), nil)
	for _, name := range slices.Sorted(maps.Keys(notes)) {
		b = protowire.AppendBytes(protowire.AppendString(b, name), notes[name])
	}
	return sha256.Sum256(b)
}

func (k *kms) remember(source [sha256.Size]byte, t transformer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil || len(k.keys) >= maxKeys {
		k.keys = map[[sha256.Size]byte]transformer{}
	}
	k.keys[source] = t
}

func (k *kms) open(sealed []byte, path string) ([]byte, error) {
	f, err := parse(sealed)
	if err != nil {
		return nil, err
	}
	notes, err := f[4].annotations()
	if err != nil {
		return nil, err
	}
	kind, id := f[5].number, string(f[2].bytes)
	if kind > sourceSeed || len(f[1].bytes) == 0 || len(f[3].bytes) == 0 || id == "" {
		return nil, errForged
	}
	name := sourceOf(kind, f[3].bytes, id, notes)
	k.mu.Lock()
	t, known := k.keys[name]
	k.mu.Unlock()
	if !known {
		if t, err = k.decrypt(kind, f, notes); err != nil {
			return nil, err
		}
		k.remember(name, t)
	}
	return t.open(f[1].bytes, path)
}

// decrypt has the plugin decrypt a data key.
func (k *kms) decrypt(kind uint64, f fields, notes map[string][]byte) (transformer, error) {
	m := appendBytes(appendBytes(appendBytes(nil, 1, f[3].bytes), 2, []byte(rand.Text())), 3, f[2].bytes)
	for _, name := range slices.Sorted(maps.Keys(notes)) {
		m = appendBytes(m, 4, appendBytes(appendBytes(nil, 1, []byte(name)), 2, notes[name]))
	}
	got, err := k.service.call("Decrypt", m)
	if err != nil {
		return transformer{}, err
	}
	secret := bytes.Clone(got[1].bytes)
	if kind == sourceKey {
		b, err := aes.NewCipher(secret)
		if err != nil {
			return transformer{}, errors.New("what the KMS plugin decrypted is no key")
		}
		return gcm(b), nil
	}
	if len(secret) < seedSize {
		return transformer{}, fmt.Errorf("invalid seed length %d used for key generation", len(secret))
	}
	return derived(secret), nil
}

// outdated tells whether a value was written with another key of the plugin than its present one.
func (k *kms) outdated(sealed []byte) bool {
	f, err := parse(sealed)
	if err != nil {
		return false
	}
	w, err := k.writer()
	return err == nil && (w.keyID != string(f[2].bytes) || f[5].number != sourceSeed)
}

// healthy asks the plugin how it is, not too often.
func (k *kms) healthy() error {
	k.mu.Lock()
	at, err := k.health.at, k.health.err
	k.mu.Unlock()
	life := kmsHealthy
	if err != nil {
		life = kmsSick
	}
	now := k.now()
	if !at.IsZero() && now.Sub(at) < life {
		return err
	}
	_, err = k.status()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.health.at, k.health.err = now, err
	return err
}

// derived is AES-GCM with a key for each value, which follows from the seed and 32 random bytes in front.
func derived(seed []byte) transformer {
	inner := func(info []byte) (transformer, error) {
		key, err := hkdf.Expand(sha256.New, seed, string(info), seedSize)
		if err != nil {
			return transformer{}, err
		}
		return gcm(block(key)), nil
	}
	return transformer{
		seal: func(plain []byte, path string) ([]byte, error) {
			info := nonce(seedSize, 0)
			t, err := inner(info)
			if err != nil {
				return nil, err
			}
			data, err := t.seal(plain, path)
			return append(info, data...), err
		},
		open: func(sealed []byte, path string) ([]byte, error) {
			if len(sealed) < seedSize {
				return nil, errShort
			}
			t, err := inner(sealed[:seedSize])
			if err != nil {
				return nil, err
			}
			return t.open(sealed[seedSize:], path)
		},
	}
}

// provider checks a KMS provider of the file.
func (in *kmsConfig) provider(path *field.Path) (*kms, field.ErrorList) {
	var errs field.ErrorList
	if in.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "name is a mandatory field for a provider"))
	}
	if strings.Contains(in.Name, ":") {
		errs = append(errs, field.Invalid(path.Child("name"), in.Name, fmt.Sprintf("invalid KMS provider name %s, must not contain ':'", in.Name)))
	}
	timeout := kmsTimeout
	if in.Timeout != nil {
		var err error
		if timeout, err = time.ParseDuration(*in.Timeout); err != nil || timeout <= 0 {
			errs = append(errs, field.Invalid(path.Child("timeout"), *in.Timeout, "timeout should be a positive value"))
		}
	}
	socket := ""
	u, err := url.Parse(in.Endpoint)
	switch {
	case in.Endpoint == "":
		errs = append(errs, field.Invalid(path.Child("endpoint"), "", "endpoint is a mandatory field for a kms"))
	case err != nil:
		errs = append(errs, field.Invalid(path.Child("endpoint"), in.Endpoint, fmt.Sprintf("invalid endpoint for kms provider, error: %v", err)))
	case u.Scheme != "unix":
		errs = append(errs, field.Invalid(path.Child("endpoint"), in.Endpoint, fmt.Sprintf("unsupported scheme %q for KMS provider, only unix is supported", u.Scheme)))
	default:
		// "unix:///@name" is the abstract socket of that name, as upstream has it.
		if socket = u.Path; strings.HasPrefix(socket, "/@") {
			socket = socket[1:]
		}
	}
	switch version := cmp.Or(in.APIVersion, "v1"); version {
	case "v2":
		if in.CacheSize != nil {
			errs = append(errs, field.Invalid(path.Child("cachesize"), *in.CacheSize, "cachesize is not supported in v2"))
		}
	case "v1":
		errs = append(errs, field.Invalid(path.Child("apiVersion"), in.APIVersion,
			"KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead: write apiVersion: v2"))
	default:
		errs = append(errs, field.Invalid(path.Child("apiVersion"), version, "unsupported apiVersion "+version+" for KMS provider, only v2 is supported"))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return &kms{name: in.Name, service: newService(socket, timeout), now: time.Now}, nil
}
