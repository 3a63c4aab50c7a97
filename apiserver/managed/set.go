package managed

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// set is a set of field paths as a tree, in the order of compareKeys. Sets are immutable and share what they have in common.
// The zero value is empty; no element of a set is empty (neither a member nor with something below).
type set []element

// element is one path element: whether the field itself is in the set, and what of the fields below it.
type element struct {
	key    string // "f:spec"
	member bool
	below  set
}

// union has what is in either.
func (s set) union(t set) set {
	if len(s) == 0 {
		return t
	}
	if len(t) == 0 {
		return s
	}
	out := make(set, 0, len(s)+len(t))
	i, j := 0, 0
	for i < len(s) && j < len(t) {
		switch c := compareKeys(s[i].key, t[j].key); {
		case c < 0:
			out = append(out, s[i])
			i++
		case c > 0:
			out = append(out, t[j])
			j++
		default:
			out = append(out, element{s[i].key, s[i].member || t[j].member, s[i].below.union(t[j].below)})
			i++
			j++
		}
	}
	return append(append(out, s[i:]...), t[j:]...)
}

// minus takes the members of t out of s, but not what is below them. changed is false if there were none, and then
// the result is s itself.
func (s set) minus(t set) (out set, changed bool) {
	i, j := 0, 0
	for i < len(s) && j < len(t) {
		c := compareKeys(s[i].key, t[j].key)
		if c < 0 {
			if changed {
				out = append(out, s[i])
			}
			i++
			continue
		}
		if c > 0 {
			j++
			continue
		}
		below, differs := s[i].below.minus(t[j].below)
		member := s[i].member && !t[j].member
		if differs || member != s[i].member {
			if !changed {
				changed = true
				out = append(make(set, 0, len(s)), s[:i]...)
			}
			if member || len(below) > 0 {
				out = append(out, element{s[i].key, member, below})
			}
		} else if changed {
			out = append(out, s[i])
		}
		i++
		j++
	}
	if !changed {
		return s, false
	}
	return append(out, s[i:]...), true
}

// without takes the members of t out of s with all that is below them.
func (s set) without(t set) set {
	if len(t) == 0 || len(s) == 0 {
		return s
	}
	out := make(set, 0, len(s))
	j := 0
	for _, e := range s {
		for j < len(t) && compareKeys(t[j].key, e.key) < 0 {
			j++
		}
		if j == len(t) || t[j].key != e.key {
			out = append(out, e)
			continue
		}
		if t[j].member {
			continue
		}
		if below := e.below.without(t[j].below); e.member || len(below) > 0 {
			out = append(out, element{e.key, e.member, below})
		}
	}
	return out
}

// only keeps what matches a path and all below it; "*" stands for any element.
func (s set) only(paths ...[]string) set {
	var out set
	for _, e := range s {
		var deeper [][]string
		whole := false
		for _, p := range paths {
			if p[0] != "*" && p[0] != e.key {
				continue
			}
			if len(p) == 1 {
				whole = true
			} else {
				deeper = append(deeper, p[1:])
			}
		}
		switch {
		case whole:
			out = append(out, e)
		case deeper != nil:
			if below := e.below.only(deeper...); e.member || len(below) > 0 {
				out = append(out, element{e.key, e.member, below})
			}
		}
	}
	return out
}

// fields makes a set of paths of field names: "spec", "metadata.labels".
func fields(paths ...string) set {
	var out set
	for _, p := range paths {
		names := strings.Split(p, ".")
		one := element{key: "f:" + names[len(names)-1], member: true}
		for i := len(names) - 2; i >= 0; i-- {
			one = element{key: "f:" + names[i], below: set{one}}
		}
		out = out.union(set{one})
	}
	return out
}

// appendJSON appends a set as FieldsV1 has it.
func (s set) appendJSON(dst []byte, self bool) []byte {
	dst = append(dst, '{')
	if self && len(s) > 0 {
		dst = append(dst, `".":{},`...)
	}
	for i := range s {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s[i].key, false)
		dst = append(dst, ':')
		dst = s[i].below.appendJSON(dst, s[i].member)
	}
	return append(dst, '}')
}

// canonical brings FieldsV1 of unknown origin into the form that appendJSON writes, or tells what is wrong with it.
func canonical(data []byte) ([]byte, error) {
	var s fieldpath.Set
	if err := s.FromJSON(bytes.NewReader(data)); err != nil {
		return nil, err
	}
	return s.ToJSON()
}

// parse reads canonical FieldsV1.
func parse(data []byte) (set, error) {
	p := parser{text: string(data)}
	s, _, err := p.object(0)
	if err == nil && p.at != len(p.text) {
		err = p.fail()
	}
	return s, err
}

// maxNesting is how deep a set may be.
const maxNesting = 1000

// parser reads JSON objects of objects. Keys without escapes share the text.
type parser struct {
	text string
	at   int
}

func (p *parser) fail() error { return fmt.Errorf("malformed field set at byte %d", p.at) }

func (p *parser) take(c byte) bool {
	if p.at < len(p.text) && p.text[p.at] == c {
		p.at++
		return true
	}
	return false
}

func (p *parser) object(depth int) (s set, self bool, err error) {
	if depth > maxNesting || !p.take('{') {
		return nil, false, p.fail()
	}
	if p.take('}') {
		return nil, true, nil
	}
	sorted := true
	for {
		key, err := p.key()
		if err != nil {
			return nil, false, err
		}
		below, member, err := p.object(depth + 1)
		if err != nil {
			return nil, false, err
		}
		switch {
		case key == ".":
			self = true
		case len(key) < 2 || key[1] != ':':
			return nil, false, p.fail()
		default:
			if n := len(s); n > 0 && compareKeys(s[n-1].key, key) >= 0 {
				sorted = false
			}
			s = append(s, element{key, member, below})
		}
		if p.take(',') {
			continue
		}
		if !p.take('}') {
			return nil, false, p.fail()
		}
		break
	}
	if !sorted {
		slices.SortFunc(s, func(a, b element) int { return compareKeys(a.key, b.key) })
	}
	return s, self, nil
}

func (p *parser) key() (string, error) {
	if !p.take('"') {
		return "", p.fail()
	}
	from := p.at
	for ; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case '"':
			key := p.text[from:p.at]
			p.at++
			if !p.take(':') {
				return "", p.fail()
			}
			return key, nil
		case '\\':
			return p.escaped(from)
		}
	}
	return "", p.fail()
}

// escaped reads the rest of a key that has escapes.
func (p *parser) escaped(from int) (string, error) {
	out := []byte(p.text[from:p.at])
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			if !p.take(':') {
				return "", p.fail()
			}
			return string(out), nil
		case c != '\\':
			out = append(out, c)
			continue
		case p.at == len(p.text):
			return "", p.fail()
		}
		c = p.text[p.at]
		p.at++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			if p.at+4 > len(p.text) {
				return "", p.fail()
			}
			var r rune
			for _, h := range p.text[p.at : p.at+4] {
				d := strings.IndexRune(hexDigits, h)
				if d < 0 {
					return "", p.fail()
				}
				r = r<<4 | rune(d)
			}
			p.at += 4
			out = utf8.AppendRune(out, r)
		default:
			return "", p.fail()
		}
	}
	return "", p.fail()
}
