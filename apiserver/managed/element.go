package managed

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Path elements are kept in the form in which FieldsV1 has them: "f:" and a name, "k:" and an object with the keys of a
// list item, "v:" and the JSON of a scalar, "i:" and an index. Equal elements have equal strings, for
// they are written in one way only (canonical brings others to it).

// rank orders the kinds of elements.
func rank(key string) int {
	switch key[0] {
	case 'f':
		return 0
	case 'k':
		return 1
	case 'v':
		return 2
	}
	return 3
}

// compareKeys orders path elements as fieldpath.PathElement.Compare does: by name, or by value where numbers go by
// size.
func compareKeys(a, b string) int {
	if a == b {
		return 0
	}
	ra, rb := rank(a), rank(b)
	switch {
	case ra != rb:
		return cmp.Compare(ra, rb)
	case ra == 0:
		return strings.Compare(a[2:], b[2:])
	case ra == 3:
		i, _ := strconv.Atoi(a[2:])
		j, _ := strconv.Atoi(b[2:])
		return cmp.Compare(i, j)
	}
	x, errX := fieldpath.DeserializePathElement(a)
	y, errY := fieldpath.DeserializePathElement(b)
	if errX != nil || errY != nil {
		return strings.Compare(a, b)
	}
	if c := x.Compare(y); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

const hexDigits = "0123456789abcdef"

// appendString appends a JSON string. html escapes also what could end a script, as values in elements have it.
func appendString(dst []byte, s string, html bool) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			if !html {
				i++
				continue
			}
			r, size := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				dst = append(append(dst, s[start:i]...), `\ufffd`...)
			case r == '\u2028' || r == '\u2029':
				dst = append(append(dst, s[start:i]...), `\u202`...)
				dst = append(dst, hexDigits[r&0xF])
			default:
				i += size
				continue
			}
			i += size
			start = i
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' && (!html || c != '<' && c != '>' && c != '&') {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xF])
		}
		i++
		start = i
	}
	return append(append(dst, s[start:]...), '"')
}

// appendAny appends the JSON of a decoded value.
func appendAny(dst []byte, v any) []byte {
	switch x := v.(type) {
	case string:
		return appendString(dst, x, true)
	case bool:
		return strconv.AppendBool(dst, x)
	case int64:
		return strconv.AppendInt(dst, x, 10)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return append(dst, "null"...)
	}
	return append(dst, data...)
}
