package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/container"
)

// Limits of what probes and hooks read, as upstream's.
const (
	maxProbeBody   = 10 * 1024
	maxProbeOutput = 10 * 1024
)

// prober executes probes and lifecycle hooks. It holds no state of pods.
type prober struct {
	runtime container.Runtime
	// userAgent is "kube-probe/1.37".
	userAgent string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

// target is where a probe or hook of a container goes.
type target struct {
	pod  *corev1.Pod
	spec *corev1.Container
	id   string // of the instance
	ip   string // of the pod
	path string // of the container in events
	env  *variables
}

// run executes a probe once. The text is the output or the error, as events show it.
func (p *prober) run(ctx context.Context, spec *corev1.Probe, t target, timeout time.Duration) (outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case spec.Exec != nil:
		return p.exec(ctx, spec.Exec.Command, t, timeout)
	case spec.HTTPGet != nil:
		return p.http(ctx, spec.HTTPGet, t)
	case spec.TCPSocket != nil:
		return p.tcp(ctx, spec.TCPSocket, t)
	case spec.GRPC != nil:
		return p.grpc(ctx, spec.GRPC, t, timeout)
	}
	return probeError, "missing probe handler for " + podFullName(t.pod) + ":" + t.spec.Name
}

func (p *prober) exec(ctx context.Context, command []string, t target, timeout time.Duration) (outcome, string) {
	out := &limited{limit: maxProbeOutput}
	args := command
	if t.env != nil {
		args = expandAll(command, t.env)
	}
	status, err := p.runtime.Exec(ctx, t.id, container.ExecConfig{Args: args}, container.Streams{Stdout: out, Stderr: out})
	var start *container.StartError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return probeFailure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(args, " "), timeout)
	case errors.As(err, &start):
		return probeFailure, start.Message
	case err != nil:
		return probeError, err.Error()
	case status.Code != 0:
		return probeFailure, out.String()
	}
	return probeSuccess, out.String()
}

func (p *prober) http(ctx context.Context, get *corev1.HTTPGetAction, t target) (outcome, string) {
	req, err := p.request(ctx, get, t)
	if err != nil {
		return probeError, err.Error()
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "*/*")
	}
	h2c := get.Protocol != nil && strings.Contains(strings.ToLower(string(*get.Protocol)), "2")
	c := p.httpClient(h2c)
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return probeFailure, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	if err != nil {
		return probeFailure, err.Error()
	}
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusBadRequest {
		if resp.StatusCode >= http.StatusMultipleChoices { // a redirect that was not followed
			return probeWarning, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body))
		}
		return probeSuccess, string(body)
	}
	return probeFailure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
}

