package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func authority(t *testing.T, until time.Time) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: until.Add(-20 * 365 * 24 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &Authority{Certificate: ca, Key: key}
}

// asking makes a request for a signer with usages.
func asking(t *testing.T, name, signer string, r x509.CertificateRequest, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer, Usages: usages, Username: "system:node:n"}}
}

func node(change func(*x509.CertificateRequest)) x509.CertificateRequest {
	r := x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes"}}}
	if change != nil {
		change(&r)
	}
	return r
}

func approve(csr *certificatesv1.CertificateSigningRequest) {
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", LastUpdateTime: metav1.Now()})
}

func TestWhatSignersAllow(t *testing.T) {
	const (
		client  = certificatesv1.UsageClientAuth
		server  = certificatesv1.UsageServerAuth
		digital = certificatesv1.UsageDigitalSignature
		key     = certificatesv1.UsageKeyEncipherment
	)
	uri, _ := url.Parse("spiffe://a/b")
	address := func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }
	for i, c := range []struct {
		signer  string
		request x509.CertificateRequest
		usages  []certificatesv1.KeyUsage
		want    string
	}{
		{"kube-apiserver-client", node(nil), []certificatesv1.KeyUsage{client}, ""},
		{"kube-apiserver-client", node(nil), []certificatesv1.KeyUsage{client, server}, "invalid usage for client certificate: server auth"},
		{"kube-apiserver-client", node(nil), []certificatesv1.KeyUsage{digital}, "missing required usage for client certificate: client auth"},
		{"kube-apiserver-client-kubelet", node(nil), []certificatesv1.KeyUsage{client, digital}, ""},
		{"kube-apiserver-client-kubelet", node(nil), []certificatesv1.KeyUsage{client, digital, key}, ""},
		{"kube-apiserver-client-kubelet", node(nil), []certificatesv1.KeyUsage{client}, "usages did not match [client auth digital signature key encipherment]"},
		{"kube-apiserver-client-kubelet", node(func(r *x509.CertificateRequest) { r.Subject.CommonName = "n" }), []certificatesv1.KeyUsage{client, digital}, "subject common name does not begin with system:node:"},
		{"kube-apiserver-client-kubelet", node(func(r *x509.CertificateRequest) { r.Subject.Organization = nil }), []certificatesv1.KeyUsage{client, digital}, "subject organization is not system:nodes"},
		{"kube-apiserver-client-kubelet", node(func(r *x509.CertificateRequest) { r.DNSNames = []string{"a"} }), []certificatesv1.KeyUsage{client, digital}, "DNS subjectAltNames are not allowed"},
		{"kube-apiserver-client-kubelet", node(address), []certificatesv1.KeyUsage{client, digital}, "IP subjectAltNames are not allowed"},
		{"kubelet-serving", node(address), []certificatesv1.KeyUsage{server, digital}, ""},
		{"kubelet-serving", node(nil), []certificatesv1.KeyUsage{server, digital}, "DNS or IP subjectAltName is required"},
		{"kubelet-serving", node(func(r *x509.CertificateRequest) { address(r); r.URIs = []*url.URL{uri} }), []certificatesv1.KeyUsage{server, digital}, "URI subjectAltNames are not allowed"},
		{"kubelet-serving", node(func(r *x509.CertificateRequest) { address(r); r.EmailAddresses = []string{"a@b.c"} }), []certificatesv1.KeyUsage{server, digital}, "Email subjectAltNames are not allowed"},
		{"kubelet-serving", node(address), []certificatesv1.KeyUsage{client, digital}, "usages did not match [digital signature key encipherment server auth]"},
		{"legacy-unknown", x509.CertificateRequest{}, []certificatesv1.KeyUsage{certificatesv1.UsageCodeSigning}, ""},
	} {
		err := signers["kubernetes.io/"+c.signer](&c.request, c.usages)
		if got := fmt.Sprint(err); (err == nil) != (c.want == "") || err != nil && got != c.want {
			t.Errorf("%d %s: got %q, want %q", i, c.signer, got, c.want)
		}
	}
}

// TestLives: for any asked time and any end of the authority, what is issued begins five minutes ago, lives as long as asked
// between ten minutes and the most, and never longer than the authority.
func TestLives(t *testing.T) {
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for range 200 {
		end := now.Add(time.Duration(1+r.Int64N(1000*24)) * time.Hour)
		a := authority(t, end)
		seconds := int32(r.Int64N(500 * 24 * 3600))
		csr := asking(t, "x", certificatesv1.KubeAPIServerClientSignerName, node(nil), certificatesv1.UsageClientAuth)
		csr.Spec.ExpirationSeconds = &seconds
		approve(csr)
		plan, err := a.plan(csr, now)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(plan.Writes[0].Object.(*certificatesv1.CertificateSigningRequest).Status.Certificate)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil || leaf.CheckSignatureFrom(a.Certificate) != nil {
			t.Fatal(err)
		}
		want := now.Add(min(max(time.Duration(seconds)*time.Second, 10*time.Minute), DefaultLife))
		if want.Sub(now) >= 8*time.Hour {
			want = want.Add(-5 * time.Minute)
		}
		if want.After(end) {
			want = end
		}
		if !leaf.NotAfter.Equal(want) || !leaf.NotBefore.Equal(now.Add(-5*time.Minute)) || leaf.IsCA || leaf.KeyUsage != 0 {
			t.Fatalf("asked %ds with the authority until %v: %v to %v", seconds, end, leaf.NotBefore, leaf.NotAfter)
		}
	}
	expired := authority(t, now)
	csr := asking(t, "x", certificatesv1.KubeAPIServerClientSignerName, node(nil), certificatesv1.UsageClientAuth)
	approve(csr)
	if _, err := expired.plan(csr, now); err == nil {
		t.Error("an authority that has expired signs")
	}
}

