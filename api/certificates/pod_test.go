package certificates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func stubOf(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	return must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
}

func text(errs field.ErrorList) string {
	var lines []string
	for _, e := range errs {
		lines = append(lines, e.Error())
	}
	return strings.Join(lines, "\n")
}

func TestStub(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := stubOf(t, ed)
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		der  []byte
		want string
	}{
		"ed25519":  {good, ""},
		"p384":     {stubOf(t, must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))), ""},
		"p224":     {stubOf(t, must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))), `spec.stubPKCS10Request: Invalid value: "curve P-224": elliptic public keys must use curve P256, P384, or P521`},
		"rsa 3072": {stubOf(t, must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 3072))), ""},
		"rsa 2048": {stubOf(t, must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))), `spec.stubPKCS10Request: Invalid value: "2048-bit modulus": RSA keys must have modulus size 3072 or 4096`},
		"forged":   {forged, `spec.stubPKCS10Request: Invalid value: invalid signature`},
		"none":     {nil, `spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set`},
		"no DER":   {[]byte("x"), `spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR`},
		"long":     {make([]byte, maxStub+1), `spec.stubPKCS10Request: Too long: may not be more than 10240 bytes`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := text(stub(c.der, field.NewPath("spec"))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// chainFor is a certificate for the key, valid from start for as long as said.
func chainFor(t *testing.T, public crypto.PublicKey, start time.Time, lifetime time.Duration, names ...string) string {
	t.Helper()
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start.Add(lifetime), DNSNames: names}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, public, signer))
	return string(pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}))
}

func TestPodStatus(t *testing.T) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: start.Add(d)} }
	seconds := int32(defaultPodExpiration)
	fresh := &certificatesv1.PodCertificateRequest{Spec: certificatesv1.PodCertificateRequestSpec{
		MaxExpirationSeconds: &seconds, StubPKCS10Request: stubOf(t, key),
	}}
	condition := func(kind string, status metav1.ConditionStatus) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: "R", LastTransitionTime: *at(0)}
	}
	issued := func(chain string, from, until, refresh *metav1.Time) certificatesv1.PodCertificateRequestStatus {
		return certificatesv1.PodCertificateRequestStatus{
			Conditions: []metav1.Condition{condition("Issued", metav1.ConditionTrue)}, CertificateChain: chain,
			NotBefore: from, NotAfter: until, BeginRefreshAt: refresh,
		}
	}
	day := 24 * time.Hour
	good := chainFor(t, public, start, day)
	leaf := func(chain string) certificatesv1.PodCertificateRequestStatus {
		return issued(chain, at(0), at(day), at(day/2))
	}
	quoted := func(chain string) string { return `"` + strings.ReplaceAll(chain, "\n", `\n`) + `"` }
	stray := good + "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"
	foreign := chainFor(t, other, start, day)
	short := chainFor(t, public, start, time.Minute)
	long := chainFor(t, public, start, 2*day)

	for name, c := range map[string]struct {
		status, old certificatesv1.PodCertificateRequestStatus
		want        string
	}{
		"issued":    {status: leaf(good)},
		"unchanged": {status: leaf(good), old: leaf(good)},
		"denied":    {status: certificatesv1.PodCertificateRequestStatus{Conditions: []metav1.Condition{condition("Denied", metav1.ConditionTrue)}}},
		"pending with a chain": {
			status: certificatesv1.PodCertificateRequestStatus{CertificateChain: good},
			want:   `status: Invalid value: status is immutable unless transitioning to "Issued", "Denied", or "Failed"`,
		},
		"failed with a chain": {
			status: certificatesv1.PodCertificateRequestStatus{CertificateChain: good, Conditions: []metav1.Condition{condition("Failed", metav1.ConditionTrue)}},
			want:   `status: Invalid value: non-condition status fields must be empty when denying or failing the PodCertificateRequest`,
		},
		"revoked": {old: leaf(good), want: `status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed`},
		"conditions": {
			status: certificatesv1.PodCertificateRequestStatus{Conditions: []metav1.Condition{
				condition("Issued", metav1.ConditionTrue), condition("Denied", metav1.ConditionFalse), condition("Maybe", metav1.ConditionTrue)}},
			want: `status.conditions.[1].type: Invalid value: "Denied": There may be at most one condition with type "Issued", "Denied", or "Failed"
status.conditions.[1].status: Unsupported value: "False": supported values: "True"
status.conditions.[2].type: Unsupported value: "Maybe": supported values: "Issued", "Denied", "Failed"`,
		},
		"nothing":      {status: leaf(""), want: `status.certificateChain: Invalid value: "": issued certificate chain must contain at least one certificate`},
		"other block":  {status: leaf(stray), want: `status.certificateChain: Invalid value: ` + quoted(stray) + `: issued certificate chain must consist entirely of CERTFICATE PEM blocks`},
		"other key":    {status: leaf(foreign), want: `status.certificateChain: Invalid value: ` + quoted(foreign) + `: leaf certificate was not issued to the requested public key`},
		"name":         {status: leaf(chainFor(t, public, start, day, "a..b")), want: `status.certificateChain: Invalid value: "a..b": leaf certificate's DNSName should not contain '..'`},
		"short":        {status: issued(short, at(0), at(time.Minute), at(0)), want: `status.certificateChain: Invalid value: 60000000000: leaf certificate lifetime must be >= 1 hour`},
		"long":         {status: issued(long, at(0), at(2*day), at(day)), want: `status.certificateChain: Invalid value: 172800000000000: leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)`},
		"other start":  {status: issued(good, at(1e9), at(day), at(day/2)), want: `status.notBefore: Invalid value: "2026-07-01T12:00:01Z": must be set to the NotBefore time encoded in the leaf certificate`},
		"other end":    {status: issued(good, at(0), at(day+1e9), at(day/2)), want: `status.notAfter: Invalid value: "2026-07-02T12:00:01Z": must be set to the NotAfter time encoded in the leaf certificate`},
		"at once":      {status: issued(good, at(0), at(day), at(time.Minute)), want: `status.beginRefreshAt: Invalid value: "2026-07-01T12:01:00Z": must be at least 10 minutes after status.notBefore`},
		"at the end":   {status: issued(good, at(0), at(day), at(day)), want: `status.beginRefreshAt: Invalid value: "2026-07-02T12:00:00Z": must be at least 10 minutes before status.notAfter`},
		"without time": {status: issued(good, nil, nil, nil), want: "status.notBefore: Required value: must be present and consistent with the issued certificate\nstatus.notAfter: Required value: must be present and consistent with the issued certificate\nstatus.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]"},
	} {
		t.Run(name, func(t *testing.T) {
			old, r := fresh.DeepCopy(), fresh.DeepCopy()
			old.Status, r.Status = c.old, c.status
			if got := text(podRequestStatus(r, old)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestKeepTransitions(t *testing.T) {
	since := metav1.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	old := []metav1.Condition{{Type: "Issued", Status: "True", LastTransitionTime: since}}
	now := []metav1.Condition{{Type: "Issued", Status: "True"}, {Type: "Denied", Status: "True"}}
	keepTransitions(now, old)
	if !now[0].LastTransitionTime.Equal(&since) || !now[1].LastTransitionTime.IsZero() {
		t.Errorf("conditions became %v", now)
	}
}
