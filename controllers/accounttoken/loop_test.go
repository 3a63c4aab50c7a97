package accounttoken

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func secret(name, account string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
		Annotations: map[string]string{corev1.ServiceAccountNameKey: account}}, Type: corev1.SecretTypeServiceAccountToken}
}

func TestSecretsAreFilledAndGoWithTheirAccount(t *testing.T) {
	sign := func(sa *corev1.ServiceAccount, s *corev1.Secret) (string, error) { return sa.Name + "/" + s.Name, nil }
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create(client.ServiceAccounts.Name, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"},
			Secrets: []corev1.ObjectReference{{Name: "a"}, {Name: "kept"}}})
		h.Create(client.Secrets.Name, secret("a", "robot"))
		h.Create(client.Secrets.Name, secret("b", "robot"))
		h.Create(client.Secrets.Name, secret("lost", "nobody"))
		h.Settle()
		a := reconciletest.Get(h, client.Secrets, "default", "a")
		sa := reconciletest.Get(h, client.ServiceAccounts, "default", "robot")
		if string(a.Data["token"]) != "robot/a" || string(a.Data["ca.crt"]) != "PEM" || string(a.Data["namespace"]) != "default" ||
			a.Annotations[corev1.ServiceAccountUIDKey] != string(sa.UID) {
			t.Errorf("%v %v", a.Data, a.Annotations)
		}
		if _, ok := client.Secrets.Get(h.Snapshot(), "default", "lost"); ok {
			t.Error("a secret without account stayed")
		}
		// A token that was taken out is made again; another authority too.
		reconciletest.Change(h, client.Secrets, "default", "a", "", func(s *corev1.Secret) {
			delete(s.Data, "token")
			s.Data["ca.crt"] = []byte("x")
		})
		h.Settle()
		if a = reconciletest.Get(h, client.Secrets, "default", "a"); string(a.Data["token"]) != "robot/a" || string(a.Data["ca.crt"]) != "PEM" {
			t.Errorf("%v", a.Data)
		}
		h.Delete(client.Secrets.Name, "default", "a", "")
		h.Settle()
		if sa = reconciletest.Get(h, client.ServiceAccounts, "default", "robot"); len(sa.Secrets) != 1 || sa.Secrets[0].Name != "kept" {
			t.Errorf("%v", sa.Secrets)
		}
		h.Delete(client.ServiceAccounts.Name, "default", "robot", "")
		h.Settle()
		if _, ok := client.Secrets.Get(h.Snapshot(), "default", "b"); ok {
			t.Error("the secret outlived its account")
		}
	}, Loop(Config{CA: []byte("PEM"), Sign: sign}))
}
