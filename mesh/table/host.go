package table

import (
	"fmt"
	"strings"
)

// Hosts finds the virtual host of a request. It is immutable.
type Hosts struct {
	byName Map[*VirtualHost]
}

// NewHosts returns the index of these virtual hosts. It fails when two have one hostname.
func NewHosts(hosts ...*VirtualHost) (*Hosts, error) {
	put := map[string]*VirtualHost{}
	for _, v := range hosts {
		for _, name := range v.Hostnames {
			name = strings.ToLower(name)
			if other := put[name]; other != nil && other != v {
				return nil, fmt.Errorf("virtual hosts %q and %q both have the hostname %q", other.Name, v.Name, name)
			}
			put[name] = v
		}
	}
	return &Hosts{byName: Map[*VirtualHost]{}.With(put, nil)}, nil
}

// With returns Hosts with hostnames added or replaced and others gone: put maps one hostname to its virtual host.
func (h *Hosts) With(put map[string]*VirtualHost, remove []string) *Hosts {
	return &Hosts{byName: h.byName.With(put, remove)}
}

// Match returns the virtual host for the host of a request (a port is ignored, so is case): the exact name, else the longest wildcard
// "*.example.com" (any number of labels in place of the star), else "*", else nil. There is no falling back to a
// less specific host when the chosen one has no route for the request; who wants that gives its routes to both.
func (h *Hosts) Match(host string) *VirtualHost {
	v, _ := specific(Hostname(host), h.byName.Get)
	return v
}

// Len is the number of hostnames.
func (h *Hosts) Len() int { return h.byName.Len() }

// Hostname is the host of an authority in lower case, without port and trailing dot.
func Hostname(authority string) string {
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && strings.IndexByte(authority[i:], ']') < 0 {
		authority = authority[:i]
	}
	return strings.TrimSuffix(strings.ToLower(authority), ".")
}

// labels bounds how many labels of a name are looked up; a DNS name has at most 127.
const labels = 128

// specific looks a name up exactly, then its wildcards from the longest to "*". The cost is the number of its labels. name is in lower case.
func specific[V any](name string, get func(string) (V, bool)) (V, bool) {
	if v, ok := get(name); ok && name != "*" && !strings.HasPrefix(name, "*.") {
		return v, true
	}
	var buffer [260]byte
	if len(name) < len(buffer) {
		rest := name
		for range labels {
			i := strings.IndexByte(rest, '.')
			if i < 0 {
				break
			}
			rest = rest[i+1:]
			buffer[0], buffer[1] = '*', '.'
			n := 2 + copy(buffer[2:], rest)
			if v, ok := get(string(buffer[:n])); ok {
				return v, true
			}
		}
	}
	return get("*")
}
