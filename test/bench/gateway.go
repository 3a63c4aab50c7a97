package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"coracle.dev/coracle/mesh/proxy"
	"coracle.dev/coracle/mesh/table"
)

const (
	// gatewayRole is the variable that makes this program a part of its own gateway section: "backend" or "proxy ADDRESS".
	gatewayRole = "CORACLE_BENCH_GATEWAY"
	gatewayLoad = 64
	gatewayTime = 4 * time.Second
)

// gatewayChild plays a role of the gateway section, if this process was started for one.
func gatewayChild() bool {
	role, argument, _ := strings.Cut(os.Getenv(gatewayRole), " ")
	switch role {
	case "backend":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fatal(err)
		}
		fmt.Println(l.Addr())
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello, world\n") }))
	case "proxy":
		p := proxy.New(proxy.Config{})
		t, err := gatewayTable(1, argument)
		if err == nil {
			err = p.Apply(t)
		}
		if err != nil {
			fatal(err)
		}
		a, _ := p.Address("web")
		fmt.Println(a)
		_, _ = io.Copy(io.Discard, os.Stdin)
	default:
		return false
	}
	return true
}

// gatewayTable has n routes, each on a host of its own, and one host more that the load goes to.
func gatewayTable(n int, to string) (*table.Table, error) {
	address, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	var hosts []*table.VirtualHost
	for i := range n {
		rule := &table.Rule{Name: "r", Backends: []table.Weighted{{Backend: "b", Weight: 1}}}
		name := "*"
		if i > 0 {
			name = fmt.Sprintf("h%d.example.com", i)
		}
		v, err := table.NewVirtualHost(name, []string{name}, []*table.Route{{Rule: rule}})
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, v)
	}
	h, err := table.NewHosts(hosts...)
	if err != nil {
		return nil, err
	}
	l, err := table.NewListener(table.Listener{ID: "web", Address: netip.MustParseAddrPort("127.0.0.1:0"), Chains: []*table.Chain{{Hosts: h}}})
	if err != nil {
		return nil, err
	}
	return table.New(1, []*table.Listener{l}, []*table.Backend{{ID: "b", Endpoints: []table.Endpoint{{Address: address}}}})
}

// gateway measures the proxy beside nginx from Debian's packages, and what a change of its tables costs.
func (b *bench) gateway() error {
	stopBackend, backend, err := b.gatewayPart("backend")
	if err != nil {
		return err
	}
	defer stopBackend()
	direct, err := gatewayRun(backend)
	if err != nil {
		return err
	}
	stop, address, err := b.gatewayPart("proxy " + backend)
	if err != nil {
		return err
	}
	ours, err := gatewayRun(address)
	cpu := stop()
	if err != nil {
		return err
	}
	b.gatewayRow("gateway", ours, direct, cpu)
	stop, address, err = b.nginx(backend)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: gateway: nginx is left out:", err)
	} else {
		theirs, err := gatewayRun(address)
		cpu := stop()
		if err != nil {
			return err
		}
		b.gatewayRow("nginx (one worker)", theirs, direct, cpu)
	}
	return b.gatewaySwaps(backend)
}

func (b *bench) gatewayRow(name string, r, direct gatewayResult, cpu time.Duration) {
	each := cpu / time.Duration(max(1, r.n))
	b.add(name+": requests/s, 64 connections, load and backend on the same cores", fmt.Sprintf("%.0f", float64(r.n)/gatewayTime.Seconds()), "")
	b.add(name+": CPU per request", fmt.Sprintf("%.1f us", float64(each.Nanoseconds())/1000), "<= 2 x nginx")
	b.add(name+": added latency p50 / p99", fmt.Sprintf("%s / %s", (r.p50-direct.p50).Round(time.Microsecond), (r.p99-direct.p99).Round(time.Microsecond)), "")
}

