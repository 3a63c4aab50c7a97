package configured

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/utils/clock"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// Parts are what a configuration is made an authorizer with. Node and RBAC are needed.
type Parts struct {
	Node, RBAC authz.Authorizer
	Log        *slog.Logger
	// Clock is the time by which answers of webhooks expire, the real one if nil.
	Clock cache.Clock
}

// Chain asks the authorizers of a configuration in order; the first with an opinion decides. It is safe for concurrent use.
type Chain struct {
	parts   Parts
	first   *Config // what every configuration after it needs to have
	taking  sync.Mutex
	present atomic.Pointer[links]
	counts  metrics
}

// links are the authorizers of one configuration.
type links struct {
	config *Config
	asked  authz.Any
	hooks  []*webhook
}

// New makes the authorizers of a configuration.
func New(c *Config, parts Parts) (*Chain, error) {
	if parts.Clock == nil {
		parts.Clock = clock.RealClock{}
	}
	chain := &Chain{parts: parts, first: c}
	l, err := chain.link(c)
	if err != nil {
		return nil, err
	}
	chain.present.Store(l)
	return chain, nil
}

// Take has another configuration count from the next request on. Types of authorizers beside webhooks that were there at the start must
// be in it. An error leaves everything as it is.
func (c *Chain) Take(next *Config) error {
	c.taking.Lock()
	defer c.taking.Unlock()
	if missing := c.first.lacks(next); len(missing) > 0 {
		return fmt.Errorf("missing required types: %v", missing)
	}
	if added := next.lacks(c.first); len(added) > 0 {
		for _, t := range added {
			if t == typeNode || t == typeRBAC {
				return fmt.Errorf("authorizer type %s is not allowed if it was not enabled at initial server startup", t)
			}
		}
	}
	before := c.present.Load()
	if reflect.DeepEqual(before.config, next) {
		return nil
	}
	l, err := c.link(next)
	if err != nil {
		return err
	}
	c.present.Store(l)
	for _, h := range before.hooks {
		h.endpoint.Close()
	}
	return nil
}

func (c *Chain) link(config *Config) (*links, error) {
	l := &links{config: config}
	for i := range config.authorizers {
		a := &config.authorizers[i]
		var one authz.Authorizer
		switch a.Type {
		case typeNode:
			one = c.parts.Node
		case typeRBAC:
			one = c.parts.RBAC
		case typeAlwaysAllow:
			one = always(authz.Allowed)
		case typeAlwaysDeny:
			one = always(authz.NoOpinion)
		case apiserver.TypeWebhook:
			hook, err := newWebhook(a.Name, a.Webhook, c)
			if err != nil {
				return nil, fmt.Errorf("authorizer %s: %w", a.Name, err)
			}
			l.hooks = append(l.hooks, hook)
			one = hook
		default:
			return nil, fmt.Errorf("unknown authorization mode %s specified", a.Type)
		}
		l.asked = append(l.asked, one)
	}
	return l, nil
}

// Authorize implements authz.Authorizer.
func (c *Chain) Authorize(ctx context.Context, a *authz.Attributes) (authz.Decision, string, error) {
	return c.present.Load().asked.Authorize(ctx, a)
}

// Rules lists what a user may do in a namespace, as far as the authorizers can list it.
func (c *Chain) Rules(user client.User, namespace string) (resources []authorizationv1.ResourceRule, paths []authorizationv1.NonResourceRule, incomplete bool, _ error) {
	type lister interface {
		Rules(client.User, string) ([]authorizationv1.ResourceRule, []authorizationv1.NonResourceRule, bool, error)
	}
	var errs []error
	for _, one := range c.present.Load().asked {
		l, ok := one.(lister)
		if !ok {
			continue
		}
		r, p, open, err := l.Rules(user, namespace)
		resources, paths, incomplete = append(resources, r...), append(paths, p...), incomplete || open
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return resources, paths, incomplete, nil
	}
	return resources, paths, incomplete, utilerrors.NewAggregate(errs)
}

// WriteMetrics writes what was counted of webhooks, in the text format of Prometheus.
func (c *Chain) WriteMetrics(w io.Writer) { c.counts.write(w) }

// always decides alike on everything.
type always authz.Decision

// Authorize implements authz.Authorizer.
func (d always) Authorize(context.Context, *authz.Attributes) (authz.Decision, string, error) {
	if authz.Decision(d) == authz.Allowed {
		return authz.Allowed, "", nil
	}
	return authz.NoOpinion, "Everything is forbidden.", nil
}

// Rules lists everything or nothing.
func (d always) Rules(client.User, string) ([]authorizationv1.ResourceRule, []authorizationv1.NonResourceRule, bool, error) {
	if authz.Decision(d) != authz.Allowed {
		return nil, nil, false, nil
	}
	all := []string{"*"}
	return []authorizationv1.ResourceRule{{Verbs: all, APIGroups: all, Resources: all}},
		[]authorizationv1.NonResourceRule{{Verbs: all, NonResourceURLs: all}}, false, nil
}

var errNoRules = errors.New("webhook authorizer does not support user rule resolution")
