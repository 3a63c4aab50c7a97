package dns

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"coracle.dev/coracle/dns/corefile"
)

// rewrite asks for another name or type than the client did.
type rewrite struct {
	goOn     bool // further rules are tried behind it
	how      string
	from, to string
	pattern  *regexp.Regexp
	// Of the type form:
	fromType, toType uint16
}

// rewriteDirective reads "rewrite [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO [answer ...]", or type, in a
// line or with the rule and its answers in braces.
func (c *compiler) rewriteDirective(b *block, l *corefile.Line) error {
	words := l.Words[1:]
	for i := range l.Block {
		inner := l.Block[i].Words
		if inner[0] == "answer" || inner[0] == "name" || inner[0] == "type" {
			words = append(words[:len(words):len(words)], inner...)
		} else {
			return l.Block[i].Errorf("rewrite has no rule %q here", inner[0])
		}
	}
	r := &rewrite{}
	if len(words) > 0 && (words[0] == "continue" || words[0] == "stop") {
		r.goOn = words[0] == "continue"
		words = words[1:]
	}
	if len(words) < 3 {
		return l.Errorf("rewrite takes [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO, or type FROM TO")
	}
	switch words[0] {
	case "type":
		from, ok1 := dns.StringToType[strings.ToUpper(words[1])]
		to, ok2 := dns.StringToType[strings.ToUpper(words[2])]
		if !ok1 || !ok2 {
			return l.Errorf("%s or %s is not a type of records", words[1], words[2])
		}
		r.fromType, r.toType = from, to
		b.rewrites = append(b.rewrites, r)
		return nil
	case "name":
		words = words[1:]
	default:
		return l.Errorf("rewrite %s is not known here: name and type are", words[0])
	}
	r.how = "exact"
	switch words[0] {
	case "exact", "prefix", "suffix", "substring", "regex":
		r.how, words = words[0], words[1:]
	}
	if len(words) < 2 {
		return l.Errorf("rewrite name takes FROM and TO")
	}
	r.from, r.to = strings.ToLower(words[0]), strings.ToLower(words[1])
	var err error
	switch r.how {
	case "regex":
		r.to = words[1]
		if r.pattern, err = regexp.Compile(words[0]); err != nil {
			return l.Errorf("%v", err)
		}
	case "exact", "suffix":
		if r.how == "exact" || strings.HasPrefix(r.from, ".") == strings.HasPrefix(r.to, ".") {
			r.from, r.to = dns.Fqdn(r.from), dns.Fqdn(r.to)
		}
	}
	if rest := words[2:]; len(rest) > 0 && rest[0] != "answer" {
		return l.Errorf("%q behind the rule: only answer may follow", rest[0])
	}
	// What answers are rewritten to is always the name that was asked for.
	b.rewrites = append(b.rewrites, r)
	return nil
}

// apply gives the question that a rule makes of one; ok is false if the rule does not concern it.
func (r *rewrite) apply(name string, qtype uint16) (string, uint16, bool) {
	if r.fromType != 0 {
		if qtype == r.fromType {
			return name, r.toType, true
		}
		return name, qtype, false
	}
	lower, out := strings.ToLower(name), ""
	switch r.how {
	case "exact":
		if lower != r.from {
			return name, qtype, false
		}
		out = r.to
	case "prefix":
		rest, ok := strings.CutPrefix(lower, r.from)
		if !ok {
			return name, qtype, false
		}
		out = r.to + rest
	case "suffix":
		rest, ok := strings.CutSuffix(lower, r.from)
		if !ok {
			return name, qtype, false
		}
		out = rest + r.to
	case "substring":
		if !strings.Contains(lower, r.from) {
			return name, qtype, false
		}
		out = strings.ReplaceAll(lower, r.from, r.to)
	case "regex":
		groups := r.pattern.FindStringSubmatch(lower)
		if groups == nil {
			return name, qtype, false
		}
		out = r.to
		for i, g := range groups {
			out = strings.ReplaceAll(out, "{"+strconv.Itoa(i)+"}", g)
		}
	}
	out = dns.Fqdn(out)
	if _, ok := dns.IsDomainName(out); !ok {
		return name, qtype, false
	}
	return out, qtype, true
}

// rewritten applies the rules of a block in their order.
func (b *block) rewritten(name string, qtype uint16) (string, uint16) {
	for _, r := range b.rewrites {
		next, t, ok := r.apply(name, qtype)
		if !ok {
			continue
		}
		if name, qtype = next, t; !r.goOn {
			break
		}
	}
	return name, qtype
}
