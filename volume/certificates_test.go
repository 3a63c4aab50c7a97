package volume

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// signerRig is a rig with a signer: requests arrive in order, and the test answers them.
type signerRig struct {
	*rig
	ca       *x509.Certificate
	key      *ecdsa.PrivateKey
	requests chan *certificatesv1.PodCertificateRequest
	count    int
}

func newSignerRig(t testing.TB) *signerRig {
	account := &corev1.ServiceAccount{ObjectMeta: meta("default", "robot")}
	account.UID = "account"
	node := &corev1.Node{ObjectMeta: meta("", "node-a")}
	node.UID = "node"
	s := &signerRig{rig: newRig(t, node), requests: make(chan *certificatesv1.PodCertificateRequest, 16)}
	s.commit("serviceaccounts", account)
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.ca = &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(1000 * time.Hour)}
	s.again()
	return s
}

// again starts over with a manager that remembers nothing.
func (s *signerRig) again() {
	s.restart()
	s.Manager.cfg.Certificate = func(_ context.Context, r *certificatesv1.PodCertificateRequest) (*certificatesv1.PodCertificateRequest, error) {
		s.mu.Lock()
		s.count++
		r.Name = fmt.Sprintf("%s%d", r.GenerateName, s.count)
		s.mu.Unlock()
		r.ResourceVersion = fmt.Sprint(s.commit(podRequests.Name, r))
		s.requests <- r
		return r, nil
	}
}

func (s *signerRig) commit(resource string, o api.Object) store.Revision {
	key := store.Key{Resource: resource, Namespace: o.GetNamespace(), Name: o.GetName()}
	revision, _, err := s.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: o, Expect: store.ExpectAny}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return revision
}

// await takes from a channel, and lets the clock's timers go off that were set late.
func await[T any](s *signerRig, c <-chan T) T {
	deadline := time.After(20 * time.Second)
	for {
		select {
		case v := <-c:
			return v
		case <-time.After(time.Millisecond):
			s.advance(0)
		case <-deadline:
			panic("nothing comes")
		}
	}
}

func (s *signerRig) next() *certificatesv1.PodCertificateRequest { return await(s, s.requests) }
func (s *signerRig) said() string                                { return await(s, s.warns) }

