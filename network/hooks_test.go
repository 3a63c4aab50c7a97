package network

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func TestHooksStandAroundALink(t *testing.T) {
	ctx := context.Background()
	p, err := NewPods("7e5a", 0)
	if err != nil {
		t.Fatal(err)
	}
	p.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.255.78.0/29")})
	var told []string
	refuse := errors.New("no rules yet")
	var answer error
	p.BeforeUp(func(_ context.Context, sandbox string, addrs []netip.Addr) error {
		told = append(told, "before 1 "+sandbox+" "+addrs[0].String())
		return nil
	})
	p.BeforeUp(func(context.Context, string, []netip.Addr) error { told = append(told, "before 2"); return answer })
	p.AfterDown(func(context.Context, string, []netip.Addr) error { told = append(told, "after 1"); return nil })
	p.AfterDown(func(context.Context, string, []netip.Addr) error { told = append(told, "after 2"); return nil })

	answer = refuse
	if _, err := p.Attach(ctx, "s", "/nowhere", "s"); !errors.Is(err, refuse) {
		t.Fatalf("attached although a hook refused: %v", err)
	}
	if want := []string{"before 1 s 10.255.78.2", "before 2", "after 2", "after 1"}; !slices.Equal(told, want) {
		t.Fatalf("told %q, want %q", told, want)
	}
	if c := p.Connected(); len(c) != 0 {
		t.Fatalf("a refused sandbox keeps %v", c)
	}
	told, answer = nil, nil
	// There is no such network namespace: the hooks are undone too.
	if _, err := p.Attach(ctx, "s", "/nowhere", "s"); err == nil || len(told) != 4 {
		t.Fatalf("error %v, told %q", err, told)
	}
}
