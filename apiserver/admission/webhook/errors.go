package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// callError says that a webhook gave no answer that counts. What becomes of the request is up to its failure policy.
type callError struct {
	name   string
	reason error
	status *apierrors.StatusError
	// unreached: nobody answered who could prove to be the webhook.
	unreached bool
}

func (e *callError) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", e.name, e.reason)
}

func (e *callError) Unwrap() error { return e.reason }

// cancelled tells that the client went away, which says nothing of the webhook.
func (e *callError) cancelled() bool { return errors.Is(e.reason, context.Canceled) }

// deniedError is a webhook's no, as the client is told it.
type deniedError struct{ *apierrors.StatusError }

func (e *deniedError) Unwrap() error { return e.StatusError }

// denied words a refusal. The webhook decides on code and reason as long as they are those of a failure.
func denied(name string, result *metav1.Status) error {
	by := fmt.Sprintf("admission webhook %q denied the request", name)
	if result == nil {
		result = &metav1.Status{Status: metav1.StatusFailure}
	}
	if result.Code < http.StatusBadRequest {
		result.Code = http.StatusBadRequest
	}
	if result.Status == "" || result.Status == metav1.StatusSuccess {
		result.Status = metav1.StatusFailure
	}
	switch {
	case result.Message != "":
		result.Message = by + ": " + result.Message
	case result.Reason != "":
		result.Message = by + ": " + string(result.Reason)
	default:
		result.Message = by + " without explanation"
	}
	return &deniedError{&apierrors.StatusError{ErrStatus: *result}}
}

func dryRunUnsupported(name string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", name))
}

// codeOf is the code that metrics name for an error of a call.
func codeOf(err error) int {
	var call *callError
	var no *deniedError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &call):
		return int(call.status.ErrStatus.Code)
	case errors.As(err, &no):
		return int(no.ErrStatus.Code)
	}
	return 0
}
