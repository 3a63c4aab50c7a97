package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// fixture is a store with one service account, and what issues its tokens.
func fixture(t testing.TB) (*Tokens, *corev1.ServiceAccount) {
	t.Helper()
	s := memory.New(client.StoreOptions(api.NewRegistry(core.Kinds()...), 0))
	t.Cleanup(func() { _ = s.Close() })
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot", UID: "u"}}
	op := store.Op{Key: store.Key{Resource: "serviceaccounts", Namespace: sa.Namespace, Name: sa.Name}, Object: sa}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Tokens{Key: key, Issuer: "https://issuer", Audiences: []string{"https://issuer"}, Snapshot: s.Snapshot, Now: time.Now}, sa
}

// FuzzToken changes good tokens and tries all sorts of others: no user but the token's own ever comes out.
func FuzzToken(f *testing.F) {
	tokens, sa := fixture(f)
	good, _, err := tokens.Issue(Grant{ServiceAccount: sa, Expiry: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(strings.Replace(good, ".", "..", 1))
	f.Add("eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".")
	f.Add("abc123.0123456789abcdef")
	a := &Authenticator{Tokens: tokens, Bootstrap: &Bootstrap{Snapshot: tokens.Snapshot, Now: time.Now}, Audiences: tokens.Audiences, Now: time.Now}
	f.Fuzz(func(t *testing.T, token string) {
		user, _, err := a.Token(context.Background(), token, nil)
		signed, _, _ := cutLast(token)
		if err == nil && (!strings.HasPrefix(good, signed+".") || user.Name != "system:serviceaccount:default:robot") {
			t.Errorf("%q is %+v", token, user)
		}
		if err != nil && token != "" && len(token) > 20 && strings.Contains(err.Error(), token) {
			t.Errorf("the error holds the token: %v", err)
		}
	})
}

func FuzzBearer(f *testing.F) {
	f.Add("Bearer x y", "base64url.bearer.authorization.k8s.io.YQ")
	f.Fuzz(func(t *testing.T, header, protocol string) {
		r := &http.Request{Header: http.Header{"Authorization": {header}, "Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Protocol": {protocol}}}
		if token, err := bearer(r); err == nil && strings.HasPrefix(header, "Bearer ") && strings.Contains(token, " ") {
			t.Errorf("%q", token)
		}
	})
}

func TestTokensTimes(t *testing.T) {
	tokens, sa := fixture(t)
	now := time.Now()
	tokens.Now = func() time.Time { return now }
	token, _, err := tokens.Issue(Grant{ServiceAccount: sa, Expiry: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		after time.Duration
		want  string
	}{
		{0, ""}, {time.Hour + 30*time.Second, ""}, {time.Hour + 2*time.Minute, "service account token has expired"},
		{-30 * time.Second, ""}, {-2 * time.Minute, "service account token is not valid yet"},
	} {
		was := now
		now = now.Add(test.after)
		_, _, err := tokens.Authenticate(token, nil)
		if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("after %v: %v", test.after, err)
		}
		now = was
	}
}

// BenchmarkVerify is the cost of a token that was not seen before.
func BenchmarkVerify(b *testing.B) {
	tokens, sa := fixture(b)
	token, _, err := tokens.Issue(Grant{ServiceAccount: sa, Expiry: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		tokens.known = nil
		if _, _, err := tokens.Authenticate(token, nil); err != nil {
			b.Fatal(err)
		}
	}
}
