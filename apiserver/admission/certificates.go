package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/certificates"
	"coracle.dev/coracle/client"
)

const (
	signingRequests = "certificatesigningrequests.certificates.k8s.io"
	podRequests     = "podcertificaterequests.certificates.k8s.io"
	trustBundles    = "clustertrustbundles.certificates.k8s.io"
)

// Access tells whether a user may use a verb on a resource of certificates.k8s.io that has a name and a namespace
// ("" for none).
type Access func(ctx context.Context, user client.User, verb, resource, namespace, name string) bool

// signer asks for a verb on a signer, or on all signers of its domain (kubernetes.io/*). Parts of this program may all.
func (may Access) signer(ctx context.Context, r *Request, verb, name string) bool {
	if r.Local || may(ctx, r.User, verb, "signers", "", name) {
		return true
	}
	domain, _, _ := strings.Cut(name, "/")
	return may(ctx, r.User, verb, "signers", "", domain+"/*")
}

// Certificates are the plug-ins that rule who may approve, sign and attest, and for which signers
// (https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization).
func Certificates(may Access) Chain {
	return Chain{
		certificateApproval(may),
		certificateSigning(may),
		clusterTrustBundleAttest(may),
		certificateSubjectRestriction(),
		podCertificates(may),
	}
}

// certificateRequester writes into a signing request who made it; nobody can say it of themselves. It does so once for plug-ins
// behind it to see, and again when they are done.
func certificateRequester() Plugin {
	set := func(_ context.Context, r *Request) error {
		if r.Operation == Create && r.Is(signingRequests, "") {
			certificates.SetRequester(r.Object.(*certificatesv1.CertificateSigningRequest), r.User.Name, r.User.UID, r.User.Groups, r.User.Extra)
		}
		return nil
	}
	return Plugin{Name: "CertificateRequester", Mutate: set, Validate: set}
}

// certificateApproval asks for the right to approve for the signer, and notes when a decision was made.
func certificateApproval(may Access) Plugin {
	return Plugin{
		Name: "CertificateApproval",
		Mutate: func(_ context.Context, r *Request) error {
			if r.Operation == Update && (r.Is(signingRequests, "approval") || r.Is(signingRequests, "status")) {
				certificates.StampConditions(r.Object.(*certificatesv1.CertificateSigningRequest),
					r.Old.(*certificatesv1.CertificateSigningRequest), r.Now.UTC().Truncate(time.Second))
			}
			return nil
		},
		Validate: func(ctx context.Context, r *Request) error {
			if r.Operation != Update || !r.Is(signingRequests, "approval") {
				return nil
			}
			name := r.Old.(*certificatesv1.CertificateSigningRequest).Spec.SignerName
			if !may.signer(ctx, r, "approve", name) {
				return Forbidden(r, fmt.Errorf("user not permitted to approve requests with signerName %q", name))
			}
			return nil
		},
	}
}

// certificateSigning asks for the right to sign for the signer.
func certificateSigning(may Access) Plugin {
	return Plugin{Name: "CertificateSigning", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Update || !r.Is(signingRequests, "status") {
			return nil
		}
		old, now := r.Old.(*certificatesv1.CertificateSigningRequest), r.Object.(*certificatesv1.CertificateSigningRequest)
		if slices.Equal(old.Status.Certificate, now.Status.Certificate) && equality.Semantic.DeepEqual(old.Status.Conditions, now.Status.Conditions) {
			return nil
		}
		if !may.signer(ctx, r, "sign", old.Spec.SignerName) {
			return Forbidden(r, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
		}
		return nil
	}}
}

// clusterTrustBundleAttest asks for the right to attest for the signer that a bundle is tied to (KEP-3257).
func clusterTrustBundleAttest(may Access) Plugin {
	return Plugin{Name: "ClusterTrustBundleAttest", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update || !r.Is(trustBundles, "") {
			return nil
		}
		name := r.Object.(*certificatesv1.ClusterTrustBundle).Spec.SignerName
		if name == "" || r.Operation == Update && onlyBookkeeping(r) || may.signer(ctx, r, "attest", name) {
			return nil
		}
		return Forbidden(r, fmt.Errorf("user not permitted to attest for signerName %q", name))
	}}
}

// onlyBookkeeping tells an update that changes no more than owners, finalizers and managed fields, as the garbage
// collector and migrations of storage do.
func onlyBookkeeping(r *Request) bool {
	obj := r.Object.DeepCopyObject().(api.Object)
	obj.SetOwnerReferences(r.Old.GetOwnerReferences())
	obj.SetFinalizers(r.Old.GetFinalizers())
	obj.SetManagedFields(r.Old.GetManagedFields())
	return equality.Semantic.DeepEqual(obj, r.Old)
}

// certificateSubjectRestriction keeps client certificates from being members of system:masters.
func certificateSubjectRestriction() Plugin {
	return Plugin{Name: "CertificateSubjectRestriction", Validate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is(signingRequests, "") {
			return nil
		}
		csr := r.Object.(*certificatesv1.CertificateSigningRequest)
		if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
			return nil
		}
		parsed, err := certificates.ParseRequest(csr.Spec.Request)
		if err != nil {
			return Forbidden(r, fmt.Errorf("failed to parse CSR: %v", err))
		}
		if slices.Contains(parsed.Subject.Organization, client.GroupMasters) {
			return Forbidden(r, errors.New("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"))
		}
		return nil
	}}
}

