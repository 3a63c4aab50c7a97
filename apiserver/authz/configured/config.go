package configured

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/apiserver"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authorizationcel "k8s.io/apiserver/pkg/authorization/cel"
	"sigs.k8s.io/yaml"
)

// The types of authorizers beside webhooks. ABAC, whose policies are read from a file once, is not one of them.
const (
	typeNode        = "Node"
	typeRBAC        = "RBAC"
	typeAlwaysAllow = "AlwaysAllow"
	typeAlwaysDeny  = "AlwaysDeny"
)

// Config says which authorizers are asked, and in which order. It is checked when made and not changed after.
type Config struct {
	authorizers []apiserver.AuthorizerConfiguration
}

// Load reads and checks a file with an AuthorizationConfiguration of apiserver.config.k8s.io/v1 or v1beta1.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse is Load for what a file holds.
func Parse(data []byte) (*Config, error) {
	var in apiserverv1.AuthorizationConfiguration
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		return nil, err
	}
	if in.Kind != "AuthorizationConfiguration" {
		return nil, fmt.Errorf("kind is %q, want AuthorizationConfiguration", in.Kind)
	}
	switch in.APIVersion {
	case "apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1":
	default:
		return nil, fmt.Errorf("apiVersion is %q, want apiserver.config.k8s.io/v1", in.APIVersion)
	}
	for i := range in.Authorizers {
		if w := in.Authorizers[i].Webhook; w != nil {
			apiserverv1.SetDefaults_WebhookConfiguration(w)
		}
	}
	var out apiserver.AuthorizationConfiguration
	if err := apiserverv1.Convert_v1_AuthorizationConfiguration_To_apiserver_AuthorizationConfiguration(&in, &out, nil); err != nil {
		return nil, err
	}
	return check(&out)
}

// check validates in upstream's words.
func check(c *apiserver.AuthorizationConfiguration) (*Config, error) {
	known := sets.New(typeNode, typeRBAC, typeAlwaysAllow, typeAlwaysDeny, string(apiserver.TypeWebhook))
	if errs := validation.ValidateAuthorizationConfiguration(authorizationcel.NewDefaultCompiler(), nil, c, known, sets.New(string(apiserver.TypeWebhook))); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	var errs []error
	for i, a := range c.Authorizers {
		switch {
		case a.Type != apiserver.TypeWebhook:
			if want := strings.ToLower(string(a.Type)); a.Name != want {
				errs = append(errs, fmt.Errorf("expected name %s for authorizer %s instead of %s", want, a.Type, a.Name))
			}
		case a.Webhook.ConnectionInfo.Type != apiserver.AuthorizationWebhookConnectionInfoTypeKubeConfigFile:
			errs = append(errs, field.NotSupported(field.NewPath("authorizers").Index(i).Child("connectionInfo", "type"), a.Webhook.ConnectionInfo.Type,
				[]string{apiserver.AuthorizationWebhookConnectionInfoTypeKubeConfigFile}))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &Config{authorizers: c.Authorizers}, nil
}

// Flags are the older way to say it: --authorization-mode and --authorization-webhook-* of upstream's API server.
type Flags struct {
	// Modes are the types in order; none: Node, then RBAC.
	Modes []string
	// WebhookFile is the kubeconfig file that names the server of the mode Webhook, WebhookVersion that of the reviews sent to it.
	WebhookFile, WebhookVersion string
	// AuthorizedTTL and UnauthorizedTTL are how long its answers are good; 0 remembers none.
	AuthorizedTTL, UnauthorizedTTL time.Duration
}

// Set tells whether anything but the default is asked for.
func (f *Flags) Set() bool { return len(f.Modes) > 0 || f.WebhookFile != "" }

// Config makes the configuration that the flags stand for.
func (f *Flags) Config() (*Config, error) {
	modes := f.Modes
	if len(modes) == 0 {
		modes = []string{typeNode, typeRBAC}
	}
	if hook := slices.Contains(modes, string(apiserver.TypeWebhook)); hook != (f.WebhookFile != "") {
		if hook {
			return nil, errors.New("authorization-mode Webhook's authorization config file not passed")
		}
		return nil, errors.New("cannot specify --authorization-webhook-config-file without mode Webhook")
	}
	file, err := filepath.Abs(f.WebhookFile)
	if err != nil {
		return nil, err
	}
	var c apiserver.AuthorizationConfiguration
	for _, mode := range modes {
		a := apiserver.AuthorizerConfiguration{Type: apiserver.AuthorizerType(mode), Name: strings.ToLower(mode)}
		if a.Type == apiserver.TypeWebhook {
			a.Name, a.Webhook = "default", f.webhook(file)
		}
		c.Authorizers = append(c.Authorizers, a)
	}
	return check(&c)
}

// webhook is the configuration of the mode Webhook. It never stands in the way of other modes.
func (f *Flags) webhook(file string) *apiserver.WebhookConfiguration {
	w := &apiserver.WebhookConfiguration{
		SubjectAccessReviewVersion: f.WebhookVersion, MatchConditionSubjectAccessReviewVersion: "v1", FailurePolicy: apiserver.FailurePolicyNoOpinion,
		CacheAuthorizedRequests: f.AuthorizedTTL > 0, CacheUnauthorizedRequests: f.UnauthorizedTTL > 0,
		ConnectionInfo: apiserver.WebhookConnectionInfo{Type: apiserver.AuthorizationWebhookConnectionInfoTypeKubeConfigFile, KubeConfigFile: &file},
	}
	w.Timeout.Duration = 30 * time.Second
	w.AuthorizedTTL.Duration, w.UnauthorizedTTL.Duration = max(f.AuthorizedTTL, 1), max(f.UnauthorizedTTL, 1) // where nothing is remembered it is not looked at
	return w
}

// lacks are the types other than webhooks that this configuration has and the next does not.
func (c *Config) lacks(next *Config) []string {
	var types []string
	for _, a := range c.authorizers {
		there := func(b apiserver.AuthorizerConfiguration) bool { return a.Type == b.Type }
		if a.Type != apiserver.TypeWebhook && !slices.ContainsFunc(next.authorizers, there) {
			types = append(types, string(a.Type))
		}
	}
	slices.Sort(types)
	return types
}
