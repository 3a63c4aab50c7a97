// Package accounttoken fills secrets of type kubernetes.io/service-account-token with a token of the service account that they
// name, and deletes them when that account is gone
// (https://kubernetes.io/docs/concepts/configuration/secret/#serviceaccount-token-secrets).
//
// It owns the data of such secrets, as far as it makes it, and takes their names out of accounts when they are gone. It never
// makes a secret of its own accord.
package accounttoken

import (
	"bytes"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what the loop puts into secrets.
type Config struct {
	// CA holds the certificates, as PEM, that the API is to be believed by.
	CA []byte
	// Sign makes the token of a secret. It gives the same token each time.
	Sign func(account *corev1.ServiceAccount, secret *corev1.Secret) (string, error)
}

// reference is the Resource of keys that stand for the name of a secret in an account: "account/secret".
const reference = "reference"

// Loop is the token controller. Its keys are secrets, and the names of secrets in accounts.
func Loop(c Config) reconcile.Loop {
	return reconcile.Loop{
		Name:           "serviceaccount-token-controller",
		ServiceAccount: "tokens-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Secrets.Name, Keys: secretChanged},
			{Resource: client.ServiceAccounts.Name, Keys: accountChanged},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Secrets.Name, Verbs: []reconcile.Verb{reconcile.Update, reconcile.Delete}},
			{Resource: client.ServiceAccounts.Name, Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Workers: 2,
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			if key.Resource == reference {
				return unlist(s, key), nil
			}
			return c.plan(s, key)
		},
	}
}

func isToken(s *corev1.Secret) bool { return s.Type == corev1.SecretTypeServiceAccountToken }

// secretChanged gives the secret, or for one that is gone its name in the account.
func secretChanged(_ store.Snapshot, ev store.Event) []reconcile.Key {
	secret := ev.Entry.Object.(*corev1.Secret)
	switch {
	case !isToken(secret):
		return nil
	case ev.Deleted:
		return []reconcile.Key{{Resource: reference, Namespace: secret.Namespace, Name: secret.Annotations[corev1.ServiceAccountNameKey] + "/" + secret.Name}}
	}
	return []reconcile.Key{{Namespace: secret.Namespace, Name: secret.Name}}
}

// accountChanged gives the secrets of an account that has come or gone.
func accountChanged(s store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Prev != nil && !ev.Deleted {
		return nil
	}
	var keys []reconcile.Key
	for secret := range client.Secrets.List(s, ev.Entry.Namespace) {
		if isToken(secret) && secret.Annotations[corev1.ServiceAccountNameKey] == ev.Entry.Name {
			keys = append(keys, reconcile.Key{Namespace: secret.Namespace, Name: secret.Name})
		}
	}
	return keys
}

// plan fills a secret, or deletes one whose account is gone.
func (c Config) plan(s store.Snapshot, key reconcile.Key) (reconcile.Plan, error) {
	secret, ok := client.Secrets.Get(s, key.Namespace, key.Name)
	if !ok || !isToken(secret) || secret.DeletionTimestamp != nil {
		return reconcile.Plan{}, nil
	}
	account, ok := client.ServiceAccounts.Get(s, key.Namespace, secret.Annotations[corev1.ServiceAccountNameKey])
	if uid := secret.Annotations[corev1.ServiceAccountUIDKey]; !ok || uid != "" && uid != string(account.UID) {
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Secrets.Name,
			Namespace: secret.Namespace, Name: secret.Name, UID: secret.UID}}}, nil
	}
	needsCA := len(c.CA) > 0 && !bytes.Equal(secret.Data[corev1.ServiceAccountRootCAKey], c.CA)
	needsNamespace := len(secret.Data[corev1.ServiceAccountNamespaceKey]) == 0
	needsToken := len(secret.Data[corev1.ServiceAccountTokenKey]) == 0
	if !needsCA && !needsNamespace && !needsToken {
		return reconcile.Plan{}, nil
	}
	secret = secret.DeepCopy()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	if needsCA {
		secret.Data[corev1.ServiceAccountRootCAKey] = c.CA
	}
	if needsNamespace {
		secret.Data[corev1.ServiceAccountNamespaceKey] = []byte(secret.Namespace)
	}
	if needsToken {
		token, err := c.Sign(account, secret)
		if err != nil {
			return reconcile.Plan{}, err
		}
		secret.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	secret.Annotations[corev1.ServiceAccountUIDKey] = string(account.UID)
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Secrets.Name, Object: secret}}}, nil
}

// unlist takes the name of a secret that is gone out of its account.
func unlist(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	name, secret, _ := strings.Cut(key.Name, "/")
	account, ok := client.ServiceAccounts.Get(s, key.Namespace, name)
	if !ok {
		return reconcile.Plan{}
	}
	if _, back := client.Secrets.Get(s, key.Namespace, secret); back {
		return reconcile.Plan{}
	}
	named := func(r corev1.ObjectReference) bool { return r.Name == secret }
	if !slices.ContainsFunc(account.Secrets, named) {
		return reconcile.Plan{}
	}
	account = account.DeepCopy()
	account.Secrets = slices.DeleteFunc(account.Secrets, named)
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.ServiceAccounts.Name, Object: account}}}
}