// issueSkew is how far from now the certificate of a pod may begin to be valid.
const issueSkew = 5 * time.Minute

// podCertificates asks who changes the status of a pod's request for the right to sign, and holds nodes to requests for
// their own pods (KEP-4317).
func podCertificates(may Access) Plugin {
	return Plugin{Name: "PodCertificateRequest", Validate: func(ctx context.Context, r *Request) error {
		switch {
		case r.Operation == Create && r.Is(podRequests, ""):
			if node, ok := nodeOf(r); ok {
				return requestOfNode(ctx, r, node, may)
			}
		case r.Operation == Update && r.Is(podRequests, "status"):
			return podCertificateStatus(ctx, r, may)
		}
		return nil
	}}
}

func podCertificateStatus(ctx context.Context, r *Request, may Access) error {
	old, now := r.Old.(*certificatesv1.PodCertificateRequest), r.Object.(*certificatesv1.PodCertificateRequest)
	if equality.Semantic.DeepEqual(&old.Status, &now.Status) {
		return nil
	}
	invalid := func(err *field.Error) error {
		return apierrors.NewInvalid(schema.GroupKind{Group: certificatesv1.GroupName, Kind: "PodCertificateRequest"}, now.Name, field.ErrorList{err})
	}
	if from := now.Status.NotBefore; from != nil && from.Sub(r.Now).Abs() > issueSkew {
		return invalid(field.Invalid(field.NewPath("status", "notBefore"), from.Time, "must be set to within 5 minutes of kube-apiserver's current time"))
	}
	if !may.signer(ctx, r, "sign", old.Spec.SignerName) {
		return invalid(field.Forbidden(field.NewPath("spec", "signerName"),
			fmt.Sprintf("User %q is not permitted to \"sign\" for signer %q", r.User.Name, old.Spec.SignerName)))
	}
	return nil
}

// nodeOf is the node as which a client acts.
func nodeOf(r *Request) (string, bool) {
	name, ok := strings.CutPrefix(r.User.Name, "system:node:")
	return name, ok && !r.Local && r.User.In(client.GroupNodes)
}

// requestOfNode checks that a node asks for a certificate of a pod that runs on it and mounts one of that signer. What
// may be no more than a look at an older state is not Forbidden, so that it is tried again.
func requestOfNode(ctx context.Context, r *Request, node string, may Access) error {
	s := &r.Object.(*certificatesv1.PodCertificateRequest).Spec
	podName, account := r.Namespace+"/"+s.PodName, r.Namespace+"/"+s.ServiceAccountName
	if string(s.NodeName) != node {
		return Forbidden(r, fmt.Errorf("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", s.NodeName, node))
	}
	n, ok := client.Nodes.Get(r.Snapshot, "", node)
	if !ok {
		return fmt.Errorf("while retrieving node %q named in the PodCertificateRequest: node %q not found", node, node)
	}
	if n.UID != s.NodeUID {
		return fmt.Errorf("PodCertificateRequest for pod %q names node UID %q, inconsistent with the running node (%q)", podName, s.NodeUID, n.UID)
	}
	pod, ok := client.Pods.Get(r.Snapshot, r.Namespace, s.PodName)
	if !ok {
		return fmt.Errorf("while retrieving pod %q named in the PodCertificateRequest: pod %q not found", podName, s.PodName)
	}
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case pod.UID != s.PodUID:
		return fmt.Errorf("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", podName, s.PodUID, string(pod.UID))
	case pod.Spec.NodeName != node:
		return Forbidden(r, fmt.Errorf("pod %q is not running on node %q named in the PodCertificateRequest", podName, s.NodeName))
	case mirror:
		return Forbidden(r, fmt.Errorf("pod %q is a mirror pod", podName))
	case pod.Spec.ServiceAccountName != s.ServiceAccountName:
		return Forbidden(r, fmt.Errorf("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)",
			podName, s.ServiceAccountName, pod.Spec.ServiceAccountName))
	}
	sa, ok := client.ServiceAccounts.Get(r.Snapshot, r.Namespace, s.ServiceAccountName)
	if !ok {
		return fmt.Errorf("while retrieving service account %q named in the PodCertificateRequest: serviceaccount %q not found", account, s.ServiceAccountName)
	}
	if sa.UID != s.ServiceAccountUID {
		return fmt.Errorf("PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account (%q)",
			podName, s.ServiceAccountUID, sa.UID)
	}
	resource := strings.ReplaceAll(s.SignerName, "/", ":")
	if !mounts(pod, s.SignerName) && !may(ctx, r.User, "request-serviceaccounts-podcertificate-signer", resource, r.Namespace, s.ServiceAccountName) {
		return Forbidden(r, fmt.Errorf("pod %q does not mount a podCertificate projected volume for signer %q", podName, s.SignerName))
	}
	return nil
}

// mounts tells whether a pod has a volume with a certificate of a signer.
func mounts(pod *corev1.Pod, signer string) bool {
	for i := range pod.Spec.Volumes {
		if p := pod.Spec.Volumes[i].Projected; p != nil && slices.ContainsFunc(p.Sources, func(s corev1.VolumeProjection) bool {
			return s.PodCertificate != nil && s.PodCertificate.SignerName == signer
		}) {
			return true
		}
	}
	return false
}
