package gateway

import (
	"slices"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func TestSharedHostnames(t *testing.T) {
	for _, c := range []struct {
		listener string
		route    []gatewayv1.Hostname
		want     []string
	}{
		{"", nil, []string{""}},
		{"a.example", nil, []string{"a.example"}},
		{"", []gatewayv1.Hostname{"A.example", "*.example"}, []string{"a.example", "*.example"}},
		{"a.example", []gatewayv1.Hostname{"*.example", "b.example"}, []string{"a.example"}},
		{"*.example", []gatewayv1.Hostname{"a.b.example", "example", "*.b.example", "*.other"}, []string{"a.b.example", "*.b.example"}},
		{"a.example", []gatewayv1.Hostname{"b.example"}, nil},
		{"*.a.example", []gatewayv1.Hostname{"*.example"}, []string{"*.a.example"}},
	} {
		got, ok := shared(c.listener, c.route)
		if !slices.Equal(got, c.want) || ok != (len(c.want) > 0) {
			t.Errorf("%q and %q share %q, want %q", c.listener, c.route, got, c.want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "a.example", true}, {"", "", true}, {"a.example", "", false}, {"*.example", "a.example", true}, {"*.example", "example", false},
		{"*.example", "*.a.example", true}, {"*.a.example", "*.example", false}, {"*.example", "a.b.example", true}, {"*.ample", "a.example", false},
	} {
		if got := covers(c.a, c.b); got != c.want {
			t.Errorf("covers(%q, %q) is %v", c.a, c.b, got)
		}
	}
}

// TestCovering holds in which order hostnames are looked up, and that these are all that cover a name.
func TestCovering(t *testing.T) {
	all := []string{"", "*.example", "a.example", "*.b.example", "aa.b.example", "*.aa.b.example", "*.ample"}
	for name, want := range map[string][]string{
		"":                 {""},
		"a.example":        {"a.example", "*.example", ""},
		"aa.b.example":     {"aa.b.example", "*.b.example", "*.example", ""},
		"*.b.example":      {"*.b.example", "*.example", ""},
		"x.aa.b.example":   {"x.aa.b.example", "*.aa.b.example", "*.b.example", "*.example", ""},
		"example":          {"example", ""},
		"*.example":        {"*.example", ""},
		"b.example.other.": {"b.example.other.", "*.example.other.", "*.other.", "*.", ""},
	} {
		got := slices.Collect(covering(name))
		if !slices.Equal(got, want) {
			t.Errorf("%q is covered by %q, want %q", name, got, want)
		}
		for _, n := range all {
			if covers(n, name) != slices.Contains(got, n) {
				t.Errorf("does %q cover %q? %q", n, name, got)
			}
		}
	}
}

// TestSessionEnds holds that a route that asks for an end of its sessions that nobody would keep is told so.
func TestSessionEnds(t *testing.T) {
	hour, none := gatewayv1.Duration("1h"), gatewayv1.Duration("0s")
	header, permanent := gatewayv1.HeaderBasedSessionPersistence, gatewayv1.PermanentCookieLifetimeType
	lasting := &gatewayv1.CookieConfig{LifetimeType: &permanent}
	for _, test := range []struct {
		name string
		p    *gatewayv1.SessionPersistence
		ok   bool
	}{
		{"none", nil, true},
		{"cookie", &gatewayv1.SessionPersistence{}, true},
		{"no end", &gatewayv1.SessionPersistence{AbsoluteTimeout: &none}, true},
		{"permanent cookie", &gatewayv1.SessionPersistence{AbsoluteTimeout: &hour, CookieConfig: lasting}, true},
		{"session cookie", &gatewayv1.SessionPersistence{AbsoluteTimeout: &hour}, false},
		{"header", &gatewayv1.SessionPersistence{AbsoluteTimeout: &hour, Type: &header}, false},
	} {
		h := &gatewayv1.HTTPRoute{Spec: gatewayv1.HTTPRouteSpec{Rules: []gatewayv1.HTTPRouteRule{{SessionPersistence: test.p}}}}
		g := &gatewayv1.GRPCRoute{Spec: gatewayv1.GRPCRouteSpec{Rules: []gatewayv1.GRPCRouteRule{{SessionPersistence: test.p}}}}
		if one, two := unsupported(h), unsupported(g); (one == "") != test.ok || (two == "") != test.ok {
			t.Errorf("%s: %q, %q", test.name, one, two)
		}
	}
}
