package table

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func host(t *testing.T, routes ...*Route) *VirtualHost {
	t.Helper()
	v, err := NewVirtualHost("v", []string{"*"}, routes)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestHosts(t *testing.T) {
	var all []*VirtualHost
	for _, name := range []string{"a.example.com", "*.example.com", "*.b.example.com", "*"} {
		v, _ := NewVirtualHost(name, []string{name}, nil)
		all = append(all, v)
	}
	h, err := NewHosts(all...)
	if err != nil {
		t.Fatal(err)
	}
	for ask, want := range map[string]string{
		"a.example.com": "a.example.com", "A.Example.COM:8080": "a.example.com", "a.example.com.": "a.example.com", "c.example.com": "*.example.com",
		"x.y.b.example.com": "*.b.example.com", "b.example.com": "*.example.com", "example.com": "*", "*.example.com": "*.example.com", "": "*", "[::1]:80": "*",
	} {
		if got := h.Match(ask); got == nil || got.Name != want {
			t.Errorf("%q is served by %v, want %s", ask, got, want)
		}
	}
	if _, err := NewHosts(all[0], &VirtualHost{Hostnames: []string{"A.example.com"}}); err == nil {
		t.Error("one name twice is taken")
	}
}

func TestChains(t *testing.T) {
	rule := &Rule{}
	l, err := NewListener(Listener{ID: "l", Chains: []*Chain{
		{Name: "plain", Forward: rule},
		{Name: "exact", ServerNames: []string{"a.example.com"}, Forward: rule},
		{Name: "wild", ServerNames: []string{"*.example.com"}, Forward: rule},
		{Name: "service", Destinations: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80")}, Forward: rule},
		{Name: "port", Destinations: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:81")}, Forward: rule},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		to, name string
		secure   bool
		want     string
	}{
		{"10.0.0.9:443", "a.example.com", true, "exact"}, {"10.0.0.9:443", "b.example.com", true, "wild"}, {"10.0.0.9:443", "", true, "plain"},
		{"10.0.0.9:443", "", false, "plain"}, {"10.0.0.1:80", "", false, "service"}, {"10.0.0.7:81", "", false, "port"},
	} {
		if c := l.Chain(netip.MustParseAddrPort(test.to), test.secure, test.name); c == nil || c.Name != test.want {
			t.Errorf("%v is served by %v", test, c)
		}
	}
	if _, err := NewListener(Listener{Chains: []*Chain{{Name: "a", Forward: rule}, {Name: "b", Forward: rule}}}); err == nil {
		t.Error("two chains for the same connections are taken")
	}
}

// TestMap holds a Map against a plain one over random edits, and Changed against their difference.
func TestMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m Map[int]
	model := map[string]int{}
	for range 2000 {
		old, before := m, map[string]int{}
		for k, v := range model {
			before[k] = v
		}
		put, remove := map[string]int{}, []string(nil)
		for range r.IntN(4) {
			put[fmt.Sprint(r.IntN(300))] = 1 + r.IntN(3)
		}
		for range r.IntN(3) {
			remove = append(remove, fmt.Sprint(r.IntN(300)))
		}
		m = m.With(put, remove)
		for _, k := range remove {
			delete(model, k)
		}
		for k, v := range put {
			model[k] = v
		}
		if m.Len() != len(model) || old.Len() != len(before) {
			t.Fatalf("%d names, want %d", m.Len(), len(model))
		}
		for k, v := range model {
			if got, ok := m.Get(k); !ok || got != v {
				t.Fatalf("%s is %d, want %d", k, got, v)
			}
		}
		for k, c := range m.Changed(old) {
			if before[k] != c.Old || model[k] != c.New || c.Old == c.New {
				t.Fatalf("%s: %+v", k, c)
			}
			before[k] = model[k]
		}
		for k, v := range before {
			if model[k] != v {
				t.Fatalf("the change of %s was not told", k)
			}
		}
	}
}

// naive is Gateway API's precedence as a scan of everything: the most specific match wins, ties go to the earlier route.
func naive(routes []*Route, path, method string, headers map[string]string) *Route {
	var best *Route
	var score [5]int
	for _, r := range routes {
		m := r.Match
		prefix := strings.TrimRight(m.Path.Value, "/")
		var s [5]int
		switch m.Path.Kind {
		case PathExact:
			if path != m.Path.Value {
				continue
			}
			s[0] = 1
		case PathPrefix:
			if path != prefix && !strings.HasPrefix(path, prefix+"/") && prefix != "" {
				continue
			}
			s[1] = len(prefix)
		}
		if m.Method != "" && m.Method != method {
			continue
		}
		s[2] = given(m.Method)
		ok := true
		for _, h := range m.Headers {
			ok = ok && headers[h.Name] == h.Value
		}
		if !ok {
			continue
		}
		s[3] = len(m.Headers)
		better := best == nil
		for i := range s {
			if s[i] != score[i] && best != nil {
				better = s[i] > score[i]
				break
			}
		}
		if better {
			best, score = r, s
		}
	}
	return best
}

func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString([]string{"/a", "/b", "/ab", "/a/", "//"}[r.IntN(5)])
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// FuzzMatch compares the compiled lookup with the naive scan, for routes and requests made from the seed.
func FuzzMatch(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 7))
		var routes []*Route
		for i := range r.IntN(12) {
			m := Match{Path: PathMatch{Kind: PathKind(r.IntN(2)), Value: randomPath(r)}, Method: []string{"", "", "GET", "POST"}[r.IntN(4)]}
			for _, name := range []string{"x", "y"}[:r.IntN(3)] {
				m.Headers = append(m.Headers, ValueMatch{Name: name, Value: fmt.Sprint(r.IntN(2))})
			}
			routes = append(routes, &Route{Match: m, Rule: &Rule{Name: fmt.Sprint(i)}})
		}
		sorted := append([]*Route(nil), routes...)
		Precedence(sorted)
		v := host(t, sorted...)
		for range 30 {
			path, method := randomPath(r), []string{"GET", "POST", "PUT"}[r.IntN(3)]
			headers := map[string]string{"x": fmt.Sprint(r.IntN(3)), "y": fmt.Sprint(r.IntN(3))}
			got := v.Match(&Request{Path: path, Method: method, Header: func(n string) (string, bool) { h, ok := headers[n]; return h, ok }})
			if want := naive(routes, path, method, headers); got != want {
				t.Fatalf("%s %s %v: got %+v, want %+v", method, path, headers, got, want)
			}
		}
	})
}

