package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"coracle.dev/coracle/client"
)

// samplePath is where a node tells the API server what it and its pods have used, for the metrics API.
const samplePath = "/coracle/sample"

// startNodeAPI serves the node's API (logs, exec, port forwarding, figures) to the API server and whoever else has the right.
func (c *Cluster) startNodeAPI(ctx context.Context) (func(context.Context) error, string, error) {
	if kept := c.keptServingCertificate(time.Now()); kept != nil {
		c.agent.serving.Store(kept)
	} else {
		cert, err := c.servingCertificate(ctx)
		if err != nil {
			return nil, "", err
		}
		c.agent.serving.Store(cert)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(c.agent.ca)
	address := net.JoinHostPort("", strconv.Itoa(c.cfg.Join.APIPort))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, "", fmt.Errorf("port %d of the node's API: %w: choose another with --node-port", c.cfg.Join.APIPort, err)
	}
	web := &http.Server{
		Handler:           c.guarded(c.nodeHandler()),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       3 * time.Minute,
		ErrorLog:          log.New(quiet{c}, "", 0),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.agent.serving.Load(), nil },
			NextProtos:     []string{"http/1.1"}}, // upgrades need it
	}
	go func() {
		if err := web.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			c.fail(fmt.Errorf("node api: %w", err))
		}
	}()
	rotation := c.run("serving certificate", func(ctx context.Context) error {
		return keepRenewing(ctx, c.agent.serving.Load, func(ctx context.Context) error {
			cert, err := c.servingCertificate(ctx)
			if err != nil {
				c.log.Warn("the certificate of the node's API could not be renewed", "error", err)
				return err
			}
			c.agent.serving.Store(cert)
			return nil
		})
	})
	return func(ctx context.Context) error {
		bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err := rotation(ctx)
		if web.Shutdown(bounded) != nil {
			err = errors.Join(err, web.Close())
		}
		return err
	}, l.Addr().String(), nil
}

// nodeHandler is the node's API with what only our own API server asks for.
func (c *Cluster) nodeHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+samplePath, func(w http.ResponseWriter, r *http.Request) {
		samples, err := c.ownSample()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(samples)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if api := c.node.kubelet.Load(); api != nil {
			api.ServeHTTP(w, r)
			return
		}
		http.Error(w, "the node is starting", http.StatusServiceUnavailable)
	})
	return mux
}

// guarded lets those in whom the control plane says to: it is asked who they are and what they may, as kubelets do with webhook
// authentication and authorization
// (https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/).
func (c *Cluster) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, ok := c.caller(r)
		if !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		attributes := nodeAttributes(r, c.cfg.NodeName)
		if !user.In(client.GroupMasters) && !c.mayUse(r.Context(), user, attributes) {
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)",
				user.Name, attributes[0].Verb, subresources(attributes)), http.StatusForbidden)
			return
		}
		r.Header.Del("Authorization")
		next.ServeHTTP(w, r)
	})
}

// caller finds out who asks: the bearer of a certificate of the cluster's authority, or of a token.
func (c *Cluster) caller(r *http.Request) (client.User, bool) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		leaf := r.TLS.VerifiedChains[0][0]
		return client.User{Name: leaf.Subject.CommonName, Groups: append([]string{client.GroupAuthenticated}, leaf.Subject.Organization...)},
			leaf.Subject.CommonName != "" && !time.Now().After(leaf.NotAfter)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return client.User{}, false
	}
	found, err := c.nodeReviews.tokens.get(r.Context(), sha256.Sum256([]byte(token)), func(ctx context.Context) (tokenOwner, time.Duration, error) {
		out, err := c.client.Create(ctx, "tokenreviews.authentication.k8s.io",
			&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, client.WriteOptions{})
		if err != nil {
			return tokenOwner{}, 0, err
		}
		status := out.(*authenticationv1.TokenReview).Status
		u := client.User{Name: status.User.Username, UID: status.User.UID, Groups: status.User.Groups, Extra: map[string][]string{}}
		for k, v := range status.User.Extra {
			u.Extra[k] = v
		}
		return tokenOwner{u, status.Authenticated}, tokenLife, nil
	})
	return found.user, err == nil && found.known
}

// nodeReviews are what the control plane said of those who call a node's API.
type nodeReviews struct {
	tokens reviews[tokenOwner]
	rights reviews[bool]
}

// tokenOwner is who has a token. known is false for a token of nobody.
type tokenOwner struct {
	user  client.User
	known bool
}

// mayUse asks the control plane for one of several rights after the other.
func (c *Cluster) mayUse(ctx context.Context, u client.User, any []authorizationv1.ResourceAttributes) bool {
	return slices.ContainsFunc(any, func(a authorizationv1.ResourceAttributes) bool { return c.may(ctx, u, &a) })
}

func (c *Cluster) may(ctx context.Context, u client.User, a *authorizationv1.ResourceAttributes) bool {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range u.Extra {
		extra[k] = v
	}
	spec := authorizationv1.SubjectAccessReviewSpec{User: u.Name, UID: u.UID, Groups: u.Groups, Extra: extra, ResourceAttributes: a}
	question, err := json.Marshal(spec) // keys of maps are in order
	if err != nil {
		return false
	}
	allowed, err := c.nodeReviews.rights.get(ctx, sha256.Sum256(question), func(ctx context.Context) (bool, time.Duration, error) {
		out, err := c.client.Create(ctx, "subjectaccessreviews.authorization.k8s.io", &authorizationv1.SubjectAccessReview{Spec: spec}, client.WriteOptions{})
		if err != nil {
			return false, 0, err
		}
		if out.(*authorizationv1.SubjectAccessReview).Status.Allowed {
			return true, allowedLife, nil
		}
		return false, deniedLife, nil
	})
	return err == nil && allowed
}

// verbs are what methods are in terms of rights. Other methods have no verb, which only those have who may do anything.
var verbs = map[string]string{http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}

// nodeAttributes are the rights each of which is enough for a request of the node's API
// (https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/#fine-grained-authorization). What is not a figure, a
// log or a list needs the right to all of the node, nodes/proxy.
func nodeAttributes(r *http.Request, node string) []authorizationv1.ResourceAttributes {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	subresources := []string{"proxy"}
	switch first {
	case "pods", "healthz", "configz":
		subresources = []string{first, "proxy"}
	case "runningpods":
		subresources = []string{"pods", "proxy"}
	case "stats", "metrics", "checkpoint", "statusz":
		subresources = []string{first}
	case "logs":
		subresources = []string{"log"}
	case "flagz":
		subresources = []string{"configz"}
	}
	all := make([]authorizationv1.ResourceAttributes, len(subresources))
	for i, s := range subresources {
		all[i] = authorizationv1.ResourceAttributes{Verb: verbs[r.Method], Version: "v1", Resource: "nodes", Subresource: s, Name: node}
	}
	return all
}

// subresources are those of rights.
func subresources(of []authorizationv1.ResourceAttributes) []string {
	var all []string
	for _, a := range of {
		all = append(all, a.Subresource)
	}
	return all
}
