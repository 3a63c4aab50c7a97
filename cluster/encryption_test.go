package cluster

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// lines gives what is logged, one message each.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l lines) await(t *testing.T, want string) {
	t.Helper()
	for {
		select {
		case got := <-l:
			if strings.Contains(got, want) {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q was not logged", want)
		}
	}
}

// TestEncryptionIsReloaded: a file that is replaced counts from then on; a wrong one changes nothing.
func TestEncryptionIsReloaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "encryption.yaml")
	write := func(providers string) {
		t.Helper()
		text := "{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets], providers: [" + providers + "]}]}"
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write("{identity: {}}")
	log := make(lines, 100)
	c := &Cluster{cfg: Config{EncryptionConfig: file, EncryptionReload: true}, log: slog.New(slog.NewTextHandler(log, nil))}
	var err error
	if c.encryption, err = c.loadEncryption(client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0).Codec); err != nil {
		t.Fatal(err)
	}
	defer c.encryption.close()
	c.encryption.opened(func() store.Revision { return 7 })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.reloadEncryption(ctx) }()
	defer func() { cancel(); <-done }()

	key := store.Key{Resource: "secrets", Namespace: "default", Name: "s"}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"k": []byte("in plain text")}}
	if data, err := c.encryption.codec.Encode(key, secret); err != nil || bytes.HasPrefix(data, []byte("k8s:enc:")) {
		t.Fatalf("%q %v", data, err)
	}
	write("{secretbox: {keys: [{name: a, secret: wrong}]}}")
	log.await(t, "not reloaded")
	write(`{kms: {apiVersion: v2, name: a, endpoint: "unix:///nonexistent", timeout: 100ms}}`)
	log.await(t, "not healthy")
	write(fmt.Sprintf("{secretbox: {keys: [{name: a, secret: %s}]}}, {identity: {}}", base64.StdEncoding.EncodeToString(make([]byte, 32))))
	log.await(t, `"encryption provider config reloaded"`)
	if data, err := c.encryption.codec.Encode(key, secret); err != nil || !bytes.HasPrefix(data, []byte("k8s:enc:secretbox:v1:a:")) {
		t.Errorf("%q %v", data, err)
	}
	if old, later := (&store.Entry{Key: key, Revision: 7}), (&store.Entry{Key: key, Revision: 8}); !c.encryption.stale(old) || c.encryption.stale(later) {
		t.Error("what was written before is stale, what was written since is not")
	}
}