// answer issues a certificate for two hours from the rig's now on, to be refreshed after one.
func (s *signerRig) answer(r *certificatesv1.PodCertificateRequest, serial int64) {
	s.t.Helper()
	stub, err := x509.ParseCertificateRequest(r.Spec.StubPKCS10Request)
	if err != nil || stub.CheckSignature() != nil {
		s.t.Fatal("no proof of possession", err)
	}
	s.mu.Lock()
	from := s.now
	s.mu.Unlock()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: from.Add(2 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, s.ca, stub.PublicKey, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	r = r.DeepCopy()
	begin, until, refresh := metav1.NewTime(from), metav1.NewTime(leaf.NotAfter), metav1.NewTime(from.Add(time.Hour))
	r.Status = certificatesv1.PodCertificateRequestStatus{NotBefore: &begin, NotAfter: &until, BeginRefreshAt: &refresh,
		CertificateChain: "a remark\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: der})),
		Conditions:       []metav1.Condition{{Type: certificatesv1.PodCertificateRequestConditionTypeIssued, Status: metav1.ConditionTrue}}}
	s.commit(podRequests.Name, r)
}

// serial gives the serial number of the certificate in a bundle, once its key fits.
func serial(t *testing.T, text string) int64 {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

const certificateVolume = `[{name: tls, projected: {sources: [{podCertificate: {signerName: example.com/s, keyType: %s,
  credentialBundlePath: bundle.pem, keyPath: own/key, certificateChainPath: own/chain, userAnnotations: {a/b: c}}}]}}]`

func certificatePod(t *testing.T, keyType string) *corev1.Pod {
	pod := podWith(t, fmt.Sprintf(certificateVolume, keyType))
	return pod
}

func TestPodCertificate(t *testing.T) {
	s := newSignerRig(t)
	s.run()
	pod := certificatePod(t, "ECDSAP256")
	go func() { s.answer(s.next(), 1) }()
	m := s.prepare(pod)["tls"]
	bundle := read(t, m, "bundle.pem")
	if bundle != read(t, m, "own/key")+read(t, m, "own/chain") || serial(t, bundle) != 1 || strings.Contains(bundle, "remark") || strings.Contains(bundle, "a: b") {
		t.Errorf("the bundle is %s", bundle)
	}

	// Its time comes: a second one is asked for, and the first stays until that is there.
	s.advance(time.Hour + refreshSpread)
	second := s.next()
	if read(t, m, "bundle.pem") != bundle {
		t.Error("the certificate went before the next was there")
	}
	s.answer(second, 2)
	waitSerial(t, m, 2)

	// One that is deleted is asked for again; one that is late is told of.
	s.advance(time.Hour + refreshSpread)
	third := s.next()
	discard(t, s, third)
	fourth := s.next()
	for want, d := range map[string]time.Duration{"PodCertificate refresh overdue": refreshOverdue + refreshSpread} {
		s.advance(d)
		if got := s.said(); got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	}
	s.advance(2 * time.Hour)
	if got := s.said(); got != "PodCertificate expired" {
		t.Errorf("said %q", got)
	}
	s.answer(fourth, 4)
	waitSerial(t, m, 4)
}

// discard deletes a request.
func discard(t *testing.T, s *signerRig, r *certificatesv1.PodCertificateRequest) {
	t.Helper()
	key := store.Key{Resource: podRequests.Name, Namespace: r.Namespace, Name: r.Name}
	if _, _, err := s.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
}

// waitSerial waits until the bundle has a certificate.
func waitSerial(t *testing.T, m Mount, want int64) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for serial(t, read(t, m, "bundle.pem")) != want {
		if time.Now().After(deadline) {
			t.Fatalf("certificate %d does not come", want)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestPodCertificateSurvivesARestart(t *testing.T) {
	s := newSignerRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	pod := certificatePod(t, "ED25519")
	go func() { s.answer(s.next(), 1) }()
	m := s.prepare(pod)["tls"]
	cancel()
	<-done

	s.again()
	if got := s.prepare(pod)["tls"]; got != m || serial(t, read(t, m, "bundle.pem")) != 1 || len(s.requests) > 0 {
		t.Error("the certificate was lost")
	}
	s.run()
	s.advance(refreshSpread)
	s.answer(s.next(), 2)
	waitSerial(t, m, 2)

	// What has expired is of no use.
	s.advance(3 * time.Hour)
	for len(s.requests) > 0 {
		<-s.requests
	}
	s.again()
	if _, err := s.prepareOnce(pod); !errors.Is(err, errNotIssued) {
		t.Errorf("an expired certificate was taken over: %v", err)
	}
}

// prepareOnce prepares a pod without patience.
func (s *signerRig) prepareOnce(pod *corev1.Pod) (map[string]Mount, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Prepare(ctx, pod)
}

func TestPodCertificateRefused(t *testing.T) {
	for _, end := range []string{certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed} {
		t.Run(end, func(t *testing.T) {
			s := newSignerRig(t)
			s.run()
			pod := certificatePod(t, "ECDSAP384")
			go func() {
				r := s.next().DeepCopy()
				r.Status.Conditions = []metav1.Condition{{Type: end, Status: metav1.ConditionTrue, Reason: "No", Message: "never"}}
				s.commit(podRequests.Name, r)
			}()
			_, err := s.Prepare(context.Background(), pod)
			want := fmt.Sprintf(`MountVolume.SetUp failed for volume "tls" : PodCertificateRequest was permanently %s: reason="No" message="never"`, strings.ToLower(end))
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if said := s.said(); !strings.HasPrefix(said, "PodCertificateRequest default/req-1 ") || !strings.HasSuffix(said, `, reason="No", message="never"`) {
				t.Errorf("said %q", said)
			}
			if _, err := s.prepareOnce(pod); err == nil || err.Error() != want || len(s.requests) > 0 {
				t.Errorf("asked again: %v", err)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	for kind, want := range map[string]string{"RSA3072": "RSA", "ECDSAP256": "ECDSA", "ECDSAP384": "ECDSA", "ECDSAP521": "ECDSA", "ED25519": "Ed25519"} {
		key, err := generateKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := x509.ParseCertificateRequest(der); err != nil || r.CheckSignature() != nil || r.PublicKeyAlgorithm.String() != want {
			t.Errorf("%s: %v %v", kind, r.PublicKeyAlgorithm, err)
		}
	}
	if _, err := generateKey("DSA"); err == nil {
		t.Error("an unknown type made a key")
	}
}

// BenchmarkPodCertificate is a pod's volume from nothing to a certificate in its files, with a signer that answers at once.
func BenchmarkPodCertificate(b *testing.B) {
	for _, kind := range []string{"ECDSAP256", "ED25519", "RSA3072"} {
		b.Run(kind, func(b *testing.B) {
			s := newSignerRig(b)
			s.run()
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for {
					select {
					case r := <-s.requests:
						s.answer(r, 1)
					case <-stop:
						return
					}
				}
			}()
			b.ResetTimer()
			for i := range b.N {
				pod := &corev1.Pod{ObjectMeta: meta("default", fmt.Sprintf("p%d", i))}
				pod.UID = types.UID(pod.Name)
				pod.Spec.ServiceAccountName = "robot"
				pod.Spec.Containers = []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "tls", MountPath: "/tls"}}}}
				pod.Spec.Volumes = []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
					Sources: []corev1.VolumeProjection{{PodCertificate: &corev1.PodCertificateProjection{
						SignerName: "example.com/s", KeyType: kind, CredentialBundlePath: "b"}}}}}}}
				if _, err := s.Prepare(context.Background(), pod); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
