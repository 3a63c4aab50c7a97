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

func TestCloserHostnamesGoFirst(t *testing.T) {
	names := []string{"", "*.example", "a.example", "*.b.example", "aa.b.example"}
	slices.SortFunc(names, closer)
	if want := []string{"aa.b.example", "a.example", "*.b.example", "*.example", ""}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}
