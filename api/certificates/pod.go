package certificates

import (
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
			}),
			ValidateUpdate: api.ChecksUpdate(podRequestStatus),
		})},
	}
}

func podRequestState(r *certificatesv1.PodCertificateRequest) string {
	for _, c := range r.Status.Conditions {
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied,
			certificatesv1.PodCertificateRequestConditionTypeFailed:
			return c.Type
		}
	}
	return "Pending"
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
	stub, err := x509.ParseCertificateRequest(s.StubPKCS10Request)
	if err == nil {
		err = stub.CheckSignature()
	}
	if err != nil {
		errs = append(errs, field.Invalid(path.Child("stubPKCS10Request"), field.OmitValueType{}, "must be a valid PKCS#10 request: "+err.Error()))
	}
	return append(errs, userAnnotations(s.UnverifiedUserAnnotations, path.Child("unverifiedUserAnnotations"))...)
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

func podRequestStatus(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	path := field.NewPath("status")
	errs := validate.Conditions(r.Status.Conditions, path.Child("conditions"))
	ends := 0
	for i, c := range r.Status.Conditions {
		p := path.Child("conditions").Index(i)
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied,
			certificatesv1.PodCertificateRequestConditionTypeFailed:
			if ends++; ends > 1 {
				errs = append(errs, field.Invalid(p.Child("type"), c.Type, "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\""))
			}
			if c.Status != metav1.ConditionTrue {
				errs = append(errs, field.NotSupported(p.Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
			}
		default:
			errs = append(errs, field.NotSupported(p.Child("type"), c.Type, []string{"Issued", "Denied", "Failed"}))
		}
	}
	if podRequestState(old) != "Pending" {
		return append(errs, validate.Immutable(r.Status, old.Status, path)...)
	}
	chain := path.Child("certificateChain")
	switch state := podRequestState(r); {
	case state == certificatesv1.PodCertificateRequestConditionTypeIssued:
		if err := issued([]byte(r.Status.CertificateChain)); err != nil {
			errs = append(errs, field.Invalid(chain, "<value omitted>", err.Error()))
		}
		for _, t := range []struct {
			name string
			at   *metav1.Time
		}{{"notBefore", r.Status.NotBefore}, {"notAfter", r.Status.NotAfter}, {"beginRefreshAt", r.Status.BeginRefreshAt}} {
			if t.at == nil {
				errs = append(errs, field.Required(path.Child(t.name), "must be present and consistent with the issued certificate"))
			}
		}
	case r.Status.CertificateChain != "":
		errs = append(errs, field.Invalid(chain, "<value omitted>", "must be empty unless the request is issued"))
	}
	return errs
}
