// Package authn finds out who makes a request: by client certificate or by a token
// of a service account. It issues those tokens too.
//
// It reads the present state of the store (a token is no good when its account, pod or
// node is gone) and writes nothing. What was verified once is remembered, bounded in number.
package authn

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"coracle.dev/coracle/client"
)

// Authenticator finds the user of a request. It is safe for concurrent use.
type Authenticator struct {
	// ClientCA signs client certificates; nil takes none.
	ClientCA *x509.CertPool
	// Tokens verifies bearer tokens; nil takes none.
	Tokens *Tokens
	Now    func() time.Time

	certs certs
}

// ErrUnauthorized is all that a client hears of bad credentials.
var ErrUnauthorized = errors.New("invalid credentials")

// CredentialID is the key in User.Extra that names the credential used.
const CredentialID = "authentication.kubernetes.io/credential-id"

// Authenticate returns the user of a request, false where the request bears no credentials,
// or an error that says what is wrong with them (for the log, not for the client).
func (a *Authenticator) Authenticate(r *http.Request) (client.User, bool, error) {
	var certErr error
	if a.ClientCA != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		var user client.User
		if user, certErr = a.certificate(r.TLS.PeerCertificates); certErr == nil {
			return user, true, nil
		}
	}
	if token, ok := bearer(r); ok && a.Tokens != nil {
		user, _, err := a.Tokens.Authenticate(token, nil)
		return user, err == nil, err
	} else if ok {
		return client.User{}, false, ErrUnauthorized
	}
	return client.User{}, false, certErr
}

// bearer returns the token of a request, from the header or, for WebSockets of browsers, from the protocol list.
func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if ok && strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(token), true
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
	if leaf.Subject.CommonName == "" {
		return client.User{}, errors.New("the client certificate has no common name")
	}
	sum := sha256.Sum256(leaf.Raw)
	user = client.User{
		Name:   leaf.Subject.CommonName,
		Groups: append(slices.Clone(leaf.Subject.Organization), client.GroupAuthenticated),
		Extra:  map[string][]string{CredentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	}
	a.certs.mu.Lock()
	defer a.certs.mu.Unlock()
	if a.certs.known == nil || len(a.certs.known) >= maxKnown {
		a.certs.known = map[*x509.Certificate]client.User{}
	}
	a.certs.known[leaf] = user
	return user, nil
}

// Anonymous is the user of a request without credentials.
func Anonymous() client.User {
	return client.User{Name: client.UserAnonymous, Groups: []string{client.GroupUnauthenticated}}
}
