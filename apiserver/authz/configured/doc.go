// Package configured makes the authorizers that an AuthorizationConfiguration names, in its order, webhooks among them
// (https://kubernetes.io/docs/reference/access-authn-authz/authorization/#using-configuration-file-for-authorization).
//
// It owns what is asked of webhooks and how long answers are remembered, and can take over another configuration while requests are
// decided. It knows nothing of files that change: who follows them calls Chain.Take.
package configured
