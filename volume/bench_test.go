package volume

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// BenchmarkPod makes and unmakes what every pod has (the projected kube-api-access volume) and an emptyDir,
// with 300 others standing.
func BenchmarkPod(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("mounts need root")
	}
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}})
	defer s.Close()
	cm := &corev1.ConfigMap{ObjectMeta: meta("default", "kube-root-ca.crt"), Data: map[string]string{"ca.crt": string(make([]byte, 1100))}}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: keyOf(cm), Object: cm, Expect: store.ExpectAny}}}); err != nil {
		b.Fatal(err)
	}
	root := filepath.Join(b.TempDir(), "pods")
	defer mount.UnmountBelow(root)
	m := New(Config{Root: root, Client: s, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Token: func(context.Context, TokenRequest) (Token, error) {
			return Token{Value: string(make([]byte, 1000)), Expires: time.Now().Add(time.Hour)}, nil
		}})
	var spec corev1.PodSpec
	err := yaml.Unmarshal([]byte(`{containers: [{name: app, volumeMounts: [{name: e, mountPath: /e}, {name: api, mountPath: /a}]}],
	  volumes: [{name: e, emptyDir: {}}, {name: api, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 3607}},
	    {configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}},
	    {downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}}]}}]}`), &spec)
	if err != nil {
		b.Fatal(err)
	}
	pod := func(n int) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: meta("default", fmt.Sprint("p", n)), Spec: spec}
		p.UID = types.UID(p.Name)
		return p
	}
	prepare := func(n int) {
		if _, err := m.Prepare(context.Background(), pod(n)); err != nil {
			b.Fatal(err)
		}
	}
	for n := range 300 {
		prepare(n)
	}
	b.Run("Prepare+Unprepare", func(b *testing.B) {
		for n := range b.N {
			prepare(1000 + n)
			if err := m.Unprepare(context.Background(), types.UID(fmt.Sprint("p", 1000+n))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("PrepareAgain", func(b *testing.B) {
		for range b.N {
			prepare(7)
		}
	})
}
