package oidc

import "testing"

// FuzzConfig: a file of issuers is refused or read, and never both or neither.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {url: 'https://a.example.com', audiences: [x]}\n  claimMappings: {username: {expression: 'claims.sub'}, groups: {claim: groups, prefix: 'g:'}}\n  claimValidationRules: [{expression: 'claims.exp > 0', message: m}]\n"))
	f.Add([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n"))
	f.Add([]byte("kind: x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := Parse(data, "https://own.example.com"); (err == nil) == (c == nil) {
			t.Fatalf("%v, %v", c, err)
		}
	})
}
