package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/nodejoin"
)

// TestNodeRights: each path of a node's API needs the rights that upstream's needs.
func TestNodeRights(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/metrics", "get metrics"},
		{"GET", "/metrics/cadvisor", "get metrics"},
		{"GET", "/metricsx", "get proxy"},
		{"GET", "/stats/summary", "get stats"},
		{"GET", "/logs/kubelet.log", "get log"},
		{"GET", "/pods", "get pods, get proxy"},
		{"GET", "/pods/", "get pods, get proxy"},
		{"GET", "/runningpods/", "get pods, get proxy"},
		{"GET", "/healthz", "get healthz, get proxy"},
		{"GET", "/healthz/ping", "get healthz, get proxy"},
		{"GET", "/configz", "get configz, get proxy"},
		{"GET", "/containerLogs/default/a/b", "get proxy"},
		{"GET", "//metrics", "get proxy"},
		{"GET", samplePath, "get proxy"},
		{"POST", "/exec/default/a/b", "create proxy"},
		{"GET", "/exec/default/a/b", "get proxy"},
		{"PUT", "/x", "update proxy"},
		{"PATCH", "/x", "patch proxy"},
		{"DELETE", "/x", "delete proxy"},
		{"HEAD", "/pods", " pods,  proxy"},
	} {
		var got []string
		for _, a := range nodeAttributes(&http.Request{Method: c.method, URL: &url.URL{Path: c.path}}, "n") {
			if a.Resource != "nodes" || a.Name != "n" || a.Version != "v1" || a.Group != "" || a.Namespace != "" {
				t.Errorf("%s %s: %+v", c.method, c.path, a)
			}
			got = append(got, a.Verb+" "+a.Subresource)
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s %s needs %q, want %q", c.method, c.path, text, c.want)
		}
	}
}

// reviewer answers as a control plane that knows one token and one right.
type reviewer struct {
	client.Client
	user    string   // whose subresource the right is for
	allowed []string // subresources
	down    bool
	asked   int
}

func (r *reviewer) Create(_ context.Context, resource string, obj api.Object, _ client.WriteOptions) (api.Object, error) {
	r.asked++
	if r.down {
		return nil, errors.New("the control plane is down")
	}
	switch o := obj.(type) {
	case *authenticationv1.TokenReview:
		o.Status.Authenticated = o.Spec.Token == "good"
		o.Status.User.Username = "robot"
		return o, nil
	case *authorizationv1.SubjectAccessReview:
		o.Status.Allowed = o.Spec.User == r.user && slices.Contains(r.allowed, o.Spec.ResourceAttributes.Subresource)
		return o, nil
	}
	return nil, fmt.Errorf("created a %s", resource)
}

// TestWhoMayUseTheNodeAPI: nobody without a name, nobody without a right, nobody while the control plane cannot be asked, and
// administrators always.
func TestWhoMayUseTheNodeAPI(t *testing.T) {
	shown := func(name string, until time.Duration, groups ...string) *tls.ConnectionState {
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: name, Organization: groups}, NotAfter: time.Now().Add(until)}
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	}
	unverified := shown("kube-apiserver-kubelet-client", time.Hour, client.GroupMasters)
	unverified.VerifiedChains = nil
	for _, c := range []struct {
		name  string
		tls   *tls.ConnectionState
		token string
		path  string
		right []string
		down  bool
		want  int
	}{
		{name: "nobody", want: 401},
		{name: "a certificate that nobody vouches for", tls: unverified, want: 401},
		{name: "the API server without its binding", tls: shown(nodejoin.ServerUser, time.Hour), path: "/exec/a/b/c", want: 403},
		{name: "an administrator", tls: shown("admin", time.Hour, client.GroupMasters), path: "/exec/a/b/c", want: 200},
		{name: "an administrator while nobody answers", tls: shown("admin", time.Hour, client.GroupMasters), down: true, want: 200},
		{name: "a certificate of before", tls: shown("admin", -time.Hour, client.GroupMasters), want: 401},
		{name: "a certificate without a name", tls: shown("", time.Hour, client.GroupMasters), want: 401},
		{name: "another node", tls: shown("system:node:other", time.Hour, client.GroupNodes), path: "/exec/a/b/c", want: 403},
		{name: "a bad token", token: "bad", want: 401},
		{name: "a token while nobody answers", token: "good", down: true, want: 401},
		{name: "a token without a right", token: "good", path: "/metrics", want: 403},
		{name: "a token with the right", token: "good", path: "/metrics", right: []string{"metrics"}, want: 200},
		{name: "a token with another right", token: "good", path: "/exec/a/b/c", right: []string{"metrics", "pods", "log"}, want: 403},
		{name: "all of the node", token: "good", path: "/pods", right: []string{"proxy"}, want: 200},
		{name: "the list of pods", token: "good", path: "/pods", right: []string{"pods"}, want: 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			control := &reviewer{user: "robot", allowed: c.right, down: c.down}
			node := &Cluster{cfg: Config{NodeName: "n"}, client: control}
			served := false
			handler := node.guarded(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				served = true
				if r.Header.Get("Authorization") != "" {
					t.Error("the token is handed on")
				}
			}))
			path := c.path
			if path == "" {
				path = "/pods"
			}
			r := httptest.NewRequest("GET", path, nil)
			r.TLS = c.tls
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != c.want || served != (c.want == 200) {
				t.Errorf("%d %s, served: %v; want %d", w.Code, w.Body, served, c.want)
			}
		})
	}
}

