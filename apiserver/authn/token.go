package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
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
	// Used is told of secrets whose token was used for the first time on a day (of the form 2006-01-02), so that they
	// are labelled with it. Nil: nobody is told.
	Used func(ctx context.Context, secret *corev1.Secret, day string)

	once  sync.Once
	keyID string

	mu    sync.RWMutex // guards known
	known map[[sha256.Size]byte]*verified
}

// verified is a token whose signature is good.
type verified struct {
	*Claims
	user client.User
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

	// Those of tokens in secrets.
	LegacyNamespace string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
	LegacySecret    string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	LegacyName      string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	LegacyUID       string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
}

// LegacyIssuer is the issuer of tokens that live in secrets.
const LegacyIssuer = "kubernetes/serviceaccount"

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
	token, err = t.sign(c)
	return token, time.Unix(c.Expiry, 0), err
}

// legacyClaims are the claims of a token in a secret, in the order in which they are written.
type legacyClaims struct {
	Issuer    string `json:"iss"`
	Namespace string `json:"kubernetes.io/serviceaccount/namespace"`
	Secret    string `json:"kubernetes.io/serviceaccount/secret.name"`
	Name      string `json:"kubernetes.io/serviceaccount/service-account.name"`
	UID       string `json:"kubernetes.io/serviceaccount/service-account.uid"`
	Subject   string `json:"sub"`
}

// IssueLegacy signs the token that a secret of type kubernetes.io/service-account-token holds. It does not expire; it is good
// as long as the secret holds it. The same secret is always given the same token.
func (t *Tokens) IssueLegacy(sa *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	return t.sign(legacyClaims{Issuer: LegacyIssuer, Namespace: sa.Namespace, Secret: secret.Name, Name: sa.Name, UID: string(sa.UID),
		Subject: "system:serviceaccount:" + sa.Namespace + ":" + sa.Name})
}

// sign makes a compact JWS. The signature is deterministic (RFC 6979).
func (t *Tokens) sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := b64(fmt.Appendf(nil, `{"alg":"ES256","kid":%q}`, t.KeyID())) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	der, err := t.Key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return "", err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return signed + "." + b64(sig), nil
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
	user, matched, ok, err := t.authenticate(token, want)
	if err == nil && !ok {
		err = ErrUnauthorized
	}
	return user, matched, err
}

// authenticate is Authenticate for tokens that may be of another sort: ok is false for those.
func (t *Tokens) authenticate(token string, want []string) (_ client.User, matched []string, ok bool, _ error) {
	v, ok, err := t.verify(token)
	if err != nil || !ok {
		return client.User{}, nil, false, err
	}
	if want == nil {
		want = t.Audiences
	}
	for _, a := range want {
		if slices.Contains(v.Audiences, a) || len(v.Audiences) == 0 && slices.Contains(t.Audiences, a) {
			matched = append(matched, a)
		}
	}
	if len(matched) == 0 {
		return client.User{}, nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(v.Audiences), want)
	}
	if v.Issuer == LegacyIssuer {
		err = t.legacyAlive(v, token)
	} else {
		err = t.fresh(v)
	}
	if err != nil {
		return client.User{}, nil, false, err
	}
	return v.user, matched, true, nil
}

