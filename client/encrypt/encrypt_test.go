package encrypt_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/client/encrypt"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/pebble"
)

const plain = "the-quick-brown-fox-is-a-secret"

func secretKey(name string, fill byte) string {
	return fmt.Sprintf("{name: %s, secret: %s}", name, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, 32)))
}

func config(t *testing.T, resources, providers string) *encrypt.Config {
	t.Helper()
	c, err := encrypt.Parse(fmt.Appendf(nil, "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [%s]\n  providers:\n%s", resources, providers))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func one(kind string, keys ...string) string {
	return fmt.Sprintf("  - %s: {keys: [%s]}\n", kind, strings.Join(keys, ", "))
}

func secret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default", UID: "1"}, Data: map[string][]byte{"k": []byte(plain)}}
}

var key = store.Key{Resource: "secrets", Namespace: "default", Name: "s"}

func codec(c *encrypt.Config) store.Codec {
	return encrypt.Wrap(client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0).Codec, c)
}

// TestProviders: what each provider writes has upstream's prefix, holds nothing of the plain text, and is read by the same key and no other.
func TestProviders(t *testing.T) {
	for _, kind := range []string{"aesgcm", "aescbc", "secretbox"} {
		c := codec(config(t, "secrets", one(kind, secretKey("key1", 1))))
		data, err := c.Encode(key, secret())
		if err != nil {
			t.Fatal(err)
		}
		if want := "k8s:enc:" + kind + ":v1:key1:"; !bytes.HasPrefix(data, []byte(want)) || bytes.Contains(data, []byte(plain)) {
			t.Errorf("%s: stored as %q", kind, data)
		}
		got, err := c.Decode(key, data)
		if err != nil || string(got.(*corev1.Secret).Data["k"]) != plain {
			t.Errorf("%s: read back %v, %v", kind, got, err)
		}
		_, err = codec(config(t, "secrets", one(kind, secretKey("key1", 2)))).Decode(key, data)
		if !errors.Is(err, encrypt.ErrKey) || !strings.Contains(err.Error(), "secrets") || !strings.Contains(err.Error(), "put the key back") {
			t.Errorf("%s: another key of that name: %v", kind, err)
		}
		for name, other := range map[string]*encrypt.Config{"no config": nil, "no such key": config(t, "secrets", one(kind, secretKey("key2", 1)))} {
			if _, err := codec(other).Decode(key, data); !errors.Is(err, encrypt.ErrKey) || strings.Contains(err.Error(), plain) {
				t.Errorf("%s: %s: %v", kind, name, err)
			}
		}
		for i := range data { // a flipped bit never panics, nor gives the object back unless it is in a vector that nothing authenticates
			bad := bytes.Clone(data)
			bad[i] ^= 1
			if got, err := c.Decode(key, bad); err == nil && kind != "aescbc" {
				t.Fatalf("%s: bit %d was flipped and %v came back", kind, i, got)
			}
		}
	}
}

// TestUpstreamForm opens a value by hand as upstream's transformer does: nonce, ciphertext, and the path in etcd.
func TestUpstreamForm(t *testing.T) {
	for k, path := range map[store.Key]string{
		key: "/registry/secrets/default/s",
		{Resource: "widgets.example.com", Namespace: "a", Name: "b"}: "/registry/example.com/widgets/a/b",
		{Resource: "deployments.apps", Namespace: "a", Name: "b"}:    "/registry/deployments/a/b",
		{Resource: "nodes", Name: "b"}:                               "/registry/minions/b",
		{Resource: "services", Namespace: "a", Name: "b"}:            "/registry/services/specs/a/b",
	} {
		data, err := encrypt.Wrap(raw{}, config(t, "'*.*'", one("aesgcm", secretKey("key1", 1)))).Encode(k, plain)
		if err != nil {
			t.Fatal(err)
		}
		sealed := bytes.TrimPrefix(data, []byte("k8s:enc:aesgcm:v1:key1:"))
		block, _ := aes.NewCipher(bytes.Repeat([]byte{1}, 32))
		aead, _ := cipher.NewGCM(block)
		if got, err := aead.Open(nil, sealed[:12], sealed[12:], []byte(path)); err != nil || string(got) != plain {
			t.Errorf("%s at %s: %q, %v", k, path, got, err)
		}
	}
}

// raw stores strings.
type raw struct{}

func (raw) Encode(_ store.Key, obj any) ([]byte, error)  { return []byte(obj.(string)), nil }
func (raw) Decode(_ store.Key, data []byte) (any, error) { return string(data), nil }

