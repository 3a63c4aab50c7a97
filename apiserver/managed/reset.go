package managed

import (
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"coracle.dev/coracle/api"
)

// reset says what an endpoint leaves as it is, whatever a client sends, so that nobody becomes the owner of it there.
type reset struct {
	// fields are passed over with all below them.
	fields set
	// only, if set, are the paths beside which all is passed over, "*" standing for any element.
	only [][]string
}

func (r *reset) filter(s set) set {
	if r.only != nil {
		return s.only(r.only...)
	}
	return s.without(r.fields)
}

// Reset sets that several endpoints share.
var (
	resetNothing  = &reset{}
	resetStatus   = &reset{fields: fields("status")}
	resetSpec     = &reset{fields: fields("spec")}
	resetAllElse  = &reset{fields: fields("metadata", "spec")}
	resetOfPlaces = map[string]*reset{
		"pods/status":              {fields: fields("metadata.deletionTimestamp", "metadata.ownerReferences", "spec")},
		"pods/ephemeralcontainers": {only: [][]string{{"f:spec", "f:ephemeralContainers"}}},
		"pods/resize": {only: [][]string{{"f:spec", "f:containers", "*", "f:resources"}, {"f:spec", "f:containers", "*", "f:resizePolicy"},
			{"f:spec", "f:initContainers", "*", "f:resources"}, {"f:spec", "f:initContainers", "*", "f:resizePolicy"}}},
		"namespaces/finalize":                                     resetStatus,
		"deployments.apps/status":                                 {fields: fields("metadata.labels", "spec")},
		"certificatesigningrequests.certificates.k8s.io":          {fields: fields("spec", "status")},
		"certificatesigningrequests.certificates.k8s.io/status":   {fields: fields("spec", "status.conditions")},
		"certificatesigningrequests.certificates.k8s.io/approval": {fields: fields("spec", "status.certificate")},
		"customresourcedefinitions.apiextensions.k8s.io/status":   resetSpec,
	}
	// wholeMetadata are the built-in kinds whose status endpoint takes no metadata either.
	wholeMetadata = map[string]bool{
		"podcertificaterequests.certificates.k8s.io": true, "podgroups.scheduling.k8s.io": true, "compositepodgroups.scheduling.k8s.io": true,
		"servicecidrs.networking.k8s.io": true, "storageversionmigrations.storagemigration.k8s.io": true,
		"resourceclaims.resource.k8s.io": true, "devicetaintrules.resource.k8s.io": true, "resourcepoolstatusrequests.resource.k8s.io": true,
		"storageversions.internal.apiserver.k8s.io": true, "volumeattachments.storage.k8s.io": true, "csinodes.storage.k8s.io": true,
		"flowschemas.flowcontrol.apiserver.k8s.io": true, "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io": true,
		"validatingadmissionpolicies.admissionregistration.k8s.io": true, "apiservices.apiregistration.k8s.io": true,
		"evictionrequests.lifecycle.k8s.io": true, "clusternetworkpolicies.policy.networking.k8s.io": true,
	}
)

// resetOf is the rule of an endpoint: the main one ignores the status where that has an endpoint of its own, the status
// one all but the status, with the exceptions that upstream's strategies make.
func resetOf(k *api.Kind, subresource string) *reset {
	place := k.Name()
	if subresource != "" {
		place += "/" + subresource
	}
	if r := resetOfPlaces[place]; r != nil {
		return r
	}
	switch {
	case subresource == "status" && (wholeMetadata[k.Name()] || k.Group == "gateway.networking.k8s.io" || loose(k)):
		return resetAllElse
	case subresource == "status":
		return resetSpec
	case subresource == "":
		if s := k.Subresource("status"); s != nil {
			return resetStatus
		}
	}
	return resetNothing
}

// filterOf is a reset rule as structured-merge-diff takes it.
func filterOf(r *reset) fieldpath.Filter {
	if r.only == nil {
		return fieldpath.NewExcludeSetFilter(toFieldpath(r.fields))
	}
	var matchers []*fieldpath.SetMatcher
	for _, path := range r.only {
		parts := make([]any, len(path))
		for i, p := range path {
			if p == "*" {
				parts[i] = fieldpath.MatchAnyPathElement()
			} else {
				parts[i] = strings.TrimPrefix(p, "f:")
			}
		}
		matchers = append(matchers, fieldpath.MakePrefixMatcherOrDie(parts...))
	}
	return fieldpath.NewIncludeMatcherFilter(matchers...)
}

// toFieldpath converts a set.
func toFieldpath(s set) *fieldpath.Set {
	out := &fieldpath.Set{}
	for _, e := range s {
		pe, err := fieldpath.DeserializePathElement(e.key)
		if err != nil {
			continue
		}
		if e.member {
			out.Members.Insert(pe)
		}
		if len(e.below) > 0 {
			*out.Children.Descend(pe) = *toFieldpath(e.below)
		}
	}
	return out
}
