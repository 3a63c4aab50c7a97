package authn

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Tokens issues and verifies the tokens of service accounts: JWTs signed with ES256
// that carry upstream's claims
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/).
type Tokens struct {
	Key    *ecdsa.PrivateKey // P-256
	Issuer string
	// Audiences are those of the API server; the first is given to tokens that name none.
	Audiences []string
	Snapshot  func() store.Snapshot
	Now       func() time.Time

	once  sync.Once
	keyID string

	mu    sync.Mutex // guards known
	known map[[sha256.Size]byte]*Claims
}

// Ref is an object that a token is bound to.
type Ref struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

// Claims are what a token says.
type Claims struct {
	Audiences  audiences `json:"aud"`
	Expiry     int64     `json:"exp"`
	IssuedAt   int64     `json:"iat"`
	Issuer     string    `json:"iss"`
	ID         string    `json:"jti,omitempty"`
	Kubernetes private   `json:"kubernetes.io"`
	NotBefore  int64     `json:"nbf"`
	Subject    string    `json:"sub"`
}

// private are the claims of Kubernetes' own.
type private struct {
	Namespace      string `json:"namespace,omitempty"`
	Node           *Ref   `json:"node,omitempty"`
	Pod            *Ref   `json:"pod,omitempty"`
	Secret         *Ref   `json:"secret,omitempty"`
	ServiceAccount Ref    `json:"serviceaccount"`
	WarnAfter      int64  `json:"warnafter,omitempty"`
}

// audiences is one string or a list of them.
type audiences []string

func (a *audiences) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// Grant says for what a token is issued.
type Grant struct {
	ServiceAccount    *corev1.ServiceAccount
	Audiences         []string
	Expiry            time.Duration
	Pod, Secret, Node *Ref
	// WarnAfter, if not 0, is when the token should have been replaced.
	WarnAfter time.Duration
}

// Issue signs a token and tells when it expires.
func (t *Tokens) Issue(g Grant) (token string, expires time.Time, err error) {
	now := t.Now()
	sa := g.ServiceAccount
	c := Claims{
		Audiences: g.Audiences, Issuer: t.Issuer, ID: string(uuid.NewUUID()),
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expiry: now.Add(g.Expiry).Unix(),
		Subject: "system:serviceaccount:" + sa.Namespace + ":" + sa.Name,
		Kubernetes: private{
			Namespace: sa.Namespace, ServiceAccount: Ref{sa.Name, sa.UID},
			Pod: g.Pod, Secret: g.Secret, Node: g.Node,
		},
	}
	if len(c.Audiences) == 0 {
		c.Audiences = t.Audiences[:1]
	}
	if g.WarnAfter > 0 {
		c.Kubernetes.WarnAfter = now.Add(g.WarnAfter).Unix()
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", time.Time{}, err
	}
	signed := b64(fmt.Appendf(nil, `{"alg":"ES256","kid":%q}`, t.KeyID())) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, t.Key, sum[:])
	if err != nil {
		return "", time.Time{}, err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + b64(sig), time.Unix(c.Expiry, 0), nil
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// KeyID names the key, as upstream derives it.
func (t *Tokens) KeyID() string {
	t.once.Do(func() {
		der, err := x509.MarshalPKIXPublicKey(&t.Key.PublicKey)
		if err == nil {
			sum := sha256.Sum256(der)
			t.keyID = b64(sum[:])
		}
	})
	return t.keyID
}

// Authenticate verifies a token for any of the audiences (nil: those of the API server) and
// gives its user and the audiences that matched.
func (t *Tokens) Authenticate(token string, want []string) (client.User, []string, error) {
	c, err := t.verify(token)
	if err != nil {
		return client.User{}, nil, err
	}
	if want == nil {
		want = t.Audiences
	}
	matched := slices.DeleteFunc(slices.Clone(want), func(a string) bool { return !slices.Contains(c.Audiences, a) })
	if len(matched) == 0 {
		return client.User{}, nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(c.Audiences), want)
	}
	now := t.Now().Unix()
	if now >= c.Expiry {
		return client.User{}, nil, errors.New("service account token has expired")
	}
	if now+leeway < c.NotBefore {
		return client.User{}, nil, errors.New("service account token is not valid yet")
	}
	if err := t.alive(c); err != nil {
		return client.User{}, nil, err
	}
	return c.user(), matched, nil
}

// leeway is how far clocks may be apart, and how long a deleted object's tokens still
// serve its last words, in seconds.
const leeway = 60

