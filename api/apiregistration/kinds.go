// Package apiregistration holds the Kind of the API group apiregistration.k8s.io: API services, by which
// a group version is served here or by another server.
package apiregistration

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/api/webhook"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{apiServiceKind()}
}

func apiServiceKind() *api.Kind {
	type service = *apiregistrationv1.APIService
	return &api.Kind{
		Group: apiregistrationv1.SchemeGroupVersion.Group, Kind: "APIService", Resource: "apiservices", Singular: "apiservice",
		Categories: []string{"api-extensions"},
		Versions:   declare.V1[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](),
		Default: api.On(func(a service) {
			if s := a.Spec.Service; s != nil && s.Port == nil {
				port := int32(webhook.DefaultPort)
				s.Port = &port
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(a service) {
				a.Status = apiregistrationv1.APIServiceStatus{}
				if a.Spec.Service == nil {
					a.Status.Conditions = []apiregistrationv1.APIServiceCondition{LocalAvailable(a.CreationTimestamp)}
				}
			}),
			PrepareUpdate:  api.OnUpdate(func(a, old service) { a.Status = old.Status }),
			Validate:       api.Checks(apiService),
			ValidateUpdate: api.ChecksUpdate(func(a, _ service) field.ErrorList { return apiService(a) }),
		},
		ValidateName: validate.PathSegment, // what it must be depends on the spec
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Service", "The reference to the service that hosts this API endpoint.", func(a service) any {
				if a.Spec.Service == nil {
					return "Local"
				}
				return a.Spec.Service.Namespace + "/" + a.Spec.Service.Name
			}),
			declare.Text("Available", "Whether this service is available.", func(a service) any { return available(a) }),
			declare.Age(),
		},
		Indexes: map[string]func(api.Object) []string{
			"service": api.Values(func(a service) []string {
				if a.Spec.Service == nil {
					return nil
				}
				return []string{a.Spec.Service.Namespace + "/" + a.Spec.Service.Name}
			}),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(a, old service) {
				a.Spec = old.Spec
				a.Labels = old.Labels
				a.Annotations = old.Annotations
				a.Finalizers = old.Finalizers
				a.OwnerReferences = old.OwnerReferences
			}),
			ValidateUpdate: api.ChecksUpdate(func(a, _ service) field.ErrorList {
				var errs field.ErrorList
				for i, c := range a.Status.Conditions {
					errs = append(errs, validate.OneOf(c.Status, field.NewPath("status", "conditions").Index(i).Child("status"),
						apiregistrationv1.ConditionTrue, apiregistrationv1.ConditionFalse, apiregistrationv1.ConditionUnknown)...)
				}
				return errs
			}),
		})},
	}
}

// LocalAvailable is the condition of an APIService that this server itself serves.
func LocalAvailable(at metav1.Time) apiregistrationv1.APIServiceCondition {
	return apiregistrationv1.APIServiceCondition{
		Type:               apiregistrationv1.Available,
		Status:             apiregistrationv1.ConditionTrue,
		LastTransitionTime: at,
		Reason:             "Local",
		Message:            "Local APIServices are always available",
	}
}

func available(a *apiregistrationv1.APIService) string {
	for _, c := range a.Status.Conditions {
		if c.Type != apiregistrationv1.Available {
			continue
		}
		if c.Status != apiregistrationv1.ConditionTrue && c.Reason != "" {
			return fmt.Sprintf("%s (%s)", c.Status, c.Reason)
		}
		return string(c.Status)
	}
	return string(apiregistrationv1.ConditionUnknown)
}

func apiService(a *apiregistrationv1.APIService) field.ErrorList {
	path := field.NewPath("spec")
	s := &a.Spec
	var errs field.ErrorList
	if required := s.Version + "." + s.Group; a.Name != required {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), a.Name, fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", required)))
	}
	if s.Group == "" && s.Version != "v1" {
		errs = append(errs, field.Required(path.Child("group"), "only v1 may have an empty group and it better be legacy kube"))
	}
	if s.Group != "" {
		errs = append(errs, validate.DNSSubdomainField(s.Group, path.Child("group"))...)
	}
	errs = append(errs, validate.Invalids(path.Child("version"), s.Version, content.IsDNS1035Label(s.Version))...)
	if n := s.GroupPriorityMinimum; n <= 0 || n > 20000 {
		errs = append(errs, field.Invalid(path.Child("groupPriorityMinimum"), n, "must be positive and less than 20000"))
	}
	if n := s.VersionPriority; n <= 0 || n > 1000 {
		errs = append(errs, field.Invalid(path.Child("versionPriority"), n, "must be positive and less than 1000"))
	}
	if s.Service == nil {
		return append(errs, localService(s, path)...)
	}
	service := path.Child("service")
	if s.Service.Namespace == "" {
		errs = append(errs, field.Required(service.Child("namespace"), ""))
	}
	if s.Service.Name == "" {
		errs = append(errs, field.Required(service.Child("name"), ""))
	}
	if p := s.Service.Port; p != nil {
		if msgs := content.IsValidPortNum(int(*p)); len(msgs) > 0 {
			errs = append(errs, field.Invalid(service.Child("port"), *p, "port is not valid: "+strings.Join(msgs, ", ")))
		}
	}
	if s.InsecureSkipTLSVerify && len(s.CABundle) > 0 {
		errs = append(errs, field.Invalid(path.Child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present"))
	}
	return errs
}

func localService(s *apiregistrationv1.APIServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := len(s.CABundle); n > 0 {
		errs = append(errs, field.Invalid(path.Child("caBundle"), fmt.Sprintf("%d bytes", n), "local APIServices may not have a caBundle"))
	}
	if s.InsecureSkipTLSVerify {
		errs = append(errs, field.Invalid(path.Child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify"))
	}
	return errs
}
