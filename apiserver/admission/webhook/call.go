package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	reviewv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/wire"
)

// maxAnswer is how many bytes of an answer are read: that of the greatest request, with room for the patch to be base64 and more.
const maxAnswer = 4 * wire.MaxBody

// ask puts a request to a webhook. The answer allows the request. An error is a *callError if there was no answer, a *deniedError if
// it was no, anything else is the server's own.
func (w *Webhooks) ask(ctx context.Context, h *hook, r *admission.Request, v *review, mutating bool) (*reviewv1.AdmissionResponse, error) {
	if r.DryRun {
		if err := h.dryRunErr(); err != nil {
			return nil, err
		}
	}
	if h.version == "" {
		return nil, &callError{
			name: h.name, reason: errors.New("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"),
			status: apierrors.NewBadRequest("error creating admission objects"),
		}
	}
	uid := uuid.NewUUID()
	body, err := v.body(r, h.version, uid)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	answer := &reviewv1.AdmissionReview{}
	if err := w.post(ctx, h, body, answer); err != nil {
		return nil, err
	}
	a, err := verify(answer, h.version, uid, mutating)
	if err != nil {
		return nil, &callError{
			name: h.name, reason: fmt.Errorf("received invalid webhook response: %w", err),
			status: apierrors.NewServiceUnavailable("error validating webhook response"),
		}
	}
	return a, nil
}

// post sends a review and decodes the answer.
func (w *Webhooks) post(ctx context.Context, h *hook, body []byte, into *reviewv1.AdmissionReview) error {
	if h.noTarget {
		return w.noClient(h, errors.New("webhook configuration must have either service or URL"))
	}
	c, u, err := w.cfg.Backends.Client(h.target)
	if err != nil {
		return w.noClient(h, err)
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	end, _ := ctx.Deadline()
	q := u.Query()
	q.Set("timeout", roundUp(time.Until(end)).String())
	u.RawQuery = q.Encode()
	if u.Path == "" {
		u.Path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return w.noClient(h, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	req.Header.Set("User-Agent", "kube-apiserver-admission")
	resp, data, err := backend.Do(c, req, maxAnswer)
	switch {
	case err != nil:
		return h.failed(err, !errors.Is(err, backend.ErrTooLong))
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return h.failed(refused(resp, data), false)
	}
	if _, err := wire.UnmarshalJSON(data, into, false); err != nil {
		return h.failed(fmt.Errorf("couldn't get version/kind; json parse error: %w", err), false)
	}
	return nil
}

// roundUp gives whole seconds, at least one.
func roundUp(d time.Duration) time.Duration {
	if cut := d.Truncate(time.Second); cut != d || d <= 0 {
		return max(cut, 0) + time.Second
	}
	return d
}

func (w *Webhooks) noClient(h *hook, err error) error {
	return &callError{name: h.name, reason: fmt.Errorf("could not get REST client: %w", err), status: apierrors.NewInternalError(err)}
}

// failed is a call without an answer. What the service resolver or the webhook's server said as a status keeps its code.
func (h *hook) failed(err error, unreached bool) error {
	status := apierrors.NewServiceUnavailable("error calling webhook")
	if said, ok := err.(*apierrors.StatusError); ok { //nolint:errorlint // one that is wrapped is the transport's
		status = said
	}
	return &callError{name: h.name, reason: fmt.Errorf("failed to call webhook: %w", err), status: status, unreached: unreached}
}

// maxSaid is how much of what a webhook's server says instead of an answer is passed on.
const maxSaid = 2048

// refused is what a status other than success says.
func refused(resp *http.Response, data []byte) error {
	said := &metav1.Status{}
	if json.Unmarshal(data, said) == nil && said.Kind == "Status" && said.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: *said}
	}
	message := "unknown"
	if readable(resp.Header.Get("Content-Type")) {
		message = strings.TrimSpace(string(data[:min(len(data), maxSaid)]))
	}
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(resp.StatusCode, http.MethodPost, schema.GroupResource{}, "", message, after, true)
}

// readable tells that a body is meant to be read by people. One without a type is.
func readable(contentType string) bool {
	return contentType == "" || strings.HasPrefix(contentType, "text/")
}
