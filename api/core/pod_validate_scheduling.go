package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

func (c *podCheck) affinity(a *corev1.Affinity, p *field.Path) {
	if n := a.NodeAffinity; n != nil {
		at := p.Child("nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			nodeSelector(c.report, r, at.Child("requiredDuringSchedulingIgnoredDuringExecution"))
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			t, item := &n.PreferredDuringSchedulingIgnoredDuringExecution[i], at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
			weight(c.report, t.Weight, item)
			nodeSelectorTerm(c.report, &t.Preference, true, item.Child("preference"))
		}
	}
	if t := a.PodAffinity; t != nil {
		c.affinityTerms(t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
	}
	if t := a.PodAntiAffinity; t != nil {
		c.affinityTerms(t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
	}
}

func weight(r *report, w int32, p *field.Path) {
	if w < 1 || w > 100 {
		r.invalid(p.Child("weight"), w, "must be in the range 1-100")
	}
}

func (c *podCheck) affinityTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
	for i := range required {
		c.affinityTerm(&required[i], p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
	}
	for i := range preferred {
		at := p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		weight(c.report, preferred[i].Weight, at)
		c.affinityTerm(&preferred[i].PodAffinityTerm, at.Child("podAffinityTerm"))
	}
}

func (c *podCheck) affinityTerm(t *corev1.PodAffinityTerm, p *field.Path) {
	c.add(validate.LabelSelector(t.LabelSelector, p.Child("labelSelector")))
	c.add(validate.LabelSelector(t.NamespaceSelector, p.Child("namespaceSelector")))
	for _, name := range t.Namespaces {
		if m := validate.DNSLabel(name); m != nil {
			c.invalids(p.Child("namespace"), name, m)
		}
	}
	labelKeys(c.report, t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector, p)
	if t.TopologyKey == "" {
		c.required(p.Child("topologyKey"), "can not be empty")
	}
	c.add(validate.LabelKey(t.TopologyKey, p.Child("topologyKey")))
}

// labelKeys checks matchLabelKeys and mismatchLabelKeys (KEP-3633). The selector has got the
// terms that were made of them already: a key that is in it twice was there before.
func labelKeys(r *report, match, mismatch []string, s *metav1.LabelSelector, p *field.Path) {
	keyList(r, match, s, p, "matchLabelKeys")
	keyList(r, mismatch, s, p, "mismatchLabelKeys")
	if s != nil && len(match) > 0 {
		var seen names
		for key := range s.MatchLabels {
			seen.add(key)
		}
		index := make(map[string]int, len(match))
		for i, key := range match {
			index[key] = i
		}
		for _, e := range s.MatchExpressions {
			again := seen.add(e.Key)
			if i, ok := index[e.Key]; ok && again {
				r.invalid(p.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
		}
	}
	var mismatched names
	for _, key := range mismatch {
		mismatched.add(key)
	}
	for i, key := range match {
		if mismatched.has(key) {
			r.invalid(p.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func keyList(r *report, keys []string, s *metav1.LabelSelector, p *field.Path, child string) {
	if len(keys) == 0 {
		return
	}
	if s == nil {
		r.forbidden(p.Child(child), "must not be specified when labelSelector is not set")
		return
	}
	for i, key := range keys {
		r.add(validate.LabelKey(key, p.Child(child).Index(i)))
	}
}

// ValidateNodeSelector checks a selector of nodes, as pods, volumes and device slices have.
func ValidateNodeSelector(s *corev1.NodeSelector, path *field.Path) field.ErrorList {
	r := &report{}
	nodeSelector(r, s, path)
	return r.errs
}

func nodeSelector(r *report, s *corev1.NodeSelector, p *field.Path) {
	terms := p.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		r.required(terms, "must have at least one node selector term")
		return
	}
	for i := range s.NodeSelectorTerms {
		nodeSelectorTerm(r, &s.NodeSelectorTerms[i], false, terms.Index(i))
	}
}

// nodeSelectorTerm checks one term. anyValue is set for preferences, whose values need not be
// label values.
func nodeSelectorTerm(r *report, t *corev1.NodeSelectorTerm, anyValue bool, p *field.Path) {
	for i := range t.MatchExpressions {
		nodeExpression(r, &t.MatchExpressions[i], anyValue, p.Child("matchExpressions").Index(i))
	}
	for i := range t.MatchFields {
		nodeField(r, &t.MatchFields[i], p.Child("matchFields").Index(i))
	}
}

const badOperator = "not a valid selector operator"

func nodeExpression(r *report, e *corev1.NodeSelectorRequirement, anyValue bool, p *field.Path) {
	switch e.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(e.Values) == 0 {
			r.required(p.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(e.Values) > 0 {
			r.forbidden(p.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(e.Values) != 1 {
			r.required(p.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
		}
	default:
		r.invalid(p.Child("operator"), e.Operator, badOperator)
	}
	r.add(validate.LabelKey(e.Key, p.Child("key")))
	if anyValue {
		return
	}
	for i, v := range e.Values {
		if m := validate.LabelValue(v); m != nil {
			r.invalids(p.Child("values").Index(i), v, m)
		}
	}
}

func nodeField(r *report, e *corev1.NodeSelectorRequirement, p *field.Path) {
	switch e.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(e.Values) != 1 {
			r.required(p.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
		}
	default:
		r.invalid(p.Child("operator"), e.Operator, badOperator)
	}
	if e.Key != metav1.ObjectNameField {
		r.invalid(p.Child("key"), e.Key, "not a valid field selector key")
		return
	}
	for i, v := range e.Values {
		if m := validate.Subdomain(v, false); m != nil {
			r.invalids(p.Child("values").Index(i), v, m)
		}
	}
}

// ValidateTopologySelectorTerm checks a term of a StorageClass's allowed topologies.
func ValidateTopologySelectorTerm(t *corev1.TopologySelectorTerm, path *field.Path) field.ErrorList {
	r := &report{}
	var keys names
	for i, e := range t.MatchLabelExpressions {
		p := path.Child("matchLabelExpressions").Index(i)
		if len(e.Values) == 0 {
			r.required(p.Child("values"), "")
		}
		var seen names
		for j, v := range e.Values {
			if seen.add(v) {
				r.duplicate(p.Child("values").Index(j), v)
			}
		}
		r.add(validate.LabelKey(e.Key, p.Child("key")))
		if keys.add(e.Key) {
			r.duplicate(p.Child("key"), e.Key)
		}
	}
	return r.errs
}

// ValidateTolerations checks the taints that pods (or those of a RuntimeClass) bear.
func ValidateTolerations(list []corev1.Toleration, path *field.Path) field.ErrorList {
	r := &report{}
	tolerations(r, list, path)
	return r.errs
}

func tolerations(r *report, list []corev1.Toleration, p *field.Path) {
	for i := range list {
		toleration(r, &list[i], p, i)
	}
}

func toleration(r *report, t *corev1.Toleration, list *field.Path, i int) {
	if t.Key != "" && validate.QualifiedName(t.Key) != nil {
		r.add(validate.LabelKey(t.Key, list.Index(i).Child("key")))
	}
	if t.Key == "" && t.Operator != corev1.TolerationOpExists {
		r.invalid(list.Index(i).Child("operator"), t.Operator,
			"operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		r.invalid(list.Index(i).Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		if m := validate.LabelValue(t.Value); m != nil {
			r.invalid(list.Index(i).Child("operator"), t.Value, strings.Join(m, ";"))
		}
	case corev1.TolerationOpExists:
		if t.Value != "" {
			r.invalid(list.Index(i).Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
		}
	case corev1.TolerationOpLt, corev1.TolerationOpGt: // an alpha feature, off
		r.addOne(field.NotSupported(list.Index(i).Child("operator"), t.Operator, []corev1.TolerationOperator{
			corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt}))
	default:
		oneOf(r, t.Operator, list.Index(i), "operator", corev1.TolerationOpEqual, corev1.TolerationOpExists)
	}
	if t.Effect != "" {
		taintEffect(r, t.Effect, list.Index(i))
	}
}

// taintEffect checks the field "effect" below p.
func taintEffect(r *report, e corev1.TaintEffect, p *field.Path) {
	needOneOf(r, e, p, "effect", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
}

// schedulingGates follows KEP-3521.
func (c *podCheck) schedulingGates(p *field.Path) {
	var seen names
	for i, g := range c.s.SchedulingGates {
		if m := validate.QualifiedName(g.Name); m != nil {
			c.invalids(p.Index(i), g.Name, m)
		}
		if seen.add(g.Name) {
			c.duplicate(p.Index(i), g.Name)
		}
	}
}

// topologySpread follows KEP-895.
func (c *podCheck) topologySpread(list []corev1.TopologySpreadConstraint, p *field.Path) {
	if len(list) == 0 {
		return
	}
	last := make(map[[2]string]int, len(list)) // of constraints on the same nodes
	for i := range list {
		last[[2]string{list[i].TopologyKey, string(list[i].WhenUnsatisfiable)}] = i
	}
	for i := range list {
		s, at := &list[i], p.Index(i)
		c.add(validate.Positive(s.MaxSkew, at.Child("maxSkew")))
		if s.TopologyKey == "" {
			c.required(at.Child("topologyKey"), "can not be empty")
		}
		oneOf(c.report, s.WhenUnsatisfiable, at, "whenUnsatisfiable", corev1.DoNotSchedule, corev1.ScheduleAnyway)
		if last[[2]string{s.TopologyKey, string(s.WhenUnsatisfiable)}] > i {
			c.duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", s.TopologyKey, s.WhenUnsatisfiable))
		}
		if s.MinDomains != nil {
			c.add(validate.Positive(*s.MinDomains, at.Child("minDomains")))
			if s.WhenUnsatisfiable != corev1.DoNotSchedule {
				c.invalid(at.Child("minDomains"), s.MinDomains,
					fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, s.WhenUnsatisfiable))
			}
		}
		c.inclusionPolicy(s.NodeAffinityPolicy, at, "nodeAffinityPolicy")
		c.inclusionPolicy(s.NodeTaintsPolicy, at, "nodeTaintsPolicy")
		labelKeys(c.report, s.MatchLabelKeys, nil, s.LabelSelector, at)
		c.add(validate.LabelSelector(s.LabelSelector, at.Child("labelSelector")))
	}
}

func (c *podCheck) inclusionPolicy(policy *corev1.NodeInclusionPolicy, p *field.Path, child string) {
	if policy != nil {
		oneOf(c.report, *policy, p, child, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
	}
}
