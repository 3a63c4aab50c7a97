package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// validator refuses what the schema of the definition cannot say.
type validator struct{}

var _ admission.Validator[*Website] = validator{}

// ValidateCreate implements admission.Validator.
func (validator) ValidateCreate(_ context.Context, site *Website) (admission.Warnings, error) {
	return check(site)
}

// ValidateUpdate implements admission.Validator.
func (validator) ValidateUpdate(_ context.Context, _, site *Website) (admission.Warnings, error) {
	return check(site)
}

// ValidateDelete implements admission.Validator.
func (validator) ValidateDelete(context.Context, *Website) (admission.Warnings, error) {
	return nil, nil
}

func check(site *Website) (admission.Warnings, error) {
	if strings.Contains(strings.ToLower(site.Spec.HTML), "<script") {
		return nil, fmt.Errorf("spec.html: scripts are not served")
	}
	if !strings.Contains(strings.ToLower(site.Spec.HTML), "<title>") {
		return admission.Warnings{"spec.html has no title"}, nil
	}
	return nil, nil
}

// The names that the manifests give to the webhook's objects.
const (
	secretName        = "website-webhook"
	serviceName       = "website-webhook"
	configurationName = "website.example.com"
)

// webhookCertificate gives the certificate that the webhook serves with. The first copy of the controller makes it and keeps
// it in a Secret, the others read it there; each tells the API server to trust it.
func webhookCertificate(ctx context.Context, config *rest.Config, types *runtime.Scheme, namespace string) (*tls.Certificate, error) {
	c, err := client.New(config, client.Options{Scheme: types})
	if err != nil {
		return nil, err
	}
	secret, err := certificateSecret(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, err
	}
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := c.Get(ctx, client.ObjectKey{Name: configurationName}, configuration); err != nil {
		return nil, err
	}
	before := configuration.DeepCopy()
	for i := range configuration.Webhooks {
		configuration.Webhooks[i].ClientConfig.CABundle = secret.Data[corev1.TLSCertKey]
	}
	return &certificate, c.Patch(ctx, configuration, client.MergeFrom(before))
}

func certificateSecret(ctx context.Context, c client.Client, namespace string) (*corev1.Secret, error) {
	key := client.ObjectKey{Namespace: namespace, Name: secretName}
	secret := &corev1.Secret{}
	err := c.Get(ctx, key, secret)
	if !apierrors.IsNotFound(err) {
		return secret, err
	}
	certificate, private, err := selfSigned(serviceName + "." + namespace + ".svc")
	if err != nil {
		return nil, err
	}
	secret = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: secretName},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: certificate, corev1.TLSPrivateKeyKey: private},
	}
	err = c.Create(ctx, secret)
	if apierrors.IsAlreadyExists(err) {
		// Another copy was first: a new object, since Create may have filled this one.
		secret = &corev1.Secret{}
		err = c.Get(ctx, key, secret)
	}
	return secret, err
}

// selfSigned makes a certificate for a name that is its own authority, and its key, both PEM.
func selfSigned(host string) (certificate, private []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}
