package certificates

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/mail"
	"strconv"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

const (
	maxPodChain    = 100 * 1024       // bytes of the certificates issued to a pod
	minPodLifetime = time.Hour        // of a pod's certificate
	refreshMargin  = 10 * time.Minute // between the refresh of a certificate and both of its ends
)

// keepTransitions fills in since when the conditions have been as they are, where a writer left it
// out and nothing changed.
func keepTransitions(conditions, old []metav1.Condition) {
	for i := range conditions {
		c := &conditions[i]
		for _, o := range old {
			if c.LastTransitionTime.IsZero() && o.Type == c.Type && o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
	}
}

func podRequestStatus(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	path := field.NewPath("status")
	if errs := podConditions(r.Status.Conditions); len(errs) > 0 {
		return errs
	}
	same := func(a, b *certificatesv1.PodCertificateRequestStatus, message string) field.ErrorList {
		if equality.Semantic.DeepEqual(a, b) {
			return nil
		}
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, message)}
	}
	if podRequestState(old) != pending {
		return same(&r.Status, &old.Status, "immutable after PodCertificateRequest is issued, denied, or failed")
	}
	switch podRequestState(r) {
	case pending:
		return same(&r.Status, &old.Status, `status is immutable unless transitioning to "Issued", "Denied", or "Failed"`)
	case certificatesv1.PodCertificateRequestConditionTypeIssued:
		return podCertificate(r, old, path)
	default:
		return same(&r.Status, &certificatesv1.PodCertificateRequestStatus{Conditions: r.Status.Conditions},
			"non-condition status fields must be empty when denying or failing the PodCertificateRequest")
	}
}

// podConditions lets a request end in one way at most.
func podConditions(list []metav1.Condition) field.ErrorList {
	var errs field.ErrorList
	ends := 0
	for i, c := range list {
		p := field.NewPath("status", "conditions", "["+strconv.Itoa(i)+"]") // upstream's form of the path
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied,
			certificatesv1.PodCertificateRequestConditionTypeFailed:
			if ends++; ends > 1 {
				errs = append(errs, field.Invalid(p.Child("type"), c.Type, `There may be at most one condition with type "Issued", "Denied", or "Failed"`))
			}
			if c.Status != metav1.ConditionTrue {
				errs = append(errs, field.NotSupported(p.Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
			}
		default:
			errs = append(errs, field.NotSupported(p.Child("type"), c.Type, []string{certificatesv1.PodCertificateRequestConditionTypeIssued,
				certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed}))
		}
	}
	return append(errs, validate.Conditions(list, field.NewPath("status", "conditions"))...)
}

// podCertificate checks what a signer issued: to the key that was asked for, for as long as its
// status says and the request allows.
func podCertificate(r, old *certificatesv1.PodCertificateRequest, path *field.Path) field.ErrorList {
	chain := path.Child("certificateChain")
	text := r.Status.CertificateChain
	if len(text) > maxPodChain {
		return field.ErrorList{field.TooLong(chain, text, maxPodChain)}
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil {
		return field.ErrorList{field.Invalid(chain, text, "issued certificate chain must contain at least one certificate")}
	}
	if block.Type != certificateBlock {
		return field.ErrorList{field.Invalid(chain, text, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks")}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return field.ErrorList{field.Invalid(chain, text, "leaf certificate does not parse as valid X.509")}
	}
	errs := leafNames(leaf, chain)
	if request, err := x509.ParseCertificateRequest(old.Spec.StubPKCS10Request); err != nil {
		return append(errs, field.Invalid(field.NewPath("spec", "stubPKCS10Request"), field.OmitValueType{}, "must be a valid PKCS#10 CSR"))
	} else if key, ok := request.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(leaf.PublicKey) {
		return append(errs, field.Invalid(chain, text, "leaf certificate was not issued to the requested public key"))
	}
	if errs = append(errs, podTimes(r, leaf, path)...); len(errs) > 0 {
		return errs
	}
	for block, rest = pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certificateBlock {
			return field.ErrorList{field.Invalid(chain, text, "issued certificate chain must consist entirely of CERTFICATE PEM blocks")}
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return field.ErrorList{field.Invalid(chain, text, "intermediate certificate does not parse as valid X.509")}
		}
	}
	return nil
}

func leafNames(leaf *x509.Certificate, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, n := range leaf.DNSNames {
		if n == "" {
			errs = append(errs, field.Invalid(path, n, "leaf certificate should not contain empty DNSName"))
		}
		if strings.Contains(n, "..") {
			errs = append(errs, field.Invalid(path, n, "leaf certificate's DNSName should not contain '..'"))
		}
		if strings.HasPrefix(n, ".") || strings.HasSuffix(n, ".") {
			errs = append(errs, field.Invalid(path, n, "leaf certificate's DNSName should not start or end with '.'"))
		}
	}
	for _, a := range leaf.EmailAddresses {
		if _, err := mail.ParseAddress(a); err != nil {
			errs = append(errs, field.Invalid(path, a, "leaf certificate should not contain invalid EmailAddress"))
		}
	}
	return errs
}

// podTimes checks the times of the status against the certificate's. Whether it is valid
// from about now on is not for here, where there is no clock.
func podTimes(r *certificatesv1.PodCertificateRequest, leaf *x509.Certificate, path *field.Path) field.ErrorList {
	s := &r.Status
	from, until, refresh := path.Child("notBefore"), path.Child("notAfter"), path.Child("beginRefreshAt")
	const consistent = "must be present and consistent with the issued certificate"
	var errs field.ErrorList
	if s.NotBefore == nil {
		errs = append(errs, field.Required(from, consistent))
	}
	if s.NotAfter == nil {
		errs = append(errs, field.Required(until, consistent))
	}
	if s.BeginRefreshAt == nil {
		errs = append(errs, field.Required(refresh, "must be present and in the range [notbefore+10min, notafter-10min]"))
	}
	if len(errs) > 0 {
		return errs
	}
	one := func(path *field.Path, value any, message string) field.ErrorList {
		return field.ErrorList{field.Invalid(path, value, message)}
	}
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore)
	most := int32(defaultPodExpiration)
	if n := r.Spec.MaxExpirationSeconds; n != nil {
		most = *n
	}
	switch {
	case !s.NotBefore.Time.Equal(leaf.NotBefore):
		return one(from, s.NotBefore.Time, "must be set to the NotBefore time encoded in the leaf certificate")
	case !s.NotAfter.Time.Equal(leaf.NotAfter):
		return one(until, s.NotAfter.Time, "must be set to the NotAfter time encoded in the leaf certificate")
	case lifetime < minPodLifetime:
		return one(path.Child("certificateChain"), lifetime, "leaf certificate lifetime must be >= 1 hour")
	case lifetime > time.Duration(most)*time.Second:
		return one(path.Child("certificateChain"), lifetime, fmt.Sprintf("leaf certificate lifetime must be <= spec.maxExpirationSeconds (%d)", most))
	case s.BeginRefreshAt.Time.Before(s.NotBefore.Add(refreshMargin)):
		return one(refresh, s.BeginRefreshAt.Time, "must be at least 10 minutes after status.notBefore")
	case s.BeginRefreshAt.Time.After(s.NotAfter.Add(-refreshMargin)):
		return one(refresh, s.BeginRefreshAt.Time, "must be at least 10 minutes before status.notAfter")
	}
	return nil
}
