package service

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/networktest"
)

// TestBalance sends real connections: from a pod, from the host, from a pod to itself, to a
// node port, and to a service without endpoints.
func TestBalance(t *testing.T) {
	ctx := context.Background()
	pods, err := network.NewPods("5e7c", 0)
	if err != nil {
		t.Fatal(err)
	}
	inside, vips := netip.MustParsePrefix("10.255.78.0/28"), netip.MustParsePrefix("10.255.79.0/28")
	pods.SetRanges([]netip.Prefix{inside})
	if _, err := link.EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	hostAddr, err := link.HostAddr()
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Reach(vips, hostAddr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := link.RemoveRoutes(vips); err != nil {
			t.Error(err)
		}
	})
	var paths []string
	var backends []netip.AddrPort
	for i := range 2 {
		name := fmt.Sprintf("coracle-test-s%d", i)
		path := networktest.Namespace(t, name)
		addrs, err := pods.Attach(ctx, name, path, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pods.Detach(ctx, name, path) })
		at := netip.AddrPortFrom(addrs[0], 8080)
		var l net.Listener
		networktest.Inside(t, path, func() { l, err = net.Listen("tcp4", at.String()) })
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })}
		go server.Serve(l) //nolint:errcheck // closed below
		t.Cleanup(func() { server.Close() })
		paths, backends = append(paths, path), append(backends, at)
	}
	const table = "coracle_test_5e7c"
	b, err := nft.NewBalancer(table, []netip.Prefix{inside}, []netip.Prefix{vips})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nft.DeleteTable(table); err != nil {
			t.Error(err)
		}
	})
	vip := netip.MustParseAddr("10.255.79.10")
	front := nft.Front{Addr: vip, Proto: 6, Port: 80}
	node := nft.Front{Proto: 6, Port: 31999}
	if err := b.Set("a", []nft.Front{front, node}, backends, 0); err != nil {
		t.Fatal(err)
	}
	ask := func(where, address string) (body string, err error) {
		get := func() {
			c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			var resp *http.Response
			if resp, err = c.Get("http://" + address); err == nil {
				data, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				body = string(data)
			}
		}
		if where == "" {
			get()
		} else {
			networktest.Inside(t, where, get)
		}
		return body, err
	}
	for name, target := range map[string]string{"cluster address": "10.255.79.10:80", "node port": fmt.Sprintf("%s:31999", hostAddr)} {
		for from, where := range map[string]string{"host": "", "pod": paths[0]} {
			seen := map[string]int{}
			for range 40 {
				body, err := ask(where, target)
				if err != nil {
					t.Fatalf("%s from %s: %v", name, from, err)
				}
				seen[body]++
			}
			if len(seen) != 2 {
				t.Errorf("%s from %s: 40 connections reached %v, want both pods", name, from, seen)
			}
		}
	}
	// One backend: a pod reaches itself through the front.
	if err := b.Set("a", []nft.Front{front}, backends[:1], 0); err != nil {
		t.Fatal(err)
	}
	if body, err := ask(paths[0], "10.255.79.10:80"); err != nil || body != "coracle-test-s0" {
		t.Errorf("pod to itself: %q, %v", body, err)
	}
	if _, err := ask("", fmt.Sprintf("%s:31999", hostAddr)); err == nil {
		t.Error("the node port still answers after it was taken away")
	}
	// No backend: refused at once, not after a time-out.
	if err := b.Set("a", []nft.Front{front}, nil, 0); err != nil {
		t.Fatal(err)
	}
	for from, where := range map[string]string{"host": "", "pod": paths[1]} {
		began := time.Now()
		if _, err := ask(where, "10.255.79.10:80"); err == nil || time.Since(began) > time.Second {
			t.Errorf("without endpoints, from %s: %v after %s, want to be refused at once", from, err, time.Since(began))
		}
	}
	// Sticky: a client stays where it is while that is a backend, and when there are more.
	set := func(backends []netip.AddrPort, sticky time.Duration) {
		t.Helper()
		if err := b.Set("a", []nft.Front{front}, backends, sticky); err != nil {
			t.Fatal(err)
		}
	}
	where := func(from string) string {
		t.Helper()
		body, err := ask(from, "10.255.79.10:80")
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	set(backends[1:], time.Hour)
	if got := where(""); got != "coracle-test-s1" {
		t.Errorf("the only backend: %s", got)
	}
	set(backends, time.Hour)
	for range 10 {
		if got := where(""); got != "coracle-test-s1" {
			t.Fatalf("a sticky client moved to %s", got)
		}
	}
	set(backends[:1], time.Hour)
	for _, set2 := range [][]netip.AddrPort{backends[:1], backends} {
		set(set2, 2*time.Hour)
		for range 10 {
			if got := where(""); got != "coracle-test-s0" {
				t.Fatalf("a client whose backend had gone moved on to %s", got)
			}
		}
	}
	set(backends, 0)
	seen := map[string]bool{}
	for range 40 {
		seen[where("")] = true
	}
	if len(seen) != 2 {
		t.Errorf("no longer sticky, 40 connections reached %v", seen)
	}
	set(backends, time.Hour)
	if err := b.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if err := b.Set("b", []nft.Front{front}, backends[1:], 0); err != nil {
		t.Fatal(err)
	}
	if body, err := ask(paths[0], "10.255.79.10:80"); err != nil || body != "coracle-test-s1" {
		t.Errorf("an address used again: %q, %v", body, err)
	}
}
