package proxy

import (
	"fmt"
	"strings"
)

// refusal is why a message is not taken, with the status to answer a client with.
type refusal struct {
	code   int
	reason string
}

func (r *refusal) Error() string { return r.reason }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// head is the parsed first part of an HTTP/1 message.
type head struct {
	minor int
	// Of a request.
	method, target string
	// Of a response.
	code   int
	reason string

	fields fields
	// length of the body: -1 if chunked, none if there is none or (responses) if it goes on to the end of the connection, see framed.
	length int64
	// framed says that length came from the message.
	framed bool
	close  bool
}

// parseRequest reads the head of a request: all of it, with the empty line. into gives the memory for the fields.
func parseRequest(text string, into fields, limit int) (head, error) {
	h := head{fields: into[:0]}
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok {
		return h, refuse(400, "the request line has no end")
	}
	var version string
	h.method, line, ok = strings.Cut(line, " ")
	if ok {
		h.target, version, ok = strings.Cut(line, " ")
	}
	if !ok || !isToken(h.method) || !cleanTarget(h.target) {
		return h, refuse(400, "malformed request line")
	}
	if err := h.version(version); err != nil {
		return h, err
	}
	if err := h.lines(rest, limit); err != nil {
		return h, err
	}
	if err := h.frame(); err != nil {
		return h, err
	}
	return h, h.hosts()
}

// parseResponse reads the head of a response.
func parseResponse(text string, into fields, limit int) (head, error) {
	h := head{fields: into[:0]}
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok || len(line) < 12 || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return h, refuse(502, "malformed status line")
	}
	if err := h.version(line[:8]); err != nil {
		return h, err
	}
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return h, refuse(502, "malformed status code")
		}
		h.code = h.code*10 + int(c-'0')
	}
	if h.code < 100 || h.code > 599 {
		return h, refuse(502, "status code out of range")
	}
	if len(line) > 13 && cleanValue(line[13:]) {
		h.reason = line[13:]
	}
	if err := h.lines(rest, limit); err != nil {
		return h, err
	}
	return h, h.frame()
}

func (h *head) version(v string) error {
	switch v {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
	default:
		if strings.HasPrefix(v, "HTTP/") && len(v) == 8 {
			return refuse(505, "HTTP version not supported")
		}
		return refuse(400, "malformed HTTP version")
	}
	return nil
}

// lines reads header lines up to the empty one, which must be the end.
func (h *head) lines(text string, limit int) error {
	var err error
	h.fields, err = parseLines(text, h.fields, limit)
	return err
}

func parseLines(text string, into fields, limit int) (fields, error) {
	for {
		line, rest, ok := strings.Cut(text, "\r\n")
		if !ok {
			return into, refuse(400, "a header line has no end")
		}
		if line == "" {
			if rest != "" {
				return into, refuse(400, "bytes after the head")
			}
			return into, nil
		}
		if len(into) >= limit {
			return into, refuse(431, "more than %d header lines", limit)
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) { // refuses folded lines and blanks before the colon too
			return into, refuse(400, "malformed header line")
		}
		value = trim(value)
		if !cleanValue(value) {
			return into, refuse(400, "malformed header value")
		}
		into = append(into, field{name, value})
		text = rest
	}
}

func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// frame finds out how the body is delimited, and refuses whatever is ambiguous (RFC 9112, 6.3).
func (h *head) frame() error {
	lengths, encodings := 0, 0
	h.close = h.minor == 0
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case is(f.name, "content-length"):
			lengths++
			n, ok := number(f.value)
			if !ok || lengths > 1 {
				return refuse(400, "malformed or repeated Content-Length")
			}
			h.length, h.framed = n, true
		case is(f.name, "transfer-encoding"):
			encodings++
			if encodings > 1 || h.minor == 0 {
				return refuse(400, "repeated Transfer-Encoding, or one in HTTP/1.0")
			}
			if !is(f.value, "chunked") {
				return refuse(501, "transfer encoding not supported")
			}
		case is(f.name, "connection"):
			if token(f.value, "close") {
				h.close = true
			} else if h.minor == 0 && token(f.value, "keep-alive") {
				h.close = false
			}
		}
	}
	if lengths > 0 && encodings > 0 {
		return refuse(400, "both Content-Length and Transfer-Encoding")
	}
	if encodings > 0 {
		h.length, h.framed = -1, true
	}
	return nil
}

