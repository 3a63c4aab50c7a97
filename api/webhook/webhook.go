// Package webhook checks where a webhook is to be called: the URLs and service references of
// admission and conversion webhooks. It never calls one.
package webhook

import (
	"fmt"
	"net/url"
	"strings"

	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// DefaultPort is the port of a service reference that names none.
const DefaultPort = 443

// Client is the part of a client configuration that says where to call.
type Client struct {
	URL *string
	// Service is nil if there is no service reference.
	Service *Service
}

// Service refers to a service and a path on it.
type Service struct {
	Namespace, Name string
	Path            *string
	Port            *int32
}

// Check refuses a client configuration that names not exactly one place, or a bad one.
func (c Client) Check(path *field.Path) field.ErrorList {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return field.ErrorList{field.Required(path, "exactly one of url or service is required")}
	case c.URL != nil:
		return checkURL(*c.URL, path.Child("url"))
	}
	return c.Service.check(path.Child("service"))
}

func checkURL(text string, path *field.Path) field.ErrorList {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(text)
	if err != nil {
		return field.ErrorList{field.Required(path, "url must be a valid URL: "+err.Error()+form)}
	}
	var errs field.ErrorList
	if u.Scheme != "https" {
		errs = append(errs, field.Invalid(path, u.Scheme, "'https' is the only allowed URL scheme"+form))
	}
	if u.Host == "" {
		errs = append(errs, field.Invalid(path, u.Host, "host must be specified"+form))
	}
	if u.User != nil {
		// The password that may stand here goes into no message.
		errs = append(errs, field.Invalid(path, u.User.Username(), "user information is not permitted in the URL"))
	}
	if u.Fragment != "" {
		errs = append(errs, field.Invalid(path, u.Fragment, "fragments are not permitted in the URL"))
	}
	if u.RawQuery != "" {
		errs = append(errs, field.Invalid(path, u.RawQuery, "query parameters are not permitted in the URL"))
	}
	return errs
}

func (s *Service) check(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	if s.Namespace == "" {
		errs = append(errs, field.Required(path.Child("namespace"), ""))
	}
	port := int32(DefaultPort)
	if s.Port != nil {
		port = *s.Port
	}
	if msgs := content.IsValidPortNum(int(port)); len(msgs) > 0 {
		errs = append(errs, field.Invalid(path.Child("port"), port, "port is not valid: "+strings.Join(msgs, ", ")))
	}
	if s.Path != nil {
		errs = append(errs, checkPath(*s.Path, path.Child("path"))...)
	}
	return errs
}

func checkPath(text string, path *field.Path) field.ErrorList {
	if text == "" || text == "/" {
		return nil
	}
	var errs field.ErrorList
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		errs = append(errs, field.Invalid(path, text, "must start with a '/'"))
		rest = text[1:]
	}
	if rest != "/" {
		rest = strings.TrimSuffix(rest, "/")
	} else {
		return field.ErrorList{field.Invalid(path, text, "segment[0] may not be empty")}
	}
	for i, part := range strings.Split(rest, "/") {
		if part == "" {
			errs = append(errs, field.Invalid(path, text, fmt.Sprintf("segment[%d] may not be empty", i)))
			continue
		}
		for _, m := range validate.DNSSubdomain(part) {
			errs = append(errs, field.Invalid(path, text, fmt.Sprintf("segment[%d]: %v", i, m)))
		}
	}
	return errs
}
