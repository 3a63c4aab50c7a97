package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
)

// server is a registry on the loopback, with a hook before each request.
type server struct {
	host string
	hook atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	mu   sync.Mutex
	gets map[string]int
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{gets: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			s.mu.Lock()
			s.gets[r.URL.Path]++
			s.mu.Unlock()
		}
		if hook := s.hook.Load(); hook != nil && (*hook)(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

func (s *server) before(fn func(http.ResponseWriter, *http.Request) bool) { s.hook.Store(&fn) }

func (s *server) count(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for path, c := range s.gets {
		if strings.Contains(path, part) {
			n += c
		}
	}
	return n
}

func asImage(t *testing.T, img build.Image) v1.Image {
	t.Helper()
	data := tarOf(t, img)
	out, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *server) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func TestPull(t *testing.T) {
	reg := newServer(t)
	digest := reg.push(t, "team/app:1", asImage(t, sample("x")))
	s := newStore(t, nil)
	var mu sync.Mutex
	var seen []container.Progress
	img, err := s.Pull(context.Background(), reg.host+"/team/app:1", container.PullOptions{Progress: func(p container.Progress) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	}})
	if err != nil {
		t.Fatal(err)
	}
	full := reg.host + "/team/app"
	if fmt.Sprint(img.Names) != "["+full+":1]" || fmt.Sprint(img.Digests) != "["+full+"@"+digest+"]" {
		t.Errorf("%v %v", img.Names, img.Digests)
	}
	checkSample(t, prepare(t, s, img.ID))
	last := seen[len(seen)-1]
	if last.Layers != 2 || last.LayersDone != 2 || last.Done != last.Total || last.Total == 0 {
		t.Errorf("progress %+v", last)
	}
	for ref, want := range map[string]string{full + ":1": img.ID, full + "@" + digest: img.ID, full + ":2": ""} {
		if got, err := s.Resolve(ref); (err == nil) != (want != "") || got.ID != want {
			t.Errorf("%s: %s %v", ref, got.ID, err)
		}
	}
	// Again: nothing but the manifest and the configuration travels.
	blobs := reg.count("/blobs/")
	again, err := s.Pull(context.Background(), reg.host+"/team/app@"+digest, container.PullOptions{})
	if err != nil || again.ID != img.ID {
		t.Errorf("%+v %v", again, err)
	}
	if n := reg.count("/blobs/") - blobs; n > 1 {
		t.Errorf("%d blobs were fetched again", n)
	}
}

func TestPullIndex(t *testing.T) {
	reg := newServer(t)
	mine := asImage(t, sample("x"))
	other := asImage(t, build.Image{Layers: [][]build.File{{{Path: "wrong"}}}})
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "mips64le"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: goarch}}},
	)
	ref, err := name.ParseReference(reg.host + "/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil)
	img, err := s.Pull(context.Background(), reg.host+"/multi:1", container.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkSample(t, prepare(t, s, img.ID))
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want := reg.host + "/multi@" + digest.String(); len(img.Digests) != 1 || img.Digests[0] != want {
		t.Errorf("digests %v, want the index's %s", img.Digests, want)
	}
	lonely := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "mips64le"}}})
	ref, _ = name.ParseReference(reg.host + "/lonely:1")
	if err := remote.WriteIndex(ref, lonely); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(context.Background(), reg.host+"/lonely:1", container.PullOptions{}); err == nil {
		t.Error("an image for another machine was pulled")
	}
}

