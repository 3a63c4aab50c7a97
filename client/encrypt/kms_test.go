package encrypt

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	upstream "k8s.io/apiserver/pkg/storage/value"
	aestransformer "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
	kmsapi "k8s.io/kms/apis/v2"

	"coracle.dev/coracle/store"
)

// plugin is a KMS plugin whose keys are bytes that it XORs with.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	socket string
	server *grpc.Server

	mu     sync.Mutex
	key    byte
	health string
	calls  map[string]int
}

func startPlugin(t *testing.T) *plugin {
	p := &plugin{socket: filepath.Join(t.TempDir(), "kms.sock"), key: 1, health: "ok", calls: map[string]int{}}
	p.start(t)
	t.Cleanup(func() { p.server.Stop() })
	return p
}

func (p *plugin) start(t *testing.T) {
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(p.server, p)
	go p.server.Serve(l)
}

func (p *plugin) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *plugin) count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[method]
}

func mask(b []byte, key byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= key
	}
	return out
}

func (p *plugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls["Status"]++
	return &kmsapi.StatusResponse{Version: "v2", Healthz: p.health, KeyId: fmt.Sprint("key", p.key)}, nil
}

func (p *plugin) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls["Encrypt"]++
	return &kmsapi.EncryptResponse{Ciphertext: mask(r.Plaintext, p.key), KeyId: fmt.Sprint("key", p.key),
		Annotations: map[string][]byte{"b.example.com": {p.key}, "a.example.com": []byte("note")}}, nil
}

func (p *plugin) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls["Decrypt"]++
	n := r.Annotations["b.example.com"]
	if len(n) != 1 || r.KeyId != fmt.Sprint("key", n[0]) || string(r.Annotations["a.example.com"]) != "note" || r.Uid == "" {
		return nil, errors.New("100% not \"mine\"")
	}
	return &kmsapi.DecryptResponse{Plaintext: mask(r.Ciphertext, n[0])}, nil
}

