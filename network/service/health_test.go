package service

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"

	"coracle.dev/coracle/reconcile"
)

// TestTakenHealthPort: that a port is taken is told once, and again after it was open in between.
func TestTakenHealthPort(t *testing.T) {
	taken, told := true, []reconcile.Event{}
	h := &HealthPorts{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Node: "n1", Event: func(ev reconcile.Event) { told = append(told, ev) },
		Listen: func(string, string) (net.Listener, error) {
			if taken {
				return nil, syscall.EADDRINUSE
			}
			return net.Listen("tcp", "127.0.0.1:0")
		}}
	t.Cleanup(func() { _ = h.Close(t.Context()) })
	web := reconcile.Key{Namespace: "shop", Name: "web"}
	for _, step := range []struct {
		taken bool
		port  uint16
		told  int
	}{{true, 31000, 1}, {true, 31000, 1}, {true, 31001, 2}, {false, 31001, 2}, {true, 31002, 3}, {true, 0, 3}, {true, 31002, 4}} {
		taken = step.taken
		h.set(web, "u1", Health{Port: step.port})
		if len(told) != step.told {
			t.Fatalf("%+v: told %d times: %v", step, len(told), told)
		}
	}
	ev := told[0]
	if ev.Reason != "FailedToStartServiceHealthcheck" || ev.Regarding.UID != "u1" || ev.Regarding.Name != "web" ||
		!strings.HasPrefix(ev.Message, `node n1 failed to start healthcheck "shop/web" on port 31000: `) {
		t.Errorf("told %+v", ev)
	}
}
