// Package tokenreview has bearer tokens judged by a server elsewhere, with TokenReviews
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication).
//
// It remembers answers for a while, those that say no too, by the hash of the token. It holds no token and logs none.
package tokenreview

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authenticationv1beta1 "k8s.io/api/authentication/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/utils/clock"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
)

// Config says which server is asked, as the flags --authentication-token-webhook-* of upstream's API server do.
type Config struct {
	// File is a kubeconfig file that names it; "" for none.
	File string
	// Version of the TokenReviews: v1 or v1beta1.
	Version string
	// TTL is how long an answer is good; 0 asks for each request.
	TTL time.Duration
	// Audiences are those of the API server: an answer that names none is for these.
	Audiences []string
	// Clock is the time by which answers expire, the real one if nil.
	Clock cache.Clock
}

// Check says what is wrong with the version and the time.
func (c *Config) Check() error {
	var errs []error
	if c.Version != "v1" && c.Version != "v1beta1" {
		errs = append(errs, fmt.Errorf(`authentication-token-webhook-version: unsupported authentication webhook version %q, supported versions are "v1", "v1beta1"`, c.Version))
	}
	if c.TTL < 0 {
		errs = append(errs, fmt.Errorf("authentication-token-webhook-cache-ttl: %s is less than nothing", c.TTL))
	}
	return errors.Join(errs...)
}

// maxKnown is how many answers are remembered.
const maxKnown = 4096

// Webhook asks a server whose a token is. It is safe for concurrent use.
type Webhook struct {
	cfg      Config
	endpoint *backend.Endpoint
	known    *cache.LRUExpireCache // of key to answer
}

// answer is one that can be used again.
type answer struct {
	user      client.User
	audiences []string
	ok        bool
}

// Open reads the kubeconfig file. Nothing is asked yet.
func Open(c Config) (*Webhook, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	e, err := backend.OpenEndpoint(c.File, 0)
	if err != nil {
		return nil, fmt.Errorf("token webhook: %w", err)
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	return &Webhook{cfg: c, endpoint: e, known: cache.NewLRUExpireCacheWithClock(maxKnown, c.Clock)}, nil
}

// Review implements authn.Reviewer.
func (w *Webhook) Review(ctx context.Context, token string, want []string) (client.User, []string, bool, error) {
	key := sha256.Sum256([]byte(token + "\x00" + strings.Join(want, "\x00")))
	if known, ok := w.known.Get(key); ok {
		a := known.(answer)
		return a.user, a.audiences, a.ok, nil
	}
	a, err := w.ask(ctx, token, want)
	if err != nil {
		return client.User{}, nil, false, fmt.Errorf("token webhook: %w", err)
	}
	if w.cfg.TTL > 0 {
		w.known.Add(key, a, w.cfg.TTL)
	}
	return a.user, a.audiences, a.ok, nil
}

// ask has a token judged. An error that the server tells counts as one that cannot be remembered.
func (w *Webhook) ask(ctx context.Context, token string, want []string) (answer, error) {
	status, err := w.post(ctx, authenticationv1.TokenReviewSpec{Token: token, Audiences: want})
	if err != nil {
		return answer{}, err
	}
	got := status.Audiences
	if len(got) == 0 {
		got = w.cfg.Audiences
	}
	got = slices.DeleteFunc(slices.Clone(want), func(a string) bool { return !slices.Contains(got, a) })
	switch {
	case len(got) == 0:
		return answer{}, nil
	case !status.Authenticated && status.Error != "":
		return answer{}, errors.New(status.Error)
	case !status.Authenticated:
		return answer{}, nil
	}
	u := client.User{Name: status.User.Username, UID: status.User.UID, Groups: status.User.Groups}
	for k, v := range status.User.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return answer{u, got, true}, nil
}

// post sends the question in the version that the server knows. Their answers are written alike.
func (w *Webhook) post(ctx context.Context, spec authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
	gv := authenticationv1.SchemeGroupVersion
	var question any = &authenticationv1.TokenReview{TypeMeta: metav1.TypeMeta{Kind: "TokenReview", APIVersion: gv.String()}, Spec: spec}
	if w.cfg.Version == "v1beta1" {
		gv = authenticationv1beta1.SchemeGroupVersion
		question = &authenticationv1beta1.TokenReview{TypeMeta: metav1.TypeMeta{Kind: "TokenReview", APIVersion: gv.String()},
			Spec: authenticationv1beta1.TokenReviewSpec{Token: spec.Token, Audiences: spec.Audiences}}
	}
	var out authenticationv1.TokenReview
	if err := w.endpoint.Ask(ctx, question, &out); err != nil {
		return out.Status, err
	}
	if out.Kind != "" && out.Kind != "TokenReview" || out.APIVersion != "" && out.APIVersion != gv.String() {
		return out.Status, fmt.Errorf("the answer is a %q of %q, not a TokenReview of %q", out.Kind, out.APIVersion, gv)
	}
	return out.Status, nil
}