// user is whom the token stands for.
func (c *Claims) user() client.User {
	k := &c.Kubernetes
	u := client.ServiceAccountUser(k.Namespace, k.ServiceAccount.Name, string(k.ServiceAccount.UID))
	u.Extra = map[string][]string{}
	if c.ID != "" {
		u.Extra[CredentialID] = []string{"JTI=" + c.ID}
	}
	if k.Pod != nil {
		u.Extra["authentication.kubernetes.io/pod-name"] = []string{k.Pod.Name}
		u.Extra["authentication.kubernetes.io/pod-uid"] = []string{string(k.Pod.UID)}
	}
	if k.Node != nil {
		u.Extra["authentication.kubernetes.io/node-name"] = []string{k.Node.Name}
		u.Extra["authentication.kubernetes.io/node-uid"] = []string{string(k.Node.UID)}
	}
	return u
}

// verify checks the signature and the issuer.
func (t *Tokens) verify(token string) (*Claims, error) {
	id := sha256.Sum256([]byte(token))
	t.mu.Lock()
	c := t.known[id]
	t.mu.Unlock()
	if c != nil {
		return c, nil
	}
	signed, sig, ok := cutLast(token)
	if !ok {
		return nil, errors.New("not a compact JWS")
	}
	header, payload, ok := strings.Cut(signed, ".")
	if !ok {
		return nil, errors.New("not a compact JWS")
	}
	var head struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
	}
	if err := decodePart(header, &head); err != nil {
		return nil, err
	}
	if head.Alg != "ES256" || head.Kid != t.KeyID() {
		return nil, errors.New("signed by another key")
	}
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil || len(raw) != 64 {
		return nil, errors.New("malformed signature")
	}
	sum := sha256.Sum256([]byte(signed))
	if !ecdsa.Verify(&t.Key.PublicKey, sum[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
		return nil, errors.New("invalid signature")
	}
	c = &Claims{}
	if err := decodePart(payload, c); err != nil {
		return nil, err
	}
	if c.Issuer != t.Issuer {
		return nil, errors.New("another issuer")
	}
	if c.Subject != "system:serviceaccount:"+c.Kubernetes.Namespace+":"+c.Kubernetes.ServiceAccount.Name {
		return nil, errors.New("the subject is not the service account")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxKnown {
		t.known = map[[sha256.Size]byte]*Claims{}
	}
	t.known[id] = c
	return c, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 || len(s) > 16<<10 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func decodePart(part string, into any) error {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// alive checks that everything the token is bound to is still there.
func (t *Tokens) alive(c *Claims) error {
	snap, k := t.Snapshot(), &c.Kubernetes
	sa := k.ServiceAccount
	for _, bound := range []struct {
		what, resource, namespace string
		ref                       *Ref
	}{
		{"service account", "serviceaccounts", k.Namespace, &sa},
		{"pod", "pods", k.Namespace, k.Pod},
		{"secret", "secrets", k.Namespace, k.Secret},
		{"node", "nodes", "", k.Node},
	} {
		if bound.ref == nil {
			continue
		}
		e := snap.Get(store.Key{Resource: bound.resource, Namespace: bound.namespace, Name: bound.ref.Name})
		if e == nil {
			return fmt.Errorf("the %s of the token is gone", bound.what)
		}
		obj := e.Object.(api.Object)
		if obj.GetUID() != bound.ref.UID {
			return fmt.Errorf("the %s UID (%s) does not match claim (%s)", bound.what, obj.GetUID(), bound.ref.UID)
		}
		if at := obj.GetDeletionTimestamp(); at != nil && at.Unix()+leeway < t.Now().Unix() {
			return fmt.Errorf("the %s has been deleted", bound.what)
		}
	}
	return nil
}

// webSocketToken finds a token among the WebSocket protocols, where browsers put it.
func webSocketToken(r *http.Request) (string, bool) {
	const prefix = "base64url.bearer.authorization.k8s.io."
	if r.Header.Get("Upgrade") == "" {
		return "", false
	}
	for _, h := range r.Header["Sec-Websocket-Protocol"] {
		for p := range strings.SplitSeq(h, ",") {
			if encoded, ok := strings.CutPrefix(strings.TrimSpace(p), prefix); ok {
				token, err := base64.RawURLEncoding.DecodeString(encoded)
				return string(token), err == nil
			}
		}
	}
	return "", false
}

// KeySet is the JSON Web Key Set with which others verify tokens (/openid/v1/jwks).
func (t *Tokens) KeySet() []byte {
	x, y := make([]byte, 32), make([]byte, 32)
	pub, err := t.Key.PublicKey.ECDH()
	if err != nil {
		return []byte(`{"keys":[]}`)
	}
	point := pub.Bytes() // 4, x, y
	copy(x, point[1:33])
	copy(y, point[33:])
	return fmt.Appendf(nil, `{"keys":[{"use":"sig","kty":"EC","kid":%q,"crv":"P-256","alg":"ES256","x":%q,"y":%q}]}`,
		t.KeyID(), b64(x), b64(y))
}
