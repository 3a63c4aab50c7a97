// Package bootstraptoken takes care of bootstrap tokens, with which new nodes make themselves known: it deletes those that have
// expired, and signs with the others what a node must know to trust the cluster
// (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/).
//
// It owns the existence of the config map cluster-info in kube-public, as kubeadm makes it, and the signatures in it. The role that
// lets strangers read it is made together with it and then left alone: who takes it away wants it gone. It
// never decides whether a token is good for a request.
package bootstraptoken

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cluster-bootstrap/token/api"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what new nodes are told of the cluster.
type Config struct {
	// Server is the URL of the API.
	Server string
	// CA holds the certificates, as PEM, that the API is to be believed by.
	CA []byte
}

// Loops are the signer and the cleaner.
func Loops(c Config) []reconcile.Loop { return []reconcile.Loop{Signer(c), Cleaner()} }

// infoRole lets everybody read cluster-info.
const infoRole = "kubeadm:bootstrap-signer-clusterinfo"

var infoKey = reconcile.Key{Namespace: metav1.NamespacePublic, Name: api.ConfigMapClusterInfo}

// Signer keeps cluster-info signed with every token that may sign. It has one key.
func Signer(c Config) reconcile.Loop {
	create := []reconcile.Verb{reconcile.Create}
	return reconcile.Loop{
		Name:           "bootstrap-signer-controller",
		ServiceAccount: "bootstrap-signer",
		Inputs: []reconcile.Input{
			{Resource: client.Namespaces.Name, Keys: named("", metav1.NamespacePublic)},
			{Resource: client.ConfigMaps.Name, Keys: named(infoKey.Namespace, infoKey.Name)},
			{Resource: client.Secrets.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				if isToken(ev.Entry.Object.(*corev1.Secret)) || ev.Prev != nil && isToken(ev.Prev.Object.(*corev1.Secret)) {
					return []reconcile.Key{infoKey}
				}
				return nil
			}},
		},
		Outputs: []reconcile.Output{
			{Resource: client.ConfigMaps.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update}},
			{Resource: client.Roles.Name, Verbs: create}, {Resource: client.RoleBindings.Name, Verbs: create},
		},
		Plan: func(s store.Snapshot, _ reconcile.Key, now time.Time) (reconcile.Plan, error) {
			return sign(s, c, now), nil
		},
	}
}

// named gives the signer's key for changes of one object.
func named(namespace, name string) func(store.Snapshot, store.Event) []reconcile.Key {
	return func(_ store.Snapshot, ev store.Event) []reconcile.Key {
		if ev.Entry.Namespace != namespace || ev.Entry.Name != name {
			return nil
		}
		return []reconcile.Key{infoKey}
	}
}

// isToken tells whether a secret is a bootstrap token.
func isToken(s *corev1.Secret) bool {
	return s.Type == api.SecretTypeBootstrapToken && s.Namespace == metav1.NamespaceSystem
}

// sign plans the signatures, and the config map itself if there is none.
func sign(s store.Snapshot, c Config, now time.Time) reconcile.Plan {
	ns, ok := client.Namespaces.Get(s, "", infoKey.Namespace)
	if !ok || ns.DeletionTimestamp != nil {
		return reconcile.Plan{}
	}
	have, ok := client.ConfigMaps.Get(s, infoKey.Namespace, infoKey.Name)
	info := have
	if !ok {
		info = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: infoKey.Namespace, Name: infoKey.Name},
			Data: map[string]string{api.KubeConfigKey: c.kubeconfig()}}
	}
	content, signable := info.Data[api.KubeConfigKey]
	if !signable {
		return reconcile.Plan{}
	}
	data, after := signatures(s, content, now)
	for key, value := range info.Data {
		if !strings.HasPrefix(key, api.JWSSignatureKeyPrefix) {
			data[key] = value
		}
	}
	if !ok {
		info.Data = data
		return reconcile.Plan{Writes: create(s, info), After: after}
	}
	if maps.Equal(data, have.Data) {
		return reconcile.Plan{After: after}
	}
	info = have.DeepCopy()
	info.Data = data
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.ConfigMaps.Name, Object: info}}, After: after}
}

