package rootca_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/rootca"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestTheAuthorityIsPublishedAndMended(t *testing.T) {
	const name = "kube-root-ca.crt"
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Settle()
		cm := reconciletest.Get(h, client.ConfigMaps, "default", name)
		if cm.Data["ca.crt"] != "PEM" || cm.Annotations["kubernetes.io/description"] == "" {
			t.Errorf("published: %v %v", cm.Data, cm.Annotations)
		}
		reconciletest.Change(h, client.ConfigMaps, "default", name, "", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"x": "y"} })
		h.Settle()
		if cm = reconciletest.Get(h, client.ConfigMaps, "default", name); len(cm.Data) != 1 || cm.Data["ca.crt"] != "PEM" {
			t.Errorf("not mended: %v", cm.Data)
		}
		h.Delete("configmaps", "kube-system", name, "")
		h.Settle()
		reconciletest.Get(h, client.ConfigMaps, "kube-system", name)
	}, rootca.Loop([]byte("PEM")))
}
