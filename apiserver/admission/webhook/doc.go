// Package webhook asks the admission webhooks of a cluster about writes: the mutating ones in turn, then the validating ones side by
// side (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/).
//
// It owns how a request is put to a webhook, what an answer means, and what happens when there is none. It reads the
// configurations from the snapshot of the request, compiled once for each of their versions; it opens no connections of its own
// (package backend does) and holds no lock while it waits. It never asks about the configurations of webhooks and policies, nor about
// reviews of who a user is and may do.
//
// Which requests concern a webhook is decided by package match. What departs from upstream stands in
// docs/decisions/0006-webhooks-that-guard-themselves.md: the system's own writes that a webhook's backend needs pass when that
// backend cannot be reached.
package webhook
