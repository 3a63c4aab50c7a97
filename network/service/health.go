package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/reconcile"
)

// HealthPorts answers load balancers outside of the cluster that ask which nodes have an endpoint of a Service with the external
// traffic policy Local: 200 if there is one here, 503 if not, at the Service's health check node port, with the body
// that upstream's proxy gives. It is safe for concurrent use.
type HealthPorts struct {
	// Listen opens the port, net.Listen if nil.
	Listen func(network, address string) (net.Listener, error)
	Log    *slog.Logger
	// Node is the name of the node, for events.
	Node string
	// Event records that a port cannot be opened, once for each Service and port while that lasts. Nil: nobody is told.
	Event func(reconcile.Event)

	mu     sync.Mutex // guards what follows
	ports  map[reconcile.Key]*healthPort
	failed map[reconcile.Key]uint16 // ports that could not be opened
}

type healthPort struct {
	number uint16
	server *http.Server

	mu    sync.Mutex // guards local
	local int
}

// set opens, changes or closes the port of a Service. One that another program has is tried again with the next change.
func (h *HealthPorts) set(key reconcile.Key, uid types.UID, want Health) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.ports[key]
	if p != nil && p.number != want.Port {
		p.server.Close()
		delete(h.ports, key)
		p = nil
	}
	if want.Port == 0 {
		delete(h.failed, key)
		return
	}
	if p == nil {
		var err error
		if p, err = h.open(key, want.Port); err != nil {
			h.tell(key, uid, want.Port, err)
			return
		}
		delete(h.failed, key)
		if h.ports == nil {
			h.ports = map[reconcile.Key]*healthPort{}
		}
		h.ports[key] = p
	}
	p.mu.Lock()
	p.local = want.Local
	p.mu.Unlock()
}

// tell says that a port cannot be opened, in the words of upstream's proxy.
func (h *HealthPorts) tell(key reconcile.Key, uid types.UID, port uint16, err error) {
	h.Log.Warn("health check node port", "service", key.String(), "port", port, "error", err)
	if h.Event == nil || h.failed[key] == port {
		return
	}
	if h.failed == nil {
		h.failed = map[reconcile.Key]uint16{}
	}
	h.failed[key] = port
	h.Event(reconcile.Event{
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: key.Namespace, Name: key.Name, UID: uid},
		Type:      corev1.EventTypeWarning, Reason: "FailedToStartServiceHealthcheck",
		Message: fmt.Sprintf("node %s failed to start healthcheck %q on port %d: %v", h.Node, key.String(), port, err),
	})
}

func (h *HealthPorts) open(key reconcile.Key, number uint16) (*healthPort, error) {
	listen := h.Listen
	if listen == nil {
		listen = net.Listen
	}
	l, err := listen("tcp", ":"+strconv.Itoa(int(number)))
	if err != nil {
		return nil, err
	}
	p := &healthPort{number: number}
	p.server = &http.Server{Handler: p.handler(key), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.Log.Warn("health check node port", "service", key.String(), "port", number, "error", err)
		}
	}()
	return p, nil
}

func (p *healthPort) handler(key reconcile.Key) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		local := p.local
		p.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
		if local == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}", key.Namespace, key.Name, local)
	})
}

// Close closes all ports.
func (h *HealthPorts) Close(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for key, p := range h.ports {
		errs = append(errs, p.server.Close())
		delete(h.ports, key)
	}
	return errors.Join(errs...)
}
