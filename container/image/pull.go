package image

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"coracle.dev/coracle/container"
)

const (
	// parallelLayers is how many layers of one image are fetched at once.
	parallelLayers = 3
	// stallTimeout ends a pull that receives nothing for so long.
	stallTimeout = 2 * time.Minute
	// progressEvery spaces progress reports.
	progressEvery = 100 * time.Millisecond
)

// pull is one pull under way, shared by all who ask for the same.
type pull struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	reports map[int]func(container.Progress)
	next    int
	image   container.Image
	err     error
}

// Pull implements container.Images.
func (s *Store) Pull(ctx context.Context, ref string, o container.PullOptions) (container.Image, error) {
	parsed, err := ParseReference(ref)
	if err != nil {
		return container.Image{}, &container.PullError{Ref: ref, Kind: container.PullInvalidName, Err: err}
	}
	p, id := s.join(parsed, o)
	defer s.leave(p, id)
	select {
	case <-p.done:
		return p.image, p.err
	case <-ctx.Done():
		return container.Image{}, &container.PullError{Ref: ref, Kind: container.PullOther, Err: context.Cause(ctx)}
	}
}

// pullKey says which pulls are the same: one reference and the same credentials.
func pullKey(ref Reference, auths []container.Auth) string {
	data, _ := json.Marshal(auths)
	sum := sha256.Sum256(data)
	return ref.String() + " " + string(sum[:])
}

// join enters a pull under way or begins one.
func (s *Store) join(ref Reference, o container.PullOptions) (*pull, int) {
	key := pullKey(ref, o.Auths)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pulls[key]
	if p == nil {
		ctx, cancel := context.WithCancel(context.Background())
		p = &pull{done: make(chan struct{}), cancel: cancel, reports: map[int]func(container.Progress){}}
		s.pulls[key] = p
		go func() {
			img, err := s.pull(ctx, ref, o.Auths, s.reporter(p))
			s.mu.Lock()
			p.image, p.err = img, err
			if s.pulls[key] == p {
				delete(s.pulls, key)
			}
			s.mu.Unlock()
			cancel()
			close(p.done)
		}()
	}
	p.next++
	p.waiters++
	if o.Progress != nil {
		p.reports[p.next] = o.Progress
	}
	return p, p.next
}

// leave drops a waiter; the last one takes the pull along.
func (s *Store) leave(p *pull, id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(p.reports, id)
	if p.waiters--; p.waiters > 0 {
		return
	}
	p.cancel()
	for key, other := range s.pulls {
		if other == p {
			delete(s.pulls, key)
		}
	}
}

func (s *Store) reporter(p *pull) func(container.Progress) {
	return func(pr container.Progress) {
		s.mu.Lock()
		var to []func(container.Progress)
		for _, f := range p.reports {
			to = append(to, f)
		}
		s.mu.Unlock()
		for _, f := range to {
			f(pr)
		}
	}
}

// endpoint is one place to get an image from.
type endpoint struct {
	repo   string // host/path as the registry library wants it
	opts   []name.Option
	mirror bool
}

// endpoints lists mirrors first.
func (s *Store) endpoints(ref Reference) []endpoint {
	var out []endpoint
	for _, m := range slices.Concat(s.mirrors[ref.Registry()], s.mirrors[Everywhere]) {
		e := endpoint{mirror: true}
		rest, plain := strings.CutPrefix(m, "http://")
		if plain {
			e.opts = append(e.opts, name.Insecure)
		}
		rest = strings.Trim(strings.TrimPrefix(rest, "https://"), "/")
		e.repo = rest + "/" + ref.Repository()
		out = append(out, e)
	}
	host := ref.Registry()
	direct := endpoint{}
	if s.plain[host] || onLoopback(host) {
		direct.opts = append(direct.opts, name.Insecure)
	}
	if host == "docker.io" {
		host = name.DefaultRegistry
	}
	direct.repo = host + "/" + ref.Repository()
	return append(out, direct)
}

func onLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (e endpoint) reference(ref Reference) (name.Reference, error) {
	if ref.Digest != "" {
		return name.NewDigest(e.repo+"@"+ref.Digest, e.opts...)
	}
	return name.NewTag(e.repo+":"+ref.Tag, e.opts...)
}

// pull tries every endpoint with every credential.
func (s *Store) pull(ctx context.Context, ref Reference, auths []container.Auth, report func(container.Progress)) (container.Image, error) {
	var last error
	for _, e := range s.endpoints(ref) {
		target, err := e.reference(ref)
		if err != nil {
			return container.Image{}, &container.PullError{Ref: ref.String(), Kind: container.PullInvalidName, Err: err}
		}
		img, err := s.pullFrom(ctx, ref, target, auths, report)
		if err == nil {
			return img, nil
		}
		if e.mirror {
			s.log.Warn("pulling from a mirror failed", "image", ref.String(), "mirror", e.repo, "error", err)
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	return container.Image{}, &container.PullError{Ref: ref.String(), Kind: classify(last), Err: last}
}

func classify(err error) container.PullErrorKind {
	var te *transport.Error
	var ne net.Error
	switch {
	case errors.As(err, &te):
		switch te.StatusCode {
		case http.StatusNotFound:
			return container.PullNotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			return container.PullUnauthorized
		}
		if te.StatusCode >= 500 || te.StatusCode == http.StatusTooManyRequests {
			return container.PullUnavailable
		}
	case errors.Is(err, errDamaged):
		return container.PullDamaged
	case errors.As(err, &ne), errors.Is(err, context.DeadlineExceeded):
		return container.PullUnavailable
	}
	return container.PullOther
}

var errDamaged = errors.New("content does not match its digest")

func (s *Store) pullFrom(ctx context.Context, ref Reference, target name.Reference, auths []container.Auth, report func(container.Progress)) (container.Image, error) {
	var last error
	for _, auth := range authenticators(auths) {
		desc, err := remote.Get(target, s.remoteOptions(ctx, auth)...)
		if err == nil {
			return s.fetch(ctx, ref, desc, report)
		}
		last = err
		var te *transport.Error
		if !errors.As(err, &te) || (te.StatusCode != http.StatusUnauthorized && te.StatusCode != http.StatusForbidden) {
			return container.Image{}, err
		}
	}
	return container.Image{}, last
}

func authenticators(auths []container.Auth) []authn.Authenticator {
	var out []authn.Authenticator
	for _, a := range auths {
		out = append(out, authn.FromConfig(authn.AuthConfig{
			Username: a.Username, Password: a.Password, Auth: a.Auth,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}))
	}
	return append(out, authn.Anonymous)
}

func (s *Store) remoteOptions(ctx context.Context, auth authn.Authenticator) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(roundTripper()),
		remote.WithPlatform(gcr.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Steps: 2}),
		remote.WithUserAgent("coracle"),
	}
}

