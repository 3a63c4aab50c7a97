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
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
)

// certificateTimeout bounds how long a certificate is waited for.
const certificateTimeout = time.Minute

// requester is what signing requests are made with.
type requester interface {
	Create(ctx context.Context, resource string, obj api.Object, opts client.WriteOptions) (api.Object, error)
	Get(ctx context.Context, resource, namespace, name string) (api.Object, error)
}

// nodeKeys keeps the certificate with which a node reaches the API, in <data-dir>/agent/client.pem: certificate and key
// in one file, so that they change together.
type nodeKeys struct {
	dir, node string
	kept      atomic.Pointer[tls.Certificate]
}

func (k *nodeKeys) certificate() *tls.Certificate { return k.kept.Load() }

func (k *nodeKeys) path() string { return filepath.Join(k.dir, "client.pem") }

// load reads the certificate if there is one that is good, and this node's.
func (k *nodeKeys) load(now time.Time) error {
	data, err := os.ReadFile(k.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return fmt.Errorf("%w: %s: %w: remove it and join again with a token", ErrDamaged, k.path(), err)
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return err
	}
	if name := pair.Leaf.Subject.CommonName; name != nodeUser(k.node) {
		return fmt.Errorf("the data directory is that of %s: give the --node-name that it had, or another --data-dir", name)
	}
	if now.Before(pair.Leaf.NotAfter) {
		k.kept.Store(&pair)
	}
	return nil
}

func nodeUser(node string) string { return "system:node:" + node }

// renew asks for a new certificate and keeps it.
func (k *nodeKeys) renew(ctx context.Context, api requester) error {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: nodeUser(k.node), Organization: []string{client.GroupNodes}}}
	pair, text, err := requestCertificate(ctx, api, certificatesv1.KubeAPIServerClientKubeletSignerName, template, certificatesv1.UsageClientAuth)
	if err != nil {
		return err
	}
	if err := writeFile(k.path(), text, 0o600); err != nil {
		return err
	}
	k.kept.Store(pair)
	return nil
}

// requestCertificate makes a key, has it signed, and returns both, in PEM too.
func requestCertificate(ctx context.Context, c requester, signer string, template *x509.CertificateRequest, use certificatesv1.KeyUsage) (*tls.Certificate, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, certificateTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, err
	}
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer,
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			Usages:  []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, use}}}
	made, err := c.Create(ctx, client.CertificateRequests.Name, csr, client.WriteOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	signed, err := awaitCertificate(ctx, c, made.GetName())
	if err != nil {
		return nil, nil, err
	}
	private, err := keyPEM(key)
	if err != nil {
		return nil, nil, err
	}
	text := append(append([]byte{}, signed...), private...)
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, nil, err
	}
	pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	return &pair, text, err
}

// awaitCertificate asks for a request until it is decided. There are few, and a watch would be one more right.
func awaitCertificate(ctx context.Context, c requester, name string) ([]byte, error) {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		obj, err := c.Get(ctx, client.CertificateRequests.Name, "", name)
		if err == nil {
			csr := obj.(*certificatesv1.CertificateSigningRequest)
			for _, condition := range csr.Status.Conditions {
				if condition.Type == certificatesv1.CertificateDenied || condition.Type == certificatesv1.CertificateFailed {
					return nil, fmt.Errorf("the certificate request %s was refused: %s: %s", name, condition.Reason, condition.Message)
				}
			}
			if len(csr.Status.Certificate) > 0 {
				return csr.Status.Certificate, nil
			}
			err = errors.New("nobody has approved it yet")
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the certificate request %s was not signed: %w", name, err)
		case <-time.After(wait):
		}
	}
}

// renewAt is when a certificate is replaced: between 70 and 90 percent of its life, as kubelets do.
func renewAt(leaf *x509.Certificate, random float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(float64(life) * (0.7 + 0.2*random)))
}

// renewalTry is how long after a failure a certificate is asked for again.
const renewalTry = 5 * time.Minute

// renewClientCertificate replaces the node's certificate when its time comes, until ctx is done.
func (c *Cluster) renewClientCertificate(ctx context.Context) error {
	return keepRenewing(ctx, c.agent.keys.certificate, func(ctx context.Context) error {
		if c.agent.client == nil {
			return errors.New("the API is not connected yet")
		}
		err := c.agent.keys.renew(ctx, c.agent.client)
		if err != nil {
			c.log.Warn("the node's certificate could not be renewed", "error", err)
			return err
		}
		c.agent.client.Renew()
		c.log.Info("the node's certificate was renewed", "until", c.agent.keys.certificate().Leaf.NotAfter)
		return nil
	})
}

// keepRenewing calls renew whenever the present certificate grows old, and after a failure until it succeeds.
func keepRenewing(ctx context.Context, present func() *tls.Certificate, renew func(context.Context) error) error {
	for {
		wait := time.Until(renewAt(present().Leaf, mathrand.Float64()))
		for sleep(ctx, wait) {
			if renew(ctx) == nil {
				break
			}
			wait = renewalTry
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// sleep waits and tells whether ctx is not done yet.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// servingCertificate asks for the certificate of the node's own API. Its names are those that the Node object has.
func (c *Cluster) servingCertificate(ctx context.Context) (*tls.Certificate, error) {
	n, ok := client.Nodes.Get(c.client.Snapshot(), "", c.cfg.NodeName)
	if !ok {
		return nil, errors.New("the node is not registered")
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: nodeUser(n.Name), Organization: []string{client.GroupNodes}}}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		} else if a.Type == corev1.NodeHostName {
			template.DNSNames = append(template.DNSNames, a.Address)
		}
	}
	pair, text, err := requestCertificate(ctx, c.agent.client, certificatesv1.KubeletServingSignerName, template, certificatesv1.UsageServerAuth)
	if err != nil {
		return nil, err
	}
	return pair, writeFile(filepath.Join(c.agentDir(), "serving.pem"), text, 0o600)
}

// keptServingCertificate is the one of before, nil if it is not good for the node's addresses, or not for long.
func (c *Cluster) keptServingCertificate(now time.Time) *tls.Certificate {
	data, err := os.ReadFile(filepath.Join(c.agentDir(), "serving.pem"))
	if err != nil {
		return nil
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil || outlived(pair.Leaf, now) {
		return nil
	}
	n, ok := client.Nodes.Get(c.client.Snapshot(), "", c.cfg.NodeName)
	if !ok {
		return nil
	}
	for _, a := range n.Status.Addresses {
		if pair.Leaf.VerifyHostname(a.Address) != nil {
			return nil
		}
	}
	return &pair
}
