package certificates

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
)

// legacyUnknown is the signer that promises nothing; the API refuses new requests for it.
const legacyUnknown = "kubernetes.io/legacy-unknown"

// Times of certificates, as upstream has them.
const (
	// DefaultLife is how long a certificate is valid at most (--cluster-signing-duration).
	DefaultLife = 365 * 24 * time.Hour
	minLife     = 10 * time.Minute
	// backdate lets clients whose clocks are behind accept a certificate at once.
	backdate = 5 * time.Minute
	// shortLife is the length below which the back-dating is not taken off the end.
	shortLife = 8 * time.Hour
)

// Authority signs for the signers of Kubernetes (https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers).
// It is safe for concurrent use.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
	// Life is how long a certificate is valid that asks for no less, DefaultLife if zero.
	Life time.Duration
}

// signers are those that the authority signs for, each with what it requires of a request.
var signers = map[string]func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error{
	certificatesv1.KubeAPIServerClientSignerName: func(_ *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
		return apiClient(usages)
	},
	certificatesv1.KubeAPIServerClientKubeletSignerName: kubeletClient,
	certificatesv1.KubeletServingSignerName:             kubeletServing,
	legacyUnknown:                                       func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error { return nil },
}

func apiClient(usages []certificatesv1.KeyUsage) error {
	for _, u := range usages {
		switch u {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth:
		default:
			return fmt.Errorf("invalid usage for client certificate: %s", u)
		}
	}
	if !slices.Contains(usages, certificatesv1.UsageClientAuth) {
		return fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
	}
	return nil
}

const (
	nodesGroup = "system:nodes"
	nodePrefix = "system:node:"
)

var (
	errOrganization = errors.New("subject organization is not system:nodes")
	errCommonName   = errors.New("subject common name does not begin with system:node:")
	errNoSAN        = errors.New("DNS or IP subjectAltName is required")
	errDNS          = errors.New("DNS subjectAltNames are not allowed")
	errEmail        = errors.New("Email subjectAltNames are not allowed") //nolint:staticcheck // upstream's words
	errIP           = errors.New("IP subjectAltNames are not allowed")
	errURI          = errors.New("URI subjectAltNames are not allowed")
)

// kubeletClient is what a node's certificate for the API must be like.
func kubeletClient(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	switch {
	case !reflect.DeepEqual(r.Subject.Organization, []string{nodesGroup}):
		return errOrganization
	case len(r.DNSNames) > 0:
		return errDNS
	case len(r.EmailAddresses) > 0:
		return errEmail
	case len(r.IPAddresses) > 0:
		return errIP
	case len(r.URIs) > 0:
		return errURI
	case !strings.HasPrefix(r.Subject.CommonName, nodePrefix):
		return errCommonName
	}
	return exactly(usages, certificatesv1.UsageClientAuth)
}

// kubeletServing is what the certificate of a node's own API must be like.
func kubeletServing(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	switch {
	case !reflect.DeepEqual(r.Subject.Organization, []string{nodesGroup}):
		return errOrganization
	case len(r.DNSNames) == 0 && len(r.IPAddresses) == 0:
		return errNoSAN
	case len(r.EmailAddresses) > 0:
		return errEmail
	case len(r.URIs) > 0:
		return errURI
	}
	if err := exactly(usages, certificatesv1.UsageServerAuth); err != nil {
		return err
	}
	if !strings.HasPrefix(r.Subject.CommonName, nodePrefix) {
		return errCommonName
	}
	return nil
}

// exactly wants the usages of a node's certificate: signatures, the use itself and, as RSA keys need it, encipherment of keys.
func exactly(usages []certificatesv1.KeyUsage, use certificatesv1.KeyUsage) error {
	want := []string{string(use), string(certificatesv1.UsageDigitalSignature), string(certificatesv1.UsageKeyEncipherment)}
	slices.Sort(want)
	var have []string
	for _, u := range usages {
		have = append(have, string(u))
	}
	slices.Sort(have)
	have = slices.Compact(have)
	withoutRSA := slices.DeleteFunc(slices.Clone(want), func(u string) bool { return u == string(certificatesv1.UsageKeyEncipherment) })
	if slices.Equal(have, want) || slices.Equal(have, withoutRSA) {
		return nil
	}
	return fmt.Errorf("usages did not match %v", want)
}

