// Package gateway translates Gateway API objects and Ingresses into the tables that the proxy serves (mesh/table), and tells them what
// became of them in their status.
//
// It owns the status of gateways, listener sets, routes, policies and ingresses of the classes whose controller it is, and the
// addresses of gateways. Everything is decided by pure functions of a snapshot; a pass concerns one gateway, one route or one service, and
// the publisher makes the next table out of the parts that changed. It never opens a socket and never copies a request.
//
// https://gateway-api.sigs.k8s.io/reference/spec/ and https://kubernetes.io/docs/concepts/services-networking/ingress/
package gateway

import (
	"cmp"
	"crypto/tls"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Names that are set in the objects of a cluster.
const (
	// Controller is spec.controllerName of the gateway classes that are served.
	Controller = "coracle.dev/gateway"
	// IngressController is spec.controller of the ingress classes that are served.
	IngressController = "coracle.dev/ingress"
	// Class is the name of the gateway class and of the ingress class that every cluster is given at its start.
	Class = "coracle"

	group = gatewayv1.GroupName
)

// view is a snapshot, at a time.
type view struct {
	store.Snapshot
	now time.Time
}

// ours finds a gateway whose class this controller serves.
func (v view) ours(namespace, name string) (*gatewayv1.Gateway, bool) {
	g, ok := client.Gateways.Get(v, namespace, name)
	if !ok || !v.serves(g) {
		return nil, false
	}
	return g, true
}

// serves tells whether the class of a gateway is one of this controller's.
func (v view) serves(g *gatewayv1.Gateway) bool {
	c, ok := client.GatewayClasses.Get(v, "", string(g.Spec.GatewayClassName))
	return ok && c.Spec.ControllerName == Controller
}

// reference says who refers, for ReferenceGrants.
type reference struct{ kind, namespace string }

// granted tells whether a reference to an object of another namespace is allowed. Within a namespace it always is.
func (v view) granted(from reference, toGroup, toKind, namespace, name string) bool {
	if from.namespace == namespace {
		return true
	}
	for g := range client.ReferenceGrants.List(v, namespace) {
		allowed := slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return f.Group == group && string(f.Kind) == from.kind && string(f.Namespace) == from.namespace
		})
		if allowed && slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
			return string(t.Group) == toGroup && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == name)
		}) {
			return true
		}
	}
	return false
}

// selects tells whether a namespace is among those from which something is allowed.
func (v view) selects(from gatewayv1.FromNamespaces, selector *metav1.LabelSelector, home, namespace string) bool {
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return home == namespace
	case gatewayv1.NamespacesFromSelector:
		n, ok := client.Namespaces.Get(v, "", namespace)
		s, err := metav1.LabelSelectorAsSelector(selector)
		return ok && err == nil && s.Matches(labels.Set(n.Labels))
	}
	return false
}

// certificate reads a TLS secret.
func certificate(s *corev1.Secret) (tls.Certificate, error) {
	return tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
}

// value is what a pointer points to, or otherwise.
func value[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// older orders objects by age, and by name where they are of one age: who came first goes first.
func older(a, b api.Object) int {
	return cmp.Or(a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time),
		strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
}

// said is a condition in the making.
type said struct {
	status          bool
	reason, message string
}

func yes[R ~string](reason R) said { return said{true, string(reason), ""} }

func no[R ~string](reason R, message string) said { return said{false, string(reason), message} }

// set puts a condition into a list. Its time stays where the status does.
func (v view) set(list *[]metav1.Condition, kind string, s said, generation int64) {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: s.reason, Message: s.message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(v.now.UTC().Truncate(time.Second))}
	if s.status {
		c.Status = metav1.ConditionTrue
	}
	for i := range *list {
		if have := &(*list)[i]; have.Type == kind {
			if have.Status == c.Status {
				c.LastTransitionTime = have.LastTransitionTime
			}
			*have = c
			return
		}
	}
	*list = append(*list, c)
}

// drop takes a condition out of a list.
func drop(list *[]metav1.Condition, kind string) {
	*list = slices.DeleteFunc(*list, func(c metav1.Condition) bool { return c.Type == kind })
}
