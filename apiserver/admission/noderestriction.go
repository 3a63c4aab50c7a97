package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubelet "k8s.io/kubelet/pkg/apis"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/reference"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// NodeRestriction narrows what the Node authorizer lets a kubelet write to what its own node needs
// (https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction). Other users
// and the parts of this program pass. The authorizer is asked for the audiences and signers that a node may use beside
// those that its pods name.
func NodeRestriction(authorizer authz.Authorizer) Plugin {
	return Plugin{Name: "NodeRestriction", Mutate: func(ctx context.Context, r *Request) error {
		if r.Local || r.Operation == Connect {
			return nil
		}
		node, ok := authz.NodeOf(&r.User)
		if !ok {
			return nil
		}
		if node == "" {
			return forbid(r, "could not determine node from user %q", r.User.Name)
		}
		return restriction{r, node, authorizer}.admit(ctx)
	}}
}

// restriction is one write of a node.
type restriction struct {
	*Request
	node       string
	authorizer authz.Authorizer
}

func forbid(r *Request, format string, args ...any) error {
	return Forbidden(r, fmt.Errorf(format, args...))
}

func (r restriction) forbid(format string, args ...any) error {
	return forbid(r.Request, format, args...)
}

func (r restriction) admit(ctx context.Context) error {
	switch r.Kind.Name() {
	case "pods":
		switch r.Subresource {
		case "":
			return r.pod()
		case "status":
			return r.podStatus()
		case "eviction":
			return r.eviction()
		}
		return r.forbid("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", r.Subresource)
	case "nodes":
		return r.ownNode()
	case "persistentvolumeclaims":
		if r.Subresource == "status" {
			return r.claimStatus()
		}
		return r.forbid("may only update PVC status")
	case "serviceaccounts":
		return r.token(ctx)
	case "podcertificaterequests.certificates.k8s.io":
		return r.podCertificate(ctx)
	case client.Leases.Name:
		return r.lease()
	case client.CSINodes.Name:
		return r.csiNode()
	case "resourceslices.resource.k8s.io":
		return r.resourceSlice()
	case client.CertificateRequests.Name:
		return r.signingRequest()
	}
	return nil
}

// pod lets a node delete its own pods, and create those that stand for files on it.
func (r restriction) pod() error {
	switch r.Operation {
	case Create:
		return r.mirrorPod(r.Object.(*corev1.Pod))
	case Delete:
		if old, ok := r.Old.(*corev1.Pod); !ok || old.Spec.NodeName != r.node {
			return r.forbid("node %q can only delete pods with spec.nodeName set to itself", r.node)
		}
		return nil
	}
	return r.forbid("unexpected operation %q, node %q can only create and delete mirror pods", r.Operation, r.node)
}

func (r restriction) mirrorPod(pod *corev1.Pod) error {
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; !mirror {
		return r.forbid("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, r.node)
	}
	if pod.Spec.NodeName != r.node {
		return r.forbid("node %q can only create pods with spec.nodeName set to itself", r.node)
	}
	if err := r.ownedByNode(pod); err != nil {
		return err
	}
	what, err := reference.Any(pod)
	if err != nil {
		return r.forbid("error checking mirror pod for API references: %w", err)
	}
	if what != "" {
		return r.forbid("node %q can not create pods that reference %s", r.node, what)
	}
	return nil
}

// ownedByNode checks that a mirror pod goes when its node goes.
func (r restriction) ownedByNode(pod *corev1.Pod) error {
	switch len(pod.OwnerReferences) {
	case 0:
		return r.forbid("node %q can only create pods with an owner reference set to itself", r.node)
	case 1:
	default:
		return r.forbid("node %q can only create pods with a single owner reference set to itself", r.node)
	}
	owner := &pod.OwnerReferences[0]
	switch {
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != r.node:
		return r.forbid("node %q can only create pods with an owner reference set to itself", r.node)
	case owner.Controller == nil || !*owner.Controller:
		return r.forbid("node %q can only create pods with a controller owner reference set to itself", r.node)
	case owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion:
		return r.forbid("node %q must not set blockOwnerDeletion on an owner reference", r.node)
	}
	node, ok := client.Nodes.Get(r.Snapshot, "", r.node)
	if !ok {
		return notFound("", "node", r.node)
	}
	if owner.UID != node.UID {
		return r.forbid("node %s UID mismatch: expected %s got %s", r.node, owner.UID, node.UID)
	}
	return nil
}

// notFound is what upstream's listers say.
func notFound(group, resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Group: group, Resource: resource}, name)
}

