package volume

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// podRequests are the requests that nodes make for the certificates of their pods (KEP-4317).
var podRequests = client.Resource[*certificatesv1.PodCertificateRequest]{Name: "podcertificaterequests.certificates.k8s.io"}

const (
	// refreshSpread keeps certificates that were issued together from being refreshed together.
	refreshSpread = 5 * time.Minute
	// refreshOverdue is how long behind its time a refresh is told of.
	refreshOverdue = 10 * time.Minute
	// issuePatience is how long Prepare waits for signers before it reports that they have not issued.
	issuePatience = 5 * time.Second
)

// errNotIssued says that a signer has not answered yet.
var errNotIssued = errors.New("credential bundle is not issued yet")

// certificatePart says which part of a certificate a file holds.
type certificatePart int

const (
	wholeBundle certificatePart = iota // the key, and behind it the chain
	keyOnly
	chainOnly
)

// certificateFile is a file of a podCertificate source, by the source's place in its volume.
type certificateFile struct {
	source int
	part   certificatePart
}

// certificateKey names a podCertificate source of a pod.
type certificateKey struct {
	volume string
	source int
}

// heldCertificate is what is known of one source. It is fresh once key and chain are there; then a pending request is
// that of a refresh.
//
//	(nothing) -> pending -> fresh -> fresh and pending -> fresh
//	                |                        |
//	                +------- refused <-------+
type heldCertificate struct {
	// key and chain are in use, in PEM. The key is a secret.
	key, chain          []byte
	refreshAt, notAfter time.Time
	// overdue and expired are set once an event has said so.
	overdue, expired bool
	pending          *pendingCertificate
	// refused is set for good when a signer denied or failed a request.
	refused error
}

// pendingCertificate is a request that its signer has not decided.
type pendingCertificate struct {
	key  []byte
	name string
	// revision is that of its creation: a snapshot as new as this that lacks it says that it was deleted.
	revision store.Revision
}

// podCertificate leaves the files of a source to be filled in.
func (in inputs) podCertificate(out payload, v *corev1.PodCertificateProjection, source int, mode int32) {
	user := commonUser(in.pod)
	if user != nil || fsGroup(in.pod) != nil {
		mode = 0o600
	}
	for _, f := range []struct {
		path string
		part certificatePart
	}{{v.CredentialBundlePath, wholeBundle}, {v.KeyPath, keyOnly}, {v.CertificateChainPath, chainOnly}} {
		if f.path != "" {
			out[f.path] = file{mode: mode, user: user, certificate: &certificateFile{source, f.part}}
		}
	}
}

// fetchCertificates fills in the files of a volume's podCertificate sources. It asks for certificates that are missing or
// due, and never waits for their signers. p.mu is held.
func (m *Manager) fetchCertificates(ctx context.Context, s store.Snapshot, p *podState, v *corev1.Volume, files payload) error {
	if v.Projected == nil {
		return nil
	}
	var errs []error
	held := map[int]*heldCertificate{}
	for i := range v.Projected.Sources {
		if v.Projected.Sources[i].PodCertificate == nil {
			continue
		}
		h, err := m.certificate(ctx, s, p, v, i)
		if err != nil {
			errs = append(errs, err)
		}
		held[i] = h
	}
	if len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	for path, f := range files {
		if f.certificate == nil {
			continue
		}
		h := held[f.certificate.source]
		switch f.certificate.part {
		case keyOnly:
			f.data = h.key
		case chainOnly:
			f.data = h.chain
		default:
			f.data = append(bytes.Clone(h.key), h.chain...)
		}
		files[path] = f
	}
	return nil
}

// certificate brings one source a step further, and says why it has no certificate if it has none.
func (m *Manager) certificate(ctx context.Context, s store.Snapshot, p *podState, v *corev1.Volume, source int) (*heldCertificate, error) {
	now := m.cfg.Now()
	key := certificateKey{v.Name, source}
	h := p.certificates[key]
	if h == nil {
		h = &heldCertificate{}
		if h.adopt(m.volumeDir(p.uid, v), v.Projected.Sources[source].PodCertificate, now) {
			m.schedule(h.refreshAt, p.uid)
		}
		p.certificates[key] = h
	}
	if h.pending != nil {
		m.settle(s, p, h)
	}
	if h.refused != nil {
		return nil, h.refused
	}
	if h.pending == nil && (h.chain == nil || !now.Before(h.refreshAt)) {
		if err := m.request(ctx, s, p, h, v.Projected.Sources[source].PodCertificate); err != nil {
			if h.chain == nil {
				return nil, err
			}
			m.schedule(now.Add(tokenRetry), p.uid)
			m.cfg.Log.Warn("certificate of a pod not refreshed", "pod", p.uid, "volume", v.Name, "err", err)
		}
	}
	m.tellAge(p, h, now)
	if h.chain == nil {
		return nil, errNotIssued
	}
	return h, nil
}

