package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
)

// issuer is an OpenID Connect issuer on loopback.
type issuer struct {
	*httptest.Server
	t     *testing.T
	key   *ecdsa.PrivateKey
	keyID string
	down  atomic.Bool
	asked atomic.Int32 // for discovery
	keys  atomic.Int32 // for keys
}

func startIssuer(t *testing.T) *issuer {
	i := &issuer{t: t}
	i.rotate("one")
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.asked.Add(1)
		if i.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		i.keys.Add(1)
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: i.keyID, Algorithm: "ES256", Use: "sig"}}})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) rotate(id string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.key, i.keyID = key, id
}

// config is an AuthenticationConfiguration with this issuer; more is YAML below the issuer.
func (i *issuer) config(more string) string {
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}))
	return fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: %s
    audiences: [coracle]
    certificateAuthority: |
      %s
%s`, i.URL, strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n      "), more)
}

func (i *issuer) verifier(now func() time.Time, more string) authn.Verifier {
	i.t.Helper()
	c, err := Parse([]byte(i.config(more)))
	if err != nil {
		i.t.Fatal(err)
	}
	all, err := c.Verifiers(now)
	if err != nil || len(all) != 1 {
		i.t.Fatal(all, err)
	}
	return all[0]
}

// token signs claims; those that every token needs are added.
func (i *issuer) token(now time.Time, more map[string]any) string {
	i.t.Helper()
	c := map[string]any{"iss": i.URL, "aud": "coracle", "sub": "1234", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix()}
	for k, v := range more {
		c[k] = v
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.keyID}}, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	data, err := json.Marshal(c)
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := signer.Sign(data)
	if err != nil {
		i.t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return out
}

const byEmail = `
  claimMappings:
    username: {claim: email, prefix: "oidc:"}
    groups: {claim: groups, prefix: "oidc:"}
