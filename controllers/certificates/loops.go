package certificates

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api/certificates"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// account is the service account as which the loops of signing requests write.
const account = "certificate-controller"

var (
	podRequests  = client.Resource[*certificatesv1.PodCertificateRequest]{Name: "podcertificaterequests.certificates.k8s.io"}
	trustBundles = client.Resource[*certificatesv1.ClusterTrustBundle]{Name: "clustertrustbundles.certificates.k8s.io"}
)

// Config is what the loops need.
type Config struct {
	// Authority signs for the signers of Kubernetes.
	Authority *Authority
	// Allowed tells whether a user may create a subresource of certificatesigningrequests.certificates.k8s.io
	// ("nodeclient", "selfnodeclient"), which lets requests of nodes be approved without anybody. It is cheap and
	// reads nothing but the store.
	Allowed func(user client.User, subresource string) bool
	// ServingCA is the PEM form of the authority by which the API server is known.
	ServingCA []byte
}

// Loops are all loops of the package.
func Loops(cfg Config) []reconcile.Loop {
	return []reconcile.Loop{signing(cfg.Authority), approving(cfg.Allowed), cleaner(), podCleaner(), publisher(cfg.ServingCA)}
}

func output(resource, subresource string, verbs ...reconcile.Verb) []reconcile.Output {
	return []reconcile.Output{{Resource: resource, Subresource: subresource, Verbs: verbs}}
}

// signing issues certificates for requests that are approved. What its signer does not allow is marked as failed.
func signing(a *Authority) reconcile.Loop {
	return reconcile.Loop{
		Name: "csrsigning", ServiceAccount: account,
		Inputs:  []reconcile.Input{{Resource: client.CertificateRequests.Name}},
		Outputs: output(client.CertificateRequests.Name, "status", reconcile.Update),
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			csr, ok := client.CertificateRequests.Get(s, "", key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return a.plan(csr, now)
		},
	}
}

func (a *Authority) plan(csr *certificatesv1.CertificateSigningRequest, now time.Time) (reconcile.Plan, error) {
	allows := signers[csr.Spec.SignerName]
	if allows == nil || len(csr.Status.Certificate) > 0 || !has(csr, certificatesv1.CertificateApproved) ||
		has(csr, certificatesv1.CertificateDenied) || has(csr, certificatesv1.CertificateFailed) {
		return reconcile.Plan{}, nil
	}
	request, err := certificates.ParseRequest(csr.Spec.Request)
	if err != nil {
		return reconcile.Plan{}, fmt.Errorf("unable to parse csr %q: %v", csr.Name, err)
	}
	w := reconcile.Write{Verb: reconcile.Update, Resource: client.CertificateRequests.Name, Subresource: "status"}
	if err := allows(request, csr.Spec.Usages); err != nil {
		w.Object = withCondition(csr, certificatesv1.CertificateFailed, "SignerValidationFailure", err.Error())
		return reconcile.Plan{Writes: []reconcile.Write{w}}, nil
	}
	certificate, err := a.sign(request, &csr.Spec, now)
	if err != nil {
		return reconcile.Plan{}, fmt.Errorf("error auto signing csr: %v", err)
	}
	csr = csr.DeepCopy()
	csr.Status.Certificate = certificate
	w.Object = csr
	return reconcile.Plan{Writes: []reconcile.Write{w}}, nil
}

// approving approves what nodes ask for to reach the API, where roles allow that.
func approving(allowed func(client.User, string) bool) reconcile.Loop {
	return reconcile.Loop{
		Name: "csrapproving", ServiceAccount: account,
		Inputs: []reconcile.Input{
			{Resource: client.CertificateRequests.Name},
			{Resource: client.ClusterRoleBindings.Name, Keys: undecided},
			{Resource: client.ClusterRoles.Name, Keys: undecided},
			{Resource: client.Nodes.Name, Keys: addressed},
		},
		Outputs: output(client.CertificateRequests.Name, "approval", reconcile.Update),
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			csr, ok := client.CertificateRequests.Get(s, "", key.Name)
			if !ok || !awaitsApproval(csr) {
				return reconcile.Plan{}, nil
			}
			if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName {
				return approveServing(s, csr)
			}
			request, err := certificates.ParseRequest(csr.Spec.Request)
			if err != nil {
				return reconcile.Plan{}, fmt.Errorf("unable to parse csr %q: %v", csr.Name, err)
			}
			if kubeletClient(request, csr.Spec.Usages) != nil {
				return reconcile.Plan{}, nil
			}
			user := requester(csr)
			message := ""
			switch {
			case user.Name == request.Subject.CommonName && allowed(user, "selfnodeclient"):
				message = "Auto approving self kubelet client certificate after SubjectAccessReview."
			case allowed(user, "nodeclient"):
				message = "Auto approving kubelet client certificate after SubjectAccessReview."
			default:
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{Writes: []reconcile.Write{{
				Verb: reconcile.Update, Resource: client.CertificateRequests.Name, Subresource: "approval",
				Object: withCondition(csr, certificatesv1.CertificateApproved, "AutoApproved", message),
			}}}, nil
		},
	}
}

func awaitsApproval(csr *certificatesv1.CertificateSigningRequest) bool {
	ours := csr.Spec.SignerName == certificatesv1.KubeAPIServerClientKubeletSignerName || csr.Spec.SignerName == certificatesv1.KubeletServingSignerName
	return ours && len(csr.Status.Certificate) == 0 &&
		!has(csr, certificatesv1.CertificateApproved) && !has(csr, certificatesv1.CertificateDenied)
}

