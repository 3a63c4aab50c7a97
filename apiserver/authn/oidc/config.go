package oidc

import (
	"errors"
	"fmt"
	"os"
	"reflect"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/apiserver"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	"sigs.k8s.io/yaml"
)

// Config says whom to believe: the jwt and anonymous parts of an AuthenticationConfiguration
// (https://kubernetes.io/docs/reference/config-api/apiserver-config.v1/). It is made by Load or Shorthand and not changed after.
type Config struct {
	issuers   []apiserver.JWTAuthenticator
	anonymous *apiserver.AnonymousAuthConfig
}

// Load reads and checks a file with an AuthenticationConfiguration of apiserver.config.k8s.io/v1 or v1beta1. Issuers that
// are this server's own (those of its service accounts) are refused. Errors name the file and the field.
func Load(path string, own ...string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	c, err := Parse(data, own...)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse is Load for what a file holds.
func Parse(data []byte, own ...string) (*Config, error) {
	var in apiserverv1.AuthenticationConfiguration
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		return nil, err
	}
	if in.Kind != "AuthenticationConfiguration" {
		return nil, fmt.Errorf("kind is %q, want AuthenticationConfiguration", in.Kind)
	}
	switch in.APIVersion {
	case "apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1":
	default:
		return nil, fmt.Errorf("apiVersion is %q, want apiserver.config.k8s.io/v1", in.APIVersion)
	}
	var out apiserver.AuthenticationConfiguration
	if err := apiserverv1.Convert_v1_AuthenticationConfiguration_To_apiserver_AuthenticationConfiguration(&in, &out, nil); err != nil {
		return nil, err
	}
	return check(&out, own)
}

// check validates a configuration in upstream's words. Without issuers nothing of CEL is touched.
func check(c *apiserver.AuthenticationConfiguration, own []string) (*Config, error) {
	var errs field.ErrorList
	if len(c.JWT) > 0 {
		errs = validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), c, own)
	}
	if a := c.Anonymous; a != nil && !a.Enabled && len(a.Conditions) > 0 && len(c.JWT) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("anonymous", "conditions"), a.Conditions, "enabled should be set to true when conditions are defined"))
	}
	for i := range c.JWT {
		if c.JWT[i].Issuer.EgressSelectorType != "" {
			errs = append(errs, field.Forbidden(field.NewPath("jwt").Index(i).Child("issuer", "egressSelectorType"), "this server has no egress selectors"))
		}
	}
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return &Config{issuers: c.JWT, anonymous: c.Anonymous}, nil
}

// Flags are the older way to name one issuer: the flags --oidc-... of upstream's API server.
type Flags struct {
	IssuerURL, ClientID           string
	UsernameClaim, UsernamePrefix string
	GroupsClaim, GroupsPrefix     string
	CAFile                        string
	RequiredClaims                map[string]string
}

// Set tells whether any flag was given.
func (f *Flags) Set() bool {
	return f.IssuerURL != "" || f.ClientID != "" || f.UsernamePrefix != "" || f.GroupsClaim != "" || f.GroupsPrefix != "" || f.CAFile != "" || len(f.RequiredClaims) > 0
}

// Config makes the configuration that the flags stand for.
func (f *Flags) Config(own ...string) (*Config, error) {
	if f.IssuerURL == "" || f.ClientID == "" {
		return nil, errors.New("oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set")
	}
	username := f.UsernameClaim
	if username == "" {
		username = "sub"
	}
	prefix := f.UsernamePrefix
	switch {
	case prefix == "-":
		prefix = ""
	case prefix == "" && username != "email":
		// Names that are not said to be of people must not be taken for others'.
		prefix = f.IssuerURL + "#"
	}
	j := apiserver.JWTAuthenticator{
		Issuer:        apiserver.Issuer{URL: f.IssuerURL, Audiences: []string{f.ClientID}},
		ClaimMappings: apiserver.ClaimMappings{Username: apiserver.PrefixedClaimOrExpression{Claim: username, Prefix: &prefix}},
	}
	if f.GroupsClaim != "" {
		j.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Claim: f.GroupsClaim, Prefix: &f.GroupsPrefix}
	}
	for claim, value := range f.RequiredClaims {
		j.ClaimValidationRules = append(j.ClaimValidationRules, apiserver.ClaimValidationRule{Claim: claim, RequiredValue: value})
	}
	if f.CAFile != "" {
		pem, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("oidc-ca-file: %w", err)
		}
		j.Issuer.CertificateAuthority = string(pem)
	}
	return check(&apiserver.AuthenticationConfiguration{JWT: []apiserver.JWTAuthenticator{j}}, own)
}

// SameAnonymous tells whether two configurations let anonymous requests in alike.
func (c *Config) SameAnonymous(o *Config) bool { return reflect.DeepEqual(c.anonymous, o.anonymous) }

// Anonymous says where requests without credentials are let in, nil if the configuration leaves that to the server.
func (c *Config) Anonymous() func(path string) bool {
	a := c.anonymous
	if a == nil {
		return nil
	}
	if a.Enabled && len(a.Conditions) == 0 {
		return func(string) bool { return true }
	}
	paths := map[string]bool{}
	for _, one := range a.Conditions {
		paths[one.Path] = a.Enabled
	}
	return func(path string) bool { return paths[path] }
}
