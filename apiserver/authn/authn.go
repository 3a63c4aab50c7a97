// Package authn finds out who makes a request: by client certificate, by a token of a service account, by a bootstrap
// token, or by what others were told to trust (package oidc). It issues the tokens of service accounts too.
//
// It reads the present state of the store (a token is no good when its account, pod or
// node is gone) and writes nothing. What was verified once is remembered, bounded in number. What is wrong with
// credentials is told in errors for the log, which never hold the credentials.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/client"
)

// Authenticator finds the user of a request. It is safe for concurrent use; the fields are set before the first.
type Authenticator struct {
	// ClientCA signs client certificates; nil takes none.
	ClientCA *x509.CertPool
	// Tokens verifies the tokens of service accounts; nil takes none.
	Tokens *Tokens
	// Bootstrap verifies bootstrap tokens; nil takes none.
	Bootstrap *Bootstrap
	// Others verify further tokens, asked in order.
	Others []Verifier
	// Reviewer judges tokens that none of these knows; nil for nobody.
	Reviewer Reviewer
	// Audiences are those of the API server. Tokens that say nothing of audiences are for these.
	Audiences []string
	Now       func() time.Time

	certs certs
}

// Verifier finds the user of a token that says nothing of audiences which concern the API server.
type Verifier interface {
	// Verify returns the user of a token, false for a token that is not of this sort, or an error that says what is
	// wrong with one that is.
	Verify(ctx context.Context, token string) (client.User, bool, error)
}

// Reviewer judges tokens of any audience.
type Reviewer interface {
	// Review returns the user of a token and which of the audiences wanted it is for, false for a token that is not known
	// or is for others. An error says why it could not be judged, or what is wrong with it.
	Review(ctx context.Context, token string, want []string) (client.User, []string, bool, error)
}

// Replaceable is a set of verifiers that another can take the place of at any time.
type Replaceable struct{ present atomic.Pointer[[]Verifier] }

// Replace has the verifiers asked from now on, and no others.
func (r *Replaceable) Replace(v []Verifier) { r.present.Store(&v) }

// Verify implements Verifier: it asks them in order.
func (r *Replaceable) Verify(ctx context.Context, token string) (client.User, bool, error) {
	var errs []error
	if all := r.present.Load(); all != nil {
		for _, v := range *all {
			user, ok, err := v.Verify(ctx, token)
			if ok {
				return user, true, nil
			}
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return client.User{}, false, errors.Join(errs...)
}

// ErrUnauthorized says of a token that nobody knows it.
var ErrUnauthorized = errors.New("invalid bearer token")

// CredentialID is the key in User.Extra that names the credential used.
const CredentialID = "authentication.kubernetes.io/credential-id"

// Authenticate returns the user of a request, false where the request bears no credentials,
// or an error that says what is wrong with them (for the log, not for the client). Tokens are taken out of the WebSocket
// protocols of a request whose user is found; the header Authorization is left to the caller.
func (a *Authenticator) Authenticate(r *http.Request) (client.User, bool, error) {
	user, found, err := a.find(r)
	if found {
		dropProtocolTokens(r.Header)
	}
	return user, found, err
}

func (a *Authenticator) find(r *http.Request) (client.User, bool, error) {
	var certErr error
	if a.ClientCA != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		var user client.User
		if user, certErr = a.certificate(r.TLS.PeerCertificates); certErr == nil {
			return user, true, nil
		}
	}
	token, err := bearer(r)
	if err != nil {
		return client.User{}, false, errors.Join(certErr, err)
	}
	if token != "" {
		user, _, err := a.Token(r.Context(), token, nil)
		return user, err == nil, errors.Join(certErr, err)
	}
	return client.User{}, false, certErr
}

// Token verifies a bearer token for any of the audiences (nil: those of the API server), and gives its user and
// the audiences that it is for.
func (a *Authenticator) Token(ctx context.Context, token string, want []string) (client.User, []string, error) {
	var errs []error
	if a.Tokens != nil {
		user, matched, ok, err := a.Tokens.authenticate(token, want)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ok:
			return user, matched, nil
		}
	}
	if matched := a.ours(want); len(matched) > 0 {
		for _, v := range a.verifiers() {
			user, ok, err := v.Verify(ctx, token)
			switch {
			case err != nil:
				errs = append(errs, err)
			case ok:
				return authenticated(user), matched, nil
			}
		}
	}
	if a.Reviewer != nil {
		if want == nil {
			want = a.Audiences
		}
		user, matched, ok, err := a.Reviewer.Review(ctx, token, want)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ok:
			return authenticated(user), matched, nil
		}
	}
	if len(errs) == 0 {
		return client.User{}, nil, ErrUnauthorized
	}
	return client.User{}, nil, errors.Join(errs...)
}