// fresh checks the times in a token, and that what it is bound to is there.
func (t *Tokens) fresh(v *verified) error {
	switch now := t.Now().Unix(); {
	case now > v.Expiry+leeway:
		return errors.New("service account token has expired")
	case now+leeway < v.NotBefore:
		return errors.New("service account token is not valid yet")
	case now+leeway < v.IssuedAt:
		return errors.New("service account token is issued in the future")
	}
	return t.alive(v.Claims)
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

// verify checks the issuer and the signature. A token of another issuer is not ours: ok is false.
func (t *Tokens) verify(token string) (v *verified, ok bool, err error) {
	id := sha256.Sum256([]byte(token))
	t.mu.RLock()
	v = t.known[id]
	t.mu.RUnlock()
	if v != nil {
		return v, true, nil
	}
	signed, sig, ok := cutLast(token)
	if !ok {
		return nil, false, nil
	}
	header, payload, ok := strings.Cut(signed, ".")
	c := &Claims{}
	if !ok || strings.Contains(payload, ".") || decodePart(payload, c) != nil || c.Issuer != t.Issuer && c.Issuer != LegacyIssuer {
		return nil, false, nil
	}
	if err := t.checkSignature(header, signed, sig); err != nil {
		return nil, false, err
	}
	if v, err = c.check(); err != nil {
		return nil, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxKnown {
		t.known = map[[sha256.Size]byte]*verified{}
	}
	t.known[id] = v
	return v, true, nil
}

func (t *Tokens) checkSignature(header, signed, sig string) error {
	var head struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
	}
	if err := decodePart(header, &head); err != nil {
		return errors.New("malformed header")
	}
	if head.Alg != "ES256" || head.Kid != "" && head.Kid != t.KeyID() {
		return errors.New("invalid signature, no keys found")
	}
	raw, err := base64.RawURLEncoding.DecodeString(sig)
	if err != nil || len(raw) != 64 {
		return errors.New("malformed signature")
	}
	sum := sha256.Sum256([]byte(signed))
	if !ecdsa.Verify(&t.Key.PublicKey, sum[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
		return errors.New("invalid signature")
	}
	return nil
}

// check looks whether the claims of a signed token fit together, and makes its user.
func (c *Claims) check() (*verified, error) {
	if c.Issuer != LegacyIssuer {
		if c.Subject != "system:serviceaccount:"+c.Kubernetes.Namespace+":"+c.Kubernetes.ServiceAccount.Name {
			return nil, errors.New("sub claim is invalid")
		}
		return &verified{c, c.user()}, nil
	}
	switch {
	case c.Subject == "":
		return nil, errors.New("sub claim is missing")
	case c.LegacyNamespace == "":
		return nil, errors.New("namespace claim is missing")
	case c.LegacySecret == "":
		return nil, errors.New("secretName claim is missing")
	case c.LegacyName == "":
		return nil, errors.New("serviceAccountName claim is missing")
	case c.LegacyUID == "":
		return nil, errors.New("serviceAccountUID claim is missing")
	case c.Subject != "system:serviceaccount:"+c.LegacyNamespace+":"+c.LegacyName:
		return nil, errors.New("sub claim is invalid")
	}
	return &verified{c, client.ServiceAccountUser(c.LegacyNamespace, c.LegacyName, c.LegacyUID)}, nil
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

// alive checks that everything the token is bound to is still there. The node of a pod-bound token is only told.
func (t *Tokens) alive(c *Claims) error {
	snap, k := t.Snapshot(), &c.Kubernetes
	ns, sa := k.Namespace, &k.ServiceAccount
	account, ok := client.ServiceAccounts.Get(snap, ns, sa.Name)
	switch {
	case !ok:
		return fmt.Errorf("serviceaccounts %q not found", sa.Name)
	case account.UID != sa.UID:
		return fmt.Errorf("service account UID (%s) does not match claim (%s)", account.UID, sa.UID)
	case t.deleted(account):
		return fmt.Errorf("service account %s/%s has been deleted", ns, sa.Name)
	}
	bound := func(what, resource, namespace string, ref *Ref) error {
		if ref == nil {
			return nil
		}
		e := snap.Get(store.Key{Resource: resource, Namespace: namespace, Name: ref.Name})
		if e == nil || t.deleted(e.Object.(api.Object)) {
			return errors.New("service account token has been invalidated")
		}
		if uid := e.Object.(api.Object).GetUID(); uid != ref.UID {
			return fmt.Errorf("%s UID (%s) does not match service account %s ref claim (%s)", what, uid, strings.ToLower(what), ref.UID)
		}
		return nil
	}
	if err := bound("secret", "secrets", ns, k.Secret); err != nil {
		return err
	}
	if k.Pod != nil {
		return bound("pod", "pods", ns, k.Pod)
	}
	return bound("node", "nodes", "", k.Node)
}

// deleted tells whether an object's end is further back than the leeway.
func (t *Tokens) deleted(obj api.Object) bool {
	at := obj.GetDeletionTimestamp()
	return at != nil && at.Unix()+leeway < t.Now().Unix()
}

// The labels of secrets with tokens.
const (
	lastUsedLabel     = "kubernetes.io/legacy-token-last-used"
	invalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
)

// legacyAlive checks that a token is still the one in its secret, and that its account is there.
func (t *Tokens) legacyAlive(v *verified, token string) error {
	snap, ns := t.Snapshot(), v.LegacyNamespace
	secret, ok := client.Secrets.Get(snap, ns, v.LegacySecret)
	if !ok || secret.DeletionTimestamp != nil {
		return errors.New("Token has been invalidated") //nolint:staticcheck // upstream's words
	}
	if subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(token)) != 1 {
		return errors.New("Token does not match server's copy") //nolint:staticcheck // upstream's words
	}
	account, ok := client.ServiceAccounts.Get(snap, ns, v.LegacyName)
	switch {
	case !ok:
		return fmt.Errorf("serviceaccounts %q not found", v.LegacyName)
	case account.DeletionTimestamp != nil:
		return fmt.Errorf("ServiceAccount %s/%s has been deleted", ns, v.LegacyName) //nolint:staticcheck // upstream's words
	case string(account.UID) != v.LegacyUID:
		return fmt.Errorf("ServiceAccount UID (%s) does not match claim (%s)", account.UID, v.LegacyUID) //nolint:staticcheck // upstream's words
	}
	t.tellUse(secret)
	if secret.Labels[invalidSinceLabel] != "" {
		return fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			ns, v.LegacySecret, ns, v.LegacyName, invalidSinceLabel)
	}
	return nil
}

// tellUse tells of the first use of a secret's token on a day.
func (t *Tokens) tellUse(secret *corev1.Secret) {
	now := t.Now().UTC()
	today, tomorrow := now.Format(time.DateOnly), now.AddDate(0, 0, 1).Format(time.DateOnly)
	if last := secret.Labels[lastUsedLabel]; t.Used != nil && last != today && last != tomorrow {
		t.Used(context.Background(), secret, today)
	}
}

// LastUsed is a copy of a secret that is labelled with the day of its last use.
func LastUsed(secret *corev1.Secret, day string) *corev1.Secret {
	secret = secret.DeepCopy()
	if secret.Labels == nil {
		secret.Labels = map[string]string{}
	}
	secret.Labels[lastUsedLabel] = day
	return secret
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
