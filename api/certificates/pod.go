package certificates

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Seconds that the certificate of a pod may live. Signers of Kubernetes itself have the shorter limit.
const (
	minPodExpiration     = 3600
	maxPodExpiration     = 7862400
	defaultPodExpiration = 86400
)

// maxStub is the most bytes of a pod's certificate request.
const maxStub = 10 * 1024

func podRequestKind() *api.Kind {
	type request = *certificatesv1.PodCertificateRequest
	doc := certificatesv1.PodCertificateRequestSpec{}.SwaggerDoc()
	return &api.Kind{
		Group: group, Kind: "PodCertificateRequest", Resource: "podcertificaterequests", Singular: "podcertificaterequest",
		Namespaced: true,
		Versions:   declare.V1[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](),
		Default: api.On(func(r request) {
			if r.Spec.MaxExpirationSeconds == nil {
				n := int32(defaultPodExpiration)
				r.Spec.MaxExpirationSeconds = &n
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r request) { r.Status = certificatesv1.PodCertificateRequestStatus{} }),
			PrepareUpdate: api.OnUpdate(func(r, old request) { r.Status = old.Status }),
			Validate:      api.Checks(podRequest),
			ValidateUpdate: api.ChecksUpdate(func(r, old request) field.ErrorList {
				return validate.Immutable(r.Spec, old.Spec, field.NewPath("spec"))
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("PodName", doc["podName"], func(r request) any { return r.Spec.PodName }),
			declare.Text("ServiceAccountName", doc["serviceAccountName"], func(r request) any { return r.Spec.ServiceAccountName }),
			declare.Text("NodeName", doc["nodeName"], func(r request) any { return string(r.Spec.NodeName) }),
			declare.Text("SignerName", doc["signerName"], func(r request) any { return r.Spec.SignerName }),
			declare.Text("State", "State of the request", func(r request) any { return podRequestState(r) }),
		},
		Fields: map[string]func(api.Object) string{
			"spec.signerName": api.Field(func(r request) string { return r.Spec.SignerName }),
			"spec.podName":    api.Field(func(r request) string { return r.Spec.PodName }),
			"spec.nodeName":   api.Field(func(r request) string { return string(r.Spec.NodeName) }),
		},
		Indexes: map[string]func(api.Object) []string{
			"node": api.Values(func(r request) []string { return []string{string(r.Spec.NodeName)} }),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(r, old request) {
				r.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&r.ObjectMeta, &old.ObjectMeta)
				keepTransitions(r.Status.Conditions, old.Status.Conditions)
			}),
			ValidateUpdate: api.ChecksUpdate(podRequestStatus),
		})},
	}
}

const pending = "Pending"

func podRequestState(r *certificatesv1.PodCertificateRequest) string {
	for _, c := range r.Status.Conditions {
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied,
			certificatesv1.PodCertificateRequestConditionTypeFailed:
			return c.Type
		}
	}
	return pending
}

func podRequest(r *certificatesv1.PodCertificateRequest) field.ErrorList {
	path := field.NewPath("spec")
	s := &r.Spec
	errs := SignerName(s.SignerName, path.Child("signerName"))
	for _, f := range []struct {
		name, value string
		uid         types.UID
	}{
		{"pod", s.PodName, s.PodUID}, {"serviceAccount", s.ServiceAccountName, s.ServiceAccountUID}, {"node", string(s.NodeName), s.NodeUID},
	} {
		errs = append(errs, validate.DNSSubdomainField(f.value, path.Child(f.name+"Name"))...)
		switch p := path.Child(f.name + "UID"); {
		case f.uid == "":
			errs = append(errs, field.Invalid(p, f.uid, "must not be empty"))
		case len(f.uid) > 128:
			errs = append(errs, field.TooLong(p, f.uid, 128))
		}
	}
	errs = append(errs, podExpiration(s, path.Child("maxExpirationSeconds"))...)
	errs = append(errs, stub(s.StubPKCS10Request, path)...)
	return append(errs, userAnnotations(s.UnverifiedUserAnnotations, path.Child("unverifiedUserAnnotations"))...)
}

// stub checks the certificate request that carries the public key of a pod: that it is of a
// kind that is known, and that whoever made the request holds the private key.
func stub(der []byte, spec *field.Path) field.ErrorList {
	path := spec.Child("stubPKCS10Request")
	switch {
	case len(der) == 0:
		return field.ErrorList{field.Invalid(spec, field.OmitValueType{}, "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set")}
	case len(der) > maxStub:
		return field.ErrorList{field.TooLong(path, "", maxStub)}
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "must be a valid PKCS#10 CSR")}
	}
	switch key := request.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return field.ErrorList{field.Invalid(path, "curve "+key.Curve.Params().Name, "elliptic public keys must use curve P256, P384, or P521")}
		}
	case *rsa.PublicKey:
		if bits := key.Size() * 8; bits != 3072 && bits != 4096 {
			return field.ErrorList{field.Invalid(path, fmt.Sprintf("%d-bit modulus", bits), "RSA keys must have modulus size 3072 or 4096")}
		}
	default:
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "unknown public key type; supported types are Ed25519, ECDSA, and RSA")}
	}
	if request.CheckSignature() != nil {
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "invalid signature")}
	}
	return nil
}

func podExpiration(s *certificatesv1.PodCertificateRequestSpec, path *field.Path) field.ErrorList {
	if s.MaxExpirationSeconds == nil {
		return field.ErrorList{field.Required(path, "must be set")}
	}
	most := int32(maxPodExpiration)
	if strings.HasPrefix(s.SignerName, "kubernetes.io/") {
		most = defaultPodExpiration
	}
	if n := *s.MaxExpirationSeconds; n < minPodExpiration || n > most {
		return field.ErrorList{field.Invalid(path, n, fmt.Sprintf("must be in the range [%d, %d]", minPodExpiration, most))}
	}
	return nil
}

func userAnnotations(annotations map[string]string, path *field.Path) field.ErrorList {
	errs := validate.Annotations(annotations, path)
	for key := range annotations {
		if !strings.Contains(key, "/") {
			errs = append(errs, field.Invalid(path, key, "a valid annotation key must be domain-prefixed"))
		}
	}
	return errs
}
