package wire

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/store"
)

// NotAcceptable is the 406 that lists what would be accepted.
func NotAcceptable(accepted []string) error {
	return failure(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		"only the following media types are accepted: "+strings.Join(accepted, ", "))
}

// NotAcceptableMessage is a 406 with words of its own.
func NotAcceptableMessage(message string) error {
	return failure(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, message)
}

// UnsupportedMediaType is the 415 that lists what would be understood.
func UnsupportedMediaType(accepted []string) error {
	return failure(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: "+strings.Join(accepted, ", "))
}

func failure(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	}}
}

// StatusOf gives the Status that a client is shown for an error. What is not an API error
// becomes a 500 with the error's text and the reason Unknown, as upstream does; a deadline becomes 504.
func StatusOf(err error) *metav1.Status {
	var status metav1.Status
	var api apierrors.APIStatus
	switch {
	case errors.As(err, &api):
		status = api.Status()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, store.ErrUnknown):
		status = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0).Status()
	default:
		status = metav1.Status{Code: http.StatusInternalServerError, Message: err.Error()}
	}
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
		if status.Status == metav1.StatusSuccess {
			status.Code = http.StatusOK
		}
	}
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return &status
}

// summarize shows the start of a body that was not understood.
func summarize(data []byte) string {
	const most = 30
	if len(data) == 0 {
		return "<empty>"
	}
	short, more := data, ""
	if len(data) > most {
		short, more = data[:most], " ..."
	}
	if data[0] == '{' {
		return string(short) + more
	}
	return hex.EncodeToString(short) + more
}

// decodeError words the failure to read a body that says it is a kind.
func decodeError(err error, kind, version, want string, body []byte) error {
	if kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", kind, version, want, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want, err, summarize(body)))
}