// hosts holds the rule that HTTP/1.1 has exactly one Host, and that it is well formed.
func (h *head) hosts() error {
	n := 0
	for i := range h.fields {
		if is(h.fields[i].name, "host") {
			n++
			if !cleanHost(h.fields[i].value) {
				return refuse(400, "malformed Host")
			}
		}
	}
	if n > 1 || n == 0 && h.minor > 0 {
		return refuse(400, "exactly one Host header is needed")
	}
	return nil
}

// number reads a decimal number of at most 18 digits, and nothing else.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Classes of bytes.
const (
	tokenByte = 1 << iota
	valueByte
	targetByte
	hostByte
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		letter := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if letter || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 {
			t[c] |= tokenByte
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= valueByte
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= targetByte
		}
		if letter || strings.IndexByte("-._~:[]%!$&'()*+,;=", byte(c)) >= 0 {
			t[c] |= hostByte
		}
	}
	return t
}()

func all(s string, class uint8) bool {
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

func isToken(s string) bool     { return s != "" && all(s, tokenByte) }
func cleanValue(s string) bool  { return all(s, valueByte) }
func cleanTarget(s string) bool { return s != "" && all(s, targetByte) }
func cleanHost(s string) bool   { return all(s, hostByte) }

// chunkSize reads the first line of a chunk, without its end. Extensions are allowed and dropped.
func chunkSize(line string) (int64, error) {
	digits, extension, _ := strings.Cut(line, ";")
	if len(digits) == 0 || len(digits) > 15 || !cleanValue(extension) {
		return 0, refuse(400, "malformed chunk size")
	}
	var n int64
	for _, c := range []byte(digits) {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, refuse(400, "malformed chunk size")
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}

// splitTarget reads a request target: origin form, absolute form (whose host counts then), or "*". The path is made normal: escapes of
// unreserved characters are undone and dot segments resolved, so that what is matched is what the backend gets.
func splitTarget(target string) (authority, path, query string, err error) {
	if target == "*" {
		return "", "*", "", nil
	}
	if target[0] != '/' {
		scheme, rest, ok := strings.Cut(target, "://")
		if !ok || !is(scheme, "http") && !is(scheme, "https") {
			return "", "", "", refuse(400, "malformed request target")
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		authority, target = rest[:end], rest[end:]
		if authority == "" || !cleanHost(authority) {
			return "", "", "", refuse(400, "malformed request target")
		}
		if target == "" || target[0] == '?' {
			target = "/" + target
		}
	}
	path, query, _ = strings.Cut(target, "?")
	path, err = normal(path)
	return authority, path, query, err
}

// normal resolves a path.
func normal(path string) (string, error) {
	if strings.IndexByte(path, '%') >= 0 {
		var err error
		if path, err = unescape(path); err != nil {
			return "", err
		}
	}
	if !strings.Contains(path, "/.") {
		return path, nil
	}
	var out []string
	parts := strings.Split(path[1:], "/")
	for i, part := range parts {
		last := i == len(parts)-1
		switch part {
		case ".", "..":
			if part == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, part)
		}
	}
	return "/" + strings.Join(out, "/"), nil
}

// unescape undoes the escapes of unreserved characters and refuses malformed ones and NUL.
func unescape(path string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			out.WriteByte(path[i])
			continue
		}
		if i+2 >= len(path) {
			return "", refuse(400, "malformed escape in the path")
		}
		n, err := chunkSize(path[i+1 : i+3])
		if err != nil || n == 0 {
			return "", refuse(400, "malformed escape in the path")
		}
		c := byte(n)
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-._~", c) >= 0 {
			out.WriteByte(c)
		} else {
			out.WriteString(path[i : i+3])
		}
		i += 2
	}
	return out.String(), nil
}