func (r restriction) podStatus() error {
	pod, ok := r.Object.(*corev1.Pod)
	old, had := r.Old.(*corev1.Pod)
	switch {
	case r.Operation != Update || !ok || !had:
		return r.forbid("unexpected operation %q", r.Operation)
	case old.Spec.NodeName != r.node:
		return r.forbid("node %q can only update pod status for pods with spec.nodeName set to itself", r.node)
	case !labels.Equals(old.Labels, pod.Labels):
		return r.forbid("node %q cannot update labels through pod status", r.node)
	case !same(old.Status.ResourceClaimStatuses, pod.Status.ResourceClaimStatuses):
		return r.forbid("node %q cannot update resource claim statues", r.node)
	case !equality.Semantic.DeepEqual(old.Status.ExtendedResourceClaimStatus, pod.Status.ExtendedResourceClaimStatus):
		return r.forbid("node %q cannot update extended resource claim status", r.node)
	case !same(old.Status.NodeAllocatableResourceClaimStatuses, pod.Status.NodeAllocatableResourceClaimStatuses):
		return r.forbid("node %q cannot update node allocatable resource claim statuses", r.node)
	}
	return nil
}

// same compares lists; none and an empty one are the same.
func same[T any](a, b []T) bool {
	return len(a) == 0 && len(b) == 0 || equality.Semantic.DeepEqual(a, b)
}

func (r restriction) eviction() error {
	e, ok := r.Object.(*policyv1.Eviction)
	if r.Operation != Create || !ok {
		return r.forbid("unexpected operation %s", r.Operation)
	}
	name := r.Name
	if name == "" {
		name = e.Name
	}
	if name == "" {
		return r.forbid("could not determine pod from request data")
	}
	pod, ok := client.Pods.Get(r.Snapshot, r.Namespace, name)
	if !ok {
		return notFound("", "pod", name)
	}
	if pod.Spec.NodeName != r.node {
		return r.forbid("node %s can only evict pods with spec.nodeName set to itself", r.node)
	}
	return nil
}

// claimStatus lets a node tell how large a claim has become.
func (r restriction) claimStatus() error {
	claim, ok := r.Object.(*corev1.PersistentVolumeClaim)
	old, had := r.Old.(*corev1.PersistentVolumeClaim)
	if r.Operation != Update || !ok || !had {
		return r.forbid("unexpected operation %q", r.Operation)
	}
	if !equality.Semantic.DeepEqual(beyondCapacity(old), beyondCapacity(claim)) {
		return r.forbid("node %q is not allowed to update fields other than status.quantity and status.conditions", r.node)
	}
	return nil
}

// beyondCapacity is a claim without what a node may change.
func beyondCapacity(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	c = c.DeepCopy()
	c.ResourceVersion, c.ManagedFields = "", nil
	c.Status.Capacity, c.Status.Conditions = nil, nil
	c.Status.AllocatedResources, c.Status.AllocatedResourceStatuses = nil, nil
	return c
}