`

const byExpression = `
  claimMappings:
    username: {expression: 'claims.preferred_username + ":external"'}
    groups: {expression: 'claims.roles.split(",")'}
    uid: {expression: 'claims.sub'}
    extra:
    - {key: example.com/tenant, valueExpression: 'claims.tenant'}
    - {key: example.com/none, valueExpression: '""'}
  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  - {expression: 'claims.exp - claims.iat <= 86400', message: too long a life}
  userValidationRules:
  - {expression: "!user.username.startsWith('system:')", message: username cannot used reserved system prefix}
  - {expression: "user.groups.all(g, !g.startsWith('system:'))", message: groups cannot be the system's}
`

func TestUsers(t *testing.T) {
	i := startIssuer(t)
	now := time.Now()
	clock := func() time.Time { return now }
	full := map[string]any{"preferred_username": "ann", "roles": "dev,ops", "tenant": "t1", "hd": "example.com", "jti": "j"}
	with := func(key string, value any) map[string]any {
		out := map[string]any{}
		for k, v := range full {
			out[k] = v
		}
		if value == nil {
			delete(out, key)
		} else {
			out[key] = value
		}
		return out
	}
	for _, test := range []struct {
		name, config string
		claims       map[string]any
		want         client.User
		err          string
	}{
		{name: "email", config: byEmail, claims: map[string]any{"email": "a@example.com", "email_verified": true, "groups": []string{"x", "y"}},
			want: client.User{Name: "oidc:a@example.com", Groups: []string{"oidc:x", "oidc:y"}, Extra: map[string][]string{}}},
		{name: "one group", config: byEmail, claims: map[string]any{"email": "a@example.com", "groups": "x"},
			want: client.User{Name: "oidc:a@example.com", Groups: []string{"oidc:x"}, Extra: map[string][]string{}}},
		{name: "not verified", config: byEmail, claims: map[string]any{"email": "a@example.com", "email_verified": false}, err: "oidc: email not verified"},
		{name: "no email", config: byEmail, err: `oidc: parse username claims "email": claim not present`},
		{name: "expressions", config: byExpression, claims: full, want: client.User{Name: "ann:external", UID: "1234", Groups: []string{"dev", "ops"},
			Extra: map[string][]string{"example.com/tenant": {"t1"}, authn.CredentialID: {"JTI=j"}}}},
		{name: "required claim", config: byExpression, claims: with("hd", "other.com"), err: "oidc: required claim hd value does not match. Got = other.com, want = example.com"},
		{name: "required claim absent", config: byExpression, claims: with("hd", nil), err: "oidc: required claim hd not present in ID token"},
		{name: "claim rule", config: byExpression, claims: with("exp", now.Add(48*time.Hour).Unix()), err: "too long a life"},
		{name: "user rule", config: byExpression, claims: with("preferred_username", "system:admin"), err: "username cannot used reserved system prefix"},
		{name: "group rule", config: byExpression, claims: with("roles", "dev,system:masters"), err: "groups cannot be the system's"},
		{name: "missing claim", config: byExpression, claims: with("tenant", nil), err: "no such key: tenant"},
		{name: "audience", config: byEmail, claims: map[string]any{"aud": []string{"other"}, "email": "a"}, err: `oidc: expected audience in ["coracle"] got ["other"]`},
		{name: "expired", config: byEmail, claims: map[string]any{"exp": now.Add(-time.Minute).Unix(), "email": "a"}, err: "token is expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, ok, err := i.verifier(clock, test.config).Verify(t.Context(), i.token(now, test.claims))
			switch {
			case test.err != "":
				if err == nil || ok || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%+v, %v, %v", u, ok, err)
				}
			case err != nil || !ok || !reflect.DeepEqual(u, test.want):
				t.Errorf("%+v, %v, %v", u, ok, err)
			}
		})
	}
}

func TestOthersTokens(t *testing.T) {
	i, other := startIssuer(t), startIssuer(t)
	v := i.verifier(time.Now, byEmail)
	for name, token := range map[string]string{"another issuer": other.token(time.Now(), nil), "no JWT": "abc", "bootstrap": "abc123.0123456789abcdef", "empty": ""} {
		if _, ok, err := v.Verify(t.Context(), token); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	if n := i.asked.Load(); n != 0 {
		t.Errorf("the issuer was asked %d times for tokens that are not its own", n)
	}
	// Signed by somebody else in the issuer's name.
	other.Server.URL = i.URL
	if _, ok, err := v.Verify(t.Context(), other.token(time.Now(), map[string]any{"email": "a"})); ok || err == nil || !strings.Contains(err.Error(), "failed to verify signature") {
		t.Errorf("forged: %v, %v", ok, err)
	}
}

func TestIssuerDownAndKeysChange(t *testing.T) {
	i := startIssuer(t)
	now := time.Now()
	v := i.verifier(func() time.Time { return now }, byEmail)
	good := func() error {
		_, _, err := v.Verify(t.Context(), i.token(now, map[string]any{"email": "a", "n": now.UnixNano()}))
		return err
	}
	i.down.Store(true)
	for range 3 {
		if err := good(); err == nil || !strings.Contains(err.Error(), "authenticator not initialized") || !strings.Contains(err.Error(), "503") {
			t.Fatalf("down: %v", err)
		}
	}
	if n := i.asked.Load(); n != 1 {
		t.Errorf("an issuer that is down was asked %d times", n)
	}
	i.down.Store(false)
	now = now.Add(patience + time.Second)
	if err := good(); err != nil {
		t.Fatalf("up again: %v", err)
	}
	now = now.Add(lifetime)
	if err := good(); err != nil {
		t.Fatal(err)
	}
	if n := i.keys.Load(); n != 1 {
		t.Errorf("keys were fetched %d times", n)
	}
	i.rotate("two")
	// The library may take the end of the last fetch for one that is under way, for an instant.
	for end := time.Now().Add(10 * time.Second); ; {
		now = now.Add(lifetime)
		err := good()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with a new key: %v", err)
		}
	}
}

func TestTokensAreRememberedBriefly(t *testing.T) {
	i := startIssuer(t)
	now := time.Now()
	v := i.verifier(func() time.Time { return now }, byEmail)
	token := i.token(now, map[string]any{"email": "a", "exp": now.Add(4 * time.Second).Unix()})
	if _, ok, err := v.Verify(t.Context(), token); !ok {
		t.Fatal(err)
	}
	if now = now.Add(3 * time.Second); true {
		if _, ok, err := v.Verify(t.Context(), token); !ok {
			t.Error(err)
		}
	}
	now = now.Add(2 * time.Second)
	if _, ok, err := v.Verify(t.Context(), token); ok || err == nil {
		t.Error("a token outlived itself", ok, err)
	}
}

func TestBadConfigurations(t *testing.T) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"
	for text, want := range map[string]string{
		"kind: Pod": `kind is "Pod"`,
		"apiVersion: v2\nkind: AuthenticationConfiguration": `apiVersion is "v2"`,
		head + "jwts: []":  `unknown field "jwts"`,
		head + "jwt: [{}]": "jwt[0].issuer.url: Required value",
		head + "jwt: [{issuer: {url: 'http://x', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]":                               "URL scheme must be https",
		head + "jwt: [{issuer: {url: 'https://own', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]":                            "URL must not overlap with disallowed issuers",
		head + "jwt: [{issuer: {url: 'https://x', audiences: [a]}, claimMappings: {username: {expression: 'claims.'}}}]":                               "compilation failed",
		head + "jwt: [{issuer: {url: 'https://x', audiences: [a], egressSelectorType: cluster}, claimMappings: {username: {claim: sub, prefix: ''}}}]": "no egress selectors",
		head + "anonymous: {enabled: false, conditions: [{path: /x}]}":                                                                                 "enabled should be set to true when conditions are defined",
		head + "jwt: [{issuer: {url: 'https://x', audiences: [a]}, claimMappings: {username: {expression: 'claims.email'}}}]":                          "email_verified",
		head + "jwt: [{issuer: {url: 'https://x', audiences: [a], certificateAuthority: zzz}, claimMappings: {username: {claim: sub, prefix: ''}}}]":   "certificateAuthority",
	} {
		if _, err := Parse([]byte(text), "https://own"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v", text, err)
		}
	}
}

func TestAnonymous(t *testing.T) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: "
	for text, want := range map[string][2]bool{ // for /healthz and /api
		"{enabled: true}":  {true, true},
		"{enabled: false}": {false, false},
		"{enabled: true, conditions: [{path: '/healthz'}]}": {true, false},
	} {
		c, err := Parse([]byte(head + text))
		if err != nil {
			t.Fatal(err)
		}
		f := c.Anonymous()
		if got := [2]bool{f("/healthz"), f("/api")}; got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	c, err := Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration"))
	if err != nil || c.Anonymous() != nil {
		t.Errorf("%v", err)
	}
}

func TestFlags(t *testing.T) {
	f := Flags{IssuerURL: "https://x", ClientID: "a", GroupsClaim: "g", RequiredClaims: map[string]string{"hd": "e"}}
	c, err := f.Config()
	if err != nil || *c.issuers[0].ClaimMappings.Username.Prefix != "https://x#" || c.issuers[0].ClaimMappings.Username.Claim != "sub" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := (&Flags{ClientID: "a"}).Config(); err == nil {
		t.Error("a client without an issuer")
	}
}

func FuzzIssuer(f *testing.F) {
	f.Add("a.eyJpc3MiOiJodHRwczovL3gifQ.b")
	f.Add("..")
	v := &verifier{now: time.Now}
	v.config.Issuer.URL = "https://x"
	f.Fuzz(func(t *testing.T, token string) {
		if issuerOf(token) == "https://x" {
			return // would ask the network
		}
		if _, ok, err := v.Verify(context.Background(), token); ok || err != nil {
			t.Error(ok, err)
		}
	})
}
