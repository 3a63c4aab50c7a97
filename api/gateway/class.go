package gateway

import (
	"fmt"
	"regexp"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api/validate"
)

// controllerName is the pattern of a domain-prefixed path that the Gateway API has for names of controllers.
const controllerName = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$`

var (
	compileControllerName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(controllerName) })
	compileKindName       = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(kindName) })
)

const (
	kindName           = `^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`
	longestName        = 253
	longestKind        = 63
	longestDescription = 64
)

func checkClass(c *gatewayv1.GatewayClass) field.ErrorList {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	name := string(c.Spec.ControllerName)
	switch path := spec.Child("controllerName"); {
	case len(name) > longestName:
		errs = append(errs, field.TooLong(path, name, longestName))
	case !compileControllerName().MatchString(name):
		errs = append(errs, mismatch(path, name, controllerName))
	}
	if d := c.Spec.Description; d != nil && len(*d) > longestDescription {
		errs = append(errs, field.TooLong(spec.Child("description"), *d, longestDescription))
	}
	if p := c.Spec.ParametersRef; p != nil {
		errs = append(errs, checkParameters(p, spec.Child("parametersRef"))...)
	}
	return errs
}

func checkParameters(p *gatewayv1.ParametersReference, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if g := string(p.Group); g != "" {
		errs = append(errs, validate.DNSSubdomainField(g, path.Child("group"))...)
	}
	if k := string(p.Kind); len(k) > longestKind || !compileKindName().MatchString(k) {
		errs = append(errs, mismatch(path.Child("kind"), k, kindName))
	}
	if p.Name == "" || len(p.Name) > longestName {
		errs = append(errs, field.Invalid(path.Child("name"), p.Name, fmt.Sprintf("must be of 1 to %d characters", longestName)))
	}
	if p.Namespace != nil {
		errs = append(errs, validate.DNSLabelField(string(*p.Namespace), path.Child("namespace"))...)
	}
	return errs
}

func mismatch(path *field.Path, value, pattern string) *field.Error {
	return field.Invalid(path, value, fmt.Sprintf("%s in body should match '%s'", path, pattern))
}

func checkClassUpdate(c, old *gatewayv1.GatewayClass) field.ErrorList {
	errs := checkClass(c)
	if c.Spec.ControllerName != old.Spec.ControllerName {
		errs = append(errs, field.Invalid(field.NewPath("spec", "controllerName"), c.Spec.ControllerName, "Value is immutable"))
	}
	return errs
}

func checkClassStatus(c, _ *gatewayv1.GatewayClass) field.ErrorList {
	const most = 64
	path := field.NewPath("status")
	errs := validate.Conditions(c.Status.Conditions, path.Child("conditions"))
	if n := len(c.Status.SupportedFeatures); n > most {
		errs = append(errs, field.TooMany(path.Child("supportedFeatures"), n, most))
	}
	return errs
}