var roundTripper = sync.OnceValue(func() http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConns:          8,
		ForceAttemptHTTP2:     true,
	}
})

// fetch gets an image's layers side by side, unpacks them in order, and records the image.
func (s *Store) fetch(ctx context.Context, ref Reference, desc *remote.Descriptor, report func(container.Progress)) (container.Image, error) {
	img, err := desc.Image()
	if err != nil {
		return container.Image{}, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return container.Image{}, err
	}
	if len(config) > maxMetadata {
		return container.Image{}, errors.New("the image's configuration is too large")
	}
	layers, err := img.Layers()
	if err != nil {
		return container.Image{}, err
	}
	conf, err := parseConfig(config)
	if err != nil {
		return container.Image{}, err
	}
	if len(conf.RootFS.DiffIDs) != len(layers) {
		return container.Image{}, fmt.Errorf("%w: %d layers and %d layer digests", errDamaged, len(layers), len(conf.RootFS.DiffIDs))
	}
	d := s.newDownload(ctx, layers, chainIDs(conf.RootFS.DiffIDs), report)
	defer d.close()
	digests := []string{ref.Name + "@" + desc.Digest.String()}
	var names []string
	if ref.Digest == "" {
		names = []string{ref.String()}
	}
	return s.add(ctx, content{config: config, layers: len(layers), layer: d.open, done: d.layerDone, skipped: d.layerDone}, names, digests, false)
}

// download fetches layers into files while earlier ones are being unpacked.
type download struct {
	ctx    context.Context
	cancel context.CancelFunc
	dir    string
	group  sync.WaitGroup
	ready  []chan struct{}
	files  []*os.File
	errs   []error

	mu     sync.Mutex
	pr     container.Progress
	last   time.Time
	report func(container.Progress)
}

func (s *Store) newDownload(ctx context.Context, layers []gcr.Layer, chains []string, report func(container.Progress)) *download {
	d := &download{
		dir: filepath.Join(s.dir, "tmp"), ready: make([]chan struct{}, len(layers)),
		files: make([]*os.File, len(layers)), errs: make([]error, len(layers)), report: report,
	}
	d.ctx, d.cancel = context.WithCancel(ctx)
	d.pr.Layers = len(layers)
	var want []int
	for i, l := range layers {
		d.ready[i] = make(chan struct{})
		if s.has(chains[i]) {
			d.errs[i] = errors.New("the layer was removed during the pull; try again")
			close(d.ready[i])
			continue
		}
		if size, err := l.Size(); err == nil {
			d.pr.Total += size
		}
		want = append(want, i)
	}
	queue := make(chan int, len(want))
	for _, i := range want {
		queue <- i
	}
	close(queue)
	for range min(parallelLayers, len(want)) {
		d.group.Add(1)
		go func() {
			defer d.group.Done()
			for i := range queue {
				d.files[i], d.errs[i] = d.get(layers[i])
				close(d.ready[i])
			}
		}()
	}
	return d
}

// get fetches one layer into a file without a name. The registry library verifies its digest at the end.
func (d *download) get(l gcr.Layer) (*os.File, error) {
	if err := d.ctx.Err(); err != nil {
		return nil, err
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	f, err := os.CreateTemp(d.dir, "blob-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	stalled := time.AfterFunc(stallTimeout, func() { rc.Close() })
	defer stalled.Stop()
	_, err = io.Copy(f, &tapReader{rc, func(n int) {
		stalled.Reset(stallTimeout)
		d.advance(n)
	}})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		if strings.Contains(err.Error(), "error verifying") {
			err = fmt.Errorf("%w: %w", errDamaged, err)
		}
		return nil, err
	}
	return f, nil
}

type tapReader struct {
	r   io.Reader
	tap func(int)
}

func (t *tapReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		t.tap(n)
	}
	return n, err
}

func (d *download) advance(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pr.Done += int64(n)
	if now := time.Now(); now.Sub(d.last) >= progressEvery {
		d.last = now
		d.report(d.pr)
	}
}

func (d *download) layerDone(int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pr.LayersDone++
	d.report(d.pr)
}

// open waits for a layer and hands out its file.
func (d *download) open(ctx context.Context, i int) (io.ReadCloser, error) {
	select {
	case <-d.ready[i]:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if d.errs[i] != nil {
		return nil, d.errs[i]
	}
	return io.NopCloser(d.files[i]), nil
}

// close ends what is under way and gives up the files.
func (d *download) close() {
	d.cancel()
	d.group.Wait()
	for _, f := range d.files {
		if f != nil {
			f.Close()
		}
	}
}
