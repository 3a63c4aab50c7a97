package webhook

import (
	"context"
	"errors"
	"log/slog"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/expression"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// The plug-ins as upstream names them.
const (
	MutatingName   = "MutatingAdmissionWebhook"
	ValidatingName = "ValidatingAdmissionWebhook"
)

// Config is what webhooks are called with. All but Authorizer is needed.
type Config struct {
	Registry *api.Registry
	Backends *backend.Pool
	// Snapshot gives the present, for what is decided behind the webhooks: time has passed while they were asked.
	Snapshot func() store.Snapshot
	// Authorizer answers what match conditions ask of it.
	Authorizer authz.Authorizer
	Log        *slog.Logger
	// Warn, if not nil, records a warning about an object as an event. It does not wait for that.
	Warn func(about corev1.ObjectReference, reason, message string)
	Now  func() time.Time
}

// Webhooks are both plug-ins. They are safe for concurrent use and have no goroutine beyond those of a call.
type Webhooks struct {
	cfg                  Config
	mutating, validating source
	metrics              metrics
	quiet                quiet
}

// New makes the plug-ins. It costs nothing until there is a configuration.
func New(cfg Config) *Webhooks {
	return &Webhooks{
		cfg:        cfg,
		mutating:   newSource(client.MutatingWebhooks, compileMutating),
		validating: newSource(client.ValidatingWebhooks, compileValidating),
	}
}

// Mutating is the plug-in that belongs behind all others that mutate.
func (w *Webhooks) Mutating() admission.Plugin {
	return admission.Plugin{Name: MutatingName, Mutate: w.mutate}
}

// Validating is the plug-in that belongs behind all others that validate, but for those of admission.Last.
func (w *Webhooks) Validating() admission.Plugin {
	return admission.Plugin{Name: ValidatingName, Validate: w.validate}
}

// exempt tells the requests that no webhook is asked about.
func exempt(r *admission.Request) bool { return match.Exempt(r) || match.Virtual(r) }

// concerns tells whether a webhook is to be asked about a request, and in which form. An error is for the client.
func (w *Webhooks) concerns(ctx context.Context, h *hook, r *admission.Request, step string) (match.Match, bool, error) {
	if h.broken != nil {
		return match.Match{}, false, apierrors.NewInternalError(h.broken)
	}
	m, ok, err := h.match.Match(w.cfg.Registry, r)
	if !ok || err != nil || h.conditions == nil {
		return m, ok, err
	}
	in, err := expression.NewInput(ctx, r, &m, w.cfg.Authorizer)
	if err != nil {
		return m, false, apierrors.NewInternalError(err)
	}
	began := w.cfg.Now()
	ok, _, err = h.conditions.Match(ctx, in)
	w.metrics.conditionTime(h.name, step, r.Operation, w.cfg.Now().Sub(began))
	switch {
	case err != nil && h.failOpen:
		w.metrics.conditionError(h.name, step, r.Operation)
		return m, false, nil
	case err != nil:
		w.metrics.conditionError(h.name, step, r.Operation)
		return m, false, apierrors.NewForbidden(m.Resource.GroupResource(), r.ObjectName(), err)
	case !ok:
		w.metrics.excluded(h.name, step, r.Operation)
	}
	return m, ok, nil
}

// refresh brings the request to the present, since time has passed: what is decided from here on conditions the commit on it. The
// object itself stays conditioned on the version that was read.
func (w *Webhooks) refresh(r *admission.Request) { r.Snapshot = w.cfg.Snapshot() }

// dryRunErr refuses a webhook that would do more than answer on a dry run.
func (h *hook) dryRunErr() error {
	switch {
	case h.sideEffects == nil:
		return &callError{name: h.name, reason: errors.New("Webhook SideEffects is nil"), status: apierrors.NewBadRequest("Webhook SideEffects is nil")} //nolint:staticcheck // upstream's words
	case *h.sideEffects == admissionv1.SideEffectClassNone || *h.sideEffects == admissionv1.SideEffectClassNoneOnDryRun:
		return nil
	}
	return dryRunUnsupported(h.name)
}

// timedOut is the answer to a client whose own time is up.
func timedOut() error {
	return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
}