func TestResources(t *testing.T) {
	for _, c := range []struct {
		patterns, resource string
		want               bool
	}{
		{"secrets", "secrets", true}, {"secrets", "configmaps", false}, {"'*.'", "configmaps", true}, {"'*.'", "deployments.apps", false},
		{"'*.apps'", "deployments.apps", true}, {"'*.apps'", "secrets", false}, {"'*.*'", "widgets.example.com", true},
		{"deployments.apps", "deployments.apps", true}, {"widgets.example.com", "widgets.example.com", true},
	} {
		data, err := encrypt.Wrap(raw{}, config(t, c.patterns, one("secretbox", secretKey("k", 3)))).Encode(store.Key{Resource: c.resource, Name: "n"}, plain)
		if got := bytes.HasPrefix(data, []byte("k8s:enc:secretbox:")); got != c.want || err != nil {
			t.Errorf("%s encrypts %s: %v, want %v (%v)", c.patterns, c.resource, got, c.want, err)
		}
	}
}

func TestRefusedConfigs(t *testing.T) {
	head := "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n"
	for want, text := range map[string]string{
		"at least one resources entry is required": head,
		"secrets must be base64 encoded":           head + "resources: [{resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: '!'}]}}]}]",
		"secret is not of the expected length":     head + "resources: [{resources: [secrets], providers: [{secretbox: {keys: [{name: a, secret: YQ==}]}}]}]",
		"at least one provider is required":        head + "resources: [{resources: [secrets]}]",
		"more than one provider specified":         head + "resources: [{resources: [secrets], providers: [{identity: {}, aescbc: {keys: [" + secretKey("a", 1) + "]}}]}]",
		"is masked by earlier rule":                head + "resources: [{resources: ['*.*'], providers: [{identity: {}}]}, {resources: [secrets], providers: [{identity: {}}]}]",
		"use '*.' to encrypt":                      head + "resources: [{resources: ['*'], providers: [{identity: {}}]}]",
		"kind: EncryptionConfiguration":            "apiVersion: v1\nkind: Config",
		"names of the fields":                      head + "resurces: []",
	} {
		if _, err := encrypt.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestOnDisk: nothing of a secret is in the files of a store, whose contents survive being opened with the old key behind a new one.
func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	var wrapped *encrypt.Codec
	open := func(c *encrypt.Config) (store.Store, error) {
		opts := client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0)
		wrapped = encrypt.Wrap(opts.Codec, c)
		opts.Codec = wrapped
		return pebble.Open(dir, opts, slog.New(slog.DiscardHandler))
	}
	must := func(c *encrypt.Config) store.Store {
		t.Helper()
		s, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old, both := one("aescbc", secretKey("key1", 1)), one("aesgcm", secretKey("key2", 2))+one("aescbc", secretKey("key1", 1))
	s := must(config(t, "secrets", old))
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: key, Object: secret()}}}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	noPlain(t, dir)
	s = must(config(t, "secrets", both))
	e := s.Snapshot().Get(key)
	if got := string(e.Object.(*corev1.Secret).Data["k"]); got != plain {
		t.Fatalf("read %q", got)
	}
	if !wrapped.Stale(key) {
		t.Error("a value of the old key is not stale")
	}
	changed := e.Object.(*corev1.Secret).DeepCopy()
	changed.Labels = map[string]string{"again": "1"}
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: key, Object: changed, Expect: e.Revision}}}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = must(config(t, "secrets", one("aesgcm", secretKey("key2", 2))))
	if wrapped.Stale(key) {
		t.Error("a value of the new key is stale")
	}
	// The old key is not needed any more.
	_ = s.Close()
	noPlain(t, dir)
	if _, err := open(nil); !errors.Is(err, encrypt.ErrKey) {
		t.Errorf("opened without keys: %v", err)
	}
}

func noPlain(t *testing.T, dir string) {
	t.Helper()
	files := 0
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
			if data, _ := os.ReadFile(path); bytes.Contains(data, []byte(plain)) {
				t.Errorf("%s holds the secret", path)
			}
		}
		return err
	})
	if files == 0 {
		t.Fatal("the store has no files")
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, kind := range []string{"aesgcm", "aescbc", "secretbox"} {
		b.Run(kind, func(b *testing.B) {
			c, err := encrypt.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n" + one(kind, secretKey("a", 1))))
			if err != nil {
				b.Fatal(err)
			}
			w := encrypt.Wrap(raw{}, c)
			text := strings.Repeat("x", 1024)
			for b.Loop() {
				if _, err := w.Encode(key, text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