func TestOrderAndExpressions(t *testing.T) {
	named := func(name string, m Match) *Route { return &Route{Match: m, Rule: &Rule{Name: name}} }
	v := host(t,
		named("regex", Match{Path: PathMatch{Kind: PathRegex, Value: "/v[0-9]+"}}),
		named("method", Match{Path: PathMatch{Kind: PathGRPC, Method: "Get"}}),
		named("service", Match{Path: PathMatch{Kind: PathGRPC, Service: "pkg.S"}}),
		named("text", Match{Path: PathMatch{Kind: PathString, Value: "/te"}}),
		named("query", Match{Path: PathMatch{Kind: PathExact, Value: "/q"}, Query: []ValueMatch{{Name: "a b", Value: "1"}}}),
		named("not", Match{Path: PathMatch{Kind: PathExact, Value: "/q"}, Query: []ValueMatch{{Name: "z", Kind: ValuePresent, Not: true}}}),
		named("fold", Match{Path: PathMatch{Kind: PathPrefix, Value: "/Fold", Fold: true}}))
	for ask, want := range map[string]string{"/v12": "regex", "/v": "", "/x/Get": "method", "/pkg.S/Put": "service", "/pkg.S/Get": "method", "/test": "text",
		"/q?a+b=1&z": "query", "/q": "not", "/q?z=": "", "/fOLD/x": "fold", "/folder": ""} {
		path, query, _ := strings.Cut(ask, "?")
		got := ""
		if r := v.Match(&Request{Path: path, Query: query}); r != nil {
			got = r.Rule.Name
		}
		if got != want {
			t.Errorf("%s goes to %q, want %q", ask, got, want)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		var routes []*Route
		for i := range n {
			routes = append(routes, &Route{Match: Match{Path: PathMatch{Kind: PathKind(i % 2), Value: fmt.Sprintf("/service/%d/path", i)}}, Rule: &Rule{}})
		}
		Precedence(routes)
		v, _ := NewVirtualHost("v", nil, routes)
		r := &Request{Path: fmt.Sprintf("/service/%d/path", n/2)}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if v.Match(r) == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}
