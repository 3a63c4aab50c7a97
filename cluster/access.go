package cluster

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/authn/oidc"
	"coracle.dev/coracle/apiserver/authn/tokenreview"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/authz/configured"
	"coracle.dev/coracle/controllers/accounttoken"
	"coracle.dev/coracle/controllers/bootstraptoken"
)

// Access says whom the API lets in beside the cluster's own certificates and tokens, and what decides on what they may do.
type Access struct {
	// ConfigFile holds an AuthenticationConfiguration (apiserver.config.k8s.io/v1); "" for none. Its issuers are followed: a change of the
	// file counts without a restart.
	ConfigFile string
	// OIDC names one issuer without such a file. Not both.
	OIDC oidc.Flags
	// TokenFile lists tokens and whose they are (authn.LoadStatic); "" for none. It is read at the start.
	TokenFile string
	// TokenWebhook is a server that judges tokens which nobody else knows, without File none.
	TokenWebhook tokenreview.Config
	// AuthorizationFile holds an AuthorizationConfiguration (apiserver.config.k8s.io/v1), which is followed; "" for none.
	AuthorizationFile string
	// Authorization says it without such a file. Not both. The zero value asks the Node authorizer, then RBAC.
	Authorization configured.Flags
}

// check says what is wrong.
func (a *Access) check() error {
	var errs []error
	if a.ConfigFile != "" && a.OIDC.Set() {
		errs = append(errs, errors.New("authentication-config and oidc-* flags are mutually exclusive"))
	}
	if a.AuthorizationFile != "" && a.Authorization.Set() {
		errs = append(errs, errors.New("--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"))
	}
	if a.TokenWebhook.File != "" {
		errs = append(errs, a.TokenWebhook.Check())
	}
	return errors.Join(errs...)
}

// admittance is what the API server is told of Access.
type admittance struct {
	verifiers []authn.Verifier
	anonymous func(path string) bool // nil: the API server decides
	reviewer  authn.Reviewer         // nil for nobody
	// authorization makes the authorizers, nil for those that every cluster has.
	authorization func(node, rbac authz.Authorizer) (authz.Authorizer, error)
	// collect writes metrics, and follow are the files that count again when they change.
	collect []func(io.Writer)
	follow  []*followed
}

// access reads what the configuration names.
func (c *Cluster) access() (*admittance, error) {
	out := &admittance{}
	if c.memory != nil {
		if c.memory.Users != nil {
			out.verifiers = []authn.Verifier{c.memory.Users}
		}
		return out, nil
	}
	a := &c.cfg.Access
	if a.TokenFile != "" {
		static, err := authn.LoadStatic(a.TokenFile)
		if err != nil {
			return nil, err
		}
		out.verifiers = append(out.verifiers, static)
	}
	if err := c.issuers(out); err != nil {
		return nil, err
	}
	if a.TokenWebhook.File != "" {
		config := a.TokenWebhook
		config.Audiences = []string{c.issuer()}
		hook, err := tokenreview.Open(config)
		if err != nil {
			return nil, err
		}
		out.reviewer = hook
	}
	return out, c.authorizers(out)
}

// issuers adds the verifiers of tokens that issuers elsewhere vouch for.
func (c *Cluster) issuers(out *admittance) error {
	a := &c.cfg.Access
	if a.ConfigFile == "" {
		if !a.OIDC.Set() {
			return nil
		}
		config, err := a.OIDC.Config(c.issuer())
		if err != nil {
			return err
		}
		verifiers, err := config.Verifiers(time.Now)
		out.verifiers = append(out.verifiers, verifiers...)
		return err
	}
	read := func(data []byte) (*oidc.Config, []authn.Verifier, error) {
		config, err := oidc.Parse(data, c.issuer())
		if err != nil {
			return nil, nil, err
		}
		verifiers, err := config.Verifiers(time.Now)
		return config, verifiers, err
	}
	data, err := os.ReadFile(a.ConfigFile)
	if err != nil {
		return fmt.Errorf("authentication configuration: %w", err)
	}
	first, verifiers, err := read(data)
	if err != nil {
		return fmt.Errorf("authentication configuration %s: %w", a.ConfigFile, err)
	}
	present := &authn.Replaceable{}
	present.Replace(verifiers)
	out.verifiers, out.anonymous = append(out.verifiers, present), first.Anonymous()
	out.keep(&followed{what: "authentication configuration", path: a.ConfigFile, last: data, take: func(data []byte) error {
		next, verifiers, err := read(data)
		if err != nil {
			return err
		}
		if !next.SameAnonymous(first) {
			return errors.New("anonymous: Forbidden: changed from initial configuration file")
		}
		present.Replace(verifiers)
		return nil
	}}, "authentication")
	return nil
}

// authorizers sets what decides on requests.
func (c *Cluster) authorizers(out *admittance) error {
	a := &c.cfg.Access
	var config *configured.Config
	var data []byte
	var err error
	switch {
	case a.AuthorizationFile != "":
		if data, err = os.ReadFile(a.AuthorizationFile); err != nil {
			return fmt.Errorf("authorization configuration: %w", err)
		}
		if config, err = configured.Parse(data); err != nil {
			return fmt.Errorf("authorization configuration %s: %w", a.AuthorizationFile, err)
		}
	case a.Authorization.Set():
		if config, err = a.Authorization.Config(); err != nil {
			return err
		}
	default:
		return nil
	}
	var chain *configured.Chain
	out.authorization = func(node, rbac authz.Authorizer) (authz.Authorizer, error) {
		var err error
		chain, err = configured.New(config, configured.Parts{Node: node, RBAC: rbac, Log: c.log})
		return chain, err
	}
	out.collect = append(out.collect, func(w io.Writer) { chain.WriteMetrics(w) })
	if a.AuthorizationFile == "" {
		return nil
	}
	out.keep(&followed{what: "authorization configuration", path: a.AuthorizationFile, last: data, take: func(data []byte) error {
		next, err := configured.Parse(data)
		if err != nil {
			return err
		}
		return chain.Take(next)
	}}, "authorization")
	return nil
}

// keep has a file followed, and counted by upstream's name.
func (a *admittance) keep(f *followed, subsystem string) {
	a.follow = append(a.follow, f)
	a.collect = append(a.collect, func(w io.Writer) { f.write(w, subsystem) })
}

// newNodes is what nodes that join are told: where they reach the API, and whom they believe.
func (c *Cluster) newNodes(host netip.Addr) bootstraptoken.Config {
	return bootstraptoken.Config{Server: "https://" + netip.AddrPortFrom(host, uint16(c.cfg.Port)).String(), CA: c.keys.caPEM}
}

// accountTokens is what secrets with tokens of service accounts are filled with.
func (c *Cluster) accountTokens() accounttoken.Config {
	return accounttoken.Config{CA: c.keys.caPEM, Sign: c.tokens().IssueLegacy}
}