// TestReviewsAreKept: for as long as kubelets keep them, failures not at all, never more than the bound, and the same question is
// asked once at a time.
func TestReviewsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reviews[int]
		asked := 0
		get := func(key byte, life time.Duration, failed error) (int, error) {
			return r.get(t.Context(), reviewKey{key}, func(context.Context) (int, time.Duration, error) {
				asked++
				time.Sleep(time.Second)
				return asked, life, failed
			})
		}
		if _, err := get(1, time.Minute, errors.New("down")); err == nil {
			t.Error("a failure is an answer")
		}
		first, _ := get(1, time.Minute, nil)
		if again, _ := get(1, time.Minute, nil); first != 2 || again != first {
			t.Errorf("%d, then %d", first, again)
		}
		time.Sleep(time.Minute)
		if later, _ := get(1, time.Minute, nil); later != 3 {
			t.Errorf("after its life: %d", later)
		}
		for range 5 {
			go get(2, time.Minute, nil)
		}
		synctest.Wait()
		if asked != 4 {
			t.Errorf("asked %d times at once", asked-3)
		}
		for i := range reviewsOfAKind + 10 {
			r.keep(reviewKey{1, byte(i), byte(i >> 8)}, review[int]{})
		}
		r.mu.Lock()
		kept := len(r.kept)
		r.mu.Unlock()
		if kept != reviewsOfAKind {
			t.Errorf("%d are kept", kept)
		}
		time.Sleep(time.Minute)
	})
}

// TestNodeAsksOnce: who calls a node's API again and again is not a load of the control plane's.
func TestNodeAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		control := &reviewer{user: "robot", allowed: []string{"metrics"}}
		node := &Cluster{cfg: Config{NodeName: "n"}, client: control}
		handler := node.guarded(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		call := func(token, path string) {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			handler.ServeHTTP(httptest.NewRecorder(), r)
		}
		for range 10 {
			call("good", "/metrics")
			call("good", "/stats/summary")
			call("bad", "/metrics")
		}
		if control.asked != 4 {
			t.Errorf("asked %d times, want 2 tokens and 2 rights", control.asked)
		}
		time.Sleep(deniedLife + time.Second)
		call("good", "/metrics")
		call("good", "/stats/summary")
		if control.asked != 5 {
			t.Errorf("asked %d times, want the denied right again", control.asked)
		}
	})
}

// signer is an authority that approves and signs after some questions.
type signer struct {
	key      *ecdsa.PrivateKey
	ca       *x509.Certificate
	life     time.Duration
	after    int // questions
	refuse   bool
	requests []*certificatesv1.CertificateSigningRequest
}

func newSigner(t *testing.T, life time.Duration) *signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &signer{key: key, ca: ca, life: life}
}

func (s *signer) Create(_ context.Context, _ string, obj api.Object, _ client.WriteOptions) (api.Object, error) {
	csr := obj.(*certificatesv1.CertificateSigningRequest)
	csr.Name = fmt.Sprintf("csr-%d", len(s.requests))
	s.requests = append(s.requests, csr)
	return csr, nil
}

func (s *signer) Get(_ context.Context, _, _, name string) (api.Object, error) {
	csr := s.requests[len(s.requests)-1].DeepCopy()
	if s.after--; s.after >= 0 {
		return csr, nil
	}
	if s.refuse {
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Reason: "No", Message: "not you"}}
		return csr, nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(len(s.requests))), Subject: request.Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(s.life)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, s.ca, request.PublicKey, s.key)
	csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return csr, err
}

