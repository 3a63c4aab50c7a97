package certificates

import (
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	// legacySigner is what requests of the group's beta had; v1 refuses it.
	legacySigner  = "kubernetes.io/legacy-unknown"
	minExpiration = 600 // seconds
)

func requestKind() *api.Kind {
	type request = *certificatesv1.CertificateSigningRequest
	return &api.Kind{
		Group: group, Kind: "CertificateSigningRequest", Resource: "certificatesigningrequests", Singular: "certificatesigningrequest",
		ShortNames: []string{"csr"},
		Versions:   declare.V1[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](),
		Strategy: api.Strategy{
			// Who asks is not for the client to say; admission writes it (SetRequester).
			PrepareCreate: api.On(func(r request) { r.Status = certificatesv1.CertificateSigningRequestStatus{} }),
			PrepareUpdate: api.OnUpdate(func(r, old request) {
				r.Spec = old.Spec
				r.Status = old.Status
			}),
			Validate: api.Checks(requestSpec),
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.PathSegment,
		Columns:             requestColumns(),
		Fields: map[string]func(api.Object) string{
			"spec.signerName": api.Field(func(r request) string { return r.Spec.SignerName }),
		},
		Subresources: []api.Subresource{
			declare.View("approval", api.Strategy{
				PrepareUpdate: api.OnUpdate(func(r, old request) {
					r.Spec = old.Spec
					r.Status.Certificate = old.Status.Certificate
				}),
				ValidateUpdate: api.ChecksUpdate(func(r, old request) field.ErrorList {
					return requestStatus(r, old, true)
				}),
			}),
			declare.Status(api.Strategy{
				PrepareUpdate: api.OnUpdate(func(r, old request) {
					r.Spec = old.Spec
					keepDecision(r, old, certificatesv1.CertificateApproved)
					keepDecision(r, old, certificatesv1.CertificateDenied)
				}),
				ValidateUpdate: api.ChecksUpdate(func(r, old request) field.ErrorList {
					return requestStatus(r, old, false)
				}),
			}),
		},
	}
}

// SetRequester writes who asks into a new request, in place of whatever the client said of itself. The server's admission
// calls it for every create.
func SetRequester(r *certificatesv1.CertificateSigningRequest, username, uid string, groups []string, extra map[string][]string) {
	s := &r.Spec
	s.Username, s.UID, s.Groups, s.Extra = username, uid, slices.Clone(groups), nil
	for k, v := range extra {
		if s.Extra == nil {
			s.Extra = map[string]certificatesv1.ExtraValue{}
		}
		s.Extra[k] = slices.Clone(v)
	}
}

// StampConditions fills the times that a client left out of new and changed conditions; the server
// calls it behind PrepareUpdate of "approval" and "status", because this package has no clock.
func StampConditions(r, old *certificatesv1.CertificateSigningRequest, now time.Time) {
	for i := range r.Status.Conditions {
		c := &r.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = metav1.NewTime(now)
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = metav1.NewTime(now)
		for k := range old.Status.Conditions {
			if o := &old.Status.Conditions[k]; o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
	}
}

// keepDecision takes the conditions of a type from old, so that who signs cannot reword who approved; where there are
// fewer or more of them, it leaves that to validation.
func keepDecision(r, old *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) {
	if count(r, t) != count(old, t) {
		return
	}
	from := 0
	for i := range r.Status.Conditions {
		if r.Status.Conditions[i].Type != t {
			continue
		}
		for old.Status.Conditions[from].Type != t {
			from++
		}
		r.Status.Conditions[i] = old.Status.Conditions[from]
		from++
	}
}

// usages are those that may be asked for, in the order of upstream's list.
var usages = []certificatesv1.KeyUsage{
	certificatesv1.UsageAny, certificatesv1.UsageCertSign, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning,
	certificatesv1.UsageContentCommitment, certificatesv1.UsageCRLSign, certificatesv1.UsageDataEncipherment,
	certificatesv1.UsageDecipherOnly, certificatesv1.UsageDigitalSignature, certificatesv1.UsageEmailProtection,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel,
	certificatesv1.UsageIPsecUser, certificatesv1.UsageKeyAgreement, certificatesv1.UsageKeyEncipherment,
	certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC, certificatesv1.UsageOCSPSigning,
	certificatesv1.UsageSMIME, certificatesv1.UsageServerAuth, certificatesv1.UsageSigning, certificatesv1.UsageTimestamping,
}

func requestSpec(r *certificatesv1.CertificateSigningRequest) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if _, err := ParseRequest(r.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(path.Child("request"), r.Spec.Request, err.Error()))
	}
	if len(r.Spec.Usages) == 0 {
		errs = append(errs, field.Required(path.Child("usages"), ""))
	}
	seen := map[certificatesv1.KeyUsage]bool{}
	for i, u := range r.Spec.Usages {
		p := path.Child("usages").Index(i)
		errs = append(errs, validate.OneOf(u, p, usages...)...)
		if seen[u] {
			errs = append(errs, field.Duplicate(p, u))
		}
		seen[u] = true
	}
	if r.Spec.SignerName == legacySigner {
		errs = append(errs, field.Invalid(path.Child("signerName"), r.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, SignerName(r.Spec.SignerName, path.Child("signerName"))...)
	}
	if n := r.Spec.ExpirationSeconds; n != nil && *n < minExpiration {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), *n, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return errs
}

// requestStatus checks a change of the status. Approval and denial have an endpoint
// of their own, so that the right to issue does not give the right to approve.
func requestStatus(r, old *certificatesv1.CertificateSigningRequest, approval bool) field.ErrorList {
	path := field.NewPath("status")
	errs := conditions(r.Status.Conditions, path.Child("conditions"))
	if approval {
		errs = append(errs, validate.Immutable(r.Status.Certificate, old.Status.Certificate, path.Child("certificate"))...)
	} else if len(r.Status.Certificate) > 0 && !slices.Equal(r.Status.Certificate, old.Status.Certificate) {
		if len(old.Status.Certificate) > 0 {
			errs = append(errs, validate.Immutable(r.Status.Certificate, old.Status.Certificate, path.Child("certificate"))...)
		}
		if err := issued(r.Status.Certificate); err != nil {
			errs = append(errs, field.Invalid(path.Child("certificate"), "<certificate data>", err.Error()))
		}
	}
	for _, t := range []certificatesv1.RequestConditionType{
		certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed,
	} {
		now, was := count(r, t), count(old, t)
		if now < was {
			errs = append(errs, field.Forbidden(path.Child("conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t)))
		}
		if now > was && !approval && t != certificatesv1.CertificateFailed {
			errs = append(errs, field.Forbidden(path.Child("conditions"), fmt.Sprintf("updates may not add a condition of type %q", t)))
		}
	}
	return errs
}

func count(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) int {
	n := 0
	for i := range r.Status.Conditions {
		if r.Status.Conditions[i].Type == t {
			n++
		}
	}
	return n
}

func conditions(list []certificatesv1.CertificateSigningRequestCondition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i := range list {
		c := &list[i]
		p := path.Index(i)
		decides := c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied
		switch {
		case c.Type == "":
			errs = append(errs, field.Required(p.Child("type"), ""))
		case seen[c.Type]:
			errs = append(errs, field.Duplicate(p.Child("type"), c.Type))
		}
		seen[c.Type] = true
		switch {
		case c.Status == "":
			errs = append(errs, field.Required(p.Child("status"), ""))
		case decides || c.Type == certificatesv1.CertificateFailed:
			errs = append(errs, validate.OneOf(c.Status, p.Child("status"), corev1.ConditionTrue)...)
		default:
			errs = append(errs, validate.OneOf(c.Status, p.Child("status"), corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
		}
		if decides && seen[certificatesv1.CertificateApproved] && seen[certificatesv1.CertificateDenied] {
			errs = append(errs, field.Invalid(p.Child("type"), c.Type, "Approved and Denied conditions are mutually exclusive"))
		}
	}
	return errs
}

func requestColumns() []api.Column {
	type request = *certificatesv1.CertificateSigningRequest
	doc := certificatesv1.CertificateSigningRequestSpec{}.SwaggerDoc()
	return []api.Column{
		declare.Name(),
		declare.Age(),
		declare.Text("SignerName", doc["signerName"], func(r request) any { return r.Spec.SignerName }),
		declare.Text("Requestor", doc["request"], func(r request) any { return r.Spec.Username }),
		declare.Text("RequestedDuration", doc["expirationSeconds"], func(r request) any {
			if r.Spec.ExpirationSeconds == nil {
				return declare.None
			}
			return duration.HumanDuration(time.Duration(*r.Spec.ExpirationSeconds) * time.Second)
		}),
		declare.Text("Condition", certificatesv1.CertificateSigningRequestStatus{}.SwaggerDoc()["conditions"], func(r request) any {
			text := "Pending"
			switch {
			case count(r, certificatesv1.CertificateDenied) > 0:
				text = "Denied"
			case count(r, certificatesv1.CertificateApproved) > 0:
				text = "Approved"
			}
			if count(r, certificatesv1.CertificateFailed) > 0 {
				text += ",Failed"
			}
			if len(r.Status.Certificate) > 0 {
				text += ",Issued"
			}
			return text
		}),
	}
}
