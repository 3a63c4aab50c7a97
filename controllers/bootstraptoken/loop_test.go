package bootstraptoken

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// token is a bootstrap token; change may edit what it says.
func token(id string, change func(map[string][]byte)) *corev1.Secret {
	data := map[string][]byte{"token-id": []byte(id), "token-secret": []byte("0123456789abcdef"),
		"usage-bootstrap-signing": []byte("true"), "usage-bootstrap-authentication": []byte("true")}
	if change != nil {
		change(data)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: "bootstrap.kubernetes.io/token", Data: data}
}

func namespaces(h *reconciletest.Harness) {
	for _, name := range []string{"kube-public"} {
		h.Create(client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
}

var config = Config{Server: "https://192.0.2.1:6443", CA: []byte("PEM")}

// TestDetached holds the signature to the one that kubeadm's own tests expect.
func TestDetached(t *testing.T) {
	got := detached("Hello from the other side. I must have called a thousand times.", "joshua", []byte("my voice is my passcode"))
	if want := "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestClusterInfoIsSigned(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		namespaces(h)
		h.Create(client.Secrets.Name, token("abc123", nil))
		h.Create(client.Secrets.Name, token("nosign", func(d map[string][]byte) { delete(d, "usage-bootstrap-signing") }))
		h.Create(client.Secrets.Name, token("wrong1", func(d map[string][]byte) { d["token-id"] = []byte("abc123") }))
		h.Settle()
		info := reconciletest.Get(h, client.ConfigMaps, "kube-public", "cluster-info")
		reconciletest.Get(h, client.RoleBindings, "kube-public", infoRole)
		if len(info.Data) != 2 || !strings.Contains(info.Data["kubeconfig"], "server: https://192.0.2.1:6443") {
			t.Fatalf("%v", info.Data)
		}
		if want := detached(info.Data["kubeconfig"], "abc123", []byte("0123456789abcdef")); info.Data["jws-kubeconfig-abc123"] != want {
			t.Errorf("signed %s, want %s", info.Data["jws-kubeconfig-abc123"], want)
		}
		// What is signed changes, and with it the signature; other keys stay.
		before := info.Data["jws-kubeconfig-abc123"]
		reconciletest.Change(h, client.ConfigMaps, "kube-public", "cluster-info", "", func(m *corev1.ConfigMap) {
			m.Data = map[string]string{"kubeconfig": "other", "jws-kubeconfig-gone00": "x", "mine": "y"}
		})
		h.Settle()
		info = reconciletest.Get(h, client.ConfigMaps, "kube-public", "cluster-info")
		if info.Data["jws-kubeconfig-abc123"] == before || info.Data["jws-kubeconfig-gone00"] != "" || info.Data["mine"] != "y" {
			t.Errorf("%v", info.Data)
		}
		h.Delete(client.Secrets.Name, "kube-system", "bootstrap-token-abc123", "")
		// Who takes the role's binding away wants it gone.
		h.Delete(client.RoleBindings.Name, "kube-public", infoRole, "")
		h.Settle()
		if info = reconciletest.Get(h, client.ConfigMaps, "kube-public", "cluster-info"); len(info.Data) != 2 {
			t.Errorf("after the token went: %v", info.Data)
		}
		if _, ok := client.RoleBindings.Get(h.Snapshot(), "kube-public", infoRole); ok {
			t.Error("the binding came back")
		}
	}, Signer(config))
}

func TestExpiredTokensAreDeleted(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		namespaces(h)
		ends := func(d time.Duration) func(map[string][]byte) {
			return func(data map[string][]byte) {
				data["expiration"] = []byte(time.Now().Add(d).UTC().Format(time.RFC3339))
			}
		}
		h.Create(client.Secrets.Name, token("soon00", ends(time.Minute)))
		h.Create(client.Secrets.Name, token("past00", ends(-time.Minute)))
		h.Create(client.Secrets.Name, token("never0", nil))
		h.Create(client.Secrets.Name, token("broken", func(d map[string][]byte) { d["expiration"] = []byte("x") }))
		other := token("other0", ends(-time.Minute))
		other.Type = "Opaque"
		h.Create(client.Secrets.Name, other)
		left := func() string {
			h.Settle()
			var names []string
			for s := range client.Secrets.List(h.Snapshot(), "kube-system") {
				names = append(names, strings.TrimPrefix(s.Name, "bootstrap-token-"))
			}
			return strings.Join(names, " ")
		}
		if got := left(); got != "never0 other0 soon00" {
			t.Errorf("at first: %s", got)
		}
		if info := reconciletest.Get(h, client.ConfigMaps, "kube-public", "cluster-info"); info.Data["jws-kubeconfig-soon00"] == "" {
			t.Errorf("%v", info.Data)
		}
		time.Sleep(2 * time.Minute) // in the bubble's time
		if got := left(); got != "never0 other0" {
			t.Errorf("after a while: %s", got)
		}
		if info := reconciletest.Get(h, client.ConfigMaps, "kube-public", "cluster-info"); info.Data["jws-kubeconfig-soon00"] != "" {
			t.Errorf("%v", info.Data)
		}
	}, Loops(config)...)
}