func (r restriction) ownNode() error {
	name := r.Name
	if name == "" && r.Object != nil {
		name = r.Object.GetName()
	}
	if name != r.node {
		return r.forbid("node %q is not allowed to modify node %q", r.node, name)
	}
	node, _ := r.Object.(*corev1.Node)
	old, _ := r.Old.(*corev1.Node)
	switch {
	case node == nil:
		return nil
	case old == nil:
		if node.Spec.ConfigSource != nil {
			return r.forbid("node %q is not allowed to create pods with a non-nil configSource", r.node)
		}
		if refused := refusedLabels(node.Labels, nil); len(refused) > 0 {
			return r.forbid("node %q is not allowed to set the following labels: %s", r.node, strings.Join(refused, ", "))
		}
		return nil
	case node.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(node.Spec.ConfigSource, old.Spec.ConfigSource):
		return r.forbid("node %q is not allowed to update configSource to a new non-nil configSource", r.node)
	case !equality.Semantic.DeepEqual(node.Spec.Taints, old.Spec.Taints):
		return r.forbid("node %q is not allowed to modify taints", r.node)
	case !equality.Semantic.DeepEqual(node.OwnerReferences, old.OwnerReferences):
		return r.forbid("node %q is not allowed to modify ownerReferences", r.node)
	}
	if refused := refusedLabels(node.Labels, old.Labels); len(refused) > 0 {
		return r.forbid("is not allowed to modify labels: %s", strings.Join(refused, ", "))
	}
	return nil
}

// refusedLabels are the changed labels that a node may not have a hand in, so that it cannot draw pods to itself.
func refusedLabels(now, old map[string]string) []string {
	var refused []string
	for _, all := range []map[string]string{now, old} {
		for key := range all {
			was, had := old[key]
			is, has := now[key]
			if (had != has || was != is) && refusedLabel(key) && !slices.Contains(refused, key) {
				refused = append(refused, key)
			}
		}
	}
	slices.Sort(refused)
	return refused
}

func refusedLabel(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	in := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
	return in(corev1.LabelNamespaceNodeRestriction) || (in("kubernetes.io") || in("k8s.io")) && !kubelet.IsKubeletLabel(key)
}

// token lets a node have tokens that are bound to its own pods, for audiences that these name.
func (r restriction) token(ctx context.Context) error {
	if r.Operation != Create || r.Subresource != "token" {
		return nil
	}
	req, ok := r.Object.(*authenticationv1.TokenRequest)
	if !ok {
		return r.forbid("unexpected type %T", r.Object)
	}
	ref := req.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return r.forbid("node requested token not bound to a pod")
	case ref.UID == "":
		return r.forbid("node requested token with a pod binding without a uid")
	}
	pod, ok := client.Pods.Get(r.Snapshot, r.Namespace, ref.Name)
	switch {
	case !ok:
		return notFound("", "pod", ref.Name)
	case ref.UID != pod.UID:
		return r.forbid("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	case pod.Spec.NodeName != r.node:
		return r.forbid("node requested token bound to a pod scheduled on a different node")
	}
	if err := r.audience(ctx, pod, req.Spec.Audiences); err != nil {
		return Forbidden(r.Request, err)
	}
	return nil
}

func (r restriction) audience(ctx context.Context, pod *corev1.Pod, audiences []string) error {
	if len(audiences) > 1 {
		return errors.New("node may only request 0 or 1 audiences")
	}
	want := strings.Join(audiences, "")
	named, err := r.namesAudience(pod, want)
	if named {
		return nil
	}
	if err != nil {
		return fmt.Errorf("error validating audience %q: %w", want, err)
	}
	ok, err := r.may(ctx, "request-serviceaccounts-token-audience", want, r.Name)
	switch {
	case ok:
		return nil
	case err != nil:
		return fmt.Errorf("error authorizing %s to request tokens for audience %q: %w", r.User.Name, want, err)
	}
	return fmt.Errorf("%s is not authorized to request tokens for audience %q", r.User.Name, want)
}

// may asks for a verb that RBAC can give to nodes.
func (r restriction) may(ctx context.Context, verb, resource, name string) (bool, error) {
	d, _, err := r.authorizer.Authorize(ctx, &authz.Attributes{User: r.User, Verb: verb, IsResource: true,
		Group: r.Kind.Group, Version: r.Version, Resource: resource, Namespace: r.Namespace, Name: name})
	return d == authz.Allowed, err
}

