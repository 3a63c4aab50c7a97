package fairness

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// schema is a flow schema, compiled.
type schema struct {
	name, uid string
	spec      *flowcontrolv1.FlowSchemaSpec
	by        flowcontrolv1.FlowDistinguisherMethodType
	level     *level // its fields are guarded by Gate.mu; what is needed without stands here too
	levelUID  string
	exempt    bool
	series    *series
}

// table is what requests are sorted by. It is immutable but for the levels' state.
type table struct {
	schemas []schema
}

// sortSchemas puts schemas into the order in which they are asked.
func sortSchemas(list []*flowcontrolv1.FlowSchema) []*flowcontrolv1.FlowSchema {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *flowcontrolv1.FlowSchema) int {
		return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// classify finds the schema of a request, nil if none takes it (which the mandatory ones make impossible). It allocates nothing.
func (t *table) classify(info *route.Info, user *client.User) *schema {
	for i := range t.schemas {
		if s := &t.schemas[i]; s.matches(info, user) {
			return s
		}
	}
	return nil
}

func (s *schema) matches(info *route.Info, user *client.User) bool {
	for i := range s.spec.Rules {
		r := &s.spec.Rules[i]
		if concerns(r, info) && slices.ContainsFunc(r.Subjects, func(sub flowcontrolv1.Subject) bool { return is(&sub, user) }) {
			return true
		}
	}
	return false
}

func is(s *flowcontrolv1.Subject, user *client.User) bool {
	switch s.Kind {
	case flowcontrolv1.SubjectKindUser:
		return s.User != nil && (s.User.Name == flowcontrolv1.NameAll || s.User.Name == user.Name)
	case flowcontrolv1.SubjectKindGroup:
		return s.Group != nil && (s.Group.Name == flowcontrolv1.NameAll || user.In(s.Group.Name))
	case flowcontrolv1.SubjectKindServiceAccount:
		rest, ok := strings.CutPrefix(user.Name, "system:serviceaccount:")
		if !ok || s.ServiceAccount == nil {
			return false
		}
		namespace, name, _ := strings.Cut(rest, ":")
		return namespace == s.ServiceAccount.Namespace && (s.ServiceAccount.Name == flowcontrolv1.NameAll || s.ServiceAccount.Name == name)
	}
	return false
}

func concerns(r *flowcontrolv1.PolicyRulesWithSubjects, info *route.Info) bool {
	if !info.IsResource {
		for i := range r.NonResourceRules {
			n := &r.NonResourceRules[i]
			if has(n.Verbs, info.Verb) && slices.ContainsFunc(n.NonResourceURLs, func(u string) bool { return covers(u, info.Path) }) {
				return true
			}
		}
		return false
	}
	for i := range r.ResourceRules {
		p := &r.ResourceRules[i]
		if has(p.Verbs, info.Verb) && has(p.APIGroups, info.Group) && hasResource(p.Resources, info) && inScope(p, info.Namespace) {
			return true
		}
	}
	return false
}

// has looks for a word, or for the one that stands for all.
func has(list []string, word string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return s == word || s == "*" })
}

func hasResource(list []string, info *route.Info) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		if s == "*" || info.Subresource == "" {
			return s == "*" || s == info.Resource
		}
		rest, ok := strings.CutPrefix(s, info.Resource)
		return ok && len(rest) > 1 && rest[0] == '/' && rest[1:] == info.Subresource
	})
}

func inScope(p *flowcontrolv1.ResourcePolicyRule, namespace string) bool {
	if namespace == "" {
		return p.ClusterScope
	}
	return has(p.Namespaces, namespace)
}

// covers: "*" is every path, "/x/*" all below /x.
func covers(pattern, path string) bool {
	if prefix, wild := strings.CutSuffix(pattern, "*"); wild {
		return prefix == "" || strings.HasPrefix(path, prefix)
	}
	return pattern == path
}

// flow is the hash of the flow that a request belongs to.
func (s *schema) flow(seed maphash.Seed, info *route.Info, user *client.User) uint64 {
	h := maphash.String(seed, s.name)
	switch s.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		h ^= maphash.String(seed, user.Name) * 0x9e3779b97f4a7c15
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		h ^= maphash.String(seed, info.Namespace) * 0x9e3779b97f4a7c15
	}
	return h
}
