// Package oidc lets users in whom an OpenID Connect issuer vouches for, as a structured authentication configuration says
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens).
//
// It reads the configuration at the start, and asks an issuer for its keys when the first token of it comes, not before. Keys
// are kept and asked for again when a token is signed by one that is not known. It stores nothing, and never follows
// distributed claims.
package oidc

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
)

// Bounds on what is asked of an issuer, and on what is remembered.
const (
	timeout  = 10 * time.Second // one question to an issuer
	patience = 5 * time.Second  // between two tries to find the keys of one that does not answer
	maxBody  = 1 << 20          // bytes of an answer
	lifetime = 10 * time.Second // how long a verified token is good without looking again, as upstream's token cache
	maxKnown = 1024
)

// algorithms are those with which tokens may be signed.
var algorithms = []string{
	gooidc.RS256, gooidc.RS384, gooidc.RS512, gooidc.ES256, gooidc.ES384, gooidc.ES512, gooidc.PS256, gooidc.PS384, gooidc.PS512,
}

// Verifiers makes one verifier for each issuer of the configuration. Nothing is asked of the issuers yet.
func (c *Config) Verifiers(now func() time.Time) ([]authn.Verifier, error) {
	var all []authn.Verifier
	for i := range c.issuers {
		v, err := newVerifier(c.issuers[i], now)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// verifier verifies the tokens of one issuer.
type verifier struct {
	config apiserver.JWTAuthenticator
	rules  authenticationcel.CELMapper
	client *http.Client
	now    func() time.Time

	finding sync.Mutex // held by who looks for the issuer's keys; before mu
	mu      sync.Mutex // guards the fields below
	keys    *gooidc.IDTokenVerifier
	tried   time.Time // when the keys were last looked for in vain
	failed  error     // what came of it
	known   map[[sha256.Size]byte]verified
}

// verified is a token that was good not long ago.
type verified struct {
	user  client.User
	until time.Time
}

func newVerifier(config apiserver.JWTAuthenticator, now func() time.Time) (*verifier, error) {
	rules, errs := validation.CompileAndValidateJWTAuthenticator(authenticationcel.NewDefaultCompiler(), config, nil)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if pem := config.Issuer.CertificateAuthority; pem != "" {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(pem)) {
			return nil, fmt.Errorf("oidc: the certificate authority of %s holds no certificate", config.Issuer.URL)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &verifier{config: config, rules: rules, now: now, client: &http.Client{Transport: transport, Timeout: timeout}}, nil
}

// Verify implements authn.Verifier.
func (v *verifier) Verify(ctx context.Context, token string) (client.User, bool, error) {
	if issuerOf(token) != v.config.Issuer.URL {
		return client.User{}, false, nil
	}
	id := sha256.Sum256([]byte(token))
	v.mu.Lock()
	have, ok := v.known[id]
	v.mu.Unlock()
	if ok && v.now().Before(have.until) {
		return have.user, true, nil
	}
	user, expires, err := v.verify(ctx, token)
	if err != nil {
		return client.User{}, false, fmt.Errorf("oidc: %w", err)
	}
	until := v.now().Add(lifetime)
	if expires.Before(until) {
		until = expires
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil || len(v.known) >= maxKnown {
		v.known = map[[sha256.Size]byte]verified{}
	}
	v.known[id] = verified{user, until}
	return user, true, nil
}

// maxToken is the length of a token that is looked at.
const maxToken = 64 << 10

// issuerOf is who a token says it comes from, "" for what is no JWT. Nothing of it is verified.
func issuerOf(token string) string {
	parts := strings.SplitN(token, ".", 4)
	if len(token) > maxToken || len(parts) != 3 {
		return ""
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(data, &c) != nil {
		return ""
	}
	return c.Issuer
}

// verify checks signature, times and audience, and maps what the token claims.
func (v *verifier) verify(ctx context.Context, token string) (client.User, time.Time, error) {
	keys, err := v.find(ctx)
	if err != nil {
		return client.User{}, time.Time{}, fmt.Errorf("authenticator not initialized: %w", err)
	}
	parsed, err := keys.Verify(ctx, token)
	if err != nil {
		return client.User{}, time.Time{}, fmt.Errorf("verify token: %w", err)
	}
	if !slices.ContainsFunc(v.config.Issuer.Audiences, func(a string) bool { return slices.Contains(parsed.Audience, a) }) {
		return client.User{}, time.Time{}, fmt.Errorf("verify token: oidc: expected audience in %q got %q", v.config.Issuer.Audiences, parsed.Audience)
	}
	var c claims
	if err := parsed.Claims(&c); err != nil {
		return client.User{}, time.Time{}, fmt.Errorf("parse claims: %w", err)
	}
	user, err := v.user(ctx, c)
	return user, parsed.Expiry, err
}

// find gives the verifier with the issuer's keys, and looks for them if that was not done yet. An issuer that does not
// answer is asked again after a while, by one request at a time; the others hear what came of the last try.
func (v *verifier) find(ctx context.Context) (*gooidc.IDTokenVerifier, error) {
	if keys, err, ok := v.found(); ok {
		return keys, err
	}
	v.finding.Lock()
	defer v.finding.Unlock()
	if keys, err, ok := v.found(); ok { // found by who was here before
		return keys, err
	}
	// What is found serves others too: it does not end with this request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	keys, err := v.discover(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys, v.failed, v.tried = keys, err, v.now()
	return keys, err
}

// found is what the last try came to, if it still counts.
func (v *verifier) found() (*gooidc.IDTokenVerifier, error, bool) { //nolint:staticcheck // the error is a finding
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys != nil {
		return v.keys, nil, true
	}
	return nil, v.failed, v.failed != nil && v.now().Before(v.tried.Add(patience))
}

// discover reads the issuer's discovery document.
func (v *verifier) discover(ctx context.Context) (*gooidc.IDTokenVerifier, error) {
	issuer := v.config.Issuer.URL
	url := v.config.Issuer.DiscoveryURL
	if url == "" {
		url = strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration"
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := v.fetch(ctx, url, &doc); err != nil {
		return nil, err
	}
	switch {
	case doc.Issuer != issuer:
		return nil, fmt.Errorf("issuer did not match the issuer returned by %s, expected %q got %q", url, issuer, doc.Issuer)
	case !strings.HasPrefix(doc.Keys, "https://"):
		return nil, fmt.Errorf("%s names no jwks_uri with https", url)
	}
	set := gooidc.NewRemoteKeySet(gooidc.ClientContext(context.Background(), v.client), doc.Keys)
	return gooidc.NewVerifier(issuer, set, &gooidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: algorithms, Now: v.now}), nil
}

// fetch reads a JSON document.
func (v *verifier) fetch(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", url, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}

var errNotStrings = errors.New("expression must return a string or a list of strings")
