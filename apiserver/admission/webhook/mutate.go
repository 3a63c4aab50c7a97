package webhook

import (
	"context"
	"encoding/json"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	reviewv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/admission/match"
	"coracle.dev/coracle/apiserver/wire"
)

// step names the two kinds in metrics.
const (
	admit      = "admit"
	validating = "validating"
)

// The keys under which the audit log is told what mutating webhooks did.
const (
	mutationKey = "mutation.webhook.admission.k8s.io/"
	patchKey    = "patch.webhook.admission.k8s.io/"
	failedOpen  = "failed-open."
)

// rounds is what mutating webhooks keep of a request between its two rounds.
type rounds struct {
	// called are webhooks that want to be called again when the object changes after them; due are those for which
	// it has.
	called, due map[string]bool
	// left is the object as the webhooks left it.
	left api.Object
}

// changed says that the object was changed: those that were called before are to see it.
func (s *rounds) changed() {
	for id := range s.called {
		s.due[id] = true
	}
	clear(s.called)
}

// mutate calls the mutating webhooks in turn; each sees what those before it have changed.
func (w *Webhooks) mutate(ctx context.Context, r *admission.Request) error {
	hooks := w.mutating.load(r.Snapshot)
	if len(hooks) == 0 || exempt(r) {
		return nil
	}
	s, ok := r.State(MutatingName).(*rounds)
	if !ok {
		if r.Round() > 0 {
			// None was called in the first round, and none is called in the second for the first time.
			return nil
		}
		s = &rounds{called: map[string]bool{}, due: map[string]bool{}}
	}
	if r.Round() > 0 && !equality.Semantic.DeepEqual(s.left, r.Object) {
		s.changed()
	}
	asked, err := w.round(ctx, r, hooks, s)
	if asked {
		w.refresh(r)
		if r.Object != nil && len(s.called)+len(s.due) > 0 {
			s.left = r.Object.DeepCopyObject().(api.Object)
		}
		r.SetState(MutatingName, s)
	}
	return err
}

// round is one turn; asked tells whether any webhook was called.
func (w *Webhooks) round(ctx context.Context, r *admission.Request, hooks []*hook, s *rounds) (asked bool, err error) {
	views := &reviews{r: r}
	for i, h := range hooks {
		m, ok, err := w.concerns(ctx, h, r, admit)
		if err != nil {
			return asked, err
		}
		if !ok || r.Round() > 0 && !s.due[h.id] {
			continue
		}
		asked = true
		changed, err := w.mutateBy(ctx, h, i, r, m, views)
		if changed {
			views.made = nil
			s.changed()
			r.Again()
		}
		if h.again {
			s.called[h.id] = true
		}
		if err != nil {
			return asked, err
		}
	}
	return asked, nil
}

// mutateBy calls one webhook. index is its place among all, for the audit log.
func (w *Webhooks) mutateBy(ctx context.Context, h *hook, index int, r *admission.Request, m match.Match, views *reviews) (bool, error) {
	at := fmt.Sprintf("round_%d_index_%d", r.Round(), index)
	start := w.cfg.Now()
	changed, err := w.patchBy(ctx, h, at, r, m, views)
	note(r, mutationKey+at, mutation{Configuration: h.configuration, Webhook: h.name, Mutated: changed})
	err = w.judge(ctx, h, r, err, outcome{step: admit, took: w.cfg.Now().Sub(start), key: failedOpen + mutationKey + at})
	return changed, err
}

// patchBy asks one webhook and applies its patch to Request.Object.
func (w *Webhooks) patchBy(ctx context.Context, h *hook, at string, r *admission.Request, m match.Match, views *reviews) (bool, error) {
	v, err := views.in(ctx, m)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	a, err := w.ask(ctx, h, r, v, true)
	if err != nil {
		return false, err
	}
	h.remark(r, a)
	if !a.Allowed {
		return false, denied(h.name, a.Result)
	}
	if len(a.Patch) == 0 {
		return false, nil
	}
	patch, err := jsonpatch.DecodePatch(a.Patch)
	if err != nil {
		return false, &callError{
			name: h.name, reason: fmt.Errorf("received undecodable patch in webhook response: %w", err),
			status: apierrors.NewServiceUnavailable("error decoding patch in webhook response"),
		}
	}
	if len(patch) == 0 {
		return false, nil
	}
	if r.Object == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	if *a.PatchType != reviewv1.PatchTypeJSONPatch {
		return false, &callError{
			name: h.name, reason: fmt.Errorf("unsupported patch type %q", *a.PatchType),
			status: apierrors.NewServiceUnavailable("unsupported patch type"),
		}
	}
	next, err := apply(ctx, r, &m, v.object, patch)
	if err != nil {
		return false, err
	}
	if r.AnnotateBodies {
		note(r, patchKey+at, patched{h.configuration, h.name, patch, string(reviewv1.PatchTypeJSONPatch)})
	}
	changed := !equality.Semantic.DeepEqual(r.Object, next)
	r.Object = next
	return changed, nil
}

// apply patches the object as the webhook was shown it and gives it as Request.Object is.
func apply(ctx context.Context, r *admission.Request, m *match.Match, shown []byte, patch jsonpatch.Patch) (api.Object, error) {
	data, err := patch.Apply(shown)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	like, err := m.Convert(ctx, r.Object)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out := m.New(like)
	if _, err := wire.UnmarshalJSON(data, out, false); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	next, err := m.Restore(ctx, r, out)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	next.GetObjectKind().SetGroupVersionKind(r.Object.GetObjectKind().GroupVersionKind())
	if err := inPlace(r, next); err != nil {
		return nil, err
	}
	return next, nil
}

// inPlace refuses a change that would put the object into another namespace.
func inPlace(r *admission.Request, next api.Object) error {
	switch have := r.Object.GetNamespace(); next.GetNamespace() {
	case have:
	case "":
		next.SetNamespace(have)
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// mutation and patched are how the audit log is told.
type mutation struct {
	Configuration string `json:"configuration"`
	Webhook       string `json:"webhook"`
	Mutated       bool   `json:"mutated"`
}

type patched struct {
	Configuration string `json:"configuration"`
	Webhook       string `json:"webhook"`
	Patch         any    `json:"patch,omitempty"`
	PatchType     string `json:"patchType,omitempty"`
}

func note(r *admission.Request, key string, value any) {
	if r.Annotate == nil {
		return
	}
	if data, err := json.Marshal(value); err == nil {
		r.Annotate(key, string(data))
	}
}

// remark passes on what a webhook says beside its answer.
func (h *hook) remark(r *admission.Request, a *reviewv1.AdmissionResponse) {
	for k, v := range a.AuditAnnotations {
		r.AddAnnotation(h.name+"/"+k, v)
	}
	for _, text := range a.Warnings {
		r.Warn(text)
	}
}