// httpClient never keeps a connection, trusts any certificate, and follows
// redirects only on the same host.
func (p *prober) httpClient(h2c bool) *http.Client {
	tr := &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a probe asks for life, not for identity
		DialContext:        p.dial,
	}
	if h2c {
		tr.DisableKeepAlives = false
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
		tr.Protocols.SetHTTP2(true)
	}
	return &http.Client{
		Transport: tr,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

// request makes the request of a probe or a hook. The header Host names the virtual host.
func (p *prober) request(ctx context.Context, get *corev1.HTTPGetAction, t target) (*http.Request, error) {
	port, err := portOf(get.Port, t.spec)
	if err != nil {
		return nil, err
	}
	host := get.Host
	if host == "" {
		host = t.ip
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme = strings.ToLower(string(get.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range get.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		}
	}
	if _, set := req.Header["User-Agent"]; !set {
		req.Header.Set("User-Agent", p.userAgent)
	} else if req.Header.Get("User-Agent") == "" {
		req.Header["User-Agent"] = []string{""} // asked for none
	}
	if a, set := req.Header["Accept"]; set && len(a) == 1 && a[0] == "" {
		delete(req.Header, "Accept")
	}
	return req, nil
}

func (p *prober) tcp(ctx context.Context, tcp *corev1.TCPSocketAction, t target) (outcome, string) {
	port, err := portOf(tcp.Port, t.spec)
	if err != nil {
		return probeError, err.Error()
	}
	host := tcp.Host
	if host == "" {
		host = t.ip
	}
	conn, err := p.dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return probeFailure, err.Error()
	}
	conn.Close()
	return probeSuccess, ""
}

// grpc asks the gRPC health service (grpc.health.v1.Health/Check) in plain HTTP/2: the message
// is one field, which does not need a gRPC library.
func (p *prober) grpc(ctx context.Context, g *corev1.GRPCAction, t target, timeout time.Duration) (outcome, string) {
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	address := net.JoinHostPort(t.ip, strconv.Itoa(int(g.Port)))
	scheme := "http"
	tr := &http.Transport{DialContext: p.dial, Protocols: new(http.Protocols),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}} //nolint:gosec // as above
	if g.Mode != nil && *g.Mode == "TLS" {
		scheme = "https"
		tr.Protocols.SetHTTP2(true)
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://"+address+"/grpc.health.v1.Health/Check", bytes.NewReader(healthRequest(service)))
	if err != nil {
		return probeError, err.Error()
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Header.Set("User-Agent", p.userAgent)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return probeFailure, fmt.Sprintf("timeout: failed to connect service %q within %v: %v", address, timeout, ctx.Err())
		}
		return probeFailure, fmt.Sprintf("error: failed to connect service at %q: %v", address, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	if err != nil {
		return probeFailure, "error: health rpc probe failed: " + err.Error()
	}
	return healthVerdict(resp, body)
}

// healthRequest is a HealthCheckRequest in gRPC's framing.
func healthRequest(service string) []byte {
	var msg []byte
	if service != "" {
		msg = append(msg, 0x0a) // field 1, length-delimited
		msg = binary.AppendUvarint(msg, uint64(len(service)))
		msg = append(msg, service...)
	}
	out := make([]byte, 5, 5+len(msg))
	binary.BigEndian.PutUint32(out[1:], uint32(len(msg)))
	return append(out, msg...)
}

// grpcUnimplemented is the gRPC status of a service that is not there.
const grpcUnimplemented = "12"

// healthVerdict reads a HealthCheckResponse.
func healthVerdict(resp *http.Response, body []byte) (outcome, string) {
	code, message := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if code == "" {
		code, message = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	switch {
	case code == grpcUnimplemented:
		return probeFailure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + message
	case code != "0":
		return probeFailure, fmt.Sprintf("error: health rpc probe failed: rpc error: code = %s desc = %s", code, message)
	}
	status := uint64(0)
	if len(body) >= 7 && body[5] == 0x08 { // field 1, varint
		status, _ = binary.Uvarint(body[6:])
	}
	names := []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}
	switch {
	case status == 1:
		return probeSuccess, "service healthy"
	case status < uint64(len(names)):
		return probeFailure, fmt.Sprintf("service unhealthy (responded with %q)", names[status])
	}
	return probeFailure, fmt.Sprintf("service unhealthy (responded with \"%d\")", status)
}

// portOf resolves a port that may be given by name.
func portOf(p intstr.IntOrString, c *corev1.Container) (int, error) {
	port := 0
	switch p.Type {
	case intstr.Int:
		port = p.IntValue()
	case intstr.String:
		found := false
		for i := range c.Ports {
			if c.Ports[i].Name == p.StrVal {
				port, found = int(c.Ports[i].ContainerPort), true
				break
			}
		}
		if !found {
			n, err := strconv.Atoi(p.StrVal)
			if err != nil {
				return 0, fmt.Errorf("couldn't find port: %v in %v", p.StrVal, c.Name)
			}
			port = n
		}
	}
	if port <= 0 || port > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", port)
	}
	return port, nil
}

// hook runs a lifecycle hook. An error says what went wrong, with the output.
func (p *prober) hook(ctx context.Context, h *corev1.LifecycleHandler, t target) error {
	switch {
	case h.Exec != nil:
		out := &limited{limit: maxProbeOutput}
		status, err := p.runtime.Exec(ctx, t.id, container.ExecConfig{Args: h.Exec.Command}, container.Streams{Stdout: out, Stderr: out})
		if err == nil && status.Code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), status.Code, out.String())
		}
		return err
	case h.HTTPGet != nil:
		req, err := p.request(ctx, h.HTTPGet, t)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "kube-lifecycle/"+strings.TrimPrefix(p.userAgent, "kube-probe/"))
		resp, err := p.httpClient(false).Do(req)
		if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
			plain := *h.HTTPGet // as upstream falls back, for hooks alone
			plain.Scheme = corev1.URISchemeHTTP
			if req, err = p.request(ctx, &plain, t); err == nil {
				req.Header.Del("Authorization")
				resp, err = p.httpClient(false).Do(req)
			}
		}
		if err != nil {
			return err
		}
		resp.Body.Close()
		return nil
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("invalid handler: %v", h)
}

// limited keeps the beginning of what is written to it. It is written from two goroutines if
// it stands for two streams, each ending before Exec returns.
type limited struct {
	limit int

	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write keeps what fits and swallows the rest.
func (l *limited) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := l.limit - l.buf.Len(); room > 0 {
		l.buf.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// String is what was kept.
func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