// gatewayPart starts this program in a role and returns its address, and a function that ends it and says what CPU it used.
func (b *bench) gatewayPart(role string) (func() time.Duration, string, error) {
	c := exec.CommandContext(b.ctx, "/proc/self/exe")
	c.Env = append(os.Environ(), gatewayRole+"="+role)
	if _, err := c.StdinPipe(); err != nil {
		return nil, "", err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := c.Start(); err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	return ending(c), strings.TrimSpace(line), err
}

func ending(c *exec.Cmd) func() time.Duration {
	return func() time.Duration {
		_ = c.Process.Kill()
		_ = c.Wait()
		return c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
}

// nginx downloads Debian's package, takes the program out without installing it, and starts it before the backend.
func (b *bench) nginx(backend string) (func() time.Duration, string, error) {
	dir, err := os.MkdirTemp("", "coracle-bench-nginx-")
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	get := exec.CommandContext(ctx, "sh", "-c", "apt-get download nginx >/dev/null 2>&1 && dpkg-deb -x nginx_*.deb .")
	get.Dir = dir
	if err := get.Run(); err != nil {
		os.RemoveAll(dir)
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	address := l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 1024; }
http { access_log off; keepalive_requests 100000000; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c;
 uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
 upstream u { server %[2]s; keepalive 128; keepalive_requests 100000000; }
 server { listen %[3]s; location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; } } }
`, dir, backend, address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	c := exec.CommandContext(b.ctx, filepath.Join(dir, "usr/sbin/nginx"), "-e", filepath.Join(dir, "error.log"), "-p", dir, "-c", config)
	if err := c.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, "", err
	}
	end := ending(c)
	stop := func() time.Duration { defer os.RemoveAll(dir); return end() }
	for range 200 {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return stop, address, nil
		}
		time.Sleep(25 * time.Millisecond)
	}
	log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	stop()
	return nil, "", fmt.Errorf("it does not listen: %s", log)
}

type gatewayResult struct {
	n        int
	p50, p99 time.Duration
}

// gatewayRun sends requests over kept connections, one after the other on each.
func gatewayRun(address string) (gatewayResult, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failure error
	var wait sync.WaitGroup
	var stop atomic.Bool
	for range gatewayLoad {
		wait.Go(func() {
			took, err := gatewayClient(address, &stop)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			failure = errors.Join(failure, err)
		})
	}
	time.Sleep(gatewayTime) // the thing measured is what is done in that time
	stop.Store(true)
	wait.Wait()
	if failure != nil || len(all) == 0 {
		return gatewayResult{}, fmt.Errorf("%d requests: %w", len(all), failure)
	}
	slices.Sort(all)
	return gatewayResult{len(all), all[len(all)/2], all[len(all)*99/100]}, nil
}

func gatewayClient(address string, stop *atomic.Bool) ([]time.Duration, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	request := []byte("GET /path HTTP/1.1\r\nHost: bench.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	answer := make([]byte, 4096)
	var all []time.Duration
	for !stop.Load() {
		began := time.Now()
		if _, err := c.Write(request); err != nil {
			return all, err
		}
		for n := 0; ; {
			k, err := c.Read(answer[n:])
			if err != nil {
				return all, err
			}
			n += k
			if text := string(answer[:n]); strings.HasSuffix(text, "hello, world\n") {
				if !strings.HasPrefix(text, "HTTP/1.1 200") {
					return all, errors.New(text)
				}
				break
			}
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// gatewaySwaps measures the CPU of one changed host in tables of several sizes, made and applied.
func (b *bench) gatewaySwaps(backend string) error {
	for _, n := range []int{10, 1000, 10000} {
		p := proxy.New(proxy.Config{})
		t, err := gatewayTable(n, backend)
		if err == nil {
			err = p.Apply(t)
		}
		if err != nil {
			return err
		}
		began := processCPU()
		const times = 500
		for i := range times {
			l := *t.Listener("web")
			rule := &table.Rule{Name: "r", Backends: []table.Weighted{{Backend: "b", Weight: 1}}}
			v, err := table.NewVirtualHost("h1", nil, []*table.Route{{Match: table.Match{Method: fmt.Sprint("M", i)}, Rule: rule}})
			if err != nil {
				return err
			}
			l.Chains = []*table.Chain{{Hosts: l.Chains[0].Hosts.With(map[string]*table.VirtualHost{"h1.example.com": v}, nil)}}
			next, err := table.NewListener(l)
			if err != nil {
				return err
			}
			if t, err = t.With(table.Edit{Revision: int64(i), Listeners: []*table.Listener{next}}); err != nil {
				return err
			}
			if err := p.Apply(t); err != nil {
				return err
			}
		}
		b.add(fmt.Sprintf("gateway: one route changed of %d, CPU", n), fmt.Sprintf("%.1f us", float64((processCPU()-began).Microseconds())/times), "")
		p.Close(b.ctx)
	}
	return nil
}

func processCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
