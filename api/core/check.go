package core

import (
	"cmp"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// inOrder goes through a map by its keys in order, so that errors do not change places. Small maps
// cost no allocation.
func inOrder[K cmp.Ordered, V any](m map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		var room [8]K
		keys := room[:0]
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// report gathers what is wrong with an object. Its methods build a path only where
// they have something to say.
type report struct {
	errs field.ErrorList
}

func (r *report) add(errs field.ErrorList) {
	if len(errs) > 0 {
		r.errs = append(r.errs, errs...)
	}
}

func (r *report) addOne(err *field.Error) { r.errs = append(r.errs, err) }

func (r *report) required(p *field.Path, detail string) { r.addOne(field.Required(p, detail)) }

func (r *report) forbidden(p *field.Path, detail string) { r.addOne(field.Forbidden(p, detail)) }

func (r *report) invalid(p *field.Path, value any, detail string) {
	r.addOne(field.Invalid(p, value, detail))
}

func (r *report) duplicate(p *field.Path, value any) { r.addOne(field.Duplicate(p, value)) }

// invalids reports every message on one value.
func (r *report) invalids(p *field.Path, value any, messages []string) {
	for _, m := range messages {
		r.invalid(p, value, m)
	}
}

// need reports an empty child field.
func (r *report) need(value string, p *field.Path, child string) {
	if value == "" {
		r.required(p.Child(child), "")
	}
}

// label reports a child field that is no RFC 1123 label.
func (r *report) label(value string, p *field.Path, child string) {
	if m := validate.DNSLabel(value); m != nil {
		r.invalids(p.Child(child), value, m)
	}
}

// needLabel reports a child field that is empty or no RFC 1123 label.
func (r *report) needLabel(value string, p *field.Path, child string) {
	if value == "" {
		r.required(p.Child(child), "")
		return
	}
	r.label(value, p, child)
}

// subdomain reports a child field that is no RFC 1123 subdomain.
func (r *report) subdomain(value string, p *field.Path, child string) {
	if m := validate.DNSSubdomain(value); m != nil {
		r.invalids(p.Child(child), value, m)
	}
}

// needSubdomain reports a child field that is empty or no RFC 1123 subdomain.
func (r *report) needSubdomain(value string, p *field.Path, child string) {
	if value == "" {
		r.required(p.Child(child), "")
		return
	}
	r.subdomain(value, p, child)
}

// objectName reports a child field that is no subdomain, but may end in a dash as a generateName.
func (r *report) objectName(value string, p *field.Path, child string, prefix bool) {
	if m := validate.Subdomain(value, prefix); m != nil {
		r.invalids(p.Child(child), value, m)
	}
}

// nonNegative reports a child field below 0.
func nonNegative[N ~int32 | ~int64](r *report, value N, p *field.Path, child string) {
	if value < 0 {
		r.add(validate.NonNegative(value, p.Child(child)))
	}
}

// inRange reports a child field outside low to high.
func inRange[N ~int32 | ~int64](r *report, value, low, high N, p *field.Path, child string) {
	if value < low || value > high {
		r.add(validate.InRange(value, low, high, p.Child(child)))
	}
}

// oneOf reports a child field that is not among allowed, given in the order of upstream's message.
func oneOf[T ~string](r *report, value T, p *field.Path, child string, allowed ...T) {
	if !slices.Contains(allowed, value) {
		r.addOne(field.NotSupported(p.Child(child), value, allowed))
	}
}

// needOneOf is oneOf for a field that must not be empty.
func needOneOf[T ~string](r *report, value T, p *field.Path, child string, allowed ...T) {
	if value == "" {
		r.required(p.Child(child), "")
		return
	}
	oneOf(r, value, p, child, allowed...)
}

// backsteps reports a path with an element "..".
func (r *report) backsteps(target string, p *field.Path) {
	if hasBackstep(target) {
		r.invalid(p, target, "must not contain '..'")
	}
}

func hasBackstep(target string) bool {
	for rest := target; ; {
		element, after, more := strings.Cut(rest, "/")
		if element == ".." {
			return true
		}
		if !more {
			return false
		}
		rest = after
	}
}

// descendingPath reports a path that is absolute or climbs.
func (r *report) descendingPath(target string, p *field.Path) {
	if path.IsAbs(target) {
		r.invalid(p, target, "must be a relative path")
	}
	r.backsteps(target, p)
}

// localPath reports a path that is absolute, climbs or starts with "..", where
// the files of the atomic writer lie.
func (r *report) localPath(target string, p *field.Path) {
	r.descendingPath(target, p)
	if strings.HasPrefix(target, "..") && !strings.HasPrefix(target, "../") {
		r.invalid(p, target, "must not start with '..'")
	}
}

// choice counts the members of a union that are set.
type choice struct {
	report *report
	path   *field.Path
	taken  bool
	// several is said of the second member and those after it.
	several string
}

// member looks at one member of the union: the first that is set is checked, others are refused.
// said names the field in the refusal and checked in the errors of check.
func (c *choice) member(set bool, said, checked string, check func(p *field.Path)) {
	switch {
	case !set:
	case c.taken:
		c.report.forbidden(c.path.Child(said), c.several)
	default:
		c.taken = true
		check(c.path.Child(checked))
	}
}

// names is a set of strings that costs nothing while it is small, and does not
// become slow when somebody sends a great many.
type names struct {
	few  [12]string
	n    int
	many map[string]struct{}
}

func (s *names) has(v string) bool {
	if s.many != nil {
		_, ok := s.many[v]
		return ok
	}
	return slices.Contains(s.few[:s.n], v)
}

// add puts v in and tells whether it was there already.
func (s *names) add(v string) (again bool) {
	if s.has(v) {
		return true
	}
	if s.many == nil && s.n < len(s.few) {
		s.few[s.n] = v
		s.n++
		return false
	}
	if s.many == nil {
		s.many = make(map[string]struct{}, 4*len(s.few))
		for _, f := range s.few {
			s.many[f] = struct{}{}
		}
	}
	s.many[v] = struct{}{}
	return false
}

// clone returns a set of its own with the same strings.
func (s *names) clone() *names {
	c := *s
	c.many = maps.Clone(s.many)
	return &c
}
