package webhook

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	reviewv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/apiserver/admission"
)

const validationKey = "validating.webhook.admission.k8s.io/"

// question is one validating webhook that is to be asked, and then what came of it.
type question struct {
	hook   *hook
	view   *review
	answer *reviewv1.AdmissionResponse
	err    error
	took   time.Duration
}

// validate asks all validating webhooks at once. Of several refusals the client is told that of the first webhook.
func (w *Webhooks) validate(ctx context.Context, r *admission.Request) error {
	hooks := w.validating.load(r.Snapshot)
	if len(hooks) == 0 || exempt(r) {
		return nil
	}
	questions, err := w.questions(ctx, r, hooks)
	if err != nil || len(questions) == 0 {
		return err
	}
	if ctx.Err() != nil {
		return timedOut()
	}
	w.askAll(ctx, r, questions)
	w.refresh(r)
	var first error
	for i, q := range questions {
		if q.answer != nil {
			q.hook.remark(r, q.answer)
			if !q.answer.Allowed {
				q.err = denied(q.hook.name, q.answer.Result)
			}
		}
		key := fmt.Sprintf("%s%sround_0_index_%d", failedOpen, validationKey, i)
		if err := w.judge(ctx, q.hook, r, q.err, outcome{step: validating, took: q.took, key: key}); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// questions finds the webhooks that a request concerns.
func (w *Webhooks) questions(ctx context.Context, r *admission.Request, hooks []*hook) ([]*question, error) {
	views := &reviews{r: r}
	var out []*question
	for _, h := range hooks {
		m, ok, err := w.concerns(ctx, h, r, validating)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		v, err := views.in(ctx, m)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		out = append(out, &question{hook: h, view: v})
	}
	return out, nil
}

// askAll asks, and returns when all have answered or their time is up. Nothing of the request changes meanwhile.
func (w *Webhooks) askAll(ctx context.Context, r *admission.Request, questions []*question) {
	one := func(q *question) {
		start := w.cfg.Now()
		q.answer, q.err = w.ask(ctx, q.hook, r, q.view, false)
		q.took = w.cfg.Now().Sub(start)
	}
	var others sync.WaitGroup
	for _, q := range questions[1:] {
		others.Go(func() { one(q) })
	}
	one(questions[0])
	others.Wait()
}

// outcome is what judge is told of a call.
type outcome struct {
	step string
	took time.Duration
	// key is where the audit log is told that a failure was passed over.
	key string
}

// judge counts a call and says what becomes of the request: nil lets it through.
func (w *Webhooks) judge(ctx context.Context, h *hook, r *admission.Request, err error, o outcome) error {
	var call *callError
	if err == nil {
		w.metrics.called(h.name, o.step, r.Operation, o.took, 200, false)
		return nil
	}
	if !errors.As(err, &call) {
		return w.rejected(h, r, err, o)
	}
	open := h.failOpen || w.needed(h, r, call)
	w.metrics.called(h.name, o.step, r.Operation, o.took, codeOf(err), !open)
	if !open {
		if !call.cancelled() {
			w.metrics.rejection(h.name, o.step, r.Operation, "calling_webhook_error", codeOf(err))
		}
		w.cfg.Log.Warn("failed calling webhook, failing closed", "webhook", h.name, "configuration", h.configuration, "error", call)
		return apierrors.NewInternalError(w.explain(h, r, call))
	}
	if call.cancelled() {
		w.cfg.Log.Debug("context canceled when calling webhook", "webhook", h.name)
	} else {
		if h.failOpen {
			w.cfg.Log.Warn("failed calling webhook, failing open", "webhook", h.name, "configuration", h.configuration, "error", call)
		}
		w.metrics.failOpen(h.name, o.step)
		r.AddAnnotation(o.key, h.name)
	}
	if ctx.Err() != nil {
		return timedOut()
	}
	return nil
}

// rejected counts a webhook's no, or a failure of the server's own.
func (w *Webhooks) rejected(h *hook, r *admission.Request, err error, o outcome) error {
	var no *deniedError
	why := "apiserver_internal_error"
	if errors.As(err, &no) {
		why, err = "no_error", no.StatusError
		w.metrics.rejection(h.name, o.step, r.Operation, why, int(no.ErrStatus.Code))
		w.metrics.called(h.name, o.step, r.Operation, o.took, int(no.ErrStatus.Code), true)
		return err
	}
	w.metrics.rejection(h.name, o.step, r.Operation, why, 0)
	w.metrics.called(h.name, o.step, r.Operation, o.took, 0, true)
	return err
}
