// Package audit tells who asked the API server for what, and what came of it: which requests a policy wants recorded
// and how far, the events in the form of audit.k8s.io/v1, and the sinks that take them (a log file that is rotated, a webhook).
//
// It knows no kinds and no storage, decides nothing about a request, and never shows a body at a level that the policy does
// not ask for. A server without a policy has no Recorder, and a request that is not recorded a nil *Event, whose
// methods do nothing. See https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/.
package audit

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/client"
)

// Level is how much of a request is recorded; each includes those before it.
type Level uint8

// The levels of a policy.
const (
	None Level = iota
	Metadata
	Request
	RequestResponse
)

var levels = [...]auditv1.Level{auditv1.LevelNone, auditv1.LevelMetadata, auditv1.LevelRequest, auditv1.LevelRequestResponse}

// String is the level as policies write it.
func (l Level) String() string { return string(levels[l]) }

// Stage is a moment in the life of a request at which an event is written.
type Stage uint8

// The stages, as a set of bits for what a policy omits.
const (
	RequestReceived Stage = 1 << iota
	ResponseStarted
	ResponseComplete
	Panic
)

var stages = []struct {
	stage Stage
	name  auditv1.Stage
}{
	{RequestReceived, auditv1.StageRequestReceived}, {ResponseStarted, auditv1.StageResponseStarted},
	{ResponseComplete, auditv1.StageResponseComplete}, {Panic, auditv1.StagePanic},
}

// String is the stage as events write it.
func (s Stage) String() string {
	for _, k := range stages {
		if k.stage == s {
			return string(k.name)
		}
	}
	return ""
}

// Attributes are what the rules of a policy look at.
type Attributes struct {
	// User is nil where authentication failed.
	User                                                   *client.User
	Verb                                                   string
	IsResource                                             bool
	Path                                                   string
	Group, Version, Resource, Subresource, Namespace, Name string
}

// Decision is what a policy wants of one request.
type Decision struct {
	Level Level
	// Omit are the stages at which no event is written.
	Omit Stage
	// OmitManagedFields takes metadata.managedFields out of recorded bodies.
	OmitManagedFields bool
}

// Policy is a checked policy. It is immutable.
type Policy struct {
	rules []rule
	// otherwise is what no rule matches: nothing is recorded of it.
	otherwise Decision
}

type rule struct {
	Decision
	users, groups, verbs, namespaces, urls []string
	resources                              []auditv1.GroupResources
}

// LoadPolicy reads a policy file (audit.k8s.io/v1 Policy, YAML or JSON). Unlike upstream, which reads such a file as far
// as it understands it, a field that is not known is an error: what was meant to be recorded shall be.
func LoadPolicy(path string) (*Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("audit policy: %w", err)
	}
	p, err := ParsePolicy(data)
	if err != nil {
		return nil, fmt.Errorf("audit policy %s: %w", path, err)
	}
	return p, nil
}

// ParsePolicy reads a policy and says everything that is wrong with it.
func ParsePolicy(data []byte) (*Policy, error) {
	var in auditv1.Policy
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		return nil, err
	}
	if in.APIVersion != auditv1.SchemeGroupVersion.String() || in.Kind != "Policy" {
		return nil, fmt.Errorf("it is of %q, kind %q: write apiVersion: audit.k8s.io/v1, kind: Policy", in.APIVersion, in.Kind)
	}
	if len(in.Rules) == 0 {
		return nil, errors.New("loaded illegal policy with 0 rules")
	}
	omit, errs := omitted(in.OmitStages, field.NewPath("omitStages"))
	p := &Policy{otherwise: Decision{Omit: omit, OmitManagedFields: in.OmitManagedFields}}
	for i := range in.Rules {
		r, more := newRule(&in, &in.Rules[i], field.NewPath("rules").Index(i))
		r.Omit |= omit
		p.rules = append(p.rules, r)
		errs = append(errs, more...)
	}
	if err := errs.ToAggregate(); err != nil {
		return nil, err
	}
	return p, nil
}