// namesAudience tells whether a volume of the pod asks for tokens of an audience, itself or through its CSI driver. An error
// says what could not be looked up.
func (r restriction) namesAudience(pod *corev1.Pod, audience string) (bool, error) {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		var driver string
		var err error
		switch {
		case v.Projected != nil:
			if slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
				return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
			}) {
				return true, nil
			}
		case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
			driver, err = r.driverOf(pod.Namespace, core.EphemeralClaimName(pod, v))
		case v.PersistentVolumeClaim != nil:
			driver, err = r.driverOf(pod.Namespace, v.PersistentVolumeClaim.ClaimName)
		case v.CSI != nil:
			driver = v.CSI.Driver
		}
		if driver != "" && err == nil {
			var has bool
			if has, err = r.driverNames(driver, audience); has {
				return true, nil
			}
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return false, errors.Join(errs...)
}

// driverOf is the CSI driver of a claim's volume, "" if it has none.
func (r restriction) driverOf(namespace, name string) (string, error) {
	claim, ok := client.PersistentVolumeClaims.Get(r.Snapshot, namespace, name)
	if !ok {
		return "", notFound("", "persistentvolumeclaim", name)
	}
	pv, ok := client.PersistentVolumes.Get(r.Snapshot, "", claim.Spec.VolumeName)
	if !ok {
		return "", notFound("", "persistentvolume", claim.Spec.VolumeName)
	}
	if pv.Spec.CSI == nil {
		return "", nil
	}
	return pv.Spec.CSI.Driver, nil
}

func (r restriction) driverNames(name, audience string) (bool, error) {
	e := r.Snapshot.Get(store.Key{Resource: "csidrivers.storage.k8s.io", Name: name})
	if e == nil {
		return false, notFound(storagev1.GroupName, "csidriver", name)
	}
	driver, ok := e.Object.(*storagev1.CSIDriver)
	return ok && slices.ContainsFunc(driver.Spec.TokenRequests, func(t storagev1.TokenRequest) bool { return t.Audience == audience }), nil
}

// podCertificate checks that a request for a pod's certificate speaks of a pod of this node as it is.
func (r restriction) podCertificate(ctx context.Context) error {
	switch {
	case r.Operation != Create:
		return r.forbid("unexpected operation %v", r.Operation)
	case r.Subresource != "":
		return r.forbid("unexpected subresource %v", r.Subresource)
	}
	req, ok := r.Object.(*certificatesv1.PodCertificateRequest)
	if !ok {
		return r.forbid("unexpected type %T", r.Object)
	}
	spec := &req.Spec
	if string(spec.NodeName) != r.node {
		return r.forbid("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", spec.NodeName, r.node)
	}
	name := r.Namespace + "/" + spec.PodName
	node, ok := client.Nodes.Get(r.Snapshot, "", r.node)
	if !ok {
		return fmt.Errorf("while retrieving node %q named in the PodCertificateRequest: %w", spec.NodeName, notFound("", "node", r.node))
	}
	if node.UID != spec.NodeUID {
		return r.forbid("PodCertificateRequest for pod %q names node UID %q, inconsistent with the running node (%q)", name, spec.NodeUID, node.UID)
	}
	pod, ok := client.Pods.Get(r.Snapshot, r.Namespace, spec.PodName)
	if !ok {
		return fmt.Errorf("while retrieving pod %q named in the PodCertificateRequest: %w", name, notFound("", "pod", spec.PodName))
	}
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case spec.PodUID != pod.UID:
		return r.forbid("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", name, spec.PodUID, pod.UID)
	case pod.Spec.NodeName != r.node:
		return r.forbid("pod %q is not running on node %q named in the PodCertificateRequest", name, spec.NodeName)
	case mirror:
		return r.forbid("pod %q is a mirror pod", name)
	case spec.ServiceAccountName != pod.Spec.ServiceAccountName:
		return r.forbid("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", name, spec.ServiceAccountName, pod.Spec.ServiceAccountName)
	}
	account := r.Namespace + "/" + spec.ServiceAccountName
	sa, ok := client.ServiceAccounts.Get(r.Snapshot, r.Namespace, spec.ServiceAccountName)
	if !ok {
		return fmt.Errorf("while retrieving service account %q named in the PodCertificateRequest: %w", account, notFound("", "serviceaccount", spec.ServiceAccountName))
	}
	if spec.ServiceAccountUID != sa.UID {
		return r.forbid("PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account (%q)", name, spec.ServiceAccountUID, sa.UID)
	}
	return r.signer(ctx, pod, spec)
}

