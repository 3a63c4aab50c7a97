// Package list decides what a LIST or WATCH request selects and at which revision:
// options, label and field selectors, continue tokens, and the snapshots that
// chunked lists hold on to.
//
// It reads snapshots and makes no bytes; it never copies an object.
package list

import (
	"fmt"
	"net/url"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/store"
)

// Options are the query parameters of LIST, WATCH and DELETECOLLECTION.
type Options struct {
	// Label and Field are nil where nothing is selected.
	Label labels.Selector
	Field fields.Selector

	Watch               bool
	AllowWatchBookmarks bool
	// SendInitialEvents is true also for the watches of old, which begin with the present state.
	SendInitialEvents bool
	ResourceVersion   string
	Match             metav1.ResourceVersionMatch
	// TimeoutSeconds is 0 where the client leaves it to the server.
	TimeoutSeconds int64
	Limit          int64
	Continue       string
}

// ParseOptions reads and validates the parameters. Errors are 400 or 422 in upstream's words.
func ParseOptions(q url.Values, watch bool) (Options, error) {
	o := Options{
		Watch:           watch,
		ResourceVersion: q.Get("resourceVersion"),
		Match:           metav1.ResourceVersionMatch(q.Get("resourceVersionMatch")),
		Continue:        q.Get("continue"),
	}
	var err error
	if s := q.Get("labelSelector"); s != "" {
		if o.Label, err = labels.Parse(s); err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
		if o.Label.Empty() {
			o.Label = nil
		}
	}
	if s := q.Get("fieldSelector"); s != "" {
		if o.Field, err = fields.ParseSelector(s); err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
		if o.Field.Empty() {
			o.Field = nil
		}
	}
	if o.Limit, err = integer(q, "limit"); err != nil {
		return o, err
	}
	if o.TimeoutSeconds, err = integer(q, "timeoutSeconds"); err != nil {
		return o, err
	}
	o.AllowWatchBookmarks = boolean(q, "allowWatchBookmarks")
	return o, o.validate(q)
}

// validate applies the rules between parameters, and the default for watches of old.
func (o *Options) validate(q url.Values) error {
	in := internalversion.ListOptions{
		Watch: o.Watch, ResourceVersion: o.ResourceVersion, ResourceVersionMatch: o.Match, Continue: o.Continue,
	}
	if _, ok := q["sendInitialEvents"]; ok {
		send := boolean(q, "sendInitialEvents")
		in.SendInitialEvents = &send
	}
	internalversion.SetListOptionsDefaults(&in, true)
	if errs := validation.ValidateListOptions(&in, true); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	o.Match = in.ResourceVersionMatch
	o.SendInitialEvents = in.SendInitialEvents != nil && *in.SendInitialEvents
	return nil
}

func integer(q url.Values, name string) (int64, error) {
	s := q.Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(err.Error())
	}
	return max(n, 0), nil
}

// boolean reads a parameter as upstream does: present and not "false" or "0" is true.
func boolean(q url.Values, name string) bool {
	values, ok := q[name]
	if !ok || len(values) == 0 {
		return false
	}
	switch values[0] {
	case "0", "false", "False", "FALSE":
		return false
	}
	return true
}

// ParseRevision reads a resourceVersion; empty is 0.
func ParseRevision(s string) (store.Revision, field.ErrorList) {
	if s == "" || s == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, field.ErrorList{field.Invalid(field.NewPath("resourceVersion"), s, err.Error())}
	}
	return store.Revision(n), nil
}

// TooLarge is the error for a revision that the server has not reached.
func TooLarge(want, have store.Revision) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", want, have), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version",
	}}
	return err
}
