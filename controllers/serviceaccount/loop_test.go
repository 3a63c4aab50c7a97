package serviceaccount_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/serviceaccount"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestEveryActiveNamespaceHasADefaultAccount(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "apps"}})
		h.Settle()
		first := reconciletest.Get(h, client.ServiceAccounts, "apps", "default")
		h.Delete("serviceaccounts", "apps", "default", "")
		h.Settle()
		if again := reconciletest.Get(h, client.ServiceAccounts, "apps", "default"); again.UID == first.UID {
			t.Error("the account was not deleted at all")
		}
		h.Delete("namespaces", "", "apps", "")
		h.Delete("serviceaccounts", "apps", "default", "")
		h.Settle()
		if n := h.Snapshot().Count("serviceaccounts", "apps"); n != 0 {
			t.Errorf("%d accounts in a namespace that goes away", n)
		}
	}, serviceaccount.Loop())
}