func TestRequestsAreApprovedSignedAndRemoved(t *testing.T) {
	allowed := map[string]bool{}
	a := authority(t, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC))
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		const kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
		usages := []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature}
		h.Create(client.CertificateRequests.Name, asking(t, "node", kubelet, node(nil), usages...))
		h.Create(client.CertificateRequests.Name, asking(t, "other", "example.com/signer", node(nil), usages...))
		h.Create(client.CertificateRequests.Name, asking(t, "bad", certificatesv1.KubeletServingSignerName, node(nil), certificatesv1.UsageServerAuth))
		h.Settle()
		get := func(name string) *certificatesv1.CertificateSigningRequest {
			return reconciletest.Get(h, client.CertificateRequests, "", name)
		}
		if n := len(get("node").Status.Conditions); n != 0 {
			t.Fatal("approved without a right")
		}
		// A role is bound: the request that waits is decided.
		allowed["selfnodeclient"] = true
		h.Create(client.ClusterRoleBindings.Name, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "nodes"},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "x"}})
		h.Settle()
		if csr := get("node"); len(csr.Status.Certificate) == 0 || csr.Status.Conditions[0].Message != "Auto approving self kubelet client certificate after SubjectAccessReview." {
			t.Errorf("the node's request is %v", csr.Status.Conditions)
		}
		for _, name := range []string{"other", "bad"} {
			reconciletest.Change(h, client.CertificateRequests, "", name, "approval", approve)
		}
		h.Settle()
		if csr := get("other"); len(csr.Status.Certificate) > 0 || has(csr, certificatesv1.CertificateFailed) {
			t.Error("a foreign signer's request was touched")
		}
		if csr := get("bad"); len(csr.Status.Certificate) > 0 || !has(csr, certificatesv1.CertificateFailed) {
			t.Error("what the signer does not allow did not fail")
		}
		stub, _ := pem.Decode(get("node").Spec.Request)
		h.Create(podRequests.Name, &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "r"},
			Spec: certificatesv1.PodCertificateRequestSpec{SignerName: "example.com/s", PodName: "p", PodUID: "p", ServiceAccountName: "a", ServiceAccountUID: "a",
				NodeName: "n", NodeUID: "n", StubPKCS10Request: stub.Bytes}})
		h.Advance(14 * time.Minute)
		reconciletest.Get(h, podRequests, "default", "r")
		h.Advance(2 * time.Minute)
		if left := reconciletest.All(h, podRequests, "default"); len(left) != 0 {
			t.Error("the pod's request is still there after a quarter of an hour")
		}
		h.Advance(25 * time.Hour)
		if left := reconciletest.All(h, client.CertificateRequests, ""); len(left) != 1 || left[0].Name != "node" {
			// The condition of "node" has no time here, which the server's admission would set; its certificate is good for a year.
			names := ""
			for _, l := range left {
				names += " " + l.Name
			}
			t.Errorf("left are%s", names)
		}
	}, Loops(Config{Authority: a, Allowed: func(_ client.User, s string) bool { return allowed[s] }, ServingCA: a.Certificate.Raw})...)
}

func TestEnds(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC))
	with := func(certificate string, types ...certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequest {
		csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: at}}
		csr.Status.Certificate = []byte(certificate)
		for _, c := range types {
			csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: c, LastUpdateTime: at})
		}
		return csr
	}
	for name, c := range map[string]struct {
		csr  *certificatesv1.CertificateSigningRequest
		want time.Duration
	}{
		"pending":  {with(""), 24 * time.Hour},
		"approved": {with("", certificatesv1.CertificateApproved), 24 * time.Hour},
		"issued":   {with("x", certificatesv1.CertificateApproved), time.Hour},
		"denied":   {with("", certificatesv1.CertificateDenied), time.Hour},
		"failed":   {with("", certificatesv1.CertificateApproved, certificatesv1.CertificateFailed), time.Hour},
	} {
		if got := requestEnd(c.csr).Sub(at.Time); got != c.want {
			t.Errorf("%s: removed after %v, want %v", name, got, c.want)
		}
	}
}

func TestTheServingAuthorityIsPublished(t *testing.T) {
	old := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes.io:kube-apiserver-serving:old"},
		Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: servingSigner, TrustBundle: "OLD"}}
	foreign := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: "F"}}
	ca := authority(t, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)).Certificate
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	old.Spec.TrustBundle, foreign.Spec.TrustBundle = string(text), string(text)
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create(trustBundles.Name, old)
		h.Create(trustBundles.Name, foreign)
		h.Settle()
		ours := 0
		for _, b := range reconciletest.All(h, trustBundles, "") {
			if b.Name == old.Name {
				t.Error("the earlier bundle is still there")
			}
			if b.Spec.SignerName == servingSigner && b.Spec.TrustBundle == string(text) {
				ours++
			}
		}
		if ours != 1 {
			t.Errorf("%d bundles are published", ours)
		}
	}, publisher(text))
}
