package authn

import (
	"context"
	"crypto/subtle"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Bootstrap verifies bootstrap tokens ("id.secret"), with which new nodes make themselves known: a secret
// bootstrap-token-id of kube-system says what each is good for
// (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/).
type Bootstrap struct {
	Snapshot func() store.Snapshot
	Now      func() time.Time
}

// Verify implements Verifier. A token that is not good is as unknown as one that does not exist.
func (b *Bootstrap) Verify(_ context.Context, token string) (client.User, bool, error) {
	id, secret, ok := splitBootstrap(token)
	if !ok {
		return client.User{}, false, nil
	}
	s, ok := client.Secrets.Get(b.Snapshot(), metav1.NamespaceSystem, bootstrapapi.BootstrapTokenSecretPrefix+id)
	if !ok || s.DeletionTimestamp != nil || s.Type != bootstrapapi.SecretTypeBootstrapToken {
		return client.User{}, false, nil
	}
	switch {
	case subtle.ConstantTimeCompare(s.Data[bootstrapapi.BootstrapTokenSecretKey], []byte(secret)) != 1,
		string(s.Data[bootstrapapi.BootstrapTokenIDKey]) != id,
		string(s.Data[bootstrapapi.BootstrapTokenUsageAuthentication]) != "true",
		b.expired(s):
		return client.User{}, false, nil
	}
	groups, ok := bootstrapGroups(string(s.Data[bootstrapapi.BootstrapTokenExtraGroupsKey]))
	return client.User{Name: bootstrapapi.BootstrapUserPrefix + id, Groups: groups}, ok, nil
}

func (b *Bootstrap) expired(s *corev1.Secret) bool {
	text := string(s.Data[bootstrapapi.BootstrapTokenExpirationKey])
	if text == "" {
		return false
	}
	at, err := time.Parse(time.RFC3339, text)
	return err != nil || !b.Now().Before(at)
}

// splitBootstrap takes apart a bootstrap token: six and sixteen small letters and digits.
func splitBootstrap(token string) (id, secret string, ok bool) {
	id, secret, _ = strings.Cut(token, ".")
	if len(id) != bootstrapapi.BootstrapTokenIDBytes || len(secret) != bootstrapapi.BootstrapTokenSecretBytes {
		return "", "", false
	}
	other := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	return id, secret, !strings.ContainsFunc(id, other) && !strings.ContainsFunc(secret, other)
}

var groupPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(bootstrapapi.BootstrapGroupPattern) })

// bootstrapGroups are the groups of a token, false if one of those that it names cannot be one.
func bootstrapGroups(extra string) ([]string, bool) {
	groups := []string{bootstrapapi.BootstrapDefaultGroup}
	if extra == "" {
		return groups, true
	}
	for g := range strings.SplitSeq(extra, ",") {
		if !groupPattern().MatchString(g) {
			return nil, false
		}
		groups = append(groups, g)
	}
	slices.Sort(groups)
	return slices.Compact(groups), true
}
