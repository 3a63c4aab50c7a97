package cluster

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFrontProxyCertificate: it is made once, renewed before it expires, and an attempt that failed is not the last.
func TestFrontProxyCertificate(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	keys, err := loadPKI(dir, began)
	if err != nil {
		t.Fatal(err)
	}
	now := began
	f := &frontProxy{authority: &keys.frontProxy, now: func() time.Time { return now }}
	key := filepath.Join(dir, frontProxyName+".key")
	spoil := func() {
		t.Helper()
		if err := os.WriteFile(key, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	if c, err := f.certificate(); err == nil || c != nil {
		t.Fatalf("a spoilt key: %v %v", c, err)
	}
	_ = os.Remove(key)
	first, err := f.certificate()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := f.certificate(); again != first || err != nil {
		t.Errorf("the certificate is made again: %v", err)
	}
	now = first.Leaf.NotAfter.Add(-24 * time.Hour)
	spoil()
	if c, err := f.certificate(); c != first || err != nil {
		t.Errorf("with a day left and no way to make another: %v", err)
	}
	_ = os.Remove(key)
	second, err := f.certificate()
	if err != nil || second == first || !second.Leaf.NotAfter.After(now.Add(leafLife/2)) {
		t.Fatalf("not renewed: %v", err)
	}
	now = second.Leaf.NotAfter.Add(time.Minute)
	spoil()
	if c, err := f.certificate(); err == nil || c != nil {
		t.Error("a certificate that has expired is presented")
	}
}
