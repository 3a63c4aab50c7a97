package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// BuiltIn are the plug-ins that every server has, in upstream's order. The reader is for
// those that wait for what another part of the program is about to make.
func BuiltIn(reader client.Reader) Chain {
	return Chain{
		namespaceLifecycle(),
		limitRanger(),
		serviceAccount(reader),
		taintNodes(),
		podSecurity(),
		priority(),
		defaultTolerationSeconds(),
		defaultStorageClass(),
		storageObjectInUse(),
		claimResize(),
		runtimeClass(),
		certificateRequester(),
		defaultIngressClass(),
		podTopologyLabels(),
		nodeDeclaredFeatures(),
		podResize(),
	}
}

// Last are the built-in plug-ins that run behind all others, since they count what is really stored.
func Last() Chain { return Chain{resourceQuota()} }

// immortal namespaces cannot be deleted.
var immortal = map[string]bool{
	metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true,
}

// namespaceLifecycle refuses new objects in namespaces that are missing or being deleted, and the
// deletion of those that the cluster needs.
func namespaceLifecycle() Plugin {
	return Plugin{Name: "NamespaceLifecycle", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation == Delete && r.Kind.Name() == "namespaces" && immortal[r.Name] {
			return apierrors.NewForbidden(r.Resource(), r.Name, errors.New("this namespace may not be deleted"))
		}
		if !r.Kind.Namespaced || r.Operation == Delete || r.Kind.Virtual && r.Kind.Group == "authorization.k8s.io" {
			return nil
		}
		ns, ok := client.Namespaces.Get(r.Snapshot, "", r.Namespace)
		if !ok {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, r.Namespace)
		}
		if r.Operation != Create {
			return nil
		}
		if ns.Status.Phase == corev1.NamespaceTerminating || ns.DeletionTimestamp != nil {
			return terminating(r, ns)
		}
		// The namespace may not go between here and the commit.
		r.Require(store.Key{Resource: client.Namespaces.Name, Name: ns.Name}, revisionOf(r.Snapshot, ns))
		return nil
	}}
}

// revisionOf is the revision at which a namespace stands in the snapshot.
func revisionOf(s store.Snapshot, ns *corev1.Namespace) store.Revision {
	return s.Get(store.Key{Resource: client.Namespaces.Name, Name: ns.Name}).Revision
}

func terminating(r *Request, ns *corev1.Namespace) error {
	err := apierrors.NewForbidden(r.Resource(), r.displayName(),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.Name))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", ns.Name), Field: "metadata.namespace",
	})
	return err
}