// TestCertificateIsRenewed: in its time, again five minutes after a failure, kept on disk, and each with a key of its own.
func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const life = 100 * time.Hour
		s := newSigner(t, life)
		keys := &nodeKeys{dir: dir, node: "n"}
		ctx, cancel := context.WithCancel(t.Context())
		s.after = 3
		if err := keys.renew(ctx, s); err != nil {
			t.Fatal(err)
		}
		first := keys.certificate()
		if cn := first.Leaf.Subject.CommonName; cn != "system:node:n" {
			t.Fatalf("it is for %s", cn)
		}
		var tries []time.Time
		done := make(chan error, 1)
		began := first.Leaf.NotBefore
		go func() {
			done <- keepRenewing(ctx, keys.certificate, func(ctx context.Context) error {
				tries = append(tries, time.Now())
				if len(tries) <= 2 {
					return errors.New("nobody answers")
				}
				return keys.renew(ctx, s)
			})
		}()
		time.Sleep(life)
		synctest.Wait()
		if len(tries) != 3 || tries[0].Before(began.Add(life*7/10)) || tries[0].After(began.Add(life*9/10+time.Second)) {
			t.Fatalf("tried at %v of a certificate of %v", tries, began)
		}
		for i := range 2 {
			if wait := tries[i+1].Sub(tries[i]); wait != renewalTry {
				t.Errorf("tried again after %s", wait)
			}
		}
		second := keys.certificate()
		if !second.Leaf.NotBefore.After(first.Leaf.NotBefore) || second.PrivateKey.(*ecdsa.PrivateKey).Equal(first.PrivateKey) {
			t.Error("the certificate is the old one, or its key is")
		}
		read := &nodeKeys{dir: dir, node: "n"}
		if err := read.load(time.Now()); err != nil || !read.certificate().Leaf.Equal(second.Leaf) {
			t.Errorf("read back: %v", err)
		}
		if err := (&nodeKeys{dir: dir, node: "other"}).load(time.Now()); err == nil || !strings.Contains(err.Error(), "is that of system:node:n") {
			t.Errorf("another node took it: %v", err)
		}
		late := &nodeKeys{dir: dir, node: "n"}
		if err := late.load(second.Leaf.NotAfter.Add(time.Second)); err != nil || late.certificate() != nil {
			t.Errorf("an old one was taken: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedCertificate: a refusal is told at once, and silence after a minute; the certificate of before stays.
func TestRefusedCertificate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t, time.Hour)
		keys := &nodeKeys{dir: dir, node: "n"}
		if err := keys.renew(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		before := keys.certificate()
		s.refuse = true
		if err := keys.renew(t.Context(), s); err == nil || !strings.Contains(err.Error(), "refused: No: not you") {
			t.Errorf("refused: %v", err)
		}
		s.after = 1 << 30
		began := time.Now()
		if err := keys.renew(t.Context(), s); err == nil || !strings.Contains(err.Error(), "nobody has approved it yet") || time.Since(began) != certificateTimeout {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if keys.certificate() != before {
			t.Error("the certificate of before is gone")
		}
	})
}

func TestPinnedAuthority(t *testing.T) {
	s, other := newSigner(t, time.Hour), newSigner(t, time.Hour)
	text := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	pin, err := CAHash(text(s.ca))
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(by *signer, name string) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, by.ca, &by.key.PublicKey, by.key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	good := leaf(s, apiServerName)
	if ca, err := pinnedAuthority([]*x509.Certificate{good, s.ca}, pin); err != nil || string(ca) != string(text(s.ca)) {
		t.Errorf("the right one: %v", err)
	}
	for name, shown := range map[string][]*x509.Certificate{
		"nothing":                        nil,
		"no authority":                   {good},
		"another authority":              {leaf(other, apiServerName), other.ca},
		"shown beside a stranger's":      {leaf(other, apiServerName), s.ca},
		"a certificate of somebody else": {leaf(s, "node"), s.ca},
		"the authority itself":           {s.ca},
	} {
		if _, err := pinnedAuthority(shown, pin); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
}

func TestNodeIPs(t *testing.T) {
	for _, good := range []string{"10.0.0.1", "10.0.0.1,2001:db8::1", "2001:db8::1,10.0.0.1"} {
		if got, err := parseNodeIPs(strings.Split(good, ",")); err != nil || len(got) != strings.Count(good, ",")+1 {
			t.Errorf("%s: %v, %v", good, got, err)
		}
	}
	for _, bad := range []string{"", "x", "127.0.0.1", "0.0.0.0", "224.0.0.1", "10.0.0.1,10.0.0.2", "10.0.0.1,2001:db8::1,2001:db8::2", "fe80::1%eth0"} {
		if got, err := parseNodeIPs(strings.Split(bad, ",")); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
	foreign := networkPlan{Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.177")}}
	if got, err := foreign.hosts(); err == nil {
		t.Errorf("%v is believed to be this machine's", got)
	}
}

// TestLeafOfOthersIsReplaced: a certificate on disk is used again for the same subject only. That of the API server as a client of
// nodes was an administrator's once.
func TestLeafOfOthersIsReplaced(t *testing.T) {
	now := time.Now()
	p, err := loadAuthority(t.TempDir(), "ca", "ca", now)
	if err != nil {
		t.Fatal(err)
	}
	subject := func(l leaf) (string, []byte) {
		data, _, err := p.issue(l, now)
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseCert(data)
		if err != nil {
			t.Fatal(err)
		}
		return c.Subject.String(), data
	}
	subject(leaf{name: "client", cn: nodejoin.ServerUser, orgs: []string{client.GroupMasters}})
	got, first := subject(leaf{name: "client", cn: nodejoin.ServerUser})
	if got != "CN="+nodejoin.ServerUser {
		t.Errorf("the subject is %s", got)
	}
	if _, again := subject(leaf{name: "client", cn: nodejoin.ServerUser}); string(again) != string(first) {
		t.Error("a good certificate was replaced")
	}
}