// ours are the audiences of the API server among those wanted.
func (a *Authenticator) ours(want []string) []string {
	if want == nil {
		return a.Audiences
	}
	return slices.DeleteFunc(slices.Clone(want), func(w string) bool { return !slices.Contains(a.Audiences, w) })
}

func (a *Authenticator) verifiers() []Verifier {
	if a.Bootstrap == nil {
		return a.Others
	}
	return append([]Verifier{a.Bootstrap}, a.Others...)
}

// authenticated puts a user into the group of all those that were authenticated.
func authenticated(u client.User) client.User {
	if !u.In(client.GroupAuthenticated) && !u.In(client.GroupUnauthenticated) {
		u.Groups = append(slices.Clone(u.Groups), client.GroupAuthenticated)
	}
	return u
}

// bearer returns the token of a request, from the header or, for WebSockets of browsers, from the protocol list; "" if there is none.
func bearer(r *http.Request) (string, error) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if ok && strings.EqualFold(scheme, "bearer") {
		token, _, _ = strings.Cut(token, " ")
		return token, nil
	}
	return webSocketToken(r)
}

// certs remembers which certificates were verified, so that a connection pays once.
type certs struct {
	mu    sync.RWMutex // guards known
	known map[*x509.Certificate]client.User
}

// maxKnown is how many verified credentials of one sort are remembered.
const maxKnown = 4096

func (a *Authenticator) certificate(chain []*x509.Certificate) (client.User, error) {
	leaf := chain[0]
	now := a.Now()
	a.certs.mu.RLock()
	user, ok := a.certs.known[leaf]
	a.certs.mu.RUnlock()
	if ok && now.Before(leaf.NotAfter) {
		return user, nil
	}
	opts := x509.VerifyOptions{
		Roots: a.ClientCA, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return client.User{}, err
	}
	user, err := subject(leaf)
	if err != nil {
		return user, err
	}
	a.certs.mu.Lock()
	defer a.certs.mu.Unlock()
	if a.certs.known == nil || len(a.certs.known) >= maxKnown {
		a.certs.known = map[*x509.Certificate]client.User{}
	}
	a.certs.known[leaf] = user
	return user, nil
}

// uidAttribute is the attribute of a certificate's subject that holds the UID of the user
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates).
var uidAttribute = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}

// subject is the user that a certificate names.
func subject(leaf *x509.Certificate) (client.User, error) {
	if leaf.Subject.CommonName == "" {
		return client.User{}, errors.New("the client certificate has no common name")
	}
	sum := sha256.Sum256(leaf.Raw)
	user := authenticated(client.User{
		Name:   leaf.Subject.CommonName,
		Groups: leaf.Subject.Organization,
		Extra:  map[string][]string{CredentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	})
	for _, name := range leaf.Subject.Names {
		if !name.Type.Equal(uidAttribute) {
			continue
		}
		uid, ok := name.Value.(string)
		if !ok || uid == "" || user.UID != "" {
			return client.User{}, errors.New("expected one UID in the subject of the client certificate, as text")
		}
		user.UID = uid
	}
	return user, nil
}

// Anonymous is the user of a request without credentials.
func Anonymous() client.User {
	return client.User{Name: client.UserAnonymous, Groups: []string{client.GroupUnauthenticated}}
}
