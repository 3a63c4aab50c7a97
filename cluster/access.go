package cluster

import (
	"errors"
	"net/netip"
	"time"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/authn/oidc"
	"coracle.dev/coracle/controllers/accounttoken"
	"coracle.dev/coracle/controllers/bootstraptoken"
)

// Access says whom the API lets in beside the cluster's own certificates and tokens.
type Access struct {
	// ConfigFile holds an AuthenticationConfiguration (apiserver.config.k8s.io/v1); "" for none.
	ConfigFile string
	// OIDC names one issuer without such a file. Not both.
	OIDC oidc.Flags
	// TokenFile lists tokens and whose they are (authn.LoadStatic); "" for none. It is read at the start.
	TokenFile string
}

// check says what is wrong.
func (a *Access) check() error {
	if a.ConfigFile != "" && a.OIDC.Set() {
		return errors.New("authentication-config and oidc-* flags are mutually exclusive")
	}
	return nil
}

// load reads the configuration, nil if there is none.
func (a *Access) load(own string) (*oidc.Config, error) {
	switch {
	case a.ConfigFile != "":
		return oidc.Load(a.ConfigFile, own)
	case a.OIDC.Set():
		return a.OIDC.Config(own)
	}
	return nil, nil
}

// access is what the API server is told of it.
func (c *Cluster) access() ([]authn.Verifier, func(path string) bool, error) {
	if c.memory != nil {
		if c.memory.Users == nil {
			return nil, nil, nil
		}
		return []authn.Verifier{c.memory.Users}, nil, nil
	}
	var verifiers []authn.Verifier
	if path := c.cfg.Access.TokenFile; path != "" {
		static, err := authn.LoadStatic(path)
		if err != nil {
			return nil, nil, err
		}
		verifiers = append(verifiers, static)
	}
	config, err := c.cfg.Access.load(c.issuer())
	if config == nil || err != nil {
		return verifiers, nil, err
	}
	issuers, err := config.Verifiers(time.Now)
	return append(verifiers, issuers...), config.Anonymous(), err
}

// newNodes is what nodes that join are told: where they reach the API, and whom they believe.
func (c *Cluster) newNodes(host netip.Addr) bootstraptoken.Config {
	return bootstraptoken.Config{Server: "https://" + netip.AddrPortFrom(host, uint16(c.cfg.Port)).String(), CA: c.keys.caPEM}
}

// accountTokens is what secrets with tokens of service accounts are filled with.
func (c *Cluster) accountTokens() accounttoken.Config {
	return accounttoken.Config{CA: c.keys.caPEM, Sign: c.tokens().IssueLegacy}
}