// signatures are those of all tokens that may sign, and how long until one of them expires, 0 for never.
func signatures(s store.Snapshot, content string, now time.Time) (out map[string]string, after time.Duration) {
	out = map[string]string{}
	for secret := range client.Secrets.List(s, metav1.NamespaceSystem) {
		id, ok := signer(secret)
		left, expired := life(secret, now)
		if !ok || expired {
			continue
		}
		if left > 0 && (after == 0 || left < after) {
			after = left
		}
		out[api.JWSSignatureKeyPrefix+id] = detached(content, id, secret.Data[api.BootstrapTokenSecretKey])
	}
	return out, after
}

// signer gives the ID of a token that may sign.
func signer(s *corev1.Secret) (id string, ok bool) {
	if !isToken(s) || s.DeletionTimestamp != nil {
		return "", false
	}
	id = string(s.Data[api.BootstrapTokenIDKey])
	return id, s.Name == api.BootstrapTokenSecretPrefix+id && len(id) == api.BootstrapTokenIDBytes &&
		len(s.Data[api.BootstrapTokenSecretKey]) > 0 && string(s.Data[api.BootstrapTokenUsageSigningKey]) == "true"
}

// life is how long a token lives still, 0 for ever. What cannot be read has expired.
func life(s *corev1.Secret, now time.Time) (left time.Duration, expired bool) {
	text := string(s.Data[api.BootstrapTokenExpirationKey])
	if text == "" {
		return 0, false
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || !at.After(now) {
		return 0, true
	}
	return at.Sub(now), false
}

// detached is a compact JWS without its content (RFC 7515, appendix F), signed with HS256.
func detached(content, id string, secret []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	header := b64(fmt.Appendf(nil, `{"alg":"HS256","kid":%q}`, id))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(header + "." + b64([]byte(content))))
	return header + ".." + b64(mac.Sum(nil))
}

// kubeconfig names the cluster and no user.
func (c Config) kubeconfig() string {
	return fmt.Sprintf(`apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: ""
contexts: null
current-context: ""
kind: Config
users: null
`, base64.StdEncoding.EncodeToString(c.CA), c.Server)
}

// create makes the config map, and what lets strangers read it unless that is there.
func create(s store.Snapshot, info *corev1.ConfigMap) []reconcile.Write {
	meta := metav1.ObjectMeta{Namespace: infoKey.Namespace, Name: infoRole}
	var writes []reconcile.Write
	if _, ok := client.Roles.Get(s, meta.Namespace, meta.Name); !ok {
		writes = append(writes, reconcile.Write{Verb: reconcile.Create, Resource: client.Roles.Name, Object: &rbacv1.Role{ObjectMeta: meta,
			Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{infoKey.Name}}}}})
	}
	if _, ok := client.RoleBindings.Get(s, meta.Namespace, meta.Name); !ok {
		writes = append(writes, reconcile.Write{Verb: reconcile.Create, Resource: client.RoleBindings.Name, Object: &rbacv1.RoleBinding{ObjectMeta: meta,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: infoRole},
			Subjects: []rbacv1.Subject{
				{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: client.UserAnonymous},
				// Where strangers are not let in at all, who has a token is no stranger.
				{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: api.BootstrapDefaultGroup}}}})
	}
	return append(writes, reconcile.Write{Verb: reconcile.Create, Resource: client.ConfigMaps.Name, Object: info})
}

// Cleaner deletes tokens that have expired. Its keys are secrets.
func Cleaner() reconcile.Loop {
	return reconcile.Loop{
		Name:           "token-cleaner-controller",
		ServiceAccount: "token-cleaner",
		Inputs: []reconcile.Input{{Resource: client.Secrets.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
			if ev.Deleted || !isToken(ev.Entry.Object.(*corev1.Secret)) {
				return nil
			}
			return []reconcile.Key{{Namespace: ev.Entry.Namespace, Name: ev.Entry.Name}}
		}}},
		Outputs: []reconcile.Output{{Resource: client.Secrets.Name, Verbs: []reconcile.Verb{reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			secret, ok := client.Secrets.Get(s, key.Namespace, key.Name)
			if !ok || !isToken(secret) || secret.DeletionTimestamp != nil {
				return reconcile.Plan{}, nil
			}
			left, expired := life(secret, now)
			if !expired {
				return reconcile.Plan{After: left}, nil
			}
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Secrets.Name,
				Namespace: key.Namespace, Name: key.Name, UID: secret.UID}}}, nil
		},
	}
}
