package authn

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestWebSocketToken: a token among the protocols is good once, and is not there any more for who comes behind.
func TestWebSocketToken(t *testing.T) {
	tokens, sa := fixture(t)
	good, _, err := tokens.Issue(Grant{ServiceAccount: sa, Expiry: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	a := &Authenticator{ClientCA: x509.NewCertPool(), Tokens: tokens, Audiences: tokens.Audiences, Now: time.Now}
	protocol := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(good))
	request := func(protocols ...string) *http.Request {
		r, _ := http.NewRequestWithContext(context.Background(), "GET", "/", nil)
		r.Header = http.Header{"Upgrade": {"websocket"}, "Connection": {"keep-alive, Upgrade"}, "Sec-Websocket-Protocol": protocols}
		return r
	}
	for _, c := range []struct {
		protocols []string
		left, err string
		found     bool
	}{
		{[]string{"v5.channel.k8s.io, " + protocol + ",v4.channel.k8s.io"}, "v5.channel.k8s.io,v4.channel.k8s.io", "", true},
		{[]string{protocol, "v5.channel.k8s.io"}, "v5.channel.k8s.io", "", true},
		{[]string{"v5.channel.k8s.io"}, "v5.channel.k8s.io", "", false},
		{[]string{protocol}, "", "missing additional subprotocol", false},
		{[]string{protocol + ",a", protocol}, "", "multiple base64.bearer.authorization tokens specified", false},
		{[]string{"a," + protocol + "!"}, "", "invalid base64.bearer.authorization token encoding", false},
		{[]string{"a,base64url.bearer.authorization.k8s.io._w"}, "", "invalid base64.bearer.authorization token", false},
	} {
		r := request(c.protocols...)
		user, found, err := a.Authenticate(r)
		if c.err != "" {
			if err == nil || err.Error() != c.err || found {
				t.Errorf("%q: %v %v", c.protocols, found, err)
			}
			continue
		}
		if err != nil || found != c.found || found && user.Name != "system:serviceaccount:default:robot" {
			t.Errorf("%q: %+v %v %v", c.protocols, user, found, err)
		}
		if got := strings.Join(r.Header["Sec-Websocket-Protocol"], "|"); got != c.left {
			t.Errorf("%q: %q goes on, want %q", c.protocols, got, c.left)
		}
	}
	// Who is known by other credentials does not have the token sent on either.
	r := request("a, " + protocol)
	r.Header.Set("Authorization", "Bearer "+good)
	if _, found, err := a.Authenticate(r); !found || err != nil || r.Header.Get("Sec-Websocket-Protocol") != "a" {
		t.Errorf("%v %v %q", found, err, r.Header)
	}
	// What is no WebSocket has no token there.
	r = request("a, " + protocol)
	r.Header.Del("Connection")
	if _, found, err := a.Authenticate(r); found || err != nil {
		t.Errorf("without an upgrade: %v %v", found, err)
	}
}
