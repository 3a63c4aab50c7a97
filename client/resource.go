package client

import (
	"iter"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// Resource reads objects of one type out of snapshots. T is the hub type.
type Resource[T api.Object] struct {
	// Name is the canonical resource name.
	Name string
}

// The built-in resources that loops read.
var (
	Pods                   = Resource[*corev1.Pod]{"pods"}
	Nodes                  = Resource[*corev1.Node]{"nodes"}
	Namespaces             = Resource[*corev1.Namespace]{"namespaces"}
	Services               = Resource[*corev1.Service]{"services"}
	Endpoints              = Resource[*corev1.Endpoints]{"endpoints"} //nolint:staticcheck // still served
	ConfigMaps             = Resource[*corev1.ConfigMap]{"configmaps"}
	Secrets                = Resource[*corev1.Secret]{"secrets"}
	ServiceAccounts        = Resource[*corev1.ServiceAccount]{"serviceaccounts"}
	Events                 = Resource[*corev1.Event]{"events"}
	ReplicationControllers = Resource[*corev1.ReplicationController]{"replicationcontrollers"}
	PersistentVolumes      = Resource[*corev1.PersistentVolume]{"persistentvolumes"}
	PersistentVolumeClaims = Resource[*corev1.PersistentVolumeClaim]{"persistentvolumeclaims"}
	LimitRanges            = Resource[*corev1.LimitRange]{"limitranges"}
	ResourceQuotas         = Resource[*corev1.ResourceQuota]{"resourcequotas"}
	Deployments            = Resource[*appsv1.Deployment]{"deployments.apps"}
	ReplicaSets            = Resource[*appsv1.ReplicaSet]{"replicasets.apps"}
	StatefulSets           = Resource[*appsv1.StatefulSet]{"statefulsets.apps"}
	DaemonSets             = Resource[*appsv1.DaemonSet]{"daemonsets.apps"}
	ControllerRevisions    = Resource[*appsv1.ControllerRevision]{"controllerrevisions.apps"}
	Jobs                   = Resource[*batchv1.Job]{"jobs.batch"}
	CronJobs               = Resource[*batchv1.CronJob]{"cronjobs.batch"}
	ServiceCIDRs           = Resource[*networkingv1.ServiceCIDR]{"servicecidrs.networking.k8s.io"}
	EndpointSlices         = Resource[*discoveryv1.EndpointSlice]{"endpointslices.discovery.k8s.io"}
	Leases                 = Resource[*coordinationv1.Lease]{"leases.coordination.k8s.io"}
	PriorityClasses        = Resource[*schedulingv1.PriorityClass]{"priorityclasses.scheduling.k8s.io"}
	RuntimeClasses         = Resource[*nodev1.RuntimeClass]{"runtimeclasses.node.k8s.io"}
	PodDisruptionBudgets   = Resource[*policyv1.PodDisruptionBudget]{"poddisruptionbudgets.policy"}
	HorizontalAutoscalers  = Resource[*autoscalingv2.HorizontalPodAutoscaler]{"horizontalpodautoscalers.autoscaling"}
	NetworkPolicies        = Resource[*networkingv1.NetworkPolicy]{"networkpolicies.networking.k8s.io"}
	ClusterNetworkPolicies = Resource[*policyv1alpha2.ClusterNetworkPolicy]{"clusternetworkpolicies.policy.networking.k8s.io"}
	Ingresses              = Resource[*networkingv1.Ingress]{"ingresses.networking.k8s.io"}
	IngressClasses         = Resource[*networkingv1.IngressClass]{"ingressclasses.networking.k8s.io"}
	GatewayClasses         = Resource[*gatewayv1.GatewayClass]{"gatewayclasses.gateway.networking.k8s.io"}
	Gateways               = Resource[*gatewayv1.Gateway]{"gateways.gateway.networking.k8s.io"}
	ListenerSets           = Resource[*gatewayv1.ListenerSet]{"listenersets.gateway.networking.k8s.io"}
	HTTPRoutes             = Resource[*gatewayv1.HTTPRoute]{"httproutes.gateway.networking.k8s.io"}
	GRPCRoutes             = Resource[*gatewayv1.GRPCRoute]{"grpcroutes.gateway.networking.k8s.io"}
	TLSRoutes              = Resource[*gatewayv1.TLSRoute]{"tlsroutes.gateway.networking.k8s.io"}
	TCPRoutes              = Resource[*gatewayv1.TCPRoute]{"tcproutes.gateway.networking.k8s.io"}
	UDPRoutes              = Resource[*gatewayv1.UDPRoute]{"udproutes.gateway.networking.k8s.io"}
	BackendTLSPolicies     = Resource[*gatewayv1.BackendTLSPolicy]{"backendtlspolicies.gateway.networking.k8s.io"}
	ReferenceGrants        = Resource[*gatewayv1.ReferenceGrant]{"referencegrants.gateway.networking.k8s.io"}
	StorageClasses         = Resource[*storagev1.StorageClass]{"storageclasses.storage.k8s.io"}
	CSINodes               = Resource[*storagev1.CSINode]{"csinodes.storage.k8s.io"}
	VolumeAttachments      = Resource[*storagev1.VolumeAttachment]{"volumeattachments.storage.k8s.io"}
	CertificateRequests    = Resource[*certificatesv1.CertificateSigningRequest]{"certificatesigningrequests.certificates.k8s.io"}
	ClusterRoles           = Resource[*rbacv1.ClusterRole]{"clusterroles.rbac.authorization.k8s.io"}
	ClusterRoleBindings    = Resource[*rbacv1.ClusterRoleBinding]{"clusterrolebindings.rbac.authorization.k8s.io"}
	Roles                  = Resource[*rbacv1.Role]{"roles.rbac.authorization.k8s.io"}
	RoleBindings           = Resource[*rbacv1.RoleBinding]{"rolebindings.rbac.authorization.k8s.io"}
	MutatingWebhooks       = Resource[*admissionv1.MutatingWebhookConfiguration]{"mutatingwebhookconfigurations.admissionregistration.k8s.io"}
	ResourceClaims         = Resource[*resourcev1.ResourceClaim]{"resourceclaims.resource.k8s.io"}
	ResourceClaimTemplates = Resource[*resourcev1.ResourceClaimTemplate]{"resourceclaimtemplates.resource.k8s.io"}
	DeviceClasses          = Resource[*resourcev1.DeviceClass]{"deviceclasses.resource.k8s.io"}
	DeviceTaintRules       = Resource[*resourcev1.DeviceTaintRule]{"devicetaintrules.resource.k8s.io"}
	ResourceSlices         = Resource[*resourcev1.ResourceSlice]{"resourceslices.resource.k8s.io"}
	ValidatingWebhooks     = Resource[*admissionv1.ValidatingWebhookConfiguration]{"validatingwebhookconfigurations.admissionregistration.k8s.io"}
)

// Get returns the object, and whether it is there.
func (r Resource[T]) Get(s store.Snapshot, namespace, name string) (T, bool) {
	if e := s.Get(store.Key{Resource: r.Name, Namespace: namespace, Name: name}); e != nil {
		return e.Object.(T), true
	}
	var zero T
	return zero, false
}

// List walks the objects of a namespace, or of all with "", in order of
// namespace and name.
func (r Resource[T]) List(s store.Snapshot, namespace string) iter.Seq[T] {
	return objects[T](s.List(r.Name, namespace, nil))
}

// Index walks the objects that an index files under value.
func (r Resource[T]) Index(s store.Snapshot, index, value string) iter.Seq[T] {
	return objects[T](s.Index(r.Name, index, value))
}

func objects[T api.Object](entries iter.Seq[*store.Entry]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for e := range entries {
			if !yield(e.Object.(T)) {
				return
			}
		}
	}
}

func (r Resource[T]) notFound(name string) error {
	gr := schema.ParseGroupResource(r.Name)
	return apierrors.NewNotFound(gr, name)
}

func isConflict(err error) bool { return apierrors.IsConflict(err) }
