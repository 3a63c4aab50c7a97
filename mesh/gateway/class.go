package gateway

import (
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// features are those of the Gateway API that are done, in order: status.supportedFeatures of the classes.
var features = []gatewayv1.FeatureName{
	"BackendTLSPolicy", "BackendTLSPolicySANValidation", "GRPCRoute", "GRPCRouteNamedRouteRule", "Gateway", "GatewayAddressEmpty",
	"GatewayBackendClientCertificate", "GatewayFrontendClientCertificateValidation", "GatewayFrontendClientCertificateValidationInsecureFallback",
	"GatewayHTTPListenerIsolation", "GatewayHTTPSListenerDetectMisdirectedRequests", "GatewayPort8080", "GatewayStaticAddresses",
	"HTTPRoute", "HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode",
	"HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket", "HTTPRouteBackendRequestHeaderModification", "HTTPRouteBackendTimeout",
	"HTTPRouteCORS", "HTTPRouteDestinationPortMatching", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching", "HTTPRouteNamedRouteRule",
	"HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching",
	"HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror", "HTTPRouteRequestTimeout",
	"HTTPRouteResponseHeaderModification", "HTTPRouteRetry", "HTTPRouteRetryBackendTimeout", "HTTPRouteRetryConnectionError",
	"HTTPRouteSchemeRedirect", "ListenerSet", "ReferenceGrant", "TCPRoute", "TLSRoute", "TLSRouteModeMixed", "TLSRouteModeTerminate", "UDPRoute",
}

// atStart is the key of the pass that makes the classes.
var atStart = reconcile.Key{Resource: "start", Name: Class}

// ClassLoop gives each cluster its classes, at the start if they are not there (a user who deletes one has peace until the next), and
// says of gateway classes that they are accepted and what they can do.
func ClassLoop() reconcile.Loop {
	return reconcile.Loop{
		Name:   "gateway-class-controller",
		Always: []reconcile.Key{atStart},
		Inputs: []reconcile.Input{{Resource: client.GatewayClasses.Name}},
		Outputs: []reconcile.Output{
			{Resource: client.GatewayClasses.Name, Verbs: []reconcile.Verb{reconcile.Create}},
			{Resource: client.IngressClasses.Name, Verbs: []reconcile.Verb{reconcile.Create}},
			{Resource: client.GatewayClasses.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			if key == atStart {
				return classes(s), nil
			}
			return classStatus(view{s, now}, key.Name), nil
		},
	}
}

func classes(s store.Snapshot) reconcile.Plan {
	var plan reconcile.Plan
	if _, ok := client.GatewayClasses.Get(s, "", Class); !ok {
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Create, Resource: client.GatewayClasses.Name,
			Object: &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: Class}, Spec: gatewayv1.GatewayClassSpec{ControllerName: Controller}}})
	}
	if _, ok := client.IngressClasses.Get(s, "", Class); !ok {
		c := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: Class}, Spec: networkingv1.IngressClassSpec{Controller: IngressController}}
		// Two defaults would be one too many.
		if !slices.ContainsFunc(slices.Collect(client.IngressClasses.List(s, "")), func(o *networkingv1.IngressClass) bool {
			return o.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
		}) {
			c.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
		}
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Create, Resource: client.IngressClasses.Name, Object: c})
	}
	return plan
}

func classStatus(v view, name string) reconcile.Plan {
	old, ok := client.GatewayClasses.Get(v, "", name)
	if !ok || old.Spec.ControllerName != Controller {
		return reconcile.Plan{}
	}
	c := old.DeepCopy()
	accepted := yes(gatewayv1.GatewayClassReasonAccepted)
	if old.Spec.ParametersRef != nil {
		accepted = no(gatewayv1.GatewayClassReasonInvalidParameters, "this controller takes no parameters")
	}
	v.set(&c.Status.Conditions, string(gatewayv1.GatewayClassConditionStatusAccepted), accepted, c.Generation)
	v.set(&c.Status.Conditions, string(gatewayv1.GatewayClassConditionStatusSupportedVersion), yes(gatewayv1.GatewayClassReasonSupportedVersion), c.Generation)
	c.Status.SupportedFeatures = nil
	for _, f := range features {
		c.Status.SupportedFeatures = append(c.Status.SupportedFeatures, gatewayv1.SupportedFeature{Name: f})
	}
	if equality.Semantic.DeepEqual(c.Status, old.Status) {
		return reconcile.Plan{}
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.GatewayClasses.Name, Subresource: "status", Object: c}}}
}
