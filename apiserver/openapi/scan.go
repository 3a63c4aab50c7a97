package openapi

import (
	"encoding/json"
	"iter"
)

// sections finds where the objects "definitions" and "paths" of a JSON document begin: the offsets behind their braces.
// false if one of them is not there.
func sections(doc []byte) (map[string]int, bool) {
	out := map[string]int{}
	for name, at := range members(doc) {
		if (name == "definitions" || name == "paths") && at < len(doc) && doc[at] == '{' {
			out[name] = at + 1
		}
	}
	return out, len(out) == 2
}

// members walks the members of the JSON object that doc begins with: their names, and where their values begin. It ends
// where the object ends or is broken.
func members(doc []byte) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		i := space(doc, 0)
		if i >= len(doc) || doc[i] != '{' {
			return
		}
		i = space(doc, i+1)
		for i < len(doc) && doc[i] == '"' {
			end := quoted(doc, i)
			var name string
			if end < 0 || json.Unmarshal(doc[i:end], &name) != nil {
				return
			}
			if i = space(doc, end); i >= len(doc) || doc[i] != ':' {
				return
			}
			i = space(doc, i+1)
			if i >= len(doc) || !yield(name, i) {
				return
			}
			if i = value(doc, i); i < 0 {
				return
			}
			if i = space(doc, i); i >= len(doc) || doc[i] != ',' {
				return
			}
			i = space(doc, i+1)
		}
	}
}

func space(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\n' || doc[i] == '\t' || doc[i] == '\r') {
		i++
	}
	return i
}

// quoted gives the end of the string that begins at i, -1 if there is none.
func quoted(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// value gives the end of the value that begins at i, -1 if there is none.
func value(doc []byte, i int) int {
	depth := 0
	for i < len(doc) {
		switch doc[i] {
		case '"':
			if i = quoted(doc, i); i < 0 {
				return -1
			}
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of the object around it
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return -1
}