// signer checks that the pod asks for a certificate of that signer, or that RBAC lets its node ask.
func (r restriction) signer(ctx context.Context, pod *corev1.Pod, spec *certificatesv1.PodCertificateRequestSpec) error {
	for i := range pod.Spec.Volumes {
		p := pod.Spec.Volumes[i].Projected
		if p != nil && slices.ContainsFunc(p.Sources, func(s corev1.VolumeProjection) bool {
			return s.PodCertificate != nil && s.PodCertificate.SignerName == spec.SignerName
		}) {
			return nil
		}
	}
	// RBAC knows no resources with a slash: it is written as in the names of trust bundles.
	ok, err := r.may(ctx, "request-serviceaccounts-podcertificate-signer", strings.ReplaceAll(spec.SignerName, "/", ":"), spec.ServiceAccountName)
	switch {
	case ok:
		return nil
	case err != nil:
		return r.forbid("error authorizing %s to request podcertificaterequests for signer %q: %w", r.User.Name, spec.SignerName, err)
	}
	return r.forbid("pod %q does not mount a podCertificate projected volume for signer %q", r.Namespace+"/"+spec.PodName, spec.SignerName)
}

// named is the name that the write is about, also before the object has been stored.
func (r restriction) named() string {
	if r.Operation == Create && r.Object != nil {
		return r.Object.GetName()
	}
	return r.Name
}

func (r restriction) lease() error {
	switch {
	case r.Namespace != corev1.NamespaceNodeLease:
		return r.forbid("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	case r.named() != r.node:
		return r.forbid("can only access node lease with the same name as the requesting node")
	}
	return nil
}

func (r restriction) csiNode() error {
	if r.named() != r.node {
		return r.forbid("can only access CSINode with the same name as the requesting node")
	}
	if r.Subresource == "status" {
		return r.forbid("CSIVolumeHealth feature gate is disabled")
	}
	return nil
}

func (r restriction) resourceSlice() error {
	own := func(obj any) bool {
		s, ok := obj.(*resourcev1.ResourceSlice)
		return ok && s.Spec.NodeName != nil && *s.Spec.NodeName == r.node
	}
	switch {
	case r.Operation == Create && !own(r.Object):
		return r.forbid("can only create ResourceSlice with the same NodeName as the requesting node")
	case r.Operation == Delete && !own(r.Old):
		return r.forbid("can only delete ResourceSlice with the same NodeName as the requesting node")
	}
	return nil
}

// signingRequest lets a node ask for kubelet certificates in its own name only.
func (r restriction) signingRequest() error {
	csr, ok := r.Object.(*certificatesv1.CertificateSigningRequest)
	if r.Operation != Create || !ok {
		return nil
	}
	if s := csr.Spec.SignerName; s != certificatesv1.KubeletServingSignerName && s != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return r.forbid("unable to parse csr: PEM block type must be CERTIFICATE REQUEST")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return r.forbid("unable to parse csr: %w", err)
	}
	if parsed.Subject.CommonName != "system:node:"+r.node {
		return r.forbid("can only create a node CSR with CN=system:node:%s", r.node)
	}
	return nil
}