func TestPullErrors(t *testing.T) {
	reg := newServer(t)
	reg.push(t, "app:1", asImage(t, sample("x")))
	pull := func(ref string, auths ...container.Auth) (container.PullErrorKind, error) {
		s := newStore(t, nil)
		_, err := s.Pull(context.Background(), ref, container.PullOptions{Auths: auths})
		var perr *container.PullError
		if !errors.As(err, &perr) {
			return "", err
		}
		if len(s.List()) != 0 {
			t.Errorf("%s: a failed pull left an image", ref)
		}
		return perr.Kind, err
	}
	check := func(what string, want container.PullErrorKind, ref string, auths ...container.Auth) {
		t.Helper()
		if got, err := pull(ref, auths...); got != want {
			t.Errorf("%s: %q, want %q (%v)", what, got, want, err)
		}
	}
	check("no such tag", container.PullNotFound, reg.host+"/app:2")
	check("no such name", container.PullNotFound, reg.host+"/other")
	check("no name at all", container.PullInvalidName, "Not A Name")
	check("nobody listens", container.PullUnavailable, "127.0.0.1:1/app")
	reg.before(func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		if user == "captain" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="harbour"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	check("no credentials", container.PullUnauthorized, reg.host+"/app:1")
	check("wrong ones", container.PullUnauthorized, reg.host+"/app:1", container.Auth{Username: "captain", Password: "wrong"})
	check("right ones second", "", reg.host+"/app:1", container.Auth{Username: "x", Password: "y"}, container.Auth{Username: "captain", Password: "secret"})
	check("encoded", "", reg.host+"/app:1", container.Auth{Auth: "Y2FwdGFpbjpzZWNyZXQ="})
	if _, err := pull(reg.host+"/app:1", container.Auth{Username: "captain", Password: "hunter2"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error has the password: %v", err)
	}
	// A registry that sends something else than what was asked for.
	reg.before(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if strings.Contains(r.Header.Get("Accept"), "json") || r.Method == http.MethodHead {
			return false
		}
		rec := httptest.NewRecorder()
		registry.New().ServeHTTP(rec, r)
		w.Write([]byte("something else entirely"))
		return true
	})
	if kind, err := pull(reg.host + "/app:1"); kind == "" || err == nil {
		t.Errorf("damaged blobs: %q %v", kind, err)
	}
}

func TestMirrors(t *testing.T) {
	reg := newServer(t)
	reg.push(t, "prefix/library/app:1", asImage(t, sample("x")))
	broken := newServer(t)
	broken.before(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	s := newStore(t, func(o *Options) {
		o.Mirrors = map[string][]string{"docker.io": {"http://" + broken.host, "http://" + reg.host + "/prefix"}}
	})
	img, err := s.Pull(context.Background(), "app:1", container.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(img.Names) != "[docker.io/library/app:1]" {
		t.Errorf("%v", img.Names)
	}
	checkSample(t, prepare(t, s, img.ID))
}

// TestPullShared: pulls of one image at one time are one, and go on as long as one wants it.
func TestPullShared(t *testing.T) {
	reg := newServer(t)
	reg.push(t, "app:1", asImage(t, sample("x")))
	inside, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg.before(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet {
			once.Do(func() { close(inside) })
			<-release
		}
		return false
	})
	s := newStore(t, nil)
	ref := reg.host + "/app:1"
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, container.PullOptions{})
		first <- err
	}()
	<-inside
	var group sync.WaitGroup
	errs := make([]error, 10)
	joined := make(chan struct{}, len(errs))
	for i := range errs {
		group.Add(1)
		go func() {
			defer group.Done()
			joined <- struct{}{}
			_, errs[i] = s.Pull(context.Background(), ref, container.PullOptions{})
		}()
	}
	for range errs {
		<-joined
	}
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.pulls {
			return p.waiters == len(errs)+1
		}
		return false
	})
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who left: %v", err)
	}
	close(release)
	group.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := reg.count("/manifests/"); n != 1 {
		t.Errorf("the manifest was fetched %d times", n)
	}
	if n := reg.count("/blobs/"); n != 3 {
		t.Errorf("%d blobs were fetched", n)
	}
	// When nobody waits any more, the pull ends.
	stuck := make(chan struct{})
	gone := make(chan struct{})
	reg.before(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		close(stuck)
		<-r.Context().Done()
		close(gone)
		return true
	})
	ctx, cancel = context.WithCancel(context.Background())
	go func() {
		_, err := s.Pull(ctx, reg.host+"/app:1", container.PullOptions{})
		first <- err
	}()
	<-stuck
	cancel()
	<-gone
	<-first
}

// TestConcurrent imports, pulls and removes images that share layers.
func TestConcurrent(t *testing.T) {
	reg := newServer(t)
	reg.push(t, "app:1", asImage(t, sample("x")))
	s := newStore(t, nil)
	data := tarOf(t, sample("local"))
	var group sync.WaitGroup
	for i := range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 5 {
				var err error
				var img container.Image
				if i%2 == 0 {
					img, err = s.Pull(context.Background(), reg.host+"/app:1", container.PullOptions{})
				} else {
					var list []container.Image
					list, err = s.Import(context.Background(), bytes.NewReader(data), container.ImportOptions{})
					if err == nil {
						img = list[0]
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Remove(context.Background(), img.ID); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	if u := s.Usage(); u.Images != 0 || u.Bytes != 0 {
		t.Errorf("%+v", u)
	}
	if len(s.layers) != 0 {
		t.Errorf("layers left: %v", s.layers)
	}
}
