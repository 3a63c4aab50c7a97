package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func resourceQuotaKind() *api.Kind {
	return &api.Kind{
		Kind: "ResourceQuota", Resource: "resourcequotas", Singular: "resourcequota", ShortNames: []string{"quota"}, Namespaced: true,
		Versions: v1[corev1.ResourceQuota, corev1.ResourceQuotaList](),
		Default: api.On(func(q *corev1.ResourceQuota) {
			defaultResourceList(q.Spec.Hard)
			defaultResourceList(q.Status.Hard)
			defaultResourceList(q.Status.Used)
		}),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(q *corev1.ResourceQuota) { q.Status = corev1.ResourceQuotaStatus{} }),
			PrepareUpdate: api.OnUpdate(func(q, old *corev1.ResourceQuota) { q.Status = old.Status }),
			Validate:      api.Checks(validateQuota),
			ValidateUpdate: api.ChecksUpdate(func(q, old *corev1.ResourceQuota) field.ErrorList {
				errs := validateQuota(q)
				if !sameScopes(q.Spec.Scopes, old.Spec.Scopes) {
					errs = append(errs, field.Invalid(specPath.Child("scopes"), q.Spec.Scopes, validate.ImmutableMessage))
				}
				return errs
			}),
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume.", 0,
				func(q *corev1.ResourceQuota) any { return quotaCell(q, false) }),
			column("Limit", "string", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.", 0,
				func(q *corev1.ResourceQuota) any { return quotaCell(q, true) }),
			ageColumn(),
		},
		Subresources: []api.Subresource{view("status", api.Strategy{
			PrepareUpdate: api.OnUpdate(func(q, old *corev1.ResourceQuota) { q.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(func(q, _ *corev1.ResourceQuota) field.ErrorList {
				r := &report{}
				if q.ResourceVersion == "" {
					r.required(field.NewPath("resourceVersion"), "")
				}
				quotaAmounts(r, q.Status.Hard, statusPath.Child("hard"))
				quotaAmounts(r, q.Status.Used, statusPath.Child("used"))
				return r.errs
			}),
		})},
	}
}

func sameScopes(a, b []corev1.ResourceQuotaScope) bool {
	sorted := func(l []corev1.ResourceQuotaScope) []corev1.ResourceQuotaScope {
		l = slices.Clone(l)
		slices.Sort(l)
		return slices.Compact(l)
	}
	return slices.Equal(sorted(a), sorted(b))
}

func validateQuota(q *corev1.ResourceQuota) field.ErrorList {
	r := &report{}
	quotaAmounts(r, q.Spec.Hard, specPath.Child("hard"))
	quotaScopes(r, &q.Spec)
	if q.Spec.ScopeSelector != nil {
		quotaSelector(r, &q.Spec)
	}
	return r.errs
}

func quotaAmounts(r *report, l corev1.ResourceList, p *field.Path) {
	for name := range inOrder(l) {
		at := p.Key(string(name))
		r.add(validate.ResourceName(name, at))
		if !strings.Contains(string(name), "/") && !standardQuota(name) {
			r.invalid(at, string(name), "must be a standard resource for quota")
		}
		r.add(validate.ResourceQuantity(name, l[name], at))
	}
}

// standardQuota tells whether a quota can be set for a resource without a domain.
func standardQuota(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsStorage, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
		corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return validate.HugePages(name) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

func standardScope(s corev1.ResourceQuotaScope) bool {
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
		corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass,
		corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass:
		return true
	}
	return false
}

// scopeCovers tells whether a scope can pick among objects that a resource counts.
func scopeCovers(s corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch s {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		switch name {
		case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceLimitsCPU,
			corev1.ResourceLimitsMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory:
			return true
		}
		return false
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	return true
}

// scopeCheck is what a list of scopes and a selector of scopes have in common.
func scopeCheck(r *report, s *corev1.ResourceQuotaSpec, scope corev1.ResourceQuotaScope, p *field.Path, said any) {
	for name := range inOrder(s.Hard) {
		if standardQuota(name) && !scopeCovers(scope, name) {
			r.invalid(p, said, "unsupported scope applied to resource")
		}
	}
}

func conflictingScopes(r *report, s *corev1.ResourceQuotaSpec, scopes []corev1.ResourceQuotaScope, p *field.Path) {
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort},
		{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating},
	} {
		if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
			r.invalid(p, s.Scopes, "conflicting scopes")
		}
	}
}

func quotaScopes(r *report, s *corev1.ResourceQuotaSpec) {
	p := specPath.Child("scopes")
	for _, scope := range s.Scopes {
		if !standardScope(scope) {
			r.invalid(p, s.Scopes, "unsupported scope")
		}
		scopeCheck(r, s, scope, p, s.Scopes)
	}
	conflictingScopes(r, s, s.Scopes, p)
}

func quotaSelector(r *report, s *corev1.ResourceQuotaSpec) {
	p := specPath.Child("scopeSelector", "matchExpressions")
	var scopes []corev1.ResourceQuotaScope
	for _, e := range s.ScopeSelector.MatchExpressions {
		if !standardScope(e.ScopeName) {
			r.invalid(p.Child("scopeName"), e.ScopeName, "unsupported scope")
		}
		scopeCheck(r, s, e.ScopeName, p, s.ScopeSelector)
		switch e.ScopeName {
		case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeTerminating,
			corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			if e.Operator != corev1.ScopeSelectorOpExists {
				r.invalid(p.Child("operator"), e.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
			}
		}
		switch e.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(e.Values) == 0 {
				r.required(p.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(e.Values) != 0 {
				r.invalid(p.Child("values"), e.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
			}
		default:
			r.invalid(p.Child("operator"), e.Operator, badOperator)
		}
		scopes = append(scopes, e.ScopeName)
	}
	conflictingScopes(r, s, scopes, p)
}

// quotaCell shows "name: used/hard" of limits, or of all others.
func quotaCell(q *corev1.ResourceQuota, limits bool) string {
	var parts []string
	for name := range inOrder(q.Status.Hard) {
		if strings.HasPrefix(string(name), "limits") != limits {
			continue
		}
		used, hard := q.Status.Used[name], q.Status.Hard[name]
		parts = append(parts, string(name)+": "+used.String()+"/"+hard.String())
	}
	return strings.Join(parts, ", ")
}