// life is how long a certificate will be valid: what was asked for, between the least and the most.
func (a *Authority) life(seconds *int32) time.Duration {
	most := a.Life
	if most == 0 {
		most = DefaultLife
	}
	if seconds == nil {
		return most
	}
	return max(min(time.Duration(*seconds)*time.Second, most), min(minLife, most))
}

// sign makes the certificate that a request asks for, in PEM. Of the request it takes the subject, the alternative names
// and the key; extensions are dropped.
func (a *Authority) sign(r *x509.CertificateRequest, spec *certificatesv1.CertificateSigningRequestSpec, now time.Time) ([]byte, error) {
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("unable to verify certificate request signature: %v", err)
	}
	end := a.Certificate.NotAfter
	if !now.Before(end) {
		return nil, fmt.Errorf("refusing to sign a certificate that expired in the past: NotAfter=%v", end)
	}
	usage, extended, err := keyUsages(spec.Usages)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("unable to generate a serial number for %s: %v", r.Subject.CommonName, err)
	}
	life := a.life(spec.ExpirationSeconds)
	until := now.Add(life)
	if life >= shortLife {
		until = until.Add(-backdate)
	}
	if until.After(end) {
		until = end
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: r.Subject,
		DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, EmailAddresses: r.EmailAddresses, URIs: r.URIs,
		KeyUsage: usage, ExtKeyUsage: extended, BasicConstraintsValid: true,
		NotBefore: now.Add(-backdate), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, r.PublicKey, a.Key)
	if err != nil {
		return nil, fmt.Errorf("failed to sign certificate: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

var plainUsages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning:           x509.KeyUsageDigitalSignature,
	certificatesv1.UsageDigitalSignature:  x509.KeyUsageDigitalSignature,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment,
	certificatesv1.UsageKeyEncipherment:   x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement:      x509.KeyUsageKeyAgreement,
	certificatesv1.UsageDataEncipherment:  x509.KeyUsageDataEncipherment,
	certificatesv1.UsageCertSign:          x509.KeyUsageCertSign,
	certificatesv1.UsageCRLSign:           x509.KeyUsageCRLSign,
	certificatesv1.UsageEncipherOnly:      x509.KeyUsageEncipherOnly,
	certificatesv1.UsageDecipherOnly:      x509.KeyUsageDecipherOnly,
}

var extendedUsages = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageAny:             x509.ExtKeyUsageAny,
	certificatesv1.UsageServerAuth:      x509.ExtKeyUsageServerAuth,
	certificatesv1.UsageClientAuth:      x509.ExtKeyUsageClientAuth,
	certificatesv1.UsageCodeSigning:     x509.ExtKeyUsageCodeSigning,
	certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageSMIME:           x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageIPsecEndSystem:  x509.ExtKeyUsageIPSECEndSystem,
	certificatesv1.UsageIPsecTunnel:     x509.ExtKeyUsageIPSECTunnel,
	certificatesv1.UsageIPsecUser:       x509.ExtKeyUsageIPSECUser,
	certificatesv1.UsageTimestamping:    x509.ExtKeyUsageTimeStamping,
	certificatesv1.UsageOCSPSigning:     x509.ExtKeyUsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC:    x509.ExtKeyUsageMicrosoftServerGatedCrypto,
	certificatesv1.UsageNetscapeSGC:     x509.ExtKeyUsageNetscapeServerGatedCrypto,
}

func keyUsages(usages []certificatesv1.KeyUsage) (plain x509.KeyUsage, extended []x509.ExtKeyUsage, err error) {
	var unknown []certificatesv1.KeyUsage
	for _, u := range usages {
		if p, ok := plainUsages[u]; ok {
			plain |= p
		} else if e, ok := extendedUsages[u]; ok {
			extended = append(extended, e)
		} else {
			unknown = append(unknown, u)
		}
	}
	if len(unknown) > 0 {
		return 0, nil, fmt.Errorf("unrecognized usage values: %q", unknown)
	}
	slices.Sort(extended)
	return plain, slices.Compact(extended), nil
}

// has tells whether a request has a condition of a type.
func has(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
}

// withCondition is a request with one condition more. Its times are the server's to fill in.
func withCondition(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType, reason, message string) *certificatesv1.CertificateSigningRequest {
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message})
	return csr
}
