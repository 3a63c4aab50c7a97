package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/namespace"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network"
)

const (
	servicesEndpoints = 10   // of each service
	servicesChanges   = 100  // measured at each size
	servicesFirst     = 2000 // connections, and first packets, measured at each size
)

// services measures what a change and a connection's first packet cost beside 10, 1,000 and 10,000 Services with ten endpoints each: the
// rules are those of the node's table, the connections real ones from a pod to a pod, in network namespaces.
func (b *bench) services() error {
	if os.Getuid() != 0 {
		return errors.New("needs root")
	}
	s, err := openServices(b.ctx)
	if err != nil {
		return err
	}
	err = s.measure(b)
	return errors.Join(err, s.close())
}

type servicesBench struct {
	dir, instance, table string
	paths                [2]string // of the client's namespace and the server's
	server               netip.AddrPort
	vips                 netip.Prefix
	routed               bool
	listener             net.Listener
	serving              sync.WaitGroup
}

func openServices(ctx context.Context) (*servicesBench, error) {
	dir, err := os.MkdirTemp("", "coracle-bench-services-")
	if err != nil {
		return nil, err
	}
	instance := fmt.Sprintf("%04x", os.Getpid()&0xffff)
	s := &servicesBench{dir: dir, instance: instance, table: "coracle_bench_services_" + instance, vips: netip.MustParsePrefix("10.252.0.0/16")}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *servicesBench) open(ctx context.Context) error {
	if _, err := link.EnableForwarding(); err != nil {
		return err
	}
	pods, err := network.NewPods(s.instance, 0)
	if err != nil {
		return err
	}
	pods.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.253.78.0/28")})
	host, err := link.HostAddr()
	if err != nil {
		return err
	}
	if err := link.Reach(s.vips, host); err != nil {
		return err
	}
	s.routed = true
	for i, name := range []string{"services-client", "services-server"} {
		if err := namespace.Pin(filepath.Join(s.dir, name), []namespace.Type{namespace.Net}, nil); err != nil {
			return err
		}
		s.paths[i] = filepath.Join(s.dir, name, string(namespace.Net))
		addrs, err := pods.Attach(ctx, name, s.paths[i], name)
		if err != nil {
			return err
		}
		s.server = netip.AddrPortFrom(addrs[0], 8080)
	}
	if err := namespace.Do(func() (err error) { s.listener, err = net.Listen("tcp4", s.server.String()); return err }, s.paths[1]); err != nil {
		return err
	}
	s.serving.Go(func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	return nil
}

func (s *servicesBench) close() error {
	var errs []error
	if s.listener != nil {
		errs = append(errs, s.listener.Close())
		s.serving.Wait()
	}
	if s.routed {
		errs = append(errs, link.RemoveRoutes(s.vips))
	}
	errs = append(errs, nft.DeleteTable(s.table), network.RemoveAll(s.instance))
	for _, path := range s.paths {
		if path != "" {
			errs = append(errs, namespace.Unpin(path))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// group is a Service with a cluster address and a node port. That of measured leads to the server alone; endpoints of the others do not exist.
func (s *servicesBench) group(n, endpoints int) *nft.Group {
	g := &nft.Group{Pools: [][]nft.Backend{nil}, Routes: []nft.Route{
		{Front: nft.Front{Addr: s.vip(n), Proto: unix.IPPROTO_TCP, Port: 80}, Source: nft.HideOutside, Empty: nft.RefuseEmpty},
		{Front: nft.Front{Proto: unix.IPPROTO_TCP, Port: uint16(40000 + n), Family: 4}, Source: nft.HideSource, Empty: nft.RefuseEmpty}}}
	for i := range endpoints {
		at := n*servicesEndpoints + i
		addr := netip.AddrFrom4([4]byte{10, byte(200 + at>>16), byte(at >> 8), byte(at)})
		g.Pools[0] = append(g.Pools[0], nft.Backend{Addr: netip.AddrPortFrom(addr, 8080)})
	}
	return g
}

func (s *servicesBench) vip(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 252, byte(n >> 8), byte(n)})
}

func (s *servicesBench) measure(b *bench) error {
	direct, err := s.connect(s.server)
	if err != nil {
		return err
	}
	b.add("connection to a pod without a Service, p50 / p99", micros(at(direct, 50))+" / "+micros(at(direct, 99)), "")
	packets, err := s.packets(s.server)
	if err != nil {
		return err
	}
	b.add("a flow's first datagram to a pod without a Service, p50 / p99", micros(at(packets, 50))+" / "+micros(at(packets, 99)), "")
	for _, size := range []int{10, 1000, 10_000} {
		if err := s.at(b, size); err != nil {
			return fmt.Errorf("%d services: %w", size, err)
		}
	}
	return nil
}

// at measures beside so many Services.
func (s *servicesBench) at(b *bench, size int) (err error) {
	balancer, err := nft.NewBalancer(s.table, []netip.Prefix{netip.MustParsePrefix("10.253.78.0/28")}, []netip.Prefix{s.vips})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, balancer.Close()) }()
	all := map[string]*nft.Group{}
	for n := range size {
		all[fmt.Sprint(n)] = s.group(n, servicesEndpoints)
	}
	const measured = 5
	real := s.group(measured, 0)
	real.Routes = append(real.Routes, nft.Route{Front: nft.Front{Addr: s.vip(measured), Proto: unix.IPPROTO_UDP, Port: 80}, Source: nft.HideOutside, Empty: nft.RefuseEmpty})
	real.Pools[0] = []nft.Backend{{Addr: s.server, Local: true}}
	all[fmt.Sprint(measured)] = real
	began := time.Now()
	if err := balancer.Apply(all); err != nil {
		return err
	}
	full := time.Since(began)
	var took []time.Duration
	before := ownCPU()
	for i := range servicesChanges {
		change := map[string]*nft.Group{"3": s.group(3, servicesEndpoints-1+i%2)}
		began := time.Now()
		if err := balancer.Apply(change); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	cpu := (ownCPU() - before) / servicesChanges
	slices.Sort(took)
	first, err := s.connect(netip.AddrPortFrom(s.vip(measured), 80))
	if err != nil {
		return err
	}
	packets, err := s.packets(netip.AddrPortFrom(s.vip(measured), 80))
	if err != nil {
		return err
	}
	beside := fmt.Sprintf(", %d Services", size)
	b.add("CPU of a changed endpoint"+beside, cpu.Round(time.Microsecond).String(), "the same at all sizes")
	b.add("a changed endpoint"+beside+", p50 / p99 / longest", micros(at(took, 50))+" / "+micros(at(took, 99))+" / "+micros(took[len(took)-1]), "")
	b.add(fmt.Sprintf("all rules made anew%s, %d endpoints", beside, size*servicesEndpoints), round(full), "")
	b.add("connection through a Service"+beside+", p50 / p99", micros(at(first, 50))+" / "+micros(at(first, 99)), "the same at all sizes")
	b.add("a flow's first datagram through a Service"+beside+", p50 / p99", micros(at(packets, 50))+" / "+micros(at(packets, 99)), "the same at all sizes")
	return nil
}

// micros rounds to what is measured of single packets.
func micros(d time.Duration) string { return d.Round(100 * time.Nanosecond).String() }

// packets says, sorted, how long sending a datagram takes that is the first of a flow. On links of this machine the kernel takes it to the
// server's end within the system call, through all rules. The server has no such port, and its refusals are the same for all.
func (s *servicesBench) packets(to netip.AddrPort) (all []time.Duration, err error) {
	err = namespace.Do(func() error {
		for range servicesFirst {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			began := time.Now()
			err = unix.Sendto(fd, []byte{0}, 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
			all = append(all, time.Since(began))
			if err = errors.Join(err, unix.Close(fd)); err != nil {
				return fmt.Errorf("datagram to %s: %w", to, err)
			}
		}
		return nil
	}, s.paths[0])
	slices.Sort(all)
	return all, err
}

// connect says, sorted, how long the client takes to connect. Each connection is new, so that the lookup of its first packet is in it.
func (s *servicesBench) connect(to netip.AddrPort) (all []time.Duration, err error) {
	err = namespace.Do(func() error {
		for range servicesFirst {
			d, err := dialOnce(to)
			if err != nil {
				return err
			}
			all = append(all, d)
		}
		return nil
	}, s.paths[0])
	slices.Sort(all)
	return all, err
}

// dialOnce connects by system calls on the thread that it is called on, which is in a namespace, and waits for the server's end.
func dialOnce(to netip.AddrPort) (took time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return 0, err
	}
	began := time.Now()
	err = unix.EINTR
	for err == unix.EINTR { // a signal of the runtime's; the second call waits for the first one's end
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	took = time.Since(began)
	if n, err := unix.Read(fd, make([]byte, 1)); err != nil || n != 0 {
		return 0, fmt.Errorf("read from %s: %w", to, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return took, nil
}
