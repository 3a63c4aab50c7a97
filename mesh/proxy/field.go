package proxy

import (
	"net/http"
	"strings"
)

// field is one header line. Names are as they came, compared without case.
type field struct {
	name, value string
}

type fields []field

// get returns the value of a header, lines joined by commas.
func (f fields) get(name string) (string, bool) {
	value, found := "", false
	for i := range f {
		if !is(f[i].name, name) {
			continue
		}
		if !found {
			value, found = f[i].value, true
		} else {
			value += "," + f[i].value
		}
	}
	return value, found
}

func (f fields) value(name string) string { v, _ := f.get(name); return v }

// is compares header names.
func is(a, b string) bool { return len(a) == len(b) && (a == b || strings.EqualFold(a, b)) }

// remove drops all lines with a name, in place.
func (f fields) remove(name string) fields {
	out := f[:0]
	for i := range f {
		if !is(f[i].name, name) {
			out = append(out, f[i])
		}
	}
	return out
}

// set replaces all lines with a name by one.
func (f fields) set(name, value string) fields {
	for i := range f {
		if is(f[i].name, name) {
			f[i].value = value
			rest := f[i+1:].remove(name)
			return f[:i+1+len(rest)]
		}
	}
	return append(f, field{name, value})
}

// token says whether a comma-separated list has an element, without case.
func token(list, want string) bool {
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.TrimSpace(one), want) {
			return true
		}
	}
	return false
}

// hop says whether a header concerns one connection only (RFC 9110, 7.6.1).
func hop(name string) bool {
	switch len(name) {
	case 2:
		return is(name, "te")
	case 7:
		return is(name, "upgrade")
	case 10:
		return is(name, "connection") || is(name, "keep-alive")
	case 16:
		return is(name, "proxy-connection")
	case 17:
		return is(name, "transfer-encoding")
	case 18:
		return is(name, "proxy-authenticate")
	case 19:
		return is(name, "proxy-authorization")
	}
	return false
}

// strip removes, in place, what concerns the connection that the message came over: the hop-by-hop headers and those that Connection names.
func (f fields) strip() fields {
	named := f.value("connection")
	te := token(f.value("te"), "trailers")
	out := f[:0]
	for i := range f {
		if hop(f[i].name) || named != "" && !plain(named) && token(named, f[i].name) {
			continue
		}
		out = append(out, f[i])
	}
	if te {
		out = append(out, field{"TE", "trailers"})
	}
	return out
}

// plain says that a Connection header names no header beside those that hop knows.
func plain(connection string) bool {
	return is(connection, "keep-alive") || is(connection, "close") || is(connection, "upgrade")
}

// fromHeader appends the lines of an http.Header.
func (f fields) fromHeader(h http.Header) fields {
	for name, values := range h {
		for _, v := range values {
			f = append(f, field{name, v})
		}
	}
	return f
}

// header is f as an http.Header.
func (f fields) header() http.Header {
	h := make(http.Header, len(f))
	for i := range f {
		h.Add(f[i].name, f[i].value)
	}
	return h
}

// write appends the lines as HTTP/1 has them.
func (f fields) write(out []byte) []byte {
	for i := range f {
		out = append(out, f[i].name...)
		out = append(out, ": "...)
		out = append(out, f[i].value...)
		out = append(out, "\r\n"...)
	}
	return out
}
