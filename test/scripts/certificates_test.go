package scripts

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// request NAME SIGNER USAGE,USAGE COMMON-NAME [GROUP...] writes NAME.key and NAME.yaml, a CertificateSigningRequest for it.
func request(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: request NAME SIGNER USAGE,USAGE COMMON-NAME [GROUP...]")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: args[3], Organization: args[4:]}}, key)
	ts.Check(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	manifest := fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: %s}\n"+
		"spec: {request: %s, signerName: %s, expirationSeconds: 3600, usages: [%s]}\n",
		args[0], base64.StdEncoding.EncodeToString(text), args[1], args[2])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".yaml"), []byte(manifest), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// kubectlOutput runs kubectl as the script's environment has it, outside of the script's own output.
func kubectlOutput(ts *testscript.TestScript, input []byte, args ...string) ([]byte, error) {
	c := exec.Command(lookPath(ts, "coracle"), append([]string{"kubectl"}, args...)...)
	c.Dir, c.Env, c.Stdin = ts.MkAbs("."), environment(ts), bytes.NewReader(input)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out, err
}

// issued NAME waits for the certificate of a CertificateSigningRequest, checks that it fits NAME.key and is good for an hour, and
// writes NAME.crt.
func issued(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: issued NAME")
	}
	_, err := kubectlOutput(ts, nil, "wait", "--for=jsonpath={.status.certificate}", "--timeout=20s", "csr/"+args[0])
	ts.Check(err)
	out, err := kubectlOutput(ts, nil, "get", "csr", args[0], "-o", "jsonpath={.status.certificate}")
	ts.Check(err)
	text, err := base64.StdEncoding.DecodeString(string(out))
	ts.Check(err)
	key, err := os.ReadFile(ts.MkAbs(args[0] + ".key"))
	ts.Check(err)
	pair, err := tls.X509KeyPair(text, key)
	ts.Check(err)
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	ts.Check(err)
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != time.Hour+5*time.Minute {
		ts.Fatalf("the certificate lives for %v", life)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".crt"), text, 0o600))
}

// signer NAME [DENY] signs all pod certificate requests of a signer with an authority of its own until the script ends, or denies
// them; it publishes the authority as a ClusterTrustBundle.
func signer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: signer NAME [REASON-TO-DENY]")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: args[0]}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 48), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	ts.Check(err)
	bundle := &certificatesv1.ClusterTrustBundle{TypeMeta: metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "ClusterTrustBundle"},
		ObjectMeta: metav1.ObjectMeta{Name: strings.ReplaceAll(args[0], "/", ":") + ":one"},
		Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: args[0],
			TrustBundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}}
	text, err := json.Marshal(bundle)
	ts.Check(err)
	_, err = kubectlOutput(ts, text, "create", "-f", "-")
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, lookPath(ts, "coracle"), "kubectl", "get", "podcertificaterequests", "-A", "--watch", "-o", "json")
	c.Dir, c.Env = ts.MkAbs("."), environment(ts)
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for d := json.NewDecoder(out); ; {
			r := &certificatesv1.PodCertificateRequest{}
			if d.Decode(r) != nil {
				return
			}
			if r.Kind != "PodCertificateRequest" || r.Spec.SignerName != args[0] || len(r.Status.Conditions) > 0 {
				continue
			}
			r.Status = decide(r, ca, key, args[1:])
			text, _ := json.Marshal(map[string]any{"status": r.Status})
			if _, err := kubectlOutput(ts, nil, "patch", "podcertificaterequest", r.Name, "-n", r.Namespace, "--subresource=status",
				"--type=merge", "-p", string(text)); err != nil && ctx.Err() == nil {
				ts.Logf("signer: %v", err)
			}
		}
	}()
	ts.Defer(func() {
		cancel()
		<-done
		c.Wait()
	})
}

// decide is the status that the signer gives a request.
func decide(r *certificatesv1.PodCertificateRequest, ca *x509.Certificate, key *ecdsa.PrivateKey, deny []string) certificatesv1.PodCertificateRequestStatus {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	condition := metav1.Condition{Type: certificatesv1.PodCertificateRequestConditionTypeIssued, Status: metav1.ConditionTrue,
		Reason: "Signed", Message: "signed by the test", LastTransitionTime: now}
	if len(deny) > 0 {
		condition.Type, condition.Reason, condition.Message = certificatesv1.PodCertificateRequestConditionTypeDenied, deny[0], "not for you"
		return certificatesv1.PodCertificateRequestStatus{Conditions: []metav1.Condition{condition}}
	}
	stub, err := x509.ParseCertificateRequest(r.Spec.StubPKCS10Request)
	if err != nil || stub.CheckSignature() != nil {
		condition.Type, condition.Message = certificatesv1.PodCertificateRequestConditionTypeFailed, "no proof of possession"
		return certificatesv1.PodCertificateRequestStatus{Conditions: []metav1.Condition{condition}}
	}
	until := metav1.NewTime(now.Add(time.Duration(*r.Spec.MaxExpirationSeconds) * time.Second))
	refresh := metav1.NewTime(until.Add(-15 * time.Minute))
	leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Time, NotAfter: until.Time,
		DNSNames: []string{r.Spec.PodName + "." + r.Namespace}, KeyUsage: x509.KeyUsageDigitalSignature}
	if name := r.Spec.UnverifiedUserAnnotations["example.com/name"]; name != "" {
		leaf.DNSNames = append(leaf.DNSNames, name)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, stub.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return certificatesv1.PodCertificateRequestStatus{Conditions: []metav1.Condition{condition},
		CertificateChain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		NotBefore:        &now, NotAfter: &until, BeginRefreshAt: &refresh}
}

// bundleNames (bundle FILE "TYPE NAME,NAME") checks the credential bundle in a file: a key in front of a certificate that fits it.
func bundleNames(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: bundle FILE NAMES")
	}
	text := []byte(ts.ReadFile(args[0]))
	pair, err := tls.X509KeyPair(text, text)
	ts.Check(err)
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	ts.Check(err)
	if got := fmt.Sprintf("%v %s", leaf.PublicKeyAlgorithm, strings.Join(leaf.DNSNames, ",")); got != args[1] {
		ts.Fatalf("the bundle is of %q, want %q", got, args[1])
	}
}