func (p *plugin) config(t *testing.T) *Config {
	t.Helper()
	c, err := Parse(fmt.Appendf(nil, `{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets],
		providers: [{kms: {apiVersion: v2, name: vault, endpoint: "unix://%s", timeout: 5s}}, {identity: {}}]}]}`, p.socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// texts is a codec of plain strings.
type texts struct{}

func (texts) Encode(_ store.Key, obj any) ([]byte, error)  { return []byte(obj.(string)), nil }
func (texts) Decode(_ store.Key, data []byte) (any, error) { return string(data), nil }

var at = store.Key{Resource: "secrets", Namespace: "default", Name: "s"}

func TestKMS(t *testing.T) {
	p := startPlugin(t)
	c := Wrap(texts{}, p.config(t))
	first, err := c.Encode(at, "plain")
	if err != nil {
		t.Fatal(err)
	}
	second, _ := c.Encode(at, "plain")
	if !bytes.HasPrefix(first, []byte("k8s:enc:kms:v2:vault:")) || bytes.Contains(first, []byte("plain")) || bytes.Equal(first, second) {
		t.Errorf("%q", first)
	}
	if p.count("Encrypt") != 1 || p.count("Status") != 1 {
		t.Errorf("calls for two values: %v", p.calls)
	}
	// Another process, or this one after kill -9: all that it has is what was stored.
	later := Wrap(texts{}, p.config(t))
	for _, data := range [][]byte{first, second} {
		if got, err := later.Decode(at, data); err != nil || got != "plain" {
			t.Errorf("%v %v", got, err)
		}
	}
	if n := p.count("Decrypt"); n != 1 || later.Stale(at) {
		t.Errorf("%d calls to decrypt two values of one key, stale %v", n, later.Stale(at))
	}
	if _, err := later.Decode(store.Key{Resource: "secrets", Namespace: "default", Name: "other"}, first); err == nil {
		t.Error("a value was read in the place of another")
	}
	broken := bytes.Clone(first)
	broken[len(broken)/2] ^= 1
	if _, err := Wrap(texts{}, p.config(t)).Decode(at, broken); !errors.Is(err, ErrKey) {
		t.Errorf("a changed value: %v", err)
	}
}

// TestKMSKeyChanges: the plugin's next key is used after a minute, what lies under the former is stale, and all of it is read.
func TestKMSKeyChanges(t *testing.T) {
	p := startPlugin(t)
	cfg := p.config(t)
	k := newKMS(p)
	clock := time.Now()
	k.now = func() time.Time { return clock }
	cfg.rules[0].providers[0] = k.transformer()
	c := Wrap(texts{}, cfg)
	old, err := c.Encode(at, "old")
	if err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.key = 2 })
	clock = clock.Add(kmsFresh)
	if _, err := c.Encode(at, "meanwhile"); err != nil { // does not wait
		t.Fatal(err)
	}
	k.work.Wait()
	data, err := c.Encode(at, "new")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Decode(at, data); err != nil || got != "new" || c.Stale(at) {
		t.Errorf("%v %v, stale %v", got, err, c.Stale(at))
	}
	if got, err := c.Decode(at, old); err != nil || got != "old" || !c.Stale(at) {
		t.Errorf("%v %v, stale %v", got, err, c.Stale(at))
	}
	// Nothing is written with a key that nobody has confirmed for three minutes, and what is stored can still be read.
	p.server.Stop()
	clock = clock.Add(kmsLife)
	if _, err := c.Encode(at, "x"); err == nil || !strings.Contains(err.Error(), "of the KMS plugin") {
		t.Errorf("encrypted without the plugin: %v", err)
	}
	if got, err := c.Decode(at, data); err != nil || got != "new" {
		t.Errorf("%v %v", got, err)
	}
	p.start(t)
	if _, err := c.Encode(at, "x"); err != nil {
		t.Errorf("the plugin is back: %v", err)
	}
}

func newKMS(p *plugin) *kms {
	return &kms{name: "vault", service: newService(p.socket, 5*time.Second), now: time.Now}
}

func TestKMSHealth(t *testing.T) {
	p := startPlugin(t)
	k := newKMS(p)
	clock := time.Now()
	k.now = func() time.Time { return clock }
	for range 3 {
		if err := k.healthy(); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.count("Status"); n != 1 {
		t.Errorf("asked %d times", n)
	}
	p.set(func() { p.health = "sealed" })
	clock = clock.Add(kmsHealthy)
	if err := k.healthy(); err == nil || !strings.HasSuffix(err.Error(), "got unexpected healthz status: sealed") {
		t.Error(err)
	}
	clock = clock.Add(kmsSick)
	p.set(func() { p.health = "ok" })
	if err := k.healthy(); err != nil {
		t.Error(err)
	}
	if _, err := k.open(appendBytes(appendBytes(appendBytes(nil, 1, []byte("x")), 2, []byte("y")), 3, []byte("z")), ""); err == nil ||
		!strings.HasSuffix(err.Error(), `: 100% not "mine"`) {
		t.Errorf("the words of the plugin: %v", err)
	}
}

// TestKMSMovesBothWays: upstream's types and ciphers read what we write, and we what they write, with seeds and with keys.
func TestKMSMovesBothWays(t *testing.T) {
	p := startPlugin(t)
	k, where := newKMS(p), path(at)
	data, err := k.seal([]byte("ours"), where)
	if err != nil {
		t.Fatal(err)
	}
	o := &kmstypes.EncryptedObject{}
	if err := proto.Unmarshal(data, o); err != nil {
		t.Fatal(err)
	}
	theirs, err := aestransformer.NewHKDFExtendedNonceGCMTransformer(mask(o.EncryptedDEKSource, 1))
	if err != nil || o.KeyID != "key1" || len(o.Annotations) != 2 || o.EncryptedDEKSourceType != kmstypes.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED {
		t.Fatalf("%v %v", o, err)
	}
	if got, _, err := theirs.TransformFromStorage(t.Context(), o.EncryptedData, upstream.DefaultContext(where)); err != nil || string(got) != "ours" {
		t.Errorf("%q %v", got, err)
	}
	single, secret, err := aestransformer.NewGCMTransformerWithUniqueKeyUnsafe()
	if err != nil {
		t.Fatal(err)
	}
	for _, seeds := range []bool{true, false} {
		w := theirs
		if !seeds {
			w, o.EncryptedDEKSource, o.EncryptedDEKSourceType = single, mask(secret, 1), kmstypes.EncryptedDEKSourceType_AES_GCM_KEY
		}
		if o.EncryptedData, err = w.TransformToStorage(t.Context(), []byte("theirs"), upstream.DefaultContext(where)); err != nil {
			t.Fatal(err)
		}
		if data, err = proto.Marshal(o); err != nil {
			t.Fatal(err)
		}
		if got, err := newKMS(p).open(data, where); err != nil || string(got) != "theirs" || k.outdated(data) == seeds {
			t.Errorf("seeds %v: %q %v, outdated %v", seeds, got, err, k.outdated(data))
		}
	}
}

func TestKMSConfiguration(t *testing.T) {
	for in, want := range map[string]string{
		`{apiVersion: v2, name: a, endpoint: "unix:///a"}`:                                                          "",
		`{apiVersion: v2, endpoint: "unix:///a"}`:                                                                   "name is a mandatory field for a provider",
		`{apiVersion: v2, name: "a:b", endpoint: "unix:///a"}`:                                                      "invalid KMS provider name a:b, must not contain ':'",
		`{apiVersion: v2, name: a}`:                                                                                 "endpoint is a mandatory field for a kms",
		`{apiVersion: v2, name: a, endpoint: "tcp://a"}`:                                                            `unsupported scheme "tcp" for KMS provider, only unix is supported`,
		`{apiVersion: v2, name: a, endpoint: "unix:///a", timeout: 0s}`:                                             "timeout should be a positive value",
		`{apiVersion: v2, name: a, endpoint: "unix:///a", cachesize: 5}`:                                            "cachesize is not supported in v2",
		`{name: a, endpoint: "unix:///a"}`:                                                                          "KMSv1 is deprecated",
		`{apiVersion: v3, name: a, endpoint: "unix:///a"}`:                                                          "unsupported apiVersion v3",
		`{apiVersion: v2, name: a, endpoint: "unix:///a"}}, {kms: {apiVersion: v2, name: a, endpoint: "unix:///b"}`: "duplicate KMS provider name a, names must be unique",
	} {
		_, err := Parse([]byte("{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets], providers: [{kms: " + in + "}]}]}"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// TestReload: what was written before is read and stale, what is written since is not.
func TestReload(t *testing.T) {
	p := startPlugin(t)
	identity, err := Parse([]byte(`{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets], providers: [{identity: {}}, {kms: {apiVersion: v2, name: vault, endpoint: "unix://` + p.socket + `"}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	c := Wrap(texts{}, identity)
	before, _ := c.Encode(at, "plain")
	other := store.Key{Resource: "configmaps", Namespace: "default", Name: "s"}
	c.Reload(p.config(t))
	after, err := c.Encode(at, "plain")
	if err != nil || bytes.Contains(after, []byte("plain")) || !c.Stale(at) || c.Stale(other) {
		t.Errorf("%q %v, stale %v, the other %v", after, err, c.Stale(at), c.Stale(other))
	}
	for _, data := range [][]byte{before, after} {
		if got, err := c.Decode(at, data); err != nil || got != "plain" {
			t.Errorf("%v %v", got, err)
		}
	}
	d := Wrap(texts{}, p.config(t))
	for range 3 {
		d.Reload(p.config(t))
	}
	if d.Stale(at) || d.now.Load().before.before != nil {
		t.Error("the same configuration again made something stale, or is kept")
	}
}

// TestStaleIsBounded: what is remembered of values in an old form does not grow with their number.
func TestStaleIsBounded(t *testing.T) {
	parse := func(providers string) *Config {
		cfg, err := Parse([]byte(`{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets, configmaps], providers: [` + providers + `]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	key := `{aesgcm: {keys: [{name: k, secret: ` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `}]}}`
	c := Wrap(texts{}, parse(key+`, {identity: {}}`))
	for i := range 100 {
		if _, err := c.Decode(store.Key{Resource: "secrets", Name: fmt.Sprint(i)}, []byte("plain")); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	c.stale.Range(func(any, any) bool { n++; return true })
	if n != 1 || !c.Stale(store.Key{Resource: "secrets", Name: "7"}) || c.Stale(store.Key{Resource: "configmaps", Name: "7"}) {
		t.Errorf("%d things are remembered", n)
	}
}

func BenchmarkKMSSeal(b *testing.B) {
	p := &plugin{socket: filepath.Join(b.TempDir(), "s"), key: 1, health: "ok", calls: map[string]int{}}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		b.Fatal(err)
	}
	p.server = grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(p.server, p)
	go p.server.Serve(l)
	defer p.server.Stop()
	k, plain := newKMS(p), make([]byte, 1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.seal(plain, "/registry/secrets/default/s"); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzEnvelope: no stored bytes, and no answer of a plugin, bring the reader down.
func FuzzEnvelope(f *testing.F) {
	f.Add(appendBytes(appendBytes(appendBytes(nil, 1, []byte("data")), 2, []byte("key")), 3, []byte("source")))
	f.Add(appendBytes(nil, 4, appendBytes(appendBytes(nil, 1, []byte("a.example.com")), 2, []byte("v"))))
	f.Add([]byte{0x28, 0x01, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		k := &kms{name: "x", service: newService("/nonexistent", time.Millisecond), now: time.Now}
		if out, err := k.open(data, "/registry/x"); err == nil {
			t.Errorf("%q was opened without a key", out)
		}
		got, err := parse(data)
		if err != nil {
			return
		}
		_, _ = got[3].annotations()
	})
}
