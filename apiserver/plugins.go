package apiserver

import (
	"slices"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/webhook"
	"coracle.dev/coracle/apiserver/backend"
)

// plugins are the admission plug-ins of the server, in upstream's order: those built in, policies, webhooks, and last what counts
// what is really stored. RBAC's own rules on roles and bindings are upstream's storage's; they see what all others have made.
func (s *Server) plugins(rights *escalation) admission.Chain {
	return slices.Concat(
		admission.BuiltIn(s.cfg.Store),
		admission.Chain{admission.NodeRestriction(s.authz)},
		admission.Certificates(rights.access()),
		admission.Chain{admission.ResourceClaims(s.authz)},
		s.cfg.Admission,
		s.policies.Plugins(),
		admission.Chain{s.webhooks.Mutating(), s.webhooks.Validating()},
		admission.Last(),
		admission.Chain{rights.plugin()},
	)
}

// newWebhooks makes the plug-ins that call admission webhooks.
func (s *Server) newWebhooks() *webhook.Webhooks {
	return webhook.New(webhook.Config{
		Registry: s.cfg.Registry, Backends: s.cfg.Backends, Snapshot: s.cfg.Store.Snapshot, Authorizer: s.authz, Log: s.cfg.Log, Warn: s.cfg.Warn, Now: s.cfg.Now,
	})
}

// Backends are the connections to what the server calls out to.
func (s *Server) Backends() *backend.Pool { return s.cfg.Backends }