// undecided gives the requests for which a change of rights may matter.
func undecided(s store.Snapshot, _ store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for csr := range client.CertificateRequests.List(s, "") {
		if awaitsApproval(csr) {
			keys = append(keys, reconcile.Key{Name: csr.Name})
		}
	}
	return keys
}

func requester(csr *certificatesv1.CertificateSigningRequest) client.User {
	u := client.User{Name: csr.Spec.Username, UID: csr.Spec.UID, Groups: csr.Spec.Groups}
	for k, v := range csr.Spec.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return u
}

// How long requests stay, by what became of them.
const (
	decidedLife    = time.Hour
	pendingLife    = 24 * time.Hour
	podRequestLife = 15 * time.Minute
)

// cleaner removes requests when their time has come.
func cleaner() reconcile.Loop {
	return reconcile.Loop{
		Name: "csrcleaner", ServiceAccount: account,
		Inputs:  []reconcile.Input{{Resource: client.CertificateRequests.Name}},
		Outputs: output(client.CertificateRequests.Name, "", reconcile.Delete),
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			csr, ok := client.CertificateRequests.Get(s, "", key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return removal(client.CertificateRequests.Name, &csr.ObjectMeta, requestEnd(csr), now), nil
		},
	}
}

// removal deletes an object whose end has passed, or comes back then. The zero time never comes.
func removal(resource string, o *metav1.ObjectMeta, end, now time.Time) reconcile.Plan {
	switch {
	case end.IsZero() || o.DeletionTimestamp != nil:
		return reconcile.Plan{}
	case !now.After(end):
		return reconcile.Plan{After: end.Sub(now) + time.Millisecond}
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: resource,
		Namespace: o.Namespace, Name: o.Name, UID: o.UID}}}
}

// requestEnd is when a request is to be removed, the earliest of what concerns it.
func requestEnd(csr *certificatesv1.CertificateSigningRequest) time.Time {
	var end time.Time
	until := func(from metav1.Time, life time.Duration) {
		if t := from.Add(life); !from.IsZero() && (end.IsZero() || t.Before(end)) {
			end = t
		}
	}
	if len(csr.Status.Conditions) == 0 {
		until(csr.CreationTimestamp, pendingLife)
	}
	for _, c := range csr.Status.Conditions {
		switch c.Type {
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			until(c.LastUpdateTime, decidedLife)
		case certificatesv1.CertificateApproved:
			if len(csr.Status.Certificate) == 0 {
				until(c.LastUpdateTime, pendingLife)
				continue
			}
			until(c.LastUpdateTime, decidedLife)
			if block, _ := pem.Decode(csr.Status.Certificate); block != nil {
				if issued, err := x509.ParseCertificate(block.Bytes); err == nil {
					until(metav1.NewTime(issued.NotAfter), 0)
				}
			}
		}
	}
	return end
}

// podCleaner removes the requests of pods, which are decided quickly or never.
func podCleaner() reconcile.Loop {
	return reconcile.Loop{
		Name: "podcertificaterequestcleaner",
		Inputs: []reconcile.Input{{Resource: podRequests.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			if ev.Prev != nil || ev.Deleted {
				return nil // the time runs from the creation
			}
			return []reconcile.Key{{Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
		}}},
		Outputs: output(podRequests.Name, "", reconcile.Delete),
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			r, ok := podRequests.Get(s, key.Namespace, key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return removal(podRequests.Name, &r.ObjectMeta, r.CreationTimestamp.Add(podRequestLife), now), nil
		},
	}
}

// servingSigner stands for the authority that signs the API server's certificate; nobody can ask it to sign.
const servingSigner = "kubernetes.io/kube-apiserver-serving"

// publisher keeps one trust bundle of the API server's authority, and removes those of earlier ones.
func publisher(ca []byte) reconcile.Loop {
	sum := sha256.Sum256(ca)
	name := fmt.Sprintf("%s:%x", strings.ReplaceAll(servingSigner, "/", ":"), sum[:12])
	one := reconcile.Key{Name: name}
	return reconcile.Loop{
		Name: "kube-apiserver-serving-clustertrustbundle-publisher",
		Inputs: []reconcile.Input{{Resource: trustBundles.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			if b, ok := ev.Entry.Object.(*certificatesv1.ClusterTrustBundle); ok && b.Spec.SignerName == servingSigner {
				return []reconcile.Key{one}
			}
			return nil
		}}},
		Outputs: output(trustBundles.Name, "", reconcile.Create, reconcile.Update, reconcile.Delete),
		Always:  []reconcile.Key{one},
		Plan: func(s store.Snapshot, _ reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return publish(s, name, string(ca)), nil
		},
	}
}

func publish(s store.Snapshot, name, ca string) reconcile.Plan {
	var plan reconcile.Plan
	switch b, ok := trustBundles.Get(s, "", name); {
	case !ok:
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Create, Resource: trustBundles.Name,
			Object: &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: servingSigner, TrustBundle: ca}}})
	case b.Spec.TrustBundle != ca:
		b = b.DeepCopy()
		b.Spec.TrustBundle = ca
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Update, Resource: trustBundles.Name, Object: b})
	}
	for b := range trustBundles.Index(s, "signer", servingSigner) {
		if b.Name != name {
			plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Delete, Resource: trustBundles.Name, Name: b.Name, UID: b.UID})
		}
	}
	return plan
}