func newRule(p *auditv1.Policy, in *auditv1.PolicyRule, path *field.Path) (rule, field.ErrorList) {
	r := rule{
		users: in.Users, groups: in.UserGroups, verbs: in.Verbs, namespaces: in.Namespaces, urls: in.NonResourceURLs, resources: in.Resources,
	}
	r.OmitManagedFields = p.OmitManagedFields
	if in.OmitManagedFields != nil {
		r.OmitManagedFields = *in.OmitManagedFields
	}
	var errs field.ErrorList
	switch at := slices.Index(levels[:], in.Level); {
	case in.Level == "":
		errs = append(errs, field.Required(path.Child("level"), ""))
	case at < 0:
		errs = append(errs, field.NotSupported(path.Child("level"), in.Level, levels[:]))
	default:
		r.Level = Level(at)
	}
	urls := path.Child("nonResourceURLs")
	for i, u := range in.NonResourceURLs {
		if u == "*" {
			continue
		}
		if !strings.HasPrefix(u, "/") {
			errs = append(errs, field.Invalid(urls.Index(i), u, "non-resource URL rules must begin with a '/' character"))
		}
		if at := strings.IndexByte(u, '*'); at >= 0 && at < len(u)-1 {
			errs = append(errs, field.Invalid(urls.Index(i), u, "non-resource URL wildcards '*' must be the final character of the rule"))
		}
	}
	if len(in.NonResourceURLs) > 0 && len(in.Resources)+len(in.Namespaces) > 0 {
		errs = append(errs, field.Invalid(urls, in.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
	}
	errs = append(errs, checkResources(in.Resources, path.Child("resources"))...)
	omit, more := omitted(in.OmitStages, path.Child("omitStages"))
	r.Omit = omit
	return r, append(errs, more...)
}

func checkResources(list []auditv1.GroupResources, path *field.Path) (errs field.ErrorList) {
	for _, gr := range list {
		if gr.Group != "" && gr.Group != "*" {
			if msgs := validation.IsDNS1123Subdomain(gr.Group); len(msgs) > 0 {
				errs = append(errs, field.Invalid(path.Child("group"), gr.Group, strings.Join(msgs, ",")))
			}
		}
		if len(gr.ResourceNames) > 0 && len(gr.Resources) == 0 {
			errs = append(errs, field.Invalid(path.Child("resourceNames"), gr.ResourceNames, "using resourceNames requires at least one resource"))
		}
	}
	return errs
}

func omitted(names []auditv1.Stage, path *field.Path) (set Stage, errs field.ErrorList) {
next:
	for i, name := range names {
		var known []string
		for _, k := range stages {
			if k.name == name {
				set |= k.stage
				continue next
			}
			known = append(known, string(k.name))
		}
		errs = append(errs, field.Invalid(path.Index(i), string(name), "allowed stages are "+strings.Join(known, ",")))
	}
	return set, errs
}

// Decide gives what the first matching rule wants, nothing if none matches. It allocates nothing.
func (p *Policy) Decide(a *Attributes) Decision {
	for i := range p.rules {
		if p.rules[i].matches(a) {
			return p.rules[i].Decision
		}
	}
	return p.otherwise
}

func (r *rule) matches(a *Attributes) bool {
	if len(r.users) > 0 && (a.User == nil || !slices.Contains(r.users, a.User.Name)) {
		return false
	}
	if len(r.groups) > 0 && (a.User == nil || !slices.ContainsFunc(a.User.Groups, func(g string) bool { return slices.Contains(r.groups, g) })) {
		return false
	}
	if len(r.verbs) > 0 && !slices.Contains(r.verbs, a.Verb) {
		return false
	}
	switch {
	case len(r.namespaces) > 0 || len(r.resources) > 0:
		return a.IsResource && r.matchesResource(a)
	case len(r.urls) > 0:
		return !a.IsResource && slices.ContainsFunc(r.urls, func(u string) bool { return matchesPath(u, a.Path) })
	}
	return true
}

// matchesPath: "*" is all, "/x*" everything that begins so.
func matchesPath(pattern, path string) bool {
	prefix, wild := strings.CutSuffix(pattern, "*")
	return pattern == path || wild && strings.HasPrefix(path, prefix)
}

func (r *rule) matchesResource(a *Attributes) bool {
	// What has no namespace is of the namespace "".
	if len(r.namespaces) > 0 && !slices.Contains(r.namespaces, a.Namespace) {
		return false
	}
	if len(r.resources) == 0 {
		return true
	}
	for i := range r.resources {
		gr := &r.resources[i]
		if gr.Group != a.Group && gr.Group != "*" {
			continue
		}
		if len(gr.Resources) == 0 {
			return true
		}
		if len(gr.ResourceNames) > 0 && !slices.Contains(gr.ResourceNames, a.Name) {
			continue
		}
		if slices.ContainsFunc(gr.Resources, func(p string) bool { return namesResource(p, a.Resource, a.Subresource) }) {
			return true
		}
	}
	return false
}

// namesResource reads "pods", "pods/log", "pods/*", "*/scale" and "*". A plain name is the resource without its subresources.
func namesResource(pattern, resource, subresource string) bool {
	if pattern == "*" {
		return true
	}
	res, sub, both := strings.Cut(pattern, "/")
	if !both {
		return res == resource && subresource == ""
	}
	switch {
	case sub == "*" && res == resource:
		return true
	case subresource == "" || sub != subresource:
		return false
	}
	return res == resource || res == "*"
}