// settle looks at what became of a request.
func (m *Manager) settle(s store.Snapshot, p *podState, h *heldCertificate) {
	r, ok := podRequests.Get(s, p.pod.Namespace, h.pending.name)
	if !ok {
		if s.Revision() >= h.pending.revision {
			h.pending = nil // somebody deleted it
		}
		return
	}
	name := r.Namespace + "/" + r.Name
	for _, c := range r.Status.Conditions {
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied:
			h.refused = fmt.Errorf("PodCertificateRequest was permanently denied: reason=%q message=%q", c.Reason, c.Message)
			m.tell(p, c.Type, fmt.Sprintf("PodCertificateRequest %s was denied, reason=%q, message=%q", name, c.Reason, c.Message))
		case certificatesv1.PodCertificateRequestConditionTypeFailed:
			h.refused = fmt.Errorf("PodCertificateRequest was permanently failed: reason=%q message=%q", c.Reason, c.Message)
			m.tell(p, c.Type, fmt.Sprintf("PodCertificateRequest %s failed, reason=%q, message=%q", name, c.Reason, c.Message))
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			if r.Status.BeginRefreshAt == nil || r.Status.NotAfter == nil {
				continue // validation does not let that happen
			}
			*h = heldCertificate{key: h.pending.key, chain: certificatesOnly([]byte(r.Status.CertificateChain)),
				refreshAt: r.Status.BeginRefreshAt.Add(spread()), notAfter: r.Status.NotAfter.Time}
			m.schedule(h.refreshAt, p.uid)
			return
		default:
			continue
		}
		h.pending = nil
		return
	}
}

func spread() time.Duration { return mathrand.N(refreshSpread) }

// tell records a warning about a pod.
func (m *Manager) tell(p *podState, reason, message string) {
	if m.cfg.Warn != nil {
		m.cfg.Warn(p.pod, reason, message)
	}
}

// tellAge says once that a certificate should have been refreshed, and once that it is no longer valid.
func (m *Manager) tellAge(p *podState, h *heldCertificate, now time.Time) {
	if h.chain == nil || now.Before(h.refreshAt) {
		return
	}
	if due := h.refreshAt.Add(refreshOverdue); !h.overdue {
		if h.overdue = now.After(due); h.overdue {
			m.tell(p, "CertificateOverdueForRefresh", "PodCertificate refresh overdue")
		} else {
			m.schedule(due.Add(time.Second), p.uid)
		}
	}
	if !h.expired {
		if h.expired = now.After(h.notAfter); h.expired {
			m.tell(p, "CertificateExpired", "PodCertificate expired")
		} else {
			m.schedule(h.notAfter.Add(time.Second), p.uid)
		}
	}
}

// request makes a key and asks the signer for a certificate of it.
func (m *Manager) request(ctx context.Context, s store.Snapshot, p *podState, h *heldCertificate, v *corev1.PodCertificateProjection) error {
	if m.cfg.Certificate == nil {
		return errors.New("this node cannot request certificates for pods")
	}
	pod := p.pod
	account, ok := client.ServiceAccounts.Get(s, pod.Namespace, pod.Spec.ServiceAccountName)
	if !ok {
		return fmt.Errorf("while fetching service account: serviceaccounts %q not found", pod.Spec.ServiceAccountName)
	}
	node, ok := client.Nodes.Get(s, "", m.cfg.NodeName)
	if !ok {
		return fmt.Errorf("while getting node object from local cache: node %q not found", m.cfg.NodeName)
	}
	private, err := generateKey(v.KeyType)
	if err != nil {
		return err
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return fmt.Errorf("while generating stub PKCS#10 request: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("while marshaling key to PKCS#8: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	made, err := m.cfg.Certificate(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: v.SignerName, PodName: pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID,
			MaxExpirationSeconds: v.MaxExpirationSeconds, StubPKCS10Request: stub,
			UnverifiedUserAnnotations: v.UserAnnotations,
		},
	})
	if err != nil {
		return fmt.Errorf("while creating PodCertificateRequest: %w", err)
	}
	h.pending = &pendingCertificate{name: made.Name, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}
	if revision, err := strconv.ParseInt(made.ResourceVersion, 10, 64); err == nil {
		h.pending.revision = store.Revision(revision)
	}
	return nil
}

// generateKey makes a key of one of the types that the API names.
func generateKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("unknown key type %q", kind)
}

// certificatesOnly drops what stands between the blocks of a chain, and their headers.
func certificatesOnly(chain []byte) []byte {
	var out []byte
	for {
		var b *pem.Block
		if b, chain = pem.Decode(chain); b == nil {
			return out
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes})...)
	}
}

// adopt takes over a certificate that an earlier run of the program wrote into the volume, if it is still valid, so that a
// running pod keeps what it has. Since it is not known any more when its signer wants it refreshed, that is done soon.
func (h *heldCertificate) adopt(dir string, v *corev1.PodCertificateProjection, now time.Time) bool {
	var text []byte
	for _, path := range []string{v.CredentialBundlePath, v.KeyPath, v.CertificateChainPath} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, dataLink, filepath.FromSlash(path)))
		if err != nil {
			return false
		}
		text = append(text, data...)
		if path == v.CredentialBundlePath {
			break
		}
	}
	key, chain := pem.Decode(text)
	if key == nil || key.Type != "PRIVATE KEY" {
		return false
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !now.Before(leaf.NotAfter) {
		return false
	}
	h.key, h.chain = pem.EncodeToMemory(key), certificatesOnly(chain)
	h.refreshAt, h.notAfter = now.Add(spread()), leaf.NotAfter
	return true
}

// decided tells whether a change of a request can bring a volume further.
func decided(ev *store.Event) (types.UID, bool) {
	r, ok := ev.Entry.Object.(*certificatesv1.PodCertificateRequest)
	if !ok {
		return "", false
	}
	return r.Spec.PodUID, ev.Deleted || len(r.Status.Conditions) > 0
}
